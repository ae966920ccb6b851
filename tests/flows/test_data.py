"""Data statements, whole: a certified training, and proofs about its records."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from aicert.certificate import Certificate
from aicert.cli import main
from aicert.log import parse_run
from blocks import FolderStore, LocalMachine
from flows.certify import certify
from tests.support.pipeline import write_spec

pytestmark = pytest.mark.xdist_group("data")


@dataclass
class Certified:
    certificate: Path
    root: Path
    data: Path
    fetched: str


@pytest.fixture(scope="module")
def certified(
    prefect_server: str, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Certified]:
    """Certify a tiny training whose data commits to its lines."""
    state = Path(tempfile.mkdtemp(prefix="aicert-"))
    folder = tmp_path_factory.mktemp("data")
    spec = write_spec(folder, image=image, input={"records": "lines"})
    (folder / "data" / "more").mkdir()
    (folder / "data" / "more" / "b.txt").write_text("good bye\nhello\n\n")
    ended = certify(
        spec_file=str(spec),
        machine=LocalMachine(state=state),
        store=FolderStore(folder=folder / "store"),
        return_state=True,
    )
    result = ended.result()
    run = ended.state_details.flow_run_id
    assert run is not None
    with get_client(sync_client=True) as api:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        artifacts = {str(a.key): a for a in api.read_artifacts(artifact_filter=wanted)}
    place = folder / "store" / "certificates" / result["digest"] / "certificate.json"
    yield Certified(
        place,
        state / "ca" / "authority" / "root.pem",
        folder / "data",
        str(next(a.data for key, a in artifacts.items() if "fetch" in key)),
    )
    shutil.rmtree(state, ignore_errors=True)


def data(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def test_the_records_are_measured_with_the_input(certified: Certified) -> None:
    run = parse_run(Certificate.parse(certified.certificate.read_bytes()).records)
    assert run.job.spec.inputs[0].records == "lines"
    committed = run.inputs[0].records
    assert committed is not None
    assert (committed.method, committed.count, committed.distinct) == ("lines/1", 3, 2)
    assert f"| root of the records | `{committed.root}` |" in certified.fetched
    assert "| 3 records | 2 of them distinct, method lines/1 |" in certified.fetched


@pytest.mark.parametrize(("record", "outcome"), [
    ("hello", "is in the input data, at least once"),
    ("good bye\n", "is in the input data, at least once"),
    ("good", "is not in the input data"),
])  # fmt: skip
def test_a_record_is_shown_to_be_in_the_training_data_or_not(
    certified: Certified, tmp_path: Path, record: str, outcome: str
) -> None:
    wanted, proof = tmp_path / "record", tmp_path / "proof.json"
    wanted.write_text(record)
    done = data("prove", certified.certificate, certified.data, wanted, "--out", proof)
    assert done.exit_code == 0, done.output
    done = data("check", proof, certified.certificate, wanted, "--allow-simulated",
                "--root", certified.root)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert outcome in done.stdout.splitlines()[0]
    assert done.stdout.startswith("PROVED")
