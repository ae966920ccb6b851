"""Virtual machines that boot the measured image, or something made to look like it."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aicert import reference, tpm2
from aicert.agent import qemu, swtpm
from aicert.agent.ca import DevelopmentCa, Enrollment
from aicert.agent.channel import Attestation, Remote, UnreachableError
from aicert.agent.client import AgentClient
from deployments.image import formats

BOOT_SECONDS = 600.0
"""In emulation, on a machine that does other things too; alone a boot takes 20 s."""

MARKS = [
    # One process runs all that boots: they share an image and a boot.
    pytest.mark.xdist_group("qemu"),
    pytest.mark.slow,
    # Building takes two minutes where nothing is cached.
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="building an image needs root"),
]


def root_at(disk: Path) -> int:
    """Return where the root lies on a disk, in bytes: its second partition."""
    with disk.open("rb") as file:
        file.seek(2 * formats.SECTOR + 128 + 32)
        return int.from_bytes(file.read(8), "little") * formats.SECTOR


def problems(signed: bytes, answer: Attestation) -> list[int]:
    """Return the PCRs for which a verifier with these reference values refuses a boot; if none,
    it calls it measured.
    """
    start = {**answer.pcrs, 15: bytes(32)}
    result = reference.check_boot(answer.boot_event_log, start, [reference.parse(signed)])
    if result.measured:
        return []
    assert result.nearest is not None
    return [found.pcr for found in result.nearest.problems]


@dataclass
class Vm:
    """A machine that was started, and what it said so far."""

    folder: Path
    machine: qemu.Machine
    disk: Path
    port: int
    ca: DevelopmentCa
    remote: Remote | None = None

    @property
    def console(self) -> str:
        """What the machine wrote to its console."""
        return (self.folder / qemu.CONSOLE).read_text("utf-8", "replace")

    @property
    def lives(self) -> bool:
        """Tell whether it still runs."""
        assert self.machine.process is not None
        return self.machine.process.poll() is None

    def forward(self, port: int) -> int:
        """Have QEMU forward another port of the machine; return this host's."""
        command = f"hostfwd_add net tcp:127.0.0.1:0-:{port}"
        self.machine.ask("human-monitor-command", {"command-line": command})
        return self.machine.forwarded(port)

    def until(self, text: str) -> bool:
        """Wait for a text on the console, or the machine's end; tell whether it came."""
        deadline = time.monotonic() + BOOT_SECONDS
        while text not in self.console and self.lives and time.monotonic() < deadline:
            time.sleep(0.2)
        return text in self.console

    def find(self) -> Remote:
        """Wait for the agent; fail where the machine ends before."""
        deadline = time.monotonic() + BOOT_SECONDS
        while self.lives and time.monotonic() < deadline:
            with suppress(UnreachableError):
                return Remote.find("127.0.0.1", self.port)
            time.sleep(0.3)
        raise AssertionError(f"the agent does not answer; the console:\n{self.console[-3000:]}")

    def enrol(self, client: AgentClient) -> tpm2.Public:
        """Have the CA certify the machine's attestation key."""
        identity = client.identity()
        enrollment = Enrollment(self.ca, self.ca.ek_roots)
        challenge = enrollment.begin(identity)
        answer = client.activate(challenge.credential_blob, challenge.encrypted_secret)
        client.set_ak_certificate(enrollment.finish(answer))
        return tpm2.parse_public(identity.ak_public)

    def attest(self) -> Attestation:
        """Claim the agent, enrol it, and have it attest; what is returned is authenticated."""
        remote = self.remote = self.find()
        with AgentClient(remote) as client:
            client.claim(remote)
            return client.attest(remote, self.enrol(client))


@dataclass
class Booted:
    """A machine that booted the image, and what it attested to."""

    vm: Vm
    answer: Attestation

    @property
    def start(self) -> dict[int, bytes]:
        """Its PCRs at the start of a run."""
        return {**self.answer.pcrs, 15: bytes(32)}


@contextmanager
def booting(disk: Path, **more: Any) -> Iterator[Vm]:
    """Start a machine with this disk and a new TPM; end it, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="ac-vm-") as name:
        folder = Path(name)
        ca = DevelopmentCa.open_or_create(folder / "ca")
        swtpm.manufacture(folder / "tpm", ca)
        machine = qemu.Machine(
            folder,
            disk,
            accelerator=qemu.accelerator(),
            shape=more.pop("shape", qemu.Shape()),
            **more,
        )
        port = machine.start(folder / "tpm")
        try:
            yield Vm(folder, machine, disk, port, ca)
        finally:
            machine.stop()
