"""Time: what bounds the time of a run, and RFC 3161 timestamps over its envelope.

A run states its times by the machine's own clock. Two other clocks can bound them: that of the CA
that certified the attestation key (not before), and that of a timestamp authority (TSA) that saw
the signed statement (not after). Only an authority that the caller names bounds anything.

What is stamped is the canonical JSON of the certificate's `dsseEnvelope`: statement and signature.
The certificate carries the TimeStampToken (RFC 3161, 2.4.2), not the response around it, whose
status nobody signs. Reading tokens is the work of `rfc3161-client`, an extra; this module refuses
what that library would let pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from aicert import canonical
from aicert.certificate import MAX_TIMESTAMP_BYTES, Certificate
from aicert.errors import AbsentError, Error, install
from aicert.events import format_time
from aicert.log import Run, parse_run
from aicert.trust import fingerprint
from aicert.x509 import ChainInfo

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

Authority = x509.Certificate
"""The root certificate of a timestamp authority."""

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far the machine's clock may be ahead of a timestamp before the two contradict each other."""

MAX_CERTIFICATES = 8

# Object identifiers, as DER has them: each digest, and the signatures that go with it.
_RSA = bytes.fromhex("2a864886f70d010101")  # rsaEncryption: the hash is the digestAlgorithm
_SIGNATURES = {
    bytes.fromhex("60864801650304020" + digest): frozenset(
        {_RSA, bytes.fromhex("2a864886f70d01010" + rsa_), bytes.fromhex("2a8648ce3d04030" + ecdsa)}
    )
    for digest, rsa_, ecdsa in ("1b2", "2c3", "3d4")  # SHA-256, SHA-384, SHA-512
}
_IMPRINTS = frozenset(f"2.16.840.1.101.3.4.2.{n}" for n in "123")
_HASH_NAMES = frozenset({"sha256", "sha384", "sha512"})


class TimestampError(Error):
    """The timestamp cannot be believed."""

    code = "timestamp.invalid"
    remedy = "do not rely on this timestamp; ask the builder to have the certificate stamped again"


class TimestampFormatError(TimestampError):
    """The timestamp is not an RFC 3161 token of the kind that is accepted."""

    code = "timestamp.format"


class TimestampSubjectError(TimestampError):
    """The timestamp is over something else."""

    code = "timestamp.subject"


class TimestampAuthorityError(TimestampError):
    """No authority that was named made the timestamp."""

    code = "timestamp.authority"


class TimestampContradictionError(TimestampError):
    """The run says that it ended after it was stamped."""

    code = "timestamp.contradiction"


class TimestampExtraError(AbsentError):
    """The library that reads timestamps is not installed."""

    code = "timestamp.missing-extra"
    remedy = (
        f"{install('timestamp')}; or name no timestamp authority, and the timestamp is left "
        "unchecked"
    )


@dataclass(frozen=True, slots=True)
class Stamp:
    """A timestamp that was checked.

    `time` is the authority's (UTC), right to within `accuracy`; `authority` is the subject of the
    certificate that signed it; `roots` are the fingerprints (SHA-256, hex) of those of the named
    roots that it chains to.
    """

    time: datetime
    accuracy: timedelta
    authority: str
    roots: frozenset[str]

    @property
    def latest(self) -> datetime:
        """The time before which the stamped bytes existed for certain."""
        return self.time + self.accuracy


