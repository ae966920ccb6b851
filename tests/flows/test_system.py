"""As a builder and an operator do it: a server, a worker, a deployment, a run, a cancelled run."""

import os
import time
from pathlib import Path

import pytest

from tests.support.installation import Installation, run_id
from tests.support.pipeline import (
    CERTIFY,
    assert_gone,
    await_true,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("system")]


def test_a_run_of_the_deployment_is_certified(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    done = installation.run(write_spec(tmp_path, image=image), state, tmp_path / "s", "--watch")
    assert "finished successfully" in done.stdout
    (digest,) = published(tmp_path / "s")
    run = run_id(done)
    message = installation.state(run)["message"]
    assert message == f"certified: {tmp_path.as_uri()}/s/certificates/{digest}/certificate.json"
    # The deployment publishes the weights unless it is told not to.
    assert (tmp_path / "s" / "certificates" / digest / "weights" / "model.bin").exists()
    assert machines(state) == []


def test_a_run_that_fails_says_why_and_the_command_fails(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "echo nan >&2; exit 3", image=image)
    done = installation.run(spec, state, tmp_path / "s", "--watch", check=False)
    assert done.returncode != 0
    run = run_id(done)
    state_now = installation.state(run)
    assert state_now["type"] == "FAILED"
    assert state_now["message"].startswith("train: ")
    assert "[training.exit]" in state_now["message"] and "nan" in state_now["message"]


def test_a_parameter_that_does_not_fit_is_refused_at_once(installation: Installation) -> None:
    done = installation.prefect(
        *("deployment", "run", "certify/certify", "--param", "publish_weights=perhaps"),
        check=False,
    )
    assert done.returncode != 0
    assert "perhaps" in done.stdout + done.stderr


def test_a_cancelled_run_ends_container_and_machine_within_ten_seconds(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 100; {CERTIFY}", image=image)
    started = installation.run(spec, state, tmp_path / "s")
    run = run_id(started)
    installation.await_line(run, "begun")
    family = installation.family()
    assert any("swtpm" in member.command for member in family)
    start = time.monotonic()
    installation.prefect("flow-run", "cancel", run)
    await_true(lambda: not mentioning(state), 12, "the machine ends")
    assert time.monotonic() - start < 12  # the command itself takes two of them
    assert_gone(family)
    installation.await_state(run, "CANCELLED")
    assert machines(state) == []
    assert published(tmp_path / "s") == ()


def test_a_killed_run_is_reported_and_swept(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 100; {CERTIFY}", image=image)
    started = installation.run(spec, state, tmp_path / "s")
    run = run_id(started)
    installation.await_line(run, "begun")
    family = installation.family()
    # The process of the flow is the one that started the machine.
    by_pid = {member.pid: member for member in family}
    (unshare,) = [member for member in family if member.command.startswith("unshare")]
    parent = int(Path(f"/proc/{unshare.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(by_pid[parent].pid, 9)
    assert_gone([m for m in family if m.pid == parent or str(state) in m.command])
    installation.await_state(run, "CRASHED")
    # The hook that Prefect calls for a crashed run removes the folder.
    await_true(lambda: machines(state) == [], 30, "the folder is swept")
    assert published(tmp_path / "s") == ()
