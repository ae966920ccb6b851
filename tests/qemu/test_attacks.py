"""What somebody with the host may try on a machine that boots the image; each is really done."""

import hashlib
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from aicert import reference
from aicert.agent import qemu, sending
from aicert.agent.channel import Attestation
from aicert.agent.client import AgentClient, AgentError, LostAgentError
from aicert.agent.run import Run
from aicert.agent.spec import Spec
from deployments.image import build, formats
from examples.images import tiny
from tests.support import vm
from tests.support.vm import MARKS, Booted, Vm

pytestmark = MARKS

SHAPE = qemu.Shape(2048, 2)
ESP_AT = 2048 * formats.SECTOR
SECURE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
KEYS = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
DENIED = "Access Denied"


def root_at(disk: Path) -> int:
    """Return where the root lies on a disk, in bytes: its second partition."""
    with disk.open("rb") as file:
        file.seek(2 * formats.SECTOR + 128 + 32)
        return int.from_bytes(file.read(8), "little") * formats.SECTOR


# -- the attacks: each makes a machine ------------------------------------------------------------

Attack = Callable[[qemu.Image, Path], AbstractContextManager[Vm]]


def given_command_line(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Give the kernel another word on its command line, as a hypervisor can."""
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    extra = "type=11,value=io.systemd.stub.kernel-cmdline-extra=init=/bin/sh"
    return vm.booting(disk, shape=SHAPE, more=("-smbios", extra))


def credential(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Put a credential beside the unified kernel image, which its stub adds to the initrd."""
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    (work / "a.cred").write_text("root's password")
    esp = f"{disk}@@{ESP_AT}"
    for command in (
        ["mmd", "-i", esp, "::/loader", "::/loader/credentials"],
        ["mcopy", "-i", esp, str(work / "a.cred"), "::/loader/credentials/a.cred"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return vm.booting(disk, shape=SHAPE)


def other_agent(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Build the image again with another agent: a root of its own, so a second UKI too."""
    root, squashfs = work / "root", work / "root.squashfs"
    at = ["-o", str(root_at(image.disk))]
    subprocess.run(
        ["unsquashfs", "-no-progress", "-d", str(root), *at, str(image.disk)],
        check=True, capture_output=True,
    )  # fmt: skip
    program = root / "usr/lib/python3/dist-packages/aicert/agent/service.py"
    program.write_text(program.read_text() + "\nPING_SECONDS = 4.0  # it could be anything\n")
    shutil.rmtree(program.with_name("__pycache__"))
    subprocess.run(
        ["mksquashfs", str(root), str(squashfs), "-noappend", "-comp", "lz4", "-Xhc",
         "-no-progress"],
        check=True, capture_output=True,
    )  # fmt: skip
    salt = bytes(32)
    tree, digest = formats.verity(squashfs, salt)
    uki = (image.folder / "image.efi").read_bytes()
    old = formats.pe_sections(uki)[".cmdline"]
    blocks = squashfs.stat().st_size // formats.BLOCK
    new = old.partition(b"aicert.root=")[0]
    new += f"aicert.root={digest.hex()},{salt.hex()},{blocks}".encode()
    assert len(new) == len(old)
    build.write_disk(work / "disk.raw", uki.replace(old, new), squashfs, tree)
    shutil.rmtree(root)
    return vm.booting(work / "disk.raw", shape=SHAPE)


def altered_root(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Alter the root on the disk, and leave its hash as it was: the tables at its end."""
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    words = formats.pe_sections((image.folder / "image.efi").read_bytes())[".cmdline"].decode()
    end = int(words.rpartition(",")[2]) * formats.BLOCK
    with disk.open("r+b") as file:
        file.seek(root_at(disk) + end - 64 * 1024)
        file.write(hashlib.sha256(b"evil").digest() * 2048)
    return vm.booting(disk, shape=SHAPE)


ATTACKS: dict[str, Attack] = {
    "command line": given_command_line,
    "credential": credential,
    "agent": other_agent,
    "root": altered_root,
}


@pytest.fixture(scope="module")
def attacked(
    image: qemu.Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Vm, Attestation | None]]]:
    """Start all of them at once; give each one's machine and what it attested to, if it did."""
    with ExitStack() as stack, ThreadPoolExecutor(len(ATTACKS)) as pool:

        def one(name: str) -> tuple[Vm, Attestation | None]:
            work = tmp_path_factory.mktemp(name.replace(" ", "-"))
            machine = stack.enter_context(ATTACKS[name](image, work))
            if name == "root":
                machine.until("never")  # waits for its end
                return machine, None
            return machine, machine.attest()

        started: dict[str, Future[Any]] = {name: pool.submit(one, name) for name in ATTACKS}
        yield lambda name: started[name].result()


Attacked = Callable[[str], tuple[Vm, Attestation | None]]


def differences(booted: Booted, answer: Attestation | None) -> list[int]:
    """Return the PCRs in which a boot differs from that of the image."""
    assert answer is not None
    return [pcr for pcr in range(15) if answer.pcrs[pcr] != booted.answer.pcrs[pcr]]


def refused(signed: bytes, answer: Attestation | None) -> bool:
    """Tell whether a verifier with the image's reference values does not call a boot measured."""
    assert answer is not None
    start = {**answer.pcrs, 15: bytes(32)}
    documents = [reference.parse(signed)]
    return not reference.check_boot(answer.boot_event_log, start, documents).measured


# -- the boot --------------------------------------------------------------------------------------


def test_another_command_line_is_seen_in_pcrs_9_and_12_alone(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    _, answer = attacked("command line")
    assert differences(booted, answer) == [9, 10, 12]  # 10 follows from the others
    assert refused(signed, answer)


def test_a_credential_from_outside_is_seen(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    _, answer = attacked("credential")
    assert 12 in differences(booted, answer)
    assert refused(signed, answer)


def test_another_agent_and_the_second_uki_that_it_needs_are_seen(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    _, answer = attacked("agent")
    assert {4, 9, 11} <= set(differences(booted, answer))
    assert refused(signed, answer)


def test_a_root_that_was_altered_does_not_come_up(attacked: Attacked) -> None:
    machine, _ = attacked("root")
    assert not machine.lives


# -- while it runs ---------------------------------------------------------------------------------


def run_fails(machine: Vm, folder: Path) -> bool:
    """Try to have a machine make a certificate; tell whether that failed."""
    assert machine.remote is not None
    tiny.build(folder / "image")
    run = str(uuid.uuid4())
    fields = {"name": "x", "image": "oci:image", "command": ["sh", "-c", "date > /outputs/x"]}
    spec = Spec.model_validate({**fields, "limits": {"memory": "64MiB"}})
    with AgentClient(machine.remote) as client:
        try:
            sending.send(client, spec, folder)
            for step in Run.STEPS:
                client.step(run, step, {"spec": spec.to_json()} if step == "job" else None)
        except LostAgentError:
            return True
        except AgentError as error:
            return error.code.startswith("tpm")
    return False


def test_a_disk_that_is_swapped_under_the_machine_ends_it(
    attacked: Attacked, tmp_path: Path
) -> None:
    machine, _ = attacked("command line")
    with machine.disk.open("r+b") as disk:
        disk.seek(root_at(machine.disk))
        size = machine.disk.stat().st_size - disk.tell()
        while size > 0:
            size -= disk.write(bytes(min(size, 1 << 22)))
    assert run_fails(machine, tmp_path)
    machine.until("never")
    assert not machine.lives


def test_a_run_does_not_survive_its_tpm(attacked: Attacked, tmp_path: Path) -> None:
    machine, _ = attacked("credential")
    assert machine.machine.tpm is not None
    machine.machine.tpm.kill()
    assert run_fails(machine, tmp_path)


# -- secure boot -----------------------------------------------------------------------------------


def test_an_unsigned_image_does_not_boot_under_secure_boot(image: qemu.Image) -> None:
    with vm.booting(image.disk, shape=SHAPE, firmware=SECURE, variables=KEYS) as machine:
        assert machine.until(DENIED), machine.console
