"""A machine that boots the image: what it measures was foretold, and it shows nothing else."""

import pytest

from aicert import reference, tpm2
from aicert.agent import qemu
from aicert.agent.channel import Remote, ReplayedError
from aicert.agent.client import AgentClient, AgentError
from deployments.image import predict
from deployments.image.reference import surprises
from tests.support.vm import MARKS, Booted

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
    assert predict.secure_boot() == booted.start[7]


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
