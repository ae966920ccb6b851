"""Manifests: the files of a tree, with sizes and SHA-256, and one root digest over them.

The root is that of the OpenSSF Model Signing format, version 1: SHA-256 over the raw digests of
the files, in the order of their paths, compared part by part. That root does not cover names and
sizes, so each manifest also has a digest of its canonical JSON, which does; what we measure holds
both.
"""

import hashlib
import os
import stat
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from typing import Any

from aicert import canonical
from aicert.errors import Error
from aicert.reader import Reader

MAX_FILES = 1_000_000
"""The most files that a manifest may list."""

MAX_PATH = 1024
"""The longest path, in UTF-8 bytes."""

_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WILL_NEED = getattr(os, "POSIX_FADV_WILLNEED", None)  # not on macOS
_SMALL = 64 << 10
_AHEAD = 16
_MAX_DEPTH = 64
_PIECE = 1000


class ManifestError(Error):
    """A tree or a manifest cannot be accepted."""

    code = "manifest.invalid"
    remedy = (
        "if the place that is named is in your folder, mend it there; if it is in the "
        "certificate, do not use the certificate"
    )


class PathError(ManifestError):
    """A path is not a plain relative path."""

    code = "manifest.path"
    remedy = (
        "if it is in your folder, rename the file; if it is in the certificate, do not use the "
        "certificate"
    )


class CollisionError(ManifestError):
    """Two paths are the same file on some file system."""

    code = "manifest.collision"
    remedy = (
        "if they are in your folder, keep one of the two; if they are in the certificate, do "
        "not use the certificate"
    )


class LinkError(ManifestError):
    """A tree holds a link or a special file."""

    code = "manifest.link"


class ChangedError(ManifestError):
    """A file changed while it was being read."""

    code = "manifest.changed"
    remedy = "stop what writes there, and try again"


