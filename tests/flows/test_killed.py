"""A flow that is killed, cancelled or interrupted leaves nothing behind, and the next one works."""

import signal
import time
from pathlib import Path

import pytest

from blocks import FolderStore, LocalMachine
from flows.certify import certify
from tests.support.pipeline import (
    CERTIFY,
    Process,
    assert_gone,
    await_true,
    descendants,
    driven,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

# Enough weights for the publishing to be seen under way.
SCRIPT = f"echo epoch 1; sleep 1; {CERTIFY}; dd if=/dev/urandom of=/outputs/big bs=1M count=48"

MOMENTS = {
    "provision": {"step": "provision", "state": "running"},
    "job": {"step": "job", "state": "running"},
    "fetch": {"step": "fetch", "state": "running"},
    "image": {"step": "image", "state": "running"},
    "train": {"step": "train", "state": "running"},
    "training": {"step": "train", "type": "log", "line": "epoch 1"},
    "outputs": {"step": "outputs", "state": "running"},
    "quote": {"step": "quote", "state": "running"},
    "publish": {"step": "publish", "state": "running"},
    "publishing": {"step": "publish", "type": "progress"},
    "destroy": {"step": "destroy", "state": "running"},
}


def parameters() -> list[object]:
    """Spread the moments over two groups, each with a Prefect server of its own."""
    return [
        pytest.param(moment, marks=pytest.mark.xdist_group(f"kill-{index % 2}"), id=moment)
        for index, moment in enumerate(MOMENTS)
    ]


def assert_had(family: list[Process], *programs: str) -> None:
    """See to it that a test kills what it means to kill."""
    for program in programs:
        assert any(program in process.command for process in family), (program, family)


@pytest.mark.parametrize("moment", parameters())
def test_a_killed_flow_leaves_nothing_and_the_next_one_works(
    moment: str, prefect_server: str, image: str, state: Path, tmp_path: Path
) -> None:
    spec, store = write_spec(tmp_path, SCRIPT, image=image), tmp_path / "store"
    with driven(spec, state, store, prefect_server, MOMENTS[moment]) as run:
        run.await_event(**MOMENTS[moment])
        family = run.kill()
    if moment != "provision":
        assert_had(family, "aicert.agent", "swtpm", *(["sleep"] if moment == "training" else []))
    assert_gone(family)
    # What was being started at that very moment.
    await_true(lambda: not mentioning(state), 120, "processes of the machine end")

    before = published(store)
    # Only the last step comes after the certificate: until then there is none.
    assert len(before) == (1 if moment == "destroy" else 0)

    ended = certify(
        spec_file=str(spec),
        machine=LocalMachine(state=state),
        store=FolderStore(folder=store),
        return_state=True,
    )
    assert ended.is_completed(), ended
    assert published(store) == tuple(sorted({*before, ended.result()["digest"]}))
    assert machines(state) == []  # the dead one's folder, too, was swept


@pytest.mark.xdist_group("kill-0")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_flow_ends_its_machine_within_ten_seconds(
    number: int, prefect_server: str, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "echo epoch 1; sleep 500", image=image)
    took: list[float] = []
    # A machine may be busy with other things at one time, but not at each.
    while not took or (min(took) >= 10 and len(took) < 3):
        with driven(spec, state, tmp_path / "store", prefect_server) as run:
            run.await_event(**MOMENTS["training"])
            family = descendants(run.process.pid)
            assert_had(family, "aicert.agent", "swtpm", "sleep")
            start = time.monotonic()
            run.process.send_signal(number)
            assert run.process.wait(240) != 0
            assert_gone(family)
            took.append(time.monotonic() - start)
        assert machines(state) == []
        assert published(tmp_path / "store") == ()
    assert min(took) < 10
