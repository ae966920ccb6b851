"""Hashing the files of a tree, as fast as the machine can: the digests behind a manifest.

Every file is opened from the root's descriptor, step by step, and no link is followed: an exchange
of a folder for a link while we read cannot lead elsewhere. Digests are SHA-256.

Large files are hashed in threads, as hashlib releases the interpreter's lock meanwhile. Of a small
one most of the time goes by under that lock: where a tree has very many, a few helper processes
take batches of them, and this process does others in the meantime. A helper only reads: it gets
names, answers with sizes and digests, and ends when its parent does.
"""

import hashlib
import os
import signal
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from aicert.errors import Error

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

BATCH = 256
"""The most files that are handed out at a time."""

MIDDLE = 1 << 20
"""The size, in bytes, below which a helper hashes a file, as one of a batch."""

MAX_HELPERS = 3
"""The most helper processes: one that walks and puts in order keeps no more busy."""

Where = str | os.PathLike[str]
Progress = Callable[[int], None]
Run = tuple[str, list[str]]
"""A folder, as a path from the root ("" is the root), and names of files in it."""
Hashed = tuple[str, int, str]
"""A file's path from the root, its size in bytes, its SHA-256 in hex."""
Found = tuple[int, bytes | None]
"""A file's size in bytes, and its SHA-256 where it was hashed."""

FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a file is opened to be read: no link is followed, and a pipe's other end not waited for."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SMALL = 64 << 10  # below: no thread is worth its while
_CHUNK = 1 << 20
_MANY = 2 * 1024  # files that have been met before helpers are started: they take as long
_ASKED = 2  # batches that a helper has at a time, so that it need not wait for the next
_HELD = 1 << 16  # files whose turn has not come: what is behind a file of hours waits for it
_AHEAD = 16
_MAX_MESSAGE = 1 << 20  # BATCH paths of at most 1024 bytes, and their answers, take less
_FOUND, _FAILED = b"+", b"!"  # how an answer begins
_RECORD = 41  # of what was found: 8 bytes of size, big-endian; 1 if it was hashed; 32 of digest

_WILL_NEED = getattr(os, "POSIX_FADV_WILLNEED", None)  # not on macOS


class ManifestError(Error):
    """A tree or a manifest cannot be accepted."""

    code = "manifest.invalid"
    remedy = (
        "if the place that is named is in your folder, mend it there; if it is in the "
        "certificate, do not use the certificate"
    )


class LinkError(ManifestError):
    """A tree holds a link or a special file."""

    code = "manifest.link"


class ChangedError(ManifestError):
    """A file changed while it was being read."""

    code = "manifest.changed"
    remedy = "stop what writes there, and try again"


class HelperError(ManifestError):
    """A process that helped to hash ended, and its files were not hashed."""

    code = "manifest.helper"
    remedy = "see that the machine has memory to spare, and try again"


# -- one file --------------------------------------------------------------------------------------


def open_root(directory: Where) -> int:
    """Open the folder that a tree lies in; itself it may be reached through links.

    Raises:
        ManifestError: it cannot be opened, or is no folder.
    """
    try:
        return os.open(directory, _FOLDER)
    except OSError as error:
        raise _unreadable(f"{directory}", error, "folder") from error