@dataclass(frozen=True, slots=True)
class File:
    """One file: its path in the tree, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256}

    @classmethod
    def read(cls, reader: Reader) -> "File":
        """Read the JSON form; the caller refuses unknown fields."""
        path = check_path(reader.text("path", max_length=MAX_PATH))
        return cls(path, reader.integer("size"), reader.sha256("sha256"))


@dataclass(frozen=True)
class Manifest:
    """The files of a tree, in the order of their paths: part by part, each by code point.

    (So `b/c` stands before `b.c`, as OMS has it.)

    `Manifest.from_json(m.to_json()) == m` for every manifest.
    """

    files: tuple[File, ...]

    def __post_init__(self) -> None:
        """Refuse a manifest whose files are unsorted, repeated, or collide."""
        if len(self.files) > MAX_FILES:
            raise ManifestError("too many files", got=len(self.files), expected=MAX_FILES)
        paths = [file.path for file in self.files]
        if any(first >= second for first, second in pairwise(map(_order, paths))):
            raise ManifestError("the files are not sorted by path, or one stands twice")
        check_collisions(paths)

    @classmethod
    def of(cls, files: "list[File]") -> "Manifest":
        """Make a manifest of files in any order."""
        return cls(tuple(sorted(files, key=lambda file: _order(file.path))))

    @cached_property
    def root(self) -> str:
        """The OMS v1 root, in hex; it does not cover names and sizes (see `digest`)."""
        return hashlib.sha256(b"".join(bytes.fromhex(f.sha256) for f in self.files)).hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex: covers names, sizes and contents."""
        digest = hashlib.sha256()
        for piece in self._encoded():
            digest.update(piece)
        return digest.hexdigest()

    def _encoded(self) -> Iterator[bytes]:
        """Yield the canonical JSON in pieces: whole, that of a million files takes a gigabyte."""
        yield b'{"files":['
        for start in range(0, len(self.files), _PIECE):
            piece = [file.to_json() for file in self.files[start : start + _PIECE]]
            yield (b"," if start else b"") + canonical.dumps(piece)[1:-1]
        yield b'],"version":1}'

    @property
    def size(self) -> int:
        """The sum of the sizes, in bytes."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"version": 1, "files": [file.to_json() for file in self.files]}

    @classmethod
    def from_json(cls, value: Any, where: str = "manifest") -> "Manifest":
        """Read the JSON form.

        Raises:
            ManifestError: it is not a manifest.
        """
        reader = Reader(value, where, ManifestError)
        reader.const("version", 1)
        manifest = cls(tuple(read_files(reader, MAX_FILES)))
        reader.done()
        return manifest


def _order(path: str) -> str:
    """Return what sorts as the parts of the path do: no character stands before the separator."""
    return path.replace("/", "\0")


def read_files(reader: Reader, max_items: int) -> Iterator[File]:
    """Read the field `files`: an array of the JSON form of `File`."""
    for item in reader.children("files", max_items=max_items):
        yield File.read(item)
        item.done()


def check_path(path: str) -> str:
    """Return `path` if it is a plain relative path that means the same everywhere.

    That is: POSIX separators, no empty, `.` or `..` part, no backslash, colon-led drive, control
    or lone-surrogate character, Unicode NFC, at most `MAX_PATH` bytes.

    Raises:
        PathError: it is not.
    """
    problem = None
    parts = path.split("/")
    # Sizes first: what follows takes time in proportion to them.
    if len(path) > MAX_PATH or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH:
        problem = f"is longer than {MAX_PATH} bytes"
    elif len(parts) > _MAX_DEPTH:
        problem = f"is deeper than {_MAX_DEPTH} folders"
    elif not path or any(part in ("", ".", "..") for part in parts):
        problem = "has an empty, '.' or '..' part"
    elif "\\" in path or (len(path) > 1 and path[1] == ":"):
        problem = "has a backslash or a drive"
    elif not path.isprintable() and any(map(_forbidden, set(path))):
        problem = "has a control or a format character"
    elif not unicodedata.is_normalized("NFC", path):
        problem = "is not in Unicode normal form C"
    elif any(part[-1] in ". " for part in parts):
        problem = "has a part that ends in a dot or a space, which some systems drop"
    elif not path.isascii() and len(fold(path)) > MAX_PATH:
        problem = "grows too long in Unicode normal form KC"  # one character can become eighteen
    if problem is not None:
        raise PathError(f"a file's path {problem}", got=path)
    return path


def _forbidden(character: str) -> bool:
    # Cc control, Cf format (bidirectional overrides, zero-width), Cs surrogate, Zl/Zp line ends:
    # such a name looks like another one to a person.
    return (
        (
            not character.isascii()
            and unicodedata.category(character)
            in (
                "Cc",
                "Cf",
                "Cs",
                "Zl",
                "Zp",
            )
        )
        or character < " "
        or character == "\x7f"
    )


def check_collisions(paths: list[str]) -> None:
    """Refuse paths that name one file on a case-folding or normalising file system.

    Also refuses a path that is a folder of another one.

    Raises:
        CollisionError: two paths collide.
    """
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(fold(path), path)
        if other != path:
            raise CollisionError(
                "two paths are one file on some systems",
                got=f"{other}, {path}",
                advice="rename one of them",
            )
    # With a slash at its end a folder is a prefix of all that lies in it, so in order of these keys
    # the next one is among them.
    keys = sorted(f"{key}/" for key in seen)
    for first, second in pairwise(keys):
        if second.startswith(first):
            raise CollisionError("a path is both a file and a folder", got=seen[second[:-1]])


def fold(path: str) -> str:
    """Return the form under which two colliding paths are equal."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def walk(directory: Path) -> Iterator[tuple[str, int]]:
    """Yield (path, size) of every file below `directory`, in no order.

    Nothing is followed: a link or a special file anywhere in the tree is refused.

    Raises:
        LinkError: the tree holds something that is neither a file nor a folder.
        PathError: a name is not acceptable.
        ManifestError: the folder cannot be read, or holds more than `MAX_FILES` files.
    """
    count = 0
    stack: list[tuple[str, str]] = [(os.fspath(directory), "")]
    while stack:
        folder, prefix = stack.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:
            raise ManifestError(
                "a folder cannot be read", got=f"{folder}: {error.strerror}"
            ) from error
        with entries:
            for entry in entries:
                path = check_path(prefix + entry.name)
                if entry.is_dir(follow_symlinks=False):
                    stack.append((entry.path, f"{path}/"))
                elif entry.is_file(follow_symlinks=False):
                    count += 1
                    if count > MAX_FILES:
                        raise ManifestError("the tree holds too many files", expected=MAX_FILES)
                    yield path, entry.stat(follow_symlinks=False).st_size
                else:
                    raise LinkError(
                        "the tree holds a link or a special file",
                        got=path,
                        advice="replace it with the file itself, or remove it",
                    )


