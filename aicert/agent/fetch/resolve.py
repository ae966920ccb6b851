"""From a request to an immutable input on the disk: `resolve` and `fetch`.

What a URI leads to is an attacker's: names and sizes are checked before anything is written, and
whatever comes is hashed before anything is called by its final name.
"""

import errno
import hashlib
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from aicert import canonical
from aicert.agent.fetch.errors import (
    ChangedError,
    DigestMismatchError,
    FetchError,
    NoSpaceError,
    NotFoundError,
    PathError,
    SchemeError,
    TooLargeError,
    UnresolvableError,
    secret_values,
)
from aicert.agent.fetch.file import FileSource
from aicert.agent.fetch.source import InputRequest, Kind, RemoteFile, Resolved, Retry, Source, need
from aicert.agent.fetch.transfer import Partial, Transfer, check_space, place
from aicert.manifest import MAX_FILES, File, Manifest, ManifestError, check_collisions, check_path

SCHEMES = (
    *("file", "https", "http", "hf"),
    *("abfs", "abfss", "az", "s3", "gs"),
    *("git+https", "git+http", "git+file"),
)
"""The kinds of URI that can be fetched."""

MAX_BYTES = 1 << 42
"""The largest input, unless the caller says otherwise: 4 TiB."""

_SECRETS = frozenset({"token", "headers", "storage_options"})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EVENT_INTERVAL = 0.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Events = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """An input on the disk: `path` is a read-only folder that holds exactly `manifest`.

    `sha256` is the digest of the file where the input is one file, else None.
    """

    resolved: Resolved
    manifest: Manifest
    path: Path

    @property
    def root(self) -> str:
        """The OMS v1 root of the manifest, in hex."""
        return self.manifest.root

    @property
    def sha256(self) -> str | None:
        """The digest of the one file, in hex, or None for a tree."""
        return self.manifest.files[0].sha256 if self.resolved.kind == "file" else None


def resolve(
    request: InputRequest,
    *,
    base: Path | None,
    secrets: Mapping[str, object] | None = None,
    max_files: int = MAX_FILES,
    retry: Retry | None = None,
) -> Resolved:
    """Tie a request to one immutable revision, without fetching its content.

    Args:
        request: what the spec says.
        base: the folder that relative `file:` paths start at; None refuses this machine's files.
        secrets: of this input: `token`, `headers`, `storage_options`. They are sent to the source
            and appear nowhere else.
        max_files: the most files that a tree may have.
        retry: how to meet transient failures.

    Raises:
        FetchError: (a subclass) the request leads to no acceptable input.
    """
    secrets = secrets or {}
    with _reported(request, secrets):
        source = _open(request, base, secrets, max_files, retry or Retry())
        source.close()
        return source.resolved


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What was read of an input, all of it or a part; nothing was kept.

    `listing` (SHA-256, hex) is over all that the source lists: parts are of one input only where
    theirs are equal.
    """

    uri: str
    revision: str | None
    kind: Kind
    listing: str
    files: tuple[File, ...]

    @classmethod
    def merged(cls, parts: "Sequence[Surveyed]") -> "Surveyed":
        """Return the whole that disjoint parts make: what one survey of all of it would find.

        Raises:
            ChangedError: the source listed something else meanwhile.
        """
        first = parts[0]
        if any(replace(part, files=()) != replace(first, files=()) for part in parts):
            raise ChangedError(
                f"{first.uri} changed while it was read",
                advice="try again; or name a revision, where the source has them",
            )
        return replace(first, files=tuple(file for part in parts for file in part.files))

    @property
    def manifest(self) -> Manifest:
        """The manifest of the files that were read."""
        return Manifest.of(list(self.files))

    @property
    def sha256(self) -> str:
        """What a spec may expect of it: the file's SHA-256, or the OMS v1 root of the tree."""
        return self.files[0].sha256 if self.kind == "file" else self.manifest.root


