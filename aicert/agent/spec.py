"""The training spec: what a builder asks for, checked in one place.

One model serves the YAML or JSON file that a builder writes, the form that Prefect draws for it,
and the agent, which checks again whatever it is sent. What is measured is the normalised form that
`Spec.to_json` gives, sizes in bytes and times in seconds; it is published with the certificate, so
whatever looks like a secret is refused (see `aicert.agent.spec_checks`).

Every mistake is named at once, each with its place, what was expected and what to do.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aicert import canonical, manifest, marked
from aicert.agent import spec_checks as checks
from aicert.agent.oci import split_tag
from aicert.agent.spec_checks import MAX_ITEMS, MAX_TEXT, NAME, Located, did_you_mean, wrong
from aicert.errors import Error

MAX_BYTES = 1 << 20
"""The largest spec, as a file and in its canonical form, in bytes."""

_MIB = 1 << 20
_MAX_PROBLEMS = 100


# -- errors --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is, what is wrong, and what would be right.

    `path` is the field (`inputs[1].uri`; empty for the whole spec). `line` and `column` count from
    1 and are None where the spec did not come from text. Nothing in it is a secret.
    """

    path: str
    what: str
    got: str | None = None
    expected: str | None = None
    advice: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        """Return the mistake on one line."""
        subject = f"{self.path}: {self.what}" if self.path else self.what
        return subject + checks.rest(self.got, self.expected, self.advice)


