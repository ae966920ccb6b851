"""A virtual machine that boots the measured image: QEMU, OVMF, and a TPM in software.

    python -m aicert.agent.qemu --folder FOLDER --image IMAGE …

runs one, in the foreground, as PID 1 of a PID namespace: when it ends, however it ends, the kernel
ends QEMU and the TPM with it. It writes the port of this host behind which the agent listens to
`FOLDER/port`. Nothing of the machine can be reached but that port, and nothing of this host by the
machine. All that it writes it writes to memory; secrets never touch a disk.

QEMU and the TPM belong to whoever runs this host. What such a machine certifies is worth as much as
that person: it shows that a boot was measured, and how, without hardware that makes it binding.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from aicert.agent.keeper import die_without
from aicert.errors import Error
from aicert.reader import Reader

Accelerator = Literal["kvm", "tcg"]

PROGRAM = "qemu-system-x86_64"
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
SECURE_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
NO_SECURE_BOOT = bytes.fromhex("b5710bf57d25623e4019027da116821fa99f5c81e9e38b87671cc574f9281439")
"""PCR 7 of firmware that has no secure boot, as one of Debian 13: its variable is not there."""
OWN_VARIABLES = "variables.fd"
"""In an image's folder: variables with the keys of secure boot, which is on for this image."""

CPU = "Nehalem"
"""Fixed: the firmware measures it, and in emulation newer ones calculate wrongly (QEMU 7.2)."""

EMULATION = "tcg,thread=single"
"""One thread for all processors. With a thread for each, a kernel that patches its own code while
another processor runs it dies of that now and then (QEMU 7.2), at boot or during a training."""

AGENT_PORT = 8443
PORT_FILE = "port"
CONSOLE = "console.log"
TERMINAL = "terminal"

PROBE_SECONDS = 30.0
_DISK, _ABOUT = "disk.raw", "image.json"


class QemuError(Error):
    """A virtual machine cannot be run."""

    code = "qemu.failed"


class MissingError(QemuError):
    """QEMU or its firmware is not installed."""

    code = "qemu.missing"


class ImageError(QemuError):
    """There is no image in this folder."""

    code = "qemu.image"


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its disk, and what it says of itself. `make image` makes one."""

    folder: Path
    name: str
    version: str
    pcrs: Mapping[int, bytes]

    @classmethod
    def load(cls, folder: Path) -> "Image":
        """Read an image's folder.

        Raises:
            ImageError: there is none.
        """
        try:
            about = json.loads((folder / _ABOUT).read_bytes())
            (folder / _DISK).stat()
        except (OSError, ValueError) as error:
            raise ImageError(
                "there is no OS image in this folder",
                got=f"{folder}: {error}",
                advice="build it: `make image`",
            ) from error
        reader = Reader(about, _ABOUT, ImageError)
        pcrs = reader.child("pcrs")
        return cls(
            folder,
            reader.text("name"),
            reader.text("version"),
            {pcr: pcrs.octets(str(pcr), 32) for pcr in range(16) if pcrs.has(str(pcr))},
        )

    def foretold(self, pcr: int) -> tuple[bytes, ...]:
        """Return what a PCR of `pcrs` may be when the image has booted.

        That is one value but for PCR 7, without secure boot: some firmware says that it is off, and
        some knows nothing of it.
        """
        others = () if self.secure_boot or pcr != 7 else (NO_SECURE_BOOT,)
        return (self.pcrs[pcr], *others)

    @property
    def disk(self) -> Path:
        """The disk to boot from."""
        return self.folder / _DISK

    @property
    def variables(self) -> Path:
        """The firmware's variables: the image's own where it was signed for secure boot."""
        own = self.folder / OWN_VARIABLES
        return own if own.exists() else VARIABLES

    @property
    def secure_boot(self) -> bool:
        """Tell whether it was signed, and boots where nothing else does."""
        return self.variables != VARIABLES

    @property
    def firmware(self) -> Path:
        """The firmware to boot with; for secure boot one that guards its variables."""
        return SECURE_FIRMWARE if self.secure_boot else FIRMWARE


def default_image() -> Path:
    """Return the folder of the image that `make image` built last."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aicert" / "os" / "image"


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a machine its firmware measures besides the image: memory in MiB, processors."""

    memory: int = 4096
    cpus: int = 2

    def name(self, firmware: Path = FIRMWARE) -> str:
        """Return what reference values call it, with a firmware of this host."""
        digest = hashlib.sha256(firmware.read_bytes()).hexdigest()
        return (
            f"QEMU q35, {CPU}, {self.cpus} CPUs, {self.memory} MiB, "
            f"{firmware.stem} sha256:{digest[:16]}"
        )


def base_command(
    accelerator: Accelerator, shape: Shape, firmware: Path, variables: Path
) -> list[str]:
    """Return the command of a bare machine; `variables` is written to."""
    # The firmware that checks signatures keeps its variables from the system, by SMM.
    secure = firmware == SECURE_FIRMWARE
    guard = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if secure else []
    # The image keeps the time by an HPET where there is one; the clock of KVM costs far less.
    hpet = "on" if accelerator == "tcg" else "off"
    return [
        PROGRAM,
        "-accel", EMULATION if accelerator == "tcg" else "kvm",
        # The guest's memory, where the secrets are, is left out of a core dump of QEMU's.
        "-machine", f"q35,smm={'on' if secure else 'off'},hpet={hpet},dump-guest-core=off", *guard,
        "-cpu", CPU, "-smp", str(shape.cpus), "-m", str(shape.memory),
        "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_quoted(firmware)}",
        "-drive", f"if=pflash,format=raw,unit=1,file={_quoted(variables)}",
        "-qmp", "stdio",
    ]  # fmt: skip


def _quoted(path: Path) -> str:
    """Return a path as QEMU's options want it."""
    return str(path).replace(",", ",,")


