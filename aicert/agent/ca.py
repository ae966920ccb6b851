"""The operator's CA: it makes sure that a key lives in a TPM, and then certifies it.

Two parts. `Enrollment` checks what a TPM presents and challenges it; it fits any caller, and any
roots for the EK certificates. `DevelopmentCa` keeps the keys that sign: good for trying things out
and for machines that one operator owns, because a verifier trusts it only if told to. No TPM
library is needed here.
"""

import base64
import fcntl
import hmac
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, ObjectIdentifier

from aicert import tpm2
from aicert.agent.credential import EkTemplateError, make_credential
from aicert.agent.endorsement import (
    MAX_CERTIFICATE_BYTES,
    EkCertificateError,
    EkUntrustedError,
    check_ek_certificate,
    tpm_names,
)
from aicert.errors import Error
from aicert.reader import Reader

__all__ = [
    "AkSchemeError", "CaError", "CaExpiredError", "CaPermissionError", "Challenge",
    "DevelopmentCa", "EkCertificateError", "EkMismatchError", "EkTemplateError",
    "EkUntrustedError", "Enrollment", "EnrollmentError", "Identity", "OrderError",
    "WrongSecretError", "make_credential",
]  # fmt: skip

DER = Encoding.DER
PEM = Encoding.PEM

EKU_AK = ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate

YEAR = timedelta(days=365)
ROOT_LIFETIME = 20 * YEAR
ISSUER_LIFETIME = 10 * YEAR
AK_LIFETIME = YEAR
CLOCK_SKEW = timedelta(minutes=5)
"""How far in the past a certificate begins, for machines whose clock is a little slow."""

_MAX_STRUCTURE = 1024


class CaError(Error):
    """The operator's CA cannot be used."""

    code = "ca.failed"


class CaPermissionError(CaError):
    """Others than the operator could read the CA's keys."""

    code = "ca.permissions"


class CaExpiredError(CaError):
    """The CA's certificates have run out."""

    code = "ca.expired"


class EnrollmentError(Error):
    """The CA does not certify this key."""

    code = "enrollment.refused"


class EkMismatchError(EnrollmentError):
    """The endorsement certificate is another key's."""

    code = "enrollment.ek-mismatch"


class AkSchemeError(EnrollmentError):
    """The attestation key does not sign with SHA-256 and one scheme."""

    code = "enrollment.ak-scheme"


class WrongSecretError(EnrollmentError):
    """The answer to the challenge is wrong: the key is not in that TPM."""

    code = "enrollment.wrong-secret"


class OrderError(EnrollmentError):
    """There is no challenge to answer."""

    code = "enrollment.order"


