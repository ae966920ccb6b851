"""The store: where certificates are published, each name written once.

    <root>/certificates/<SHA-256 of the certificate>/certificate.json
                                                     card.md, and other views
                                                     manifests/<input>.json
                                                     weights/<path>

`certificate.json` is written last, and its presence is what makes an entry published: a crash
half-way leaves nothing that looks published, and publishing again finishes or replaces what it
left. Nobody has to trust a store: an entry is named by the digest of its certificate, and the
certificate names every file by its digest.

In a folder a name is written once by `link(2)` from a finished file, under a lock for each entry;
in an object store by a conditional write where the store has one. Where it has none, what was
written is read back and compared, and `Published.write_once` says so.
"""

import errno
import fcntl
import hashlib
import itertools
import os
import re
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from aicert.agent.fetch.errors import redact, secret_values
from aicert.agent.spec_checks import secret_in
from aicert.certificate import MAX_BYTES
from aicert.errors import Error, install
from aicert.manifest import ManifestError, check_collisions, check_path, hash_file

MAX_VIEW_BYTES = 256 << 20
"""The largest file besides the weights (a manifest of a million files is of that order)."""

CERTIFICATE = "certificate.json"
CARD = "card.md"

WriteOnce = Literal["enforced", "checked"]
Events = Callable[[dict[str, object]], None]

_CHUNK = 1 << 20
_REMOTE_CHUNK = 8 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
# The drivers that refuse to create an object that exists already, whoever made it meanwhile.
_CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure",
           "abfss": "azure"}  # fmt: skip


class StoreError(Error):
    """The store failed."""

    code = "store.failed"


class StoreUrlError(StoreError):
    """The URL of the store is not one that can be used."""

    code = "store.url"


class MissingDriverError(StoreError):
    """The library for this kind of store is not installed."""

    code = "store.missing-extra"


class UnreachableError(StoreError):
    """The store cannot be reached, or there is no such store."""

    code = "store.unreachable"


class DeniedError(StoreError):
    """The store refuses us."""

    code = "store.denied"


class FullError(StoreError):
    """There is no room left."""

    code = "store.full"


class ConflictError(StoreError):
    """Something else stands under a name that is written once."""

    code = "store.conflict"


class CorruptError(StoreError):
    """The store holds, or returned, something else than was written."""

    code = "store.corrupt"


class NotPublishedError(StoreError):
    """There is no such entry or file."""

    code = "store.not-found"


class SourceError(StoreError):
    """A file that is to be published is not what it was said to be, or cannot be read."""

    code = "store.source"


class Weight(NamedTuple):
    """A file of the model: its path, size and SHA-256 (hex), and what yields its bytes."""

    path: str
    size: int
    sha256: str
    open: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Published:
    """A published certificate.

    `url` is that of the entry. `write_once` tells whether the store itself refuses to write a name
    twice, or whether only what was written has been compared. `new` is false where the same entry
    was there already.
    """

    url: str
    digest: str
    write_once: WriteOnce
    new: bool


@dataclass(frozen=True, slots=True)
class Content:
    """What is to stand under a name: its size, its SHA-256 (hex), and what yields its bytes."""

    size: int
    sha256: str
    chunks: Callable[[], Iterable[bytes]]

    @classmethod
    def of(cls, data: bytes) -> "Content":
        """Return the content that these bytes are."""
        return cls(len(data), hashlib.sha256(data).hexdigest(), lambda: [data])

    def read(self, path: str, progress: Callable[[int], None]) -> Iterator[bytes]:
        """Yield the bytes, and fail at the end if they are not the ones that were announced."""
        digest = hashlib.sha256()
        size = 0
        try:
            for chunk in self.chunks():
                digest.update(chunk)
                size += len(chunk)
                if size > self.size:
                    break
                progress(len(chunk))
                yield chunk
        except Error:
            raise
        except Exception as error:
            raise SourceError("a file cannot be read", got=f"{path}: {error}") from error
        if (size, digest.hexdigest()) != (self.size, self.sha256):
            raise SourceError(
                "a file is not the one that the certificate names",
                got=f"{path}: {size} bytes, sha256:{digest.hexdigest()}",
                expected=f"{self.size} bytes, sha256:{self.sha256}",
                advice="nothing may write to the outputs before they are published",
            )