@dataclass(frozen=True, slots=True)
class TimeBounds:
    """What is known of the time of a run.

    `started` and `finished` are what the machine's clock said: claims. `key_not_before` and
    `key_not_after` are when the attestation key's whole chain is valid, by its CAs' clocks; it was
    valid at the stated times. `stamp` is a checked timestamp; `unchecked_stamp` is true where the
    certificate has one that was not checked, which bounds nothing.
    """

    started: datetime
    finished: datetime
    key_not_before: datetime
    key_not_after: datetime
    stamp: Stamp | None = None
    unchecked_stamp: bool = False

    @property
    def not_after(self) -> datetime | None:
        """The time by which the signed statement existed, or None where nothing shows it."""
        return None if self.stamp is None else self.stamp.latest

    @property
    def stamped_while_valid(self) -> bool:
        """Tell whether a timestamp shows that the signature is older than the end of its chain."""
        return self.stamp is not None and self.stamp.latest <= self.key_not_after

    def age(self, now: datetime) -> timedelta:
        """Return the least age that is consistent with what is known, at the time `now` (UTC).

        It is counted from the earlier of the stated end and the timestamp. It is no proof of youth:
        a machine whose clock was set forward makes a run look younger, as far as no timestamp
        contradicts it.
        """
        end = self.finished if self.stamp is None else min(self.finished, self.stamp.latest)
        return now - end

    def to_json(self) -> dict[str, str | None]:
        """Return what is known as JSON, for programs; times are UTC."""
        return {
            "startedByMachineClock": format_time(self.started),
            "finishedByMachineClock": format_time(self.finished),
            "keyChainNotBefore": format_time(self.key_not_before),
            "keyChainNotAfter": format_time(self.key_not_after),
            "timestamp": "unchecked"
            if self.unchecked_stamp
            else "none"
            if self.stamp is None
            else "good",
            "existedBefore": None if self.stamp is None else format_time(self.stamp.latest),
            "timestampAuthority": None if self.stamp is None else self.stamp.authority,
        }

    def proved(self) -> tuple[str, ...]:
        """Say what bounds the time, each in a sentence for a person."""
        if self.stamp is None:
            return ()
        return (
            f"the signed statement existed before {format_time(self.stamp.latest)}: "
            f"{self.stamp.authority!r} stamped it",
        )

    def not_proved(self) -> tuple[str, ...]:
        """Say what does not bound the time, each in a sentence for a person."""
        stated = format_time(self.started)
        lines = [
            f"when it ran: {stated} is what the machine's own clock said; the CA's clock said "
            f"{format_time(self.key_not_before)} when the key's chain became valid"
        ]
        if self.unchecked_stamp:
            lines.append(
                "that the timestamp in the certificate is good: it was not checked, because no "
                "timestamp authority was named, and it bounds nothing"
            )
        return tuple(lines)


def bounds(
    certificate: Certificate,
    run: Run,
    chain: ChainInfo,
    authorities: Sequence[Authority] = (),
) -> TimeBounds:
    """Return what bounds the time of a run, checking its timestamp where authorities are named.

    Args:
        certificate: the certificate, parsed and authenticated.
        run: its run.
        chain: its attestation key's chain, checked at the run's stated times.
        authorities: root certificates of the timestamp authorities that the caller believes.

    Raises:
        TimestampExtraError: there is a timestamp to check and the library is not installed.
        TimestampContradictionError: the run ended, by its own clock, after it was stamped.
        TimestampError: the timestamp is malformed, of something else, or of nobody named.
    """
    known = TimeBounds(
        started=run.job.started_on,
        finished=run.outputs.finished_on,
        key_not_before=chain.not_before,
        key_not_after=chain.not_after,
    )
    if certificate.timestamp is None:
        return known
    if not authorities:
        _check_token(certificate.timestamp)  # at least it is one, in form
        return replace(known, unchecked_stamp=True)
    stamp = verify(certificate.timestamp, message(certificate), authorities)
    _check_order(known.finished, stamp)
    return replace(known, stamp=stamp)


def _check_order(finished: datetime, stamp: Stamp) -> None:
    """Check that the run says that it ended before its statement was stamped."""
    if finished - stamp.latest > CLOCK_TOLERANCE:  # a difference of times never overflows
        raise TimestampContradictionError(
            "the run says that it ended after its statement was stamped",
            got=format_time(finished),
            expected=f"at the latest {format_time(stamp.latest)}",
            advice="do not rely on this run's times: the machine's clock was ahead",
        )


def message(certificate: Certificate) -> bytes:
    """Return the bytes that are stamped: the canonical JSON of the certificate's `dsseEnvelope`."""
    return canonical.dumps(certificate.to_json()["dsseEnvelope"])


def read(data: bytes, authorities: Sequence[Authority]) -> Stamp:
    """Check the timestamp of a certificate file, and it alone.

    Raises:
        TimestampError: there is none, or it cannot be believed.
        Error: (as `Certificate.parse`) the file is not a certificate.
    """
    certificate = Certificate.parse(data)
    if certificate.timestamp is None:
        raise TimestampError("the certificate has no timestamp")
    return verify(certificate.timestamp, message(certificate), authorities)


# -- asking for a timestamp ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A TimeStampReq in DER, to be sent to an authority as `application/timestamp-query`."""

    der: bytes
    nonce: int


