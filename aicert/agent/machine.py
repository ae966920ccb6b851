"""Machines: start an agent, certify its attestation key, end it without a trace.

This runs on the operator's side, outside the agent. It holds the operator's CA, which the agent
never sees: the CA challenges the agent's TPM and then certifies its key. Every machine has a folder
on this host, also one that is elsewhere (`azure_machine`).
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from aicert import tpm2
from aicert.agent import azure, azure_machine, qemu, swtpm
from aicert.agent.azure_machine import CHANNEL, AzureMachine
from aicert.agent.ca import DevelopmentCa, Enrollment
from aicert.agent.channel import Attestation, Remote, UnreachableError
from aicert.agent.client import AgentClient, LostAgentError
from aicert.agent.engine import RUNTIME, clear
from aicert.agent.places import default_state
from aicert.agent.processes import await_end
from aicert.errors import Error
from aicert.reader import Reader

START_SECONDS = 120.0
BOOT_SECONDS = 600.0
"""How long a virtual machine may take until its agent answers; in emulation it takes a minute."""

STOP_SECONDS = 8.0
_TAKE_OVER_SECONDS = 1.0
_ABOUT = "machine.json"
_KEEPER = "keeper"
_KEPT = "kept"
_REMOVED = "removed"
_TAG_PREFIX = "aicert-"
FLOW_RUN_TAG = f"{_TAG_PREFIX}flowRun"
"""The tag, in Azure, of the flow run that a machine was made for."""

MAX_SOCKET_PATH = 107
"""The longest path of a Unix socket, in bytes (unix(7))."""

_PASSED_ENVIRONMENT = (
    "PATH",
    "LANG",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HF_ENDPOINT",
    "XDG_CACHE_HOME",
    "HOME",
    "DOCKER_HOST",
    "AICERT_CONTAINERS_CONF",
)


class MachineError(Error):
    """A machine could not be provisioned."""

    code = "machine.failed"


class RootError(MachineError):
    """The machine needs rights that this user does not have."""

    code = "machine.not-root"


class StatePathError(MachineError):
    """The folder for the machines cannot hold a socket."""

    code = "machine.state-path"


class BootError(MachineError):
    """The machine booted something other than the image."""

    code = "machine.boot"


class StartError(MachineError):
    """The agent did not start."""

    code = "machine.start"


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """How to start a machine: on this host, or from it.

    `local` starts a software TPM of its own; `host` uses the TPM that `tcti` names, whose EK
    certificate must chain to a root in `ek_roots` (PEM); `azure-host` uses that of the Azure VM
    that this host is, whose attestation key Azure certified, with `intermediates` (PEM) besides
    those that are carried. `azure` has a virtual machine made in Azure, as `azure` says. `qemu`
    boots the measured `image` in a virtual machine of this host with a software TPM, `memory` MiB
    and `cpus`, which may reach the `internet` or nothing.

    The machine ends with the process that started it, or `outlive` seconds later: until then
    another process may adopt it. One in Azure is not ended by the kernel: whoever retries the run
    adopts it, and otherwise the reaper ends it, or Azure itself when its time is over. `keep` keeps
    the folder of a machine whose run failed.
    """

    kind: Literal["local", "host", "azure-host", "azure", "qemu"] = "local"
    state: Path = field(default_factory=default_state)
    algorithm: Literal["ecc", "rsa"] = "ecc"
    engine: Literal["podman", "docker"] | None = None
    tcti: str = "device:/dev/tpmrm0"
    ek_roots: Path | None = None
    intermediates: Path | None = None
    metadata: str = azure.METADATA
    azure: AzureMachine | None = None
    image: Path = field(default_factory=qemu.default_image)
    memory: int = qemu.Shape().memory
    cpus: int = qemu.Shape().cpus
    internet: bool = False
    keep: bool = False
    outlive: int = 0

    @property
    def ca(self) -> Path:
        """The folder of the CA that certifies this machine's attestation keys; not in Azure.

        Hardware and software TPMs have one each: a verifier that pins the first as `hardware` must
        not thereby trust the second. So have the software TPMs of virtual machines, which nobody
        but the measured image speaks to.
        """
        return self.state / {"local": "ca", "qemu": "qemu-ca"}.get(self.kind, "host-ca")


@dataclass(frozen=True, slots=True)
class MachineHandle:
    """A running machine, in a form that crosses processes."""

    id: str
    kind: str
    run: str
    pid: int
    directory: Path

    @property
    def socket(self) -> Path:
        """Where the agent listens, if it is on this host."""
        return self.directory / "agent.sock"

    @property
    def remote(self) -> bool:
        """Tell whether the agent sees none of this host's files."""
        return self.kind in ("azure", "qemu")

    @property
    def channel(self) -> Remote:
        """The channel to an agent that is remote."""
        return Remote.load(self.directory / CHANNEL)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "id": self.id,
            "kind": self.kind,
            "run": self.run,
            "pid": self.pid,
            "directory": str(self.directory),
        }

    @classmethod
    def from_json(cls, value: Any) -> "MachineHandle":
        """Read the JSON form."""
        reader = Reader(value, "machine")
        handle = cls(
            id=reader.text("id"),
            kind=reader.text("kind"),
            run=reader.text("run"),
            pid=reader.integer("pid", low=1),
            directory=Path(reader.text("directory")),
        )
        reader.done()
        return handle


