"""Copying in order, alone and with helper processes, and when one of them fails."""

import errno
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from aicert import hashing
from aicert.agent import copying
from aicert.agent.copying import NotCopied, Wanted, copy

FILES = {f"d{number // 90}/é{number:04}": b"%d." % number * (number % 50) for number in range(1500)}


class Pair:
    """Two folders, open."""

    def __init__(self, above: Path) -> None:
        self.source, self.target = above / "source", above / "target"
        for path, data in FILES.items():
            for folder in (self.source, self.target):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.source / path).write_bytes(data)
        flags = os.O_RDONLY | os.O_DIRECTORY
        self.descriptors = [os.open(folder, flags) for folder in (self.source, self.target)]

    def wanted(self) -> list[Wanted]:
        found = []
        for path in FILES:
            status = (self.source / path).stat()
            found.append(Wanted(path, status.st_size, copying.tag_of(status)))
        return found

    def copy(self, files: list[Wanted] | None = None, jobs: int = 1) -> list[bytes]:
        source, target = self.descriptors
        return list(copy(source, target, self.wanted() if files is None else files, jobs))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    for descriptor in made.descriptors:
        os.close(descriptor)


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have helpers from the first file on; return the list that their process ids come into."""
    started: list[int] = []
    real = hashing.Helper.__init__

    def start(self: hashing.Helper, *arguments: object) -> None:
        real(self, *arguments)  # type: ignore[arg-type]
        started.append(self._process.pid)

    monkeypatch.setattr(copying, "MANY", 0)
    monkeypatch.setattr(hashing.Helper, "__init__", start)
    return started


def behave(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have helpers run this code before they serve."""
    head, _, call = copying._START.rpartition("; ")
    monkeypatch.setattr(copying, "_START", f"{head}\n{code}\n{call}")


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_files_come_whole_and_their_digests_in_order(
    pair: Pair, helped: list[int], jobs: int
) -> None:
    assert pair.copy(jobs=jobs) == [sha256(data).digest() for data in FILES.values()]
    for path, data in FILES.items():
        assert (pair.target / path).read_bytes() == data
        assert (pair.target / path).stat().st_mode & 0o777 == 0o444
    assert len(helped) == jobs - 1
    assert all(not Path(f"/proc/{pid}").exists() for pid in helped)


def test_few_files_have_no_process_started(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing.Helper, "__init__", lambda *_: pytest.fail("a helper was started"))
    assert len(pair.copy(jobs=4)) == len(FILES)


def test_where_no_process_can_be_started_all_are_copied_here(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(copying, "MANY", 0)
    monkeypatch.setattr(hashing.Helper, "__init__", refuse)
    assert len(pair.copy(jobs=4)) == len(FILES)


@pytest.mark.parametrize("index", [0, 300, len(FILES) - 1])
def test_a_file_that_is_not_the_listed_one_any_more_is_refused_by_whoever_copies_it(
    pair: Pair, helped: list[int], index: int
) -> None:
    path = list(FILES)[index]
    wanted = pair.wanted()
    data = (pair.source / path).read_bytes()
    for change in (data + b"x", data[:-1] + b"y"):
        (pair.source / path).write_bytes(change)
        with pytest.raises(NotCopied) as caught:
            pair.copy(wanted, jobs=2)
        assert (caught.value.step, caught.value.path) == ("changed", path)
        for copied in pair.target.rglob("é*"):
            copied.unlink()
    assert helped


def test_no_link_is_followed_on_either_side(pair: Pair, tmp_path: Path) -> None:
    first, last = next(iter(FILES)), list(FILES)[-1]
    outside = tmp_path / "outside"
    outside.mkdir()
    wanted = {file.path: file for file in pair.wanted()}
    (pair.source / first).unlink()
    (pair.source / first).symlink_to(pair.source / last)
    with pytest.raises(NotCopied) as caught:
        pair.copy([wanted[first]])
    assert (caught.value.step, caught.value.number) == ("open", errno.ELOOP)
    (pair.target / last).parent.rmdir()
    (pair.target / last).parent.symlink_to(outside)
    with pytest.raises(NotCopied) as caught:
        pair.copy([wanted[last]])
    assert caught.value.step == "write" and list(outside.iterdir()) == []
    (pair.source / last).parent.rename(outside / "d")
    (pair.source / last).parent.symlink_to(outside / "d")
    with pytest.raises(NotCopied) as caught:
        pair.copy([wanted[last]])
    assert caught.value.step == "open"


def test_what_is_there_already_is_not_written_over(pair: Pair) -> None:
    path = next(iter(FILES))
    (pair.target / path).write_bytes(b"it was here")
    with pytest.raises(NotCopied) as caught:
        pair.copy()
    assert (caught.value.step, caught.value.number) == ("write", errno.EEXIST)
    assert (pair.target / path).read_bytes() == b"it was here"


def test_a_read_or_a_write_that_does_less_than_asked_is_gone_on_with(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pread, os.write
    monkeypatch.setattr(os, "pread", lambda d, size, at: read(d, min(size, 7), at))
    monkeypatch.setattr(os, "write", lambda d, data: write(d, data[:5]))
    assert pair.copy() == [sha256(data).digest() for data in FILES.values()]
    assert all((pair.target / path).read_bytes() == data for path, data in FILES.items())


FULL = (
    "import errno, os\n"
    "def full(*_):\n"
    "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
    "os.write, send = full, os.write\n"
    "from aicert import hashing\n"
    "hashing._send = lambda channel, data: send(channel, len(data).to_bytes(4) + data)"
)


def test_that_a_helper_cannot_write_is_told_with_its_reason(
    pair: Pair, helped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, FULL)
    with pytest.raises(NotCopied) as caught:
        pair.copy(jobs=2)
    assert (caught.value.step, caught.value.number) == ("write", errno.ENOSPC)
    assert helped and caught.value.path in FILES


DEAD = "raise SystemExit(7)"
MUTE = "import os; copying._answer = lambda *_: os._exit(7)"
SHORT = "copying._answer = lambda *_: b'+' + bytes(32)"
NOTHING = "copying._answer = lambda *_: b''"
HEADLESS = "copying._answer = lambda s, t, asked: b'?' + bytes(32 * 256)"
HUGE = "copying._answer = lambda *_: bytes(2 << 20)"


@pytest.mark.parametrize("code", [DEAD, MUTE, SHORT, NOTHING, HEADLESS, HUGE])
def test_a_helper_that_ends_or_answers_wrongly_ends_the_work(
    pair: Pair, helped: list[int], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    behave(monkeypatch, code)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(hashing.HelperError, match="has ended"):
        pair.copy(jobs=3)
    assert helped and all(not Path(f"/proc/{pid}").exists() for pid in helped)
    assert len(os.listdir("/proc/self/fd")) == before


def test_helpers_end_with_the_one_who_asks(pair: Pair, helped: list[int]) -> None:
    source, target = pair.descriptors
    found = copy(source, target, pair.wanted(), 3)
    next(found)
    assert len(helped) == 2
    found.close()  # type: ignore[attr-defined]
    assert all(not Path(f"/proc/{pid}").exists() for pid in helped)
