"""The events of a run: what is measured, and in which PCR.

An event is a JSON object. The SHA-256 of its RFC 8785 canonical bytes is what the TPM extends, and
its type alone decides the PCR. The types here are the whole vocabulary: a verifier that meets
another event, or another field in one, refuses the log.

Each class reads its JSON form strictly and writes it back equal: `E.read(e.to_json()) == e`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Self

from aicert import canonical, manifest
from aicert.errors import Error
from aicert.reader import Reader

PCR_JOB = 14
"""The PCR of the job, its inputs, the image and the training."""

PCR_OUTPUTS = 8
"""The PCR of the outputs."""

PCR_CHANNEL = 15
"""The PCR of the agent's channel key."""

RECORD_METHODS = {
    "lines": "lines/1",
    "jsonl": "jsonl/1",
    "parquet": "parquet/1",
    "files": "files/1",
}
"""The kinds of records that a spec may ask for, and the method by which each is committed to."""

MAX_RECORDS = 1 << 40
MAX_INPUTS = 256
MAX_OUTPUTS = 10_000
MAX_LAYERS = 256
MAX_BAR = 1e300
"""The largest bound on a metric, either way."""

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class EventError(Error):
    """An event is not one that we know, or a field in it is wrong."""

    code = "log.event"
    remedy = (
        "check that your aicert is not older than the certificate; if it is not, do not use "
        "the certificate: the agent measures no such event"
    )


def format_time(time: datetime) -> str:
    """Return the form in which events give a time: UTC, whole seconds, `Z` (RFC 3339)."""
    return time.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _named(reader: Reader, field: str) -> str:
    name = reader.text(field, max_length=63)
    if not _NAME.fullmatch(name):
        raise reader.fail(f"{reader.where}.{field}", "is not a name", got=name)
    return name


def _number(reader: Reader, field: str, low: float, high: float) -> int | float:
    value = reader.raw(field)
    if type(value) not in (int, float) or not low <= value <= high:
        raise reader.fail(f"{reader.where}.{field}", "is not a number in range", got=value)
    return value  # type: ignore[no-any-return]


def _git_commit(reader: Reader, field: str) -> str | None:
    value = reader.optional_text(field, max_length=64)
    if value is not None and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value):
        raise reader.fail(f"{reader.where}.{field}", "is not a git commit", got=value)
    return value


