"""A TPM in software (swtpm): to try things out, and to test. Its operator can make it say anything.

The program gets one end of a socket pair and ends when the other end closes, so it cannot outlive
the process that started it, however that ends. There is no path for others to connect to, and no
control channel, which could reset PCRs in place: the only way to zero them is a new boot.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from aicert.agent.ca import DevelopmentCa
from aicert.agent.processes import await_end
from aicert.errors import Error

ANSWER_SECONDS = 120.0
"""How long a command may take; making an RSA key takes longest."""

MANUFACTURE_SECONDS = 120.0
LOG = "swtpm.log"

_STATE = "tpm2-00.permall"
_STOP_SECONDS = 5.0
_MAX_RESPONSE = 4096  # TPM 2.0 Library, Part 2, MAX_RESPONSE_SIZE of swtpm
# TPM 2.0 Library, Part 3: TPM2_ReadClock (29.1) and TPM2_Shutdown(TPM_SU_CLEAR) (9.4).
_READ_CLOCK = bytes.fromhex("8001 0000000a 00000181")
_SHUTDOWN = bytes.fromhex("8001 0000000c 00000145 0000")


class SwtpmError(Error):
    """The TPM in software cannot be made or used."""

    code = "swtpm.failed"


class MissingError(SwtpmError):
    """A program of swtpm is not installed."""

    code = "swtpm.missing"


class StateError(SwtpmError):
    """The folder holds no TPM, or one already."""

    code = "swtpm.state"


class StartError(SwtpmError):
    """The program did not start."""

    code = "swtpm.start"


class LostError(SwtpmError):
    """The program ended, or does not answer."""

    code = "swtpm.lost"


class ManufactureError(SwtpmError):
    """A new TPM could not be set up."""

    code = "swtpm.manufacture"


class Swtpm:
    """A TPM in software that runs while this object is entered.

    What it holds stays in its folder: the same TPM starts again from there. `tcti` is what `Tpm`
    wants to reach it; it stays the same over a `power_cycle`. All methods may be called from any
    thread.
    """

    def __init__(self, state: Path) -> None:
        """Take the folder of a TPM that was manufactured."""
        self._state = state
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Swtpm":
        """Start it, and return it."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop it."""
        self.stop()

    @property
    def tcti(self) -> Callable[[bytes], bytes]:
        """How `Tpm` reaches it."""
        return self.exchange

    @property
    def pid(self) -> int:
        """The process that is the TPM.

        Raises:
            LostError: it is not running.
        """
        if self._process is None:
            raise LostError("the TPM in software is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the program, which is a boot of the TPM: TPM2_Startup(CLEAR).

        Raises:
            MissingError: it is not installed.
            StateError: the folder holds no TPM.
            StartError: it did not start.
        """
        with self._lock:
            if self._process is not None:
                return
            if not (self._state / _STATE).is_file():
                raise StateError("there is no TPM in this folder", got=self._state)
            program = _find("swtpm")
            ours, theirs = socket.socketpair()
            ours.settimeout(ANSWER_SECONDS)
            command = [
                program, "socket", "--tpm2",
                "--fd", str(theirs.fileno()),
                "--terminate",
                "--flags", "not-need-init,startup-clear",
                # The folder is the working directory: no character of its name is special.
                "--tpmstate", "dir=.,mode=0600",
            ]  # fmt: skip
            try:
                with theirs, (self._state / LOG).open("wb") as log:
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd=self._state,
                        env=_environment(),
                        pass_fds=(theirs.fileno(),),
                        process_group=0,  # a Ctrl-C is for its owner, who stops it in order
                    )
            except BaseException:
                ours.close()
                raise
            self._socket = ours
            try:
                self.exchange(_READ_CLOCK)
            except LostError as error:
                self.stop()
                raise StartError(
                    "swtpm did not start", got=error.got, advice=error.advice
                ) from None

    def stop(self) -> None:
        """Shut the TPM down in order and end the program; safe to call twice."""
        with self._lock:
            if self._process is None or self._socket is None:
                return
            if self._process.poll() is None:
                with suppress(LostError):
                    self.exchange(_SHUTDOWN)
            self._socket.close()
            try:
                await_end(self._process, _STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = self._socket = None

    def power_cycle(self) -> None:
        """Boot the TPM anew: PCRs are zero, loaded keys are gone, resetCount is one higher."""
        with self._lock:
            self.stop()
            self.start()

    def exchange(self, command: bytes) -> bytes:
        """Give the TPM one command and return its response, header included.

        Raises:
            LostError: it is not running, or does not answer.
        """
        with self._lock:
            if self._socket is None:
                raise LostError("the TPM in software is not running", advice="start it first")
            try:
                self._socket.sendall(command)
                header = self._receive(10)
                size = int.from_bytes(header[2:6], "big")
                if not 10 <= size <= _MAX_RESPONSE:
                    raise OSError(f"a response of {size} bytes")
                return header + self._receive(size - 10)
            except OSError as error:
                # Nothing that comes later could be told from the response to this command.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                raise LostError(
                    "the TPM in software does not answer",
                    got=_tail(self._state / LOG) or error,
                    advice=f"see {self._state / LOG}; another process may be using the same TPM",
                ) from error

    def _receive(self, count: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise OSError("it closed the connection")
            data += chunk
        return data


def manufacture(state: Path, ca: DevelopmentCa) -> None:
    """Make a new TPM in a folder: seeds, EKs, and EK certificates that the CA issues.

    It gets an RSA-2048 and an ECC P-384 EK, each with its certificate in NV memory, and the
    SHA-256 bank of PCRs alone. The folder is made if it is not there; nobody else can enter it.

    Raises:
        MissingError: swtpm's tools are not installed.
        StateError: the folder holds a TPM already.
        ManufactureError: they failed.
    """
    program, issuer = _find("swtpm_setup"), _find("swtpm_localca")
    _find("swtpm_cert")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (state / _STATE).exists():
        raise StateError("there is a TPM in this folder already", got=state)
    with TemporaryDirectory(prefix="aicert-swtpm-") as name:
        work = Path(name)
        # Links with plain names: the tools' files have no way to quote a path.
        (work / "state").symlink_to(state.absolute())
        (work / "key.pem").symlink_to(ca.ek_key_file.absolute())
        (work / "issuer.pem").symlink_to(ca.ek_certificate_file.absolute())
        _write(
            work / "setup.conf",
            f"create_certs_tool = {issuer}",
            f"create_certs_tool_config = {work}/localca.conf",
            f"create_certs_tool_options = {work}/localca.options",
        )
        _write(
            work / "localca.conf",
            f"statedir = {work}",
            f"signingkey = {work}/key.pem",
            f"issuercert = {work}/issuer.pem",
            f"certserial = {work}/serial",
        )
        _write(
            work / "localca.options",
            "--platform-manufacturer aicert",
            "--platform-model simulated",
            "--platform-version 1",
        )
        # The tool counts on from here (and from zero if a newline follows). No two certificates
        # of a CA may have the same number.
        (work / "serial").write_text(str(secrets.randbits(60)), "ascii")
        log = work / "log"
        command = [
            program, "--tpm2",
            "--tpmstate", f"{work}/state",
            "--create-ek-cert", "--create-platform-cert", "--lock-nvram",
            "--pcr-banks", "sha256",
            "--config", f"{work}/setup.conf",
        ]  # fmt: skip
        status = _run(command, work, log)
        if status != 0 or not (state / _STATE).exists():
            (state / _STATE).unlink(missing_ok=True)  # half made
            raise ManufactureError(
                "swtpm_setup failed",
                got=_tail(log) or f"exit status {status}",
                advice="the lines above are swtpm_setup's own",
            )
    for file in state.iterdir():
        file.chmod(0o600)


_REAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
while True:
    ended, status = os.wait()
    if ended == child:
        os._exit(os.waitstatus_to_exitcode(status) & 255)
"""
"""Runs a command and reaps what it leaves (36 is PR_SET_CHILD_SUBREAPER, prctl(2)).

swtpm_setup ends its TPM and waits until nobody sees the process any more: until PID 1 has reaped
it. In a container or a small virtual machine that can take a second, or never happen.
"""


def _run(command: list[str], work: Path, log: Path) -> int | str:
    """Run a command in a process group of its own, and end all of it if it takes too long."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _REAPER, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=work,
            env={**_environment(), "TMPDIR": str(work)},
            process_group=0,
        )
    try:
        return await_end(process, MANUFACTURE_SECONDS)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"no end after {MANUFACTURE_SECONDS:.0f} seconds"
        raise


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        package = "swtpm" if program == "swtpm" else "swtpm-tools"
        raise MissingError(
            f"the program {program} is not installed",
            advice=f"install the package {package} (Debian, Ubuntu: apt install {package})",
        )
    return found


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _write(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _tail(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace").strip()[-2000:]
    except OSError:
        return ""
