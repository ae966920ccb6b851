"""Bring the files of a source onto the disk, hashed in the pass that brings them.

A file of known size is read in blocks, several at once, whatever file they belong to; each block
is written in place. The digests of files are computed in order from the same bytes, and what the
digest is at the end of a block is noted in a journal. After a cut or a kill, blocks that the
journal knows are read from the disk and hashed again; where the digest is another one than the
journal says, the block is asked for again, as are those that the journal does not know: blocks
that were not whole, and at most `jobs` + 2 that were, but whose turn to be hashed had not come. A
file that can only be read from its start is one piece of work, and starts over. Nothing waits for
the disk: who loses power has lost the run as well.

A file of this machine starts over too: it is as near as what would be left of it. It is read,
written and hashed a piece at a time, while the processor's cache still holds the piece.
"""

import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from aicert.agent.copying import create
from aicert.agent.fetch.errors import (
    BusyError,
    CancelledError,
    DigestMismatchError,
    NetworkError,
    NoSpaceError,
    PathError,
    TooLargeError,
    TransientError,
    changed,
)
from aicert.agent.fetch.file import FileSource
from aicert.agent.fetch.source import RemoteFile, Retry, Source
from aicert.manifest import File, ManifestError, walk

BLOCK = 16 << 20
"""Bytes in one range request; at most `jobs` + 2 blocks are in memory."""

STALL_SECONDS = 300.0
"""How long nothing may come: a source that sends a byte now and then would hold a run for ever."""

T = TypeVar("T")
Progress = Callable[[int, int | None], None]

_TICK = 0.2
_SMALL = 64 << 10
_WAITING = 4
_MARGIN = 64 << 20
_PIECE = 1 << 20
_LINE = re.compile(r"(\d+) (\d+) ([0-9a-f]{64})")
_WRITE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Partial:
    """The resting place of one unfinished input: its files and the journal of finished blocks.

    Only one process at a time may hold it.
    """

    def __init__(self, folder: Path) -> None:
        """Make the place if need be, and hold it.

        Raises:
            BusyError: another fetch holds it.
        """
        self.folder = folder
        self.tree = folder / "tree.aicert-partial"
        self.scratch = folder / "scratch"
        self._journal = folder / "journal"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._log: int | None = None
        self._known: dict[tuple[int, int], str] = {}
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise BusyError(
                "another fetch of this input is under way", advice="wait for it to end"
            ) from error

    def __enter__(self) -> "Partial":
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the place; what is in it stays."""
        if self._log is not None:
            os.close(self._log)
        os.close(self._lock)

    def take_back(self, into: Path) -> None:
        """Take a finished tree back, so that a step that is tried again does not fetch it again.

        Raises:
            PathError: the tree was not made from here.
        """
        if self.tree.exists() or not self._journal.exists():
            raise PathError(
                "the place for the input is not empty",
                got=into,
                advice="remove it, or name another",
            )
        into.chmod(0o700)
        for folder, folders, files in os.walk(into):
            for name in folders:
                os.chmod(os.path.join(folder, name), 0o700)
            for name in files:
                os.chmod(os.path.join(folder, name), 0o600, follow_symlinks=False)
        into.rename(self.tree)

    def open(self, identity: str | None, files: Sequence[RemoteFile]) -> None:
        """Take up what is there if it belongs to `identity`, else, or with None, start anew."""
        lines = []
        if self._journal.exists():
            lines = self._journal.read_text("ascii", "replace").split("\n")
        if identity and lines[:1] == [identity] and self._holds_only({file.path for file in files}):
            for match in filter(None, map(_LINE.fullmatch, lines[1:])):
                self._known[int(match[1]), int(match[2])] = match[3]
        else:
            shutil.rmtree(self.tree, ignore_errors=True)
            self._journal.write_text(f"{identity or ''}\n", "ascii")
        self.tree.mkdir(exist_ok=True)
        self._log = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _holds_only(self, paths: set[str]) -> bool:
        try:
            return {path for path, _ in walk(self.tree)} <= paths
        except ManifestError:
            return False

    def present(self, files: Sequence[RemoteFile]) -> int:
        """Return how many bytes of these files are on the disk."""
        ends = [(files[number].size or 0, block * BLOCK) for number, block in self._known]
        return sum(min(size - start, BLOCK) for size, start in ends)

    def known(self, file: int, block: int) -> str | None:
        """Return the SHA-256 (hex) of a file up to the end of a block that is on the disk, or None.

        None says that the block is not there.
        """
        return self._known.get((file, block))

    def forget(self, file: int, block: int) -> None:
        """Know no longer of a block, which turned out to be another than was written."""
        self._known.pop((file, block), None)

    def note(self, file: int, block: int, sha256: str) -> None:
        """Note that a block is on the disk. One write each, so that threads need no lock."""
        if self._known.get((file, block)) != sha256:
            assert self._log is not None
            os.write(self._log, f"{file} {block} {sha256}\n".encode())

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Work(NamedTuple):
    """One piece of work: a block of a file, or (block None) a file that one thread brings whole."""

    number: int
    file: RemoteFile
    block: int | None
    last: bool


def _is_small(work: _Work) -> bool:
    """Tell whether bringing it takes a request, and hardly any memory."""
    size = work.file.size
    return work.block is not None and size is not None and size <= _SMALL


class _Done(NamedTuple):
    """What a piece of work gave: the file's digest, or `data` that is a part of it."""

    size: int
    sha256: str | None
    data: memoryview | None


