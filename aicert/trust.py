"""The roots that may vouch for a TPM, pinned by the SHA-256 fingerprint of their certificates.

A chain travels with the evidence; what is trusted is only its last certificate, and only if its
fingerprint stands here. A name proves nothing: anybody can make a certificate with any name.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aicert.errors import Error

Worth = Literal["simulated", "hardware"]
"""What a root vouches for: software TPMs of somebody's own, or keys in real (or cloud) TPMs."""

MAX_FILE_BYTES = 1 << 20
_SUFFIXES = (".pem", ".crt", ".cer", ".der")


class TrustError(Error):
    """A root certificate cannot be used."""

    code = "trust.root"
    remedy = "check the file: a root is a CA's certificate in PEM or DER, given once"


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned root: a name for people, the fingerprint (hex), its worth, where it is from."""

    name: str
    fingerprint: str
    assurance: Worth
    source: str


_BUILT_IN = (
    Pin(
        "Azure Virtual TPM Root Certificate Authority 2023",
        "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
        "hardware",
        "built in",
    ),
    Pin(
        "Google EK/AK CA Root",
        "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
        "hardware",
        "built in",
    ),
    Pin(
        "Google tpm_ek_root_1",
        "9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf",
        "hardware",
        "built in",
    ),
)


@dataclass(frozen=True, slots=True)
class TrustStore:
    """An immutable set of pins. Adding to one gives another."""

    pins: Mapping[str, Pin] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def builtin(cls) -> "TrustStore":
        """Return the vendors' roots that this version knows."""
        return cls().with_pins(_BUILT_IN)

    def with_pins(self, pins: Iterable[Pin]) -> "TrustStore":
        """Return a store with more pins.

        Raises:
            TrustError: a root is pinned already, with another worth.
        """
        merged = dict(self.pins)
        for pin in pins:
            known = merged.setdefault(pin.fingerprint, pin)
            if known.assurance != pin.assurance:
                raise TrustError(
                    "a root is given twice with different worth",
                    got=f"{pin.assurance} ({pin.source})",
                    expected=f"{known.assurance} ({known.source})",
                    advice="leave out one of the two",
                )
        return TrustStore(MappingProxyType(merged))

    def with_roots(self, path: Path, assurance: Worth = "simulated") -> "TrustStore":
        """Return a store with the roots in a PEM or DER file, or in the files of a folder.

        A root that has expired is accepted: evidence is checked at the time of its run.

        Raises:
            TrustError: nothing there is a certificate, one is not a root, or a file cannot be read.
        """
        if path.is_dir():
            paths = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if not paths:
                raise TrustError(
                    "the folder holds no root certificates",
                    got=path,
                    expected=f"files named {', '.join('*' + suffix for suffix in _SUFFIXES)}",
                )
        else:
            paths = [path]
        return self.with_pins(
            Pin(name_of(root), fingerprint(root), assurance, str(file))
            for file in paths
            for root in _load_roots(file)
        )

    def find(self, fingerprint: str) -> Pin | None:
        """Return the pin for a fingerprint (hex), or None."""
        return self.pins.get(fingerprint)

    def list(self) -> tuple[Pin, ...]:
        """Return all pins, by name."""
        return tuple(sorted(self.pins.values(), key=lambda pin: (pin.name, pin.fingerprint)))


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate's DER, in hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Load every certificate in a PEM file, or the one in a DER file.

    Raises:
        TrustError: the file cannot be read, or holds none.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise TrustError("the file is too large for root certificates", got=path)
        if b"-----BEGIN" in data:
            return tuple(x509.load_pem_x509_certificates(data))
        return (x509.load_der_x509_certificate(data),)
    except OSError as error:
        raise TrustError("the file cannot be read", got=f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TrustError(
            "the file holds no certificate", got=path, expected="X.509 in PEM or DER"
        ) from error


def _load_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """Load roots, and refuse here, where the file is known, what no chain can end in."""
    roots = load_certificates(path)
    for root in roots:
        if not _is_root(root):
            raise TrustError(
                "the certificate is not a root",
                got=f"{name_of(root)} in {path}",
                expected="a CA's certificate that is signed by itself",
                advice="name the root of the chain, not a certificate below it",
            )
    return roots


def _is_root(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound, ValueError, TypeError):
        return False


def name_of(certificate: x509.Certificate) -> str:
    """Return a certificate's name for people: its common name, or else all of its subject.

    A name proves nothing; the fingerprint does.
    """
    try:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        whole = certificate.subject.rfc4514_string()
    except ValueError:
        return "a root without a readable name"
    name = str(common[0].value if len(common) == 1 else whole)[:200]
    return name if name.isprintable() else ascii(name)[1:-1]
