"""The flows that keep things in order: retrain, audit, check, reap; each against real runs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Running

from aicert.agent import machine as machines
from aicert.agent.changes import changes, newest
from aicert.agent.spec import load
from aicert.agent.store import Store
from aicert.verify import Verdict
from blocks import FolderStore, LocalMachine, VerificationPolicy
from examples.images import tiny
from flows.audit import audit
from flows.check import check
from flows.reap import reap
from flows.retrain import retrain
from tests.support.pipeline import ROOT, published, write_spec
from tests.support.pipeline import machines as folders

pytestmark = [pytest.mark.xdist_group("care"), pytest.mark.usefixtures("prefect_server")]


@dataclass
class Trained:
    """One certified run, and all that it was made from, in a folder of its own."""

    spec: Path
    image: Path
    machine: LocalMachine
    store: FolderStore
    digest: str

    def verify(self, data: bytes) -> Verdict:
        root = self.machine.config().ca / "authority" / "root.pem"
        demands = VerificationPolicy(roots=root, allow_simulated=True).demands()
        return demands.load().verify(data)

    def last(self) -> Verdict:
        found = newest(Store(str(self.store.folder)), "tiny", self.verify)
        assert found is not None
        return found

    def changes(self) -> list[str]:
        return changes(load(self.spec), self.last().run, base=self.spec.parent)

    def again(self) -> State[Any]:
        return retrain(
            spec_file=str(self.spec), machine=self.machine, store=self.store, return_state=True
        )


@pytest.fixture(scope="module")
def trained_once(prefect_server: str) -> Iterator[Trained]:
    root = Path(tempfile.mkdtemp(prefix="aicert-"))
    tiny.build(root / "image")
    spec = write_spec(root / "job", image=f"oci:{root / 'image'}")
    machine, store = LocalMachine(state=root / "state"), FolderStore(folder=root / "store")
    state = retrain(spec_file=str(spec), machine=machine, store=store, return_state=True)
    result = state.result()
    assert result["changed"] == []
    (digest,) = published(root / "store")
    yield Trained(spec, root / "image", machine, store, digest)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def trained(trained_once: Trained, tmp_path: Path) -> Iterator[Trained]:
    """What a test may damage is put back after it."""
    root = trained_once.spec.parents[1]
    for name in ("job", "image", "store"):
        shutil.copytree(root / name, tmp_path / name)
    yield trained_once
    for name in ("job", "image", "store"):
        shutil.rmtree(root / name)
        shutil.copytree(tmp_path / name, root / name)


# -- what has changed ----------------------------------------------------------------------------


def test_nothing_has_changed_right_after_a_run(trained: Trained) -> None:
    assert trained.last().certificate_digest == trained.digest
    assert trained.changes() == []


def test_other_content_of_an_input_is_a_change(trained: Trained) -> None:
    (trained.spec.parent / "data" / "a.txt").write_text("other\n")
    assert trained.changes() == ["input data: its content"]


def test_another_image_under_the_same_name_is_a_change(trained: Trained) -> None:
    index = json.loads((trained.image / "index.json").read_text())
    blobs = trained.image / "blobs" / "sha256"
    (described,) = index["manifests"]
    old = blobs / described["digest"].removeprefix("sha256:")
    manifest = json.loads(old.read_text())
    manifest["config"]["digest"] = "sha256:" + "ab" * 32
    data = json.dumps(manifest).encode()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    described.update(digest=f"sha256:{name}", size=len(data))
    (trained.image / "index.json").write_text(json.dumps(index))
    (change,) = trained.changes()
    assert change.startswith("the image: ") and change.endswith("is now abababababababab…")


def test_another_spec_is_a_change(trained: Trained) -> None:
    spec = json.loads(trained.spec.read_text())
    trained.spec.write_text(json.dumps({**spec, "seed": 7}))
    assert trained.changes() == ["the spec"]


def test_certificates_of_other_names_and_refused_ones_do_not_count(trained: Trained) -> None:
    store = Store(str(trained.store.folder))
    store.publish(b"{}")
    assert newest(store, "other", trained.verify) is None

    def refuse(data: bytes) -> Verdict:
        return VerificationPolicy().demands().load().verify(data)

    assert newest(store, "tiny", refuse) is None


# -- retrain -------------------------------------------------------------------------------------


def test_a_second_run_says_that_nothing_has_changed_and_does_nothing(trained: Trained) -> None:
    state = trained.again()
    assert (state.name, state.is_completed()) == ("Unchanged", True)
    assert trained.digest in str(state.message)
    assert state.result()["certificate"].endswith(f"{trained.digest}/certificate.json")
    assert published(Path(str(trained.store.folder))) == (trained.digest,)


def test_a_change_is_trained_and_named(trained: Trained) -> None:
    (trained.spec.parent / "data" / "a.txt").write_text("other\n")
    result = trained.again().result()
    assert result["changed"] == ["input data: its content"]
    assert set(published(Path(str(trained.store.folder)))) == {trained.digest, result["digest"]}
    assert trained.again().name == "Unchanged"


def test_an_input_that_cannot_be_found_fails_the_run(trained: Trained) -> None:
    shutil.rmtree(trained.spec.parent / "data")
    state = trained.again()
    assert state.is_failed() and "[spec.invalid]" in str(state.message), state


# -- audit ---------------------------------------------------------------------------------------


def policy_of(trained: Trained) -> VerificationPolicy:
    root = trained.machine.config().ca / "authority" / "root.pem"
    return VerificationPolicy(roots=root, allow_simulated=True)


def test_an_audit_of_a_good_store_completes_and_leaves_a_report(trained: Trained) -> None:
    state = audit(store=trained.store, policy=policy_of(trained), return_state=True)
    assert state.is_completed() and state.message == "all 1 certificate verified", state
    assert state.result() == {"certificates": 1, "failed": {}}
    with get_client(sync_client=True) as client:
        assert state.state_details.flow_run_id is not None
        wanted = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
        (report,) = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))
    assert report.key == "aicert-audit"
    assert trained.digest[:16] in str(report.data) and "tiny" in str(report.data)


def test_an_audit_fails_where_a_weight_was_altered(trained: Trained) -> None:
    path = Path(str(trained.store.folder)) / "certificates" / trained.digest / "weights"
    (path / "model.bin").chmod(0o644)
    (path / "model.bin").write_text("HELLO\n")
    state = audit(store=trained.store, policy=policy_of(trained), return_state=True)
    assert state.is_failed()
    assert str(state.message) == (
        f"1 of 1 certificate did not verify\n  {trained.digest}: files.altered"
    )


def test_an_audit_of_nothing_fails_where_the_store_was_named(tmp_path: Path) -> None:
    state = audit(store=FolderStore(folder=tmp_path / "typo"), return_state=True)
    assert state.is_failed() and "[store.empty]" in str(state.message), state


def test_an_audit_before_the_first_run_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = audit(return_state=True)
    assert (state.name, state.is_completed()) == ("Empty", True), state


# -- check ---------------------------------------------------------------------------------------


def test_blocks_that_work_pass_their_check(trained: Trained) -> None:
    state = check(machine=trained.machine, store=trained.store, return_state=True)
    assert state.is_completed(), state
    assert state.result()["failed"] == []


def test_a_block_that_cannot_work_says_why_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    policy = VerificationPolicy(roots=tmp_path / "none.pem", allow_simulated=True)
    store = FolderStore(folder=tmp_path / "file")
    state = check(store=store, policy=policy, return_state=True)
    assert state.is_failed()
    text = str(state.message)
    assert str(tmp_path / "file") in text and str(tmp_path / "none.pem") in text


HANGING = """
import time
from blocks import FolderStore
from flows.check import check