class Transfer:
    """Brings files into a `Partial`; its threads share what is in here."""

    def __init__(
        self,
        source: Source,
        files: Sequence[RemoteFile],
        partial: Partial,
        *,
        jobs: int,
        max_bytes: int,
        retry: Retry,
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        """Take what is needed; nothing is done yet."""
        self._source = source
        self._files = files
        self._partial = partial
        self._tree = str(partial.tree)
        # A copy waits for no answer: what more there is than processors only takes their caches.
        self._jobs = jobs if source.remote else min(jobs, os.cpu_count() or 1)
        self._max_bytes = max_bytes
        self._progress = progress
        self._cancelled = cancelled
        self._stop = threading.Event()
        self._retry = replace(retry, stop=self._stop)
        self._lock = threading.Lock()
        self._spare: list[bytearray] = []
        self._bytes = 0
        sizes = [file.size for file in files]
        known = sum(size for size in sizes if size is not None)
        self._total = None if None in sizes else known
        if known > max_bytes:
            raise TooLargeError("the input is too large", got=known, expected=max_bytes)

    def run(self) -> list[File]:
        """Bring all files and return them with sizes and digests.

        `progress` is called in this thread; an exception that it raises ends the transfer.

        Raises:
            FetchError: a file cannot be brought, or is not what its source says it is.
        """
        done: list[File] = []
        waiting: deque[tuple[list[_Work], Future[list[_Done]]]] = deque()
        work = self._work()
        digest = hashlib.sha256()
        size = held = 0
        with (
            ThreadPoolExecutor(self._jobs, "fetch-helper") as self._helpers,
            ThreadPoolExecutor(self._jobs, "fetch") as pool,
            ThreadPoolExecutor(self._jobs * self._source.crowd, "fetch-small") as crowd,
        ):
            try:
                while True:
                    while (
                        not self._cancelled.is_set()
                        and len(waiting) < self._jobs * _WAITING
                        and held < self._jobs + 2
                    ):
                        items = next(work, None)
                        if items is None:
                            break
                        held += not _is_small(items[0])
                        doer = crowd if _is_small(items[0]) else pool
                        waiting.append((items, doer.submit(self._do, items)))
                    if not waiting:
                        self._check_cancelled()
                        break
                    items, future = waiting.popleft()
                    held -= not _is_small(items[0])
                    results = self._await(future)
                    for item, result in zip(items, results, strict=True):
                        size += result.size
                        if result.data is not None:
                            digest = self._in_order(pool, item, digest, result.data)
                        if item.last:
                            found = result.sha256 or digest.hexdigest()
                            done.append(_checked(item.file, size, found))
                            digest, size = hashlib.sha256(), 0
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                crowd.shutdown(wait=False, cancel_futures=True)
                self._source.interrupt()
                raise
        self._progress(self._bytes, self._total)
        return done

    def _in_order(
        self, pool: ThreadPoolExecutor, work: _Work, digest: "hashlib._Hash", data: memoryview
    ) -> "hashlib._Hash":
        """Return the digest with the next block of a file in it, and note the block."""
        assert work.block is not None
        before, known = digest.copy(), self._partial.known(work.number, work.block)
        digest.update(data)
        self._give_back(data)
        if known not in (None, digest.hexdigest()):
            # All before it is right: it is this block that went bad on the disk.
            self._partial.forget(work.number, work.block)
            self._uncount(len(data))
            (again,) = self._await(pool.submit(self._do, [work]))
            assert again.data is not None
            return self._in_order(pool, work, before, again.data)
        self._partial.note(work.number, work.block, digest.hexdigest())
        return digest

    def _work(self) -> Iterator[list[_Work]]:
        """Yield what one thread does at a time: a block, or a number of small files."""
        folders: set[str] = set()
        batch: list[_Work] = []
        for number, file in enumerate(self._files):
            folder = file.path.rpartition("/")[0]
            if folder not in folders:
                Path(self._tree, folder).mkdir(parents=True, exist_ok=True)
                folders.add(folder)
            if file.size is not None and file.size <= _SMALL and file.ranged:
                batch.append(_Work(number, file, 0, True))
            elif file.size is None or not file.ranged or not self._source.remote:
                yield [_Work(number, file, None, True)]
            else:
                count = -(-file.size // BLOCK)
                for block in range(count):
                    yield [_Work(number, file, block, block == count - 1)]
            if len(batch) == self._source.batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def _await(self, future: "Future[T]") -> T:
        seen, since = self._bytes, time.monotonic()
        while True:
            finished = wait([future], _TICK).done
            self._progress(self._bytes, self._total)
            if finished:  # when it is cancelled as well: what is there need not be asked for again
                return future.result()
            self._check_cancelled()
            if seen != self._bytes:
                seen, since = self._bytes, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                raise NetworkError(
                    "the source sends nothing, or next to nothing",
                    expected=f"something within {STALL_SECONDS:.0f} s",
                    advice="look at the source and the way to it; then try again",
                )

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("the fetch was cancelled")

    # -- in the pool's threads ---------------------------------------------------------------------

    def _do(self, items: list[_Work]) -> list[_Done]:
        if isinstance(self._source, FileSource):
            if _is_small(items[0]) and self._source.resolved.kind == "tree":
                return list(self._copy_small(self._source, items))
            return [self._copy(self._source, item.file) for item in items]
        came = self._together(items) if _is_small(items[0]) else {}
        return [self._one(item, came.get(item.file.path)) for item in items]

    def _together(self, items: list[_Work]) -> dict[str, bytes]:
        """Ask at once for small files that are neither here nor empty."""
        files = [
            item.file
            for item in items
            if item.file.size and self._partial.known(item.number, 0) is None
        ]
        return self._source.together(files)

    def _one(self, work: _Work, came: bytes | None) -> _Done:
        if work.block is None:
            return self._retry(lambda: self._stream(work.file))
        return self._block(work.number, work.file, work.block, came)

    def _copy_small(self, source: FileSource, items: list[_Work]) -> Iterator[_Done]:
        """Copy files of this machine that are one read each."""
        files = [item.file for item in items]
        tree = os.open(self._tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for file, digest in zip(files, source.copy(files, tree, self._jobs), strict=True):
                assert file.size is not None
                self._count(file.size)
                yield _Done(file.size, digest.hex(), None)
        finally:
            os.close(tree)

    def _copy(self, source: FileSource, file: RemoteFile) -> _Done:
        """Copy a file of this machine."""
        descriptor = create(f"{self._tree}/{file.path}")
        try:
            relay = _Relay(source, file, descriptor, self._count)
            second = self._helpers.submit(relay.run)
            try:
                relay.run()
            finally:
                second.result()
            return _Done(relay.copied, relay.digest.hexdigest(), None)
        finally:
            os.close(descriptor)

    def _block(self, number: int, file: RemoteFile, block: int, came: bytes | None) -> _Done:
        """Bring one block: from the disk if it is there, else from the source.

        `came` is what the source has given of a small file already, if it has.
        """
        assert file.size is not None
        start = block * BLOCK
        end = min(start + BLOCK, file.size)
        data = self._buffer(end - start)
        alone = file.size <= BLOCK
        sha256 = None
        descriptor = os.open(f"{self._tree}/{file.path}", _WRITE, 0o600)
        try:
            known = self._partial.known(number, block)
            here = known is not None and os.preadv(descriptor, [data], start) == len(data)
            if here and alone:
                sha256 = hashlib.sha256(data).hexdigest()
                here = sha256 == known
            if here:
                self._count(len(data))
            else:
                if came is not None and len(came) == len(data):
                    data[:] = came
                    self._count(len(data))
                else:
                    self._ask(file, start, data)
                _write(descriptor, data, start)
                sha256 = hashlib.sha256(data).hexdigest() if alone else None
            if end == file.size:
                os.ftruncate(descriptor, end)  # what a damaged partial file may have too much
        finally:
            os.close(descriptor)
        if sha256 is None:
            return _Done(len(data), None, data)
        self._partial.note(number, block, sha256)
        self._give_back(data)
        return _Done(len(data), sha256, None)

    def _ask(self, file: RemoteFile, start: int, data: memoryview) -> None:
        """Fill memory with what the source has from `start`."""
        filled = 0

        def fill() -> None:
            # A connection that was cut within the block goes on where it was cut.
            nonlocal filled
            for count in self._source.fill(file, start + filled, data[filled:]):
                filled += count
                self._count(count)
            if filled < len(data):
                raise TransientError(f"{file.path}: the source stopped before the end")

        if data:
            self._retry(fill)

    def _buffer(self, size: int) -> memoryview:
        """Return memory for a block: what was used before, where it can be.

        A new one costs about as much as hashing its content, as the system hands out each of its
        pages by itself, and zeroed.
        """
        if size <= _SMALL:
            return memoryview(bytearray(size))
        try:
            whole = self._spare.pop()
        except IndexError:
            whole = bytearray(BLOCK)
        return memoryview(whole)[:size]

    def _give_back(self, data: memoryview) -> None:
        whole = data.obj
        if isinstance(whole, bytearray) and len(whole) == BLOCK:
            self._spare.append(whole)

    def _stream(self, file: RemoteFile) -> _Done:
        """Bring a whole file in one go."""
        digest = hashlib.sha256()
        size = 0
        descriptor = os.open(self._partial.tree / file.path, _WRITE | os.O_TRUNC, 0o600)
        try:
            for piece in self._source.read(file, 0, None):
                _write(descriptor, piece, size)
                digest.update(piece)
                size += len(piece)
                self._count(len(piece))
            if file.size is not None and size < file.size:
                raise TransientError(f"{file.path}: the source stopped before the end")
        except BaseException:
            self._uncount(size)
            raise
        finally:
            os.close(descriptor)
        return _Done(size, digest.hexdigest(), None)

    def _count(self, size: int) -> None:
        if self._stop.is_set():
            raise CancelledError("the fetch was cancelled")
        with self._lock:
            self._bytes += size
        if self._bytes > self._max_bytes:
            raise TooLargeError("the input is too large", expected=f"{self._max_bytes} bytes")

    def _uncount(self, size: int) -> None:
        """Take back what was counted and is not to stay."""
        with self._lock:
            self._bytes -= size


class _Relay:
    """Copies and hashes a file of this machine by turns: one thread copies, the other hashes.

    Each hashes what it has copied, which then is in the cache of the processor that it runs on.
    Who has copied a piece lets the next one be copied only when it is its turn to hash: so the
    pieces are hashed in the order in which they are copied, however many threads take part.
    """

    def __init__(
        self, source: FileSource, file: RemoteFile, descriptor: int, count: Callable[[int], None]
    ) -> None:
        """Copy `file` to an open `descriptor`; `count` is told of bytes, and may end it."""
        self.copied = 0
        self.digest = hashlib.sha256()
        self._source, self._file, self._descriptor, self._count = source, file, descriptor, count
        self._copying, self._hashing = threading.Lock(), threading.Lock()
        self._failed = False

    def run(self) -> None:
        """Take turns until the file is whole, or another thread has failed."""
        assert self._file.size is not None
        memory = memoryview(bytearray(min(_PIECE, self._file.size)))
        while True:
            with self._copying:
                piece = memory[: self._file.size - self.copied]
                if self._failed or not piece:
                    return
                self._failed = True  # unless we come to the end of this
                for count in self._source.fill(self._file, self.copied, piece):
                    self._count(count)
                _write(self._descriptor, piece, self.copied)
                self.copied += len(piece)
                self._failed = False
                self._hashing.acquire()
            try:
                self.digest.update(piece)
            finally:
                self._hashing.release()


def _write(descriptor: int, data: bytes | bytearray | memoryview, start: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count


def _checked(file: RemoteFile, size: int, sha256: str) -> File:
    if file.size is not None and size != file.size:
        raise changed(file.path, got=f"{size} bytes", expected=f"{file.size} bytes")
    if file.sha256 is not None and sha256 != file.sha256:
        raise DigestMismatchError(
            f"{file.path}: the content is not what its source says",
            got=sha256,
            expected=file.sha256,
            advice="fetch it again; if it stays so, the source is damaged or not honest",
        )
    return File(file.path, size, sha256)


def place(partial: Partial, into: Path, *, closed: bool) -> None:
    """Make a whole tree read-only and give it its final name.

    The name appears only now, and with everything below it. `closed` says that its files, as those
    of this machine, were made read-only when they were made.
    """
    for name, folders, files in os.walk(partial.tree, topdown=False):
        for file in () if closed else files:
            os.chmod(f"{name}/{file}", 0o444)
        for inner in folders:
            os.chmod(f"{name}/{inner}", 0o555)  # noqa: S103 - read-only, for whoever trains
    # A folder that cannot be written cannot be moved either: the top is closed after the move.
    partial.tree.rename(into)
    into.chmod(0o555)


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what cannot fit; 64 MiB stay free.

    Raises:
        NoSpaceError: it cannot.
    """
    free = shutil.disk_usage(folder).free
    if needed + _MARGIN > free:
        raise NoSpaceError(
            "the disk has no room for the input",
            got=f"{free} bytes free",
            expected=f"{needed + _MARGIN} bytes",
            advice="free some space, or give the agent a larger disk",
        )
