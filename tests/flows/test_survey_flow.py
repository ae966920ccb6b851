"""An input hashed in parts by a task runner: the digest that a run finds, or a clear refusal."""

import os
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.task_runners import ProcessPoolTaskRunner

from aicert import manifest
from flows.survey import survey

pytestmark = pytest.mark.xdist_group("survey")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    for number in range(10):
        (made / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (made / str(number % 3) / f"{number}.bin").write_bytes(os.urandom(1000 * number))
    return made


def test_parts_read_by_processes_of_their_own_give_the_digest_of_the_whole(
    prefect_server: str, folder: Path
) -> None:
    runner: Any = ProcessPoolTaskRunner(max_workers=2)
    spread = survey.with_options(task_runner=runner)
    ended = spread("file:set", base=str(folder.parent), parts=3, return_state=True)
    expected = manifest.scan(folder)
    said = ended.result()
    assert (said["sha256"], said["manifest"]) == (expected.root, expected.digest)
    assert said["files"] == 10
    assert ended.message is not None and f"sha256: {expected.root}" in ended.message
    run = ended.state_details.flow_run_id
    assert run is not None
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as api:
        (shown,) = api.read_artifacts(artifact_filter=wanted)
    assert shown.key == "aicert-data-survey"
    assert "Nothing vouches for this" in str(shown.data)


def test_one_file_has_the_digest_that_a_spec_expects_of_a_file(
    prefect_server: str, folder: Path
) -> None:
    ended = survey("file:set/2/8.bin", base=str(folder.parent), parts=2, return_state=True)
    assert ended.result()["sha256"] == manifest.hash_file(folder / "2" / "8.bin")[1]


def test_an_input_that_is_not_there_ends_the_survey_with_what_to_do(
    prefect_server: str, tmp_path: Path
) -> None:
    ended = survey("file:nowhere", base=str(tmp_path), parts=2, return_state=True)
    assert ended.is_failed()
    assert str(ended.message).startswith("survey: ")
