"""Where the time of `make demo` goes: the second time, and what comes on top the first time.

The demo is run as a person runs it, and says itself how long each step took. The first time also
installs a virtual environment and builds the example's image: both are made anew here, in empty
folders, with whatever the package tools have in their caches. Debian's packages for the system come
on top of that, where they are missing.
"""

import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import BIN, ROOT, Figure, Options, Result, cold

STEP = re.compile(r"✓ (\w+) +([0-9.]+) s")
SHOWN = re.compile(r"^\$ aicert ((?:verify|show) .*)$", re.MULTILINE)
START, REST = "Python, Prefect and its server start", "verify and show"

CUT = "\n".join([
    "What was cut, each measured before and after on one machine, busy with other things:",
    "",
    "| | before | after | how |",
    "|---|---|---|---|",
    "| the training (4 cores) | 10 to 20 s | 4 to 5 s "
    "| no more threads than its share of the processors can feed |",
    "| loading the image (2 cores; processor time, two runs each in turns) | 14.7 and 17.7 s "
    "| 10.7 and 13.2 s | a third of its files, which no training read, are left out |",
    "| making the TPM (4 cores) | 1.2 s | 0.6 s "
    "| the tool that makes a software TPM waited for process 1 to reap another |",
    "| destroying the machine (2 cores) | 1.7 to 2.4 s | 0.2 to 0.3 s "
    "| the unpacked image is moved out of the way, and deleted while nothing waits |",
    "",
    "What is left is mostly the image: Podman unpacks it into a store that is new in each run, on "
    "purpose: what runs is what was measured. That is paid once a run, whatever the training. Next "
    "is Prefect: its server and its client are imported side by side, and little else happens "
    "meanwhile.",
])  # fmt: skip


def measure(options: Options) -> Result:
    """Run the demo a few times, and install once."""
    runs = [_once() for _ in range(options.turns(3) + 1)][1:]  # the first warms up
    figures = [
        Figure(f"the second time: {name}", tuple(run[name] for run in runs), "s")
        for name in runs[0]
    ]
    if not options.quick:
        figures += [
            Figure("the first time, besides: Python packages", (_environment(options),), "s"),
            Figure("the first time, besides: the image", (_image(options),), "s"),
        ]  # fmt: skip
        whole = statistics.median(run["all"] for run in runs)
        first = whole + sum(figure.median for figure in figures[-2:])
        figures.append(Figure("the first time: all", (first,), "s"))
    about = (__doc__ or "").strip()
    return Result("Where the time of `make demo` goes", about, tuple(figures), notes=(CUT,))


def _once() -> dict[str, float]:
    """Run the demo; return the seconds of each step."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    wall = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"the demo failed:\n{done.stderr}")
    steps = {name: float(seconds) for name, seconds in STEP.findall(done.stderr)}
    rest = sum(
        cold([BIN / "aicert", *shlex.split(line)]).wall for line in SHOWN.findall(done.stdout)
    )
    print(f"{wall:.0f} s", end=" ", flush=True, file=sys.stderr)
    return {START: wall - sum(steps.values()) - rest, **steps, REST: rest, "all": wall}


def _environment(options: Options) -> float:
    folder = options.folder / "environment"
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    return _timed(["deployments/setup/venv.sh", python, folder], folder, {})


def _image(options: Options) -> float:
    folder = options.folder / "cache"
    line = [sys.executable, "-m", "examples.images.build"]
    return _timed(line, folder, {"XDG_CACHE_HOME": str(folder)})


def _timed(line: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    wall = time.perf_counter() - begin
    if done.returncode != 0:
        raise SystemExit(f"failed: {line}\n{done.stderr}")
    shutil.rmtree(folder)
    return wall