def make_request(certificate: Certificate) -> Request:
    """Make the request for a timestamp over `certificate` (SHA-256, a nonce, certificates wanted).

    Raises:
        TimestampExtraError: the library is not installed.
    """
    library = _library()
    request = library.TimestampRequestBuilder(
        data=message(certificate), hash_algorithm=library.HashAlgorithm.SHA256
    ).build()
    return Request(request.as_bytes(), request.nonce)


def attach(
    certificate: Certificate,
    request: Request,
    response: bytes,
    authorities: Sequence[Authority],
) -> Certificate:
    """Return the certificate with the timestamp in an authority's answer (a TimeStampResp).

    The token is kept with its certificates in DER's order, which not every authority observes. The
    certificate that is returned is another file, so its digest is another (`aicert.stamping`).

    Raises:
        TimestampExtraError: the library is not installed.
        TimestampError: the answer is a refusal, or not one that a verifier would accept.
        LogError: the certificate's log is not that of a complete run.
    """
    token = _sorted(_token(response))
    if _decode(token).tst_info.nonce != request.nonce:
        raise TimestampError(
            "the authority answered another request", advice="ask for a timestamp again"
        )
    stamp = verify(token, message(certificate), authorities)
    _check_order(parse_run(certificate.records).outputs.finished_on, stamp)
    return replace(certificate, timestamp=token)


# -- checking one --------------------------------------------------------------------------------


def verify(token: bytes, stamped: bytes, authorities: Sequence[Authority]) -> Stamp:
    """Check a token over `stamped`, at the time that it states.

    Args:
        token: the TimeStampToken in DER.
        stamped: the bytes that it must be over.
        authorities: root certificates, one of which it must chain to.

    Raises:
        TimestampExtraError: the library is not installed.
        TimestampFormatError: it is malformed, or uses what is not accepted.
        TimestampSubjectError: it is over other bytes.
        TimestampAuthorityError: it was not made by an authority under one of the roots.
    """
    response = _decode(token)
    info = response.tst_info
    signer = _signer(response, authorities)
    if info.message_imprint.hash_algorithm.dotted_string not in _IMPRINTS:
        raise TimestampFormatError(
            "the timestamp uses a hash that is not accepted",
            got=info.message_imprint.hash_algorithm.dotted_string,
            expected="SHA-256, SHA-384 or SHA-512",
        )
    roots, problem = set(), "no root was named"
    library = _library()
    for root in authorities:
        verifier = library.VerifierBuilder().add_root_certificate(root).build()
        try:
            verifier.verify_message(response, stamped)
            roots.add(fingerprint(root))
        except (library.VerificationError, ValueError) as error:
            problem = str(error)
    if not roots and "Mismatch between messages" in problem:
        raise TimestampSubjectError(
            "the timestamp is over something else",
            got=info.message_imprint.message,
            advice="do not rely on it: it was made for another certificate",
        )
    if not roots:
        raise TimestampAuthorityError(
            "no timestamp authority that was named made this timestamp",
            got=f"{_subject(signer)} ({problem})",
            expected=", ".join(_subject(root) for root in authorities),
            advice="name the root certificate of the authority that the builder used, if you "
            "believe it; or name none, and the timestamp is left unchecked",
        )
    time, accuracy = info.gen_time.astimezone(UTC), _accuracy(info.accuracy)
    if time.year == 9999:  # adding the accuracy would pass the end of what a time can hold
        raise TimestampFormatError("the timestamp's time", got=time)
    return Stamp(time, accuracy, _subject(signer), frozenset(roots))


def _accuracy(accuracy: Any) -> timedelta:
    """Return the accuracy as a time; none stands for exact (RFC 3161, 2.4.2)."""
    if accuracy is None:
        return timedelta()
    parts = [accuracy.seconds or 0, accuracy.millis or 0, accuracy.micros or 0]
    # A day is no accuracy, and a number of seconds without bound is more than a time can hold.
    if min(parts) < 0 or parts[0] > 86_400 or max(parts[1:]) > 999:
        raise TimestampFormatError("the timestamp's accuracy", got=parts, expected="up to a day")
    return timedelta(seconds=parts[0], milliseconds=parts[1], microseconds=parts[2])


