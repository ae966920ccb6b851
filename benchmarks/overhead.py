"""What a run costs beside its training: `python -m benchmarks.overhead`, as root.

A training that sleeps for a second and writes one small file, in an image that is there already,
on a server that is up: started from its deployment, from scheduled to completed, and with
`aicert run`, from the command's start to its end. In turns, so that what else goes on hits both
alike.

Prints a table of where the seconds go, and writes `results/overhead.md`.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from examples.images import tiny
from tests.support.installation import BIN, Installation, installed, run_id
from tests.support.pipeline import write_spec

RESULTS = Path(__file__).parent / "results" / "overhead.md"
TARGET = 5.0
TRAINING = 1.0
"""Seconds that the training itself takes; they are not counted."""

STEPS = (
    "provision", "job", "fetch", "image", "train", "outputs", "quote", "publish", "verify",
    "destroy",
)  # fmt: skip
PARTS = ("the worker's next look for work", "Python and Prefect start", *STEPS, "between the steps")
TOTAL = "outside the training"

Row = dict[str, float]


def _at(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def deployment(held: Installation, spec: Path, state: Path, store: Path) -> Row:
    """Run the deployment once; return the seconds of each part."""
    run = run_id(held.run(spec, state, store))
    ended = held.await_state(run, "COMPLETED", "FAILED", "CRASHED", seconds=180)
    if ended["type"] != "COMPLETED":
        raise SystemExit(f"the run failed: {ended['message']}")
    found = held.api(f"flow_run_states/?flow_run_id={run}")
    states = {state["name"]: _at(state["timestamp"]) for state in found}
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "limit": 100}
    tasks: list[dict[str, Any]] = held.api("task_runs/filter", wanted)
    steps = {task["name"]: _at(task["end_time"]) - _at(task["start_time"]) for task in tasks}
    return _row(
        states["Pending"] - states["Scheduled"],
        states["Running"] - states["Pending"],
        steps,
        states["Completed"] - states["Running"],
    )


def command(held: Installation, spec: Path, state: Path) -> Row:
    """Run `aicert run` once; return the seconds of each part."""
    environment = {**held.environment, "XDG_STATE_HOME": str(state.parent)}
    begin = time.perf_counter()
    done = Installation(held.home, held.port, environment).command(
        BIN / "aicert", "run", spec, "--json"
    )
    wall = time.perf_counter() - begin
    steps = {name: float(value) for name, value in re.findall(r"✓ (\w+) +([0-9.]+) s", done.stderr)}
    flow = json.loads(done.stdout)["totalMilliseconds"] / 1000
    return _row(0, wall - flow, steps, flow)


def _row(waited: float, started: float, steps: Row, flow: float) -> Row:
    steps = {name: steps[name] for name in STEPS}
    steps["train"] -= TRAINING
    row = dict(zip(PARTS[:2], (waited, started), strict=True)) | steps
    row[PARTS[-1]] = flow - TRAINING - sum(steps.values())
    return row | {TOTAL: sum(row.values())}


def _spread(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="measured runs each way")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="aicert-"))
    ways: dict[str, list[Row]] = {"from the deployment": [], "`aicert run`": []}
    loads = []
    try:
        tiny.build(home / "image")
        state = home / "aicert"  # where `aicert run` has it
        script = f"cat /inputs/data/* > /outputs/model.bin; sleep {TRAINING:.0f}"
        spec = write_spec(home / "job", script, image=f"oci:{home / 'image'}")
        with installed() as held:
            for turn in range(options.runs + 1):
                rows = deployment(held, spec, state, home / "store"), command(held, spec, state)
                loads.append(os.getloadavg()[0])
                print(turn, *(f"{row[TOTAL]:.2f} s" for row in rows), file=sys.stderr)
                for way, row in zip(ways.values(), rows, strict=True):
                    if turn:  # the first warms up
                        way.append(row)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    verdicts = []
    for name, measured in ways.items():
        middle = statistics.median(row[TOTAL] for row in measured)
        verdicts.append(f"{name} {middle:.1f} s ({'met' if middle <= TARGET else 'MISSED'})")
    text = "\n".join([
        "# What a run costs beside its training",
        "",
        f"`python -m benchmarks.overhead`, as root, measured on {datetime.now(UTC):%Y-%m-%d} on "
        f"{machine()}; load average {min(loads):.1f} to {max(loads):.1f}, of which the "
        f"runs themselves are about one. {options.runs} warm runs each way, in turns: medians in "
        f"seconds, and the range. The training's own second is not counted. The server uses "
        "SQLite, the worker looks for work twice a second, as `worker.env` has it.",
        "",
        f"Target: at most {TARGET:.0f} s. Found: {', '.join(verdicts)}.",
        "",
        f"| | {' | '.join(ways)} |",
        f"|---|{'---|' * len(ways)}",
        *(
            f"| {name} | {' | '.join(_spread(rows, name) for rows in ways.values())} |"
            for name in (*PARTS, TOTAL)
        ),
        "",
    ])  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