def open_folder(above: int, path: str) -> int:
    """Open a folder below an open one ("" is that one itself), following no link.

    Raises:
        OSError: it cannot be opened, or is no folder.
    """
    folder = os.dup(above)
    for step in filter(None, path.split("/")):
        try:
            inner = os.open(step, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def open_below(root: int, path: str) -> int:
    """Open a file below an open folder to read it, step by step, following no link.

    A pipe is opened without waiting for its other end.

    Raises:
        OSError: it cannot be opened.
    """
    folder, _, name = path.rpartition("/")
    descriptor = open_folder(root, folder)
    try:
        return os.open(name, FILE_FLAGS, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def hash_open(descriptor: int, path: Where, progress: Progress | None = None) -> tuple[int, str]:
    """Hash an open file, and close it; return its size in bytes and its SHA-256 in hex.

    Raises:
        LinkError: it is not a regular file.
        ChangedError: it was written to meanwhile.
        ManifestError: it cannot be read.
    """
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _special(path)
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
            raise _changed(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def _special(path: Where) -> LinkError:
    return LinkError("this is not a regular file", got=path)


def _written(descriptor: int, before: os.stat_result) -> bool:
    after = os.fstat(descriptor)
    return (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def _changed(path: Where) -> ChangedError:
    return ChangedError("a file changed while it was read", got=path)


def _unreadable(path: Where, error: OSError, what: str = "file") -> ManifestError:
    return ManifestError(f"a {what} cannot be read", got=f"{path}: {error.strerror}")


# -- a batch of small files ------------------------------------------------------------------------


def hash_batch(root: int, runs: Iterable[Run], limit: int) -> list[Found]:
    """Return the size of every file and, where that is below `limit`, its SHA-256.

    None stands in place of the digest of a larger file, and of one that did not come in one read.

    Raises:
        ManifestError: (or a subclass) one of them is not a regular file, changed, or cannot be
            read.
    """
    found: list[Found] = []
    buffer = memoryview(bytearray(limit + 1)) if limit > _SMALL else None
    for folder, names in runs:
        try:
            at = open_folder(root, folder)
        except OSError as error:
            raise _unreadable(folder, error, "folder") from error
        try:
            for start in range(0, len(names), _AHEAD):
                _hash_some(at, folder, names[start : start + _AHEAD], limit, buffer, found)
        finally:
            os.close(at)
    return found


def _hash_some(
    at: int,
    folder: str,
    names: list[str],
    limit: int,
    buffer: memoryview | None,
    found: list[Found],
) -> None:
    opened: list[int] = []
    sizes: list[int] = []
    name = ""
    try:
        # All are opened first, and the system begins to read them: from a disk that saves waiting.
        for name in names:
            descriptor = os.open(name, FILE_FLAGS, dir_fd=at)
            opened.append(descriptor)
            status = os.fstat(descriptor)
            sizes.append(status.st_size)
            if not stat.S_ISREG(status.st_mode):
                raise _special(_join(folder, name))
            if _WILL_NEED is not None:
                try:
                    os.posix_fadvise(descriptor, 0, _SMALL, _WILL_NEED)
                except OSError:
                    pass  # it is advice, and some file systems take none
        for name, descriptor, size in zip(names, opened, sizes, strict=True):
            if size >= limit:
                found.append((size, None))
                continue
            # In one go, and one byte more, to see it grow.
            data: bytes | memoryview
            if buffer is None or size < _SMALL:
                data = os.read(descriptor, size + 1)
            else:
                data = buffer[: os.readv(descriptor, [buffer[: size + 1]])]
            if len(data) > size:
                raise _changed(_join(folder, name))
            whole = len(data) == size  # some file systems give less than is there
            found.append((size, hashlib.sha256(data).digest() if whole else None))
    except OSError as error:
        path = _join(folder, name)
        try:
            linked = stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
        except OSError:
            linked = False
        if linked:
            raise LinkError("a file cannot be read", got=f"{path}: {error.strerror}") from error
        raise _unreadable(path, error) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


# -- a tree ----------------------------------------------------------------------------------------


class _Batch:
    """Files that are hashed together, and what was found of each, once it was."""

    def __init__(self, runs: list[Run], count: int) -> None:
        self.runs = runs
        self.count = count
        self.helper: _Helper | None = None
        self.found: list[Found] | None = None
        self.large: dict[int, Future[str]] = {}

    def is_done(self) -> bool:
        return self.found is not None and all(future.done() for future in self.large.values())


def hash_runs(
    root: int,
    runs: Iterable[Run],
    *,
    jobs: int | None = None,
    helpers: int = MAX_HELPERS,
    progress: Progress | None = None,
) -> Iterator[Hashed]:
    """Hash files below an open folder; yield them in the order in which they are given.

    In memory are at most some ten thousands of files, whatever their number.

    Args:
        root: the folder's descriptor; it stays open, and the caller's.
        runs: the files; they are asked for as there is time for more.
        jobs: threads, and processes, at a time; by default one for each core, at most 16.
        helpers: the most processes that may be started.
        progress: called with each number of bytes hashed, from several threads; what it raises
            ends the work.

    Raises:
        ManifestError: (or a subclass) a file cannot be read, is not regular, or changed.
    """
    jobs = jobs or min(16, os.cpu_count() or 1)
    with (
        _Threads(root, jobs, progress) as threads,
        _Helpers(root, min(jobs - 1, helpers)) as others,
    ):
        waiting: deque[_Batch] = deque()
        met = held = 0

        def settle(batch: _Batch, found: list[Found]) -> None:
            batch.found = found
            threads.take(batch)
            count = sum(size for size, digest in found if digest is not None)
            if progress is not None and count:
                progress(count)

        def await_found(batch: _Batch) -> None:
            while batch.found is None:
                assert batch.helper is not None
                settle(*batch.helper.answer())

        def finish(batch: _Batch) -> Iterator[Hashed]:
            nonlocal held
            await_found(batch)
            assert batch.found is not None
            held -= batch.count
            paths = (
                f"{folder}/{name}" if folder else name
                for folder, names in batch.runs
                for name in names
            )
            for index, (path, (size, digest)) in enumerate(zip(paths, batch.found, strict=True)):
                if digest is not None:
                    yield path, size, digest.hex()
                else:
                    yield path, size, threads.result(batch.large[index])

        for batch in _batches(runs):
            threads.check()
            met += batch.count
            held += batch.count
            if met > _MANY:
                others.start()
            for answer in others.answers():
                settle(*answer)
            waiting.append(batch)
            if not others.take(batch):
                settle(batch, hash_batch(root, batch.runs, others.limit))
            while waiting and (held > _HELD or waiting[0].is_done()):
                yield from finish(waiting.popleft())
        for batch in waiting:
            await_found(batch)  # of all first, so that no large one waits to be begun
        while waiting:
            yield from finish(waiting.popleft())


def _batches(runs: Iterable[Run]) -> Iterator[_Batch]:
    """Put short runs together, and cut long ones."""
    batch: list[Run] = []
    count = 0
    for folder, names in runs:
        for start in range(0, len(names), BATCH):
            some = names[start : start + BATCH]
            if count + len(some) > BATCH:
                yield _Batch(batch, count)
                batch, count = [], 0
            batch.append((folder, some))
            count += len(some)
    if batch:
        yield _Batch(batch, count)


class _Threads:
    """Hashes large files; the first failure ends all."""

    def __init__(self, root: int, jobs: int, progress: Progress | None) -> None:
        self._root = root
        self._jobs = jobs
        self._progress = progress
        self._failures: list[BaseException] = []
        self._ended = False
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "_Threads":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, batch: _Batch) -> None:
        """Begin with the files of a batch that are not hashed yet, the largest first.

        So the last one does not run alone.
        """
        assert batch.found is not None
        if all(digest is not None for _, digest in batch.found):
            return
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._jobs)
        paths = [_join(folder, name) for folder, names in batch.runs for name in names]
        large = [
            (size, index) for index, (size, digest) in enumerate(batch.found) if digest is None
        ]
        for size, index in sorted(large, key=lambda item: -item[0]):
            batch.large[index] = self._pool.submit(self._hash, paths[index], size)

    def _hash(self, path: str, expected: int) -> str:
        try:
            try:
                descriptor = open_below(self._root, path)
            except OSError as error:
                raise _unreadable(path, error) from error
            size, sha256 = hash_open(descriptor, path, self._report)
            if size != expected:
                raise _changed(path)
        except BaseException as error:
            self._failures.append(error)
            raise
        return sha256

    def _report(self, count: int) -> None:
        if self._ended or self._failures:
            raise ManifestError("another file ended the work")  # nobody hears of this one
        if self._progress is not None:
            self._progress(count)

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failures:
            raise self._failures[0]

    def result(self, future: "Future[str]") -> str:
        """Wait for a file's digest."""
        try:
            return future.result()
        finally:
            self.check()


# -- helper processes ------------------------------------------------------------------------------


class _Helpers:
    """The helper processes: none, until they are started."""

    def __init__(self, root: int, count: int) -> None:
        self._root = root
        self._wanted = count if able() else 0
        self._all: list[_Helper] = []
        self.limit = _SMALL

    def __enter__(self) -> "_Helpers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for helper in self._all:
            helper.end()

    def start(self) -> None:
        """Start them, where that is possible and was not done: without them it takes longer."""
        wanted, self._wanted = self._wanted, 0
        try:
            for _ in range(wanted):
                self._all.append(_Helper(self._root))
                self.limit = MIDDLE
        except OSError:
            pass  # this machine lets us have no more processes

    def take(self, batch: _Batch) -> bool:
        """Hand a batch to a helper that has time for it, if one has."""
        for helper in self._all:
            if len(helper.asked) < _ASKED:
                helper.ask(batch)
                return True
        return False

    def answers(self) -> Iterator[tuple[_Batch, list[Found]]]:
        """Yield what they have found meanwhile."""
        if not self._all:
            return
        import select

        poll = select.poll()
        busy = {helper.output: helper for helper in self._all if helper.asked}
        for descriptor in busy:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(0):
            yield busy[descriptor].answer()


# It finds the standard library by itself, and there this package: nothing else of what may be
# installed takes part, and it starts sooner for it.
_PATH = "import sys; sys.path.append(sys.argv[1])"
_START = "from aicert import hashing; hashing.serve"


def able() -> bool:
    """Tell whether helpers can be started: names go as UTF-8, which they take them for."""
    return bool(sys.executable) and sys.getfilesystemencoding() == "utf-8"


class Helper:
    """One helper process, as seen from this one: it gets messages, and answers them in turn."""

    def __init__(self, start: str, *descriptors: int) -> None:
        """Start it.

        Args:
            start: code that names a function, which gets the numbers of `descriptors` and that of
                its socket.
            descriptors: what it may use besides that.

        Raises:
            OSError: this machine lets us have no more processes.
        """
        import socket
        import subprocess
        from pathlib import Path

        self._channel, other = socket.socketpair()
        self.output = self._channel.fileno()
        package = Path(__file__).resolve().parents[1]
        program = f"{_PATH}\n{start}(*map(int, sys.argv[2:]))"
        options = ["-I", "-S", "-B", "-X", "utf8", "-c", program]
        given = (*descriptors, other.fileno())
        with other:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *options, str(package), *map(str, given)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=given,
                )
            except BaseException:
                self._channel.close()
                raise

    def send(self, message: bytes) -> None:
        """Send it a message.

        It cannot be that both sides wait to be read: a socket holds as many answers as may be due.
        """
        try:
            _send(self.output, message)
        except OSError as error:
            raise self.lost() from error

    def receive(self) -> bytes:
        """Wait for its next answer."""
        try:
            data = _receive(self.output)
        except OSError as error:
            raise self.lost() from error
        if data is None:
            raise self.lost()
        return data

    def lost(self) -> HelperError:
        """Return the error that says that it has ended, or may as well have."""
        status = self._process.poll()
        return HelperError(
            "a process that helped to hash has ended",
            got=None if status is None else f"exit status {status}",
        )

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


class _Helper(Helper):
    """A helper process that hashes batches."""

    def __init__(self, root: int) -> None:
        self.asked: deque[_Batch] = deque()
        super().__init__(_START, root)

    def ask(self, batch: _Batch) -> None:
        """Hand a batch to it."""
        text = "\n".join("\0".join([folder, *names]) for folder, names in batch.runs)
        self.send(text.encode())
        batch.helper = self
        self.asked.append(batch)

    def answer(self) -> tuple[_Batch, list[Found]]:
        """Return the oldest batch that it has, and what it found; wait for it if need be."""
        batch = self.asked.popleft()
        data = self.receive()
        if data[:1] == _FAILED:
            code, message, got = data[1:].decode().split("\0")
            kinds = {kind.code: kind for kind in (LinkError, ChangedError)}
            raise kinds.get(code, ManifestError)(message, got=got or None)
        if data[:1] != _FOUND or len(data) != 1 + _RECORD * batch.count:
            raise self.lost()
        found: list[Found] = []
        for start in range(1, len(data), _RECORD):
            digest = data[start + 9 : start + _RECORD] if data[start + 8] else None
            found.append((int.from_bytes(data[start : start + 8]), digest))
        return batch, found


def serve(root: int, channel: int) -> None:
    """Be a helper that hashes."""
    serve_with(channel, lambda asked: _answer(root, asked))


def serve_with(channel: int, answer: Callable[[str], bytes]) -> None:
    """Be a helper: take messages from a socket, and answer there, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to hear, and to end us
    try:
        while (data := _receive(channel)) is not None:
            _send(channel, answer(data.decode()))
    except (BrokenPipeError, ConnectionResetError):
        pass


def _answer(root: int, asked: str) -> bytes:
    runs = [(folder, names) for folder, *names in (run.split("\0") for run in asked.split("\n"))]
    try:
        found = hash_batch(root, runs, MIDDLE)
    except ManifestError as error:
        return _FAILED + "\0".join([error.code, error.message, error.got or ""]).encode()
    return _FOUND + b"".join(
        size.to_bytes(8) + (b"\1" + digest if digest is not None else bytes(33))
        for size, digest in found
    )


def _send(descriptor: int, data: bytes) -> None:
    """Write a message: its length in 4 bytes, big-endian, and itself."""
    rest = memoryview(len(data).to_bytes(4) + data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _receive(descriptor: int) -> bytes | None:
    """Read a message; None if the other side has ended, in its midst as well."""
    header = _exactly(descriptor, 4)
    if header is None or (size := int.from_bytes(header)) > _MAX_MESSAGE:
        return None
    return _exactly(descriptor, size)


def _exactly(descriptor: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            return None
        data += piece
    return data
