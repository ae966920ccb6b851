"""Hashing in order: with threads, with helper processes, and when one of them ends early."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from aicert import hashing
from aicert.hashing import Run

SIZES = (0, 1, 4096, (64 << 10) - 1, 64 << 10, 100_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = hashing.open_root(tmp_path)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have helpers from the first file on; return the list that their process ids come into."""
    started: list[int] = []
    real = hashing._Helper.__init__

    def start(self: hashing._Helper, root: int) -> None:
        real(self, root)
        started.append(self._process.pid)

    monkeypatch.setattr(hashing, "_MANY", 0)
    monkeypatch.setattr(hashing._Helper, "__init__", start)
    return started


def write(folder: Path, sizes: dict[str, int]) -> list[Run]:
    """Write files of these paths and sizes; return them as they are to be hashed."""
    runs: list[Run] = []
    for number, (path, size) in enumerate(sizes.items()):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(number.to_bytes(4) * (size // 4 + 1))
        os.truncate(target, size)
        above, _, name = path.rpartition("/")
        if not runs or runs[-1][0] != above:
            runs.append((above, []))
        runs[-1][1].append(name)
    return runs


def plain(folder: Path, runs: list[Run]) -> list[tuple[str, int, str]]:
    paths = [f"{above}/{name}" if above else name for above, names in runs for name in names]
    contents = [(folder / path).read_bytes() for path in paths]
    return [
        (p, len(data), sha256(data).hexdigest()) for p, data in zip(paths, contents, strict=True)
    ]


def gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody has waited for has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def await_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_files_of_all_sizes_come_in_order(
    tmp_path: Path, root: int, helped: list[int], jobs: int
) -> None:
    sizes = {f"d{i // 40}/e/f{i:04}": SIZES[i % len(SIZES)] for i in range(400)}
    runs = write(tmp_path, {"top": 5, **{f"x/{i:04}": i for i in range(700)}, **sizes})
    seen: list[int] = []
    assert list(hashing.hash_runs(root, iter(runs), jobs=jobs, progress=seen.append)) == plain(
        tmp_path, runs
    )
    assert sum(seen) == sum(size for _, size, _ in plain(tmp_path, runs))
    assert len(helped) == jobs - 1
    assert all(not Path(f"/proc/{pid}").exists() for pid in helped)


def test_few_files_have_no_process_started(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = write(tmp_path, {f"{i:04}": i for i in range(500)})
    monkeypatch.setattr(hashing._Helpers, "start", lambda *_: pytest.fail("a helper was started"))
    assert len(list(hashing.hash_runs(root, runs, jobs=4))) == 500


def test_where_no_process_can_be_started_the_digests_are_the_same(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = write(tmp_path, {f"{i:04}": i for i in range(600)})

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(hashing, "_MANY", 0)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = len(os.listdir("/proc/self/fd"))
    assert list(hashing.hash_runs(root, runs, jobs=4)) == plain(tmp_path, runs)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_more_is_held_than_may_be(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_HELD", 300)
    runs = write(tmp_path, {"0": 3 << 20, **{f"f{i:04}": 10 for i in range(2000)}})
    asked = 0

    def ask() -> Iterator[Run]:
        nonlocal asked
        for above, names in runs:
            for name in names:
                asked += 1
                yield above, [name]

    got = 0
    for got, item in enumerate(hashing.hash_runs(root, ask(), jobs=2), 1):
        assert asked - got <= 300 + 2 * hashing.BATCH, item
    assert got == 2001


def test_a_read_that_gives_less_than_is_there_is_made_up_for(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = write(tmp_path, {"a": 5000, "b": 10})
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 1000)))
    assert list(hashing.hash_runs(root, runs, jobs=1)) == plain(tmp_path, runs)


def test_a_small_file_that_grows_between_the_look_and_the_read_is_refused(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = write(tmp_path, {"a": 10})
    look = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        with (tmp_path / "a").open("ab") as stream:
            stream.write(b"x")
        return found

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(hashing.ChangedError):
        hashing.hash_batch(root, runs, 100)


def behave(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have helpers run this code before they serve."""
    head, _, call = hashing._START.rpartition("; ")
    monkeypatch.setattr(hashing, "_START", f"{head}\n{code}\n{call}")


DEAD = "raise SystemExit(7)"
MUTE = "import os; hashing._answer = lambda *_: os._exit(7)"
SHORT = "hashing._answer = lambda *_: b'+' + bytes(41)"
NOTHING = "hashing._answer = lambda *_: b''"
HEADLESS = (
    "hashing._answer = lambda _, asked:"
    " b'?' + bytes(41 * sum(run.count(chr(0)) for run in asked.split(chr(10))))"
)
HUGE = "hashing._answer = lambda *_: bytes(2 << 20)"
HALF = (
    "import os\n"
    "def half(channel, data):\n"
    "    os.write(channel, len(data).to_bytes(4) + data[:9]); os._exit(7)\n"
    "hashing._send = half"
)
FAULTY = "hashing.hash_batch = None"


@pytest.mark.parametrize("code", [DEAD, MUTE, SHORT, NOTHING, HEADLESS, HUGE, HALF, FAULTY])
def test_a_helper_that_ends_or_answers_wrongly_ends_the_work(
    tmp_path: Path, root: int, helped: list[int], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    runs = write(tmp_path, {f"{i:04}": i for i in range(3000)})
    behave(monkeypatch, code)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(hashing.HelperError, match="has ended"):
        list(hashing.hash_runs(root, runs, jobs=3))
    assert helped and all(not Path(f"/proc/{pid}").exists() for pid in helped)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_helper_that_is_killed_midway_ends_the_work(
    tmp_path: Path, root: int, helped: list[int]
) -> None:
    runs = write(tmp_path, {f"{i:04}": 10 for i in range(8000)})

    def kill(_: int) -> None:
        os.kill(helped[0], signal.SIGKILL)

    with pytest.raises(hashing.HelperError):
        list(hashing.hash_runs(root, runs, jobs=3, progress=kill))


GROW = (
    "import os\n"
    "fstat = os.fstat\n"
    "def grow(descriptor):\n"
    "    found = fstat(descriptor)\n"
    "    with open(f'/proc/self/fd/{descriptor}', 'ab') as stream: stream.write(b'x')\n"
    "    return found\n"
    "os.fstat = grow"
)
CUT = GROW.replace("stream.write(b'x')", "stream.truncate(0)")


@pytest.mark.parametrize("code", [GROW, CUT])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_file_that_changes_under_a_helper_is_refused(
    tmp_path: Path,
    root: int,
    helped: list[int],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    size: int,
) -> None:
    runs = write(tmp_path, {"a": size})
    behave(monkeypatch, code)
    with pytest.raises(hashing.ChangedError) as caught:
        list(hashing.hash_runs(root, runs, jobs=2))
    assert helped and caught.value.got == "a"


@pytest.mark.parametrize("many", [0, 9999])
def test_what_is_no_file_any_more_is_refused(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(hashing, "_MANY", many)
    write(tmp_path, {"d/a": 5})
    (tmp_path / "link").symlink_to("d/a")
    (tmp_path / "folder").symlink_to("d")
    os.mkfifo(tmp_path / "pipe")
    for run, kind in (
        (("", ["link"]), hashing.LinkError),
        (("", ["pipe"]), hashing.LinkError),
        (("", ["d"]), hashing.LinkError),
        (("folder", ["a"]), hashing.ManifestError),
        (("", ["gone"]), hashing.ManifestError),
        (("gone", ["a"]), hashing.ManifestError),
    ):
        with pytest.raises(kind) as caught:
            list(hashing.hash_runs(root, [run], jobs=2))
        assert type(caught.value) is kind and run[1][0] in f"{caught.value.got}{run[1][0]}"
        assert (run[0] or run[1][0]) in (caught.value.got or "")


def test_a_folder_that_became_a_link_is_not_gone_through_for_a_large_file(
    tmp_path: Path, root: int
) -> None:
    write(tmp_path, {"d/large": 2 << 20})
    found = hashing.hash_runs(root, swapped(tmp_path), jobs=1)
    with pytest.raises(hashing.ManifestError):
        list(found)


def swapped(folder: Path) -> Iterator[Run]:
    yield "d", ["large"]
    # Asked for more only when the first batch is full or all is known: so it is swapped first.
    (folder / "d").rename(folder / "e")
    (folder / "d").symlink_to("e")


def test_helpers_end_with_the_one_who_asks(tmp_path: Path, root: int, helped: list[int]) -> None:
    runs = write(tmp_path, {f"{i:04}": 10 for i in range(4000)})
    found = hashing.hash_runs(root, runs, jobs=3)
    next(found)
    assert len(helped) == 2 and not any(map(gone, helped))
    found.close()  # type: ignore[attr-defined]
    assert all(map(gone, helped))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_of_any_script_reach_a_helper(tmp_path: Path, locale: str) -> None:
    runs = write(tmp_path, {f"日本/ü{i:04}": i for i in range(600)})
    code = (
        "import sys\nfrom aicert import hashing\nhashing._MANY = 0\n"
        "asked = hashing._Helper.ask\n"
        "hashing._Helper.ask = lambda *a: (print('asked', file=sys.stderr), asked(*a))\n"
        "names = [f'ü{i:04}' for i in range(600)]\n"
        "found = hashing.hash_runs(hashing.open_root(sys.argv[1]), [('日本', names)], jobs=2)\n"
        "print(ascii(list(found)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "LC_ALL": locale},
        capture_output=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout.decode()) == plain(tmp_path, runs)
    assert b"asked" in done.stderr


PARENT = """
import sys, time
from aicert import hashing
hashing._MANY = 0
real = hashing._Helper.__init__
def start(self, root):
    real(self, root)
    print(self._process.pid, flush=True)
hashing._Helper.__init__ = start
names = [str(n) for n in range(4000)]
found = hashing.hash_runs(hashing.open_root(sys.argv[1]), [("", names)], jobs=3)
next(found)
print("ready", flush=True)
time.sleep(60)
"""


def test_helpers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    write(tmp_path, {str(i): 10 for i in range(4000)})
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            said = [parent.stdout.readline().strip() for _ in range(3)]
            assert said[2] == "ready"
            helpers = [int(text) for text in said[:2]]
            assert not any(map(gone, helpers))
        finally:
            parent.kill()
    assert await_true(lambda: all(map(gone, helpers)))


def test_what_the_progress_raises_ends_the_work(
    tmp_path: Path, root: int, helped: list[int]
) -> None:
    runs = write(tmp_path, {f"{i:04}": (2 << 20) * (i == 0) for i in range(2000)})

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(hashing.hash_runs(root, runs, jobs=3, progress=stop))
    assert all(map(gone, helped))
