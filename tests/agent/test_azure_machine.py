"""A run's machine in Azure: made by the stand-in, with a real agent behind its channel."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import azure, azure_machine, azure_vm, channel, machine
from aicert.agent.channel import OtherMachineError
from aicert.agent.client import AgentClient, AgentError
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.errors import Error
from tests.support.arm import Arm, Fault
from tests.support.azure import Cloud, machine_block, made_up_cloud
from tests.support.pipeline import ROOT, await_true

RUN = "6f1c0a52-6a2e-4c39-9a0f-0d6ad8f3b7c1"
TAGS: dict[str, str | None] = {"flowRun": "b3a1", "name": "tiny", "spec": "ab" * 32}
OWN = {name: str(value) for name, value in TAGS.items()}

Made = tuple[Arm, Cloud]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with made_up_cloud(tmp_path_factory.mktemp("azure")) as made:
        yield made


@pytest.fixture
def made(whole: Made) -> Iterator[Made]:
    arm, cloud = whole
    yield whole
    cloud.close()
    assert arm.left() == []
    arm.faults.clear()


@pytest.fixture
def config(made: Made, tmp_path: Path) -> MachineConfig:
    return machine_block(*made, tmp_path / "state").config()


def folders(config: MachineConfig) -> list[str]:
    return sorted(item.name for item in (config.state / "machines").iterdir())


def created(arm: Arm) -> list[str]:
    return [path for verb, path in arm.requests if verb == "PUT" and "virtualMachines" in path]


@pytest.fixture
def started(config: MachineConfig) -> Iterator[MachineHandle]:
    handle = machine.start(config, RUN, TAGS)
    yield handle
    machine.destroy(handle)


def test_a_machine_answers_over_its_channel_and_leaves_nothing(
    made: Made, config: MachineConfig
) -> None:
    arm, _ = made
    said: list[str] = []
    handle = machine.start(config, RUN, TAGS, said.append)
    assert "Standard_NC40ads_H100_v5 in westeurope" in said[0]
    (vm,) = arm.of_type("virtualMachines")
    assert vm["tags"]["aicert-run"] == RUN and vm["tags"]["aicert-flowRun"] == "b3a1"
    assert MachineHandle.from_json(handle.to_json()) == handle
    with machine.attach(handle) as client:
        assert client.health()["enrolled"]
    assert [living.handle for living in machine.living(config.state)] == [handle]
    machine.destroy(handle)
    assert arm.left() == [] and folders(config) == []
    machine.destroy(handle)  # again, as after a retry


def test_what_is_kept_of_a_machine_only_its_owner_reads(
    started: MachineHandle, config: MachineConfig
) -> None:
    assert started.directory.stat().st_mode & 0o777 == 0o700
    for name in ("azure.json", "channel.json"):
        assert (started.directory / name).stat().st_mode & 0o777 == 0o600
    assert azure_machine.settings(started.directory) == config.azure


def test_the_machine_belongs_to_the_one_it_was_made_for_and_to_nobody_who_is_quicker(
    made: Made, started: MachineHandle
) -> None:
    _, cloud = made
    remote = channel.Remote.find("127.0.0.1", cloud.port)
    with AgentClient(remote) as client, pytest.raises(AgentError) as refused:
        client.claim(remote)
    assert refused.value.code == "channel.claimed"


def test_another_machine_at_its_address_is_told_nothing(
    made: Made, config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, cloud = made
    boot = cloud.boot
    # The machine that answers was made with another secret: its owner would know every word.
    other = azure.user_data(bytes(32))
    monkeypatch.setattr(arm, "on_made", lambda vm, data: boot(vm, other))
    with pytest.raises(Error) as caught:
        machine.start(config, RUN, TAGS)
    assert caught.value.code == "channel.claimed"
    # One that takes everybody, and even has a good key of Azure's, does not know the secret.
    monkeypatch.setattr(arm, "on_made", lambda vm, data: boot(vm, None))
    with pytest.raises(OtherMachineError):
        machine.start(config, RUN, TAGS)
    assert arm.left() == [] and folders(config) == []


def test_user_data_that_is_not_ours_stops_the_agent() -> None:
    def get(text: str) -> Any:
        return lambda url, headers: text.encode()

    assert azure.owner_secret(get=get("")) is None
    assert azure.owner_secret(get=get(azure.user_data(b"\7" * 32))) == b"\7" * 32
    for text in ("bm8=", "*", azure.user_data(b"short")):
        with pytest.raises(azure.OwnerError):
            azure.owner_secret(get=get(text))

    def nobody(url: str, headers: dict[str, str]) -> bytes:
        raise OSError("nobody answers")

    with pytest.raises(azure.OwnerError, match="does not say"):
        azure.owner_secret(get=nobody)


def test_an_agent_that_does_not_answer_is_an_error_and_its_machine_is_deleted(
    made: Made, config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, _ = made
    monkeypatch.setattr(arm, "on_made", lambda vm, data: None)
    monkeypatch.setattr(azure_machine, "BOOT_SECONDS", 0.2)
    monkeypatch.setattr(arm, "console", "Linux\naicert: there is no disk with the root\n")
    said: list[str] = []
    with pytest.raises(azure_machine.SilentError) as caught:
        machine.start(config, RUN, TAGS, said.append)
    assert "security group" in (caught.value.advice or "")
    assert said[-1] == "  aicert: there is no disk with the root"
    assert arm.left() == [] and folders(config) == []
    # Without that right the error is the same, and the machine is deleted all the same.
    arm.faults = [Fault("POST", "retrieveBootDiagnosticsData", 403, "AuthorizationFailed", "no")]
    with pytest.raises(azure_machine.SilentError):
        machine.start(config, RUN, TAGS, said.append)
    assert "console is not to be had" in said[-1]
    assert arm.left() == [] and folders(config) == []


def test_what_azure_refuses_leaves_no_folder(made: Made, config: MachineConfig) -> None:
    arm, _ = made
    arm.faults = [Fault("PUT", "virtualMachines", 409, "QuotaExceeded", "0 cores left")]
    with pytest.raises(azure_vm.QuotaError):
        machine.start(config, RUN, TAGS)
    assert folders(config) == []


# -- after a crash ---------------------------------------------------------------------------------


def test_a_retry_goes_on_with_the_machine_that_its_first_attempt_had(
    made: Made, config: MachineConfig, started: MachineHandle
) -> None:
    arm, cloud = made
    before = len(created(arm)), cloud.booted
    assert machine.adopt(config, OWN) == started  # this process keeps it
    machine.release(started)
    assert machine.adopt(config, {**OWN, "flowRun": "another"}) is None
    adopted = machine.adopt(config, OWN)
    assert adopted == started
    with machine.attach(started) as client:
        assert client.health()["run"] is None
    assert (len(created(arm)), cloud.booted) == before


def test_a_machine_that_azure_took_away_is_made_again_under_its_name(
    made: Made, config: MachineConfig, started: MachineHandle
) -> None:
    arm, cloud = made
    (vm,) = arm.of_type("virtualMachines")
    arm._deleted(vm["id"])  # as a spot machine is
    machine.release(started)
    booted = cloud.booted
    assert machine.adopt(config, OWN) == started
    assert cloud.booted == booted + 1
    assert len(arm.of_type("virtualMachines")) == 1


def test_a_machine_that_is_not_what_is_asked_for_any_more_is_destroyed(
    made: Made, config: MachineConfig, started: MachineHandle
) -> None:
    arm, _ = made
    assert config.azure is not None
    other = replace(config.azure, vm=replace(config.azure.vm, size="Standard_D4s_v5"))
    machine.release(started)
    assert machine.adopt(replace(config, azure=other), OWN) is None
    assert arm.left() == [] and folders(config) == []


PROGRAM = """
import sys
from pathlib import Path
import azure.identity
from tests.support.arm import Credential
azure.identity.DefaultAzureCredential = lambda **_: Credential()
from aicert.agent import azure_vm, machine
from aicert.agent.azure_machine import AzureMachine
from aicert.agent.machine import MachineConfig
import json
azure_vm.POLL_SECONDS = 0.01
state, machine_json, run, tags = sys.argv[1:]
wanted = AzureMachine.from_json(json.loads(machine_json))
machine.start(MachineConfig(kind="azure", state=Path(state), azure=wanted), run, json.loads(tags))
"""


def test_a_process_killed_while_azure_made_the_machine_leaves_it_to_the_retry(
    made: Made, config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, _ = made
    monkeypatch.setattr(arm, "looks", 1 << 30)  # it is never ready
    assert config.azure is not None
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", PROGRAM, str(config.state)),
            *(json.dumps(config.azure.to_json()), RUN, json.dumps(TAGS)),
        ],
        cwd=ROOT,
        env=dict(os.environ),
    )
    try:
        await_true(lambda: bool(arm.of_type("schedules")), 60, "Azure was asked for a machine")
        assert machine.adopt(config, OWN) is None  # its process lives
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert machine.sweep(config.state) == []  # somebody may still want it
    (vm,) = arm.of_type("virtualMachines")
    arm._operations.clear()
    arm.looks = 1
    timer = threading.Timer(0.3, lambda: arm._made(vm))
    timer.start()
    handle = machine.adopt(config, OWN)
    timer.join()
    assert handle is not None and handle.run == RUN
    assert len(arm.of_type("virtualMachines")) == 1
    with machine.attach(handle) as client:
        assert client.health()["enrolled"]
    machine.destroy(handle)


def test_a_machine_that_azure_will_not_delete_stays_known(
    made: Made, config: MachineConfig, started: MachineHandle
) -> None:
    arm, _ = made
    arm.faults = [Fault("DELETE", "virtualMachines", 409, "ScopeLocked", "a lock", times=1)]
    with pytest.raises(azure_vm.ForbiddenByPolicyError):
        machine.destroy(started)
    (living,) = machine.living(config.state)
    assert living.handle == started
    assert living.expires is not None
    assert abs(living.expires - datetime.now(UTC) - timedelta(hours=6)) < timedelta(minutes=5)