@dataclass(frozen=True, slots=True)
class SpecInput:
    """An input as the spec asks for it.

    `records` is the kind that is to be committed to; `certificate` names the certificate that the
    input is said to be certified by (see `aicert.links`). The JSON form has either field only where
    it is asked for.
    """

    name: str
    uri: str
    revision: str | None
    sha256: str | None
    target: str
    records: str | None = None
    certificate: str | None = None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        return cls(
            name=_named(reader, "name"),
            uri=reader.text("uri"),
            revision=reader.optional_text("revision", max_length=256),
            sha256=reader.optional_sha256("sha256"),
            target=reader.text("target", max_length=manifest.MAX_PATH),
            records=reader.choice("records", tuple(RECORD_METHODS))
            if reader.has("records")
            else None,
            certificate=reader.sha256("certificate") if reader.has("certificate") else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        optional = ("records", "certificate")
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {k: v for k, v in fields.items() if k not in optional or v is not None}


@dataclass(frozen=True, slots=True)
class Bar:
    """What a metric must reach to pass; at least one of the two bounds is there."""

    at_least: int | float | None
    at_most: int | float | None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        low, high = (
            _number(reader, name, -MAX_BAR, MAX_BAR) if reader.has(name) else None
            for name in ("atLeast", "atMost")
        )
        if low is None and high is None:
            raise reader.fail(reader.where, "has no bound")
        return cls(low, high)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        bounds = {"atLeast": self.at_least, "atMost": self.at_most}
        return {name: value for name, value in bounds.items() if value is not None}

    def passed(self, value: object) -> bool:
        """Tell whether a metric reaches it; what is not a number does not."""
        if type(value) not in (int, float):
            return False
        low, high = self.at_least, self.at_most
        return (low is None or value >= low) and (high is None or value <= high)  # type: ignore[operator]

    def says(self, metric: str) -> str:
        """Return it in words, as it is stated of a metric; numbers as canonical JSON has them."""
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(
            f"{metric} {sign} {canonical.dumps(value).decode()}"
            for sign, value in bounds
            if value is not None
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What makes a run an evaluation: the input that is evaluated, and what it must reach."""

    model: str
    bar: dict[str, Bar]

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        raw = reader.raw("bar")
        names = dict.fromkeys(raw) if type(raw) is dict else raw
        if problem := metrics_problem(names):
            raise reader.fail(f"{reader.where}.bar", problem)
        bars = Reader(raw, f"{reader.where}.bar", EventError)
        return cls(_named(reader, "model"), {name: bars.read(name, Bar.read) for name in names})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "model": self.model,
            "bar": {name: bar.to_json() for name, bar in self.bar.items()},
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """What the container may use: bytes, cores, devices, processes, seconds."""

    memory: int
    cpus: int | float
    gpus: int
    pids: int
    time: int
    tmp: int
    shm: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        return cls(
            memory=reader.integer("memory", low=1),
            cpus=_number(reader, "cpus", 0.01, 65536),
            gpus=reader.integer("gpus", high=65536),
            pids=reader.integer("pids", low=1),
            time=reader.integer("time", low=1),
            tmp=reader.integer("tmp"),
            shm=reader.integer("shm"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Spec:
    """The training spec in its normalised form: what the builder asked for.

    `evaluation` is None for a training; the JSON form has the field only in an evaluation.
    """

    name: str
    description: str
    image: str
    command: tuple[str, ...]
    environment: dict[str, str]
    inputs: tuple[SpecInput, ...]
    outputs: tuple[str, ...]
    metrics: str | None
    limits: Limits
    seed: int
    evaluation: Evaluation | None = None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        inputs = []
        for item in reader.children("inputs", max_items=MAX_INPUTS):
            inputs.append(SpecInput.read(item))
            item.done()
        return cls(
            name=_named(reader, "name"),
            description=reader.text("description"),
            image=reader.text("image"),
            command=reader.texts("command", max_items=1024, min_items=1, max_length=131072),
            environment=reader.text_map("environment", max_items=256, max_length=32768),
            inputs=tuple(inputs),
            outputs=reader.texts("outputs", max_items=256, min_items=1),
            metrics=reader.optional_text("metrics"),
            limits=reader.read("limits", Limits.read),
            seed=reader.integer("seed"),
            evaluation=reader.read("evaluation", Evaluation.read)
            if reader.has("evaluation")
            else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        fields = {
            "name": self.name,
            "description": self.description,
            "image": self.image,
            "command": list(self.command),
            "environment": dict(self.environment),
            "inputs": [item.to_json() for item in self.inputs],
            "outputs": list(self.outputs),
            "metrics": self.metrics,
            "limits": self.limits.to_json(),
            "seed": self.seed,
        }
        if self.evaluation is not None:
            fields["evaluation"] = self.evaluation.to_json()
        return fields


@dataclass(frozen=True, slots=True)
class ChannelKey:
    """The key of the agent's TLS channel, measured at boot on a remote machine."""

    type: ClassVar[str] = "channelKey"
    pcr: ClassVar[int] = PCR_CHANNEL

    spki: str

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        return cls(spki=reader.digest("spki"))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"type": self.type, "spki": {"sha256": self.spki}}


@dataclass(frozen=True, slots=True)
class Job:
    """The start of a run: what was asked for, and where the TPM stood.

    `nonce` is the baseline quote's qualifying data; `baseline` is the SHA-256 of its TPMS_ATTEST.
    """

    type: ClassVar[str] = "job"
    pcr: ClassVar[int] = PCR_JOB

    run: str
    nonce: str
    baseline: str
    agent_version: str
    started_on: datetime
    spec: Spec

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        reader.const("version", 1)
        run = reader.text("run", max_length=36)
        if not UUID.fullmatch(run):
            raise reader.fail(f"{reader.where}.run", "is not a UUID", got=run)
        agent = reader.child("agent")
        agent.const("name", "aicert")
        version = agent.text("version", max_length=64)
        agent.done()
        return cls(
            run=run,
            nonce=reader.octets("nonce", 32).hex(),
            baseline=reader.digest("baseline"),
            agent_version=version,
            started_on=reader.time("startedOn"),
            spec=reader.read("spec", Spec.read),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": self.type,
            "version": 1,
            "run": self.run,
            "nonce": self.nonce,
            "baseline": {"sha256": self.baseline},
            "agent": {"name": "aicert", "version": self.agent_version},
            "startedOn": format_time(self.started_on),
            "spec": self.spec.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Records:
    """The records of an input, as one digest (see `aicert.records`).

    `method` says what a record is and what its normal form; `root` is that of the Merkle tree over
    the `distinct` digests of the `count` records.
    """

    method: str
    root: str
    count: int
    distinct: int

    @property
    def kind(self) -> str:
        """What the spec asked for: the method without its version."""
        return self.method.partition("/")[0]

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        method = reader.choice("method", tuple(RECORD_METHODS.values()))
        root = reader.sha256("root")
        count = reader.integer("count", low=1, high=MAX_RECORDS)
        return cls(method, root, count, reader.integer("distinct", low=1, high=count))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Input:
    """An input as it was fetched: the immutable place it came from, and its content.

    `root` is the OMS v1 root of its files, `manifest` the digest that also covers their names;
    `sha256` is that of the file, where the input is one file.
    """

    type: ClassVar[str] = "input"
    pcr: ClassVar[int] = PCR_JOB

    name: str
    uri: str
    requested: str
    revision: str | None
    kind: str
    files: int
    size: int
    root: str
    manifest: str
    sha256: str | None
    git_commit: str | None
    expected: str | None
    records: Records | None = None

    @property
    def content_digest(self) -> str:
        """The digest that an expected SHA-256 is held against: the file's, or the tree's root."""
        return self.root if self.sha256 is None else self.sha256

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        event = cls(
            name=_named(reader, "name"),
            uri=reader.text("uri"),
            requested=reader.text("requested"),
            revision=reader.optional_text("revision", max_length=256),
            kind=reader.choice("kind", ("file", "tree")),
            files=reader.integer("files", high=manifest.MAX_FILES),
            size=reader.integer("size"),
            root=reader.sha256("root"),
            manifest=reader.digest("manifest"),
            sha256=reader.optional_sha256("sha256"),
            git_commit=_git_commit(reader, "gitCommit"),
            expected=reader.optional_sha256("expected"),
            records=reader.read("records", Records.read) if reader.has("records") else None,
        )
        if (event.kind == "file") != (event.sha256 is not None):
            raise reader.fail(reader.where, "a file, and only a file, has a SHA-256 of its own")
        return event

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; `records` stands in it only where the spec asked for them."""
        event: dict[str, Any] = {
            "type": self.type,
            "name": self.name,
            "uri": self.uri,
            "requested": self.requested,
            "revision": self.revision,
            "kind": self.kind,
            "files": self.files,
            "size": self.size,
            "root": self.root,
            "manifest": {"sha256": self.manifest},
            "sha256": self.sha256,
            "gitCommit": self.git_commit,
            "expected": self.expected,
        }
        return event if self.records is None else {**event, "records": self.records.to_json()}


@dataclass(frozen=True, slots=True)
class Image:
    """The container image: the digest of its config names it, whatever its compression."""

    type: ClassVar[str] = "image"
    pcr: ClassVar[int] = PCR_JOB

    reference: str
    config: str
    manifest: str
    layers: tuple[str, ...]
    architecture: str

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        layers = []
        for item in reader.children("layers", max_items=MAX_LAYERS):
            layers.append(item.sha256("sha256"))
            item.done()
        platform = reader.child("platform")
        platform.const("os", "linux")
        architecture = platform.text("architecture", max_length=32)
        platform.done()
        return cls(
            reference=reader.text("reference"),
            config=reader.digest("config"),
            manifest=reader.digest("manifest"),
            layers=tuple(layers),
            architecture=architecture,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": self.type,
            "reference": self.reference,
            "config": {"sha256": self.config},
            "manifest": {"sha256": self.manifest},
            "layers": [{"sha256": layer} for layer in self.layers],
            "platform": {"os": "linux", "architecture": self.architecture},
        }


@dataclass(frozen=True, slots=True)
class Mount:
    """Something mounted into the container; `input` is None for the outputs' folder."""

    target: str
    input: str | None
    writable: bool

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        return cls(
            target=reader.text("target", max_length=manifest.MAX_PATH),
            input=_named(reader, "input") if reader.has("input") else None,
            writable=reader.choice("mode", ("ro", "rw")) == "rw",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        mount = {"target": self.target, "mode": "rw" if self.writable else "ro"}
        return mount if self.input is None else {**mount, "input": self.input}


@dataclass(frozen=True, slots=True)
class TrainingStart:
    """How the container was started."""

    type: ClassVar[str] = "trainingStart"
    pcr: ClassVar[int] = PCR_JOB

    command: tuple[str, ...]
    environment: dict[str, str]
    user: str
    network: str
    mounts: tuple[Mount, ...]
    limits: Limits
    devices: tuple[str, ...]
    engine_name: str
    engine_version: str

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        mounts = []
        for item in reader.children("mounts", max_items=MAX_INPUTS + 1):
            mounts.append(Mount.read(item))
            item.done()
        engine = reader.child("engine")
        name = engine.choice("name", ("podman", "docker"))
        version = engine.text("version", max_length=64)
        engine.done()
        return cls(
            command=reader.texts("command", max_items=1024, min_items=1, max_length=131072),
            environment=reader.text_map("environment", max_items=512, max_length=32768),
            user=reader.text("user", max_length=64),
            network=reader.text("network", max_length=64),
            mounts=tuple(mounts),
            limits=reader.read("limits", Limits.read),
            devices=reader.texts("devices", max_items=256, max_length=256),
            engine_name=name,
            engine_version=version,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": self.type,
            "command": list(self.command),
            "environment": dict(self.environment),
            "user": self.user,
            "network": self.network,
            "mounts": [mount.to_json() for mount in self.mounts],
            "limits": self.limits.to_json(),
            "devices": list(self.devices),
            "engine": {"name": self.engine_name, "version": self.engine_version},
        }


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics file that the training wrote: what the training *says* of itself."""

    sha256: str
    values: dict[str, int | float | str | bool | None]

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        sha256 = reader.sha256("sha256")
        values = reader.raw("values")
        problem = metrics_problem(values)
        if problem is not None:
            raise reader.fail(f"{reader.where}.values", problem)
        return cls(sha256, dict(values))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"sha256": self.sha256, "values": dict(self.values)}


def metrics_problem(values: Any) -> str | None:
    """Say why `values` is not a flat object of at most 256 numbers, strings, booleans; or None."""
    if type(values) is not dict or len(values) > 256:
        return "is not an object of at most 256 metrics"
    for name, value in values.items():
        if len(name) > 128 or not name.isprintable():
            return f"holds a name that is too long or cannot be printed: {name[:40]!r}"
        if type(value) is str and len(value) > 1024:
            return f"holds a text of over 1024 characters: {name}"
        if type(value) not in (int, float, str, bool) and value is not None:
            return f"holds a value that is not a number, a text or a truth value: {name}"
    return None


@dataclass(frozen=True, slots=True)
class TrainingEnd:
    """How the container ended."""

    type: ClassVar[str] = "trainingEnd"
    pcr: ClassVar[int] = PCR_JOB

    exit_code: int
    duration_milliseconds: int
    log_sha256: str
    log_size: int
    metrics: Metrics | None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form."""
        log = reader.child("log")
        log_sha256, log_size = log.sha256("sha256"), log.integer("size")
        log.done()
        return cls(
            exit_code=reader.integer("exitCode", high=255),
            duration_milliseconds=reader.integer("durationMilliseconds"),
            log_sha256=log_sha256,
            log_size=log_size,
            metrics=None if reader.null("metrics") else reader.read("metrics", Metrics.read),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": self.type,
            "exitCode": self.exit_code,
            "durationMilliseconds": self.duration_milliseconds,
            "log": {"sha256": self.log_sha256, "size": self.log_size},
            "metrics": None if self.metrics is None else self.metrics.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the training made: every file, and the tree's digests. It ends the run."""

    type: ClassVar[str] = "outputs"
    pcr: ClassVar[int] = PCR_OUTPUTS

    finished_on: datetime
    manifest: manifest.Manifest

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the JSON form; its digests must be those of its files."""
        finished_on = reader.time("finishedOn")
        files = tuple(manifest.read_files(reader, MAX_OUTPUTS))
        if not files:
            raise reader.fail(f"{reader.where}.files", "is empty")
        tree = manifest.Manifest(files)
        if reader.sha256("root") != tree.root or reader.digest("manifest") != tree.digest:
            raise reader.fail(reader.where, "the digests are not those of the files")
        return cls(finished_on, tree)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": self.type,
            "finishedOn": format_time(self.finished_on),
            "files": [file.to_json() for file in self.manifest.files],
            "root": self.manifest.root,
            "manifest": {"sha256": self.manifest.digest},
        }


Event = ChannelKey | Job | Input | Image | TrainingStart | TrainingEnd | Outputs
"""Any event."""

_READERS: dict[str, Callable[[Reader], Event]] = {
    ChannelKey.type: ChannelKey.read,
    Job.type: Job.read,
    Input.type: Input.read,
    Image.type: Image.read,
    TrainingStart.type: TrainingStart.read,
    TrainingEnd.type: TrainingEnd.read,
    Outputs.type: Outputs.read,
}


def read_event(content: Any, where: str = "event") -> Event:
    """Read the JSON form of an event.

    Raises:
        EventError: the type is not known, or a field is missing, unknown or wrong.
        ManifestError: a path among the outputs is not acceptable.
    """
    reader = Reader(content, where, EventError)
    event = _READERS[reader.choice("type", tuple(_READERS))](reader)
    reader.done()
    return event


def event_digest(event: Event) -> bytes:
    """Return what the TPM extends for `event`: SHA-256 of its canonical JSON, 32 bytes."""
    return bytes.fromhex(canonical.sha256(event.to_json()))
