"""Endorsement certificates: who vouches that a key lives in a TPM.

The walk to a root is our own (RFC 5280, 6.1, without names, policies and revocation), because the
library's path builder wants host names and forbids what TPM certificates have. Signatures, DER and
extensions are the library's work.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from aicert.errors import Error

E = TypeVar("E", bound=x509.ExtensionType)

EKU_EK = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
MAX_CERTIFICATE_BYTES = 16 << 10

_MAX_DEPTH = 6
_KNOWN_EXTENSIONS = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CERTIFICATE_POLICIES,
}
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
# TCG EK Credential Profile 2.5, 3.1.2: manufacturer, model and version of the TPM.
_TPM_NAMES = tuple(ObjectIdentifier(f"2.23.133.2.{n}") for n in (1, 2, 3))


class EkCertificateError(Error):
    """The TPM has no endorsement certificate, or it cannot be accepted."""

    code = "enrollment.ek-certificate"


class EkUntrustedError(Error):
    """No trusted root vouches for the TPM's endorsement certificate."""

    code = "enrollment.ek-untrusted"


def check_ek_certificate(
    certificate: bytes | None, bundle: bytes, *, at: datetime | None = None
) -> x509.Certificate:
    """Check that a root in a PEM bundle vouches for an EK certificate (DER); return it.

    Certificates in the bundle that are not self-signed only lead to a root; they are not trusted
    themselves. All must be valid at `at` (by default now). Revocation is not looked up.

    Raises:
        EkCertificateError: there is none, it cannot be read, or it is for another use.
        EkUntrustedError: no root in the bundle vouches for it.
    """
    if certificate is None:
        raise EkCertificateError(
            "the TPM has no endorsement certificate",
            advice="clouds vouch for their TPMs in other ways; a TPM in software gets one when it "
            "is manufactured",
        )
    leaf = _parse(certificate)
    try:
        authorities = [ca for ca in x509.load_pem_x509_certificates(bundle) if _readable(ca)]
    except ValueError as error:
        raise EkUntrustedError(
            "the bundle of EK roots cannot be read", got=error, advice="give it in PEM"
        ) from error
    usage = extension(leaf, x509.ExtendedKeyUsage)
    constraints = extension(leaf, x509.BasicConstraints)
    if usage is None or EKU_EK not in usage or (constraints is not None and constraints.ca):
        raise EkCertificateError(
            "the certificate is not one of an endorsement key",
            got=", ".join(oid.dotted_string for oid in usage or []) or "no extended key usage",
            expected=f"{EKU_EK.dotted_string} (tcg-kp-EKCertificate), and not a CA's",
        )
    if unknown := _critical(leaf) - _KNOWN_EXTENSIONS:
        raise EkCertificateError(
            "the endorsement certificate has an extension that is not understood",
            got=", ".join(oid.dotted_string for oid in unknown),
        )
    now = at or datetime.now(UTC)
    if not _valid(leaf, now) or not _reaches_root(leaf, authorities, now, 0):
        raise EkUntrustedError(
            "no trusted root vouches for the TPM",
            got=f"issuer {leaf.issuer.rfc4514_string()}, valid {leaf.not_valid_before_utc} to "
            f"{leaf.not_valid_after_utc}",
            expected="; ".join(root.subject.rfc4514_string() for root in authorities),
            advice="put the roots and intermediates of the TPM's maker into the bundle, in PEM",
        )
    return leaf


def tpm_names(certificate: x509.Certificate) -> x509.Name | None:
    """Return the TPM's manufacturer, model and version, as its EK certificate has them."""
    names = extension(certificate, x509.SubjectAlternativeName)
    directory_names = [] if names is None else names.get_values_for_type(x509.DirectoryName)
    found = [part for name in directory_names for part in name if part.oid in _TPM_NAMES]
    return x509.Name(found) if found else None


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Return an extension's value, or None where the certificate does not have it."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise EkCertificateError("the endorsement certificate is too large", got=len(der))
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise EkCertificateError("the endorsement certificate cannot be read", got=error) from error
    if not _readable(certificate):
        raise EkCertificateError("the endorsement certificate is malformed", got=der[:64])
    return certificate


def _readable(certificate: x509.Certificate) -> bool:
    """Read what is otherwise read only when it is used."""
    try:
        _ = certificate.extensions, certificate.public_key(), certificate.issuer
        _ = certificate.subject, certificate.signature_hash_algorithm
    except Exception:  # the library raises several kinds for malformed certificates
        return False
    return True


def _reaches_root(
    child: x509.Certificate, authorities: Sequence[x509.Certificate], now: datetime, below: int
) -> bool:
    """Tell whether a way leads from a certificate up to a root; `below` CAs lie behind."""
    if not isinstance(child.signature_hash_algorithm, _HASHES):
        return False
    for parent in authorities:
        if _valid(parent, now) and _may_issue(parent, below) and _issued(child, parent):
            if parent.subject == parent.issuer:  # a root: its own signature proves nothing
                return True
            if below < _MAX_DEPTH and _reaches_root(parent, authorities, now, below + 1):
                return True
    return False


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _critical(certificate: x509.Certificate) -> set[ObjectIdentifier]:
    return {extension.oid for extension in certificate.extensions if extension.critical}


def _may_issue(certificate: x509.Certificate, below: int) -> bool:
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    return (
        constraints is not None
        and constraints.ca
        and (constraints.path_length is None or constraints.path_length >= below)
        and (usage is None or usage.key_cert_sign)
        and _critical(certificate) <= _KNOWN_EXTENSIONS
    )


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)  # names and signature
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
