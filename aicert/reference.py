"""Reference values: what the PCRs of a machine that booted a published image must be.

A small document says, for one version of one image, what each boot PCR is: a value, the events that
may make it, zero, or (said openly) nothing. Its publisher signs it with an ordinary key that the
verifier's policy pins. `check_boot` holds the quoted PCRs and the firmware's event log against such
documents. Only two things decide: quoted values, and the digests in a log that replays to quoted
values. What a log says of its events (type, data) decides nothing.
"""

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from aicert import bootlog, canonical, dsse, keys
from aicert.errors import Error
from aicert.events import PCR_CHANNEL, PCR_JOB, PCR_OUTPUTS, format_time
from aicert.reader import Reader
from aicert.words import count

PAYLOAD_TYPE = "application/vnd.aicert.reference-values.v1+json"
MEDIA_TYPE = "application/vnd.aicert.signed-reference-values.v1+json"

MAX_BYTES = 1 << 20
MAX_SHAPES = 64
MAX_EVENTS = 1024

RUN_PCRS = frozenset({PCR_JOB, PCR_OUTPUTS, PCR_CHANNEL})
"""The PCRs that a run extends: a measured image leaves them at zero."""

BOOT_PCRS = frozenset(range(16)) - RUN_PCRS
"""The PCRs of the boot: a document says something about each."""

IMAGE_PCRS = frozenset({4, 9, 11, 12, 13})
"""The PCRs that tell one image from another: loader and kernel (4), command line and initrd (9),
the sections of a unified kernel image (11), what was handed to it from outside (12, 13). A document
that left one of them open would not name an image."""

FIRMWARE_PCRS = frozenset(range(8))
"""The PCRs that firmware extends, and logs, before an operating system runs."""

_ZERO = bytes(32)


class ReferenceValuesError(Error):
    """A document of reference values is malformed."""

    code = "reference.format"
    remedy = "get the document again from its publisher"


class ReferenceSignatureError(ReferenceValuesError):
    """A document was not signed by the key that stands beside it."""

    code = "reference.signature"


class ReferenceSignerError(ReferenceValuesError):
    """A document was signed by a key that is not pinned."""

    code = "reference.signer"


# -- the document --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Events:
    """What may be extended into one PCR: each digest must be allowed, each required one there."""

    allowed: frozenset[bytes]
    required: frozenset[bytes] = frozenset()

    @classmethod
    def read(cls, reader: Reader) -> "Events":
        """Read the JSON form."""
        allowed, required = (_digests(reader, name) for name in ("allowed", "required"))
        if not allowed or not required <= allowed:
            raise reader.fail(reader.where, "allows nothing, or requires what it does not allow")
        return cls(allowed, required)

    def to_json(self) -> dict[str, list[str]]:
        """Return the JSON form."""
        return {
            "allowed": sorted(digest.hex() for digest in self.allowed),
            "required": sorted(digest.hex() for digest in self.required),
        }


