"""Promises about how many requests are under way, and what they may hold in memory."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aicert.agent.fetch import RemoteFile, Resolved, Retry
from aicert.agent.fetch.source import Source
from aicert.agent.fetch.transfer import BLOCK, Partial, Transfer
from aicert.manifest import File


class Counting(Source):
    """Files that come as soon as so many of them have been asked for."""

    def __init__(self, sizes: list[int], at_once: int) -> None:
        files = tuple(RemoteFile(f"f{i}", size, key=str(i)) for i, size in enumerate(sizes))
        self.resolved = Resolved("test", "test:", "test:", None, None, "tree", files)
        self.barrier = threading.Barrier(at_once)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        assert end is not None
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.barrier.wait(240)
            yield bytes(end - start)
        finally:
            with self.lock:
                self.now -= 1

    def close(self) -> None:
        """Nothing is open."""


def bring(source: Source, folder: Path) -> list[File]:
    with Partial(folder) as partial:
        partial.open("it", source.resolved.files)
        return Transfer(
            source,
            source.resolved.files,
            partial,
            jobs=4,
            max_bytes=1 << 40,
            retry=Retry(),
            progress=lambda done, total: None,
            cancelled=threading.Event(),
        ).run()


def test_of_small_files_many_are_asked_for_at_a_time(tmp_path: Path) -> None:
    source = Counting([100] * 64, at_once=16)
    found = bring(source, tmp_path)
    assert source.most == 16
    expected = hashlib.sha256(bytes(100)).hexdigest()
    assert sorted(found, key=lambda f: int(f.path[1:])) == [
        File(f"f{i}", 100, expected) for i in range(64)
    ]


@pytest.mark.parametrize("sizes", [[100_000] * 24, [8 * BLOCK]])
def test_of_large_ones_only_a_few(tmp_path: Path, sizes: list[int]) -> None:
    source = Counting(sizes, at_once=4)
    found = bring(source, tmp_path)
    assert source.most == 4
    assert {(f.size, f.sha256) for f in found} == {
        (sizes[0], hashlib.sha256(bytes(sizes[0])).hexdigest())
    }


class Gathering(Counting):
    """Small files that come a batch at a time, but for those whose turn it is to fail."""

    batch = 16
    crowd = 1

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sizes, at_once=1)
        self.batches: list[int] = []
        self.alone: list[str] = []

    def together(self, files: Sequence[RemoteFile]) -> dict[str, bytes]:
        self.batches.append(len(files))
        came = {file.path: bytes(file.size or 0) for file in files}
        came.pop("f5", None)
        if "f7" in came:
            came["f7"] += b"more"
        if "f9" in came:
            came["f9"] = came["f9"][:-1]
        return came

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        self.alone.append(file.path)
        return super().read(file, start, end)


def test_what_does_not_come_with_its_batch_is_asked_for_by_itself(tmp_path: Path) -> None:
    source = Gathering([100] * 40 + [0])
    found = bring(source, tmp_path)
    assert sorted(source.batches) == [8, 16, 16]  # an empty one needs no asking
    assert sorted(source.alone) == ["f5", "f7", "f9"]
    expected = hashlib.sha256(bytes(100)).hexdigest()
    assert {(f.size, f.sha256) for f in found[:40]} == {(100, expected)}
    assert all((tmp_path / "tree.aicert-partial" / f.path).stat().st_size == f.size for f in found)


def test_what_is_here_is_not_asked_for_with_its_batch(tmp_path: Path) -> None:
    bring(Gathering([100] * 20), tmp_path)
    again = Gathering([100] * 40)
    bring(again, tmp_path)
    assert sum(again.batches) == 20 and again.alone == []
