"""Was a training reproduced? Two certified runs of one training, and what their outputs share.

Bit by bit this follows from the two certificates alone. Tensor by tensor it takes the weights of
both, and a stated tolerance. Either way anybody can do it again, so the statement that comes of it
is worth what the certificates are worth, and no signer has to be believed.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aicert import tensors
from aicert.errors import Error
from aicert.log import Run
from aicert.tensors import Tolerance
from aicert.verify import Verdict
from aicert.words import clean, count

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
METHOD = "urn:aicert:reproduction:v1"
TENSORS = ".safetensors"

Outcome = Literal["equal", "within", "different", "missing", "added", "ignored"]
Result = Literal["PASSED", "WARNED", "FAILED"]


class OtherTrainingError(Error):
    """The second run is not a run of the same training, so it can say nothing about the first."""

    code = "reproduction.other-training"
    remedy = "it says nothing about the first run; compare runs of one spec"


class SameRunError(Error):
    """Both certificates are of one run."""

    code = "reproduction.same-run"
    remedy = "name the certificate of the second run"


class NotReproducedError(Error):
    """The same training made other outputs."""

    code = "reproduction.different"
    remedy = "read which outputs differ; a tolerance may be what you want (docs/reproduce.md)"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of one output; `detail` says how far it is away."""

    path: str
    outcome: Outcome
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The comparison of two verified runs, by their certificates' digests."""

    original: str
    again: str
    subjects: tuple[tuple[str, str], ...]
    """The original's outputs: path and SHA-256, in hex."""
    files: tuple[FileOutcome, ...]
    tolerance: Tolerance | None

    @property
    def result(self) -> Result:
        """PASSED: bit by bit. WARNED: within the tolerance. FAILED: neither."""
        outcomes = {file.outcome for file in self.files} - {"ignored"}
        if outcomes == {"equal"}:
            return "PASSED"
        return "WARNED" if outcomes and outcomes <= {"equal", "within"} else "FAILED"

    def require(self) -> None:
        """Pass where the training was reproduced.

        Raises:
            NotReproducedError: it was not.
        """
        if self.result == "FAILED":
            bad = [f for f in self.files if f.outcome not in ("equal", "within", "ignored")]
            raise NotReproducedError(
                "the training was not reproduced",
                got="; ".join(line(file) for file in bad[:5]) or "every file was ignored",
                expected="the same bytes"
                if self.tolerance is None
                else f"the same bytes, or tensors within {_bounds(self.tolerance)}",
                advice="a training on several threads or a GPU may need a tolerance, and a file "
                "with times in it to be ignored",
            )


def compare(
    original: Verdict,
    again: Verdict,
    *,
    tolerance: Tolerance | None = None,
    folders: tuple[Path, Path] | None = None,
    ignore: Collection[str] = (),
) -> Reproduction:
    """Compare the outputs of two verified runs of one training.

    Args:
        original: the verdict on the first run.
        again: the verdict on the second.
        tolerance: compare safetensors files that differ by their tensors; else every bit counts.
        folders: with a tolerance, the outputs of either run, which were held against its
            certificate.
        ignore: paths of outputs that do not count; the result says so.

    Raises:
        SameRunError, OtherTrainingError: there is nothing to compare.
        TensorError: a file that would be compared by its tensors has none.
        OSError: a file cannot be read.
    """
    require_same(original.run, again.run)
    first = {file.path: file for file in original.run.outputs.manifest.files}
    second = {file.path: file for file in again.run.outputs.manifest.files}
    files = []
    for path in sorted(first.keys() | second.keys()):
        if path in ignore:
            files.append(FileOutcome(path, "ignored"))
        elif path not in second:
            files.append(FileOutcome(path, "missing"))
        elif path not in first:
            files.append(FileOutcome(path, "added"))
        elif first[path].sha256 == second[path].sha256:
            files.append(FileOutcome(path, "equal"))
        elif tolerance is None or folders is None or not path.endswith(TENSORS):
            files.append(FileOutcome(path, "different"))
        else:
            files.append(_by_tensors(path, folders, tolerance))
    return Reproduction(
        original.certificate_digest,
        again.certificate_digest,
        tuple((file.path, file.sha256) for file in first.values()),
        tuple(files),
        tolerance,
    )


