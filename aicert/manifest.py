"""Manifests: the files of a tree, with sizes and SHA-256, and one root digest over them.

The root is that of the OpenSSF Model Signing format, version 1: SHA-256 over the raw digests of
the files, in the order of their paths, compared part by part. That root does not cover names and
sizes, so each manifest also has a digest of its canonical JSON, which does; what we measure holds
both.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from json.encoder import encode_basestring
from pathlib import Path
from typing import IO, Any

from aicert.canonical import MAX_SAFE_INT
from aicert.hashing import BATCH, FILE_FLAGS, Progress, hash_open, hash_runs, open_folder, open_root
from aicert.hashing import ChangedError as ChangedError
from aicert.hashing import LinkError as LinkError
from aicert.hashing import ManifestError as ManifestError
from aicert.reader import Reader

MAX_FILES = 1_000_000
"""The most files that a manifest may list."""

MAX_PATH = 1024
"""The longest path, in UTF-8 bytes."""

_MAX_DEPTH = 64
_PIECE = 1000


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
    def summary(self) -> "Summary":
        """Number and size of the files, and both digests."""
        return self.write(None)

    def write(self, out: IO[bytes] | None) -> "Summary":
        """Write the canonical JSON; return the summary."""
        summing = Summing(out)
        for file in self.files:
            summing.add(file.path, file.size, file.sha256)
        return summing.end()

    @property
    def root(self) -> str:
        """The OMS v1 root, in hex; it does not cover names and sizes (see `digest`)."""
        return self.summary.root

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex: covers names, sizes and contents."""
        return self.summary.digest

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


@dataclass(frozen=True, slots=True)
class Summary:
    """What is measured of a manifest: how many files, their bytes, and both digests in hex."""

    files: int
    size: int
    root: str
    digest: str


class Summing:
    """Makes the summary of a manifest, and its canonical JSON, of one file after the other."""

    def __init__(self, out: IO[bytes] | None = None) -> None:
        """Start a manifest; its canonical JSON is written to `out`."""
        self._out = out
        self._root = hashlib.sha256()
        self._digest = hashlib.sha256()
        self._items: list[str] = []
        self._digests: list[str] = []
        self._files = self._size = 0
        self._put(b'{"files":[')

    def add(self, path: str, size: int, sha256: str) -> None:
        """Add a file: of a path that was checked, behind all others in the order of a manifest."""
        name = encode_basestring(path)
        self._items.append(f'{{"path":{name},"sha256":"{sha256}","size":{size}}}')
        self._digests.append(sha256)
        self._size += size
        if len(self._items) == _PIECE:
            self._flush()

    def end(self) -> Summary:
        """Return the summary.

        Raises:
            ManifestError: it has more bytes than JSON can say.
        """
        self._flush()
        self._put(b'],"version":1}')
        if self._size > MAX_SAFE_INT:
            raise ManifestError("the files are too large", got=self._size, expected=MAX_SAFE_INT)
        return Summary(self._files, self._size, self._root.hexdigest(), self._digest.hexdigest())

    def _flush(self) -> None:
        if self._items:
            self._put((b"," if self._files else b"") + ",".join(self._items).encode())
            self._root.update(bytes.fromhex("".join(self._digests)))
            self._files += len(self._items)
            self._items, self._digests = [], []

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        if self._out is not None:
            self._out.write(data)


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


def walk(directory: Path, ignore: Collection[str] = ()) -> Iterator[tuple[str, int]]:
    """Yield (path, size) of every file below `directory`, in the order of a manifest.

    Nothing is followed: a link or a special file anywhere in the tree is refused. The files whose
    paths are in `ignore` are left out.

    Raises:
        LinkError: the tree holds something that is neither a file nor a folder.
        PathError: a name is not acceptable.
        CollisionError: two paths are one file on some systems.
        ManifestError: the folder cannot be read, or holds more than `MAX_FILES` files.
    """
    root = open_root(directory)
    try:
        for folder, prefix, names in _runs(root, ignore):
            for name in names:
                try:
                    size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
                except OSError as error:
                    raise ChangedError(
                        "a file changed while it was read", got=prefix + name
                    ) from error
                yield prefix + name, size
    finally:
        os.close(root)


def _runs(root: int, ignore: Collection[str] = ()) -> Iterator[tuple[int, str, list[str]]]:
    """Yield every file below an open folder, in the order of a manifest, some at a time.

    That is: (the open folder that they lie in, its path with a slash at its end, their names).
    """
    count = 0
    for run in _runs_below(root, "", None, ignore):
        count += len(run[2])
        if count > MAX_FILES:
            raise ManifestError("the tree holds too many files", expected=MAX_FILES)
        yield run