def _signer(response: "TimeStampResponse", authorities: Sequence[Authority]) -> x509.Certificate:
    """Return the certificate that signed, after checking what the library does not.

    The library looks the signer up by issuer and serial number, and so does OpenSSL below it: two
    certificates with the same ones could be taken for each other, and are refused.
    """
    signed = response.signed_data
    if not 1 <= len(signed.certificates) <= MAX_CERTIFICATES:
        raise TimestampFormatError(
            "the number of certificates in the timestamp",
            got=len(signed.certificates),
            expected=f"1 to {MAX_CERTIFICATES}; the signer's must be there",
        )
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in signed.certificates]
        names = {(item.issuer.public_bytes(), item.serial_number) for item in certificates}
        (info,) = signed.signer_infos
        signers = [
            item
            for item in certificates
            if item.issuer == info.issuer and item.serial_number == info.serial_number
        ]
        for item in certificates:
            if item not in authorities:
                _check_strength(item)
            _ = item.subject, item.extensions
    except Error:
        raise
    except Exception as error:  # the library raises several kinds for malformed certificates
        raise TimestampFormatError("a certificate in the timestamp cannot be read") from error
    if len(names) != len(certificates) or len(signers) != 1:
        raise TimestampFormatError("the timestamp does not name one certificate as its signer's")
    try:
        usage = signers[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        usage = None
    # RFC 3161, 2.3: critical, and for nothing else
    if (
        usage is None
        or not usage.critical
        or list(usage.value) != [ExtendedKeyUsageOID.TIME_STAMPING]
    ):
        raise TimestampAuthorityError(
            "the timestamp was signed by a certificate that is not for timestamps",
            got=_subject(signers[0]),
            expected="extended key usage timeStamping, critical, and no other",
        )
    return signers[0]


def _check_strength(certificate: x509.Certificate) -> None:
    key, algorithm = certificate.public_key(), certificate.signature_hash_algorithm
    weak_key = isinstance(key, rsa.RSAPublicKey) and (
        key.key_size < 2048 or key.public_numbers().e < 65537
    )
    if weak_key or not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise TimestampFormatError(
            "a key in the timestamp is too weak",
            got=f"{_subject(certificate)}: {getattr(key, 'key_size', 'of another kind')} bits",
            expected="RSA with at least 2048 bits and an exponent of at least 65537, or ECDSA",
        )
    if algorithm is None or algorithm.name not in _HASH_NAMES:
        raise TimestampFormatError(
            "a certificate in the timestamp was signed with a hash that is not accepted",
            got=f"{_subject(certificate)}: {algorithm and algorithm.name}",
            expected="SHA-256, SHA-384 or SHA-512",
        )


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:200]


def _library() -> Any:
    """Import the library that reads timestamps, which comes with an extra."""
    try:
        import rfc3161_client
    except ImportError as error:
        raise TimestampExtraError(
            "timestamps need the package rfc3161-client, which is not installed"
        ) from error
    return rfc3161_client


def _decode(token: bytes) -> "TimeStampResponse":
    """Parse a token that is in DER and has nothing in it that goes unauthenticated."""
    library = _library()
    _check_token(token)
    try:
        # The library reads responses: this is one with the status `granted` around the token.
        status = b"\x30\x03\x02\x01\x00"
        response = library.decode_timestamp_response(_tlv(0x30, status + token))
        # It parses late: have every mistake found here.
        info, signed = response.tst_info, response.signed_data
        _ = info.gen_time, info.accuracy, info.message_imprint.message
        _ = info.message_imprint.hash_algorithm.dotted_string
        _ = signed.certificates, signed.signer_infos
    except Exception as error:  # it raises several kinds for malformed tokens
        raise TimestampFormatError("the timestamp cannot be read", got=str(error)) from error
    return response  # type: ignore[no-any-return]


# -- a little DER (X.690), for what the library does not show --------------------------------------


@dataclass(frozen=True, slots=True)
class _Element:
    """One element: its tag, where its content starts and ends, and the bytes that it is part of."""

    tag: int
    start: int
    end: int
    data: bytes

    @property
    def content(self) -> bytes:
        return self.data[self.start : self.end]

    def children(self) -> Iterator["_Element"]:
        position = self.start
        while position < self.end:
            child = _element(self.data, position, self.end)
            yield child
            position = child.end


def _element(data: bytes, position: int, end: int) -> _Element:
    if end - position < 2 or data[position] & 0x1F == 0x1F:
        raise TimestampFormatError("the timestamp is not in DER")
    tag, length, start = data[position], data[position + 1], position + 2
    if length & 0x80:
        size = length & 0x7F
        octets = data[start : min(start + size, end)]
        length, start = int.from_bytes(octets, "big"), start + size
        if not 1 <= size <= 3 or len(octets) != size or octets[0] == 0 or length < 0x80:
            raise TimestampFormatError("the timestamp is not in DER")
    if length > end - start:
        raise TimestampFormatError(
            "the timestamp is cut", got=f"{end - start} bytes", expected=f"{length} bytes"
        )
    return _Element(tag, start, start + length, data)


