"""The measurement log: the ordered events of one run, their replay and their grammar.

Records have the shape of the TCG Canonical Event Log's JSON encoding (CEL 1.0, 5.3): recnum, pcr,
digests, content_type, content. Nothing in a record is free: recnum counts from zero, the content's
type decides the PCR, and the one digest is recomputed from the content.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aicert import canonical, events, manifest
from aicert.errors import Error
from aicert.events import Event, event_digest, read_event
from aicert.reader import Reader

E = TypeVar("E")

CONTENT_TYPE = "aicert"
MAX_RECORDS = events.MAX_INPUTS + 8


class LogError(Error):
    """The measurement log is not well formed."""

    code = "log.format"
    remedy = "do not use this certificate: the agent writes no such log"


class DigestError(LogError):
    """A record's digest is not that of its content."""

    code = "log.digest"


class GrammarError(LogError):
    """An event is missing, repeated, out of order, or contradicts another one."""

    code = "log.grammar"


@dataclass(frozen=True, slots=True)
class Record:
    """One event and the digest that was extended for it (32 bytes)."""

    event: Event
    digest: bytes

    @classmethod
    def of(cls, event: Event) -> "Record":
        """Make the record of an event."""
        return cls(event, event_digest(event))


@dataclass(frozen=True, slots=True)
class Run:
    """A complete run: the events of a log that has passed the grammar."""

    channel_key: events.ChannelKey | None
    job: events.Job
    inputs: tuple[events.Input, ...]
    image: events.Image
    start: events.TrainingStart
    end: events.TrainingEnd
    outputs: events.Outputs