class Store:
    """A folder or a bucket of published certificates. Safe to use from many processes at once."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """Open the store at `url`: a path, or a URL that fsspec knows.

        Secrets go into `storage_options` and appear in no error, URL or repr.

        Raises:
            StoreUrlError: the URL cannot be used, or holds a secret.
            MissingDriverError: the library for it is not installed.
        """
        self._backend = _connect(url, dict(storage_options or {}))

    def __repr__(self) -> str:
        """Return the URL alone."""
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """Where the store is, without secrets."""
        return self._backend.url

    @property
    def write_once(self) -> WriteOnce:
        """Whether the store itself refuses to write a name twice."""
        return self._backend.write_once

    def check(self) -> None:
        """Find out whether the store is there and may be listed; nothing is written.

        Of Azure's blobs also whether they may be written.

        Raises:
            StoreError: it is not.
        """
        self._backend.check()

    def retention(self) -> str | None:
        """Say what the store itself keeps from being changed or deleted; None: it cannot say.

        Raises:
            StoreError: the store cannot be asked.
        """
        return self._backend.retention()

    def publish(
        self,
        certificate: bytes,
        *,
        manifests: Mapping[str, bytes] | None = None,
        card: bytes | None = None,
        views: Mapping[str, bytes] | None = None,
        weights: Iterable[Weight] = (),
        on_event: Events | None = None,
    ) -> Published:
        """Publish a certificate with its manifests, views and, where given, the weights.

        Publishing the same again changes nothing, and completes what an earlier attempt left out.
        Every file is read back and compared before the certificate is written.

        Args:
            certificate: the certificate file; its SHA-256 names the entry.
            manifests: by the name of the input.
            card: the card in Markdown.
            views: other files, by name.
            weights: the files of the model, each read once, as they are needed.
            on_event: is told of progress.

        Raises:
            ConflictError: something else stands under one of the names.
            SourceError: a weight is not what it was said to be.
            StoreError: (a subclass) the store failed; publishing again is safe.
        """
        digest = hashlib.sha256(certificate).hexdigest()
        files = {
            **({CARD: Content.of(card)} if card is not None else {}),
            **{name: Content.of(data) for name, data in (views or {}).items()},
            **{
                f"manifests/{name}.json": Content.of(data)
                for name, data in (manifests or {}).items()
            },
        }
        small = tuple(files)
        for path, size, sha256, source in weights:
            files[f"weights/{path}"] = Content(size, sha256, source)
        _check_names([*files, CERTIFICATE], [*small, CERTIFICATE])
        progress = _progress(on_event, sum(content.size for content in files.values()))

        backend = self._backend
        folder = f"certificates/{digest}"
        final = Content.of(certificate)
        with backend.locked(digest):
            published = backend.holds(f"{folder}/{CERTIFICATE}", final)
            if published is False:
                raise _altered(f"{folder}/{CERTIFICATE}")
            new = published is None
            for name, content in files.items():
                self._put(f"{folder}/{name}", content, replace=new, progress=progress)
            if new:
                backend.tidy(folder, keep=frozenset(files))
                self._put(f"{folder}/{CERTIFICATE}", final, replace=False, progress=lambda _: None)
            if not backend.exclusive:
                # Nobody could be kept out: has somebody put another view there meanwhile?
                for name in small:
                    if backend.holds(f"{folder}/{name}", files[name]) is not True:
                        raise _conflict(f"{folder}/{name}")
        return Published(f"{self.url}/{folder}", digest, backend.write_once, new)

    def _put(
        self, path: str, content: Content, *, replace: bool, progress: Callable[[int], None]
    ) -> None:
        """See to it that `content`, and nothing else, stands under the name."""
        backend = self._backend
        holds = backend.holds(path, content)
        if holds is False and replace:
            # Left by an attempt that never published: nobody has relied on it.
            backend.replace(path, content, progress)
        elif holds is None:
            backend.create(path, content, progress)
        else:
            progress(content.size)
        if holds is not True:
            holds = backend.holds(path, content)
            if holds is None:
                raise CorruptError(
                    "the store does not return what was written",
                    got=path,
                    advice="publish again; if it stays, the store cannot be relied on",
                )
        if not holds:
            raise _conflict(path)

    def digests(self) -> tuple[str, ...]:
        """List the published certificates by their digests, in order.

        Raises:
            StoreError: the store cannot be listed.
        """
        return tuple(sorted(self._backend.digests()))

    def read(self, digest: str) -> bytes:
        """Return a certificate, checked against its name.

        Raises:
            NotPublishedError: there is none.
            CorruptError: it is not what its name says.
        """
        path = f"{_entry(digest)}/{CERTIFICATE}"
        data = self._read(path, MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise _altered(path)
        return data

    def read_file(self, digest: str, path: str, *, max_bytes: int = MAX_VIEW_BYTES) -> bytes:
        """Return another file of a published entry. The store vouches for nothing in it.

        Raises:
            NotPublishedError: there is none, or the entry is not published.
            CorruptError: it is larger than `max_bytes`.
        """
        return b"".join(self.iterate(digest, path, max_bytes=max_bytes))

    def iterate(self, digest: str, path: str, *, max_bytes: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a file of a published entry; errors as `read_file`."""
        entry = _entry(digest)
        check_path(path)
        if not self._backend.exists(f"{entry}/{CERTIFICATE}"):
            raise not_published(digest)
        yield from _limited(self._backend.chunks(f"{entry}/{path}"), path, max_bytes)

    def files(self, digest: str) -> tuple[str, ...]:
        """List the paths of a published entry, in order.

        Raises:
            NotPublishedError: there is no such entry.
        """
        found = tuple(sorted(self._backend.files(_entry(digest))))
        if CERTIFICATE not in found:
            raise not_published(digest)
        return found

    def _read(self, path: str, limit: int) -> bytes:
        return b"".join(_limited(self._backend.chunks(path), path, limit))


