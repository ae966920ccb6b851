"""What somebody with the host may try on a machine that boots the image; each is really done."""

import ctypes
import hashlib
import os
import shutil
import socket
import stat
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from aicert import tpm2
from aicert.agent import qemu, sending
from aicert.agent.channel import Attestation
from aicert.agent.client import AgentClient, AgentError, LostAgentError
from aicert.agent.machine import (
    BootError,
    MachineConfig,
    StartError,
    _check_boot,
    living,
    start,
)
from aicert.agent.run import Run
from aicert.agent.spec import Spec
from deployments.image import build, formats, secure_boot
from deployments.image.reference import surprises
from examples.images import tiny
from tests.support import vm
from tests.support.vm import MARKS, Booted, Vm

pytestmark = MARKS

SHAPE = qemu.Shape(2048, 2)
ESP_AT = 2048 * formats.SECTOR
EVIL_ROM = "efi-virtio.rom"  # QEMU finds it, wherever its release keeps it
OVERLAID = "the initrd is another"
DENIED = "Access Denied"


# -- the attacks: each makes a machine ------------------------------------------------------------

Attack = Callable[[qemu.Image, Path], AbstractContextManager[Vm]]


def given_command_line(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Give the kernel another word on its command line, as a hypervisor can."""
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    extra = "type=11,value=io.systemd.stub.kernel-cmdline-extra=init=/bin/sh"
    return vm.booting(disk, shape=SHAPE, more=("-smbios", extra))


def on_esp(disk: Path, files: dict[str, bytes], work: Path) -> None:
    """Put files on a disk's EFI system partition."""
    esp = f"{disk}@@{ESP_AT}"
    for name, content in files.items():
        made = "::"
        for folder in Path(name).parts[:-1]:
            made += f"/{folder}"
            subprocess.run(["mmd", "-D", "s", "-i", esp, made], capture_output=True, check=False)
        (work / "file").write_bytes(content)
        command = ["mcopy", "-i", esp, str(work / "file"), f"::/{name}"]
        subprocess.run(command, check=True, capture_output=True)


def credential(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Put a credential and a system extension where the stub adds them to the initrd."""
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    extension = "EFI/BOOT/BOOTX64.EFI.extra.d/evil.sysext.raw"
    files = {"loader/credentials/a.cred": b"root's password", extension: bytes(4096)}
    on_esp(disk, files, work)
    return vm.booting(disk, shape=SHAPE)


def overlay(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Lay another initrd over the image's, by an addon of the stub; and plug in a card with a ROM.

    The first program of the system is another then, which says so and goes on as before.
    """
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    script = (build.FILES / "initrd.sh").read_text()
    first, second = (
        "/bin/busybox mount -t devtmpfs dev /dev\n",
        f'echo "<1>{OVERLAID}" >/dev/kmsg\n',
    )
    assert first in script
    script = script.replace(first, first + second)
    archive = formats.cpio({"init": formats.Entry(stat.S_IFREG | 0o755, script.encode())})
    addon = formats.pe_add(bare_stub(image), {".initrd": archive})
    on_esp(disk, {"EFI/BOOT/BOOTX64.EFI.extra.d/evil.addon.efi": addon}, work)
    return vm.booting(disk, shape=SHAPE, more=("-device", f"virtio-net-pci,romfile={EVIL_ROM}"))


def bare_stub(image: qemu.Image) -> bytes:
    """Return the stub of a unified kernel image, without what was added to it."""
    uki = bytearray((image.folder / "image.efi").read_bytes())
    at = int.from_bytes(uki[0x3C:0x40], "little")
    added = [b".cmdline", b".initrd\0", b".linux\0\0"]
    table = uki.index(added[0], at)
    start = int.from_bytes(uki[table + 20 : table + 24], "little")
    count = int.from_bytes(uki[at + 6 : at + 8], "little") - len(added)
    uki[at + 6 : at + 8] = count.to_bytes(2, "little")
    uki[table : table + 40 * len(added)] = bytes(40 * len(added))
    return bytes(uki[:start])


def other_agent(image: qemu.Image, work: Path) -> AbstractContextManager[Vm]:
    """Build the image again with another agent: a root of its own, so a second UKI too."""
    root, squashfs = work / "root", work / "root.squashfs"
    at = ["-o", str(vm.root_at(image.disk))]
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


def start_with_altered_root(image: qemu.Image, work: Path) -> StartError:
    """Alter the root on the disk, and leave its hash as it was: the tables at its end.

    Then start it as an operator does, and return the error.
    """
    disk = Path(shutil.copy(image.disk, work / "disk.raw"))
    shutil.copy(image.folder / "image.json", work)
    words = formats.pe_sections((image.folder / "image.efi").read_bytes())[".cmdline"].decode()
    end = int(words.rpartition(",")[2]) * formats.BLOCK
    with disk.open("r+b") as file:
        file.seek(vm.root_at(disk) + end - 64 * 1024)
        file.write(hashlib.sha256(b"evil").digest() * 2048)
    config = MachineConfig(kind="qemu", state=work / "state", image=work, memory=SHAPE.memory)
    with pytest.raises(StartError) as caught:
        start(config, str(uuid.uuid4()))
    assert living(config.state) == []
    assert list((config.state / "machines").iterdir()) == []
    return caught.value


ATTACKS: dict[str, Attack] = {
    "command line": given_command_line,
    "credential": credential,
    "overlay": overlay,
    "agent": other_agent,
}


@pytest.fixture(scope="module")
def attacked(
    image: qemu.Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Vm, Attestation]]]:
    """Start all of them at once; give each one's machine and what it attested to."""
    # Here, and not in the threads: the first folder of all also makes the one that they lie in.
    work = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in ATTACKS}
    with ExitStack() as stack, ThreadPoolExecutor(len(ATTACKS)) as pool:

        def one(name: str) -> tuple[Vm, Attestation]:
            booted = stack.enter_context(ATTACKS[name](image, work[name]))
            return booted, booted.attest()

        started: dict[str, Future[Any]] = {name: pool.submit(one, name) for name in ATTACKS}
        yield lambda name: started[name].result()


