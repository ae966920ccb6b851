"""Measure everything: `python -m benchmarks [SUITE ...] [--quick]`, as root, or `make bench`.

Each suite writes its page and its numbers into `results/`; `results/README.md` and the plot show
what all of them found last.
"""

import argparse
import importlib
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import RESULTS, Options, Result, as_installed, conditions
from benchmarks.plot import plot

SUITES = ("hashing", "verify", "fetch", "training", "tpm", "scale", "demo", "data")
"""In the order in which they run: what takes longest comes last.

(`load` and `overhead` are programs of their own.)
"""


def summary(results: dict[str, Result]) -> str:
    """The page over all suites: what has a target, and whether it is met."""
    lines = [
        "# What was measured",
        "",
        "Medians, with the range in brackets. A ratio (×) is that of two programs run in turns, "
        "turn by turn. The pages behind the links say what was run, on what, and beside what.",
        "",
        "![ratios, with their targets](ratios.svg)",
        "",
        "| suite | what | measured | target | |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        lines += [
            f"| [{name}]({name}.md) | {f.what} | {f} | {f.target} | {f.verdict} |"
            for f in result.figures
            if f.target
        ]
    return "\n".join([*lines, ""])


def summarize() -> None:
    """Write the page and the plot over what every suite found last."""
    results = {name: result for name in SUITES if (result := Result.load(name))}
    (RESULTS / "README.md").write_text(summary(results))
    figures = [figure for result in results.values() for figure in result.figures]
    (RESULTS / "ratios.svg").write_text(plot([f for f in figures if f.unit == "×"]))


def main() -> int:
    """Run the suites that are named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--runs", type=int, help="turns of each comparison")
    parser.add_argument("--folder", type=Path, help="where to put the data (needs 6 GB free)")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"unknown suites: {', '.join(sorted(unknown))}")
    as_installed()
    failed = []
    for name in options.suites or SUITES:
        print(f"== {name}", file=sys.stderr)
        start = time.monotonic()
        try:
            result = _measured(name, options)
        except (Exception, SystemExit):  # the other suites' figures are good without these
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"== {name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        print(result.markdown())
        if not options.quick:
            result.save(name)
            summarize()
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _measured(name: str, options: argparse.Namespace) -> Result:
    module = importlib.import_module(f"benchmarks.{name}")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        with conditions() as words:
            found: Result = module.measure(Options(Path(folder), options.quick, options.runs))
        return replace(found, conditions=words())


if __name__ == "__main__":
    sys.exit(main())