class SpecError(Error):
    """A training spec has mistakes; `problems` has all of them, in the order of the text."""

    code = "spec.invalid"

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """Name every problem of the spec that came from `source`."""
        self.source = source
        self.problems = tuple(
            sorted(problems, key=lambda p: (p.line or 0, p.column or 0))[:_MAX_PROBLEMS]
        )
        count = len(self.problems)
        lines = [f"{source}: {count} mistake{'s' if count != 1 else ''} in the training spec"]
        for problem in self.problems:
            place = f"{source}:{problem.line}:{problem.column}" if problem.line else source
            lines.append(f"  {place}: {problem}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the arguments, so that the error crosses processes whole."""
        return (type(self), (self.source, self.problems))

    def diagnostics(self) -> str:
        """Return the mistakes, one a line."""
        head, *rest = self.message.split("\n")
        return "\n".join([f"{head}  [{self.code}]", *rest])


class UnreadableError(Error):
    """The file of a training spec cannot be read."""

    code = "spec.unreadable"


# -- the models ----------------------------------------------------------------------------------


class _Model(BaseModel):
    """What the three models share: frozen, nothing unknown, every mistake in our own words."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_every_mistake(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, cls):
            return handler(data)
        problems: list[Located] = []
        model = None
        data = cls._complete(data)
        try:
            model = handler(data)
        except ValidationError as error:
            problems = list(cls._translate(error, data))
        problems += cls._across(data)
        if problems or model is None:
            raise checks.several(problems)
        return model

    @classmethod
    def _translate(cls, error: ValidationError, data: Any) -> Iterator[Located]:
        meant = set()
        found = error.errors(include_url=False, include_input=False)
        for item in found:
            if item["type"] == "extra_forbidden":
                key = str(item["loc"][-1])
                free = [name for name in cls.model_fields if name not in data]
                close = difflib.get_close_matches(key.lower(), free, 1, 0.6)
                close = close or [name for name in free if key and name.startswith(key.lower())][:1]
                meant.update(close)
                yield (
                    item["loc"],
                    wrong(
                        "is not a known field",
                        expected=None if close else f"one of {', '.join(cls.model_fields)}",
                        advice=did_you_mean(close[0]) if close else None,
                        on_key=True,
                    ),
                )
        for item in found:
            kind, where = item["type"], item["loc"]
            if kind == "spec":
                yield where, PydanticCustomError("spec", "{text}", item["ctx"])
            elif kind == "missing":
                # One mistake, not two: the field is there, under a name that is not quite right.
                if where[-1] not in meant:
                    description = cls.model_fields[str(where[-1])].description or ""
                    yield where, wrong("is missing", expected=_lower(description.split(". ")[0]))
            elif kind != "extra_forbidden":
                known = "a mapping of fields" if "model" in kind or "dict" in kind else item["msg"]
                got = data if not where else None
                yield where, wrong("has the wrong form", got=got, expected=known)

    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in what depends on another field."""
        return data

    @classmethod
    def _across(cls, data: Any) -> list[Located]:
        """Find what is wrong between fields that are each right."""
        del data
        return []


def _lower(text: str) -> str:
    text = text.rstrip(".")
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _size_type(low: int) -> tuple[BeforeValidator, WithJsonSchema]:
    schema = {
        "anyOf": [
            {"type": "string", "pattern": checks.SIZE_PATTERN},
            {"type": "integer", "minimum": low, "maximum": checks.MAX_SIZE},
        ]
    }
    return BeforeValidator(partial(checks.read_size, low=low)), WithJsonSchema(schema)


class Limits(_Model):
    """What the container may use. They are enforced, and measured with the spec."""

    memory: Annotated[int, *_size_type(16 * _MIB)] = Field(
        default=2 << 30,
        description="Memory, with /tmp and /dev/shm counted in. Bytes, or a text such as 512MB.",
        examples=["2GiB", "512MB", 4294967296],
        json_schema_extra={"default": "2GiB"},
    )
    cpus: Annotated[float, BeforeValidator(checks.check_cpus)] = Field(
        default=1.0,
        title="CPUs",
        description="Processor cores; fractions are allowed.",
        examples=[1.5, 8],
        json_schema_extra={"minimum": 0.1, "maximum": 1024},
    )
    gpus: Annotated[int, BeforeValidator(partial(checks.check_integer, low=0, high=64))] = Field(
        default=0,
        title="GPUs",
        description="GPUs. The run fails if the machine has fewer.",
        examples=[1],
        json_schema_extra={"minimum": 0, "maximum": 64},
    )
    pids: Annotated[int, BeforeValidator(partial(checks.check_integer, low=16, high=1 << 20))] = (
        Field(
            default=512,
            title="Processes",
            description="Processes and threads at one time.",
            examples=[512],
            json_schema_extra={"minimum": 16, "maximum": 1 << 20},
        )
    )
    time: Annotated[
        int,
        BeforeValidator(checks.read_duration),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "pattern": checks.DURATION_PATTERN},
                    {"type": "integer", "minimum": 1, "maximum": checks.MAX_TIME},
                ]
            }
        ),
    ] = Field(
        default=3600,
        title="Time",
        description="How long the training may take. Seconds, or a text such as 1h30m.",
        examples=["10min", "1h30m", "90s", 600],
        json_schema_extra={"default": "1h"},
    )
    tmp: Annotated[int, *_size_type(_MIB)] = Field(
        default=1 << 30,
        title="Size of /tmp",
        description="How much fits into /tmp, which is kept in memory.",
        examples=["1GiB"],
        json_schema_extra={"default": "1GiB"},
    )
    shm: Annotated[int, *_size_type(_MIB)] = Field(
        default=64 * _MIB,
        title="Size of /dev/shm",
        description="How much fits into /dev/shm, which data loaders with several processes need.",
        examples=["64MiB", "2GiB"],
        json_schema_extra={"default": "64MiB"},
    )

    def to_json(self) -> dict[str, Any]:
        """Return the normalised form: bytes and seconds as integers."""
        whole = self.cpus.is_integer()
        return {
            "memory": self.memory,
            "cpus": int(self.cpus) if whole else self.cpus,
            "gpus": self.gpus,
            "pids": self.pids,
            "time": self.time,
            "tmp": self.tmp,
            "shm": self.shm,
        }


def _shown_defaults(model: type[_Model]) -> dict[str, Any]:
    """Return a model's defaults as its schema shows them: sizes and times as people write them."""
    fields = model.model_json_schema()["properties"]
    return {name: field["default"] for name, field in fields.items()}