def _by_tensors(path: str, folders: tuple[Path, Path], tolerance: Tolerance) -> FileOutcome:
    found = tensors.compare(folders[0] / path, folders[1] / path, tolerance)
    detail = f"{found.differing:,} of {found.values:,} values differ"
    if math.isfinite(found.largest):
        detail += f", by {found.largest:.3g} at most"
    if found.where is not None:
        detail += f"; out of tolerance: {clean(found.where, 100)}"
    return FileOutcome(path, "within" if found.within else "different", detail)


def require_same(original: Run, again: Run) -> None:
    """Pass where two runs are of one training: image, command, inputs, limits, seed.

    Where an input comes from is free; what it holds is not.

    Raises:
        SameRunError: they are one run.
        OtherTrainingError: they differ; the first difference is named.
    """
    if original.job.run == again.job.run:
        raise SameRunError("both certificates are of one run", got=original.job.run)
    wanted, found = _training(original), _training(again)
    for name in [*wanted, *(found.keys() - wanted.keys())]:
        if wanted.get(name) != found.get(name):
            raise OtherTrainingError(
                f"the second run is another training: {name} differs",
                got=str(found.get(name))[:300],
                expected=str(wanted.get(name))[:300],
            )


def _training(run: Run) -> dict[str, Any]:
    """Return what a training is, by name: all that could change what comes out of it."""
    spec = run.job.spec.to_json()
    for name in ("name", "description", "image"):
        del spec[name]
    targets = {item["name"]: item["target"] for item in spec.pop("inputs")}
    return {
        "the image": run.image.config,
        "the targets of the inputs": targets,
        **{f"input {item.name}": item.manifest for item in run.inputs},
        **{f"the spec's {name}": value for name, value in spec.items()},
        "the container's environment": dict(run.start.environment),
        "the container's user": run.start.user,
        "the container's network": run.start.network,
        "the processor's architecture": run.image.architecture,
    }


def statement(found: Reproduction) -> dict[str, Any]:
    """Return the result as an in-toto statement with the predicate test-result v0.1.

    Its subjects are the original's outputs. `passedTests` names those that came out equal,
    `warnedTests` those within the tolerance.
    """
    names = ("equal",), ("within",), ("different", "missing", "added")
    passed, warned, failed = (
        [file.path for file in found.files if file.outcome in group] for group in names
    )
    how: dict[str, Any] = {
        "tolerance": None if found.tolerance is None else found.tolerance.to_json(),
        "ignored": [file.path for file in found.files if file.outcome == "ignored"],
        "details": {file.path: file.detail for file in found.files if file.detail is not None},
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": path, "digest": {"sha256": sha}} for path, sha in found.subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "result": found.result,
            "configuration": [
                {"name": "original", "digest": {"sha256": found.original}},
                {"name": "again", "digest": {"sha256": found.again}},
                {"name": "method", "uri": METHOD, "annotations": how},
            ],
            "passedTests": passed,
            "warnedTests": warned,
            "failedTests": failed,
        },
    }


def text(found: Reproduction) -> str:
    """Return the comparison for a person to read."""
    lines = [f"{headline(found)}", f"  original  {found.original}", f"  again     {found.again}"]
    return "\n".join([*lines, *(f"  {line(file)}" for file in found.files)])


def headline(found: Reproduction) -> str:
    """Return the result in one line."""
    compared = [file for file in found.files if file.outcome != "ignored"]
    left = len(found.files) - len(compared)
    rest = f" ({count(left, 'file')} ignored)" if left else ""
    if found.result == "PASSED":
        return f"REPRODUCED  bit by bit: {count(len(compared), 'file')}{rest}"
    if found.result == "WARNED":
        assert found.tolerance is not None
        return f"REPRODUCED  within {_bounds(found.tolerance)}, not bit by bit{rest}"
    return f"NOT REPRODUCED{rest}"


def line(file: FileOutcome) -> str:
    """Return one file's outcome in one line."""
    return f"{file.outcome:<9} {clean(file.path, 200)}" + (
        f": {file.detail}" if file.detail else ""
    )


def _bounds(tolerance: Tolerance) -> str:
    return f"{tolerance.absolute:g} + {tolerance.relative:g} * |value|"
