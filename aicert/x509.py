"""The attestation key's certificate chain: from the key to a pinned root.

A small walk of our own (RFC 5280, 6.1, without names, policies and revocation), because the
library's path builder enforces the web's rules: it wants host names, and forbids what TPM
certificates have. Here nothing is built: the chain comes in order, leaf to root, and each link is
checked. Signatures, DER and extensions are the library's work.
"""

import hashlib
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from aicert.errors import Error
from aicert.trust import Pin, TrustStore, fingerprint

_WARNINGS = threading.Lock()
"""Python keeps one list of warnings' filters: what changes it for a moment does so alone."""

E = TypeVar("E", bound=x509.ExtensionType)

MAX_CERTIFICATES = 8
MAX_CERTIFICATE_BYTES = 16 << 10
_HASHES = frozenset({"sha256", "sha384", "sha512"})
_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})

# TCG EK Credential Profile 2.x, and TCG AK certificates (tcg-kp-*).
EKU_EK = ObjectIdentifier("2.23.133.8.1")
EKU_AK = ObjectIdentifier("2.23.133.8.3")

_KNOWN = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,  # critical where the subject is empty
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)


class ChainError(Error):
    """The chain does not vouch for the attestation key."""

    code = "chain.invalid"
    remedy = "do not use this certificate: nobody who is trusted vouches for the key that signed it"


class ChainLengthError(ChainError):
    """The chain is empty or too long."""

    code = "chain.length"


class ChainParseError(ChainError):
    """A certificate cannot be read."""

    code = "chain.parse"


class ChainLoopError(ChainError):
    """A certificate stands twice."""

    code = "chain.loop"


class ChainIssuerError(ChainError):
    """A certificate was not issued by the next one."""

    code = "chain.issuer"


class ChainSignatureError(ChainError):
    """A certificate's signature is not the next one's."""

    code = "chain.signature"


class UnpinnedRootError(ChainError):
    """The chain ends in a root that is not pinned."""

    code = "chain.unpinned-root"


class IncompleteChainError(ChainError):
    """The chain stops before a root."""

    code = "chain.incomplete"


class NotYetValidError(ChainError):
    """A certificate was not valid yet."""

    code = "chain.not-yet-valid"


class ExpiredError(ChainError):
    """A certificate was not valid any more."""

    code = "chain.expired"


class NotACaError(ChainError):
    """A certificate in the chain may not issue others."""

    code = "chain.not-a-ca"


class PathLengthError(ChainError):
    """A CA issued a longer chain than it may."""

    code = "chain.path-length"


class WeakError(ChainError):
    """A key or a hash in the chain is too weak."""

    code = "chain.weak"


class ExtensionError(ChainError):
    """A certificate has an extension that cannot be honoured."""

    code = "chain.extension"
    remedy = "do not use this certificate; report it, if the chain is that of a maker of TPMs"


class LeafKeyError(ChainError):
    """The first certificate is another key's."""

    code = "chain.leaf-key"


class LeafUsageError(ChainError):
    """The first certificate is not one for an attestation key."""

    code = "chain.leaf-usage"


@dataclass(frozen=True, slots=True)
class ChainInfo:
    """A chain that was checked: the pin it ends in, and when all of it is valid."""

    pin: Pin
    not_before: datetime
    not_after: datetime


def verify_chain(
    chain: Sequence[bytes],
    trust: TrustStore,
    *,
    at: Iterable[datetime],
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
) -> ChainInfo:
    """Check a chain, leaf to root, that must certify the attestation key `key`.

    Every certificate below the root is signed by the next; the root is pinned, a CA, and signed by
    itself. So a chain has two certificates at least: a key that vouches for itself never passes.

    Args:
        chain: DER certificates, in order; the last is the root.
        trust: the pins; the root's fingerprint must be one of them.
        at: the times at which every certificate must be valid: one at least, with a time zone.
        key: the attestation key.

    Raises:
        ChainError: (a subclass) the first check that failed.
        ValueError: the caller named no time, or one without a time zone.
    """
    # Once for all certificates: an iterator would be used up by the first, and no date of the
    # others checked.
    times = tuple(at)
    if not times or any(time.utcoffset() is None for time in times):
        raise ValueError("a chain is checked at one time or more, each with a time zone")
    if not 1 <= len(chain) <= MAX_CERTIFICATES:
        raise ChainLengthError(
            "the certificate chain's length",
            got=len(chain),
            expected=f"1 to {MAX_CERTIFICATES}",
            advice="the attestation key must come with its certificates, leaf to root",
        )
    certificates = [parse(der, index) for index, der in enumerate(chain)]
    if len(set(chain)) != len(chain):
        twice = next(der for der in chain if chain.count(der) > 1)
        raise ChainLoopError(
            "a certificate stands twice in the chain", got=hashlib.sha256(twice).hexdigest()
        )
    _check_leaf(certificates[0], key)
    check_links(certificates, times)
    # Last: a broken chain is named as such even where its root is unknown.
    pin = _find_pin(certificates[-1], trust)
    _check_root(certificates[-1], len(certificates) - 1)
    return ChainInfo(
        pin,
        max(certificate.not_valid_before_utc for certificate in certificates),
        min(certificate.not_valid_after_utc for certificate in certificates),
    )