class Hanging(FolderStore):
    _block_type_slug = "test-hanging-store"

    def open(self):
        time.sleep(300)

state = check.with_options(timeout_seconds=1)(store=Hanging(folder="/"), return_state=True)
print(state.type.value, state.name)
"""


def test_what_hangs_ends_so_that_the_next_one_can_begin(prefect_server: str) -> None:
    day = 24 * 3600
    limits = [flow.timeout_seconds for flow in (check, audit, reap)]
    assert all(limit is not None and 0 < limit < day for limit in limits)
    # In a process of its own, as a worker starts it: here the tests have the alarm.
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        env={**os.environ, "PREFECT_API_URL": prefect_server},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "FAILED TimedOut\n", done.stderr


# -- reap ----------------------------------------------------------------------------------------


@pytest.fixture
def orphan(state: Path) -> Iterator[tuple[LocalMachine, UUID, Any]]:
    """A living machine of a run that runs, whose process is gone."""
    machine = LocalMachine(state=state, outlive=300)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(check, state=Running())
    handle = machines.start(machine.config(), str(run.id), {"flowRun": str(run.id)})
    machines.release(handle)
    yield machine, run.id, handle
    machines.destroy(handle)


def put(run: UUID, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, state, force=True)


def test_the_machine_of_a_run_that_runs_is_left_alone(
    orphan: tuple[LocalMachine, UUID, Any], state: Path
) -> None:
    machine, _, _ = orphan
    assert reap(machine=machine, return_state=True).message == "nothing to put right"
    assert len(folders(state)) == 1


def test_the_machine_of_a_cancelled_run_ends_at_once(
    orphan: tuple[LocalMachine, UUID, Any], state: Path
) -> None:
    machine, run, _ = orphan
    put(run, Cancelled())
    assert reap(machine=machine, return_state=True).message == "1 thing put right"
    assert folders(state) == []


def test_the_machine_of_a_run_that_ended_is_kept_for_a_retry_and_no_longer(
    orphan: tuple[LocalMachine, UUID, Any], state: Path
) -> None:
    machine, run, _ = orphan
    put(run, Completed())
    assert reap(machine=machine, return_state=True).message == "nothing to put right"
    soon = LocalMachine(state=state, outlive=0)
    assert reap(machine=soon, grace_minutes=0, return_state=True).message == "1 thing put right"
    assert folders(state) == []


def test_the_machine_of_a_run_that_this_server_does_not_know_is_not_ours_to_end(
    state: Path,
) -> None:
    machine = LocalMachine(state=state, outlive=300)
    handle = machines.start(machine.config(), "other", {"flowRun": str(UUID(int=5))})
    try:
        assert reap(machine=machine, return_state=True).message == "nothing to put right"
        assert len(folders(state)) == 1
    finally:
        machines.destroy(handle)
