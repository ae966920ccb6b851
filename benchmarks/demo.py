"""Where the time of `make demo` goes, once all is installed: `python -m benchmarks.demo`, as root.

Runs the demo as a person does and reads what it prints. Writes `results/demo.md`.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "demo.md"
STEP = re.compile(r"✓ (\w+) +([0-9.]+) s")
START, REST = "Python, Prefect and its server start", "verify, show, and the rest"

CUT = "\n".join([
    "", "## What was cut", "",
    "The three largest costs when this was first measured, on the same kind of machine, busy with "
    "other things:",
    "",
    "| | before | after | how |",
    "|---|---|---|---|",
    "| the training | 10 to 20 s | 4 to 5 s "
    "| no more threads than its share of the processors can feed |",
    "| Python and Prefect start, from a deployment | 3.0 s | 2.0 s "
    "| a worker starts one Python and not two, and imports less |",
    "| provision | 1.2 s | 0.6 s "
    "| the tool that makes a software TPM waited for process 1 to reap another |",
    "",
    "The largest one left is the image: Podman unpacks 730 MB in 16,000 files into a store that is "
    "new in each run, on purpose: what runs is what was measured. In memory that takes it 6 s. The "
    "rest is the disk: this one's file system is slow at making files (`tar` alone takes 12 s for "
    "the same, and 1 s in a fresh file system on the same disk). It is paid once a run, whatever "
    "the training.",
    "",
])  # fmt: skip


def once() -> dict[str, float]:
    """Run the demo; return the seconds of each step."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    wall = time.perf_counter() - begin
    steps = {name: float(seconds) for name, seconds in STEP.findall(done.stderr)}
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "aicert", "--version"], check=True, capture_output=True)
    rest = 2 * (time.perf_counter() - begin)
    return {START: wall - sum(steps.values()) - rest, **steps, REST: rest, "all": wall}


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="measured runs")
    options = parser.parse_args()
    loads, runs = [], []
    for turn in range(options.runs + 1):
        found = once()
        loads.append(os.getloadavg()[0])
        print(turn, f"{found['all']:.1f} s", file=sys.stderr)
        if turn:  # the first warms up
            runs.append(found)
    lines = [
        "# Where the time of `make demo` goes",
        "",
        f"`python -m benchmarks.demo`, as root, measured on {datetime.now(UTC):%Y-%m-%d} on "
        f"{os.cpu_count()} cores; load average {min(loads):.1f} to {max(loads):.1f}, of which the "
        f"demo itself is about one. {options.runs} runs with everything installed and the image "
        "built: medians in seconds, and the range.",
        "",
        "| | seconds |",
        "|---|---|",
    ]
    for name in runs[0]:
        values = [found[name] for found in runs]
        spread = f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
        lines.append(f"| {name} | {spread} |")
    lines += [
        "",
        "The first time on a new machine comes on top: system packages and the virtual environment "
        "(79 s when measured, the network's speed decides), and the example's image (55 s).",
    ]
    RESULTS.write_text("\n".join(lines) + "\n" + CUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
