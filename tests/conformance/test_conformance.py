"""Every case of the corpus, through the command line's own entry point."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aicert import statement
from aicert.certificate import Certificate
from aicert.cli import main
from aicert.log import parse_run
from tests.conformance import run

NAMES = run.names()

NAMED_IN_THE_MESSAGE = ("policy.file", "json.too-large")
"""Codes of errors whose message says itself what was found."""


def test_the_corpus_is_there() -> None:
    kinds = Counter(name.partition("-")[0] for name in NAMES)
    assert len(NAMES) >= 400
    assert kinds["policy"] >= 30 and kinds["bootlog"] + kinds["reference"] >= 25
    assert kinds["timestamp"] >= 20 and kinds["downgrade"] >= 20
    assert kinds["evaluation"] >= 15 and kinds["sev"] >= 10 and kinds["real"] >= 8


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """The places where two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from differences(one, other, f"{path}[{number}]")
    elif a != b:
        yield path


@pytest.mark.parametrize(
    "name", [name for name in NAMES if run.expected(name) == "statement.mismatch"]
)
def test_a_statement_is_wrong_in_what_its_case_names_and_in_nothing_else(name: str) -> None:
    parsed = Certificate.parse((run.HERE / "cases" / name / "certificate.json").read_bytes())
    right = statement.build(parse_run(parsed.records))
    if name in ("statement-empty", "statement-not-json"):
        return
    wrong = list(differences(json.loads(parsed.payload), right))
    most = {"statement-not-canonical": 0, "evaluation-claims-to-pass": 3}.get(name, 1)
    assert len(wrong) == most, wrong


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, tmp_path: Path) -> None:
    prepared = run.prepare(name, tmp_path)
    done = CliRunner().invoke(main, ["verify", *prepared.arguments])
    answer = json.loads(done.stdout)
    assert run.contains(answer, prepared.answer), answer
    if prepared.expect == "verified":
        assert (done.exit_code, answer["verdict"]) == (0, "verified"), answer
        return
    assert done.exit_code == prepared.status, answer
    assert answer["verdict"] == {1: "refused", 3: "error"}[prepared.status]
    error = answer["error"]
    assert error["code"] == prepared.expect, error
    assert error["message"] and error["advice"], error
    if not (error["code"] in NAMED_IN_THE_MESSAGE or error["message"].endswith("is missing")):
        assert "got" in error or "expected" in error, error


def test_a_refusal_and_a_verdict_through_the_real_command(tmp_path: Path) -> None:
    """The in-process runs above stand for the command: show it for some of each."""
    import sys

    for name in (
        "good-ecc",
        "quote-bad-magic",
        "form-oversize",
        "bootlog-good",
        "policy-malformed",
    ):
        (folder := tmp_path / name).mkdir()
        prepared = run.prepare(name, folder)
        command = [sys.executable, "-m", "aicert", "verify"]
        assert run.verdict(command, prepared) == prepared.expect