class Machine:
    """A virtual machine, from `start` until `stop`, or until its system powers off.

    The TPM is that of the folder `tpm`. QEMU's own control channel is a pipe that nobody else has.
    """

    def __init__(
        self,
        folder: Path,
        disk: Path,
        *,
        accelerator: Accelerator,
        shape: Shape,
        internet: bool = False,
        firmware: Path = FIRMWARE,
        variables: Path = VARIABLES,
        terminal: bool = False,
        more: tuple[str, ...] = (),
    ) -> None:
        """Take what it is made of; `more` are further arguments of QEMU, for tests.

        With a `terminal` the console can be typed at, through the socket `TERMINAL` in the folder.
        """
        self.folder = folder
        self.tpm: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        shutil.copy(variables, folder / "variables.fd")
        # The host's own services are at 192.0.2.2, a network that is nobody's (RFC 5737), and the
        # image's firewall shuts it off but for names: its inputs' URIs are the builder's.
        network = "user,id=net,net=192.0.2.0/24,restrict=" + ("off" if internet else "on")
        log = _quoted(folder / CONSOLE)
        console = f"file,path={log}"
        if terminal:
            console = f"socket,path={_quoted(folder / TERMINAL)},server=on,wait=off,logfile={log}"
        self._command = [
            *base_command(accelerator, shape, firmware, folder / "variables.fd"),
            "-chardev", f"{console},id=console", "-serial", "chardev:console",
            "-netdev", f"{network},hostfwd=tcp:127.0.0.1:0-:{AGENT_PORT}",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
            "-drive", f"if=none,id=disk,format=raw,readonly=on,file={_quoted(disk)}",
            "-device", "virtio-blk-pci,drive=disk,bootindex=0",
            *more,
        ]  # fmt: skip

    def start(self, tpm: Path) -> int:
        """Start the TPM and the machine; return the port of this host that leads to its agent.

        Raises:
            MissingError: a program is not installed.
            QemuError: it did not start.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs, (self.folder / "swtpm.log").open("wb") as log:
            command = [
                "swtpm", "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600",
                "--ctrl", f"type=unixio,clientfd={theirs.fileno()}", "--terminate",
            ]  # fmt: skip
            self.tpm = _popen(command, log, cwd=tpm, pass_fds=(theirs.fileno(),))
            device = [
                "-chardev", f"socket,id=tpm,fd={ours.fileno()}",
                "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
            ]  # fmt: skip
            with (self.folder / "qemu.log").open("wb") as errors:
                self.process = _popen(
                    [*self._command, *device],
                    errors,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=(ours.fileno(),),
                )
        try:
            return self.forwarded(AGENT_PORT)
        except BaseException:
            self.stop()
            raise

    def forwarded(self, port: int) -> int:
        """Return the port of this host that leads to one of the machine's."""
        answer = str(self.ask("human-monitor-command", {"command-line": "info usernet"}))
        found = re.search(rf"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{port}\b", answer)
        if found is None:
            raise QemuError("QEMU forwards no port", got=answer)
        return int(found[1])

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Give QEMU a command of its machine protocol and return what it answers."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"execute": command, "arguments": dict(arguments or {})}
        # The first command of all says that we can do nothing special; again it is an error.
        requests = [{"execute": "qmp_capabilities", "id": 0}, {**asked, "id": 1}]
        try:
            self.process.stdin.write(b"".join(json.dumps(r).encode() for r in requests))
            self.process.stdin.flush()
            for line in self.process.stdout:
                answer = json.loads(line)
                if answer.get("id") == 1:
                    return answer.get("return")
        except OSError:
            pass
        text = (self.folder / "qemu.log").read_text("utf-8", "replace").strip()
        raise QemuError("QEMU ended", got=text[-1500:] or f"status {self.process.wait()}")

    def stop(self) -> None:
        """End it, at once; safe to call twice."""
        for process in (self.process, self.tpm):
            if process is None:
                continue
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _popen(command: list[str], log: IO[bytes], **more: Any) -> subprocess.Popen[bytes]:
    more = {"stdin": subprocess.DEVNULL, "stdout": log, **more}
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        return subprocess.Popen(command, stderr=log, env=environment, process_group=0, **more)
    except FileNotFoundError as error:
        raise MissingError(
            f"the program {command[0]} is not installed",
            advice="apt-get install qemu-system-x86 ovmf swtpm, or `make setup`",
        ) from error


