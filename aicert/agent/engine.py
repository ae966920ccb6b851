"""The container engine: a thin wrapper over the command line of Podman or Docker.

The command line, because it serves both: the Python client silently ignores a request for GPUs on
Podman's socket, and Docker's own client cannot speak to that socket at all. Podman runs with a
store, locks and configuration of its own below one folder, which nothing else writes.

A container is created, then made ready, then started: so that what could not even start is told
apart from what failed, and everything about the start can be measured before the first instruction.
"""

import hashlib
import json
import os
import re
import selectors
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from aicert.agent.oci import OciImage
from aicert.errors import Error
from aicert.events import Limits
from aicert.words import count

USER = "65534:65534"
"""The container's user: nobody. Outputs are made to belong to it."""

NETWORK = "none"
MAX_LOG_BYTES = 256 << 20
"""How much of what the training prints is kept, hashed and told; what follows is dropped."""

MAX_LINE = 8192
STOP_SECONDS = 3
_COMMAND_SECONDS = 600

OnLine = Callable[[str, str], None]


RUNTIME = Path("/run/aicert")
"""For sockets and locks; root's, and gone with a reboot."""


def runtime_folder(directory: Path) -> Path:
    """Return where the engine that keeps its state in `directory` keeps sockets and locks.

    A short path of its own: Podman refuses one of over 50 characters.
    """
    return RUNTIME / hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]


class EngineError(Error):
    """The container engine failed."""

    code = "container.engine"


class EngineMissingError(EngineError):
    """No container engine is installed."""

    code = "container.engine-missing"


class VolumesError(EngineError):
    """The image wants places to write to that the training is not to have."""

    code = "container.volumes"


class ImageChangedError(EngineError):
    """The engine holds another image than the one that was checked."""

    code = "container.image-changed"


class StartError(EngineError):
    """The container could not be started."""

    code = "container.start"


class GpuMissingError(EngineError):
    """A GPU was asked for and is not there."""

    code = "container.gpu-missing"


class TrainingError(Error):
    """The training failed."""

    code = "training.failed"


class ExitError(TrainingError):
    """The training ended with a non-zero status."""

    code = "training.exit"


class OutOfMemoryError(TrainingError):
    """The training was killed for memory."""

    code = "training.out-of-memory"


class KilledError(TrainingError):
    """The training was killed, and nothing tells why."""

    code = "training.killed"


class TimeoutError(TrainingError):  # noqa: A001 - the field's word, within its own module
    """The training took longer than its limit."""

    code = "training.timeout"


class CancelledError(TrainingError):
    """The run was cancelled."""

    code = "training.cancelled"


class UnwatchedError(TrainingError):
    """Nobody saw how the training ended, or all that it printed."""

    code = "training.unwatched"


@dataclass(frozen=True, slots=True)
class InputMount:
    """An input's folder, and where it is mounted."""

    name: str
    path: Path
    target: str


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What to run."""

    image: OciImage
    command: Sequence[str]
    environment: Mapping[str, str]
    inputs: Sequence[InputMount]
    outputs: Path
    limits: Limits
    log: Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container that is ready and has not run an instruction of its own yet."""

    id: str
    spec: ContainerSpec
    devices: tuple[str, ...]
    user: str = USER
    network: str = NETWORK


@dataclass(frozen=True, slots=True)
class ContainerResult:
    """How a container ended.

    The log is stdout and stderr as they came, byte for byte, up to `MAX_LOG_BYTES`; `log_cut` tells
    whether there was more.
    """

    exit_code: int
    duration_milliseconds: int
    log_sha256: str
    log_size: int
    log_cut: bool


