"""The spec that trains the same again."""

from dataclasses import replace
from pathlib import Path

import pytest

from aicert import log
from aicert.agent.reproduce import pinned
from aicert.certificate import Certificate

CASE = Path(__file__).parents[1] / "conformance" / "cases" / "good-ecc" / "certificate.json"


@pytest.mark.parametrize(
    ("asked", "revision", "wanted"),
    [
        ("hf://datasets/a/b", "main", "hf://datasets/a/b"),
        ("hf://datasets/a/b@main/c", None, "hf://datasets/a/b/c"),
        ("git+https://h/p@v1#subdirectory=s", None, "git+https://h/p#subdirectory=s"),
    ],
)
def test_an_input_is_asked_for_by_the_commit_that_was_fetched(
    asked: str, revision: str | None, wanted: str
) -> None:
    run = log.parse_run(Certificate.parse(CASE.read_bytes()).records)
    spec, measured = run.job.spec, run.inputs[0]
    inputs = (replace(spec.inputs[0], uri=asked, revision=revision), *spec.inputs[1:])
    run = replace(
        run,
        job=replace(run.job, spec=replace(spec, inputs=inputs)),
        inputs=(replace(measured, revision="c" * 40), *run.inputs[1:]),
    )
    found = pinned(run).inputs[0]
    assert (found.uri, found.revision) == (wanted, "c" * 40)
    assert found.sha256 == measured.content_digest
