"""Record commitments: the records of an input as one digest, which can prove and disprove.

An input is taken apart into records, and each is normalised. The SHA-256 of the normalised records,
in order and each once, are the leaves of a Merkle tree (`aicert.merkle`), whose root the agent
measures with the input. Whoever has the data can then show that one record is in it, or is not, and
show nothing else but digests (`aicert.proof`).

What is a record, and what its normal form is, is named by a method with a version, which
docs/data-statements.md defines. A method never changes: what would give another root for some input
is another version.

Memory does not grow with the input: digests are sorted on the disk.
"""

import gzip
import hashlib
import io
import os
import shutil
import stat
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, cast

from aicert import canonical, parquet
from aicert.errors import Error
from aicert.events import RECORD_METHODS, Records
from aicert.manifest import File, Manifest, check_path, hash_file, scan
from aicert.merkle import DIGEST, Tree, split

MAX_RECORD = 16 << 20
"""The longest line, in bytes, and the longest JSON text of a record."""

_MAX_MARKS = 1_000_000
_BATCH = 1 << 18
_BLOCK = 1 << 11
_FAN = 64
_BUFFER = 1 << 20
_TICK = 1 << 14

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"

# In the lines of these nobody would find a record. (Of most other such files a zero byte tells.)
_HEAD = 512
_NOT_TEXT = (
    (_GZIP, "gzip in gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PAR1", "Parquet, which is taken apart by records: parquet"),
    (b"ARROW1", "Arrow"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)

Progress = Callable[[int], None]


class RecordsError(Error):
    """An input cannot be taken apart into records."""

    code = "records.invalid"
    remedy = "look at the place that is named, or ask for records of another kind"


class NotTextError(RecordsError):
    """A file is not in a form that has lines."""

    code = "records.not-text"


class TooLongError(RecordsError):
    """A record is longer than its limit."""

    code = "records.too-long"


class NoRecordsError(RecordsError):
    """There is no record, so nothing to commit to."""

    code = "records.none"


class ChangedError(RecordsError):
    """A file is not the one in the manifest."""

    code = "records.changed"
    remedy = "stop what writes there, and try again"


def commit(
    folder: Path,
    manifest: Manifest,
    kind: str,
    *,
    scratch: Path,
    keep: IO[bytes] | None = None,
    progress: Progress | None = None,
) -> Records:
    """Return the commitment to the records in a folder's files.

    Args:
        folder: where the files of the manifest lie.
        manifest: what they hold; a file that does not is refused.
        kind: `lines`, `jsonl`, `parquet` or `files`.
        scratch: a folder for at most 64 bytes for each record, which are removed at the end.
        keep: where to write the digests of the records, in order, each once.
        progress: called with each number of bytes read, and now and then with 0; what it raises
            ends the work.

    Raises:
        RecordsError: a file cannot be taken apart, has changed, or no file holds a record.
    """
    report = progress or (lambda _: None)
    tree = Tree()
    try:
        with Sorter(scratch) as sorter:
            for digest in _digests(folder, manifest, kind, report):
                sorter.add(digest)
            for chunk in sorter.chunks():
                tree.extend(chunk)
                if keep is not None:
                    keep.write(b"".join(chunk))
                report(0)
            count = sorter.count
    except OSError as error:
        raise RecordsError(
            "the records cannot be read or sorted on this machine",
            got=error,
            advice="see that the disk has room: 64 bytes for each record",
        ) from error
    if not count:
        raise NoRecordsError(
            "the input holds no record",
            got=f"blank lines alone in {len(manifest.files)} files",
            advice="ask for records of another kind, or for none",
        )
    return Records(RECORD_METHODS[kind], tree.root.hex(), count, tree.size)


def listing(place: Path) -> tuple[Path, Manifest]:
    """Return the folder in which files lie, and what they are: all of a folder, or one file.

    Raises:
        ManifestError: they cannot be read, or not accepted.
    """
    if place.is_dir():
        return place, scan(place)
    return place.parent, Manifest.of([File(check_path(place.name), *hash_file(place))])


def record_digest(data: bytes, kind: str) -> bytes:
    """Return the digest of one record that is given by itself.

    A JSON text may go over several lines, as it stands for itself.

    Raises:
        RecordsError: it is not one record of this kind.
    """
    if kind == "files":
        return hashlib.sha256(data).digest()
    data = data.removeprefix(_BOM).strip()
    if len(data) > MAX_RECORD:
        raise TooLongError("the record is too long", got=len(data), expected=MAX_RECORD)
    if not data or (kind == "lines" and b"\n" in data):
        raise NoRecordsError(
            "this is not one record",
            got=f"{len(data.splitlines())} lines",
            expected="one line that is not blank",
            advice="give one record at a time",
        )
    try:
        return hashlib.sha256(normalise(data, "lines" if kind == "lines" else "jsonl")).digest()
    except canonical.CanonicalError as error:
        raise RecordsError(f"the record: {error.message}", got=error.got) from error


def normalise(line: bytes, kind: str) -> bytes:
    """Return the normal form of a line of `lines` or `jsonl`; empty where it is no record.

    Raises:
        CanonicalError: it is no JSON that we accept.
    """
    line = line.strip()  # of bytes: ASCII white space alone
    if kind == "jsonl" and line:
        value = canonical.loads(line, max_bytes=MAX_RECORD, max_marks=_MAX_MARKS)
        return canonical.dumps(value)
    return line


def _digests(folder: Path, manifest: Manifest, kind: str, report: Progress) -> Iterator[bytes]:
    """Yield the digest of every record."""
    for file in manifest.files:
        if kind == "files":
            yield bytes.fromhex(file.sha256)
        elif kind == "parquet":
            yield from _rows(folder / file.path, file, report)
        else:
            yield from _lines(folder / file.path, file, kind, report)


@contextmanager
def _opened(path: Path, file: File) -> Iterator[IO[bytes]]:
    """Open a file of the manifest, and nothing that only has its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as raw:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ChangedError("this is not a regular file", got=file.path)
        yield raw


def _unchanged(file: File, got: str) -> None:
    if got != file.sha256:
        raise ChangedError(
            "a file changed after it was fetched",
            got=f"{file.path}: {got}",
            expected=file.sha256,
        )


def _rows(path: Path, file: File, report: Progress) -> Iterator[bytes]:
    """Yield the digest of every row of a Parquet file, after a check that it is this file.

    Its footer is at its end, so it is hashed first, and then read in another order.
    """
    with _opened(path, file) as raw:
        hashed = _Hashed(raw, report)
        while hashed.readinto(memoryview(bytearray(_BUFFER))):
            pass
        _unchanged(file, hashed.digest.hexdigest())
        number = 0
        try:
            for row in parquet.rows(raw.fileno(), report):
                number += 1
                normal = canonical.dumps(row)
                if len(normal) > MAX_RECORD:
                    raise TooLongError(
                        "the row is too long", expected=f"at most {MAX_RECORD} bytes"
                    )
                yield hashlib.sha256(normal).digest()
        except parquet.ParquetError as error:
            raise RecordsError(
                f"{file.path}: {error.message}",
                got=error.got,
                expected=error.expected,
                advice=error.advice,
            ) from error
        except canonical.CanonicalError as error:
            raise RecordsError(
                f"{file.path}, row {number}: {error.message}",
                got=error.got,
                expected="finite numbers, and integers of at most 2^53 - 1",
                advice="write the column as text, or the rows as JSONL; or ask for records: files",
            ) from error


def _lines(path: Path, file: File, kind: str, report: Progress) -> Iterator[bytes]:
    """Yield the digest of every record in a file, and check in the end that it was this file."""
    with _opened(path, file) as raw:
        hashed = _Hashed(raw, report)
        try:
            for number, line in enumerate(_text(io.BufferedReader(hashed, _BUFFER), file.path), 1):
                if len(line) > MAX_RECORD and len(line.removesuffix(b"\n")) > MAX_RECORD:
                    raise TooLongError(
                        f"{file.path}, line {number}: the line is too long",
                        expected=f"at most {MAX_RECORD} bytes",
                        advice="ask for records of another kind: files",
                    )
                try:
                    record = normalise(line, kind)
                except canonical.CanonicalError as error:
                    raise RecordsError(
                        f"{file.path}, line {number}: {error.message}",
                        got=error.got,
                        expected=error.expected,
                        advice="mend the line, or ask for records of another kind: lines, files",
                    ) from error
                if not number % _TICK:
                    report(0)
                if record:
                    yield hashlib.sha256(record).digest()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise NotTextError(
                f"{file.path} is not whole gzip", got=error, advice="pack it again, or unpack it"
            ) from error
        _unchanged(file, hashed.digest.hexdigest())


def _text(stream: io.BufferedReader, name: str) -> Iterator[bytes]:
    """Yield the lines of a file, unpacked if it is gzip; one that is too long is cut."""
    if stream.peek(2)[:2] == _GZIP:
        unpacked = gzip.GzipFile(fileobj=stream)
        stream = io.BufferedReader(cast(io.RawIOBase, unpacked), _BUFFER)
    head = stream.read(_HEAD)
    found = [what for magic, what in _NOT_TEXT if head.startswith(magic)]
    if found or b"\0" in head:
        raise NotTextError(
            f"{name} has no lines that could be records",
            got=found[0] if found else "a zero byte near its start",
            expected="text in UTF-8 or another code that has ASCII in it, plain or in gzip",
            advice="unpack or convert it, or ask for records of another kind: files",
        )
    head = head.removeprefix(_BOM)
    if not head.endswith(b"\n"):
        head += stream.readline(MAX_RECORD + 1)
    yield from head.removesuffix(b"\n").split(b"\n")
    yield from iter(partial(stream.readline, MAX_RECORD + 1), b"")


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, raw: IO[bytes], report: Progress) -> None:
        self.digest = hashlib.sha256()
        self._raw = cast(io.FileIO, raw)
        self._report = report

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._raw.readinto(buffer)
        self.digest.update(buffer[:count])
        self._report(count)
        return count


class Sorter:
    """Sorts digests on the disk, each once; memory is that of a quarter of a million."""

    def __init__(self, scratch: Path) -> None:
        """Sort in a folder of its own below `scratch`."""
        self.count = 0
        self._scratch = scratch
        self._batch: set[bytes] = set()
        # Runs by how often their digests were merged: each is, once for 64 times as many.
        self._levels: list[list[Path]] = [[]]
        self._made = 0

    def __enter__(self) -> "Sorter":
        """Make the folder."""
        self._folder = Path(tempfile.mkdtemp(prefix=".records-", dir=self._scratch))
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, digest: bytes) -> None:
        """Take one more."""
        self.count += 1
        self._batch.add(digest)
        if len(self._batch) >= _BATCH:
            self._spill()

    def chunks(self) -> Iterator[list[bytes]]:
        """Yield all in order, in lists of a bounded length."""
        self._spill()
        yield from _merged([run for level in self._levels for run in level])

    def _spill(self) -> None:
        self._write(0, [sorted(self._batch)])
        self._batch.clear()

    def _write(self, level: int, chunks: Iterable[list[bytes]]) -> None:
        self._made += 1
        run = self._folder / str(self._made)
        with run.open("wb") as stream:
            for chunk in chunks:
                stream.write(b"".join(chunk))
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        runs.append(run)
        if len(runs) == _FAN:
            self._write(level + 1, _merged(runs))
            for path in runs:
                path.unlink()
            runs.clear()


def _merged(runs: list[Path]) -> Iterator[list[bytes]]:
    """Merge sorted runs: all up to the lowest end of what is in memory may leave it, sorted."""
    with ExitStack() as files:
        streams = [files.enter_context(run.open("rb", buffering=0)) for run in runs]
        blocks = [_block(stream) for stream in streams]
        while ends := [block[-1] for block in blocks if block]:
            end = min(ends)
            chunk: list[bytes] = []
            for number, block in enumerate(blocks):
                cut = bisect_right(block, end)
                chunk += block[:cut]
                if cut:
                    blocks[number] = block[cut:] or _block(streams[number])
            chunk.sort()
            # No run holds a digest twice, so what is equal to `end` is in this chunk, all of it.
            yield list(dict.fromkeys(chunk))


def _block(stream: IO[bytes]) -> list[bytes]:
    return split(stream.read(_BLOCK * DIGEST))