def survey(
    request: InputRequest,
    *,
    base: Path | None,
    secrets: Mapping[str, object] | None = None,
    jobs: int = 4,
    max_files: int = MAX_FILES,
    retry: Retry | None = None,
    part: int = 0,
    parts: int = 1,
) -> Surveyed:
    """Read an input through, or one of its `parts`, and return what it holds; nothing is kept.

    For sources that name no revision, where only the content tells whether it is still the same;
    and to know a digest before a run. The arguments are those of `resolve`; `jobs` files are read
    at a time. Parts are whole files, dealt out by size.

    Raises:
        FetchError: (a subclass) the input cannot be had.
    """
    secrets = secrets or {}
    again = retry or Retry()

    def digest(source: Source, file: RemoteFile) -> File:
        size, content = 0, hashlib.sha256()
        for piece in source.read(file, 0, file.size):
            size += len(piece)
            content.update(piece)
        return File(file.path, size, content.hexdigest())

    with _reported(request, secrets), tempfile.TemporaryDirectory(prefix="aicert-") as scratch:
        source = _open(request, base, secrets, max_files, again)
        try:
            source.prepare(Path(scratch), MAX_BYTES)
            found = source.resolved
            _check_names(found, max_files)
            files = sorted(found.files, key=lambda file: (-(file.size or 0), file.path))
            with ThreadPoolExecutor(jobs) as pool:
                read = pool.map(
                    lambda file: again(lambda: digest(source, file)), files[part::parts]
                )
                listing = _identity(found, found.files)
                return Surveyed(found.uri, found.revision, found.kind, listing, tuple(read))
        finally:
            source.close()


def fetch(
    request: InputRequest,
    into: Path,
    *,
    base: Path | None,
    partial: Path,
    secrets: Mapping[str, object] | None = None,
    jobs: int = 4,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
    retry: Retry | None = None,
    on_event: Events | None = None,
    cancelled: threading.Event | None = None,
) -> Fetched:
    """Bring an input onto the disk as a read-only folder, hashed in the pass that brings it.

    `into` appears only when everything is whole and right: a file as `into/<its name>`, a tree as
    the content of `into`. Files are 0444 and folders 0555; executable bits, empty folders and
    times are not kept. A fetch that was cut goes on where it was cut when it is called again with
    the same `partial`; one that succeeded takes its files back from `into` and checks them.

    Args:
        request: what the spec says.
        into: where the input goes; it must not exist, be empty, or come from the same `partial`.
        base: as in `resolve`.
        partial: a folder of this input alone, on the file system of `into`; it is made if need
            be. Remove it when the input is no longer needed.
        secrets: as in `resolve`.
        jobs: requests at a time; `jobs` + 2 blocks of 16 MiB are in memory. Of files up to 64 KiB,
            where it is the answer that takes its time and not the bytes, four times as many; from
            object stores 32 times. Very many from this machine take a few helper processes.
        max_bytes: the most bytes that the input may have.
        max_files: the most files that it may have.
        retry: how to meet transient failures.
        on_event: called in this thread with progress, at most five times a second.
        cancelled: set it from any thread to end the fetch.

    Raises:
        FetchError: (a subclass) the input cannot be had, or is not what was expected.
    """
    secrets = secrets or {}
    cancelled = cancelled or threading.Event()
    retry = replace(retry or Retry(), stop=cancelled)
    with _reported(request, secrets), Partial(partial) as rest:
        into.parent.mkdir(parents=True, exist_ok=True)
        if partial.stat().st_dev != into.parent.stat().st_dev:
            raise PathError("the partial folder and the place are on two file systems", got=partial)
        if into.exists() and any(into.iterdir()):
            rest.take_back(into)
        source = _open(request, base, secrets, max_files, retry)
        try:
            source.prepare(rest.scratch, max_bytes)
            files = source.resolved.files
            _check_names(source.resolved, max_files)
            rest.open(_identity(source.resolved, files) if source.remote else None, files)
            transfer = Transfer(
                source,
                files,
                rest,
                jobs=jobs,
                max_bytes=max_bytes,
                retry=retry,
                progress=_progress(request.name, on_event),
                cancelled=cancelled,
            )
            check_space(partial, sum(file.size or 0 for file in files) - rest.present(files))
            fetched = Fetched(source.resolved, Manifest.of(transfer.run()), into)
            _check_digest(request, fetched)
        except (ChangedError, DigestMismatchError):
            # What is on the disk is of no use to the next attempt.
            rest.discard()
            raise
        finally:
            source.close()
        place(rest, into, closed=not source.remote)
        return fetched


