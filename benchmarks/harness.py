"""What the suites share: cold processes, turns, figures, and how they are written down.

Machines are noisy, so nothing is measured alone: in each turn every contestant runs once, one after
the other, and what is compared is their ratio within the turn. A figure is the median of its turns;
the range stands beside it.
"""

import compileall
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import aicert

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
BIN = Path(sys.executable).parent
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure: `quick` shrinks everything, for a look; `runs` turns where given."""

    folder: Path
    quick: bool = False
    runs: int | None = None

    def turns(self, usual: int) -> int:
        """Return the number of turns."""
        return self.runs or (3 if self.quick else usual)


@dataclass(frozen=True)
class Figure:
    """One measured thing: a value a turn, and the target, if there is one.

    The target is `most` or `least`, and the median meets it or does not. Ratios have the unit "×"
    and are drawn.
    """

    what: str
    values: tuple[float, ...]
    unit: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def median(self) -> float:
        """The median of the turns."""
        return statistics.median(self.values)

    @property
    def target(self) -> str:
        """The target, in words."""
        for sign, bound in (("≤", self.most), ("≥", self.least)):
            if bound is not None:
                return f"{sign} {bound:g} {self.unit}"
        return ""

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.most is None and self.least is None:
            return ""
        good = (self.most is None or self.median <= self.most) and (
            self.least is None or self.median >= self.least
        )
        return "met" if good else "MISSED"

    def __str__(self) -> str:
        """Return the median, with the range in brackets where there is one."""
        low, middle, high = (_number(v) for v in (min(self.values), self.median, max(self.values)))
        if len(self.values) == 1 or low == high:
            return f"{middle} {self.unit}"
        return f"{middle} ({low} to {high}) {self.unit}"


@dataclass(frozen=True)
class Result:
    """What a suite found: its figures, what a reader should know of them, and the conditions."""

    title: str
    about: str
    figures: tuple[Figure, ...]
    conditions: str = ""
    notes: tuple[str, ...] = field(default=())

    def markdown(self) -> str:
        """The result as a page."""
        rows = [f"| {f.what} | {f} | {f.target} | {f.verdict} |" for f in self.figures]
        return "\n".join([
            f"# {self.title}", "", self.about, "", self.conditions, "",
            "| what | measured | target | |", "|---|---|---|---|", *rows, "",
            *(line for note in self.notes for line in (note, "")),
        ])  # fmt: skip

    def save(self, name: str) -> None:
        """Write the page and its numbers."""
        (RESULTS / f"{name}.md").write_text(self.markdown())
        data = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        (RESULTS / f"{name}.json").write_text(data + "\n")

    @classmethod
    def load(cls, name: str) -> "Result | None":
        """Return what a suite found last, if it ever ran."""
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return None
        data: dict[str, Any] = json.loads(path.read_text())
        figures = [Figure(**{**item, "values": tuple(item["values"])}) for item in data["figures"]]
        return cls(**{**data, "figures": tuple(figures), "notes": tuple(data["notes"])})


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


# -- processes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cold:
    """One process from its start to its end: seconds by the clock and of the processor, memory.

    The memory is the most that it, or one of the processes that it started and waited for, held at
    a time, in MiB: of the largest alone, and not of all together.
    """

    wall: float
    processor: float
    memory: float


def cold(command: Sequence[object], *, status: int = 0) -> Cold:
    """Run a command to its end and measure it, and it alone."""
    line = [str(part) for part in command]
    launcher = _launcher()
    assert launcher.stdin is not None and launcher.stdout is not None
    launcher.stdin.write(f"{json.dumps(line)}\n")
    launcher.stdin.flush()
    wall, processor, memory, code, said = json.loads(launcher.stdout.readline())
    if code != status:
        raise SystemExit(f"failed ({code}): {' '.join(line)}\n{said}")
    return Cold(wall, processor, memory / 1024)


# A process inherits the peak of memory of the one that starts it: a small one must, and not this.
_LAUNCHER = """
import json, os, subprocess, sys, time
for line in sys.stdin:
    start = time.perf_counter()
    process = subprocess.Popen(json.loads(line), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()  # until its end, so that it never waits for us
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    found = wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, process.returncode
    print(json.dumps([*found, said.decode(errors="replace")]), flush=True)
"""


@cache
def _launcher() -> subprocess.Popen[str]:
    line = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    return subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def python(code: str, *arguments: object) -> list[str]:
    """Return the command that runs this code in a Python of its own."""
    return [sys.executable, "-c", code, *map(str, arguments)]


# -- turns -----------------------------------------------------------------------------------------


def take_turns(
    contestants: Mapping[str, Callable[[], Any]], turns: int, *, warm: int = 1
) -> dict[str, list[Any]]:
    """Run every contestant once a turn; return what each gave, less the first `warm` turns.

    Who goes first changes from turn to turn: the second may find the caches as the first left them.
    """
    names = list(contestants)
    found: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(-warm, turns):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            value = contestants[name]()
            if turn >= 0:
                found[name].append(value)
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def walls(runs: Sequence[Cold]) -> tuple[float, ...]:
    """The seconds by the clock."""
    return tuple(run.wall for run in runs)


def memory(runs: Sequence[Cold]) -> tuple[float, ...]:
    """The peaks of memory, in MiB."""
    return tuple(run.memory for run in runs)


def ratio(
    what: str,
    first: Sequence[float],
    second: Sequence[float],
    *,
    most: float | None = None,
    least: float | None = None,
) -> Figure:
    """Return the ratio of two contestants, turn by turn."""
    pairs = zip(first, second, strict=True)
    return Figure(what, tuple(a / b for a, b in pairs), "×", most, least)


# -- conditions ------------------------------------------------------------------------------------


@contextmanager
def conditions() -> Iterator[Callable[[], str]]:
    """Watch what else the machine does meanwhile; yield what puts it into words."""
    before = os.getloadavg()[0]
    start, busy, own = time.monotonic(), _busy(), _own()

    def words() -> str:
        wall = time.monotonic() - start
        others = max(0.0, (_busy() - busy) - (_own() - own)) / wall
        return (
            f"Measured on {datetime.now(UTC):%Y-%m-%d} with aicert {aicert.__version__}, Python "
            f"{platform.python_version()}, {machine()}. Load average before: {before:.1f}. "
            f"Processor time of all other programs meanwhile: {others:.1f} cores."
        )

    yield words


def machine() -> str:
    """Say what the machine is: its cores, what hashes, its memory."""
    return (
        f"{os.cpu_count()} cores of {_processor()} with {'' if _sha_extensions() else 'no '}SHA "
        f"extensions, {_memory()} GiB of memory"
    )


def _busy() -> float:
    """Seconds that all processors together have worked."""
    numbers = [int(text) for text in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return sum(numbers[:3] + numbers[5:8]) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of the processor that this process and its ended children have had."""
    times = os.times()
    ours = times.user + times.system + times.children_user + times.children_system
    if not _launcher.cache_info().currsize:
        return ours
    stat = Path(f"/proc/{_launcher().pid}/stat").read_text().rpartition(")")[2].split()
    return ours + sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime to cstime


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _sha_extensions() -> bool:
    return bool({"sha_ni", "sha2"} & set((_cpuinfo("flags") or _cpuinfo("Features")).split()))


def _cpuinfo(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return ""


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB)


def as_installed() -> None:
    """Have our programs start as they do where pip has installed them: from compiled files.

    An environment may say that none are to be written, and a checkout then has none.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    compileall.compile_dir(ROOT / "aicert", quiet=1)


# -- data ------------------------------------------------------------------------------------------


def write_file(path: Path, size: int) -> None:
    """Write a file of this size whose mebibytes all differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = bytearray(os.urandom(MIB))
    with path.open("wb", buffering=0) as stream:
        for number in range(size // MIB):
            block[:8] = number.to_bytes(8)
            stream.write(block)
        stream.write(block[: size % MIB])


def write_small(folder: Path, count: int, size: int = 4096) -> None:
    """Write many small files, a thousand to a folder."""
    for number in range(count):
        path = folder / f"{number // 1000:04}" / f"{number:07}.bin"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(8) * (size // 8))
