"""The container: what it cannot do, and how each way to fail is told apart.

Podman and Docker really run, and have to do the same.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import engine
from aicert.agent.engine import ContainerResult, ContainerSpec, Engine, InputMount
from aicert.agent.oci import OciImage, acquire
from aicert.events import Limits
from examples.images import tiny
from tests.support import docker
from tests.support.pipeline import descendants

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="containers with limits need root: run the tests as root"
)

LIMITS: dict[str, Any] = {
    "memory": 64 << 20, "cpus": 1, "gpus": 0, "pids": 32, "time": 60, "tmp": 1 << 20,
    "shm": 1 << 20,
}  # fmt: skip


class Box:
    """An engine with the tiny image loaded, and a place for inputs and outputs."""

    def __init__(self, folder: Path, engine: str = "podman") -> None:
        tiny.build(folder / "tiny")
        self.folder = folder
        self.image: OciImage = acquire(f"oci:{folder}/tiny", base=None, into=folder / "image")
        self.engine = Engine.detect(folder / "engine", prefer=engine)
        self.engine.load(self.image)
        self.lines: list[tuple[str, str]] = []
        self.cancelled = threading.Event()

    def run(
        self,
        script: str | list[str],
        on_line: Callable[[str, str], None] = lambda stream, line: None,
        **limits: Any,
    ) -> ContainerResult:
        inputs, outputs = self.folder / "in", self.folder / "out"
        for path in (inputs, outputs):
            path.mkdir(exist_ok=True)
        (inputs / "file").write_text("input")
        command = ["sh", "-c", script] if isinstance(script, str) else script
        spec = ContainerSpec(
            image=self.image,
            command=command,
            environment={"PATH": "/bin", "GIVEN": "yes"},
            inputs=[InputMount("data", inputs, "/inputs/data")],
            outputs=outputs,
            limits=Limits(**{**LIMITS, **limits}),
            log=self.folder / "log",
        )
        self.lines = []

        def hear(stream: str, line: str) -> None:
            self.lines.append((stream, line))
            on_line(stream, line)

        return self.engine.run(self.engine.prepare(spec), hear, self.cancelled)

    @property
    def out(self) -> str:
        return "\n".join(line for stream, line in self.lines if stream == "stdout")

    def containers(self) -> list[str]:
        return subprocess.run(
            [*self.engine._base(), "ps", "--all", "--quiet"],
            env=self.engine._environment(),
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("podman", "docker")
    ],
)
def module_box(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Box]:
    # As deep and as odd as a state folder may be.
    folder = tmp_path_factory.mktemp("box") / ".local" / "State folder" / ("x" * 60)
    folder.mkdir(parents=True)
    with docker.daemon() if request.param == "docker" else nullcontext():
        box = Box(folder, request.param)
        yield box
        box.engine.cleanup()
        engine.clear(box.engine.directory)


@pytest.fixture
def box(module_box: Box) -> Box:
    module_box.cancelled.clear()
    shutil.rmtree(module_box.folder / "out", ignore_errors=True)
    return module_box


def test_only_loopback_is_there(box: Box) -> None:
    box.run("ifconfig -a; cat /proc/net/route")
    assert "lo " in box.out
    assert "eth" not in box.out
    # The routing table has its header and nothing else.
    assert box.out.strip().splitlines()[-1].startswith("Iface")


def test_root_and_inputs_are_read_only_and_outputs_are_not(box: Box) -> None:
    box.run("touch /x; touch /bin/x; echo y > /inputs/data/file; echo made > /outputs/model; true")
    errors = [line for stream, line in box.lines if stream == "stderr"]
    assert len(errors) == 3
    assert all("Read-only file system" in line for line in errors)
    assert (box.folder / "out" / "model").read_text() == "made\n"
    assert (box.folder / "in" / "file").read_text() == "input"


def test_nothing_else_can_be_written_to(box: Box) -> None:
    box.run(
        "while read device place rest; do"
        ' if [ -d "$place" ]; then name="$place/x"; else name="$place"; fi;'
        ' if (: >> "$name") 2>/dev/null; then echo "$place"; fi; done < /proc/mounts'
    )
    devices = {line for line in box.out.splitlines() if line.startswith("/proc/")}  # masked files
    assert {*box.out.splitlines()} - devices == {"/outputs", "/tmp", "/dev/shm", "/dev/mqueue"}


def test_it_has_no_capability_and_cannot_gain_one(box: Box) -> None:
    box.run("grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/self/status; id -u")
    status = dict(line.split(":\t") for line in box.out.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert box.out.splitlines()[-1] == "65534"


def test_it_gets_the_variables_that_are_measured_and_the_engines_own_three(box: Box) -> None:
    box.run(["env"])
    names = {line.partition("=")[0] for line in box.out.splitlines()}
    assert {"GIVEN", "PATH"} <= names
    assert names <= {"GIVEN", "PATH", "HOSTNAME", "HOME", "container", "SHLVL", "PWD", "TERM"}


def test_no_tpm_and_no_socket_is_within_reach(box: Box) -> None:
    box.run("ls /dev; ls /run /tmp 2>/dev/null; true")
    assert "tpm" not in box.out
    assert "sock" not in box.out


def test_the_log_is_every_byte_that_it_wrote(box: Box) -> None:
    import hashlib

    result = box.run("printf 'one\\ntwo'; printf 'three\\n' >&2; printf '\\377\\n'")
    data = (box.folder / "log").read_bytes()
    assert result.log_size == len(data) == 15
    assert result.log_sha256 == hashlib.sha256(data).hexdigest()
    assert ("stdout", "one") in box.lines
    assert ("stderr", "three") in box.lines


def test_the_log_is_cut_at_its_limit_and_for_good(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_LOG_BYTES", 100)
    # What comes last would fit where what came before did not.
    result = box.run("printf 1234567890; sleep 1; yes 123456789 | head -n 20; sleep 1; echo end")
    data = (box.folder / "log").read_bytes()
    assert data == b"1234567890" + b"123456789\n" * 9
    assert (result.log_size, result.log_cut) == (100, True)
    assert box.lines[-1] == ("stderr", "aicert: warning: the log is cut after 100 bytes")


def test_a_log_that_just_fits_is_not_cut(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_LOG_BYTES", 4)
    assert not box.run("echo 123").log_cut


def test_a_line_without_end_is_told_in_bounded_pieces(box: Box) -> None:
    box.run("yes aaaaaaaaaaaaaaa | head -c 200000 | sort -u >/dev/null; head -c 50000 /dev/zero")
    assert max(len(line) for _, line in box.lines) <= engine.MAX_LINE


@pytest.mark.parametrize(
    ("script", "limits", "error", "code"),
    [
        ("echo last words; exit 3", {}, engine.ExitError, "training.exit"),
        ("x=$(yes | head -c 200000000); echo $x", {}, engine.OutOfMemoryError,
         "training.out-of-memory"),
        ("sleep 60", {"time": 1}, engine.TimeoutError, "training.timeout"),
        (["/no/such/program"], {}, engine.StartError, "container.start"),
        ("true", {"gpus": 1}, engine.GpuMissingError, "container.gpu-missing"),
    ],
)  # fmt: skip
def test_each_way_to_fail_has_its_own_error(
    box: Box, script: str, limits: dict[str, Any], error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as caught:
        box.run(script, **limits)
    problem: Any = caught.value
    assert problem.code == code
    assert problem.advice
    if code == "training.exit":
        assert "last words" in problem.diagnostics()


@pytest.mark.parametrize("seconds", [20, 2], ids=["it-runs-on", "it-ends-well"])
def test_a_training_that_nobody_watched_to_its_end_has_not_succeeded(
    box: Box, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    original = box.engine._state

    def later(container: str) -> dict[str, Any]:
        time.sleep(3 if seconds < 3 else 0)
        return original(container)

    def kill_client(stream: str, line: str) -> None:
        (client,) = [p for p in descendants(os.getpid()) if "start --attach" in p.command]
        os.kill(client.pid, signal.SIGKILL)

    monkeypatch.setattr(box.engine, "_state", later)
    with pytest.raises(engine.UnwatchedError) as caught:
        box.run(f"echo begun; sleep {seconds}; echo never told", on_line=kill_client)
    assert caught.value.advice
    assert box.containers() == []


@pytest.mark.parametrize("program", ["", '["sh", "-c", "echo ran"]'])
def test_what_is_no_program_is_not_taken_for_one(box: Box, program: str) -> None:
    with pytest.raises(engine.StartError, match="could not be started"):
        box.run([program, "sh", "-c", "echo ran"])
    assert box.out == ""


def test_the_program_may_have_an_odd_name(box: Box) -> None:
    box.run(["[", "-d", "/tmp", "]"])


def test_one_process_that_is_killed_for_memory_fails_the_training(box: Box) -> None:
    with pytest.raises(engine.OutOfMemoryError, match="a process of the training was killed"):
        box.run("(x=$(yes | head -c 200000000); echo $x); echo survived; exit 0")


def test_more_processes_than_the_limit_cannot_be_started(box: Box) -> None:
    with pytest.raises(engine.ExitError):
        box.run("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait", pids=4)


def test_cancelling_stops_it_within_seconds(box: Box) -> None:
    timer = threading.Timer(1, box.cancelled.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(engine.CancelledError):
        box.run("trap '' TERM; while true; do sleep 1; done")
    assert time.monotonic() - start < 120  # by itself it never ends
    timer.cancel()


def test_no_container_is_left_after_a_failure(box: Box) -> None:
    with pytest.raises(engine.ExitError):
        box.run("exit 1")
    assert box.containers() == []


def test_a_container_that_its_agent_left_is_cleared_away(box: Box) -> None:
    outputs = box.folder / "out"
    outputs.mkdir()
    command = ContainerSpec(
        box.image, ["/bin/sleep", "9"], {}, [], outputs, Limits(**LIMITS), box.folder / "log"
    )
    prepared = box.engine.prepare(command)
    box.engine._call("start", prepared.id, error=engine.EngineError)
    assert len(box.containers()) == 1
    box.engine.cleanup()
    assert box.containers() == []
    box.engine.load(box.image)


def test_an_image_with_volumes_gets_no_place_to_write_to(box: Box) -> None:
    wanting = replace(box.image, volumes=("/data",))
    if box.engine.name == "docker":
        with pytest.raises(engine.VolumesError, match="declares volumes"):
            box.engine.load(wanting)
    else:
        box.engine.load(wanting)  # Podman leaves them as they are in the image: read-only


def test_an_engine_that_gives_another_image_is_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lying = replace(box.image, config_digest="00" * 32)
    with pytest.raises(engine.EngineError):
        box.engine.load(lying)


def test_a_missing_engine_is_named_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(engine.EngineMissingError, match="no container engine"):
        Engine.detect(tmp_path / "engine")


CHILD = """
import sys, threading
from pathlib import Path
from tests.agent.test_engine import Box
box = Box(Path(sys.argv[1]))
print("ready", flush=True)
box.run("echo started; sleep 1000")
"""


def alive(text: str) -> list[tuple[int, str]]:
    """The processes that mention `text`: their numbers and command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\x00", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in line:
            found.append((int(path.parent.name), line))
    return found


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_killing_the_namespace_leaves_no_container_and_no_monitor(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    child = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--",
         sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert until(lambda: bool(alive("sleep 1000")), 120)
        assert alive(str(folder))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    assert until(lambda: not alive(str(folder)), 120), alive(str(folder))
    shutil.rmtree(folder)  # no mount is left in it either
    shutil.rmtree(engine.runtime_folder(folder / "engine"))