# -- what a machine presents -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """What a machine presents: EK certificate (DER, or None), EK and AK (TPMT_PUBLIC)."""

    ek_certificate: bytes | None
    ek_public: bytes
    ak_public: bytes

    def to_json(self) -> dict[str, str | None]:
        """Return the JSON form."""
        return {
            "ekCertificate": None if self.ek_certificate is None else _text(self.ek_certificate),
            "ekPublic": _text(self.ek_public),
            "akPublic": _text(self.ak_public),
        }

    @classmethod
    def from_json(cls, value: Any) -> "Identity":
        """Read the JSON form; nothing is trusted.

        Raises:
            FieldError: a field is missing, unknown or too large.
        """
        reader = Reader(value, "identity")
        none = reader.null("ekCertificate")
        identity = cls(
            None if none else reader.octets64("ekCertificate", max_bytes=MAX_CERTIFICATE_BYTES),
            reader.octets64("ekPublic", max_bytes=_MAX_STRUCTURE),
            reader.octets64("akPublic", max_bytes=_MAX_STRUCTURE),
        )
        reader.done()
        return identity


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the TPM must answer: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET."""

    credential_blob: bytes
    encrypted_secret: bytes


# -- the CA's keys ---------------------------------------------------------------------------------


class DevelopmentCa:
    """A root, and under it an issuer of EK certificates and one of AK certificates.

    They live in a folder that only its owner can enter. The root signs the two issuers and its key
    is forgotten: there is nothing more for it to sign, and nothing to steal.
    """

    def __init__(self, directory: Path) -> None:
        """Read a CA; use `open_or_create`.

        Raises:
            CaError: it is damaged, or others can read it.
            CaExpiredError: its certificates are not valid now.
        """
        self._directory = directory
        _require_private(directory)
        try:
            self._root, self._ek, self._ak = (
                x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())
                for name in ("root", "ek", "ak")
            )
            for issuer in (self._ek, self._ak):
                issuer.verify_directly_issued_by(self._root)
            key = serialization.load_pem_private_key((directory / "ak.key").read_bytes(), None)
        except (OSError, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise CaError(
                "the CA is damaged",
                got=f"{type(error).__name__}: {error}",
                advice=f"restore {directory} from a backup; or remove it, and have verifiers trust "
                "the root of the new CA that the next start makes",
            ) from error
        now = datetime.now(UTC)
        for certificate in (self._root, self._ek, self._ak):
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                raise CaExpiredError(
                    f"{certificate.subject.rfc4514_string()} is not valid now",
                    got=now,
                    expected=f"{certificate.not_valid_before_utc} to "
                    f"{certificate.not_valid_after_utc}",
                    advice=f"set the clock; or move {directory} away, so that a new CA is made",
                )
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not _same_key(
            key.public_key(), self._ak.public_key()
        ):
            raise CaError("the key of the CA is not its certificate's", got=directory)
        self._ak_key = key

    @classmethod
    def open_or_create(cls, directory: Path) -> "DevelopmentCa":
        """Open the CA in a folder, or make one there; safe for any number of processes at once.

        Raises:
            CaError: it is damaged, expired, or others can read it.
        """
        authority = directory / "authority"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(directory)
        if not authority.exists():
            lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not authority.exists():
                    _create(directory, authority)
            finally:
                os.close(lock)
        return cls(authority)

    @property
    def root_certificate(self) -> x509.Certificate:
        """The root."""
        return self._root

    @property
    def root_pem(self) -> bytes:
        """The root, for a verifier's list of trusted roots."""
        return self._root.public_bytes(PEM)

    @property
    def root_fingerprint(self) -> str:
        """The SHA-256 of the root's DER, in hex."""
        return self._root.fingerprint(hashes.SHA256()).hex()

    @property
    def ek_roots(self) -> bytes:
        """What vouches for the EK certificates that this CA issues: a PEM bundle."""
        return self._ek.public_bytes(PEM) + self._root.public_bytes(PEM)

    @property
    def ek_key_file(self) -> Path:
        """The key of the EK issuer: swtpm's tools sign with it."""
        return self._directory / "ek.key"

    @property
    def ek_certificate_file(self) -> Path:
        """The certificate of the EK issuer."""
        return self._directory / "ek.pem"

    def issue_ak_certificate(
        self,
        ak_public: bytes,
        ek_certificate: x509.Certificate | None = None,
        *,
        lifetime: timedelta = AK_LIFETIME,
    ) -> list[bytes]:
        """Certify an attestation key; return the chain in DER: leaf, issuer, root.

        The caller has made sure that the key lives in a TPM: that is what `Enrollment` is for.

        Args:
            ak_public: TPMT_PUBLIC.
            ek_certificate: names the TPM's maker and model, which the new certificate repeats.
            lifetime: how long it is valid; at most as long as its issuer.

        Raises:
            AkError: it is not an attestation key.
        """
        ak = tpm2.parse_public(ak_public)
        ak.require_ak()
        now = datetime.now(UTC)
        builder = _builder(
            f"attestation key {ak.name.hex()[4:20]}",
            self._ak.subject,
            ak.key,
            self._ak_key.public_key(),
            now,
            min(now + lifetime, self._ak.not_valid_after_utc),
        )
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([EKU_AK]), critical=False)
        )
        maker = None if ek_certificate is None else tpm_names(ek_certificate)
        if maker is not None:
            names = x509.SubjectAlternativeName([x509.DirectoryName(maker)])
            builder = builder.add_extension(names, critical=False)
        leaf = builder.sign(self._ak_key, hashes.SHA256())
        return [certificate.public_bytes(DER) for certificate in (leaf, self._ak, self._root)]


