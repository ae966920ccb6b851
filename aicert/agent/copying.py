"""Copying the small files of a folder, hashed on the way.

Of a small file nearly all the time goes by under the interpreter's lock, so threads make it slower:
where there are very many, a few helper processes take batches of them, and this process does others
in the meantime. A helper gets the two folders as open descriptors, and answers with digests.

Every file is opened step by step, and no link is followed. Only the standard library is needed, for
a helper has nothing else.
"""

import errno
import hashlib
import os
import select
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import NamedTuple

from aicert.hashing import BATCH, FILE_FLAGS, MAX_HELPERS, Helper, able, open_folder, serve_with

MANY = 2 * 1024
"""From how many files on helpers are started: they take as long."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_ONLY = 0o444
_ASKED = 2  # batches that a helper has at a time, so that it need not wait for the next
_START = "from aicert.agent import copying; copying.serve"
_FOUND, _FAILED = b"+", b"!"
_DIGEST = 32


class Wanted(NamedTuple):
    """A file by its path below both folders, its size in bytes, and what it was when listed."""

    path: str
    size: int
    tag: str


class NotCopied(Exception):  # noqa: N818 - it says what happened; the caller makes the error of it
    """A file was not copied.

    `step` says where it failed: "open", "read", "changed" (it is not, or no longer, the listed one)
    or "write". `number` is the system's, 0 where it has none.
    """

    def __init__(self, step: str, path: str, number: int = 0) -> None:
        """Name the file and the step."""
        super().__init__(step, path, number)
        self.step, self.path, self.number = step, path, number


def tag_of(status: os.stat_result) -> str:
    """Return what differs once a file is another, or was written to.

    The change time moves with every write, also where the modification time is set back.
    """
    return f"{status.st_dev:x}-{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def create(path: str, folder: int | None = None) -> int:
    """Make a file that everybody may read, and nobody write but through what this returns.

    Args:
        path: where it goes; nothing is there yet.
        folder: the descriptor of the folder from which `path` starts.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = os.open(path, _NEW, _READ_ONLY, dir_fd=folder)
    try:
        os.fchmod(descriptor, _READ_ONLY)  # whatever this process's umask takes away
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def copy(source: int, target: int, files: Sequence[Wanted], jobs: int) -> Iterator[bytes]:
    """Copy files from one open folder to another; yield the SHA-256 of each, in their order.

    Args:
        source: the descriptor of the folder that they lie in.
        target: that of the folder that gets them; the folders below it are there.
        files: small ones: each is held in memory as a whole.
        jobs: the most processes, this one among them.

    Raises:
        NotCopied: a file cannot be copied, or is not the listed one.
        HelperError: a helper process has ended.
    """
    wanted = min(jobs - 1, MAX_HELPERS) if len(files) > MANY and able() else 0
    rest = iter(files)
    with ExitStack() as stack:
        helpers: list[Helper] = []
        try:
            for _ in range(wanted):
                helper = Helper(_START, source, target)
                stack.callback(helper.end)
                helpers.append(helper)
        except OSError:
            pass  # this machine lets us have no more processes
        asked = dict.fromkeys(helpers, 0)
        waiting: deque[tuple[Helper, int] | list[bytes]] = deque()
        while True:
            for helper in helpers:
                while asked[helper] < _ASKED and (batch := list(islice(rest, BATCH))):
                    helper.send("\0".join(map(_join, batch)).encode())
                    asked[helper] += 1
                    waiting.append((helper, len(batch)))
            if batch := list(islice(rest, BATCH)):
                waiting.append(copy_batch(source, target, batch))
            elif not waiting:
                return
            while waiting and (not batch or _is_there(waiting[0])):
                first = waiting.popleft()
                if isinstance(first, list):
                    yield from first
                else:
                    helper, count = first
                    yield from _answer_of(helper, count)
                    asked[helper] -= 1


def _is_there(first: tuple[Helper, int] | list[bytes]) -> bool:
    """Tell whether what comes next need not be waited for."""
    if isinstance(first, list):
        return True
    poll = select.poll()
    poll.register(first[0].output, select.POLLIN)
    return bool(poll.poll(0))


def _join(file: Wanted) -> str:
    return f"{file.path}\0{file.size}\0{file.tag}"


def _answer_of(helper: Helper, count: int) -> Iterator[bytes]:
    data = helper.receive()
    if data[:1] == _FAILED:
        step, path, number = data[1:].decode().split("\0")
        raise NotCopied(step, path, int(number))
    if data[:1] != _FOUND or len(data) != 1 + _DIGEST * count:
        raise helper.lost()
    for start in range(1, len(data), _DIGEST):
        yield data[start : start + _DIGEST]


def copy_batch(source: int, target: int, files: Iterable[Wanted]) -> list[bytes]:
    """Copy files, and return the SHA-256 of each.

    Raises:
        NotCopied: a file cannot be copied, or is not the listed one.
    """
    found: list[bytes] = []
    inside: str | None = None
    here = there = -1
    try:
        for file in files:
            folder, _, name = file.path.rpartition("/")
            if folder != inside:
                inside = None
                here = _move(here, source, folder, "open", file.path)
                there = _move(there, target, folder, "write", file.path)
                inside = folder
            data = _read(here, name, file)
            _write(there, name, file.path, data)
            found.append(hashlib.sha256(data).digest())
    finally:
        for descriptor in (here, there):
            if descriptor >= 0:
                os.close(descriptor)
    return found


def _move(last: int, root: int, folder: str, step: str, path: str) -> int:
    """Open a folder in place of the last one."""
    try:
        descriptor = open_folder(root, folder)
    except OSError as error:
        raise NotCopied(step, path, error.errno or 0) from error
    if last >= 0:
        os.close(last)
    return descriptor


def _read(folder: int, name: str, file: Wanted) -> bytes:
    try:
        descriptor = os.open(name, FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        raise NotCopied("open", file.path, error.errno or 0) from error
    try:
        data = os.pread(descriptor, file.size + 1, 0)  # one more, to see it grow
        while 0 < len(data) < file.size:  # some file systems give less than is there
            piece = os.pread(descriptor, file.size - len(data), len(data))
            if not piece:
                break
            data += piece
        # What is the listed file now has been it, and has not been written to, all the time.
        if len(data) != file.size or tag_of(os.fstat(descriptor)) != file.tag:
            raise NotCopied("changed", file.path)
    except OSError as error:
        raise NotCopied("read", file.path, error.errno or 0) from error
    finally:
        os.close(descriptor)
    return data


def _write(folder: int, name: str, path: str, data: bytes) -> None:
    try:
        descriptor = create(name, folder)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:] if written else data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NotCopied("write", path, error.errno or errno.EIO) from error


def serve(source: int, target: int, channel: int) -> None:
    """Be a helper that copies."""
    serve_with(channel, lambda asked: _answer(source, target, asked))


def _answer(source: int, target: int, asked: str) -> bytes:
    words = asked.split("\0")
    files = [
        Wanted(path, int(size), tag)
        for path, size, tag in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]
    try:
        return _FOUND + b"".join(copy_batch(source, target, files))
    except NotCopied as error:
        return _FAILED + f"{error.step}\0{error.path}\0{error.number}".encode()