class Input(_Model):
    """A named tree of files that the training reads. It is mounted read-only at its target."""

    name: Annotated[str, BeforeValidator(checks.check_input_name)] = Field(
        description="A short name for it. a-z, 0-9, '.', '_' and '-'.",
        examples=["code", "data", "base-model"],
        json_schema_extra={"pattern": f"^{NAME}$"},
    )
    uri: Annotated[str, BeforeValidator(checks.check_uri)] = Field(
        title="URI",
        description="Where it comes from. A path after 'file:' starts at the spec's folder. "
        "No secrets: they travel apart.",
        examples=["file:data/train", "https://data.example/set.csv", "hf://datasets/owner/name"],
        json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT},
    )
    revision: Annotated[str | None, BeforeValidator(checks.check_revision)] = Field(
        default=None,
        description="Branch, tag, commit or version, where the source has them. "
        "What it stands for is resolved to an immutable revision, which is certified.",
        examples=["main", "v1.0"],
    )
    sha256: Annotated[str | None, BeforeValidator(checks.check_sha256)] = Field(
        default=None,
        title="SHA-256",
        description="The expected SHA-256 of the file, or the root digest of the tree "
        "(`aicert hash PATH` prints either). The run fails if something else comes.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    target: Annotated[str, BeforeValidator(checks.check_target)] = Field(
        default="",
        description="Where the training finds it. Empty: /inputs/ and its name.",
        examples=["/inputs/data"],
    )
    records: Annotated[
        Literal["lines", "jsonl", "parquet", "files"] | None, BeforeValidator(checks.check_records)
    ] = Field(
        default=None,
        description="Commit to its records, so that one can be shown to be in it, or not, without "
        "showing the rest: each line, each line of JSON, each row of Parquet, or each file is one.",
        examples=["jsonl"],
    )
    certificate: Annotated[str | None, BeforeValidator(checks.check_sha256)] = Field(
        default=None,
        description="Where it is itself certified: the digest of that certificate, or, if that "
        "was stamped later, of the one before (`aicert lineage` prints it).",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )

    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("target") not in (None, ""):
            return data
        name = data.get("name")
        usable = isinstance(name, str) and re.fullmatch(NAME, name) and not name.endswith(".")
        return {**data, "target": f"/inputs/{name}"} if usable else data

    @classmethod
    def _across(cls, data: Any) -> list[Located]:
        if not isinstance(data, Mapping):
            return []
        uri, revision = data.get("uri"), data.get("revision")
        try:
            error = checks.check_one_revision(
                checks.check_uri(uri), checks.check_revision(revision) or ""
            )
        except PydanticCustomError:
            return []  # named already
        return [(("revision",), error)] if error is not None and revision is not None else []

    def to_json(self) -> dict[str, Any]:
        """Return the normalised form; what was added to it later stands there where asked for."""
        asked = {
            "name": self.name,
            "uri": self.uri,
            "revision": self.revision,
            "sha256": self.sha256,
            "target": self.target,
        }
        later = {"records": self.records, "certificate": self.certificate}
        return asked | {name: value for name, value in later.items() if value is not None}


class Bar(_Model):
    """What a metric must reach: a least value, a greatest one, or both."""

    atLeast: Annotated[float | None, BeforeValidator(checks.check_bound)] = Field(  # noqa: N815
        default=None, title="At least", examples=[0.95]
    )
    atMost: Annotated[float | None, BeforeValidator(checks.check_bound)] = Field(  # noqa: N815
        default=None, title="At most", examples=[0.1]
    )

    @classmethod
    def _across(cls, data: Any) -> list[Located]:
        if isinstance(data, Mapping) and data.get("atLeast") is data.get("atMost") is None:
            return [((), wrong("demands nothing", expected="atLeast, atMost or both"))]
        if isinstance(data, Mapping):
            least, most = data.get("atLeast"), data.get("atMost")
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                error = wrong(
                    "cannot be reached",
                    got=f"at least {least} and at most {most}",
                    expected="atLeast not above atMost",
                )
                return [((), error)]
        return []

    def to_json(self) -> dict[str, Any]:
        """Return the normalised form: the bounds that are there."""
        bounds = {"atLeast": self.atLeast, "atMost": self.atMost}
        return {
            name: int(value) if value.is_integer() and abs(value) < 2**53 else value
            for name, value in bounds.items()
            if value is not None
        }


