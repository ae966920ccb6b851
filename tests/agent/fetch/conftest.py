"""Real services on loopback for the tests of fetching."""

import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert.agent.fetch import Fetched, InputRequest, Retry, fetch, transfer
from tests.agent.fetch.web import Web
from tests.support.tls import loopback

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
        made = loopback(tmp_path)
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
        return made.context()

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