@dataclass(frozen=True, slots=True)
class Shape:
    """What is particular to one kind of machine (firmware, CPU model, memory).

    `unconstrained` are PCRs about which the document says nothing there, openly.
    """

    name: str
    pcrs: Mapping[int, bytes]
    events: Mapping[int, Events]
    unconstrained: frozenset[int]

    @classmethod
    def read(cls, reader: Reader) -> "Shape":
        """Read the JSON form."""
        return cls(
            name=_text(reader, "name"),
            pcrs=reader.read("pcrs", _read_values),
            events=reader.read("events", _read_events),
            unconstrained=_pcr_set(reader, "unconstrained"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "pcrs": _values_json(self.pcrs),
            "events": _events_json(self.events),
            "unconstrained": sorted(self.unconstrained),
        }


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """The reference values of one version of one image.

    `pcrs` (PCR to 32 bytes), `events` and `zero` hold on every machine; `shapes` are the kinds of
    machine for which the rest is known, one at least. Together they say exactly one thing about
    each PCR in `BOOT_PCRS`, and leave none of `IMAGE_PCRS` open.
    `ReferenceValues.parse(v.encode()) == v`.
    """

    image: str
    version: str
    issued_on: datetime
    pcrs: Mapping[int, bytes]
    events: Mapping[int, Events]
    zero: frozenset[int]
    shapes: tuple[Shape, ...]
    notes: str = ""

    def __post_init__(self) -> None:
        """Refuse a document that says two things about a PCR, or nothing."""
        if not self.shapes or len({shape.name for shape in self.shapes}) != len(self.shapes):
            raise ReferenceValuesError("reference values need shapes, each with its own name")
        for shape in self.shapes:
            self._check_complete(shape)

    def _check_complete(self, shape: Shape) -> None:
        said = [*self.pcrs, *self.events, *self.zero]
        said += [*shape.pcrs, *shape.events, *shape.unconstrained]
        where = f"shape {shape.name!r}"
        if twice := sorted({pcr for pcr in said if said.count(pcr) > 1}):
            raise ReferenceValuesError(f"{where}: more than one thing is said of PCRs", got=twice)
        if missing := sorted(BOOT_PCRS - set(said)):
            raise ReferenceValuesError(
                f"{where}: nothing is said of PCRs",
                got=missing,
                advice="give a value, events or zero; or list them under unconstrained",
            )
        if other := sorted(set(said) - BOOT_PCRS):
            raise ReferenceValuesError(
                f"{where}: these PCRs are not the boot's", got=other, expected=sorted(BOOT_PCRS)
            )
        if left_open := sorted(IMAGE_PCRS & shape.unconstrained):
            raise ReferenceValuesError(
                f"{where}: PCRs that tell images apart are left open",
                got=left_open,
                expected=f"values, events or zero for {sorted(IMAGE_PCRS)}",
            )

    @classmethod
    def parse(cls, payload: bytes) -> "ReferenceValues":
        """Parse the payload: canonical JSON.

        Raises:
            ReferenceValuesError, CanonicalError: it is not exactly a document of version 1.
        """
        value = canonical.loads_canonical(payload, max_bytes=MAX_BYTES, max_depth=8)
        reader = Reader(value, "referenceValues", ReferenceValuesError)
        reader.const("mediaType", PAYLOAD_TYPE)
        shapes = []
        for item in reader.children("shapes", max_items=MAX_SHAPES, min_items=1):
            shapes.append(Shape.read(item))
            item.done()
        image = reader.child("image")
        values = cls(
            image=_text(image, "name"),
            version=_text(image, "version"),
            issued_on=reader.time("issuedOn"),
            pcrs=reader.read("pcrs", _read_values),
            events=reader.read("events", _read_events),
            zero=_pcr_set(reader, "zero"),
            shapes=tuple(shapes),
            notes=reader.text("notes"),
        )
        image.done()
        reader.done()
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "mediaType": PAYLOAD_TYPE,
            "image": {"name": self.image, "version": self.version},
            "issuedOn": format_time(self.issued_on),
            "pcrs": _values_json(self.pcrs),
            "events": _events_json(self.events),
            "zero": sorted(self.zero),
            "shapes": [shape.to_json() for shape in self.shapes],
            "notes": self.notes,
        }

    def encode(self) -> bytes:
        """Return the payload: canonical JSON."""
        return canonical.dumps(self.to_json())


@dataclass(frozen=True, slots=True)
class Reference:
    """A signed document whose signature was checked.

    `digest` is the SHA-256 of the file; `signer` the SHA-256 of the signing key's
    SubjectPublicKeyInfo, both in hex. Whether that key is to be believed is for `require_signer`.
    """

    values: ReferenceValues
    digest: str
    signer: str

    def require_signer(self, signers: Collection[str]) -> None:
        """Refuse the document unless one of these keys (SHA-256 of the SPKI, hex) signed it.

        Raises:
            ReferenceSignerError: another key did.
        """
        if self.signer not in signers:
            raise ReferenceSignerError(
                f"the reference values of {self} were signed by a key that is not pinned",
                got=self.signer,
                expected=" or ".join(sorted(signers)) or "a key that a policy names; none does",
                advice="if you know this key to be the publisher's, and only then, name it in a "
                "policy, under reference.signers",
            )

    def __str__(self) -> str:
        """Return the image's name and version."""
        return f"{self.values.image} {self.values.version}"


