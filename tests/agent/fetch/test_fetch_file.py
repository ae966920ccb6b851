"""Promises about inputs on this machine."""

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aicert.agent import copying
from aicert.agent.fetch import InputRequest, RemoteFile, errors, resolve
from aicert.agent.fetch.file import FileSource
from aicert.hashing import Helper
from aicert.manifest import scan
from tests.agent.fetch.conftest import Bring, content, noise


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a")
    (root / "deep" / "b.txt").write_bytes(b"bb")
    (root / "deep" / "er" / "c.txt").write_bytes(b"")
    return root


FILES = {"a.txt": b"a", "deep/b.txt": b"bb", "deep/er/c.txt": b""}


@pytest.mark.parametrize("uri", ["file:data", "file:./data", "file:data/", "file://{base}/data"])
def test_a_folder_comes_as_a_tree(tree: Path, bring: Bring, uri: str) -> None:
    uri = uri.format(base=tree.parent)
    got = bring(uri)
    assert content(got.path) == FILES
    assert got.manifest == scan(tree) == scan(got.path)
    assert got.root == got.manifest.root and got.sha256 is None
    assert (got.resolved.kind, got.resolved.uri, got.resolved.revision) == ("tree", uri, None)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_small_and_large_files_come_whole_however_they_are_shared_out(
    tmp_path: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(FileSource, "batch", batch)
    monkeypatch.setattr("aicert.agent.fetch.transfer.BLOCK", 100_000)
    files = {f"{n % 3}/{n:02}": os.urandom(n * 9_973) for n in range(31)}
    for name, data in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(data)
    got = bring("file:data")
    assert content(got.path) == files
    assert got.manifest == scan(tmp_path / "data")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_everything_below_is_read_only(tree: Path, bring: Bring, umask: int) -> None:
    (tree / "a.txt").chmod(0o777)
    (tree / "large").write_bytes(bytes(100_000))
    before = os.umask(umask)
    try:
        got = bring("file:data").path
    finally:
        os.umask(before)
    for path in [got, *got.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)


def test_one_file_comes_under_its_name(tree: Path, bring: Bring) -> None:
    got = bring("file:data/deep/b.txt")
    assert content(got.path) == {"b.txt": b"bb"}
    assert got.resolved.kind == "file" and got.sha256 == got.manifest.files[0].sha256


def test_a_name_with_spaces_marks_and_escapes_is_understood(tmp_path: Path, bring: Bring) -> None:
    (tmp_path / "my data #1?.txt").write_bytes(b"x")
    assert content(bring("file:my%20data%20%231?.txt").path) == {"my data #1?.txt": b"x"}


def test_the_root_of_a_tree_is_what_is_expected(tree: Path, bring: Bring) -> None:
    assert bring("file:data", sha256=scan(tree).root)


def test_a_tree_with_another_root_is_refused(tree: Path, bring: Bring, tmp_path: Path) -> None:
    with pytest.raises(errors.DigestMismatchError) as caught:
        bring("file:data", sha256="ab" * 32)
    assert caught.value.got == scan(tree).root
    assert not (tmp_path / "into").exists() and not (tmp_path / "partial").exists()


def test_nothing_there_says_so(bring: Bring) -> None:
    with pytest.raises(errors.NotFoundError):
        bring("file:nowhere")


def test_an_empty_folder_is_no_input(tmp_path: Path, bring: Bring) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(errors.NotFoundError):
        bring("file:data")


@pytest.mark.parametrize("target", ["a.txt", "deep", "/etc/hostname", "../outside", "nowhere"])
def test_a_link_in_a_tree_is_refused_wherever_it_leads(
    tree: Path, bring: Bring, target: str
) -> None:
    (tree / "deep" / "link").symlink_to(target)
    with pytest.raises(errors.LinkError) as caught:
        bring("file:data")
    assert caught.value.got == "deep/link"


def test_the_place_that_is_named_may_be_reached_by_a_link(tree: Path, bring: Bring) -> None:
    (tree.parent / "alias").symlink_to(tree)
    assert content(bring("file:alias").path) == FILES


def test_a_pipe_is_refused_without_waiting_for_it(tree: Path, bring: Bring) -> None:
    os.mkfifo(tree / "pipe")
    with pytest.raises(errors.PathError):
        bring("file:data")
    with pytest.raises(errors.PathError):
        bring("file:data/pipe")


def test_a_socket_and_a_device_are_refused(tree: Path, bring: Bring, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        here = Path.cwd()
        os.chdir(tree)  # socket paths are short
        try:
            endpoint.bind("s")
        finally:
            os.chdir(here)
        with pytest.raises(errors.PathError):
            bring("file:data")
    with pytest.raises(errors.PathError):
        bring("file:///dev/zero")


def test_a_folder_that_is_exchanged_for_a_link_while_we_read_leads_nowhere(
    tree: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.txt").write_bytes(b"secret of another")
    source = FileSource(InputRequest("it", "file:data"), tmp_path, 10)
    try:
        file = next(file for file in source.resolved.files if file.path == "deep/b.txt")
        (tree / "deep").rename(tmp_path / "gone")
        (tree / "deep").symlink_to(outside)
        with pytest.raises(errors.ChangedError):
            list(source.read(file, 0, None))
    finally:
        source.close()


def test_a_file_that_is_exchanged_for_a_link_while_we_read_leads_nowhere(
    tree: Path, tmp_path: Path
) -> None:
    source = FileSource(InputRequest("it", "file:data"), tmp_path, 10)
    try:
        file = next(file for file in source.resolved.files if file.path == "a.txt")
        (tree / "a.txt").unlink()
        (tree / "a.txt").symlink_to("/etc/hostname")
        with pytest.raises(errors.ChangedError):
            list(source.read(file, 0, None))
    finally:
        source.close()


def test_a_file_that_is_written_to_while_we_read_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "a.txt").write_bytes(b"x" * (6 << 20))
    source = FileSource(InputRequest("it", "file:data/a.txt"), tmp_path, 10)
    try:
        pieces = source.read(source.resolved.files[0], 0, None)
        next(pieces)
        before = (tree / "a.txt").stat()
        with (tree / "a.txt").open("r+b") as file:
            file.write(b"y")
        # Setting the time back does not hide it.
        os.utime(tree / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(errors.ChangedError):
            list(pieces)
    finally:
        source.close()


@pytest.mark.parametrize("meddling", ["rewritten", "longer", "shorter", "gone"])
def test_a_large_file_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch, meddling: str
) -> None:
    place = tmp_path / "data" / "large"
    place.parent.mkdir()
    place.write_bytes(noise(6 << 20))

    def rewrite() -> None:
        with place.open("r+b") as file:
            file.write(b"y")

    meddle: Callable[[], object] = {
        "rewritten": rewrite,
        "longer": lambda: os.truncate(place, 7 << 20),
        "shorter": lambda: os.truncate(place, 1 << 20),
        "gone": place.unlink,
    }[meddling]
    real, pieces = FileSource.fill, []

    def fill(source: FileSource, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        yield from real(source, file, start, into)
        pieces.append(start)
        if len(pieces) == 3:
            meddle()

    monkeypatch.setattr(FileSource, "fill", fill)
    with pytest.raises(errors.ChangedError):
        bring("file:data")
    assert not (tmp_path / "into").exists()


def test_large_files_are_hashed_in_the_order_of_their_pieces(tmp_path: Path, bring: Bring) -> None:
    (tmp_path / "data").mkdir()
    for number in range(5):
        (tmp_path / "data" / str(number)).write_bytes(noise((9 << 20) + number * 1000, number))
    got = bring("file:data")
    assert got.manifest == scan(tmp_path / "data") == scan(got.path)


def test_a_copy_for_which_there_is_no_room_ends(
    tmp_path: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(noise(6 << 20))
    real, calls = os.pwrite, []

    def full(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(errors.NoSpaceError):
        bring("file:large")
    monkeypatch.undo()
    assert content(bring("file:large").path) == {"large": noise(6 << 20)}


def test_a_small_file_that_grows_or_is_exchanged_after_the_listing_is_refused(
    tree: Path, tmp_path: Path
) -> None:
    source = FileSource(InputRequest("it", "file:data"), tmp_path, 10)
    files = {file.path: file for file in source.resolved.files}
    (tmp_path / "into" / "deep" / "er").mkdir(parents=True)
    target = os.open(tmp_path / "into", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with (tree / "a.txt").open("ab") as file:
            file.write(b"more")
        (tree / "deep" / "b.txt").unlink()
        (tree / "deep" / "b.txt").write_bytes(b"bb")
        for path in ("a.txt", "deep/b.txt"):
            with pytest.raises(errors.ChangedError):
                list(source.copy([files[path]], target, 1))
        (digest,) = source.copy([files["deep/er/c.txt"]], target, 1)
        assert digest == hashlib.sha256(b"").digest()
        assert content(tmp_path / "into") == {"deep/er/c.txt": b""}
    finally:
        os.close(target)
        source.close()


def test_one_small_file_comes_like_a_large_one(tmp_path: Path, bring: Bring) -> None:
    (tmp_path / "one").write_bytes(b"content")
    assert content(bring("file:one").path) == {"one": b"content"}


def test_what_cannot_be_stored_says_so_and_another_try_goes_through(
    tree: Path, tmp_path: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if data == b"bb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(errors.NoSpaceError):
        bring("file:data")
    monkeypatch.undo()
    assert not (tmp_path / "into").exists()
    assert len(content(bring("file:data").path)) == 3


def test_a_very_full_folder_comes_as_it_is_with_helpers(tmp_path: Path, bring: Bring) -> None:
    files = {f"d{number % 7}/{number:04}": b"%d" % number for number in range(copying.MANY + 500)}
    for path, data in files.items():
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(data)
    got = bring("file:data")
    assert content(got.path) == files
    assert [(f.path, f.sha256) for f in got.manifest.files] == [
        (path, hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())
    ]


SLOW = (
    "import time\n"
    "answer = copying._answer\n"
    "copying._answer = lambda *asked: (time.sleep(0.5), answer(*asked))[1]"
)


def test_when_a_copy_is_ended_no_helper_is_left(
    tmp_path: Path, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(1500):
        (tmp_path / "data" / f"{number}").write_bytes(b"content")
    asked: list[int] = []
    send = Helper.send
    head, _, call = copying._START.rpartition("; ")

    def heard(self: Helper, message: bytes) -> None:
        asked.append(self._process.pid)
        send(self, message)

    def stop(event: dict[str, object]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copying, "MANY", 0)
    monkeypatch.setattr(copying, "_START", f"{head}\n{SLOW}\n{call}")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(Helper, "send", heard)
    with pytest.raises(KeyboardInterrupt):
        bring("file:data", on_event=stop)
    assert len(set(asked)) == 2
    assert all(not Path(f"/proc/{pid}").exists() for pid in asked)
    assert not (tmp_path / "into").exists()


def test_names_that_collide_elsewhere_are_refused(tree: Path, bring: Bring) -> None:
    (tree / "A.txt").write_bytes(b"A")
    with pytest.raises(errors.PathError):
        bring("file:data")


def test_a_name_that_is_no_text_is_refused(tree: Path, bring: Bring) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff")).write_bytes(b"")
    with pytest.raises(errors.PathError):
        bring("file:data")


def test_a_tree_of_too_many_files_is_not_begun(tree: Path, bring: Bring) -> None:
    with pytest.raises(errors.TooLargeError):
        bring("file:data", max_files=2)


def test_without_a_base_no_file_of_this_machine_is_read(tree: Path, bring: Bring) -> None:
    for uri in (f"file://{tree}", "file:data", f"git+file://{tree}"):
        with pytest.raises(errors.SchemeError):
            bring(uri, base=None)


def test_a_file_on_another_machine_is_refused(bring: Bring) -> None:
    with pytest.raises(errors.UnresolvableError):
        bring("file://server/share/x")


def test_a_revision_is_refused_as_files_have_none(tree: Path, bring: Bring) -> None:
    with pytest.raises(errors.UnresolvableError):
        bring("file:data", revision="main")


def test_resolving_lists_without_reading(tree: Path, tmp_path: Path) -> None:
    got = resolve(InputRequest("it", "file:data"), base=tmp_path)
    assert sorted((file.path, file.size) for file in got.files) == [
        ("a.txt", 1),
        ("deep/b.txt", 2),
        ("deep/er/c.txt", 0),
    ]


def test_a_file_that_may_not_be_read_says_so(tree: Path, tmp_path: Path) -> None:
    (tree / "a.txt").chmod(0)
    source = FileSource(InputRequest("it", "file:data"), tmp_path, 10)
    file = next(file for file in source.resolved.files if file.path == "a.txt")
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(errors.DeniedError):
            list(source.read(file, 0, None))
    finally:
        os.seteuid(user)
        source.close()