# Of the machines that this process keeps: the process, where it started it itself, and the lock
# whose end ends the agent.
_keeps: dict[str, tuple[subprocess.Popen[bytes] | None, int]] = {}
_lock = threading.Lock()


def start(
    config: MachineConfig,
    run: str,
    tags: Mapping[str, str | None] | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> MachineHandle:
    """Start a machine for one run: its agent answers and its attestation key is certified.

    The machine ends when `destroy` is called or, `config.outlive` seconds later, when this process
    ends. `tags` say whose it is, for `adopt` and for whoever finds the folder. A `host` machine
    has the host's TPM to itself: while another one uses it this waits. `on_wait` is told of what
    is waited for.

    Raises:
        MachineError: it could not be started; nothing of it is left.
        AzureVmError: Azure did not make it; its advice says so where something is left.
        ChannelError: something else than the machine's agent answers.
    """
    if config.azure is not None:
        return _start_in_azure(config.state, config.azure, run, dict(tags or {}), on_wait)
    if os.geteuid() != 0:
        raise RootError(
            "the machine needs root: for namespaces of its own, and for the container engine",
            advice="run the worker (or this command) as root, for instance with sudo",
        )
    machine_id = secrets.token_hex(6)
    directory = config.state / "machines" / machine_id
    if len(os.fsencode(directory / "agent.sock")) > MAX_SOCKET_PATH:
        raise StatePathError(
            "the state folder's path is too long for a socket in it",
            got=f"{len(os.fsencode(config.state))} bytes: {config.state}",
            expected=f"at most {MAX_SOCKET_PATH - len('/machines//agent.sock') - 12} bytes",
            advice="choose a state folder with a shorter path",
        )
    with _owning_tpm(config, on_wait) as owned:
        return _start(config, run, dict(tags or {}), machine_id, directory, owned)


def _start(
    config: MachineConfig,
    run: str,
    tags: dict[str, str | None],
    machine_id: str,
    directory: Path,
    owned: list[int],
) -> MachineHandle:
    handle = None
    with _sweeping(config.state):
        directory.mkdir(mode=0o700)
        # Held by this process, then by the agent: a folder whose lock is free belongs to nobody.
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        # Azure certified its VMs' keys already.
        ca = None if config.kind == "azure-host" else DevelopmentCa.open_or_create(config.ca)
        tpm = config.tcti
        if config.kind in ("local", "qemu"):
            assert ca is not None
            swtpm.manufacture(directory / "tpm", ca)
            tpm = f"swtpm-state:{directory / 'tpm'}"
        process = _spawn(config, directory, tpm, [lock, *owned])
        handle = MachineHandle(machine_id, config.kind, run, process.pid, directory)
        remote = None
        if config.kind == "qemu":
            remote = _await_boot(process, directory)
            remote.save(directory / CHANNEL)
        with AgentClient(remote or handle.socket) as client:
            if remote is not None:
                client.claim(remote)
            _await_agent(client, process, directory)
            if ca is not None:
                roots = ca.ek_roots if config.ek_roots is None else config.ek_roots.read_bytes()
                enrollment = Enrollment(ca, roots)
                identity = client.identity()
                challenge = enrollment.begin(identity)
                answer = client.activate(challenge.credential_blob, challenge.encrypted_secret)
                client.set_ak_certificate(enrollment.finish(answer))
                if remote is not None:
                    # Nothing of the run is sent before the TPM has said whose channel this is: the
                    # TPM that the CA has just challenged, by the key that it certified.
                    ak = tpm2.parse_public(identity.ak_public)
                    _check_boot(qemu.Image.load(config.image), client.attest(remote, ak))
        about = {"handle": handle.to_json(), "tags": tags}
        (directory / _ABOUT).write_text(json.dumps(about))
    except BaseException:
        if handle is not None:
            destroy(handle)
        _remove(directory)
        raise
    finally:
        os.close(lock)
    return handle


def _start_in_azure(
    state: Path,
    wanted: AzureMachine,
    run: str,
    tags: dict[str, str | None],
    on_wait: Callable[[str], None],
) -> MachineHandle:
    machine_id = secrets.token_hex(6)
    directory = state / "machines" / machine_id
    handle = MachineHandle(machine_id, "azure", run, os.getpid(), directory)
    with _sweeping(state):
        directory.mkdir(mode=0o700)
        # Held by this process: a folder whose lock is free may be adopted.
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _lock:
            _keeps[machine_id] = (None, lock)
        # First of all: whatever happens from now on, somebody can find the machine.
        (directory / _ABOUT).write_text(json.dumps({"handle": handle.to_json(), "tags": tags}))
        azure_machine.prepare(wanted, directory)
    try:
        azure_machine.provision(directory, run, _azure_tags(tags), on_wait)
    except BaseException:
        with suppress(Error):  # the reaper tries again; the error says so
            destroy(handle)
        raise
    return handle


def _azure_tags(tags: Mapping[str, str | None]) -> dict[str, str]:
    return {f"{_TAG_PREFIX}{name}": value for name, value in tags.items() if value is not None}


def tpm_lock(tcti: str) -> Path:
    """Return the file whose lock says that somebody uses the TPM behind a TCTI."""
    # A device has two names (tpm0, tpmrm0), and a host one TPM.
    place = "device" if tcti.startswith("device:") else tcti
    return RUNTIME / f"tpm-{hashlib.sha256(place.encode()).hexdigest()[:12]}.lock"


@contextmanager
def _owning_tpm(config: MachineConfig, on_wait: Callable[[str], None]) -> Iterator[list[int]]:
    """Lock the host's TPM, where it is used; yield the lock's descriptor, for the agent to hold.

    Two runs that extend the same PCRs would spoil each other's log, and both would be refused.
    """
    if config.kind in ("local", "qemu"):
        yield []
        return
    RUNTIME.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(tpm_lock(config.tcti), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait("waiting: another run has the host's TPM")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield [descriptor]
    finally:
        os.close(descriptor)


def adopt(
    config: MachineConfig, tags: Mapping[str, str], on_wait: Callable[[str], None] = lambda _: None
) -> MachineHandle | None:
    """Take over the living machine that has these tags, where its process has ended; or None.

    The machine then ends with this process. One whose run cannot go on, or that is not what
    `config` asks for any more, is destroyed.
    """
    for machine in living(config.state):
        if any(machine.tags.get(name) != value for name, value in tags.items()):
            continue
        handle = machine.handle
        with _lock:
            mine = handle.id in _keeps
        if not mine:
            keeper = _take_over(handle)
            if keeper is None:
                continue  # somebody else keeps it, or it has just ended
            with _lock:
                _keeps[handle.id] = (None, keeper)
        with suppress(Error):
            if azure_machine.is_prepared(handle.directory):
                if azure_machine.settings(handle.directory) != config.azure:
                    raise MachineError("the machine is not what is asked for any more")
                # Its process may have died before the machine was made, or Azure took it away.
                own = _azure_tags(machine.tags)
                azure_machine.provision(handle.directory, handle.run, own, on_wait)
            with attach(handle) as client:
                health = client.health()
            if not health["spent"] and health["run"] in (None, handle.run):
                return handle
        destroy(handle)
    return None


@dataclass(frozen=True, slots=True)
class Living:
    """A machine that lives: its handle, the tags that it was started with, when it must end.

    One in Azure counts as living until it is destroyed, for who knows?
    """

    handle: MachineHandle
    tags: dict[str, str]
    expires: datetime | None = None


def living(state: Path) -> list[Living]:
    """Return the machines that live in a state folder, whoever started them."""
    found = []
    for about in sorted((state / "machines").glob(f"*/{_ABOUT}")):
        with suppress(OSError, ValueError, KeyError, Error):
            value = json.loads(about.read_text())
            remote = azure_machine.is_prepared(about.parent)
            expires = azure_machine.expires(about.parent) if remote else None
            machine = Living(MachineHandle.from_json(value["handle"]), value["tags"], expires)
            if remote or _held(about.parent):
                found.append(machine)
    return found


def attach(handle: MachineHandle) -> AgentClient:
    """Return a client of the machine's agent."""
    return AgentClient(handle.channel if handle.remote else handle.socket)


def _check_boot(image: qemu.Image, answer: Attestation) -> None:
    """Hold the PCRs against those that the image's builder foretold.

    That leaves 0 and 1, the firmware's own, and 10, which follows from the others.
    """
    # Nothing was handed to the image from outside, and nothing of a run was measured yet.
    expected = {pcr: image.foretold(pcr) for pcr in image.pcrs}
    expected |= dict.fromkeys((8, 12, 13, 14), (bytes(32),))
    for pcr, values in sorted(expected.items()):
        if answer.pcrs[pcr] not in values:
            raise BootError(
                f"the machine did not boot the image as it is: PCR {pcr} is another",
                got=answer.pcrs[pcr],
                expected=" or ".join(value.hex() for value in values),
                advice="build the image again (`make image`); see console.log with `keep`",
            )


def destroy(handle: MachineHandle, *, keep: bool = False) -> None:
    """End a machine and remove its folder (unless `keep`); safe to call twice, from any process.

    The agent gets a moment to stop its container; then the kernel ends the whole namespace. The
    folder is out of the way when this returns; where it held a run, what was in it is still being
    deleted (see `_remove`).

    Raises:
        AzureVmError: Azure has not deleted it; calling again is safe, and the reaper does.
    """
    if azure_machine.is_prepared(handle.directory):
        azure_machine.destroy(handle.directory, handle.run)
    with _lock:
        process, keeper = _keeps.pop(handle.id, (None, None))
    if process is not None and process.poll() is None:
        _end(process)
    if process is None and handle.kind != "azure" and _held(handle.directory):
        # Started by another process: its folder's lock says that it still lives.
        with suppress(ProcessLookupError):
            os.kill(handle.pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while _held(handle.directory) and time.monotonic() < deadline:
            time.sleep(0.05)
    if keeper is not None:
        os.close(keeper)
    if keep and handle.directory.exists():
        (handle.directory / _KEPT).touch()
        _put_away(handle.directory / "run" / "engine", handle.directory)
    else:
        _remove(handle.directory)


def release(handle: MachineHandle) -> None:
    """Keep a machine no longer: it ends by itself, unless it is adopted before."""
    with _lock:
        _, keeper = _keeps.pop(handle.id, (None, None))
    if keeper is not None:
        os.close(keeper)


def sweep(state: Path) -> list[str]:
    """Remove what machines left behind that were killed; return their ids.

    Folders that were kept on purpose stay. What was being deleted when that was cut is deleted too.
    """
    with _sweeping(state) as removed:
        return removed


@contextmanager
def _sweeping(state: Path) -> Iterator[list[str]]:
    """Sweep, and hold other sweepers off: a folder that is being made has no lock yet."""
    machines = state / "machines"
    machines.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(state / "machines.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _delete(state / _REMOVED)
        yield [
            directory.name
            for directory in sorted(machines.iterdir())
            if not _held(directory)
            and not (directory / _KEPT).exists()
            and not azure_machine.is_prepared(directory)
            and _remove(directory)
        ]
    finally:
        os.close(descriptor)


def _spawn(
    config: MachineConfig, directory: Path, tpm: str, locks: list[int]
) -> subprocess.Popen[bytes]:
    """Start the agent as PID 1 of its own PID and mount namespace.

    `--kill-child` ends the agent with `unshare`; the kernel ends the rest of the namespace with
    the agent, container and TPM included. The keeper's lock ends the agent with this process;
    the `locks` are the agent's, and free when it has ended.
    """
    keeper = os.open(directory / _KEEPER, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(keeper, fcntl.LOCK_EX)
    command = [
        "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--",
        sys.executable, "-I", "-m", f"aicert.agent{'.qemu' if config.kind == 'qemu' else ''}",
        "--keeper", str(directory / _KEEPER),
        "--outlive", str(config.outlive),
        *(
            _qemu_arguments(config, directory)
            if config.kind == "qemu"
            else _agent_arguments(config, directory, tpm)
        ),
    ]  # fmt: skip
    environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd="/",
            pass_fds=locks,
            start_new_session=True,
        )
    with _lock:
        _keeps[directory.name] = (process, keeper)
    return process


def _qemu_arguments(config: MachineConfig, directory: Path) -> list[str]:
    return [
        "--folder", str(directory),
        "--tpm", str(directory / "tpm"),
        "--image", str(config.image),
        "--memory", str(config.memory),
        "--cpus", str(config.cpus),
        "--accelerator", qemu.accelerator(),
        *(["--internet"] if config.internet else []),
    ]  # fmt: skip


def _agent_arguments(config: MachineConfig, directory: Path, tpm: str) -> list[str]:
    command = [
        "--state", str(directory / "run"),
        "--socket", str(directory / "agent.sock"),
        "--tpm", tpm,
        "--algorithm", config.algorithm,
    ]  # fmt: skip
    if config.kind == "azure-host":
        command += ["--platform", "azure", "--metadata", config.metadata]
        if config.intermediates is not None:
            command += ["--intermediates", str(config.intermediates)]
    if config.engine is not None:
        command += ["--engine", config.engine]
    return command


def _await_boot(process: subprocess.Popen[bytes], directory: Path) -> Remote:
    """Wait until a virtual machine's agent speaks TLS; return the channel that it shows."""
    deadline = time.monotonic() + BOOT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(UnreachableError, FileNotFoundError):
            return Remote.find("127.0.0.1", int((directory / qemu.PORT_FILE).read_text()))
        time.sleep(0.2)
    said = []
    for name in ("agent.log", qemu.CONSOLE):
        with suppress(OSError):
            said.append((directory / name).read_text("utf-8", "replace").strip()[-1500:])
    ended = process.poll() is not None
    raise StartError(
        "the virtual machine ended before its agent answered"
        if ended
        else f"the virtual machine's agent did not answer within {BOOT_SECONDS:.0f} s",
        got="\n".join(filter(None, said)) or f"exit status {process.poll()}",
        advice="these lines are QEMU's and the console's last; nothing of the run was sent yet, so "
        "it can be started again",
    )


def _await_agent(client: AgentClient, process: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.health()
        except LostAgentError:
            if process.poll() is not None or time.monotonic() > deadline:
                text = (directory / "agent.log").read_text("utf-8", "replace").strip()
                raise StartError(
                    "the agent did not start",
                    got=text[-2000:] or f"exit status {process.poll()}",
                    advice="these lines are the agent's own; `make setup` installs what it needs",
                ) from None
            time.sleep(0.02)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    # To the whole group: `unshare` itself holds SIGTERM off while its child lives.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        await_end(process, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _try_lock(path: Path) -> int | None:
    """Lock a file and return its descriptor; None where somebody holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _take_over(handle: MachineHandle) -> int | None:
    """Become the keeper of a machine that has none; None where it has one."""
    directory = handle.directory
    if handle.kind == "azure":
        return _try_lock(directory / "lock")
    deadline = time.monotonic() + _TAKE_OVER_SECONDS
    while _held(directory):
        with suppress(OSError):
            # The agent itself looks at the lock now and then, for an instant.
            if (keeper := _try_lock(directory / _KEEPER)) is not None:
                return keeper
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return None


def _held(directory: Path) -> bool:
    """Tell whether somebody holds the folder's lock: its machine lives, or is being made."""
    try:
        descriptor = _try_lock(directory / "lock")
    except OSError:
        return False
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _remove(directory: Path) -> bool:
    """Remove a folder, frozen inputs included.

    An unpacked image is ten thousand files, and nobody need wait for the seconds that deleting them
    takes: a folder that holds a run is moved away, and another process deletes it. Where that is
    cut, `_sweeping` starts it again.
    """

    def thaw(function: Any, path: str, error: Any) -> None:
        if isinstance(error[1], FileNotFoundError):
            return  # somebody else removes it too: its owner, or a sweep
        os.chmod(os.path.dirname(path), 0o700)
        with suppress(FileNotFoundError):
            function(path)

    clear(directory / "run" / "engine")
    # Root deletes from a frozen folder without thawing it; who is not root runs no such agent.
    if os.geteuid() == 0 and (directory / "run").exists():
        _put_away(directory, directory)
        return True
    shutil.rmtree(directory, onerror=thaw)
    return not directory.exists()


def _put_away(folder: Path, directory: Path) -> None:
    """Move a machine's folder, or one in it, to where it is deleted; it may be gone already."""
    removed = directory.parents[1] / _REMOVED
    removed.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        folder.rename(removed / f"{directory.name}-{secrets.token_hex(4)}")
    _delete(removed)


def _delete(folder: Path) -> None:
    """Have a process that nobody waits for delete what is in a folder, while nothing else is on."""
    if folder.exists() and (found := [str(item) for item in folder.iterdir()]):
        remove = ["rm", "-rf", "--one-file-system", "--"]  # nothing through a forgotten mount
        subprocess.run(
            ["setsid", "--fork", "nice", "-n", "19", *remove, *found],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