def sign(values: ReferenceValues, key: keys.PrivateKey) -> bytes:
    """Return the signed document, as a file: canonical JSON.

    Raises:
        ReferenceValuesError: the document would be too large to be read again.
    """
    document = canonical.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "dsseEnvelope": keys.envelope(values.encode(), PAYLOAD_TYPE, key),
            "publicKey": base64.b64encode(keys.spki_of(key)).decode("ascii"),
        }
    )
    if len(document) > MAX_BYTES:
        raise ReferenceValuesError(
            "the document is too large", got=len(document), expected=MAX_BYTES
        )
    return document


def parse(data: bytes) -> Reference:
    """Parse a signed document and check its signature by the key that stands in it.

    Raises:
        ReferenceSignatureError: the signature is not that key's.
        Error: (ReferenceValuesError, CanonicalError, KeyFileError) the file is malformed.
    """
    top = Reader(
        canonical.loads_canonical(data, max_bytes=MAX_BYTES, max_depth=8),
        "reference",
        ReferenceValuesError,
    )
    top.const("mediaType", MEDIA_TYPE)
    key = keys.load_public_key(top.octets64("publicKey", max_bytes=keys.MAX_SPKI_BYTES))
    envelope = top.child("dsseEnvelope")
    envelope.const("payloadType", PAYLOAD_TYPE)
    payload = envelope.octets64("payload", max_bytes=MAX_BYTES)
    (signature,) = envelope.children("signatures", min_items=1, max_items=1)
    signer = signature.const("keyid", keys.fingerprint(key))
    signed = signature.octets64("sig", max_bytes=keys.MAX_SIGNATURE_BYTES)
    for reader in (signature, envelope, top):
        reader.done()
    try:
        keys.verify(key, signed, dsse.pae(payload, PAYLOAD_TYPE))
    except keys.KeySignatureError as error:
        raise ReferenceSignatureError(
            "the reference values were not signed by the key beside them",
            got=signer,
            advice="get the document again from its publisher",
        ) from error
    return Reference(ReferenceValues.parse(payload), hashlib.sha256(data).hexdigest(), signer)


def _text(reader: Reader, name: str) -> str:
    text = reader.text(name, max_length=200)
    if not text or not text.isprintable():
        raise reader.fail(f"{reader.where}.{name}", "is empty or not printable", got=text)
    return text


def _digests(reader: Reader, name: str) -> frozenset[bytes]:
    where = f"{reader.where}.{name}"
    items = reader.texts(name, max_items=MAX_EVENTS, max_length=64)
    if list(items) != sorted(set(items)):
        raise reader.fail(where, "is not sorted, or has one twice")
    try:
        digests = frozenset(bytes.fromhex(item) for item in items)
    except ValueError:
        raise reader.fail(where, "is not hex") from None
    if any(len(digest) != 32 for digest in digests) or {d.hex() for d in digests} != set(items):
        raise reader.fail(where, "is not SHA-256 digests in lower-case hex")
    return digests


def _pcr_set(reader: Reader, name: str) -> frozenset[int]:
    items = reader.array(name, max_items=16)
    if any(type(item) is not int for item in items) or items != sorted(set(items)):
        raise reader.fail(f"{reader.where}.{name}", "is not a sorted list of PCR numbers")
    return frozenset(items)


def _read_values(reader: Reader) -> dict[int, bytes]:
    return {pcr: reader.octets(str(pcr), 32) for pcr in range(24) if reader.has(str(pcr))}


def _read_events(reader: Reader) -> dict[int, Events]:
    return {pcr: reader.read(str(pcr), Events.read) for pcr in range(24) if reader.has(str(pcr))}