@cache
def accelerator() -> Accelerator:
    """Return how this host runs virtual machines: in hardware where that works, else in software.

    Tried, by starting a firmware: there are hosts with a /dev/kvm that fails.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or shutil.which(PROGRAM) is None:
        return "tcg"
    with tempfile.TemporaryDirectory(prefix="aicert-kvm-") as name:
        folder = Path(name)
        shutil.copy(VARIABLES, folder / "variables.fd")
        command = base_command("kvm", Shape(512, 1), FIRMWARE, folder / "variables.fd")
        console, log = folder / CONSOLE, folder / "qemu.log"
        with log.open("wb") as errors:
            process = _popen([*command, "-serial", f"file:{console}"], errors)
        try:
            deadline = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                # It has come as far as to look for something to boot.
                if console.exists() and b"BdsDxe" in console.read_bytes():
                    return "kvm"
                if b"internal error" in log.read_bytes():
                    break
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    return "tcg"


def main(arguments: list[str] | None = None) -> int:
    """Run a machine until its system powers off, it is told to stop, or its keeper is gone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where its files go")
    parser.add_argument("--tpm", type=Path, required=True, help="folder of a TPM in software")
    parser.add_argument("--image", type=Path, required=True, help="folder of the image")
    parser.add_argument("--memory", type=int, default=Shape().memory, help="MiB")
    parser.add_argument("--cpus", type=int, default=Shape().cpus)
    parser.add_argument("--accelerator", choices=("kvm", "tcg"), default="tcg")
    parser.add_argument("--internet", action="store_true", help="let it reach the internet")
    parser.add_argument("--keeper", type=Path, help="file; it ends when nobody locks it")
    parser.add_argument("--outlive", type=float, default=0, help="seconds to wait for a new keeper")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options.keeper is not None:
        die_without(options.keeper, options.outlive)
    try:
        image = Image.load(options.image)
        machine = Machine(
            options.folder,
            image.disk,
            firmware=image.firmware,
            variables=image.variables,
            accelerator=options.accelerator,
            shape=Shape(options.memory, options.cpus),
            internet=options.internet,
        )
        try:
            port = machine.start(options.tpm)
            new = options.folder / f"{PORT_FILE}.new"
            new.write_text(str(port))
            new.rename(options.folder / PORT_FILE)
            assert machine.process is not None
            return machine.process.wait()
        finally:
            machine.stop()
    except Error as error:
        print(error.diagnostics(), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
