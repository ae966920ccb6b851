"""The ways in which fetching an input fails, and the removal of secrets from what is said of it."""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from aicert.errors import Error


class FetchError(Error):
    """An input cannot be fetched. Whatever looks like a secret is cut from its texts."""

    code = "fetch.failed"

    def __init__(
        self,
        message: str,
        *,
        got: object = None,
        expected: object = None,
        advice: str | None = None,
    ) -> None:
        """Hold the message and, where they help, what was found, what was expected, advice."""
        super().__init__(
            redact(message),
            got=None if got is None else redact(str(got)),
            expected=None if expected is None else redact(str(expected)),
            advice=None if advice is None else redact(advice),
        )

    def about(self, name: str, secrets: Iterable[str]) -> None:
        """Say which input this is about, and cut these secrets from the texts."""
        known = list(secrets)
        self.message = redact(f"input {name}: {self.message}", known)
        self.args = (self.message,)
        self.got = None if self.got is None else redact(self.got, known)
        self.expected = None if self.expected is None else redact(self.expected, known)


class SchemeError(FetchError):
    """No way to fetch is known for this kind of URI, or it is not allowed here."""

    code = "fetch.scheme"


class CredentialsError(FetchError):
    """A URI carries a credential, or a credential would travel in the clear."""

    code = "fetch.credentials"


class MissingExtraError(FetchError):
    """The library for this kind of URI is not installed."""

    code = "fetch.missing-extra"


class UnresolvableError(FetchError):
    """The URI does not lead to one immutable input."""

    code = "fetch.unresolvable"


class NotFoundError(FetchError):
    """Nothing is there."""

    code = "fetch.not-found"


class DeniedError(FetchError):
    """The source refuses us."""

    code = "fetch.denied"


class RedirectError(FetchError):
    """The source redirects too often, or to where we do not follow."""

    code = "fetch.redirect"


class PathError(FetchError):
    """A name in the input, or a place on this machine, is not acceptable."""

    code = "fetch.path"


class LinkError(FetchError):
    """A tree holds a link, a submodule, or something else that stands for content elsewhere."""

    code = "fetch.link"


class TooLargeError(FetchError):
    """The input has more bytes or files than its limit."""

    code = "fetch.too-large"


class NoSpaceError(FetchError):
    """The input does not fit on the disk."""

    code = "fetch.no-space"


class ChangedError(FetchError):
    """The source changed while it was being read."""

    code = "fetch.changed"


class DigestMismatchError(FetchError):
    """What came is not what was expected."""

    code = "fetch.digest-mismatch"


class BusyError(FetchError):
    """Another fetch of the same input is under way."""

    code = "fetch.busy"


class CancelledError(FetchError):
    """Somebody asked us to stop."""

    code = "fetch.cancelled"


class NetworkError(FetchError):
    """The source cannot be reached or does not answer as it should."""

    code = "fetch.network"


class TransientError(NetworkError):
    """A failure that another attempt may mend; `after` is the wait, in seconds, asked of us."""

    def __init__(self, message: str, *, got: object = None, after: float | None = None) -> None:
        """Hold the message, what was found, and how long the source asks us to wait."""
        super().__init__(
            message, got=got, advice="check the network and the source, then try again"
        )
        self.after = after


def from_status(status: int, what: str, after: float | None = None) -> FetchError:
    """Return the error for an HTTP status that is no success; `after` as in `TransientError`."""
    if status in (401, 403):
        return DeniedError(
            f"{what}: the source refuses access",
            got=f"HTTP status {status}",
            advice="give the input's credentials as its secrets, and check that they may read it",
        )
    if status in (404, 410):
        return NotFoundError(
            f"{what}: not found",
            got=f"HTTP status {status}",
            advice="check the URI and the revision; some sources say this where access is missing",
        )
    if status == 412:
        return changed(what)
    if status in (408, 425, 429) or 500 <= status < 600:
        return TransientError(f"{what}: no good answer", got=f"HTTP status {status}", after=after)
    return NetworkError(
        f"{what}: the source answers in a way that we do not know",
        got=f"HTTP status {status}",
        advice="check that the URI is that of the file itself",
    )


def changed(what: str, *, got: object = None, expected: object = None) -> ChangedError:
    """Return the error for a source that is no longer what was resolved."""
    return ChangedError(
        f"{what}: the source changed while it was being read",
        got=got,
        expected=expected,
        advice="run it again when the source is at rest, or name an immutable revision",
    )


_CARRIERS = (
    r"sig|signature|x-amz-(?:signature|security-token|credential)|x-goog-(?:signature|credential)"
    r"|[a-z_-]*token|[a-z_-]*api[-_]?key|[a-z_-]*secret|password|passwd|pwd|auth|authorization"
    r"|credentials?|key-pair-id|code|key"
)
SECRET_PARAMETER = re.compile(_CARRIERS, re.IGNORECASE)
"""Names of query parameters that carry a credential, or may well do."""

_PATTERNS = (
    # The part before the @ of an abfs URI is a container, and "git@" is everybody's name.
    (re.compile(r"(?<!abfs)(?<!abfss)://(?!git@)[^/\s'\"@]+@"), "://***@"),
    # A password with a slash in it makes a URI that no parser takes apart.
    (re.compile(r"://[^/\s@]*:(?!\d+/)\S*@"), "://***@"),
    (re.compile(rf"(?i)([?&;](?:{_CARRIERS})=)[^&\s'\"#;]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{6,}"), r"\1 ***"),
    (re.compile(r"(?i)\b(accountkey|sharedaccesssignature)(\s*[=:]\s*)[^;\s]+"), r"\1\2***"),
)

_PLAIN_OPTIONS = frozenset(
    {"account_name", "account_host", "anon", "endpoint_url", "project", "region_name"}
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without these secrets, URI passwords, signatures, tokens and keys."""
    for secret in secrets:
        for form in (secret, quote(secret, safe="")):
            text = text.replace(form, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def secret_values(value: object) -> list[str]:
    """Return every string in a structure of secrets that must not be shown, the longest first.

    Strings of less than four characters are left out: cutting them would garble every message.
    """
    found: list[str] = []
    if isinstance(value, str):
        inside = re.findall(r"(?:AccountKey|SharedAccessSignature)=([^;]+)", value)
        found = [text for text in (value, *inside) if len(text) > 3]
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _PLAIN_OPTIONS:
                found += secret_values(item)
    elif isinstance(value, list | tuple):
        for item in value:
            found += secret_values(item)
    return sorted(found, key=len, reverse=True)
