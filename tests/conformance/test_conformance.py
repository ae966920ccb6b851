"""Every case of the corpus, through the command line's own entry point."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from aicert.cli import main
from tests.conformance import run

NAMES = run.names()


def test_the_corpus_is_there() -> None:
    assert len(NAMES) >= 80


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, tmp_path: Path) -> None:
    prepared = run.prepare(name, tmp_path)
    done = CliRunner().invoke(main, ["verify", *prepared.arguments])
    answer = json.loads(done.stdout)
    if prepared.expect == "verified":
        assert (done.exit_code, answer["verdict"]) == (0, "verified"), answer
        return
    assert done.exit_code == 1
    assert answer["verdict"] == "refused"
    assert answer["error"]["code"] == prepared.expect, answer["error"]
    assert answer["error"]["message"]


def test_a_refusal_and_a_verdict_through_the_real_command(tmp_path: Path) -> None:
    """The in-process runs above stand for the command: show it for one of each."""
    import sys

    for name in ("good-ecc", "quote-bad-magic", "form-oversize"):
        (folder := tmp_path / name).mkdir()
        prepared = run.prepare(name, folder)
        command = [sys.executable, "-m", "aicert", "verify"]
        assert run.verdict(command, prepared) == prepared.expect
