"""Hash a part of an input, wherever a task runner puts it; nothing is measured."""

from pathlib import Path
from typing import Any

from prefect import task

from aicert.agent import fetch
from aicert.agent.fetch import InputRequest, Surveyed
from tasks.reporting import OPTIONS, failing_as

STEP = "survey"


@task(name="survey part", task_run_name="part {part}", **OPTIONS)
def survey_part(
    part: int,
    parts: int,
    request: InputRequest,
    *,
    base: str | None,
    secrets: dict[str, Any],
    jobs: int,
) -> Surveyed:
    """Read one part of an input through and return the digests of its files."""
    with failing_as(STEP):
        return fetch.survey(
            request,
            base=None if base is None else Path(base),
            secrets=secrets,
            jobs=jobs,
            part=part,
            parts=parts,
        )
