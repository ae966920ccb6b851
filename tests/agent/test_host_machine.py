"""Machines that use the host's own TPM; here a software TPM stands where its device would be."""

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from aicert.agent import machine
from aicert.agent.machine import MachineConfig, MachineError
from aicert.agent.swtpm import Swtpm
from aicert.errors import Error
from tests.support.tpm import Factory, relay


@pytest.fixture
def config(short_tmp: Path) -> Iterator[MachineConfig]:
    factory = Factory(short_tmp / "factory")
    roots = short_tmp / "roots.pem"
    roots.write_bytes(factory.ca.ek_roots)
    with Swtpm(factory.make()) as tpm, relay(tpm) as tcti:
        yield MachineConfig(kind="host", state=short_tmp / "state", tcti=tcti, ek_roots=roots)


def test_a_second_machine_waits_until_the_first_has_done_with_the_tpm(
    config: MachineConfig,
) -> None:
    first = machine.start(config, "one")
    waits, started = threading.Event(), threading.Event()

    def begin() -> None:
        second = machine.start(config, "two", on_wait=lambda _: waits.set())
        started.set()
        machine.destroy(second)

    thread = threading.Thread(target=begin)
    thread.start()
    try:
        assert waits.wait(120)
        assert not started.wait(1)
        with machine.attach(first) as client:
            assert client.health()["run"] is None
    finally:
        machine.destroy(first)
        thread.join(300)
    assert started.is_set()


def test_a_machine_that_cannot_start_leaves_the_tpm_to_others(config: MachineConfig) -> None:
    strangers = Factory(config.state.parent / "strangers").ca.ek_roots
    wrong = config.state.parent / "wrong.pem"
    wrong.write_bytes(strangers)
    with pytest.raises(Error, match="no trusted root vouches for the TPM"):
        machine.start(replace(config, ek_roots=wrong), "one")
    machine.destroy(machine.start(config, "two"))


def test_the_tpm_is_free_when_an_agent_was_killed(config: MachineConfig) -> None:
    first = machine.start(config, "one")
    subprocess.run(["kill", "-9", str(first.pid)], check=True)
    second = machine.start(config, "two")
    machine.destroy(second)
    machine.destroy(first)


def test_a_tpm_that_is_not_there_is_a_clear_error(config: MachineConfig) -> None:
    with pytest.raises(MachineError) as caught:
        machine.start(replace(config, tcti="device:/dev/no-tpm"), "one")
    assert "/dev/no-tpm" in caught.value.diagnostics()


def test_a_folder_that_its_owner_and_a_sweep_remove_at_once_is_gone_and_nobody_fails(
    tmp_path: Path,
) -> None:
    for turn in range(5):
        folder = tmp_path / str(turn)
        for number in range(300):
            (folder / "run" / str(number)).mkdir(parents=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(machine._remove, [folder] * 4))
        assert not folder.exists()
