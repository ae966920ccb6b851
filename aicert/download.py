"""Bring a certificate from the web, for whoever has its address: the one thing a verifier may ask.

Nobody along the way is believed: what comes is verified like a file. TLS is asked for all the same,
so that nobody else learns or chooses which certificate is looked at.
"""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from aicert.certificate import MAX_BYTES
from aicert.errors import Error

TIMEOUT = 60.0
"""How long a certificate may take to come, in seconds."""

_PUBLISHED = re.compile(r"/certificates/([0-9a-f]{64})/certificate\.json")
_CHUNK = 1 << 16


class DownloadError(Error):
    """A certificate cannot be had from its address."""

    code = "download.failed"


class RenamedError(DownloadError):
    """What comes from a store is not the certificate that the address names."""

    code = "download.renamed"


class _TlsOnly(urllib.request.HTTPRedirectHandler):
    """Follow a redirection to another address with TLS, and to no other."""

    def redirect_request(self, *arguments: Any) -> Any:
        request = super().redirect_request(*arguments)
        if request is not None and request.type != "https":
            raise urllib.error.URLError("the answer leads to an address without TLS")
        return request


def certificate(url: str, *, timeout: float = TIMEOUT) -> bytes:
    """Return what stands at an `https://` address, at most one byte over `MAX_BYTES`, unverified.

    An address in a store, which ends in `/certificates/<SHA-256>/certificate.json`, must yield what
    it names. Proxies are those of the environment (`https_proxy` and so on).

    Raises:
        DownloadError: the address is not one that can be asked, or nothing comes, or not in time.
        RenamedError: a store returns something else than the address names.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc
        _ = parts.port
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise DownloadError(
            "this is not an address that a certificate can be had from",
            expected="https://HOST/PATH, without a password",
        )
    where = f"https://{parts.netloc}{parts.path}"  # the query may hold a signature
    deadline = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "aicert"})  # noqa: S310 (https)
    data = bytearray()
    try:
        with urllib.request.build_opener(_TlsOnly).open(request, timeout=timeout) as response:
            while len(data) <= MAX_BYTES and (chunk := response.read1(_CHUNK)):
                data += chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not whole after {timeout:g} seconds")
            expected = response.headers.get("Content-Length", "")
            if len(data) <= MAX_BYTES and expected.isdecimal() and len(data) != int(expected):
                raise OSError(f"cut after {len(data)} bytes")
    except urllib.error.HTTPError as error:
        with error:
            raise _failed(where, f"HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        raise _failed(where, str(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(where, f"{type(error).__name__}: {error}") from None
    named = _PUBLISHED.search(parts.path)
    if named and len(data) <= MAX_BYTES and hashlib.sha256(data).hexdigest() != named[1]:
        raise RenamedError(
            "the store returns another certificate than the address names",
            got=hashlib.sha256(data).hexdigest(),
            expected=named[1],
            advice="ask for the certificate somewhere else, and tell who keeps the store",
        )
    return bytes(data[: MAX_BYTES + 1])


def _failed(where: str, got: str) -> DownloadError:
    return DownloadError(
        "the certificate cannot be had from its address",
        got=f"{where}: {got[:300]}",
        advice="check the address, and the way to it; a file can be verified without any",
    )
