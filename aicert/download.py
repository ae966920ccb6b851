"""Bring from the web what is to be verified, for whoever has its address.

Nobody along the way is believed: what comes is verified like a file. TLS is asked for all the same,
so that nobody else learns or chooses what is looked at.
"""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aicert.certificate import MAX_BYTES
from aicert.errors import AbsentError

TIMEOUT = 60.0
"""How long a certificate may take to come, and any answer to go on, in seconds."""

ATTEMPTS = 5
"""How often a large file is asked for where its connection breaks."""

_PUBLISHED = re.compile(r"/certificates/([0-9a-f]{64})/certificate\.json")
_CHUNK = 1 << 16
_LEAST = 1 << 16
"""How many bytes of a large file must come in `TIMEOUT` seconds: nobody may keep us waiting."""
_WAIT = 0.25


class DownloadError(AbsentError):
    """Something cannot be had from its address; `status` is that of HTTP, where there was one."""

    code = "download.failed"
    remedy = "check the address, and the way to it"
    status: int | None = None


class RenamedError(DownloadError):
    """What comes from a store is not the certificate that the address names."""

    code = "download.renamed"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirection to another address with TLS, and to no other.

    A token goes to the host that it was meant for and to no other.
    """

    def redirect_request(self, request: urllib.request.Request, *arguments: Any) -> Any:
        following = super().redirect_request(request, *arguments)
        if following is None:
            return None
        if following.type != "https":
            raise urllib.error.URLError("the answer leads to an address without TLS")
        token = request.unredirected_hdrs.get("Authorization")
        if token is not None and following.host == request.host:
            following.add_unredirected_header("Authorization", token)
        return following


def certificate(url: str, *, timeout: float = TIMEOUT) -> bytes:
    """Return what stands at an `https://` address, at most one byte over `MAX_BYTES`, unverified.

    An address in a store, which ends in `/certificates/<SHA-256>/certificate.json`, must yield what
    it names. Proxies are those of the environment (`https_proxy` and so on).

    Raises:
        DownloadError: the address is not one that can be asked, or nothing comes, or not in time.
        RenamedError: a store returns something else than the address names.
    """
    data = read(url, max_bytes=MAX_BYTES, timeout=timeout)
    named = _PUBLISHED.search(urlsplit(url).path)
    if named and len(data) <= MAX_BYTES and hashlib.sha256(data).hexdigest() != named[1]:
        raise RenamedError(
            "the store returns another certificate than the address names",
            got=hashlib.sha256(data).hexdigest(),
            expected=named[1],
            advice="ask for the certificate somewhere else, and tell who keeps the store",
        )
    return data


def read(url: str, *, max_bytes: int, timeout: float = TIMEOUT, token: str | None = None) -> bytes:
    """Return what stands at an `https://` address, at most one byte over `max_bytes`.

    `token` is shown to the host of that address alone.

    Raises:
        DownloadError: the address is not one that can be asked, or nothing comes, or not in time.
    """
    deadline = time.monotonic() + timeout
    data = bytearray()
    with _answer(url, timeout=timeout, token=token) as response:
        while len(data) <= max_bytes and (chunk := response.read1(_CHUNK)):
            data += chunk
            if time.monotonic() > deadline:
                raise TimeoutError(f"not whole after {timeout:g} seconds")
        length = _length(response)
        if len(data) <= max_bytes and length is not None and len(data) != length:
            raise OSError(f"cut after {len(data)} bytes")
    return bytes(data[: max_bytes + 1])


def save(
    url: str,
    path: Path,
    *,
    size: int,
    token: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write what stands at an `https://` address into a new file, at most one byte over `size`.

    Where the connection breaks, or hardly anything comes, the rest is asked for. Whether it is the
    right file is for the caller to find out; here it is only bounded.

    Raises:
        DownloadError: the address is not one that can be asked, or not all of it comes.
        OSError: the file cannot be written.
    """
    with path.open("xb") as file:
        for attempt in range(1, ATTEMPTS + 1):
            begun = file.tell()
            try:
                with _answer(url, token=token, start=begun) as response:
                    if response.status != 206 and begun:
                        file.seek(0)  # it does not do ranges
                        file.truncate()
                        progress(-begun)
                        begun = 0
                    length = _length(response)
                    since, had = time.monotonic(), file.tell()
                    while file.tell() <= size and (chunk := response.read1(_CHUNK)):
                        file.write(chunk[: size + 1 - file.tell()])
                        progress(len(chunk))
                        if (now := time.monotonic()) - since > TIMEOUT:
                            if file.tell() - had < _LEAST:
                                raise TimeoutError(f"hardly anything in {TIMEOUT:g} seconds")
                            since, had = now, file.tell()
                    if file.tell() > size or length is None or file.tell() - begun == length:
                        return
                    raise OSError(f"cut after {file.tell()} bytes")
            except DownloadError as error:
                if attempt == ATTEMPTS or error.status in (401, 403, 404, 410, 416):
                    raise
                time.sleep(_WAIT * 2**attempt)


@contextmanager
def _answer(
    url: str, *, timeout: float = TIMEOUT, token: str | None = None, start: int = 0
) -> Iterator[Any]:
    """Ask an `https://` address; whatever goes wrong until the end of the block is its failure."""
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
    request = urllib.request.Request(url, headers={"User-Agent": "aicert"})  # noqa: S310 (https)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=timeout) as response:
            yield response
    except urllib.error.HTTPError as error:
        with error:
            failed = _failed(where, f"HTTP status {error.code}")
            failed.status = error.code
            raise failed from None
    except urllib.error.URLError as error:
        raise _failed(where, str(error.reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(where, f"{type(error).__name__}: {error}") from None


def _length(response: Any) -> int | None:
    """Return how many bytes an answer says that it has."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else None


def _failed(where: str, got: str) -> DownloadError:
    return DownloadError(
        "this cannot be had from its address",
        got=f"{where}: {got[:300]}",
        advice="check the address, and the way to it; a file can be verified without any",
    )
