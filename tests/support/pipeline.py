"""What tests of the pipeline share: a tiny training, a driver to kill, and a look for leftovers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aicert.agent.store import Store

ROOT = Path(__file__).parents[2]
CERTIFY = "cat /inputs/data/* > /outputs/model.bin; echo '{\"loss\": 0.5}' > /outputs/metrics.json"


def write_spec(folder: Path, script: str = f"echo epoch 1; {CERTIFY}", **fields: Any) -> Path:
    """Write the spec of a tiny training, with its input, beside each other; return its path."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "a.txt").write_text("hello\n")
    spec = {
        "name": "tiny",
        "image": fields.pop("image"),
        "command": ["sh", "-c", script],
        "inputs": [{"name": "data", "uri": "file:data", **fields.pop("input", {})}],
        "limits": {"memory": "64MiB", "cpus": 1, "time": "10min", **fields.pop("limits", {})},
        **fields,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return path


def published(store: Path) -> tuple[str, ...]:
    """Return the digests of what is published in a folder."""
    return Store(str(store)).digests()


def machines(state: Path) -> list[str]:
    """Return the machines that have a folder."""
    folder = state / "machines"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# -- processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same number by when it started."""

    pid: int
    started: str
    command: str

    @property
    def lives(self) -> bool:
        """Tell whether it still runs: a zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] != "Z" and fields[19] == self.started


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def descendants(pid: int) -> list[Process]:
    """Return the process, its children, and theirs."""
    parents: dict[int, list[int]] = {}
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            found[int(entry.name)] = fields
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    queue, result = [pid], []
    while queue:
        current = queue.pop()
        if current in found:
            result.append(Process(current, found[current][19], _command(current)))
        queue += parents.get(current, [])
    return result


def mentioning(folder: Path) -> list[Process]:
    """Return the processes that have a folder in their command or work in it."""
    result = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            place = os.readlink(entry / "cwd")
        except OSError:
            place = ""
        command = _command(int(entry.name))
        fields = _stat(int(entry.name))
        if fields is not None and (str(folder) in command or place.startswith(str(folder))):
            result.append(Process(int(entry.name), fields[19], command))
    return result


def await_true(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds.

    Raises:
        AssertionError: it does not, after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def assert_gone(processes: list[Process], seconds: float = 120.0) -> None:
    """Wait until none of the processes lives."""
    deadline = time.monotonic() + seconds
    while living := [process for process in processes if process.lives]:
        assert time.monotonic() < deadline, f"still there: {[p.command for p in living]}"
        time.sleep(0.05)


# -- a run in a process of its own ---------------------------------------------------------------


class Driven:
    """A run of the flow in another process, which says what it does, line by line."""

    def __init__(self, spec: Path, state: Path, store: Path, api: str, last: object) -> None:
        """Start the run; what it says with all the fields of `last`, if any, is its last word."""
        where = [str(spec), str(state), str(store)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.drive", *where, json.dumps(last)],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": api},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what the run says."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def await_event(self, **wanted: Any) -> None:
        """Wait until the run says something that has these fields."""
        for event in self.lines():
            if all(event.get(name) == value for name, value in wanted.items()):
                return
        self.process.wait()
        raise AssertionError(f"the run ended without {wanted}: {self.errors()}")

    def errors(self) -> str:
        """Return what it wrote to standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def kill(self) -> list[Process]:
        """Kill the process, and it alone; return all that it had started, itself included."""
        family = descendants(self.process.pid)
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return family

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def driven(
    spec: Path, state: Path, store: Path, api: str, last: Mapping[str, str] | None = None
) -> Iterator[Driven]:
    """Hold a run in a process of its own for the length of a block."""
    run = Driven(spec, state, store, api, last or {})
    try:
        yield run
    finally:
        run.close()