class Evaluation(_Model):
    """What makes a run an evaluation: which input is evaluated, and what it must reach."""

    model: Annotated[str, BeforeValidator(checks.check_input_name)] = Field(
        description="The name of the input that is evaluated; it must have a certificate. "
        "The flow `evaluate` adds it where the spec leaves it out.",
        examples=["model"],
        json_schema_extra={"pattern": f"^{NAME}$"},
    )
    bar: Annotated[dict[str, Bar], BeforeValidator(checks.check_bar)] = Field(
        default={},
        description="What metrics must reach to pass. It is measured before anything runs.",
        examples=[{"accuracy": {"atLeast": 0.95}}],
        json_schema_extra={"maxProperties": MAX_ITEMS},
    )

    def to_json(self) -> dict[str, Any]:
        """Return the normalised form."""
        return {
            "model": self.model,
            "bar": {name: bar.to_json() for name, bar in self.bar.items()},
        }


class Spec(_Model):
    """What to train: the container image, its command, the inputs, the outputs and the limits.

    All of it is measured, and published with the certificate.
    """

    name: Annotated[str, BeforeValidator(checks.check_name)] = Field(
        description="What is trained, in one short name. a-z, 0-9, '.', '_' and '-'.",
        examples=["sentiment-small"],
        json_schema_extra={"pattern": f"^{NAME}$"},
    )
    description: Annotated[
        str, BeforeValidator(partial(checks.check_open_text, lines=True, empty=True))
    ] = Field(
        default="",
        description="A few words for those who read the certificate.",
        examples=["A sentiment classifier for short English texts."],
        json_schema_extra={"maxLength": MAX_TEXT},
    )
    image: Annotated[str, BeforeValidator(checks.check_image)] = Field(
        description="The container image. One from a registry is named by its digest.",
        examples=[
            "oci:image",
            "docker://registry.example/team/train@sha256:" + "0123456789abcdef" * 4,
        ],
        json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT},
    )
    command: Annotated[
        tuple[
            Annotated[
                str,
                BeforeValidator(
                    partial(
                        checks.check_open_text,
                        limit=checks.MAX_ARGUMENT_BYTES,
                        lines=True,
                        empty=True,
                    )
                ),
            ],
            ...,
        ],
        BeforeValidator(checks.check_command),
    ] = Field(
        description="The program and its arguments, one item each. No shell takes them apart.",
        examples=[["python3", "/inputs/code/train.py", "--epochs", "3"]],
        json_schema_extra={"minItems": 1, "maxItems": checks.MAX_ARGUMENTS},
    )
    environment: Annotated[dict[str, str], BeforeValidator(checks.check_environment)] = Field(
        default={},
        description="Variables for the training. No secrets: they are published.",
        examples=[{"OMP_NUM_THREADS": "1"}],
        json_schema_extra={"maxProperties": MAX_ITEMS},
    )
    inputs: Annotated[
        tuple[Input, ...], BeforeValidator(partial(checks.check_list, high=MAX_ITEMS))
    ] = Field(
        default=(),
        description="The code, data and models that the training reads. "
        "It has no network and sees nothing else.",
        json_schema_extra={"maxItems": MAX_ITEMS},
    )
    outputs: Annotated[
        tuple[Annotated[str, BeforeValidator(checks.check_pattern)], ...],
        BeforeValidator(checks.check_outputs),
    ] = Field(
        default=("**",),
        description="Which of the files below /outputs are certified. '**' is all of them. "
        "Each pattern must match at least one file.",
        examples=[["model/**", "metrics.json"]],
        json_schema_extra={"minItems": 1, "maxItems": MAX_ITEMS},
    )
    metrics: Annotated[str | None, BeforeValidator(checks.check_metrics)] = Field(
        default="metrics.json",
        description="A JSON file below /outputs with numbers for the card. It may be absent.",
        examples=["metrics.json"],
    )
    limits: Limits = Field(
        default=Limits(),
        description="What the container may use.",
        json_schema_extra={"default": _shown_defaults(Limits)},
    )
    seed: Annotated[
        int, BeforeValidator(partial(checks.check_integer, low=0, high=checks.MAX_SEED))
    ] = Field(
        default=0,
        description="The training gets it as AICERT_SEED and PYTHONHASHSEED.",
        examples=[42],
        json_schema_extra={"minimum": 0, "maximum": checks.MAX_SEED},
    )
    evaluation: Evaluation | None = Field(
        default=None,
        description="Only for an evaluation of a certified model: which input, and what to reach.",
    )

    @classmethod
    def _across(cls, data: Any) -> list[Located]:
        items = data.get("inputs", ()) if isinstance(data, Mapping) else None
        if not isinstance(items, list | tuple) or len(items) > MAX_ITEMS:
            return []
        problems: list[Located] = []
        evaluation = data.get("evaluation")
        if isinstance(evaluation, Evaluation):
            evaluation = evaluation.to_json()
        evaluated = evaluation.get("model") if isinstance(evaluation, Mapping) else None
        if evaluation is not None and data.get("metrics", "metrics.json") is None:
            error = wrong("is needed for an evaluation", expected="the metrics' file")
            problems.append((("metrics",), error))
        names: dict[str, int] = {}
        targets: dict[str, int] = {}
        for index, item in enumerate(items):
            if isinstance(item, Input):
                item = item.to_json()
            item = Input._complete(item)
            if not isinstance(item, Mapping):
                continue
            name, target = item.get("name"), item.get("target")
            if name == evaluated and name is not None and item.get("certificate") is None:
                error = wrong(
                    "is missing, and the input is what is evaluated",
                    expected="the SHA-256 of the model's certificate",
                    advice="`aicert evaluate` adds model and certificate by itself",
                )
                problems.append((("inputs", index, "certificate"), error))
            if isinstance(name, str) and (first := names.setdefault(name, index)) != index:
                error = wrong(
                    f"is also the name of inputs[{first}]",
                    got=name,
                    advice=checks.did_you_mean(f"{name[:60]}-2"),
                )
                problems.append((("inputs", index, "name"), error))
                if target == f"/inputs/{name}":
                    continue  # the same mistake again
            if not isinstance(target, str):
                continue
            clash = next((other for other in targets if _overlap(target, other)), None)
            targets.setdefault(target, index)
            if clash is not None:
                error = wrong(
                    f"overlaps the target of inputs[{targets[clash]}]",
                    got=target,
                    expected=f"a folder that is neither {clash} nor inside or around it",
                )
                problems.append((("inputs", index, "target"), error))
        return problems

    def to_json(self) -> dict[str, Any]:
        """Return the normalised form: every field there, bytes and seconds as integers.

        `Spec.from_json(spec.to_json()) == spec` for every spec; the canonical bytes (RFC 8785) of
        what this returns are what is measured.
        """
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

    @property
    def open_model(self) -> str | None:
        """The name of the model that an evaluation leaves open, for the flow `evaluate` to add."""
        names = [item.name for item in self.inputs]
        if self.evaluation is None or self.evaluation.model in names:
            return None
        return self.evaluation.model

    def require_model(self) -> None:
        """Refuse an evaluation that leaves open what it evaluates.

        Raises:
            SpecError: there is no such input.
        """
        if self.open_model is not None:
            problem = Problem(
                "evaluation.model",
                "is not an input",
                got=self.open_model,
                advice="name the model as an input with its certificate, or evaluate with "
                "`aicert evaluate` (the flow `evaluate`), which adds it",
            )
            raise SpecError("spec", [problem])

    @classmethod
    def from_json(cls, value: object) -> "Spec":
        """Read the normalised form, and nothing but that.

        The agent measures what it is sent and not what it makes of it, so what other forms a
        person may write (`2GiB`, fields left out) are refused here.

        Raises:
            SpecError: it is not the normalised form of a good spec.
        """
        spec = check(value)
        try:
            same = canonical.dumps(value) == canonical.dumps(spec.to_json())
        except canonical.CanonicalError:
            same = False
        if not same:
            advice = "Send what Spec.to_json() returns"
            raise SpecError("spec", [Problem("", "is not in its normalised form", advice=advice)])
        spec.require_model()
        return spec

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON of the normalised form."""
        return canonical.sha256(self.to_json())


def _overlap(one: str, other: str) -> bool:
    one, other = manifest.fold(one), manifest.fold(other)
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


# -- reading -------------------------------------------------------------------------------------


def check(value: object, *, source: str = "spec") -> Spec:
    """Make a spec of data: parameters of a flow, or parsed JSON.

    Raises:
        SpecError: with every mistake.
    """
    return _check(value, source, marked.Marked())


def load(path: Path | str) -> Spec:
    """Read a spec from a YAML file, or a JSON file by its suffix.

    What it names by a relative path has to lie there, beside the file.

    Raises:
        UnreadableError: the file cannot be read.
        SpecError: with every mistake and its place.
    """
    try:
        # Non-blocking, so that a pipe in the place of the file holds nobody up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableError(
            f"the training spec cannot be read: {error.strerror}",
            got=path,
            advice="give the path of a YAML or JSON file",
        ) from error
    if len(data or b"") > MAX_BYTES:
        raise SpecError(str(path), [Problem("", "is too large", expected=f"{MAX_BYTES} bytes")])
    try:
        text = (data or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        problem = Problem("", "is not UTF-8", advice="Save it as UTF-8", line=line, column=column)
        raise SpecError(str(path), [problem]) from error
    return parse(text, source=str(path), folder=Path(path).absolute().parent)


def parse(text: str, *, source: str, folder: Path | None = None) -> Spec:
    """Read a spec from text: JSON where `source` ends in `.json`, else YAML.

    With a `folder`, what relative paths in it name has to lie there.

    Raises:
        SpecError: with every mistake and its place.
    """
    if len(text) > MAX_BYTES:
        raise SpecError(source, [Problem("", "is too large", expected=f"{MAX_BYTES} bytes")])
    if source.lower().endswith(".json"):
        found = marked.read_json(text)
    else:
        found = marked.read_yaml(text, number=_is_number)
    spec = _check(found.data, source, found)
    absent = list(_absent(spec, folder, found)) if folder is not None else []
    if absent:
        raise SpecError(source, absent)
    return spec


def _absent(spec: Spec, folder: Path, found: marked.Marked) -> Iterator[Problem]:
    """Find what a spec names by a relative path and is not there."""
    named: list[tuple[marked.Path, str, str]] = []
    scheme, _, rest = spec.image.partition(":")
    if scheme in ("oci", "oci-archive", "docker-archive"):
        named.append((("image",), spec.image, split_tag(rest)[0]))
    for index, item in enumerate(spec.inputs):
        scheme, _, rest = item.uri.partition(":")
        if scheme == "file":
            named.append((("inputs", index, "uri"), item.uri, unquote(rest)))
    for where, text, name in named:
        path = folder / name
        if name.startswith(("/", "~")) or os.path.lexists(path):
            continue
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, 1, 0.6)
        line, column = found.place(where) or (None, None)
        yield Problem(
            _dotted(where),
            "names what is not there",
            got=checks.shown(text),
            expected=f"a file or folder below {folder}, where the spec lies",
            advice=checks.did_you_mean(str(Path(name).with_name(close[0]))) if close else None,
            line=line,
            column=column,
        )


def _is_number(path: marked.Path) -> bool:
    return path[:1] in (("limits",), ("seed",)) or path[:2] == ("evaluation", "bar")


def _check(value: object, source: str, found: marked.Marked) -> Spec:
    problems = [
        Problem(
            path=_dotted(fault.path),
            what=fault.what,
            advice=fault.advice,
            line=fault.place[0],
            column=fault.place[1],
        )
        for fault in found.faults
    ]
    if found.faults and found.data is None:
        raise SpecError(source, problems)  # not even data
    try:
        spec = Spec.model_validate(value)
        size = len(canonical.dumps(spec.to_json()))
        if size > MAX_BYTES:
            problems.append(
                Problem("", "is too large", got=f"{size} bytes", expected=f"{MAX_BYTES} bytes")
            )
    except ValidationError as error:
        problems += [
            _problem(item, found) for item in error.errors(include_url=False, include_input=False)
        ]
    if problems:
        raise SpecError(source, problems)
    return spec


def _problem(item: Any, found: marked.Marked) -> Problem:
    """Turn an error of the model into a problem with its place."""
    where: marked.Path = item["loc"]
    context = item.get("ctx") or {}
    place = found.place(where, of_key=bool(context.get("on_key"))) or (None, None)
    return Problem(
        path=_dotted(where),
        what=context.get("what") or item["msg"],
        got=context.get("got"),
        expected=context.get("expected"),
        advice=context.get("advice"),
        line=place[0],
        column=place[1],
    )


def _dotted(path: marked.Path) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() and len(step) <= 80 else repr(step[:80])
            text += f".{checks.mask(shown)}" if text else checks.mask(shown)
    return text


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of what a builder may write, for editors and forms."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
