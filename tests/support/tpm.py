"""Software TPMs for tests, other tools' view of them, and a wire that a test can tap."""

import hashlib
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tpm2_pytss.internal.templates import ek_template

from aicert.agent.ca import DevelopmentCa
from aicert.agent.machine import tpm_lock
from aicert.agent.swtpm import Swtpm, manufacture
from tests.support.forger import tpm2b

Exchange = Callable[[bytes], bytes]

COMMAND_CODES = {
    "PCR_Extend": 0x182,
    "PCR_Read": 0x17E,
    "Quote": 0x158,
    "SequenceUpdate": 0x15C,
}


class Factory:
    """Makes software TPMs quickly: manufactures one, and copies it (copies share their EK)."""

    def __init__(self, directory: Path) -> None:
        self.ca = DevelopmentCa.open_or_create(directory / "ca")
        self._pristine = directory / "tpm"
        self._count = 0
        manufacture(self._pristine, self.ca)

    def make(self) -> Path:
        """Return the folder of a TPM that nobody has used."""
        self._count += 1
        copy = self._pristine.with_name(f"tpm{self._count}")
        shutil.copytree(self._pristine, copy)
        return copy


@contextmanager
def relay(tpm: Swtpm) -> Iterator[str]:
    """Let other programs use a TPM beside us; yield the TCTI, as tpm2-tools want it.

    Listens as `swtpm socket` would. The control channel agrees to everything and does nothing.
    """
    with TemporaryDirectory(prefix="tpm") as name:  # a socket's path must be short
        path = Path(name) / "s"
        with (
            _listening(path, lambda sock: _serve(sock, tpm.exchange)),
            _listening(Path(f"{path}.ctrl"), _agree),
        ):
            tcti = f"swtpm:path={path}"
            try:
                yield tcti
            finally:  # nobody will ask for this TPM again
                tpm_lock(tcti).unlink(missing_ok=True)


@contextmanager
def _listening(path: Path, handle: Callable[[socket.socket], None]) -> Iterator[None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                handle(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _serve(connection: socket.socket, exchange: Exchange) -> None:
    while header := connection.recv(10, socket.MSG_WAITALL):
        rest = int.from_bytes(header[2:6], "big") - 10
        connection.sendall(exchange(header + connection.recv(rest, socket.MSG_WAITALL)))


def _agree(connection: socket.socket) -> None:
    while connection.recv(64):
        connection.sendall(bytes(4))


def made_up_ek(kind: str) -> tuple[Any, bytes, Any]:
    """An endorsement key outside any TPM: private key, TPMT_PUBLIC, the hash of its names."""
    key: Any
    if kind == "rsa2048":
        key = rsa.generate_private_key(65537, 2048)
        unique = tpm2b(key.public_key().public_numbers().n.to_bytes(256, "big"))
        tail = struct.pack(">HHI", 0x0010, 2048, 0) + unique
    else:
        key = ec.generate_private_key(ec.SECP256R1() if kind == "ecc256" else ec.SECP384R1())
        width, numbers = key.key_size // 8, key.public_key().public_numbers()
        tail = struct.pack(">HHH", 0x0010, 3 if width == 32 else 4, 0x0010)
        tail += tpm2b(numbers.x.to_bytes(width, "big")) + tpm2b(numbers.y.to_bytes(width, "big"))
    high = kind == "ecc384"
    policy = ek_template.lookup("EK-HIGH-ECC384" if high else "EK-ECC256").template.publicArea
    head = struct.pack(
        ">HHI",
        0x0001 if kind == "rsa2048" else 0x0023,
        0x000C if high else 0x000B,
        0x000300F2 if high else 0x000300B2,
    )
    symmetric = struct.pack(">HHH", 0x0006, 256 if high else 128, 0x0043)
    public = head + tpm2b(bytes(policy.authPolicy)) + symmetric + tail
    return key, public, hashlib.sha384 if high else hashlib.sha256


class Tap:
    """Stands between `Tpm` and a TPM. `before` and `after` are called once, at one command."""

    def __init__(self, exchange: Exchange, command: str) -> None:
        self._exchange = exchange
        self._code = COMMAND_CODES[command]
        self.seen = 0
        self.before: Callable[[], None] | None = None
        self.after: Callable[[bytes], bytes] | None = None

    def __call__(self, command: bytes) -> bytes:
        if int.from_bytes(command[6:10], "big") != self._code:
            return self._exchange(command)
        self.seen += 1
        before, self.before = self.before, None
        if before is not None:
            before()
        response = self._exchange(command)
        after, self.after = self.after, None
        return response if after is None else after(response)


def run_tool(*command: str, cwd: Path | None = None) -> str:
    """Run another program, which must succeed; return what it says."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