def _open(
    request: InputRequest,
    base: Path | None,
    secrets: Mapping[str, object],
    max_files: int,
    retry: Retry,
) -> Source:
    """Make the source for a request's scheme."""
    if unknown := sorted(secrets.keys() - _SECRETS):
        raise UnresolvableError(
            "unknown kinds of secrets", got=", ".join(unknown), expected=", ".join(sorted(_SECRETS))
        )
    if request.sha256 is not None and not _SHA256.fullmatch(request.sha256.lower()):
        raise UnresolvableError("the expected digest is no SHA-256", got=request.sha256)
    if _CONTROL.search(request.uri):
        raise UnresolvableError("the URI holds a control character", got=request.uri)
    scheme = request.uri.partition(":")[0]
    if scheme not in SCHEMES:
        raise _unknown_scheme(request.uri, scheme)
    if scheme in ("file", "git+file"):
        if base is None:
            raise SchemeError(
                "this agent reads no files of its own machine",
                got=request.uri,
                advice="put the input where the agent can fetch it: https, hf, git or a store",
            )
        if scheme == "file":
            return FileSource(request, base, max_files)
    # Only now the modules that need an extra's libraries, and only the one that is asked for.
    if scheme in ("http", "https"):
        need("urllib3", "agent")
        from aicert.agent.fetch.http import HttpSource

        return HttpSource(request, secrets, retry)
    if scheme == "hf":
        need("urllib3", "agent")
        from aicert.agent.fetch.hf import HubSource

        return HubSource(request, secrets, retry, max_files)
    if scheme.startswith("git+"):
        from aicert.agent.fetch.git import GitSource

        return GitSource(request, base or Path(), secrets, retry, max_files)
    from aicert.agent.fetch import objectstore

    kinds = {"s3": objectstore.S3Source, "gs": objectstore.GoogleSource}
    return kinds.get(scheme, objectstore.AzureSource)(request, secrets, retry, max_files)


def _unknown_scheme(uri: str, scheme: str) -> SchemeError:
    advice = "write the URI with one of these schemes"
    if near := get_close_matches(scheme.lower(), SCHEMES, n=1):
        advice = f"did you mean {near[0]}:?"
    elif re.match(r"(git@|ssh:|git\+ssh:|git:)", uri):
        advice = "write git+https://host/path, with a token as a secret if it is private"
    elif ":" not in uri or re.match(r"[A-Za-z]:\\", uri):
        advice = "for a path on this machine write file:relative/path or file:///absolute/path"
    return SchemeError(
        "inputs cannot be fetched by this kind of URI",
        got=uri,
        expected=", ".join(SCHEMES),
        advice=advice,
    )


def _check_names(resolved: Resolved, max_files: int) -> None:
    """Refuse names that are no plain relative paths or that collide, before anything is written."""
    files = resolved.files
    if len(files) > max_files:
        raise TooLargeError("the input has too many files", got=len(files), expected=max_files)
    if not files:
        raise NotFoundError("the input holds no file", advice="an input needs at least one file")
    paths = sorted(check_path(file.path) for file in files)
    if resolved.kind == "file" and "/" in paths[0]:
        raise PathError("the file's name holds a '/'", got=paths[0], advice="rename the file")
    for first, second in pairwise(paths):
        if first == second:
            raise PathError("the input lists a file twice", got=first)
    check_collisions(paths)


def _identity(resolved: Resolved, files: Sequence[RemoteFile]) -> str:
    listing = [[file.path, file.size, file.etag, file.sha256] for file in files]
    return canonical.sha256([resolved.uri, resolved.revision, listing])


def _check_digest(request: InputRequest, fetched: Fetched) -> None:
    if request.sha256 is None:
        return
    got = fetched.sha256 or fetched.root
    if got != request.sha256.lower():
        what = "file" if fetched.sha256 else "tree"
        raise DigestMismatchError(
            f"the {what} {fetched.resolved.uri} is not the expected one",
            got=got,
            expected=request.sha256,
            advice="nothing was kept; check the revision, or whether the source was changed",
        )


def _progress(name: str, on_event: Events | None) -> Callable[[int, int | None], None]:
    last: tuple[float, tuple[int, int | None]] = (0.0, (-1, None))

    def report(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        due = now - last[0] >= _EVENT_INTERVAL or done == total
        if on_event is not None and due and last[1] != (done, total):
            last = now, (done, total)
            on_event(
                {
                    "type": "progress",
                    "what": f"input {name}",
                    "done": done,
                    "total": total,
                    "unit": "bytes",
                }
            )

    return report


@contextmanager
def _reported(request: InputRequest, secrets: Mapping[str, object]) -> Iterator[None]:
    """Let every failure name the input and show none of its secrets."""
    try:
        yield
    except FetchError as error:
        error.about(request.name, secret_values(secrets))
        raise
    except ManifestError as error:
        problem = PathError(error.message, got=error.got, advice=error.advice)
        problem.about(request.name, ())
        raise problem from error
    except OSError as error:
        # Of this machine: what a source does wrong has become a FetchError already.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            local: FetchError = NoSpaceError(
                "the disk is full", advice="free some space, or give the agent a larger disk"
            )
        else:
            local = PathError("this machine cannot store the input", got=error)
        local.about(request.name, ())
        raise local from error