def _values_json(values: Mapping[int, bytes]) -> dict[str, str]:
    return {str(pcr): values[pcr].hex() for pcr in sorted(values)}


def _events_json(values: Mapping[int, Events]) -> dict[str, Any]:
    return {str(pcr): values[pcr].to_json() for pcr in sorted(values)}


# -- the check -----------------------------------------------------------------------------------

Kind = Literal["value", "zero", "events", "log", "open", "run"]
"""What a PCR is judged by: the document's value; zero, as it must be; the events that the document
lists; the boot event log alone, which constrains nothing; nothing at all (`open`); or, for the PCRs
that the run itself extends, zero at its start."""


@dataclass(frozen=True, slots=True)
class PcrResult:
    """What is known of one PCR at the start of the run; `text` says it to a person."""

    pcr: int
    kind: Kind
    text: str
    good: bool = True

    def __str__(self) -> str:
        """Return the PCR and what is known of it."""
        return f"PCR {self.pcr}: {self.text}"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one document's shape compares with a boot."""

    reference: Reference
    shape: str
    pcrs: tuple[PcrResult, ...]

    @property
    def problems(self) -> tuple[PcrResult, ...]:
        """The PCRs that are not as the document says."""
        return tuple(result for result in self.pcrs if not result.good)

    @property
    def matches(self) -> bool:
        """Tell whether every PCR is as the document says."""
        return not self.problems

    def __str__(self) -> str:
        """Return image, version and shape."""
        return f"{self.reference} on {self.shape}"


@dataclass(frozen=True, slots=True)
class LogCount:
    """How many events a log has, and for how many the digest is not that of the data beside it.

    For these the data is not authenticated at all (some digests are of what the data only
    describes, such as a program). The type of an event never is.
    """

    events: int
    data_not_authenticated: int

    def __str__(self) -> str:
        """Say it, for a person."""
        return (
            f"what the boot event log tells of its {count(self.events, 'event')}: no digest "
            f"covers their types, nor the data of {self.data_not_authenticated}; the digests alone "
            "decide"
        )


@dataclass(frozen=True, slots=True)
class BootResult:
    """What the boot measurements show. `measured` is true only for a complete match.

    `matches` are all the documents' shapes that match; `nearest` is the one that comes closest
    where none does. `pcrs` is the account of each PCR, by the first match or by the log alone.
    `log` says how much of a boot event log that replayed is authenticated; None without one.
    """

    log: LogCount | None
    matches: tuple[Finding, ...]
    nearest: Finding | None
    pcrs: tuple[PcrResult, ...]

    @property
    def log_replayed(self) -> bool:
        """Tell whether there was a boot event log, which then replayed to the quoted PCRs."""
        return self.log is not None

    @property
    def measured(self) -> bool:
        """Tell whether the machine booted an image that a document describes."""
        return bool(self.matches)


def check_boot(
    event_log: bytes | None, pcrs: Mapping[int, bytes], references: Iterable[Reference] = ()
) -> BootResult:
    """Hold the PCRs at the start of a run against the event log and the reference values.

    Args:
        event_log: the firmware's event log as the certificate carries it, or None.
        pcrs: the values that the *baseline* quote covers, PCRs 0 to 15 at least, authenticated.
        references: documents whose signers the caller believes.

    Returns:
        The result. Without a matching document nothing is measured, which is no error here.

    Raises:
        BootLogError: (or a subclass) there is a log, and it is malformed or does not replay to the
            quoted values of PCRs 0 to 7: then the evidence contradicts itself.
    """
    log = None if event_log is None else bootlog.parse(event_log)
    replayed = None if log is None else log.replay()
    if log is not None and replayed is not None:
        _check_firmware(log, replayed, pcrs)
    findings = [
        Finding(reference, shape.name, tuple(_compare(reference.values, shape, pcrs, log)))
        for reference in references
        for shape in reference.values.shapes
    ]
    matches = tuple(finding for finding in findings if finding.matches)
    nearest = None
    if findings and not matches:
        nearest = min(findings, key=lambda finding: len(finding.problems))
    account = matches[0].pcrs if matches else tuple(_explain(pcrs, replayed))
    count = None
    if log is not None:
        bare = sum(not event.digest_matches_data for event in log.events)
        count = LogCount(len(log.events), bare)
    return BootResult(count, matches, nearest, account)