Attacked = Callable[[str], tuple[Vm, Attestation]]


def differences(booted: Booted, answer: Attestation) -> list[int]:
    """Return the PCRs in which a boot differs from that of the image."""
    return [pcr for pcr in range(15) if answer.pcrs[pcr] != booted.answer.pcrs[pcr]]


# -- the boot --------------------------------------------------------------------------------------


def test_the_untouched_machine_passes(booted: Booted, signed: bytes) -> None:
    assert vm.problems(signed, booted.answer) == []


def test_another_command_line_is_seen_in_pcrs_9_and_12_alone(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    _, answer = attacked("command line")
    assert differences(booted, answer) == [9, 10, 12]  # 10 follows from the others
    assert vm.problems(signed, answer) == [9, 10, 12]


def test_what_the_host_lays_beside_the_image_is_seen(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    _, answer = attacked("credential")
    # The credential is in 12, the extension in 13, and both in the initrd.
    assert differences(booted, answer) == [9, 10, 12, 13]
    assert vm.problems(signed, answer) == [9, 10, 12, 13]


def test_an_overlay_of_the_initrd_and_the_rom_of_a_card_are_seen(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    machine, answer = attacked("overlay")
    assert OVERLAID in machine.console  # it did run
    assert {2, 9, 12} <= set(differences(booted, answer))
    assert vm.problems(signed, answer) == differences(booted, answer)


def test_another_agent_and_the_second_uki_that_it_needs_are_seen(
    attacked: Attacked, booted: Booted, signed: bytes
) -> None:
    _, answer = attacked("agent")
    assert {4, 9, 11} <= set(differences(booted, answer))
    assert vm.problems(signed, answer) == differences(booted, answer)


def test_a_root_that_was_altered_does_not_come_up_and_its_kernel_says_why(
    image: qemu.Image, short_tmp: Path
) -> None:
    error = start_with_altered_root(image, short_tmp)
    assert "ended before its agent answered" in error.message
    assert "Kernel panic - not syncing: dm-verity device corrupted" in str(error.got)


@pytest.mark.parametrize("name", ["command line", "credential", "overlay", "agent"])
def test_no_run_is_sent_to_a_machine_that_booted_something_else(
    attacked: Attacked, image: qemu.Image, booted: Booted, name: str
) -> None:
    _check_boot(image, booted.answer)
    _, answer = attacked(name)
    with pytest.raises(BootError, match="did not boot the image"):
        _check_boot(image, answer)


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
        disk.seek(vm.root_at(machine.disk))
        size = machine.disk.stat().st_size - disk.tell()
        while size > 0:
            size -= disk.write(bytes(min(size, 1 << 22)))
    assert run_fails(machine, tmp_path)
    machine.until("never")
    assert not machine.lives


def restart_tpm(machine: Vm) -> None:
    """Restart the TPM under the machine, as root on the host can: by QEMU's own sockets to it."""
    qemu_process, tpm = machine.machine.process, machine.machine.tpm
    assert qemu_process is not None and tpm is not None
    with ExitStack() as stack:
        handle = os.pidfd_open(qemu_process.pid)
        stack.callback(os.close, handle)
        taken: dict[str, socket.socket] = {}
        for name in os.listdir(f"/proc/{qemu_process.pid}/fd"):
            number = ctypes.CDLL(None, use_errno=True).syscall(438, handle, int(name), 0)
            if number < 0:  # pidfd_getfd
                continue
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                os.close(number)
                continue
            each = stack.enter_context(socket.socket(fileno=number))
            if each.family == socket.AF_UNIX:
                # Who made the pair: QEMU that of the commands, and we that of the control channel.
                peer = each.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                maker = int.from_bytes(peer[:4], "little")
                taken["data" if maker == qemu_process.pid else "control"] = each
        control, data = taken["control"], taken["data"]
        for each in (control, data):
            each.settimeout(120)
        control.sendall(struct.pack(">II", 2, 0))  # CMD_INIT: power it off and on
        assert control.recv(4) == bytes(4)
        data.sendall(bytes.fromhex("80010000000c000001440000"))  # TPM2_Startup(CLEAR)
        assert data.recv(10) == bytes.fromhex("80010000000a00000000")


def test_a_run_does_not_survive_the_restart_of_its_tpm(attacked: Attacked, tmp_path: Path) -> None:
    machine, _ = attacked("credential")
    assert machine.remote is not None
    restart_tpm(machine)
    with AgentClient(machine.remote) as client, pytest.raises(AgentError) as caught:
        client.attest(machine.remote, tpm2.parse_public(client.identity().ak_public))
    assert caught.value.code.startswith("tpm")
    assert run_fails(machine, tmp_path)


def test_a_run_does_not_survive_the_end_of_its_tpm(attacked: Attacked, tmp_path: Path) -> None:
    machine, _ = attacked("agent")
    assert machine.machine.tpm is not None
    machine.machine.tpm.kill()
    assert run_fails(machine, tmp_path)


# -- secure boot -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(image: qemu.Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[qemu.Image]:
    """The image, signed with keys of one's own."""
    work = tmp_path_factory.mktemp("secure")
    (work / "image").symlink_to(image.folder)
    yield qemu.Image.load(secure_boot.sign(image.folder, work / "keys", work))


def test_a_signed_image_boots_under_secure_boot_as_foretold(
    image: qemu.Image, secure: qemu.Image, signed: bytes
) -> None:
    with vm.booting(
        secure.disk, shape=SHAPE, firmware=secure.firmware, variables=secure.variables
    ) as machine:
        answer = machine.attest()
    _check_boot(secure, answer)
    assert surprises(secure, answer.pcrs, answer.boot_event_log or b"") == []
    # It is the same image behind another door.
    assert {pcr for pcr in image.pcrs if image.pcrs[pcr] != secure.pcrs[pcr]} == {4, 7}
    assert {4, 7} <= set(vm.problems(signed, answer))


def test_an_unsigned_image_does_not_boot_under_secure_boot(
    image: qemu.Image, secure: qemu.Image
) -> None:
    with vm.booting(
        image.disk, shape=SHAPE, firmware=secure.firmware, variables=secure.variables
    ) as machine:
        assert machine.until(DENIED), machine.console