def _limited(chunks: Iterator[bytes], path: str, limit: int | None) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if limit is not None and size > limit:
            raise CorruptError("a file in the store is too large", got=path, expected=limit)
        yield chunk


def _progress(on_event: Events | None, total: int) -> Callable[[int], None]:
    done = 0
    told = 0

    def progress(count: int) -> None:
        nonlocal done, told
        done += count
        if on_event is not None and (done - told >= total // 100 or done == total):
            told = done
            on_event(
                {
                    "type": "progress",
                    "what": "publish",
                    "done": done,
                    "total": total,
                    "unit": "bytes",
                }
            )

    return progress


def _check_names(paths: list[str], own: list[str]) -> None:
    try:
        for path in paths:
            check_path(path)
        check_collisions(paths)
    except ManifestError as error:
        raise SourceError(error.message, got=error.got) from error
    for path in own:
        if path.startswith("weights/") or own.count(path) > 1:
            raise SourceError("a view has a name that is taken", got=path)


def is_digest(text: str) -> bool:
    """Tell whether this names an entry: the hex of a SHA-256."""
    return _DIGEST.fullmatch(text) is not None


def _entry(digest: str) -> str:
    if not is_digest(digest):
        raise NotPublishedError("this is not the digest of a certificate", got=digest,
                                expected="64 hex digits")  # fmt: skip
    return f"certificates/{digest}"


def not_published(name: str) -> NotPublishedError:
    """Return the error for a name under which nothing stands."""
    return NotPublishedError("nothing is published under this name", got=name)


def _conflict(path: str) -> ConflictError:
    return ConflictError(
        "something else is published under this name already",
        got=path,
        advice="what is published stays as it is; if it is damaged, publish into another store",
    )


def _altered(path: str) -> CorruptError:
    return CorruptError(
        "a certificate in the store is not what its name says",
        got=path,
        advice="it was altered or damaged after it was published; restore it from another copy",
    )


# -- where the files are -------------------------------------------------------------------------


class Backend(ABC):
    """Names and bytes. Paths are relative to the root, with `/` between their parts."""

    url: str
    write_once: WriteOnce
    exclusive: bool
    """Whether `locked` keeps all other publishers of an entry out."""

    @abstractmethod
    def check(self) -> None:
        """Find out whether the store can be used."""

    def retention(self) -> str | None:
        """Say what the store itself keeps from being changed or deleted; None: it cannot say."""
        return None

    @abstractmethod
    @contextmanager
    def locked(self, digest: str) -> Iterator[None]:
        """Keep other publishers of the entry out, where that is possible."""

    @abstractmethod
    def holds(self, path: str, content: Content) -> bool | None:
        """Tell whether `content` stands there: None where nothing does, False for another one."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Tell whether anything stands there."""

    @abstractmethod
    def create(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        """Write a name that is free; do nothing where it has been taken meanwhile."""

    @abstractmethod
    def replace(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        """Write a name that holds a leftover."""

    @abstractmethod
    def tidy(self, folder: str, *, keep: frozenset[str]) -> None:
        """Remove other leftovers from an entry that is not published, where it is exclusive."""

    @abstractmethod
    def digests(self) -> list[str]:
        """List the published entries."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """List the files of an entry."""

    @abstractmethod
    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the bytes that stand there."""


def check_url(url: str) -> str:
    """Return the scheme of a store's URL (`file` for a path) if it can be one and has no secret.

    Raises:
        StoreUrlError: it cannot, or has.
    """
    scheme, separator, rest = url.partition("://")
    kind = secret_in(url)
    if separator and kind is None:
        user = rest.partition("/")[0].rpartition("@")[0]
        # Before the @ of an abfs URL stands a container.
        if "?" in rest or "#" in rest or (user and scheme not in ("abfs", "abfss")):
            kind = "a credential, a query or a fragment"
    if kind is not None:
        raise StoreUrlError(
            f"the URL of the store holds {kind}",
            advice="take it out, treat it as leaked, and give a new one in the storage options",
        )
    if not url or (separator and not rest) or "::" in url:
        raise StoreUrlError(
            "this is not the URL of a store",
            got=url,
            expected="a path, or a URL such as s3://bucket/folder",
        )
    return scheme if separator else "file"


def _connect(url: str, options: dict[str, Any]) -> Backend:
    scheme = check_url(url)
    if scheme in ("https", "http"):
        from aicert.agent.blobs import Blobs

        return Blobs(url, options)
    if scheme not in ("file", "local"):
        return _Objects(scheme, url.rstrip("/"), options)
    _, separator, rest = url.partition("://")
    return _Folder(Path(unquote(rest) if separator else url).expanduser().absolute())


class _Folder(Backend):
    """A folder of this machine, or one that is mounted here."""

    exclusive = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self.write_once = "enforced"

    def check(self) -> None:
        with reported(self.url, ()):
            # A store that was never used need not exist, but its place must be one to make it in.
            place = next(p for p in (self.root, *self.root.parents) if os.path.lexists(p))
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(place))
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(place))
            list(os.scandir(place))

    @contextmanager
    def locked(self, digest: str) -> Iterator[None]:
        staging = self.root / ".staging"
        with reported(self.url, ()):
            self._make(staging)
            lock = _take(staging / f"{digest}.lock")
        assert lock is not None
        try:
            with reported(self.url, ()):
                self._sweep(staging, digest)
            yield
        finally:
            # Removed under the lock: whoever waits for it sees that it is gone, and begins again.
            (staging / f"{digest}.lock").unlink(missing_ok=True)
            os.close(lock)

    @staticmethod
    def _sweep(staging: Path, digest: str) -> None:
        """Remove what killed publishers left: of this entry, and where nobody else is at it."""
        for entry in list(os.scandir(staging)):
            owner = entry.name.partition(".")[0]
            if entry.name == f"{digest}.lock":
                continue
            lock = staging / f"{owner}.lock"
            held = None if owner == digest else _take(lock, wait=False)
            if owner == digest or held is not None:
                Path(entry.path).unlink(missing_ok=True)
            if held is not None:
                lock.unlink(missing_ok=True)
                os.close(held)

    def holds(self, path: str, content: Content) -> bool | None:
        place = self.root / path
        with reported(self.url, ()):
            try:
                status = place.lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(status.st_mode) or status.st_size != content.size:
                return False
            try:
                return hash_file(place) == (content.size, content.sha256)
            except ManifestError as error:
                raise DeniedError(error.message, got=error.got) from error

    def exists(self, path: str) -> bool:
        with reported(self.url, ()):
            return os.path.lexists(self.root / path)

    def create(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        place = self.root / path
        digest = path.split("/")[1]
        with reported(self.url, ()):
            self._make(place.parent)
            staged = self._stage(digest, path, content, progress)
            try:
                os.link(staged, place, follow_symlinks=False)
            except FileExistsError:
                pass  # the caller compares
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                    raise
                # No links on this file system: a rename is as whole, but would replace a file that
                # somebody who does not take our lock has put there this instant.
                self.write_once = "checked"
                if not os.path.lexists(place):
                    staged.rename(place)
            _sync(place.parent)
            staged.unlink(missing_ok=True)

    def _stage(
        self, digest: str, path: str, content: Content, progress: Callable[[int], None]
    ) -> Path:
        """Write a file whole and durably under a name that nobody reads."""
        for number in itertools.count():
            staged = self.root / ".staging" / f"{digest}.{number}"
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(staged, flags, 0o444)
                break
            except FileExistsError:
                continue
        try:
            with open(descriptor, "wb") as stream:
                for chunk in content.read(path, progress):
                    stream.write(chunk)
                stream.flush()
                os.fsync(descriptor)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def replace(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        with reported(self.url, ()):
            (self.root / path).unlink()
        self.create(path, content, progress)

    def tidy(self, folder: str, *, keep: frozenset[str]) -> None:
        with reported(self.url, ()):
            for path in self._walk(self.root / folder):
                if path not in keep:
                    (self.root / folder / path).unlink()

    def digests(self) -> list[str]:
        with reported(self.url, ()):
            try:
                entries = list(os.scandir(self.root / "certificates"))
            except FileNotFoundError:
                return []
            return [
                entry.name
                for entry in entries
                if _DIGEST.fullmatch(entry.name) and Path(entry.path, CERTIFICATE).is_file()
            ]

    def files(self, folder: str) -> list[str]:
        with reported(self.url, ()):
            return list(self._walk(self.root / folder))

    @staticmethod
    def _walk(place: Path) -> Iterator[str]:
        for directory, _, names in os.walk(place):
            for name in names:
                yield Path(directory, name).relative_to(place).as_posix()

    def chunks(self, path: str) -> Iterator[bytes]:
        with reported(self.url, ()):
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(self.root / path, flags)
            except (FileNotFoundError, NotADirectoryError):
                raise not_published(path) from None
            with open(descriptor, "rb", buffering=0) as stream:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise not_published(path)
                while chunk := stream.read(_CHUNK):
                    yield chunk

    def _make(self, folder: Path) -> None:
        """Make a folder and those around it, durably."""
        missing = []
        while not folder.is_dir():
            # Looked at twice: another publisher may have made it between the first look and this.
            if os.path.lexists(folder) and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
            missing.append(folder)
            folder = folder.parent
        for place in reversed(missing):
            try:
                place.mkdir()
            except FileExistsError:
                if not place.is_dir():
                    raise
            _sync(place.parent)


def _take(path: Path, *, wait: bool = True) -> int | None:
    """Lock a lock file, and return its descriptor; None where somebody else has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its holder removes the file: the one that we waited for may be another one by now.
            if os.fstat(descriptor).st_nlink and os.path.samestat(
                os.fstat(descriptor), path.lstat()
            ):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


class _Objects(Backend):
    """An object store, or anything else that fsspec knows."""

    exclusive = False

    def __init__(self, scheme: str, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.write_once = "enforced" if scheme in _CONDITIONAL else "checked"
        self._secrets = tuple(secret_values(options))
        try:
            import fsspec

            # An instance of our own: fsspec would keep it, secrets and all.
            self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            raise MissingDriverError(
                f"the driver for {scheme} is not installed",
                got=error,
                advice=install(extra) if extra else "install what is named above",
            ) from error
        except Exception as error:
            raise StoreUrlError(
                "the store cannot be opened", got=redact(f"{url}: {error}", self._secrets)
            ) from error
        self._root = str(root).rstrip("/")

    def _reported(self) -> Any:
        return reported(self.url, self._secrets)

    def check(self) -> None:
        with self._reported():
            self._fs.invalidate_cache()
            try:
                self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                # A folder exists once something is in it; the bucket must be there before.
                self._fs.ls(self._root.partition("/")[0] or "/", detail=False)

    @contextmanager
    def locked(self, digest: str) -> Iterator[None]:
        del digest
        yield

    def holds(self, path: str, content: Content) -> bool | None:
        size = self._size(path)
        if size is None or size != content.size:
            return None if size is None else False
        digest = hashlib.sha256()
        try:
            for chunk in self.chunks(path):
                digest.update(chunk)
        except NotPublishedError:
            return None
        return digest.hexdigest() == content.sha256

    def exists(self, path: str) -> bool:
        return self._size(path) is not None

    def _size(self, path: str) -> int | None:
        with self._reported():
            self._fs.invalidate_cache()
            try:
                info = self._fs.info(f"{self._root}/{path}")
            except FileNotFoundError:
                return None
            return int(info["size"]) if info["type"] == "file" else None

    def create(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        self._write(path, content, "create", progress)

    def replace(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        self._write(path, content, "overwrite", progress)

    def _write(
        self, path: str, content: Content, mode: str, progress: Callable[[int], None]
    ) -> None:
        # By way of a file: an upload must not begin before its content is known to be right, for
        # an fsspec stream that breaks off half-way is completed, not abandoned, when it closes.
        with tempfile.NamedTemporaryFile(prefix="aicert-", buffering=_CHUNK) as spool:
            for chunk in content.read(path, progress):
                spool.write(chunk)
            spool.flush()
            place = f"{self._root}/{path}"
            with self._reported():
                for last in (False, False, True):
                    try:
                        if self.write_once == "checked":
                            # Not where it might make a bucket.
                            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
                        self._fs.put_file(spool.name, place, mode=mode)
                        break
                    except Exception as error:
                        # Stores say in many ways that the name is taken; so look.
                        if mode == "create" and self._size(path) is not None:
                            break
                        if last or not _may_pass(error):
                            raise

    def tidy(self, folder: str, *, keep: frozenset[str]) -> None:
        """Leave everything: another publisher may be writing it this moment."""

    def digests(self) -> list[str]:
        return [
            digest
            for digest, _, name in (path.partition("/") for path in self.files("certificates"))
            if name == CERTIFICATE and is_digest(digest)
        ]

    def files(self, folder: str) -> list[str]:
        prefix = f"{self._root}/{folder}"
        with self._reported():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(prefix)
            except FileNotFoundError:
                return []
            return [str(path)[len(prefix) + 1 :] for path in found]

    def chunks(self, path: str) -> Iterator[bytes]:
        with self._reported():
            place = f"{self._root}/{path}"
            size = self._size(path)
            if size is None:
                raise not_published(path)
            for start in range(0, size, _REMOTE_CHUNK):
                yield self._fs.cat_file(place, start=start, end=min(size, start + _REMOTE_CHUNK))


def _may_pass(error: Exception) -> bool:
    """Tell whether another attempt may help: two writers at one name at one time (409 at S3)."""
    text = f"{type(error).__name__} {error}"
    return "ConditionalRequestConflict" in text or "OperationAborted" in text


@contextmanager
def reported(url: str, secrets: Iterable[str]) -> Iterator[None]:
    """Turn whatever a file system raises into an error of the store, without secrets in it."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise _explained(error, url, tuple(secrets)) from None


def _explained(error: Exception, url: str, secrets: tuple[str, ...]) -> StoreError:
    # Azure's errors end with the whole answer, and have a line for each of its parts.
    message = str(error).partition("\nContent: ")[0].replace("\n", "; ")
    text = redact(f"{type(error).__name__}: {message}", secrets)
    got = f"{url}: {text}"
    number = getattr(error, "errno", None)
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    name = type(error).__name__
    if (
        isinstance(error, PermissionError)
        or str(status) in ("401", "403")
        or "Authentication" in name
    ):
        return DeniedError(
            "the store refuses access",
            got=got,
            advice="check the storage options, and that they may list, read and create there",
        )
    if "NoCredentials" in name or "Credential" in name:
        return DeniedError(
            "there are no credentials for the store",
            got=got,
            advice="give them in the storage options of the store",
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return FullError("the store has no room left", got=got, advice="make room; publish again")
    if number == errno.EROFS:
        return DeniedError("the store is read-only", got=got, advice="mount it for writing")
    if isinstance(error, FileExistsError) or "Immutable" in text:
        return ConflictError(
            "the store does not let a name be written again",
            got=got,
            advice="what is published stays as it is; publish into another store",
        )
    return UnreachableError(
        "the store cannot be used",
        got=got,
        advice="check that it exists, its URL, and the way to it; then publish again",
    )
