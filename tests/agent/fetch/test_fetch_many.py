"""Promises about how many requests are under way, and what they may hold in memory."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicert.agent.fetch import RemoteFile, Resolved, Retry
from aicert.agent.fetch.source import Source
from aicert.agent.fetch.transfer import BLOCK, Partial, Transfer
from aicert.manifest import File


class Counting(Source):
    """Files that come as soon as so many of them have been asked for."""

    def __init__(self, sizes: list[int], together: int) -> None:
        files = tuple(RemoteFile(f"f{i}", size, key=str(i)) for i, size in enumerate(sizes))
        self.resolved = Resolved("test", "test:", "test:", None, None, "tree", files)
        self.together = threading.Barrier(together)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        assert end is not None
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.together.wait(240)
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
    source = Counting([100] * 64, together=16)
    found = bring(source, tmp_path)
    assert source.most == 16
    expected = hashlib.sha256(bytes(100)).hexdigest()
    assert sorted(found, key=lambda f: int(f.path[1:])) == [
        File(f"f{i}", 100, expected) for i in range(64)
    ]


@pytest.mark.parametrize("sizes", [[100_000] * 24, [8 * BLOCK]])
def test_of_large_ones_only_a_few(tmp_path: Path, sizes: list[int]) -> None:
    source = Counting(sizes, together=4)
    found = bring(source, tmp_path)
    assert source.most == 4
    assert {(f.size, f.sha256) for f in found} == {
        (sizes[0], hashlib.sha256(bytes(sizes[0])).hexdigest())
    }
