"""The fuzzing loop: what an input may do, and which inputs to try next.

There is no coverage here (`--engine atheris` has it): an input is worth keeping as a new seed where
it fails, or is accepted, in a way that no input has before.
"""

import gc
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from types import FrameType

from aicert.errors import Error
from tests.fuzz.targets import Target

MAX_SECONDS = 1.0
MAX_MEMORY = 100 << 20
"""Peak resident memory beyond what the process has once everything is imported, in bytes."""

_POOL = 400
_KNOWN = 10_000
_LARGEST = 1 << 16
"""Mutants of more bytes are tried and not kept, or they would grow with each generation."""


class HangError(BaseException):
    """An input is taking far too long. Not an Exception: nothing may swallow it."""


@dataclass
class Finding:
    """An input that did what none may."""

    data: bytes
    what: str


@dataclass
class Report:
    """What a run of one target found."""

    inputs: int = 0
    slowest: float = 0.0
    memory: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


def peak() -> int:
    """The peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Fuzzer:
    """Runs inputs through one target and remembers what they did."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.report = Report()
        self.base = peak()

    def attempt(self, data: bytes) -> str:
        """Run one input; return its outcome, and record what it may not do."""
        start = time.perf_counter()
        try:
            self.target.run(data)
            outcome = "accepted"
        except Error as error:
            outcome = f"{error.code} {re.sub(r'[0-9]+', '#', error.message)[:80]}"
            assert error.to_json() and error.diagnostics()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Also what is no Exception: a panic in a Rust library is not one.
            trace = "".join(traceback.format_exception(error)[-6:])
            outcome = f"{type(error).__name__}"
            self.report.findings.append(Finding(data, f"{type(error).__name__}: {error}\n{trace}"))
        seconds = time.perf_counter() - start
        self.report.inputs += 1
        self.report.outcomes[outcome.split(" ")[0]] += 1
        self.report.slowest = max(self.report.slowest, seconds)
        if seconds > MAX_SECONDS and self._slow_again(data):
            self.report.findings.append(Finding(data, f"took {seconds:.1f} s"))
        grown = peak() - self.base
        if grown > max(MAX_MEMORY, self.report.memory):
            self.report.findings.append(Finding(data, f"took {grown >> 20} MiB"))
        self.report.memory = max(self.report.memory, grown)
        return outcome

    def _slow_again(self, data: bytes) -> bool:
        """Tell whether the input was the reason, and not what else the machine or Python had to do.

        That is: other processes, other threads of this one, and garbage of earlier tests.
        """
        gc.collect()
        gc.freeze()
        start = time.thread_time()
        try:
            self.target.run(data)
        except Error:
            pass
        finally:
            seconds = time.thread_time() - start
            gc.unfreeze()
        return seconds > MAX_SECONDS

    def seeds(self) -> None:
        """Run the seeds, the inputs that once found a bug, and the large ones."""
        for data in self.target.seeds():
            self.attempt(data)
        for _, data in self.target.kept():
            self.attempt(data)

    def stress(self) -> None:
        """Run the large inputs."""
        inputs = self.target.stress()
        self.base = peak()  # the inputs themselves are not the parser's memory
        while inputs:
            self.attempt(inputs.pop())

    def mutants(self, runs: int, seed: int) -> None:
        """Run random mutants."""
        random = Random(seed)
        pool = self.target.seeds() + [data for _, data in self.target.kept()]
        first = len(pool)
        known: set[str] = set()
        for data in pool:
            known.add(self.attempt(data))
        self.base = peak()
        with _deadline():
            for _ in range(runs):
                data = self.target.mutate(random, random.choice(pool))
                signal.alarm(120)
                outcome = self.attempt(data)
                signal.alarm(0)
                if outcome not in known and len(data) <= _LARGEST and len(known) < _KNOWN:
                    known.add(outcome)
                    if len(pool) >= first + _POOL:
                        del pool[random.randrange(first, len(pool))]
                    pool.append(data)
                if len(self.report.findings) >= 20:
                    break
            signal.alarm(0)


def _deadline() -> "_Alarm":
    return _Alarm()


class _Alarm:
    def __enter__(self) -> None:
        self.old = signal.signal(signal.SIGALRM, self._ring)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.old)

    @staticmethod
    def _ring(_signal: int, _frame: FrameType | None) -> None:
        raise HangError


def show(name: str, report: Report) -> Iterator[str]:
    """A report as lines."""
    yield (
        f"{name:<14} {report.inputs:>9,} inputs, {len(report.outcomes):>3} codes, slowest "
        f"{report.slowest * 1000:7.1f} ms, memory +{report.memory >> 20} MiB, "
        f"{len(report.findings)} finding(s)"
    )
    for finding in report.findings[:3]:
        yield f"    {finding.what.strip()}"[:2000]


def fail(message: str) -> None:
    """Say it and stop."""
    print(message, file=sys.stderr)
    sys.exit(1)
