"""Inputs on this machine: `file:relative/path`, `file:///absolute/path`; a file or a folder.

The place that is named may be reached through links. Below it no link is followed: each step is
opened by its descriptor with O_NOFOLLOW, so an exchange of a folder for a link while we read
cannot lead elsewhere.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from aicert.agent.copying import NotCopied, Wanted, copy, tag_of
from aicert.agent.fetch.errors import (
    DeniedError,
    FetchError,
    LinkError,
    NotFoundError,
    PathError,
    TooLargeError,
    UnresolvableError,
    changed,
)
from aicert.agent.fetch.source import (
    InputRequest,
    Kind,
    RemoteFile,
    Resolved,
    Source,
    no_revision,
    split,
)
from aicert.hashing import open_below
from aicert.manifest import MAX_FILES

_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class FileSource(Source):
    """A file or a folder on this machine."""

    # One thread for all of them: several would spend their time on passing the GIL on.
    batch = MAX_FILES
    # A fetch that was cut starts over: its files would be read again in any case.
    remote = False

    def __init__(self, request: InputRequest, base: Path, max_files: int) -> None:
        """Open the place and list it.

        Raises:
            NotFoundError: nothing is there.
            LinkError: the folder holds a link.
            PathError: it is, or holds, something that is neither file nor folder.
            TooLargeError: it holds more than `max_files` files.
        """
        no_revision(request, "file")
        path = _locate(request.uri, base)
        try:
            self._root = os.open(path, _FLAGS)
        except OSError as error:
            raise _local(error, request.uri) from error
        try:
            status = os.fstat(self._root)
            kind: Kind = "file"
            if stat.S_ISREG(status.st_mode):
                files = [_entry(path.name, status, key="")]
            elif stat.S_ISDIR(status.st_mode):
                kind = "tree"
                files = list(self._walk(max_files))
            else:
                raise _special(request.uri)
        except BaseException:
            self.close()
            raise
        self.resolved = Resolved("file", request.uri, request.uri, None, None, kind, tuple(files))

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Yield bytes; a file that was replaced or written to since the listing is refused."""
        end = file.size if end is None else end
        assert end is not None
        piece = memoryview(bytearray(min(_PIECE, end - start)))
        while start < end:
            count = sum(self.fill(file, start, piece[: end - start]))
            yield bytes(piece[:count])
            start += count

    def fill(self, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        """Read straight into memory; otherwise as `read`."""
        descriptor = self._open(file.key)
        filled = 0
        try:
            _check(file, descriptor)
            while filled < len(into):
                piece = into[filled : filled + _PIECE]
                count = os.preadv(descriptor, [piece], start + filled)
                if not count:
                    got, expected = f"{start + filled} bytes", f"{start + len(into)} bytes"
                    raise changed(file.path, got=got, expected=expected)
                filled += count
                yield count
            _check(file, descriptor)
        except OSError as error:
            raise _local(error, file.path) from error
        finally:
            os.close(descriptor)

    def copy(self, files: Iterable[RemoteFile], target: int, jobs: int) -> Iterator[bytes]:
        """Copy small files of this folder into an open one; yield the SHA-256 of each.

        A file that was replaced or written to since the listing is refused.

        Args:
            files: of up to some 64 KiB; each is held in memory as a whole.
            target: the folder's descriptor; those below it are there.
            jobs: the most processes that may be at it.
        """
        wanted = [Wanted(file.path, file.size or 0, file.etag or "") for file in files]
        try:
            yield from copy(self._root, target, wanted, jobs)
        except NotCopied as error:
            reason = OSError(error.number, os.strerror(error.number), error.path)
            if error.step == "changed":
                raise changed(error.path) from error
            if error.step == "write":
                raise reason from error
            if error.step == "open" and not isinstance(reason, PermissionError):
                raise changed(error.path, got=reason.strerror) from error
            raise _local(reason, error.path) from error

    def close(self) -> None:
        """Close the place."""
        os.close(self._root)

    def _walk(self, max_files: int) -> Iterator[RemoteFile]:
        count = 0
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            try:
                folder = open_below(self._root, f"{prefix}.")
                try:
                    with os.scandir(folder) as entries:
                        found = [(e.name, e.stat(follow_symlinks=False)) for e in entries]
                finally:
                    os.close(folder)
            except OSError as error:
                raise _local(error, prefix or "a folder") from error
            for name, status in found:
                path = prefix + name
                if stat.S_ISREG(status.st_mode):
                    count += 1
                    if count > max_files:
                        raise TooLargeError("the folder holds too many files", expected=max_files)
                    yield _entry(path, status, key=path)
                elif stat.S_ISDIR(status.st_mode):
                    waiting.append(f"{path}/")
                elif stat.S_ISLNK(status.st_mode):
                    raise LinkError(
                        "the folder holds a link",
                        got=path,
                        advice="replace the link with the file itself, or remove it",
                    )
                else:
                    raise _special(path)

    def _open(self, path: str) -> int:
        """Open what was listed ("" is the one file), step by step and following no link."""
        try:
            return open_below(self._root, path) if path else os.dup(self._root)
        except PermissionError as error:
            raise _local(error, path) from error
        except OSError as error:
            raise changed(path, got=error.strerror) from error


def _locate(uri: str, base: Path) -> Path:
    parts = split(uri)
    if parts.netloc not in ("", "localhost"):
        raise UnresolvableError(
            "a file URI names another machine",
            got=parts.netloc,
            advice="write file:relative/path or file:///absolute/path",
        )
    # '?' and '#' are plain characters in a file's name: nothing is cut off.
    path = unquote(uri.partition(":")[2].removeprefix("//localhost").removeprefix("//"))
    if not path or "\0" in path:
        raise PathError("this names no file", got=uri)
    return base / path


def _entry(path: str, status: os.stat_result, key: str) -> RemoteFile:
    return RemoteFile(path, status.st_size, tag_of(status), key=key)


def _check(file: RemoteFile, descriptor: int) -> None:
    """Refuse a file that is not, or no longer, the listed one."""
    status = os.fstat(descriptor)
    if (status.st_size, tag_of(status)) != (file.size, file.etag):
        raise changed(file.path)


def _special(path: str) -> PathError:
    return PathError(
        "this is neither a file nor a folder",
        got=path,
        advice="devices, pipes and sockets cannot be inputs; copy the content into a file",
    )


def _local(error: OSError, what: str) -> FetchError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(
            "no such file or folder",
            got=what,
            advice="a relative path starts at the folder of the training spec",
        )
    if isinstance(error, PermissionError):
        return DeniedError(
            "this machine refuses to open it", got=what, advice="let the agent's user read it"
        )
    return PathError("it cannot be opened", got=f"{what}: {error.strerror}")
