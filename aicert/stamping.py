"""Having a certificate stamped: asking a timestamp authority over HTTP (RFC 3161, 3.4).

For builders, at issue or later. It is the one module here that uses a network, and verifying never
loads it. What an authority answers is checked as a verifier will check it before it is attached.

A timestamp is a field of the certificate, so attaching one makes another file, with another digest:
another name. Stamp a certificate before it is published, or publish the stamped one beside it.
"""

import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from aicert import timestamp
from aicert.certificate import MAX_TIMESTAMP_BYTES, Certificate
from aicert.errors import Error
from aicert.timestamp import Authority

TIMEOUT = 30.0
"""How long an authority may take in all, in seconds."""

MAX_ANSWER_BYTES = MAX_TIMESTAMP_BYTES
_QUERY = "application/timestamp-query"
_REPLIES = ("application/timestamp-reply", "application/octet-stream")


class UrlError(Error):
    """The address is not one of an authority that can be asked."""

    code = "timestamp.url"
    remedy = "give http:// or https://, a host and a path, without a password"


class UnavailableError(Error):
    """The authority cannot be reached, or does not answer as one does."""

    code = "timestamp.unavailable"
    remedy = "try again later, or ask another authority"


class PresentError(Error):
    """The certificate has a timestamp already."""

    code = "timestamp.present"
    remedy = "keep it, or replace it with --replace"


def stamp(
    data: bytes,
    *,
    url: str,
    authorities: Sequence[Authority],
    timeout: float = TIMEOUT,
    replace: bool = False,
) -> bytes:
    """Return the certificate `data` with a timestamp by the authority at `url`.

    Only the SHA-256 of the certificate's envelope is sent. Whether the certificate is true is not
    looked at.

    Args:
        data: the certificate file.
        url: where the authority answers; http will do, since the answer is signed.
        authorities: root certificates, one of which the answer must chain to.
        timeout: how long the authority may take in all, in seconds.
        replace: put the new timestamp in the place of one that is there.

    Raises:
        UrlError: the address is not one that can be asked.
        UnavailableError: the authority cannot be reached or does not answer in time.
        PresentError: there is a timestamp, and it is not to be replaced.
        Error: (TimestampError, TimestampExtraError, CertificateError, CanonicalError, LogError,
            EventError, ManifestError) the certificate is malformed, or a verifier would refuse the
            answer.
    """
    certificate = Certificate.parse(data)
    if certificate.timestamp is not None and not replace:
        raise PresentError(
            "the certificate has a timestamp already",
            advice="keep it: the earlier one shows more. To put another in its place, say so "
            "(--replace)",
        )
    if not authorities:
        raise timestamp.TimestampAuthorityError("no root of a timestamp authority was named")
    request = timestamp.make_request(certificate)
    answer = ask(url, request.der, timeout=timeout)
    return timestamp.attach(certificate, request, answer, authorities).encode()


def ask(url: str, query: bytes, *, timeout: float = TIMEOUT) -> bytes:
    """Send a TimeStampReq and return what comes back, at most `MAX_ANSWER_BYTES`, unchecked.

    Redirections are not followed: the authority is the one that was named. Proxies are those of the
    environment (`https_proxy` and so on).

    Raises:
        UrlError: the address is not one that can be asked.
        UnavailableError: no answer, not in time, or not one of an authority.
    """
    _check_url(url)
    results: queue.SimpleQueue[bytes | Error] = queue.SimpleQueue()

    # In a thread, as a socket's own limit starts anew with each byte that trickles in.
    def exchange() -> None:
        try:
            results.put(_exchange(url, query, timeout))
        except Error as error:
            results.put(error)
        except Exception as error:
            results.put(_unavailable(url, f"{type(error).__name__}: {error}"))

    threading.Thread(target=exchange, name="timestamp", daemon=True).start()
    try:
        result = results.get(timeout=timeout)
    except queue.Empty:
        result = _unavailable(url, f"no answer within {timeout:g} seconds")
    if isinstance(result, Error):
        raise result
    return result


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _exchange(url: str, query: bytes, timeout: float) -> bytes:
    headers = {"Content-Type": _QUERY, "Accept": _REPLIES[0], "User-Agent": "aicert"}
    request = urllib.request.Request(url, query, headers, method="POST")  # noqa: S310 (http, https)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout) as response:
            kind = response.headers.get_content_type()
            if response.status != 200 or kind not in _REPLIES:
                raise _unavailable(url, f"HTTP status {response.status}, {kind}", _REPLIES[0])
            answer = response.read(MAX_ANSWER_BYTES + 1)
            length = response.headers.get("Content-Length", "0")
            if length.isdecimal() and len(answer) < min(int(length), MAX_ANSWER_BYTES + 1):
                raise _unavailable(url, "an answer that was cut")
    except urllib.error.HTTPError as error:
        with error:
            raise _unavailable(url, f"HTTP status {error.code}", "200") from error
    except urllib.error.URLError as error:
        raise _unavailable(url, str(error.reason)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _unavailable(url, f"{type(error).__name__}: {error}") from error
    if len(answer) > MAX_ANSWER_BYTES:
        raise _unavailable(url, "a larger answer", f"at most {MAX_ANSWER_BYTES} bytes")
    return bytes(answer)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise UrlError(
            "this is not the address of a timestamp authority",
            got=url[:200],
            expected="for example https://authority.example/tsr",
        )
    if "@" in parts.netloc or parts.fragment:
        raise UrlError(
            "the address of a timestamp authority holds a password or a fragment",
            advice="leave them out; an authority that wants a password cannot be asked",
        )


def _unavailable(url: str, got: str, expected: str | None = None) -> UnavailableError:
    host = urlsplit(url).netloc  # a path may hold a customer's key
    return UnavailableError(
        f"the timestamp authority at {host} gave no answer that can be used",
        got=got[:300],
        expected=expected,
        advice="try again later, or ask another authority",
    )