class Engine:
    """One engine with one folder; the base of `Podman` and `Docker`."""

    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        """Keep the engine's state below `directory`."""
        self.directory = directory
        self.runtime = runtime_folder(directory)
        for folder in (directory, self.runtime):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.version = self._version()

    @staticmethod
    def detect(directory: Path, prefer: str | None = None) -> "Engine":
        """Return the engine that is installed; Podman where both are.

        Raises:
            EngineMissingError: there is none, or not the one that was asked for.
        """
        for kind in (Podman, Docker):
            if prefer in (None, kind.name) and shutil.which(kind.name) is not None:
                return kind(directory)
        raise EngineMissingError(
            "no container engine is installed",
            expected=prefer or "podman or docker",
            advice="apt-get install podman runc, or `make setup`",
        )

    # -- what the two engines do differently ---------------------------------------------------

    def _base(self) -> list[str]:
        raise NotImplementedError

    def _version(self) -> str:
        raise NotImplementedError

    def _load(self, image: OciImage) -> None:
        raise NotImplementedError

    def _create_options(self) -> list[str]:
        raise NotImplementedError

    def _gpu_options(self, count: int) -> tuple[list[str], tuple[str, ...]]:
        raise NotImplementedError

    def _make_ready(self, container: str, gpus: int) -> None:
        raise NotImplementedError

    def _entrypoint(self, program: str) -> str:
        raise NotImplementedError

    def cleanup(self) -> None:
        """Remove this run's containers and images; safe to call twice."""
        raise NotImplementedError

    # -- what they share -----------------------------------------------------------------------

    def load(self, image: OciImage) -> None:
        """Bring a checked image into the engine.

        Raises:
            ImageChangedError: the engine gives it another id than the config's digest.
        """
        self._load(image)
        done = self._call(
            "image", "inspect", "--format", "{{.Id}}", self._reference(image), error=EngineError
        )
        got = done.removeprefix("sha256:")
        if got != image.config_digest:
            raise ImageChangedError(
                "the engine holds another image", got=got, expected=image.config_digest
            )

    def _reference(self, image: OciImage) -> str:
        return image.config_digest

    def prepare(self, spec: ContainerSpec) -> Prepared:
        """Create a container that is ready to start.

        It has no network, a read-only root, read-only inputs, no capabilities, no way to gain
        privileges, and the limits of the spec.

        Raises:
            StartError: it could not be created.
            GpuMissingError: a GPU was asked for and is not there.
        """
        limits = spec.limits
        os.chown(spec.outputs, *map(int, USER.split(":")))
        spec.outputs.chmod(0o755)
        gpus, devices = self._gpu_options(limits.gpus)
        command = [
            "create",
            "--pull=never",
            f"--network={NETWORK}",
            "--read-only",
            "--tmpfs", f"/tmp:rw,nosuid,nodev,size={limits.tmp},mode=1777",  # noqa: S108
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
            "--user", USER,
            "--workdir", "/",
            "--hostname", "aicert",
            "--pids-limit", str(limits.pids),
            "--memory", str(limits.memory),
            "--memory-swap", str(limits.memory),
            "--cpus", str(limits.cpus),
            "--shm-size", str(limits.shm),
            *self._create_options(),
            *gpus,
        ]  # fmt: skip
        for mount in spec.inputs:
            if "," in f"{mount.path}{mount.target}":
                raise StartError("a mount's path holds a comma", got=mount.target)
            command += ["--mount", f"type=bind,src={mount.path},dst={mount.target},readonly"]
        command += ["--mount", f"type=bind,src={spec.outputs},dst=/outputs"]
        for name, value in spec.environment.items():
            command += ["--env", f"{name}={value}"]
        program, *arguments = spec.command
        if not program:
            raise _no_program("the command's program is empty")  # engines run the next word then
        command += ["--entrypoint", self._entrypoint(program)]
        command += [self._reference(spec.image), *arguments]
        container = self._call(*command, error=StartError)
        try:
            self._make_ready(container, limits.gpus)
        except EngineError as error:
            self._remove(container)
            got = error.got or ""
            if "not found" in got and (program in got or "executable file" in got):
                raise _no_program(spec.command[0]) from error
            raise
        return Prepared(container, spec, devices)

    def run(
        self, prepared: Prepared, on_line: OnLine, cancelled: threading.Event
    ) -> ContainerResult:
        """Start a prepared container, stream its output, and wait for its end.

        Args:
            prepared: from `prepare`; used up, whatever happens.
            on_line: is told of each line: the stream's name, and the text without its end.
            cancelled: once set, the container is stopped.

        Raises:
            TrainingError: (a subclass) it failed, ran out of memory or time, or was cancelled.
            StartError: the program could not be started at all.
        """
        container, limits = prepared.id, prepared.spec.limits
        stopped: list[type[TrainingError]] = []
        start = time.monotonic()
        deadline = start + limits.time

        def check() -> None:
            if stopped:
                return
            if cancelled.is_set():
                stopped.append(CancelledError)
            elif time.monotonic() > deadline:
                stopped.append(TimeoutError)
            if stopped:
                self._stop(container)

        # conmon leaves this file where it stands when the kernel ran out of the container's memory.
        out_of_memory = self.directory / "oom"
        out_of_memory.unlink(missing_ok=True)
        try:
            process = subprocess.Popen(
                [*self._base(), *self._start_command(container)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(),
                cwd=self.directory,
            )
            log = _Log(prepared.spec.log, on_line)
            with process:
                log.follow(process, check)
            duration = round((time.monotonic() - start) * 1000)
            state = self._state(container)
        finally:
            self._remove(container)
        if stopped:
            raise self._stop_error(stopped[0], limits, log)
        code, status = int(state["ExitCode"]), state.get("Status")
        if str(state.get("StartedAt", "")).startswith("0001-") or status in (
            "created",
            "initialized",
        ):
            if limits.gpus and re.search("gpu|nvidia|cdi", log.tail, re.IGNORECASE):
                raise _no_gpu(limits.gpus, log.tail)
            raise _no_program(log.tail or prepared.spec.command[0])
        # A container that still runs has the exit status 0, too; and one may have ended after the
        # client that brought its output did.
        if status not in ("exited", "stopped") or (code == 0 and process.returncode != 0):
            raise UnwatchedError(
                f"`{self.name} start` ended before the training did, or failed",
                got=f"status {process.returncode}, the container {status}",
                expected="status 0, the container exited",
                advice="something on the machine killed it (for want of memory? look into the "
                f"kernel log); start a new run{log.last_words}",
            )
        if code == 127 and not log.size:
            raise _no_program(log.tail or prepared.spec.command[0])
        if state.get("OOMKilled") or out_of_memory.exists():
            raise OutOfMemoryError(
                f"{'the training' if code else 'a process of the training'} was killed because it "
                "used more memory than its limit",
                got=f"exit status {code}",
                expected=f"at most {limits.memory} bytes",
                advice=f"raise limits.memory, or train in smaller batches{log.last_words}",
            )
        if code == 137:
            raise KilledError(
                "the training was killed: by somebody on the machine, or for want of memory",
                got=f"exit status {code}",
                advice="look into the machine's kernel log; if memory was short, raise "
                f"limits.memory or train in smaller batches{log.last_words}",
            )
        if code != 0:
            raise ExitError(
                f"the training ended with status {code}",
                got=code,
                expected=0,
                advice=f"mend the training{log.last_words}",
            )
        return ContainerResult(code, duration, log.digest, log.size, log.cut)

    def _start_command(self, container: str) -> list[str]:
        return ["start", "--attach", container]

    @staticmethod
    def _stop_error(kind: type[TrainingError], limits: Limits, log: "_Log") -> TrainingError:
        if kind is TimeoutError:
            return TimeoutError(
                "the training took longer than its limit",
                expected=f"at most {limits.time} s",
                advice=f"raise limits.time{log.last_words}",
            )
        return kind("the run was cancelled", advice="start a new run")

    def _stop(self, container: str) -> None:
        """End a container: politely for a moment, then not."""
        self._try("stop", "--time", str(STOP_SECONDS), container)

    def _remove(self, container: str) -> None:
        self._try("rm", "--force", container)

    def _state(self, container: str) -> dict[str, Any]:
        text = self._call("inspect", "--format", "{{json .State}}", container, error=EngineError)
        state: dict[str, Any] = json.loads(text)
        return state

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
        }

    def _call(self, *arguments: str, error: type[EngineError]) -> str:
        """Run an engine command; return the last line that it printed."""
        lines = self._lines(*arguments, error=error)
        return lines[-1].strip() if lines else ""

    def _lines(self, *arguments: str, error: type[EngineError]) -> list[str]:
        try:
            done = subprocess.run(
                [*self._base(), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
                env=self._environment(),
                cwd=self.directory,
                check=False,
            )
        except subprocess.TimeoutExpired as caught:
            raise error(f"{self.name} {arguments[0]} took too long") from caught
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip()
            raise error(
                f"`{self.name} {arguments[0]}` failed",
                got=text[-1500:] or f"exit status {done.returncode}",
            )
        return done.stdout.decode("utf-8", "replace").strip().splitlines()

    def _try(self, *arguments: str) -> None:
        with suppress(EngineError):
            self._call(*arguments, error=EngineError)


class Podman(Engine):
    """Podman, with a store and configuration of its own."""

    name = "podman"

    def _base(self) -> list[str]:
        return [
            "podman",
            "--root", str(self.directory / "store"),
            "--runroot", str(self.runtime / "run"),
            "--tmpdir", str(self.runtime / "tmp"),
            "--storage-driver", "overlay",
            "--log-level", "error",  # its warnings would stand in the training's own log
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        own = Path(__file__).with_name("containers.conf")
        # The host's configuration has no say: neither its engine's, its stores', nor its hooks'.
        return {
            **super()._environment(),
            "CONTAINERS_CONF": os.environ.get("AICERT_CONTAINERS_CONF", str(own)),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
        }

    def _version(self) -> str:
        (self.directory / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.directory / "store"}"\n'
            f'runroot = "{self.runtime / "run"}"\n'
        )
        return self._call("version", "--format", "{{.Client.Version}}", error=EngineError)

    def _load(self, image: OciImage) -> None:
        # Podman makes the image's name of the path, and refuses one with a folder like `.local`.
        link = self.runtime / "image"
        link.unlink(missing_ok=True)
        link.symlink_to(image.layout)
        self._call("pull", "--quiet", f"oci:{link}:{image.tag}", error=EngineError)

    def _create_options(self) -> list[str]:
        return [
            "--log-driver=none",
            "--no-healthcheck",
            "--no-hosts",
            "--image-volume=ignore",
            "--http-proxy=false",
            "--unsetenv-all",
            # Podman gives a read-only root writable ones here, of any size, unless it is told
            # something else; what the image holds there is to be seen all the same.
            *("--tmpfs", "/run:ro,nosuid,nodev"),
            *("--tmpfs", "/var/tmp:ro,nosuid,nodev"),  # noqa: S108
        ]

    def _remove(self, container: str) -> None:
        self._try("rm", "--force", "--time", "0", container)

    def _entrypoint(self, program: str) -> str:
        # Podman takes a text apart that happens to be a list in JSON; a list of one it cannot.
        return json.dumps([program])

    def _gpu_options(self, count: int) -> tuple[list[str], tuple[str, ...]]:
        devices = tuple(f"nvidia.com/gpu={number}" for number in range(count))
        return [f"--device={device}" for device in devices], devices

    def _make_ready(self, container: str, gpus: int) -> None:
        """Have the runtime build the container, and look into it from outside."""
        try:
            self._call("init", container, error=StartError)
        except StartError as error:
            if gpus and "gpu" in (error.got or ""):
                raise _no_gpu(gpus, error.got) from error
            raise
        if gpus:
            pid = self._call("inspect", "--format", "{{.State.Pid}}", container, error=StartError)
            found = list(Path(f"/proc/{pid}/root/dev").glob("nvidia[0-9]*"))
            if len(found) < gpus:
                raise _no_gpu(gpus, len(found))

    def _start_command(self, container: str) -> list[str]:
        return ["start", "--attach", "--sig-proxy=false", container]

    def cleanup(self) -> None:
        """Remove this run's containers; the store is left to whoever ends the machine."""
        self._try("rm", "--all", "--force", "--time", "0")
        # What was mounted from the store is gone now; a leftover mount ends with the namespace.
        shutil.rmtree(self.runtime, ignore_errors=True)


class Docker(Engine):
    """Docker. Its images lie in the daemon's store, which others may write (threat model).

    Its containers are the daemon's children: one outlives an agent that is killed, until `clear`.
    """

    name = "docker"

    def _base(self) -> list[str]:
        return ["docker"]

    def _environment(self) -> dict[str, str]:
        passed = {k: v for k, v in os.environ.items() if k == "DOCKER_HOST"}
        return {**super()._environment(), **passed}

    def _version(self) -> str:
        (self.runtime / self.name).touch()
        try:
            return self._call("version", "--format", "{{.Server.Version}}", error=EngineError)
        except EngineError as error:
            raise EngineMissingError(
                "no Docker daemon answers",
                got=error.got,
                advice="start it (systemctl start docker), or install podman",
            ) from error

    def _load(self, image: OciImage) -> None:
        if image.volumes:
            raise VolumesError(
                "the image declares volumes, which Docker would make writable",
                got=", ".join(image.volumes[:20]),
                advice="build the image without VOLUME, or use podman, which leaves them read-only",
            )
        archive = self.directory / "image.tar"
        archive.unlink(missing_ok=True)
        command = [
            "skopeo", "--insecure-policy", "copy", "--quiet",
            f"oci:{image.layout}:{image.tag}",
            f"docker-archive:{archive}:aicert/{image.config_digest[:12]}:run",
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise EngineError("skopeo failed", got=done.stderr.decode("utf-8", "replace")[-1500:])
        try:
            self._call("load", "--quiet", "--input", str(archive), error=EngineError)
        finally:
            archive.unlink(missing_ok=True)

    def _reference(self, image: OciImage) -> str:
        return f"sha256:{image.config_digest}"

    def _create_options(self) -> list[str]:
        return ["--log-driver=none", "--no-healthcheck", "--label", self._label]

    def _entrypoint(self, program: str) -> str:
        return program

    def _gpu_options(self, count: int) -> tuple[list[str], tuple[str, ...]]:
        if not count:
            return [], ()
        devices = tuple(f"nvidia.com/gpu={number}" for number in range(count))
        return ["--gpus", str(count)], devices

    def _make_ready(self, container: str, gpus: int) -> None:
        """Docker has no such step: a GPU that is missing fails the start."""
        del container, gpus

    def cleanup(self) -> None:
        """Remove this run's containers; images stay in the daemon's store."""
        filters = ("--filter", f"label={self._label}")
        with suppress(EngineError):
            for container in self._lines("ps", "--all", "--quiet", *filters, error=EngineError):
                self._remove(container)

    @property
    def _label(self) -> str:
        return f"aicert={self.runtime.name}"


def clear(directory: Path) -> None:
    """Remove what the engine that kept its state in `directory` has elsewhere.

    Also where its agent was killed; its own folder is left to the caller.
    """
    runtime = runtime_folder(directory)
    if (runtime / Docker.name).exists():
        with suppress(EngineError):
            Docker(directory).cleanup()
    shutil.rmtree(runtime, ignore_errors=True)


def _no_program(got: object) -> StartError:
    return StartError(
        "the training's program could not be started",
        got=got,
        advice="the command must begin with a program in the image: an absolute path, or one on "
        "its PATH",
    )


def _no_gpu(wanted: int, got: object) -> GpuMissingError:
    return GpuMissingError(
        "a GPU was asked for and is not there",
        got=got,
        expected=f"{count(wanted, 'GPU')} by CDI",
        advice="on a machine with NVIDIA's driver: `nvidia-ctk cdi generate "
        "--output=/etc/cdi/nvidia.yaml`; else set limits.gpus to 0",
    )


class _Log:
    """The output of a container: written, hashed, and told line by line, as it comes."""

    def __init__(self, path: Path, on_line: OnLine) -> None:
        self._path = path
        self._on_line = on_line
        self._hash = hashlib.sha256()
        self._last: list[str] = []
        self._partial = {"stdout": b"", "stderr": b""}
        self.size = 0
        self.cut = False

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def tail(self) -> str:
        return "\n".join(self._last)

    @property
    def last_words(self) -> str:
        return f"; it said last:\n{self.tail}" if self._last else "; it said nothing"

    def follow(self, process: subprocess.Popen[bytes], check: Callable[[], None]) -> None:
        """Read both streams until they end; call `check` a few times a second."""
        assert process.stdout is not None
        assert process.stderr is not None
        with self._path.open("wb") as target, selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, "stdout")
            selector.register(process.stderr, selectors.EVENT_READ, "stderr")
            while selector.get_map():
                for key, _ in selector.select(timeout=0.2):
                    chunk = os.read(key.fd, 65536)
                    if chunk:
                        self._take(key.data, chunk, target)
                    else:
                        selector.unregister(key.fileobj)
                check()
            while True:
                check()
                try:
                    process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    continue
            for name in self._partial:
                if self._partial[name]:
                    self._tell(name, self._partial[name])

    def _take(self, name: str, chunk: bytes, target: IO[bytes]) -> None:
        if self.cut:
            return
        room = MAX_LOG_BYTES - self.size
        self.cut = len(chunk) > room
        chunk = chunk[:room]
        target.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)
        *lines, rest = (self._partial[name] + chunk).split(b"\n")
        for line in lines:
            self._tell(name, line)
        if len(rest) > MAX_LINE:
            self._tell(name, rest)
            rest = b""
        self._partial[name] = rest
        if self.cut:
            self._on_line("stderr", f"aicert: warning: the log is cut after {self.size} bytes")

    def _tell(self, name: str, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r")
        self._last = [*self._last[-19:], text[:500]]
        self._on_line(name, text)