def to_json(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the log in the encoding that evidence carries."""
    return [
        {
            "recnum": number,
            "pcr": record.event.pcr,
            "digests": [{"hashAlg": "sha256", "digest": record.digest.hex()}],
            "content_type": CONTENT_TYPE,
            "content": record.event.to_json(),
        }
        for number, record in enumerate(records)
    ]


def read(items: list[Any], where: str = "measurementLog") -> tuple[Record, ...]:
    """Read a log and check each record's digest against its content.

    Raises:
        LogError: a record is malformed, out of number, or names another PCR than its event's.
        DigestError: a digest is not that of the content.
        EventError: an event is not known.
    """
    if len(items) > MAX_RECORDS:
        raise LogError("the log has too many records", got=len(items), expected=MAX_RECORDS)
    records = []
    for number, item in enumerate(items):
        reader = Reader(item, f"{where}[{number}]", LogError)
        reader.const("recnum", number)
        reader.const("content_type", CONTENT_TYPE)
        content = reader.raw("content")
        event = read_event(content, f"{where}[{number}].content")
        # No other way to write the same event, or one run would have many certificates.
        if content != event.to_json():
            raise LogError(f"{where}[{number}].content: is not written as an event is")
        record = Record(event, bytes.fromhex(canonical.sha256(content)))
        reader.const("pcr", record.event.pcr)
        (digest,) = reader.children("digests", min_items=1, max_items=1)
        digest.const("hashAlg", "sha256")
        if (stated := digest.octets("digest", 32)) != record.digest:
            raise DigestError(
                f"{where}[{number}]: the digest is not that of the event",
                got=stated,
                expected=record.digest,
            )
        digest.done()
        reader.done()
        records.append(record)
    return tuple(records)


def replay(records: Iterable[Record], baseline: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the PCRs after the log, starting from `baseline` (32 bytes each).

    A PCR is extended as TPM 2.0 Part 1, 17.3 has it: new = SHA-256(old || digest).
    """
    pcrs = dict(baseline)
    for record in records:
        pcr = record.event.pcr
        pcrs[pcr] = hashlib.sha256(pcrs[pcr] + record.digest).digest()
    return pcrs


def parse_run(records: Iterable[Record]) -> Run:
    """Check the grammar of a complete log and return its parts.

    The order is [channelKey] job input* image trainingStart trainingEnd outputs, with one input
    for each that the spec names, in its order. What events repeat of the spec must agree with it.

    Raises:
        GrammarError: an event is missing, repeated, out of order, or contradicts another.
    """
    rest = [record.event for record in records]
    rest.reverse()  # so that the next event is popped from the end

    def take(kind: type[E], name: str) -> E:
        if not rest or not isinstance(rest[-1], kind):
            got = rest[-1].type if rest else "the end of the log"
            raise GrammarError("an event is missing or out of order", got=got, expected=name)
        return rest.pop()  # type: ignore[return-value]

    channel_key = None
    if rest and isinstance(rest[-1], events.ChannelKey):
        channel_key = take(events.ChannelKey, "channelKey")
    job = take(events.Job, "job")
    inputs = tuple(take(events.Input, f"input {item.name}") for item in job.spec.inputs)
    run = Run(
        channel_key=channel_key,
        job=job,
        inputs=inputs,
        image=take(events.Image, "image"),
        start=take(events.TrainingStart, "trainingStart"),
        end=take(events.TrainingEnd, "trainingEnd"),
        outputs=take(events.Outputs, "outputs"),
    )
    if rest:
        raise GrammarError(
            "the log goes on after its last event", got=rest[-1].type, expected="the end of the log"
        )
    _check_consistent(run)
    return run


def agent_variables(spec: events.Spec) -> dict[str, str]:
    """Return the variables that the agent itself gives to every training; no spec changes them.

    With HOME among the inputs, for one, Python would load code that the command does not show.
    """
    return {
        "HOME": "/tmp",  # noqa: S108 - a path in the container
        "AICERT_INPUTS": "/inputs",
        "AICERT_OUTPUTS": "/outputs",
        "AICERT_SEED": str(spec.seed),
        "PYTHONHASHSEED": str(spec.seed % 2**32),
    }


def _check_inputs(spec: events.Spec) -> None:
    """Check that inputs have names of their own, and folders of their own below /inputs.

    Anywhere else an input would hide a part of the image, or of another input.
    """
    if len({item.name for item in spec.inputs}) != len(spec.inputs):
        raise GrammarError("two inputs have one name", got=[item.name for item in spec.inputs])
    targets = [item.target for item in spec.inputs]
    try:
        if not all(target.startswith("/inputs/") for target in targets):
            raise manifest.PathError("a target does not lie below /inputs")
        folders = [manifest.check_path(target.removeprefix("/inputs/")) for target in targets]
        manifest.check_collisions(folders)
        if len(set(folders)) != len(folders):
            raise manifest.CollisionError("a target stands twice")
    except manifest.ManifestError as error:
        raise GrammarError(
            f"an input has no folder of its own below /inputs: {error.message}",
            got=targets,
            expected="folders below /inputs, none in another",
        ) from error


def _check_consistent(run: Run) -> None:
    """Refuse a log whose events contradict its own spec.

    The agent never writes one; a log that does was not written by it.
    """
    spec = run.job.spec

    def equal(what: str, got: object, expected: object) -> None:
        if got != expected:
            shown = ["none" if value is None else value for value in (got, expected)]
            raise GrammarError(f"{what} differs from the spec", got=shown[0], expected=shown[1])

    for asked, fetched in zip(spec.inputs, run.inputs, strict=True):
        equal("the name of an input", fetched.name, asked.name)
        equal(f"the URI of input {asked.name}", fetched.requested, asked.uri)
        equal(f"the expected digest of input {asked.name}", fetched.expected, asked.sha256)
        records = None if fetched.records is None else fetched.records.kind
        equal(f"the kind of records of input {asked.name}", records, asked.records)
        if asked.sha256 is not None:
            equal(f"the content of input {asked.name}", fetched.content_digest, asked.sha256)
    equal("the image", run.image.reference, spec.image)
    equal("the command", run.start.command, spec.command)
    equal("the limits", run.start.limits, spec.limits)
    given = run.start.environment
    for name, value in spec.environment.items():
        equal(f"the variable {name!a}", given.get(name), value)
    for name, value in agent_variables(spec).items():
        if given.get(name, value) != value:
            raise GrammarError(
                f"the variable {name} is not as the agent sets it", got=given[name], expected=value
            )
    _check_inputs(spec)
    if spec.evaluation is not None:
        linked = [item.name for item in spec.inputs if item.certificate is not None]
        if spec.evaluation.model not in linked:
            raise GrammarError(
                "what is evaluated is not an input with a certificate",
                got=spec.evaluation.model,
                expected=", ".join(linked) or "an input with a certificate",
            )
        if run.end.metrics is None:
            raise GrammarError("an evaluation reported no metrics", got="none", expected="metrics")
    equal("the exit status", run.end.exit_code, 0)
    mounts = [events.Mount(item.target, item.name, writable=False) for item in spec.inputs]
    outputs = events.Mount("/outputs", None, writable=True)
    equal("the mounts", run.start.mounts, (*mounts, outputs))
    if run.outputs.finished_on < run.job.started_on:
        raise GrammarError(
            "the run ended before it started",
            got=run.outputs.finished_on,
            expected=f"after {run.job.started_on}",
        )
