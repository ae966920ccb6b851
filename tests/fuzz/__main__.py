"""Fuzz the parsers: `python -m tests.fuzz --runs 1000000 --jobs 4 [TARGET …]`, or `make fuzz`.

Each target's inputs are shared out over the jobs, one process each. An input that does what none
may is written to `tests/fuzz/found/`; once the bug is fixed it belongs into
`tests/fuzz/seeds/TARGET/`.
"""

import argparse
import hashlib
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from aicert.errors import Error
from tests.fuzz import engine
from tests.fuzz.targets import HERE, TARGETS

FOUND = HERE / "found"
MEMORY = 4 << 30
"""What a process may take in all; what an input may is in `engine`."""


def main() -> int:
    """Run the targets; return 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each target")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--engine", choices=["own", "atheris"], default="own")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.worker:
        (name,) = options.targets
        return _work(name, options.runs, options.seed, options.engine)
    return _share_out(options)


def _share_out(options: argparse.Namespace) -> int:
    names = options.targets or list(TARGETS)
    shares = [
        (name, options.runs // options.jobs, options.seed + number)
        for name in names
        for number in range(options.jobs)
    ]
    print(f"seed {options.seed}, {options.runs:,} inputs for each of {len(names)} targets")
    reports = {name: engine.Report() for name in names}
    left = dict.fromkeys(names, options.jobs)
    status = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, done in pool.map(lambda share: _start(options.engine, *share), shares):
            report = reports[name]
            report.inputs += done["inputs"]
            report.slowest = max(report.slowest, done["slowest"])
            report.memory = max(report.memory, done["memory"])
            report.outcomes.update(done["outcomes"])
            report.findings += [engine.Finding(b"", what) for what in done["findings"]]
            left[name] -= 1
            if not left[name]:
                print("\n".join(engine.show(name, report)), flush=True)
                status |= bool(report.findings)
    return status


def _start(kind: str, name: str, runs: int, seed: int) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", name, "--worker",
               "--runs", str(runs), "--seed", str(seed), "--engine", kind]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    try:
        lines = done.stdout.decode().splitlines()
        return name, json.loads(lines[-1])
    except (ValueError, IndexError):
        what = f"the process ended with {done.returncode}\n{done.stderr.decode()[-3000:]}"
        return name, {"inputs": 0, "slowest": 0, "memory": 0, "outcomes": {}, "findings": [what]}


def _work(name: str, runs: int, seed: int, kind: str) -> int:
    warnings.simplefilter("ignore")  # of the X.509 library, about names; they are no findings
    fuzzer = engine.Fuzzer(TARGETS[name])
    if kind == "own":
        # Whatever grows without bound ends here, and not when the machine has no memory left.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if kind == "atheris":
        _atheris(fuzzer, runs, seed)
    else:
        fuzzer.mutants(runs, seed)
        if seed % 4 == 0:  # once is enough
            fuzzer.stress()
    _print(fuzzer)
    return 0


def _print(fuzzer: engine.Fuzzer) -> None:
    report = fuzzer.report
    for finding in report.findings:
        folder = FOUND / fuzzer.target.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha256(finding.data).hexdigest()[:16]).write_bytes(finding.data)
    print(
        json.dumps({
            "inputs": report.inputs,
            "slowest": report.slowest,
            "memory": report.memory,
            "outcomes": dict(report.outcomes),
            "findings": [finding.what for finding in report.findings],
        }),
        flush=True,
    )  # fmt: skip


def _atheris(fuzzer: engine.Fuzzer, runs: int, seed: int) -> None:
    """Let libFuzzer choose the inputs, by the coverage of aicert, with our mutators and its own."""
    atheris: Any = importlib.import_module("atheris")
    for module in [m for n, m in sys.modules.items() if n.startswith("aicert.")]:
        for value in list(vars(module).values()):
            _instrument(atheris, module.__name__, value)

    def one(data: bytes) -> None:
        # It is libFuzzer that mutates; it stops in the middle of the process, so report as we go.
        fuzzer.attempt(data)
        if fuzzer.report.inputs >= runs or fuzzer.report.findings:
            _print(fuzzer)
            sys.stdout.flush()
            __import__("os")._exit(0)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        try:
            return fuzzer.target.mutate(random, data)[:max_size]
        except Error:
            return data

    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(fuzzer.target.seeds()):
            (Path(corpus) / str(number)).write_bytes(data)
        arguments = [sys.argv[0], f"-seed={seed % 2**31 or 1}", "-max_len=65536", corpus]
        arguments += ["-timeout=20", "-rss_limit_mb=2048", "-len_control=0"]
        atheris.Setup(arguments, one, custom_mutator=mutate)
        atheris.Fuzz()


def _instrument(atheris: Any, module: str, value: Any) -> None:
    if getattr(value, "__module__", None) != module:
        return
    for function in vars(value).values() if isinstance(value, type) else (value,):
        function = getattr(function, "__func__", function)
        if hasattr(function, "__code__"):
            atheris.instrument_func(function)


if __name__ == "__main__":
    sys.exit(main())
