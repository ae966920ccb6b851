"""Training: the same loops, with the same files of the same image, in the pipeline and bare.

In the pipeline: a machine is started, and the agent does all steps of a run. Bare: the image's
files are unpacked into a folder, and the same program runs there by `chroot`, with no container, no
limits, no agent and no TPM. Each turn does both; the clock is read inside the training. The example
trains a small network, three times over; the loader-heavy one reads thousands of small files in
worker processes. Single turns of the latter differ by a tenth: its target is met within noise, that
is where the interval in which the ratio lies reaches it. What the pipeline adds outside the loop is
listed step by step.

The machine must be quiet. A container is a control group, and has the same share of the processor
as any one program beside it, however many those are: they take more from it than from a loop that
is bare. The processor's time of the same loops stands beside the clock as a check; that grows too,
though less, as programs that take turns empty each other's caches.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aicert.agent import machine, spec
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.agent.run import Run
from benchmarks.harness import ROOT, Figure, Options, Result, ratio, take_turns, write_small
from examples.images import build

STEPS = ("provision", *Run.STEPS, "destroy")
WORKLOAD = Path(__file__).parent / "workloads" / "timed.py"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "OMP_NUM_THREADS": "1",
    "AICERT_INPUTS": "/inputs",
    "AICERT_OUTPUTS": "/outputs",
    "AICERT_SEED": "1",
}


def measure(options: Options) -> Result:
    """Measure both loops, in turns."""
    folder = options.folder
    image = build.build()
    job = folder / "job"
    write_small(job / "files", 500 if options.quick else 5_000, 16 << 10)
    (job / "code").mkdir()
    for path in (ROOT / "examples" / "digits" / "train.py", WORKLOAD):
        shutil.copy(path, job / "code")
    shutil.copytree(ROOT / "examples" / "digits" / "data", job / "data")
    loops = {"TRAININGS": "1", "LOADER_EPOCHS": "1"}
    if not options.quick:
        loops = {"TRAININGS": "3", "LOADER_EPOCHS": "8"}
    (job / "spec.json").write_text(json.dumps({
        "name": "timed",
        "image": f"oci:{image}",
        "command": ["python3", "/inputs/code/timed.py"],
        "environment": {"OMP_NUM_THREADS": "1", **loops},
        "inputs": [{"name": name, "uri": f"file:{name}"} for name in ("code", "data", "files")],
        "limits": {"memory": "2GiB", "cpus": os.cpu_count(), "time": "10min", "shm": "256MiB"},
        "seed": 1,
    }))  # fmt: skip
    bare = _unpack(image, folder / "bare")
    for name in ("code", "data", "files"):
        shutil.copytree(job / name, bare / "inputs" / name)
    config = MachineConfig(state=folder / "state")

    found = take_turns(
        {"pipeline": lambda: _in_pipeline(config, job), "bare": lambda: _bare(bare, loops)},
        options.turns(10),
    )
    pipeline, alone = found["pipeline"], found["bare"]

    def column(rows: list[dict[str, float]], name: str) -> tuple[float, ...]:
        return tuple(row[name] for row in rows)

    figures = []
    for name, what in (("loop", "the example's loop"), ("loader", "the loader-heavy loop")):
        for measured, label in (("wall", ""), ("processor", ", processor's time")):
            ours, theirs = (
                column(pipeline, f"{name} {measured}"),
                column(alone, f"{name} {measured}"),
            )
            whole = Figure("", ours).median / Figure("", theirs).median
            most = 1.01 if (name, measured) == ("loop", "wall") else None
            figures += [
                Figure(f"{what}{label}, in the pipeline", ours, "s"),
                Figure(f"{what}{label}, bare", theirs, "s"),
                ratio(f"{what}{label}: pipeline of bare", ours, theirs),
                Figure(f"{what}{label}: ratio of the medians", (whole,), "", most=most),
            ]
            if (name, measured) == ("loader", "wall"):
                low, high = _interval(ours, theirs)
                words = f"{what}: that ratio, 95 % interval, "
                figures += [
                    Figure(f"{words}lower end", (low,), "", most=1.01),
                    Figure(f"{words}upper end", (high,)),
                ]
        for place, rows in (("in the pipeline", pipeline), ("bare", alone)):
            figures += [
                Figure(f"{what}, in the kernel, {place}", column(rows, f"{name} system"), "s"),
                Figure(f"{what}, page faults, {place}", column(rows, f"{name} faults")),
            ]
    figures.append(ratio("importing PyTorch: pipeline of bare", column(pipeline, "import"),
                         column(alone, "import")))  # fmt: skip
    for step in STEPS:
        values = tuple(value * 1000 for value in column(pipeline, step))
        what = "train, less the training's own process" if step == "train" else step
        figures.append(Figure(f"the step {what}", values, "ms"))
    return Result("Training", (__doc__ or "").partition("\n\n")[2].strip(), tuple(figures))


def _interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ratio of two medians."""
    chance = random.Random(0)
    ratios = sorted(
        statistics.median(chance.choices(first, k=len(first)))
        / statistics.median(chance.choices(second, k=len(second)))
        for _ in range(10_000)
    )
    return ratios[249], ratios[-250]


def _unpack(image: Path, into: Path) -> Path:
    """Unpack the one layer of our example's image."""
    index = json.loads((image / "index.json").read_text())
    blobs = image / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    for layer in manifest["layers"]:
        with tarfile.open(blobs / layer["digest"][7:]) as archive:
            archive.extractall(into, filter="fully_trusted")
    for name in ("inputs", "outputs", "dev", "proc"):
        (into / name).mkdir(exist_ok=True)
    return into


def _bare(root: Path, loops: dict[str, str]) -> dict[str, float]:
    # The namespace is for the mounts alone: they end with the program.
    script = (
        'mount --bind /dev "$0/dev" && mount -t tmpfs none "$0/dev/shm" && '
        'mount -t proc none "$0/proc" && mount -t tmpfs none "$0/tmp" && '
        'exec chroot "$0" python3 /inputs/code/timed.py'
    )
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, root],
        env={**ENVIRONMENT, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **loops},
        check=True,
        capture_output=True,
    )
    return _seconds((root / "outputs" / "seconds.json").read_text())


def _in_pipeline(config: MachineConfig, job: Path) -> dict[str, float]:
    checked = spec.load(job / "spec.json")
    run = str(uuid.uuid4())
    took: dict[str, float] = {}
    start = time.perf_counter()
    handle = machine.start(config, "bench")
    took["provision"] = time.perf_counter() - start
    try:
        seconds = _steps(handle, run, {"spec": checked.to_json(), "base": str(job)}, took)
    finally:
        start = time.perf_counter()
        machine.destroy(handle)
        took["destroy"] = time.perf_counter() - start
    took["train"] -= seconds["process"]
    return {**seconds, **took}


def _steps(
    handle: MachineHandle, run: str, job: dict[str, Any], took: dict[str, float]
) -> dict[str, float]:
    with machine.attach(handle) as client:
        for step in Run.STEPS:
            start = time.perf_counter()
            client.step(run, step, job if step == "job" else None, lambda _: None)
            took[step] = time.perf_counter() - start
        text = b"".join(client.open_file(run, "outputs", "seconds.json"))
    return _seconds(text)


def _seconds(text: str | bytes) -> dict[str, float]:
    """Read what the workload has written, and add up the processor's time."""
    found: dict[str, float] = json.loads(text)
    sums = {f"{n} processor": found[f"{n} user"] + found[f"{n} system"] for n in ("loop", "loader")}
    return {**found, **sums}