def _create(directory: Path, authority: Path) -> None:
    """Make a CA beside its place, and move it there whole."""
    new = directory / "new"
    shutil.rmtree(new, ignore_errors=True)  # of one who was killed; the lock is ours
    new.mkdir(mode=0o700)
    now = datetime.now(UTC)
    root_key = ec.generate_private_key(ec.SECP256R1())
    # The number keeps the names of two CAs apart, for people; it is the key that is trusted.
    number = x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(8))
    root_name = x509.Name([*_name("aicert development root CA"), number])
    root = (
        _builder(
            root_name, root_name, root_key.public_key(), root_key.public_key(), now,
            now + ROOT_LIFETIME,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )  # fmt: skip
    _write(new / "root.pem", root.public_bytes(PEM))
    for name, text in (("ek", "EK"), ("ak", "attestation key")):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(
                f"aicert development {text} CA", root_name, key.public_key(),
                root_key.public_key(), now, now + ISSUER_LIFETIME,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(root_key, hashes.SHA256())
        )  # fmt: skip
        _write(new / f"{name}.pem", certificate.public_bytes(PEM))
        plain = serialization.NoEncryption()
        _write(
            new / f"{name}.key",
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain),
        )
    new.rename(authority)
    _sync(directory)


def _builder(
    subject: str | x509.Name,
    issuer: x509.Name,
    key: Any,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject) if isinstance(subject, str) else subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _require_private(directory: Path) -> None:
    try:
        found = directory.stat()
    except OSError as error:
        raise CaError("the CA's folder cannot be read", got=error) from error
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise CaPermissionError(
            "others could read the CA's keys",
            got=f"{directory}: mode {found.st_mode & 0o777:o}, user {found.st_uid}",
            expected=f"mode 700, user {os.geteuid()}",
            advice=f"chmod 700 {directory}; if others use this machine, make a new CA",
        )


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- enrolment -------------------------------------------------------------------------------------


class Enrollment:
    """One machine's enrolment: `begin` challenges its TPM, `finish` certifies its key.

    The challenge can be answered only by the TPM that holds the EK, and only if it also holds a
    key with the AK's name (TPM 2.0 Library, Part 1, 24). One enrolment is for one machine and one
    answer.
    """

    def __init__(self, ca: DevelopmentCa, ek_roots: bytes) -> None:
        """Enrol with `ca` a TPM that `ek_roots` vouch for.

        `ek_roots` is a PEM bundle: the roots of the TPM's maker, and whatever stands between them
        and its EK certificates. For a TPM in software it is `ca.ek_roots`.
        """
        self._ca = ca
        self._ek_roots = ek_roots
        self._pending: tuple[bytes, Identity, x509.Certificate] | None = None

    def begin(self, identity: Identity) -> Challenge:
        """Check what the machine presents, and return a challenge for its TPM.

        Raises:
            EkCertificateError: there is no EK certificate, or it cannot be read.
            EkUntrustedError: no root in the bundle vouches for it.
            EkMismatchError: it is another key's than the EK that is presented.
            EkTemplateError: the EK is not one of the TCG's default templates.
            AkError: the AK is not a restricted signing key that is fixed to its TPM.
        """
        self._pending = None
        certificate = check_ek_certificate(identity.ek_certificate, self._ek_roots)
        ek = tpm2.parse_public(identity.ek_public)
        if not _same_key(certificate.public_key(), ek.key):
            raise EkMismatchError(
                "the endorsement certificate is another key's",
                advice="do not enrol this machine: it presents somebody else's certificate",
            )
        ak = tpm2.parse_public(identity.ak_public)
        ak.require_ak()
        if ak.scheme is None or ak.scheme[1] != tpm2.ALG_SHA256:
            raise AkSchemeError("the attestation key leaves its scheme open", got=ak.scheme)
        secret = secrets.token_bytes(32)
        blob, encrypted = make_credential(identity.ek_public, ak.name, secret)
        self._pending = secret, identity, certificate
        return Challenge(blob, encrypted)

    def finish(self, secret: bytes) -> list[bytes]:
        """Take the TPM's answer; return the AK's chain in DER: leaf, issuer, root.

        Raises:
            WrongSecretError: the answer is wrong; the challenge is spent.
            OrderError: no challenge is open.
        """
        if self._pending is None:
            raise OrderError("no challenge is open", advice="begin the enrolment again")
        expected, identity, certificate = self._pending
        self._pending = None
        if not hmac.compare_digest(secret, expected):
            raise WrongSecretError(
                "the TPM did not solve the challenge",
                advice="do not trust this machine: its attestation key is not in that TPM",
            )
        return self._ca.issue_ak_certificate(identity.ak_public, certificate)


def _same_key(one: Any, other: Any) -> bool:
    form = (DER, PublicFormat.SubjectPublicKeyInfo)
    return bool(one.public_bytes(*form) == other.public_bytes(*form))
