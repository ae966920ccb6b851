"""Real services on loopback for the tests of fetching."""

import ipaddress
import random
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aicert.agent.fetch import Fetched, InputRequest, Retry, fetch, transfer
from tests.agent.fetch.web import Web

QUICK = Retry(attempts=4, first_wait=0.01, longest_wait=0.05)

Bring = Callable[..., Fetched]


@pytest.fixture
def bring(tmp_path: Path) -> Bring:
    """Fetch into this test's folder, with waits too short to notice."""

    def call(uri: str, **arguments: Any) -> Fetched:
        request = InputRequest(
            "it", uri, arguments.pop("revision", None), arguments.pop("sha256", None)
        )
        usual = {"base": tmp_path, "partial": tmp_path / "partial", "retry": QUICK}
        return fetch(request, tmp_path / "into", **{**usual, **arguments})

    return call


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make blocks of 64 KiB, so that a small file has many."""
    monkeypatch.setattr(transfer, "BLOCK", 64 << 10)
    return 64 << 10


@pytest.fixture
def web() -> Iterator[Web]:
    """Serve pages on loopback."""
    with Web() as server:
        yield server


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], ssl.SSLContext]:
    """Make a certificate for loopback, which this process trusts if it is told to."""

    def call(trusted: bool) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
        now = datetime.now(UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (tmp_path / "tls.crt").write_bytes(certificate.public_bytes(pem))
        form = serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(pem, form, serialization.NoEncryption())
        (tmp_path / "tls.key").write_bytes(secret)
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
        return context

    return call


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that are the same each time."""
    return random.Random(seed).randbytes(size)


def content(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