def _check_firmware(
    log: bootlog.BootLog, replayed: Mapping[int, bytes], pcrs: Mapping[int, bytes]
) -> None:
    """Check that the log gives PCRs 0 to 7, also where it extends nothing into one."""
    for pcr in sorted(FIRMWARE_PCRS):
        start = log.startup_locality if pcr == 0 else 0
        expected = replayed.get(pcr, start.to_bytes(32, "big"))
        if pcrs[pcr] != expected:
            raise bootlog.BootReplayError(
                f"the boot event log does not account for PCR {pcr}",
                got=expected,
                expected=pcrs[pcr],
                advice="do not use this certificate: its log was cut or changed, or is of another "
                "boot",
            )


def _compare(
    values: ReferenceValues,
    shape: Shape,
    pcrs: Mapping[int, bytes],
    log: bootlog.BootLog | None,
) -> Iterable[PcrResult]:
    """Compare each PCR with what the document says of it on this shape."""
    exact = {**values.pcrs, **shape.pcrs}
    events = {**values.events, **shape.events}
    replayed = {} if log is None else log.replay()
    for pcr in range(16):
        value = pcrs[pcr]
        if pcr in exact:
            good = value == exact[pcr]
            text = "has the image's value" if good else _differs(value, exact[pcr])
            yield PcrResult(pcr, "value", text, good)
        elif pcr in events:
            problem = _check_events(events[pcr], pcr, value, log, replayed)
            yield PcrResult(pcr, "events", problem or "made of listed events", problem is None)
        elif pcr in RUN_PCRS:
            good = value == _ZERO
            text = "zero when the run began" if good else f"was not zero: {value.hex()}"
            yield PcrResult(pcr, "run", text, good)
        elif pcr in values.zero:
            good = value == _ZERO
            yield PcrResult(pcr, "zero", "zero" if good else _differs(value, _ZERO), good)
        elif replayed.get(pcr, value) != value:
            yield PcrResult(pcr, "open", "the boot event log gives another value", good=False)
        else:
            yield _by_log(pcr, value, replayed)


def _check_events(
    events: Events,
    pcr: int,
    value: bytes,
    log: bootlog.BootLog | None,
    replayed: Mapping[int, bytes],
) -> str | None:
    """Say what is wrong with the events behind a PCR, or None.

    The replay is what makes the log's digests true: no other sequence gives the quoted value.
    """
    if log is None:
        return "is judged by its events, and there is no boot event log"
    if replayed.get(pcr) != value:
        return "the boot event log does not give its value"
    digests = [event.digest for event in log.events if event.pcr == pcr]
    for number, digest in enumerate(digests):
        if digest not in events.allowed:
            return f"its event {number} is not one of the image's: {digest.hex()}"
    if missing := sorted(events.required - set(digests)):
        return f"a required event is missing: {missing[0].hex()}"
    return None


def _explain(
    pcrs: Mapping[int, bytes], replayed: Mapping[int, bytes] | None
) -> Iterable[PcrResult]:
    for pcr in range(16):
        if pcr in RUN_PCRS:
            zero = pcrs[pcr] == _ZERO
            text = "zero when the run began" if zero else "not zero when the run began"
            yield PcrResult(pcr, "run", text)
        else:
            yield _by_log(pcr, pcrs[pcr], replayed or {})


def _by_log(pcr: int, value: bytes, replayed: Mapping[int, bytes]) -> PcrResult:
    if replayed.get(pcr) == value:
        return PcrResult(pcr, "log", "explained by the boot event log only; any value would pass")
    return PcrResult(pcr, "open", "not constrained; any value would pass")


def _differs(got: bytes, expected: bytes) -> str:
    return f"is {got.hex()}, not {expected.hex() if any(expected) else 'zero'}"
