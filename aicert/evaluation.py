"""What an evaluation came to: which demands on its metrics were met.

An evaluation is a run whose spec names the input that it evaluates, and may set a bar for metrics.
The bar is part of the spec, so it was measured before anything ran. The metrics are what the
measured evaluation code reported.
"""

from dataclasses import dataclass
from typing import Any

from aicert import canonical
from aicert.events import Input, SpecInput
from aicert.log import Run

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Result:
    """The demands, in words, that were met and that were not; both are empty without a bar."""

    passed: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def word(self) -> str:
        """The result as in-toto's test-result says it; WARNED where nothing was demanded."""
        if self.failed:
            return "FAILED"
        return "PASSED" if self.passed else "WARNED"


def result(run: Run) -> Result | None:
    """Return what an evaluation came to, or None for a training."""
    if run.job.spec.evaluation is None:
        return None
    values = {} if run.end.metrics is None else run.end.metrics.values
    met: dict[bool, list[str]] = {True: [], False: []}
    for metric, bar in sorted(run.job.spec.evaluation.bar.items()):
        met[bar.passed(values.get(metric))].append(bar.says(metric))
    return Result(tuple(met[True]), tuple(met[False]))


def model(run: Run) -> tuple[SpecInput, Input]:
    """Return the input that an evaluation evaluates, as asked for and as fetched."""
    assert run.job.spec.evaluation is not None
    name = run.job.spec.evaluation.model
    pairs = zip(run.job.spec.inputs, run.inputs, strict=True)
    return next(pair for pair in pairs if pair[0].name == name)


def says(run: Run) -> str:
    """Return what an evaluation came to in one line, or nothing for a training."""
    found = result(run)
    if found is None:
        return ""
    values = {} if run.end.metrics is None else run.end.metrics.values
    some = [f"{name} {shown(got)}" for name, got in list(values.items())[:_SHOWN]]
    more = [f"{len(values) - _SHOWN} more"] if len(values) > _SHOWN else []
    verdict = {
        "PASSED": f"passed {', '.join(found.passed)}",
        "FAILED": f"FAILED {', '.join(found.failed)}",
        "WARNED": "no bar was set",
    }[found.word]
    return f"{run.job.spec.name}: {verdict}; {', '.join([*some, *more])}"


def to_json(run: Run) -> dict[str, Any] | None:
    """Return what an evaluation came to as JSON, or None for a training."""
    found = result(run)
    if found is None:
        return None
    asked, got = model(run)
    return {
        "of": {"name": got.name, "certificate": {"sha256": asked.certificate}},
        "result": found.word,
        "passed": list(found.passed),
        "failed": list(found.failed),
        "metrics": {} if run.end.metrics is None else dict(run.end.metrics.values),
    }


def shown(metric: object) -> str:
    """Return the value of a metric as JSON writes it, and a text as it is."""
    return metric if isinstance(metric, str) else canonical.dumps(metric).decode()
