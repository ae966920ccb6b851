"""A machine that boots the image: what it measures was foretold, and it shows nothing else."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicert import reference, tpm2
from aicert.agent import qemu
from aicert.agent.channel import Remote, ReplayedError
from aicert.agent.client import AgentClient, AgentError
from aicert.agent.spec import Spec
from deployments.image import predict
from deployments.image.reference import surprises
from tests.support.vm import MARKS, Booted, Vm

pytestmark = MARKS


def test_a_boot_is_measured_as_the_files_foretell(image: qemu.Image, booted: Booted) -> None:
    assert booted.answer.boot_event_log is not None
    assert surprises(image, booted.start, booted.answer.boot_event_log) == []
    told = {*image.pcrs, 7, 10, 12, 13}
    assert sorted(set(range(16)) - told) == [0, 1, 8, 14, 15]
    assert not any(booted.start[pcr] != bytes(32) for pcr in (8, 14, 15))


def test_a_surprise_is_named(image: qemu.Image, booted: Booted) -> None:
    log = booted.answer.boot_event_log
    assert log is not None
    found = surprises(image, {**booted.start, 12: bytes([1] * 32)}, log)
    assert [line.partition(" is ")[0] for line in found] == ["PCR 12"]
    off = {predict.secure_boot(), predict.secure_boot(predict.NO_SECURE_BOOT)}
    assert booted.start[7] in off and off == set(image.foretold(7))


def test_the_boot_matches_the_reference_values(signed: bytes, booted: Booted) -> None:
    result = reference.check_boot(
        booted.answer.boot_event_log, booted.start, [reference.parse(signed)]
    )
    assert result.measured and result.log_replayed
    assert {line.kind for line in result.pcrs} == {"value", "zero", "run"}


def test_the_console_tells_nothing(booted: Booted) -> None:
    lines = [line for line in booted.vm.console.splitlines() if "BdsDxe" not in line]
    assert not any(line.strip("\x1b[]0123456789;HJhl= ") for line in lines)


def test_an_old_answer_and_another_channel_are_refused(booted: Booted) -> None:
    remote = Remote.find("127.0.0.1", booted.vm.port)
    with AgentClient(remote) as stranger, pytest.raises(AgentError) as caught:
        stranger.identity()
    assert caught.value.code == "channel.token"
    assert booted.vm.remote is not None
    with AgentClient(booted.vm.remote) as client:
        ak = tpm2.parse_public(client.identity().ak_public)
    with pytest.raises(ReplayedError):
        booted.answer.check(ak, bytes(32), remote.spki)


def written(machine: Vm) -> Iterator[Path]:
    """Yield the files that the machine's programs write, or have open, but the image's disk."""
    yield from (path for path in machine.folder.rglob("*") if path.is_file())
    for process in (machine.machine.process, machine.machine.tpm):
        assert process is not None
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            if link.is_file() and not os.path.samefile(link, machine.disk):
                yield link


def test_secrets_touch_no_disk(booted: Booted, image: qemu.Image) -> None:
    machine = booted.vm
    # All that the machine has to write to are the firmware's variables.
    blocks = machine.machine.ask("query-block")
    writable = [b["inserted"]["file"] for b in blocks if not b["inserted"]["ro"]]
    assert writable == [str(machine.folder / "variables.fd")]
    assert len(blocks) == 3
    secret = os.urandom(16).hex()
    uri = "http://192.0.2.7/data"
    fields = {"name": "x", "image": "oci:image", "command": ["true"]}
    spec = Spec.model_validate({**fields, "inputs": [{"name": "data", "uri": uri}]})
    run = str(uuid.uuid4())
    assert machine.remote is not None
    with AgentClient(machine.remote) as client:
        client.step(run, "job", {"spec": spec.to_json()})
        given = {"data": {"headers": {"Authorization": f"Bearer {secret}"}}}
        with pytest.raises(AgentError) as caught:
            client.step(run, "fetch", {"secrets": given})
    assert caught.value.code == "fetch.credentials"  # it would not send them in the clear
    files = list(written(machine))
    assert {qemu.CONSOLE, "variables.fd"} <= {path.name for path in files}
    assert not [path for path in files if secret.encode() in path.read_bytes()]
