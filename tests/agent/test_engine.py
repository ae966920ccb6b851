"""The container: what it cannot do, and how each way to fail is told apart. Podman really runs."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import engine
from aicert.agent.engine import ContainerResult, ContainerSpec, Engine, InputMount
from aicert.agent.oci import OciImage, acquire
from aicert.events import Limits
from examples.images import tiny

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="containers with limits need root: run the tests as root"
)

LIMITS: dict[str, Any] = {
    "memory": 64 << 20, "cpus": 1, "gpus": 0, "pids": 32, "time": 60, "tmp": 1 << 20,
    "shm": 1 << 20,
}  # fmt: skip


class Box:
    """An engine with the tiny image loaded, and a place for inputs and outputs."""

    def __init__(self, folder: Path) -> None:
        tiny.build(folder / "tiny")
        self.folder = folder
        self.image: OciImage = acquire(f"oci:{folder}/tiny", base=None, into=folder / "image")
        self.engine = Engine.detect(folder / "engine", prefer="podman")
        self.engine.load(self.image)
        self.lines: list[tuple[str, str]] = []
        self.cancelled = threading.Event()

    def run(self, script: str | list[str], **limits: Any) -> ContainerResult:
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
        return self.engine.run(
            self.engine.prepare(spec),
            lambda stream, line: self.lines.append((stream, line)),
            self.cancelled,
        )

    @property
    def out(self) -> str:
        return "\n".join(line for stream, line in self.lines if stream == "stdout")


@pytest.fixture(scope="module")
def module_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    # As deep and as odd as a state folder may be.
    folder = tmp_path_factory.mktemp("box") / ".local" / "State folder" / ("x" * 60)
    folder.mkdir(parents=True)
    box = Box(folder)
    yield box
    box.engine.cleanup()


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


def test_more_processes_than_the_limit_cannot_be_started(box: Box) -> None:
    with pytest.raises(engine.ExitError):
        box.run("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait", pids=4)


def test_cancelling_stops_it_within_seconds(box: Box) -> None:
    timer = threading.Timer(1, box.cancelled.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(engine.CancelledError):
        box.run("trap '' TERM; while true; do sleep 1; done")
    assert time.monotonic() - start < 15
    timer.cancel()


def test_no_container_is_left_after_a_failure(box: Box) -> None:
    with pytest.raises(engine.ExitError):
        box.run("exit 1")
    listed = subprocess.run(
        [*box.engine._base(), "ps", "--all", "--quiet"],
        env=box.engine._environment(),
        capture_output=True,
        check=True,
    )
    assert listed.stdout == b""


def test_an_engine_that_gives_another_image_is_refused(
    box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dataclasses import replace

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


def alive(text: str) -> list[str]:
    """The command lines of the processes that mention `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\x00", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
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
        assert until(lambda: any("sleep 1000" in line for line in alive("sleep 1000")), 20)
        assert alive(str(folder))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    assert until(lambda: not alive(str(folder)), 10), alive(str(folder))
    shutil.rmtree(folder)  # no mount is left in it either
    shutil.rmtree(engine.runtime_folder(folder / "engine"))
