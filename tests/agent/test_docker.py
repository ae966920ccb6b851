"""A machine that trains with Docker, whose daemon outlives whatever happens to the machine."""

import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import machine
from aicert.agent.client import LostAgentError
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.agent.run import Run
from aicert.agent.spec import Spec
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
from examples.images import tiny
from tests.support import docker
from tests.support.pipeline import await_true

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="machines need root: run the tests as root"),
    pytest.mark.xdist_group("docker"),
]


@pytest.fixture(scope="module", autouse=True)
def daemon() -> Iterator[None]:
    with docker.daemon():
        yield


@pytest.fixture
def handle(tmp_path: Path, short_tmp: Path) -> Iterator[MachineHandle]:
    tiny.build(tmp_path / "image")
    config = MachineConfig(state=short_tmp, engine="docker")
    handle = machine.start(config, "run")
    yield handle
    machine.destroy(handle)


def perform(
    handle: MachineHandle,
    folder: Path,
    script: str,
    hear: Callable[[dict[str, Any]], None] = lambda message: None,
) -> bytes:
    """Do every step of a run; return the certificate."""
    spec = {"name": "tiny", "image": "oci:image", "command": ["sh", "-c", script]}
    job = {"spec": Spec.model_validate(spec).to_json(), "base": str(folder)}
    run = str(uuid.uuid4())
    with machine.attach(handle) as client:
        for step in Run.STEPS:
            client.step(run, step, job if step == "job" else {}, hear)
        return client.certificate(run)


def containers() -> list[str]:
    done = subprocess.run(["docker", "ps", "-aq"], capture_output=True, check=True, text=True)
    return done.stdout.split()


def test_a_run_with_docker_ends_with_a_certificate_that_says_so(
    handle: MachineHandle, tmp_path: Path, short_tmp: Path
) -> None:
    data = perform(handle, tmp_path, "echo x > /outputs/x")
    trust = TrustStore.builtin().with_roots(short_tmp / "ca" / "authority" / "root.pem")
    verdict = verify(data, trust=trust, least=Assurance.SIMULATED)
    assert verdict.run.start.engine_name == "docker"
    assert containers() == []


def test_the_container_of_an_agent_that_was_killed_is_cleared_away_with_its_folder(
    handle: MachineHandle, tmp_path: Path, short_tmp: Path
) -> None:
    def kill(message: dict[str, Any]) -> None:
        if message.get("line") == "begun":
            with machine._lock:
                process, _ = machine._keeps[handle.id]
            assert process is not None
            os.killpg(process.pid, signal.SIGKILL)

    with pytest.raises(LostAgentError):
        perform(handle, tmp_path, "echo begun; sleep 600", kill)
    await_true(lambda: not machine._held(handle.directory), 120, "the machine ends")
    assert len(containers()) == 1
    assert machine.sweep(short_tmp) == [handle.id]
    assert containers() == []
