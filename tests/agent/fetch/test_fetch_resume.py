"""Promises about downloads that are cut, killed, cancelled or repeated."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aicert.agent.fetch import Retry, errors
from aicert.agent.fetch.transfer import BLOCK
from tests.agent.fetch.conftest import Bring, content, noise
from tests.agent.fetch.web import Handler, Page, Web, cut, good, refuse

CHILD = """
import sys
from pathlib import Path
from aicert.agent.fetch import InputRequest, fetch
folder = Path(sys.argv[2])
request = InputRequest("it", sys.argv[1])
fetch(request, folder / "into", base=folder, partial=folder / "partial", jobs=2)
"""


def asked_bytes(web: Web, after: int = 0) -> int:
    total = 0
    for asked in web.asked[after:]:
        first, _, last = asked.headers["range"].partition("=")[2].partition("-")
        total += int(last) - int(first) + 1
    return total


def test_after_a_kill_only_what_is_missing_is_asked_for(
    web: Web, bring: Bring, tmp_path: Path
) -> None:
    data = noise(4 * BLOCK + 12345)
    stuck, release = threading.Event(), threading.Event()

    def stall(handler: Handler) -> bool:
        stuck.set()
        release.wait(60)
        return False

    page = web.pages["/data.bin"] = Page(data)
    # The probe and two blocks are answered; the child then waits for blocks that do not come.
    page.faults = [good, good, good, stall, stall]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, f"{web.url}/data.bin", str(tmp_path)], cwd=Path.cwd()
    )
    try:
        assert stuck.wait(60)
        journal = tmp_path / "partial" / "journal"
        while len(journal.read_text().splitlines()) < 3 and child.poll() is None:
            os.sched_yield()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        release.set()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "into").exists()

    before = len(web.asked)
    page.faults = []
    got = bring(f"{web.url}/data.bin")
    assert got.sha256 == hashlib.sha256(data).hexdigest()
    assert (got.path / "data.bin").read_bytes() == data
    probe = 1
    assert asked_bytes(web, before) - probe == len(data) - 2 * BLOCK


@pytest.mark.usefixtures("small_blocks")
class TestResume:
    """With small blocks."""

    DATA = noise(500_000)

    @pytest.fixture
    def cut_short(self, web: Web, bring: Bring) -> Page:
        """Leave a download after three of its eight blocks."""
        page = web.pages["/data.bin"] = Page(self.DATA)
        page.faults = [good, good, good, good, *[refuse(404)] * 10]
        with pytest.raises(errors.NotFoundError):
            bring(f"{web.url}/data.bin", jobs=1)
        page.faults, web.asked[:] = [], []
        return page

    def test_finished_blocks_are_not_asked_for_again(
        self, web: Web, bring: Bring, cut_short: Page
    ) -> None:
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}
        assert asked_bytes(web) == 1 + len(self.DATA) - 3 * (64 << 10)

    def test_a_block_that_went_bad_on_the_disk_is_asked_for_again(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        with next(tmp_path.glob("partial/tree*/data.bin")).open("r+b") as file:
            file.seek(70_000)
            file.write(b"rot")
        got = bring(f"{web.url}/data.bin")
        assert got.sha256 == hashlib.sha256(self.DATA).hexdigest()
        assert asked_bytes(web) == 1 + len(self.DATA) - 2 * (64 << 10)

    def test_blocks_that_went_bad_do_not_count_twice(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        with next(tmp_path.glob("partial/tree*/data.bin")).open("r+b") as file:
            file.write(b"rot")
        events: list[dict[str, object]] = []
        # A limit that anything counted twice would exceed.
        got = bring(f"{web.url}/data.bin", max_bytes=len(self.DATA), on_event=events.append)
        assert got.sha256 == hashlib.sha256(self.DATA).hexdigest()
        assert asked_bytes(web) == 1 + len(self.DATA) - 2 * (64 << 10)
        assert events[-1]["done"] == len(self.DATA)

    def test_a_journal_that_lies_costs_the_block_and_nothing_else(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        journal = tmp_path / "partial" / "journal"
        identity, first, *rest = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join([identity, f"0 0 {'0' * 64}\n", *rest]))
        assert first.startswith("0 0 ")
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}
        assert asked_bytes(web) == 1 + len(self.DATA) - 2 * (64 << 10)

    def test_a_journal_whose_last_line_was_torn_is_good_for_the_rest(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        journal = tmp_path / "partial" / "journal"
        journal.write_text(journal.read_text()[:-5])
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}
        assert asked_bytes(web) == 1 + len(self.DATA) - 2 * (64 << 10)

    def test_nothing_is_kept_of_a_source_that_changed_meanwhile(
        self, web: Web, bring: Bring, cut_short: Page
    ) -> None:
        cut_short.data, cut_short.headers = noise(500_000, 2), {"ETag": '"two"'}
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": cut_short.data}
        assert asked_bytes(web) == 1 + 500_000

    def test_a_file_that_was_put_among_the_finished_ones_does_not_get_in(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        (next(tmp_path.glob("partial/tree*")) / "extra").write_bytes(b"x")
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}

    def test_a_link_in_the_place_of_a_file_is_not_written_through(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"safe")
        target = next(tmp_path.glob("partial/tree*/data.bin"))
        target.unlink()
        target.symlink_to(victim)
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}
        assert victim.read_bytes() == b"safe"

    def test_an_input_that_is_fetched_twice_is_downloaded_once(
        self, web: Web, bring: Bring
    ) -> None:
        web.pages["/data.bin"] = Page(self.DATA)
        first = bring(f"{web.url}/data.bin")
        web.asked.clear()
        assert bring(f"{web.url}/data.bin") == first
        assert asked_bytes(web) == 1

    def test_what_was_done_to_a_finished_input_is_undone(
        self, web: Web, bring: Bring, tmp_path: Path
    ) -> None:
        web.pages["/data.bin"] = Page(self.DATA)
        first = bring(f"{web.url}/data.bin")
        (first.path / "data.bin").chmod(0o644)
        (first.path / "data.bin").write_bytes(b"other")
        assert bring(f"{web.url}/data.bin") == first
        assert content(first.path) == {"data.bin": self.DATA}

    def test_what_a_damaged_partial_file_has_too_much_is_cut_off(
        self, web: Web, bring: Bring, cut_short: Page, tmp_path: Path
    ) -> None:
        with next(tmp_path.glob("partial/tree*/data.bin")).open("r+b") as file:
            file.truncate(len(self.DATA) + 5)
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}

    def test_a_disk_that_fills_up_says_so_and_the_rest_is_good(
        self, web: Web, bring: Bring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        web.pages["/data.bin"] = Page(self.DATA)
        real, calls = os.pwrite, []

        def full(descriptor: int, data: bytes, offset: int) -> int:
            calls.append(offset)
            if len(calls) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(errors.NoSpaceError):
            bring(f"{web.url}/data.bin", jobs=1)
        web.asked.clear()
        assert content(bring(f"{web.url}/data.bin").path) == {"data.bin": self.DATA}
        # Blocks that were under way beside the one that failed may be good as well.
        assert asked_bytes(web) <= 1 + len(self.DATA) - 3 * (64 << 10)

    def test_a_place_that_holds_something_else_is_left_alone(
        self, web: Web, bring: Bring, tmp_path: Path
    ) -> None:
        web.pages["/data.bin"] = Page(self.DATA)
        (tmp_path / "into").mkdir()
        (tmp_path / "into" / "mine").write_bytes(b"mine")
        with pytest.raises(errors.PathError):
            bring(f"{web.url}/data.bin")
        assert content(tmp_path / "into") == {"mine": b"mine"}

    def test_two_fetches_of_one_input_do_not_mix(self, web: Web, bring: Bring) -> None:
        page = web.pages["/data.bin"] = Page(self.DATA)
        problems: list[BaseException] = []

        def second(handler: Handler) -> bool:
            try:
                bring(f"{web.url}/data.bin")
            except errors.BusyError as error:
                problems.append(error)
            return False

        page.faults = [second]
        bring(f"{web.url}/data.bin")
        assert [error.code for error in problems if isinstance(error, errors.BusyError)] == [
            "fetch.busy"
        ]

    def test_a_fetch_that_is_cancelled_ends_and_can_be_taken_up(
        self, web: Web, bring: Bring
    ) -> None:
        page = web.pages["/data.bin"] = Page(self.DATA)
        cancelled = threading.Event()

        def cancel(handler: Handler) -> bool:
            cancelled.set()
            return False

        page.faults = [good, good, good, cancel]
        with pytest.raises(errors.CancelledError):
            bring(f"{web.url}/data.bin", jobs=1, cancelled=cancelled)
        web.asked.clear()
        bring(f"{web.url}/data.bin")
        assert asked_bytes(web) <= 1 + len(self.DATA) - 2 * (64 << 10)

    def test_a_fetch_that_waits_to_try_again_can_be_cancelled(self, web: Web, bring: Bring) -> None:
        cancelled = threading.Event()

        def cancel(handler: Handler) -> bool:
            cancelled.set()
            return refuse(503, Retry_After="3600")(handler)

        web.pages["/data.bin"] = Page(self.DATA, faults=[cancel] * 9)
        with pytest.raises(errors.CancelledError):
            bring(f"{web.url}/data.bin", cancelled=cancelled, retry=Retry(longest_wait=3600))

    def test_an_exception_in_the_callback_ends_the_fetch(self, web: Web, bring: Bring) -> None:
        web.pages["/data.bin"] = Page(self.DATA)

        def stop(event: dict[str, object]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bring(f"{web.url}/data.bin", on_event=stop)

    def test_progress_counts_up_to_the_size(self, web: Web, bring: Bring) -> None:
        page = web.pages["/data.bin"] = Page(self.DATA)
        page.faults = [good, good, cut(1000)]
        events: list[dict[str, object]] = []
        bring(f"{web.url}/data.bin", on_event=events.append)
        assert events[-1] == {
            "type": "progress",
            "what": "input it",
            "done": len(self.DATA),
            "total": len(self.DATA),
            "unit": "bytes",
        }
        done = [event["done"] for event in events]
        assert done == sorted(done, key=lambda value: int(str(value)))

    def test_four_ranges_are_under_way_at_once(self, web: Web, bring: Bring) -> None:
        page = web.pages["/data.bin"] = Page(self.DATA)
        together = threading.Barrier(4, timeout=240)

        def meet(handler: Handler) -> bool:
            together.wait()
            return False

        # If fewer came at once, the barrier would break and the answers with it.
        page.faults = [good, *[meet] * 8]
        bring(f"{web.url}/data.bin", jobs=4)
        assert not together.broken