def hash_file(path: Path | str, progress: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 in hex of a regular file.

    The last component of the path is not followed when it is a link.

    Raises:
        LinkError: it is not a regular file.
        ChangedError: it was written to meanwhile.
        ManifestError: it cannot be read.
    """
    return _hash_open(_open(path), path, progress)


def _open(path: Path | str) -> int:
    try:
        return os.open(path, _FLAGS)
    except OSError as error:
        kind = LinkError if os.path.islink(path) else ManifestError
        raise kind("a file cannot be read", got=f"{path}: {error.strerror}") from error


def _open_ahead(path: str) -> int:
    """Open a file and have the system read it while we do something else."""
    descriptor = _open(path)
    if _WILL_NEED is not None:
        try:
            os.posix_fadvise(descriptor, 0, 0, _WILL_NEED)
        except OSError:
            pass  # what is wrong with it is said when it is read
    return descriptor


def _read_small(descriptor: int, path: str, expected: int) -> bytes:
    """Read an open file of this size, in one go, and close it."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LinkError("this is not a regular file", got=path)
        data = os.read(descriptor, expected + 1)  # one more, to see it grow
    except OSError as error:
        raise ManifestError("a file cannot be read", got=f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if status.st_size != expected or len(data) > expected:
        raise ChangedError("a file changed while it was read", got=path)
    return data


def _hash_open(
    descriptor: int, path: Path | str, progress: Callable[[int], None] | None
) -> tuple[int, str]:
    """Hash an open file, as `hash_file`, and close it."""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LinkError("this is not a regular file", got=path)
        digest = hashlib.sha256()
        size, expected = 0, status.st_size
        # 1 MiB keeps the SHA unit busy; hashlib releases the GIL, so threads scale with the cores.
        # For a small file no more is taken than it needs, and one byte to see it grow.
        buffer = bytearray(min(expected + 1, _CHUNK))
        view = memoryview(buffer)
        # Never further than it was long: a file that grows as fast as it is read has no end.
        while size <= expected and (count := os.readv(descriptor, [buffer])):
            digest.update(view[:count])
            size += count
            if progress is not None:
                progress(count)
            if size == expected and count < len(buffer):
                break  # more was asked for, and there is none
        # A small file is one read: there is no time between its first byte and its last.
        if size != expected or (size >= _CHUNK and _written(descriptor, status)):
            raise ChangedError("a file changed while it was read", got=path)
    except OSError as error:
        raise ManifestError("a file cannot be read", got=f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def _written(descriptor: int, before: os.stat_result) -> bool:
    after = os.fstat(descriptor)
    return (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def scan(
    directory: Path,
    *,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Hash every file below `directory` and return its manifest.

    Args:
        directory: the tree; links anywhere in it are refused.
        jobs: threads to hash large files with; by default one for each core, at most 16.
        progress: called with each number of bytes hashed, from several threads.

    Raises:
        ManifestError: (or a subclass) the tree cannot be read or is not acceptable; a file whose
            size changed while it was read is a `ChangedError`.
    """
    return hash_files(directory, list(walk(directory)), jobs=jobs, progress=progress)


def hash_files(
    directory: Path,
    listing: "list[tuple[str, int]]",
    *,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Hash the files of a `listing` made by `walk`; otherwise as `scan`."""
    base = os.fspath(directory)

    def one(item: tuple[str, int]) -> File:
        path, expected = item
        size, sha256 = hash_file(f"{base}/{path}", progress)
        if size != expected:
            raise ChangedError("a file changed while it was read", got=path)
        return File(path, size, sha256)

    def ahead(items: Iterator[tuple[str, int]]) -> Iterator[File]:
        opened: deque[tuple[tuple[str, int], int]] = deque()
        try:
            while True:
                while len(opened) < _AHEAD and (item := next(items, None)):
                    opened.append((item, _open_ahead(f"{base}/{item[0]}")))
                if not opened:
                    return
                item, descriptor = opened.popleft()
                path, expected = item
                data = _read_small(descriptor, path, expected)
                if len(data) < expected:
                    yield one(item)  # some file systems give less than is there
                    continue
                if progress is not None:
                    progress(expected)
                yield File(path, expected, hashlib.sha256(data).hexdigest())
        finally:
            for _, descriptor in opened:
                os.close(descriptor)

    # Large files first, so that the last one does not run alone.
    large = sorted((i for i in listing if i[1] >= _SMALL), key=lambda item: -item[1])
    waiting, lock, failed = iter(large), Lock(), Event()

    def work() -> list[File]:
        # Each takes the next one when it is done with the last: a future for each would take more
        # memory than the manifest.
        done: list[File] = []
        try:
            while not failed.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    break
                done.append(one(item))
        except BaseException:
            failed.set()
            raise
        return done

    # Small ones take less time to hash than threads to pass the GIL on: this thread does them all,
    # while the system already reads the next ones.
    small = (item for item in listing if item[1] < _SMALL)
    threads = min(jobs or min(16, os.cpu_count() or 1), len(large))
    if not threads:
        return Manifest.of(list(ahead(small)))
    from concurrent.futures import ThreadPoolExecutor  # brings `logging`: only where it is needed

    with ThreadPoolExecutor(threads) as pool:
        hashed = [pool.submit(work) for _ in range(threads)]
        try:
            files = list(ahead(small))
        except BaseException:
            failed.set()
            raise
        return Manifest.of([*files, *(file for future in hashed for file in future.result())])