def _runs_below(
    folder: int, prefix: str, gathered: list[str] | None, ignore: Collection[str]
) -> Iterator[tuple[int, str, list[str]]]:
    """Go through a folder in the order of its names, which makes that of a manifest.

    What is one file on some systems differs below the deepest folder that both paths lie in: by
    names there that are equal when they are folded, or of which one becomes several. Only where a
    folder has such names all paths below it are `gathered` and compared.
    """
    names, folders, plain = _entries(folder, prefix)
    outermost = gathered is None and not plain and _may_collide(names)
    if outermost:
        gathered = []
    run: list[str] = []
    for name in names:
        if name not in folders:
            if ignore and prefix + name in ignore:
                continue
            run.append(name)
            if gathered is not None:
                gathered.append(prefix + name)
        if run and (name in folders or len(run) == BATCH):
            yield folder, prefix, run
            run = []
        if name in folders:
            try:
                inner = open_folder(folder, name)
            except OSError as error:
                raise ManifestError(
                    "a folder cannot be read", got=f"{prefix}{name}: {error.strerror}"
                ) from error
            try:
                yield from _runs_below(inner, f"{prefix}{name}/", gathered, ignore)
            finally:
                os.close(inner)
    if run:
        yield folder, prefix, run
    if outermost and gathered is not None:
        check_collisions(gathered)


def _entries(folder: int, prefix: str) -> tuple[list[str], set[str], bool]:
    """Return the sorted names in a folder, which are folders, and whether all are `_PLAIN`."""
    names: list[str] = []
    folders: set[str] = set()
    all_plain = True
    # What one of these characters or more is, and no longer than this, is plain with its folder.
    room = MAX_PATH - max(len(prefix.encode()), len(fold(prefix)))
    if prefix.count("/") >= _MAX_DEPTH:
        room = -1
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                plain = _PLAIN.fullmatch(name)
                if not plain or len(name) > room:
                    check_path(prefix + name)
                    all_plain = all_plain and plain is not None
                if entry.is_file(follow_symlinks=False):
                    pass
                elif entry.is_dir(follow_symlinks=False):
                    folders.add(name)
                else:
                    raise LinkError(
                        "the tree holds a link or a special file",
                        got=prefix + name,
                        advice="replace it with the file itself, or remove it",
                    )
                names.append(name)
                if len(names) - len(folders) > MAX_FILES:
                    raise ManifestError("the tree holds too many files", expected=MAX_FILES)
    except OSError as error:
        raise ManifestError(
            "a folder cannot be read", got=f"{prefix or '.'}: {error.strerror}"
        ) from error
    names.sort()
    return names, folders, all_plain


# Neither folded nor refused, whatever the names beside it.
_PLAIN = re.compile(r"[a-z0-9._-]*[a-z0-9_-]")


def _may_collide(names: list[str]) -> bool:
    """Tell whether paths that go through these names of one folder might be one on some systems."""
    folded: set[str] = set()
    for name in names:
        key = fold(name)
        if key in folded or "/" in key:
            return True
        folded.add(key)
    return False


def hash_file(path: Path | str, progress: Progress | None = None) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 in hex of a regular file.

    The last component of the path is not followed when it is a link.

    Raises:
        LinkError: it is not a regular file.
        ChangedError: it was written to meanwhile.
        ManifestError: it cannot be read.
    """
    try:
        descriptor = os.open(path, FILE_FLAGS)
    except OSError as error:
        kind = LinkError if os.path.islink(path) else ManifestError
        raise kind("a file cannot be read", got=f"{path}: {error.strerror}") from error
    return hash_open(descriptor, path, progress)


def hashed(
    directory: Path, *, jobs: int | None = None, progress: Progress | None = None
) -> Iterator[File]:
    """Hash every file below `directory`; yield them in the order of a manifest.

    Memory does not grow with the number of files, but for those of one folder.

    Args:
        directory: the tree; links anywhere in it are refused.
        jobs: threads and processes to hash with; by default one for each core, at most 16.
        progress: called with each number of bytes hashed, from several threads.

    Raises:
        ManifestError: (or a subclass) the tree cannot be read or is not acceptable; a file whose
            size changed while it was read is a `ChangedError`.
    """
    root = open_root(directory)
    try:
        runs = ((prefix[:-1], names) for _, prefix, names in _runs(root))
        for item in hash_runs(root, runs, jobs=jobs, progress=progress):
            yield File(*item)
    finally:
        os.close(root)


def scan(directory: Path, *, jobs: int | None = None, progress: Progress | None = None) -> Manifest:
    """Return the manifest of `directory`, with all its files in memory; otherwise as `hashed`."""
    return Manifest(tuple(hashed(directory, jobs=jobs, progress=progress)))


def summarise(
    directory: Path,
    out: IO[bytes] | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Return the digests of the manifest of `directory`, and write it to `out`; as `hashed`."""
    root = open_root(directory)
    try:
        summing = Summing(out)
        runs = ((prefix[:-1], names) for _, prefix, names in _runs(root))
        for item in hash_runs(root, runs, jobs=jobs, progress=progress):
            summing.add(*item)
        return summing.end()
    finally:
        os.close(root)


def hash_files(
    directory: Path,
    listing: "Sequence[tuple[str, int]]",
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Hash the files of a `listing`, of paths and sizes in the order of a manifest; as `scan`.

    No process is started: this is for verifiers, which may live in anybody's program.
    """
    runs = (
        (folder, [check_path(path).rpartition("/")[2] for path, _ in items])
        for folder, items in groupby(listing, lambda item: item[0].rpartition("/")[0])
    )
    files = []
    root = open_root(directory)
    try:
        found = hash_runs(root, runs, jobs=jobs, helpers=0, progress=progress)
        for (path, expected), item in zip(listing, found, strict=True):
            if item[1] != expected:
                raise ChangedError("a file changed while it was read", got=path)
            files.append(File(*item))
    finally:
        os.close(root)
    return Manifest(tuple(files))