def check_links(certificates: Sequence[x509.Certificate], times: Sequence[datetime]) -> None:
    """Check that each certificate is strong, valid at these times, and issued by the next one.

    What the first may be for, and who the last is, is for the caller to check.

    Raises:
        ChainError: (a subclass) the first check that failed.
    """
    for index, certificate in enumerate(certificates):
        _check_strength(certificate, index)
        _check_extensions(certificate, index)
        _check_validity(certificate, index, times)
    for index, (child, parent) in enumerate(pairwise(certificates), start=1):
        _check_ca(parent, index)
        _check_issued(child, parent, index)


def parse(der: bytes, index: int) -> x509.Certificate:
    """Read a certificate, the one at `index` in its chain; it must be version 3 and in DER.

    Raises:
        ChainParseError: it cannot be read, or bytes follow it.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ChainParseError(
            f"certificate {index} is too large", got=len(der), expected=MAX_CERTIFICATE_BYTES
        )
    try:
        with _WARNINGS, warnings.catch_warnings():
            # Google's names are longer than X.520 allows. What the library accepts with a warning
            # is judged below, the same under every setting of Python's warnings.
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            # These are read lazily: have every mistake found here.
            _ = certificate.extensions, certificate.public_key(), certificate.subject
            _ = certificate.issuer, certificate.signature_hash_algorithm
    except Exception as error:  # the library raises several kinds for malformed certificates
        raise ChainParseError(
            f"certificate {index} of the chain cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected="X.509 in DER",
        ) from error
    if certificate.version is not x509.Version.v3:
        raise ChainParseError(f"certificate {index} is not X.509 version 3")
    if certificate.public_bytes(Encoding.DER) != der:
        raise ChainParseError(f"certificate {index} is not in DER, or bytes follow it")
    # The signature comes last, a BIT STRING of whole octets: the octet before it counts unused
    # bits. The library takes another count too, and nothing signs it.
    if der[-len(certificate.signature) - 1]:
        raise ChainParseError(f"the signature of certificate {index} is not in whole octets")
    return certificate


def _check_leaf(leaf: x509.Certificate, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> None:
    """Check that the leaf certifies this key, for attestation.

    Real AK certificates differ in the extended key usage: Azure's have the AK usage, Google's of
    2021 the EK usage alone, Google's of 2026 none. What all share is: not a CA, and a key usage
    with digitalSignature and without keyCertSign. An EK certificate has the EK usage too, but its
    key usage is keyEncipherment (RSA) or keyAgreement (ECC; TCG EK Credential Profile, "Key
    Usage"): so without the AK usage, neither may be there. A TLS certificate has an extended key
    usage, and it is not TCG's.
    """
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    certified, own = (each.public_bytes(*spki) for each in (leaf.public_key(), key))
    if certified != own:
        raise LeafKeyError(
            "the first certificate is not the attestation key's",
            got=f"a key with the SHA-256 {hashlib.sha256(certified).hexdigest()}",
            expected=f"the key with the SHA-256 {hashlib.sha256(own).hexdigest()}",
            advice="do not use this certificate: nobody vouches for the key that signed it",
        )
    basic = _extension(leaf, x509.BasicConstraints)
    usage = _extension(leaf, x509.KeyUsage)
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if basic is not None and basic.ca:
        raise LeafUsageError(
            "the attestation key's certificate is a CA's",
            got="basic constraints: CA",
            expected="no CA",
        )
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        raise LeafUsageError(
            "the attestation key's certificate is not for signatures",
            expected="key usage digitalSignature, without keyCertSign",
        )
    if extended is not None and not {EKU_AK, EKU_EK} & set(extended):
        raise LeafUsageError(
            "the attestation key's certificate is for another use",
            got=", ".join(oid.dotted_string for oid in extended),
            expected=f"{EKU_AK.dotted_string} (tcg-kp-AIKCertificate)",
        )
    encrypts = usage.key_encipherment or usage.data_encipherment or usage.key_agreement
    if encrypts and (extended is None or EKU_AK not in extended):
        raise LeafUsageError(
            "the attestation key's certificate is one for an encryption key, as an EK's",
            expected="key usage digitalSignature alone",
        )


def _check_strength(certificate: x509.Certificate, index: int) -> None:
    """Check the key, and the hash that was signed (of PSS: not that of its mask, which is no risk).

    The root's own signature is held to the same: it costs nothing, and the real ones pass.
    """
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        # Signatures by a key with a small one were forged wherever padding was read loosely.
        strong = key.key_size >= 2048 and exponent >= 65537
        got = f"RSA with {key.key_size} bits and the exponent {exponent}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        strong = key.curve.name in _CURVES
        got = f"curve {key.curve.name}"
    else:
        strong, got = False, type(key).__name__
    if not strong:
        raise WeakError(
            f"the key of certificate {index} is not accepted",
            got=got,
            expected="RSA with at least 2048 bits and an exponent of at least 65537, or P-256, "
            "P-384, P-521",
        )
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None or algorithm.name not in _HASHES:
        raise WeakError(
            f"the signature of certificate {index} uses a hash that is not accepted",
            got="none" if algorithm is None else algorithm.name,
            expected=", ".join(sorted(_HASHES)),
        )


def _check_extensions(certificate: x509.Certificate, index: int) -> None:
    for extension in certificate.extensions:
        # Name constraints are refused whether critical or not: they are not applied here.
        if (extension.critical and extension.oid not in _KNOWN) or (
            extension.oid == ExtensionOID.NAME_CONSTRAINTS
        ):
            raise ExtensionError(
                f"certificate {index} has an extension that is not understood",
                got=extension.oid.dotted_string,
            )


def _check_validity(certificate: x509.Certificate, index: int, times: Iterable[datetime]) -> None:
    for time in times:
        if time < certificate.not_valid_before_utc:
            raise NotYetValidError(
                f"certificate {index} of the chain was not valid yet at the time of the run",
                got=time,
                expected=f"from {certificate.not_valid_before_utc}",
            )
        if time > certificate.not_valid_after_utc:
            raise ExpiredError(
                f"certificate {index} of the chain was not valid any more at the time of the run",
                got=time,
                expected=f"until {certificate.not_valid_after_utc}",
                advice="a certificate that expires after the run is fine; this one had expired "
                "before it ended",
            )


def _check_ca(parent: x509.Certificate, index: int) -> None:
    """Check RFC 5280, 6.1.4 (k) to (n): the key usage counts only where there is one.

    OpenSSL's default roots have none.
    """
    basic = _extension(parent, x509.BasicConstraints)
    usage = _extension(parent, x509.KeyUsage)
    if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
        raise NotACaError(
            f"certificate {index} of the chain is not a CA's",
            got=parent.subject.rfc4514_string(),
            expected="basic constraints with CA, and key usage keyCertSign where there is one",
        )
    # `index - 1` CAs stand between this one and the leaf.
    if basic.path_length is not None and index - 1 > basic.path_length:
        raise PathLengthError(
            f"certificate {index} allows fewer CAs below it",
            got=index - 1,
            expected=f"at most {basic.path_length}",
        )


def _check_issued(child: x509.Certificate, parent: x509.Certificate, index: int) -> None:
    if child.issuer.public_bytes() != parent.subject.public_bytes():
        raise ChainIssuerError(
            f"certificate {index - 1} was not issued by certificate {index}",
            got=parent.subject.rfc4514_string(),
            expected=child.issuer.rfc4514_string(),
            advice="an intermediate certificate may be missing, or the order wrong",
        )
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise ChainSignatureError(
            f"certificate {index - 1} was not signed by certificate {index}",
            got=child.subject.rfc4514_string(),
            expected=f"a signature by the key of {parent.subject.rfc4514_string()}",
            advice="do not use this certificate: somebody made up the chain",
        ) from error


def _find_pin(last: x509.Certificate, trust: TrustStore) -> Pin:
    pin = trust.find(fingerprint(last))
    if pin is not None:
        return pin
    if last.issuer.public_bytes() != last.subject.public_bytes():
        raise IncompleteChainError(
            "the chain stops before its root",
            got=last.subject.rfc4514_string(),
            expected=f"also the certificate of {last.issuer.rfc4514_string()}",
        )
    raise UnpinnedRootError(
        "the chain ends in a root that is not trusted",
        got=f"{fingerprint(last)} ({last.subject.rfc4514_string()})",
        expected="a root that `aicert trust` lists",
        advice="if you know this root, and only then, name it with --root FILE",
    )


def _check_root(root: x509.Certificate, index: int) -> None:
    """Check that what was pinned is a root: signed by itself, and a CA's.

    A pin is the user's word, but for a root. With a leaf or an intermediate pinned by mistake,
    nothing above it would be checked.
    """
    if root.issuer.public_bytes() != root.subject.public_bytes():
        raise IncompleteChainError(
            "the chain ends in a certificate that is pinned, but is not a root",
            got=root.subject.rfc4514_string(),
            expected=f"also the certificate of {root.issuer.rfc4514_string()}",
            advice="pin the root, not a certificate below it",
        )
    _check_ca(root, index)  # again, for a chain of one certificate, which has no links
    try:
        root.verify_directly_issued_by(root)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise ChainSignatureError(
            f"certificate {index}, the root, was not signed by itself",
            advice="pin the root that its CA publishes",
        ) from error


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