def _whole(data: bytes, tag: int) -> _Element:
    element = _element(data, 0, len(data))
    if element.tag != tag or element.end != len(data):
        raise TimestampFormatError(
            "the timestamp is of another kind, or bytes follow it",
            got=f"tag {element.tag:#04x}, {element.end} of {len(data)} bytes",
            expected=f"tag {tag:#04x} and all of it",
        )
    return element


def _take(parent: _Element, *tags: int) -> list[_Element]:
    """Return the children of `parent`, which must have exactly these tags."""
    children = list(parent.children())
    if [child.tag for child in children] != list(tags):
        raise TimestampFormatError(
            "the timestamp has a part that is not known, or lacks one",
            got=" ".join(f"{child.tag:02x}" for child in children),
            expected=" ".join(f"{tag:02x}" for tag in tags),
        )
    return children


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _token(response: bytes) -> bytes:
    """Return the token in a TimeStampResp with the status `granted` (RFC 3161, 2.4.2)."""
    if len(response) > MAX_TIMESTAMP_BYTES:
        raise TimestampFormatError(
            "the authority's answer is too large", got=len(response), expected=MAX_TIMESTAMP_BYTES
        )
    parts = list(_whole(response, 0x30).children())
    status = next(parts[0].children(), None) if parts and parts[0].tag == 0x30 else None
    if status is None or status.tag != 0x02:
        raise TimestampFormatError("the authority's answer is not a TimeStampResp")
    if status.content != b"\x00" or len(parts) != 2:
        raise TimestampError(
            "the authority gave no timestamp",
            got=f"status {int.from_bytes(status.content, 'big')}",
            expected="status 0 (granted)",
        )
    return _tlv(parts[1].tag, parts[1].content)


def _signed_data(token: bytes) -> list[_Element]:
    """Return version, digestAlgorithms, content, certificates, signerInfos (RFC 5652, 5.1)."""
    _, explicit = _take(_whole(token, 0x30), 0x06, 0xA0)
    (signed,) = _take(explicit, 0x30)
    return _take(signed, 0x02, 0x31, 0x30, 0xA0, 0x31)


def _check_token(token: bytes) -> None:
    """Refuse what no signature covers and the library does not look at (RFC 5652, 5.1 and 5.3)."""
    if len(token) > MAX_TIMESTAMP_BYTES:
        raise TimestampFormatError(
            "the timestamp is too large", got=len(token), expected=MAX_TIMESTAMP_BYTES
        )
    version, _, _, _, infos = _signed_data(token)
    (info,) = _take(infos, 0x30)
    # Neither unsigned attributes (a1) after these, nor a signer named by key identifier (80).
    parts = _take(info, 0x02, 0x30, 0x30, 0xA0, 0x30, 0x04)
    digest, signature = _oid(parts[2]), _oid(parts[4])
    if (version.content, parts[0].content) != (b"\x03", b"\x01"):
        raise TimestampFormatError("the timestamp is of a version that is not known")
    if signature not in _SIGNATURES.get(digest, ()):
        raise TimestampFormatError(
            "the timestamp was signed with an algorithm that is not accepted",
            got=f"OIDs {signature.hex()} over {digest.hex()}",
            expected="RSA or ECDSA with SHA-256, SHA-384 or SHA-512",
        )


def _oid(algorithm: _Element) -> bytes:
    """Return the OID of an AlgorithmIdentifier without parameters, or with NULL; else nothing."""
    parts = [(part.tag, part.content) for part in algorithm.children()]
    if not parts or parts[0][0] != 0x06 or parts[1:] not in ([], [(0x05, b"")]):
        return b""
    return parts[0][1]


def _sorted(token: bytes) -> bytes:
    """Return the token with its certificates in the order that DER gives to a SET (X.690, 11.6).

    They are outside the signature, and OpenSSL, for one, writes them in the order of the chain.
    """
    certificates = _signed_data(token)[3]
    ordered = sorted(_tlv(item.tag, item.content) for item in certificates.children())
    return token[: certificates.start] + b"".join(ordered) + token[certificates.end :]
