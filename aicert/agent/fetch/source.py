"""What every kind of input has in common: the request, what it resolves to, how it is read.

Each scheme has a module that makes a `Source`; `transfer` reads any of them.
"""

import importlib
import ipaddress
import random
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from aicert.agent.fetch.errors import (
    SECRET_PARAMETER,
    CancelledError,
    CredentialsError,
    MissingExtraError,
    TransientError,
    UnresolvableError,
    changed,
    redact,
)
from aicert.errors import install

T = TypeVar("T")

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HUB_URI = re.compile(rf"hf://(?:(datasets|models)/)?({_PART}/{_PART})(?:@([^/]+))?(?:/([^?#]*))?")
"""Kind, name, revision and path of an input from the Hugging Face Hub."""

VERSION_NAMES = {
    "s3": "versionId", "gs": "generation",
    "az": "versionid", "abfs": "versionid", "abfss": "versionid",
}  # fmt: skip
"""The query parameter by which each kind of object store names a version."""

UNVERSIONED = ("file", "http", "https")
"""The kinds of URI that have no revisions."""

Kind = Literal["file", "tree"]


@dataclass(frozen=True, slots=True)
class InputRequest:
    """An input as the training spec names it.

    `revision` is a branch, tag, commit or version, where the scheme has them. `sha256` is the
    digest that is expected: of the file for one file, the OMS v1 root for a tree.
    """

    name: str
    uri: str
    revision: str | None = None
    sha256: str | None = None

    def __repr__(self) -> str:
        """Return the fields, without credentials that the URI may hold."""
        return f"InputRequest({self.name!r}, {redact(self.uri)!r}, revision={self.revision!r})"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an input, before it is fetched.

    `etag` is what would differ if the content did (entity tag, version, object id); `sha256` is
    what the source says of the content, which is checked. `key` is for the source alone. A file
    that is not `ranged` can only be read from its start to its end.
    """

    path: str
    size: int | None
    etag: str | None = None
    sha256: str | None = None
    key: str = field(default="", repr=False)
    ranged: bool = True


@dataclass(frozen=True, slots=True)
class Resolved:
    """An input tied to one revision. Nothing in it is secret.

    `uri` names that revision where the scheme can; `revision` is the commit, version, generation,
    entity tag or, for a listing of objects, `sha256:` and the digest of the listing. `git_commit`
    is set where git itself has checked the content against the commit. `files` is empty where the
    listing is known only after `prepare` (git).
    """

    scheme: str
    uri: str
    requested: str
    revision: str | None
    git_commit: str | None
    kind: Kind
    files: tuple[RemoteFile, ...] = field(default=(), repr=False)


class Source(ABC):
    """One resolved input that can be read, by several threads at once."""

    resolved: Resolved

    batch: ClassVar[int] = 4
    """How many small files one thread brings before the next is asked."""

    crowd: ClassVar[int] = 4
    """How many times as many threads bring small files as bring large ones."""

    remote: ClassVar[bool] = True
    """Whether asking for a block again costs more than reading one that is here already."""

    def prepare(self, scratch: Path, max_bytes: int) -> None:  # noqa: B027
        """Complete `resolved.files`, where that takes fetching at most `max_bytes` into `scratch`.

        Raises:
            FetchError: it fails.
        """

    @abstractmethod
    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end` (None: to the end of the file).

        Raises:
            ChangedError: the file is no longer the one that was listed.
            TransientError: another attempt may mend it.
            FetchError: anything else.
        """

    def fill(self, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        """Fill memory with the bytes from `start`; yield how many came, each time that some did.

        It may end before the memory is full.

        Raises:
            FetchError: as `read`; a source that sends more than was asked for has changed.
        """
        filled = 0
        for piece in self.read(file, start, start + len(into)):
            if filled + len(piece) > len(into):
                raise changed(file.path, expected=f"{file.size} bytes")
            into[filled : filled + len(piece)] = piece
            filled += len(piece)
            yield len(piece)

    def together(self, files: Sequence[RemoteFile]) -> dict[str, bytes]:  # noqa: ARG002
        """Return the content of small files by their paths: of those that came at once, if any.

        What is missing, or has not the size that was listed, is to be asked for by `fill`.
        """
        return {}

    def interrupt(self) -> None:  # noqa: B027
        """End what other threads wait for in `read`, where that can be, for good."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and processes."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how patiently, to try again after a transient failure; times in seconds."""

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60.0
    stop: threading.Event = field(default_factory=threading.Event, compare=False)

    def __call__(self, action: Callable[[], T]) -> T:
        """Return what `action` returns.

        Waits double from one attempt to the next, less a random part so that many readers do not
        come back at once; a wait that the source asks for is kept, up to the longest.

        Raises:
            TransientError: the last attempt failed too.
            CancelledError: `stop` was set during a wait.
            Exception: whatever else `action` raises, at once.
        """
        for attempt in range(1, self.attempts):
            try:
                return action()
            except TransientError as error:
                wait = self.first_wait * 2 ** (attempt - 1) * random.uniform(0.5, 1)  # noqa: S311
                wait = min(max(wait, error.after or 0), self.longest_wait)
                if self.stop.wait(wait):
                    raise CancelledError("the fetch was cancelled") from None
        return action()


def need(module: str, extra: str) -> ModuleType:
    """Import a module that comes with an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"the Python package {module.partition('.')[0]} is not installed",
            advice=install(extra),
        ) from error


def split(uri: str) -> SplitResult:
    """Split a URI.

    Raises:
        UnresolvableError: it is not a URI.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        # Not chained: the parser quotes what may be a piece of a password.
        raise UnresolvableError("this is not a URI", got=uri) from None
    return parts


def refuse_credentials(parts: SplitResult, *, users: tuple[str, ...] = ()) -> None:
    """Refuse a URI that carries a credential; `users` are the names that are none.

    A URI is measured and published, so nothing secret may stand in it.

    Raises:
        CredentialsError: it does.
    """
    user = parts.netloc.rpartition("@")[0]
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    found = ["user name"] if user not in ("", *users) else []
    found += filter(SECRET_PARAMETER.fullmatch, names)
    if found:
        raise CredentialsError(
            f"the URI carries a credential ({found[0]})",
            advice="URIs are published with the certificate: take it out of the URI, treat it as "
            "leaked, and give a new one as a secret of this input (token, headers, "
            "storage_options)",
        )


def refuse_clear_text(parts: SplitResult) -> None:
    """Refuse to send credentials over plain HTTP, unless within this machine.

    Raises:
        CredentialsError: the URI is an http one.
    """
    try:
        local = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = parts.hostname == "localhost"
    if parts.scheme.endswith("http") and not local:
        raise CredentialsError("the credentials would travel in the clear", advice="use https")


def page_advice(parts: SplitResult) -> str | None:
    """Return what to write instead of the address of a page for people, where it is one we know."""
    if parts.hostname in ("huggingface.co", "hf.co") and "/resolve/" not in parts.path:
        return "for a model or data set on the Hub write hf://[datasets/]owner/name"
    if parts.path.endswith(".git"):
        return f"for a git repository write git+{parts.scheme}://..."
    return None


def split_revision(uri: str) -> tuple[str, str | None]:
    """Return a good URI without the revision or version that it names, and that, where it does."""
    scheme = uri.partition(":")[0]
    parts = split(uri)
    found = ""
    if scheme == "hf" and (match := HUB_URI.fullmatch(uri)):
        found = unquote(match[3] or "")
        uri = uri.replace(f"@{match[3]}", "", 1) if found else uri
    elif scheme.startswith("git+") and "@" in parts.path:
        path, _, found = parts.path.rpartition("@")
        uri = parts._replace(path=path).geturl()
    elif scheme in VERSION_NAMES:
        fields = parse_qsl(parts.query, keep_blank_values=True)
        wanted = VERSION_NAMES[scheme].lower()
        found = next((value for name, value in fields if name.lower() == wanted), "")
        others = [(name, value) for name, value in fields if name.lower() != wanted]
        uri = parts._replace(query=urlencode(others)).geturl()
    return uri, found or None


def no_revision(request: InputRequest, scheme: str) -> None:
    """Refuse a revision where the scheme has none.

    Raises:
        UnresolvableError: one is given.
    """
    if request.revision is not None:
        raise UnresolvableError(
            f"{scheme} inputs have no revisions",
            got=request.revision,
            advice="leave the revision out; to fix the content, give its sha256",
        )


def pick_revision(request: InputRequest, in_uri: str | None) -> str | None:
    """Return the one revision that the request names.

    Raises:
        UnresolvableError: the URI and the field `revision` name two.
    """
    if in_uri and request.revision and in_uri != request.revision:
        raise UnresolvableError(
            "the URI and the revision disagree", got=in_uri, expected=request.revision
        )
    return request.revision or in_uri or None


def secret(secrets: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the secrets of one kind (`headers`, `storage_options`), or nothing.

    Raises:
        UnresolvableError: it is not a mapping.
    """
    value = secrets.get(name) or {}
    if not isinstance(value, Mapping):
        raise UnresolvableError(f"the secret {name} must be a mapping of names to values")
    return {str(key): item for key, item in value.items()}
