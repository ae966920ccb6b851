"""A timestamp authority: its own CA, and `openssl ts` on files to make the answers."""

import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

OPENSSL = shutil.which("openssl")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Tsa:
    """A root, an intermediate where asked for, and a signer; each certificate can be made wrong."""

    folder: Path
    name: str = "tests"
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    usages: tuple[Any, ...] = (ExtendedKeyUsageOID.TIME_STAMPING,)
    critical: bool = True
    intermediate: bool = False
    intermediate_is_ca: bool = True
    ends: timedelta = timedelta(days=365)
    digest: str = "sha256"
    certificate_hash: Any = field(default_factory=hashes.SHA256)
    options: str = ""

    def __post_init__(self) -> None:
        """Make the certificates and the configuration."""
        self.now = datetime.now(UTC)
        self.root_key = root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._issue("root", root_key, "root", root_key, ca=True)
        issuer, by, extra = "root", root_key, [self.root]
        if self.intermediate:
            key = ec.generate_private_key(ec.SECP256R1())
            ca = self.intermediate_is_ca
            extra.insert(0, self._issue("intermediate", key, "root", root_key, ca=ca))
            issuer, by = "intermediate", key
        usage = (x509.ExtendedKeyUsage(list(self.usages)), self.critical) if self.usages else None
        self.signer = self._issue(
            "signer", self.key, issuer, by, ca=False, usage=usage, hash_=self.certificate_hash
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pem("signer.pem", [self.signer])
        self._pem("extra.pem", extra)
        self._pem("root.pem", [self.root])
        private = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.folder / "key.pem").write_bytes(private)
        (self.folder / "serial").write_text("01\n")
        (self.folder / "tsa.conf").write_text(f"""
[tsa]
default_tsa = one
[one]
serial = {self.folder}/serial
signer_cert = {self.folder}/signer.pem
signer_key = {self.folder}/key.pem
certs = {self.folder}/extra.pem
signer_digest = {self.digest}
default_policy = 1.2.3.4
digests = sha1, sha256, sha384, sha512
accuracy = secs:1, millisecs:500
{self.options}
""")

    @property
    def root_file(self) -> Path:
        """The root, as PEM."""
        return self.folder / "root.pem"

    def answer(self, request: bytes) -> bytes:
        """The TimeStampResp to a TimeStampReq."""
        (self.folder / "request").write_bytes(request)
        self._run("-reply", "-config", "tsa.conf", "-queryfile", "request", "-out", "answer")
        return (self.folder / "answer").read_bytes()

    def stamp(self, data: bytes, *options: str) -> bytes:
        """The TimeStampResp over `data`, as somebody else's client asks for it."""
        (self.folder / "data").write_bytes(data)
        self._run("-query", "-data", "data", "-cert", *(options or ("-sha256",)), "-out", "query")
        return self.answer((self.folder / "query").read_bytes())

    def _run(self, *arguments: str) -> None:
        assert OPENSSL is not None
        subprocess.run(
            [OPENSSL, "ts", *arguments], cwd=self.folder, check=True, capture_output=True
        )

    def _pem(self, name: str, certificates: list[x509.Certificate]) -> None:
        encoding = serialization.Encoding.PEM
        data = b"".join(certificate.public_bytes(encoding) for certificate in certificates)
        (self.folder / name).write_bytes(data)

    def _issue(
        self,
        subject: str,
        key: Key,
        issuer: str,
        by: Key,
        *,
        ca: bool,
        usage: Any = None,
        hash_: Any = None,
    ) -> x509.Certificate:
        names = [
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name} {name}")])
            for name in (subject, issuer)
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=400))
            .not_valid_after(self.now + (timedelta(days=3650) if ca else self.ends))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if usage is not None:
            builder = builder.add_extension(usage[0], critical=usage[1])
        return builder.sign(by, hash_ or hashes.SHA256())
