"""Scale: how time and memory grow with the bytes and with the number of files.

Bytes: one tree of four sparse files in memory (`/dev/shm`), whose zeros are read and hashed as any
other content. Files: hard links to a thousand files of 4 KiB, so that a million of them fit into
memory. The last figures are sizes of certificates over inputs of so many bytes and files.
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from aicert import events
from aicert.manifest import MAX_FILES
from benchmarks.harness import GIB, Cold, Figure, Options, Result, cold, python, write_small
from benchmarks.hashing import OURS
from tests.support.forger import Forger, run_events

QUICK_GIB, FULL_GIB = (1, 2, 4), (1, 10, 100)
QUICK_FILES, FULL_FILES = (1_000, 10_000), (1_000, 10_000, 100_000, 1_000_000)


def measure(options: Options) -> Result:
    """Measure bytes, files, certificates."""
    sizes = QUICK_GIB if options.quick else FULL_GIB
    counts = QUICK_FILES if options.quick else FULL_FILES
    figures: list[Figure] = []
    rates: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        for size in sizes:
            tree = Path(name) / "sparse"
            tree.mkdir()
            for number in range(4):
                with (tree / f"{number}.bin").open("wb") as stream:
                    stream.truncate(size * GIB // 4)
            runs = _runs(tree, options, 1 if size > 50 else 3)
            shutil.rmtree(tree)
            rates.append(min(run.wall for run in runs) / size)
            figures += _figures(f"{size} GiB in four files", runs, most=95)
        figures.append(_growth(f"a GiB of {sizes[-1]} GiB: time, of one of {sizes[0]} GiB", rates))
        rates.clear()
        for count in counts:
            tree = Path(name) / "files"
            _link(tree, count)
            runs = _runs(tree, options, 1 if count == MAX_FILES else 3)
            shutil.rmtree(tree)
            rates.append(min(run.wall for run in runs) / count)
            figures += _figures(f"{count:,} files", runs, most=95)
        tree = Path(name) / "one"
        _link(tree, counts[-2], folder=counts[-2])
        figures += _figures(f"{counts[-2]:,} files in one folder", _runs(tree, options, 1), most=95)
        shutil.rmtree(tree)
        figures.append(
            _growth(f"a file of {counts[-1]:,}: time, of one of {counts[1]:,}", rates[1:])
        )
    for size, count in ((GIB, 1), (100 * GIB, 1_000), (10_000 * GIB, 1_000_000)):
        figures.append(
            Figure(f"certificate, input of {size // GIB:,} GiB in {count:,} files",
                   (_certificate(size, count),), "bytes")
        )  # fmt: skip
    note = (
        "A manifest is made in the order of its files and not held: in memory are the names in the "
        "folders that are being read, and files whose turn has not come, at most some ten "
        "thousands. Helper processes, where there are thousands of files, are not in the figures: "
        "the page on hashing has one's memory. The certificate holds one digest of a manifest."
    )
    about = (__doc__ or "").partition("\n\n")[2].strip()
    return Result("Scale", about, tuple(figures), notes=(note,))


def _runs(tree: Path, options: Options, usual: int) -> list[Cold]:
    return [cold(python(OURS, tree)) for _ in range(min(options.turns(usual), usual))]


def _figures(what: str, runs: list[Cold], *, most: float) -> list[Figure]:
    return [
        Figure(f"{what}: manifest", tuple(run.wall for run in runs), "s"),
        Figure(f"{what}: memory", tuple(run.memory for run in runs), "MiB", most=most),
    ]


def _growth(what: str, rates: list[float]) -> Figure:
    """The cost of a unit in the largest, of one in the smallest: linear growth keeps it at one."""
    return Figure(what, (rates[-1] / rates[0],), "×", most=1.2)


def _link(tree: Path, count: int, *, folder: int = 1_000) -> None:
    """Make a tree of so many files of 4 KiB, so many of them to a folder."""
    write_small(tree / "originals", min(count, 1_000))
    originals = sorted((tree / "originals" / "0000").iterdir())
    for number in range(count):
        place = f"{tree}/{number // folder:04}"
        if number % folder == 0:
            Path(place).mkdir()
        os.link(originals[number % len(originals)], f"{place}/{number:07}.bin")
    shutil.rmtree(tree / "originals")


def _certificate(size: int, count: int) -> int:
    made = [
        replace(event, size=size, files=count, kind="tree", sha256=None)
        if isinstance(event, events.Input) and event.kind == "tree"
        else event
        for event in run_events()
    ]
    return len(Forger(events=made).certificate().encode())
