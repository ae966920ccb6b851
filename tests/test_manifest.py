"""Manifests: what a tree's digests cover, and which trees are refused."""

import hashlib
import io
import os
import tempfile
from hashlib import sha256
from pathlib import Path

import model_signing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicert import canonical, hashing, manifest
from aicert.manifest import File, Manifest

names = st.text("abcdefgh0123._-", min_size=1, max_size=6).filter(
    lambda name: name[-1] not in ". " and name not in (".", "..")
)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
files = st.builds(
    File, paths, st.integers(0, 2**40), st.binary(min_size=32, max_size=32).map(bytes.hex)
)


def _collide(items: list[File]) -> bool:
    try:
        manifest.check_collisions([item.path for item in items])
    except manifest.CollisionError:
        return True
    return len({item.path for item in items}) != len(items)


trees = st.lists(files, max_size=8, unique_by=lambda file: file.path).filter(
    lambda items: not _collide(items)
)


@given(trees)
def test_a_manifest_survives_its_json_form(items: list[File]) -> None:
    tree = Manifest.of(items)
    data = canonical.dumps(tree.to_json())
    assert Manifest.from_json(canonical.loads_canonical(data, max_bytes=1 << 20)) == tree


@given(trees, st.data())
def test_any_change_of_a_name_a_size_or_a_content_changes_the_digest(
    items: list[File], data: st.DataObject
) -> None:
    if not items:
        return
    tree = Manifest.of(items)
    index = data.draw(st.integers(0, len(items) - 1))
    old = tree.files[index]
    new = data.draw(files)
    others = [file for file in tree.files if file != old]
    if new != old and not _collide([*others, new]):
        assert Manifest.of([*others, new]).digest != tree.digest


def _write(folder: Path, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def test_the_root_is_that_of_openssf_model_signing(tmp_path: Path) -> None:
    _write(tmp_path, {"b/weights.bin": b"w" * 3_000_000, "a.json": b"{}", "b.txt": b"", "Z": b"z"})
    ours = manifest.scan(tmp_path)
    theirs = model_signing.hashing.Config().hash(tmp_path)
    digest = hashlib.sha256()
    for item in theirs.resource_descriptors():
        digest.update(item.digest.digest_value)
    assert [f.path for f in ours.files] == [i.identifier for i in theirs.resource_descriptors()]
    assert ours.root == digest.hexdigest()


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_the_digest_is_that_of_the_canonical_json_whatever_the_number(count: int) -> None:
    items = Manifest.of([File(f"d{i % 7}/ü{i}", i, f"{i:064x}") for i in range(count)])
    assert items.digest == canonical.sha256(items.to_json())


# Names that are one when they are folded, of which one holds a separator then, and whose order
# by parts is not that of the paths.
odd_names = st.text(["a", "A", "b", "-", ".", "0", "ß", "S", "s", "／", "℀", "/"], min_size=1)
odd_paths = st.lists(odd_names.map(lambda path: path.replace("//", "/").strip("/")), max_size=8)


def _in_memory(folder: Path) -> Manifest:
    """The plain way: list all, check all, sort all."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            data = (Path(place) / name).read_bytes()
            path = os.path.relpath(os.path.join(place, name), folder)
            found.append(File(manifest.check_path(path), len(data), sha256(data).hexdigest()))
    return Manifest.of(found)


@settings(deadline=None, max_examples=300)
@given(odd_paths)
def test_a_tree_gives_the_same_in_order_as_in_memory(items: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, path in enumerate(items):
            try:
                _write(folder, {path: bytes(number)})
            except OSError:
                pass  # one is a folder, the other a file
        try:
            expected = _in_memory(folder)
        except manifest.ManifestError as error:
            for read in (manifest.summarise, manifest.scan, lambda f: list(manifest.walk(f))):
                with pytest.raises(type(error)):
                    read(folder)
            return
        out = io.BytesIO()
        summary = manifest.summarise(folder, out)
        assert out.getvalue() == canonical.dumps(expected.to_json())
        assert summary.digest == sha256(out.getvalue()).hexdigest() == expected.digest
        assert (summary.files, summary.size) == (len(expected.files), expected.size)
        raw = [bytes.fromhex(file.sha256) for file in expected.files]
        assert summary.root == sha256(b"".join(raw)).hexdigest()
        assert tuple(manifest.hashed(folder)) == expected.files
        listing = [(file.path, file.size) for file in expected.files]
        assert list(manifest.walk(folder)) == listing
        assert manifest.hash_files(folder, listing) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**53 - 1))
def test_what_is_written_is_canonical_whatever_the_name(name: str, size: int) -> None:
    out = io.BytesIO()
    summing = manifest.Summing(out)
    summing.add(name, size, "ab" * 32)
    summing.end()
    expected = {"version": 1, "files": [File(name, size, "ab" * 32).to_json()]}
    assert out.getvalue() == canonical.dumps(expected)


def test_more_bytes_than_json_can_say_are_refused() -> None:
    with pytest.raises(manifest.ManifestError, match="too large"):
        _ = Manifest.of([File("a", 2**53 - 1, "00" * 32), File("b", 1, "00" * 32)]).digest


def test_a_tree_as_deep_as_a_path_may_be_is_read_and_no_deeper(tmp_path: Path) -> None:
    _write(tmp_path, {"a/" * 63 + "b": b"x"})
    assert [path for path, _ in manifest.walk(tmp_path)] == ["a/" * 63 + "b"]
    _write(tmp_path, {"a/" * 64 + "b": b"x"})
    with pytest.raises(manifest.PathError, match="deeper"):
        list(manifest.walk(tmp_path))


def test_a_path_that_is_too_long_with_its_folder_is_refused(tmp_path: Path) -> None:
    folder = "/".join(["x" * 200] * 5)
    _write(tmp_path, {f"{folder}/{'y' * 19}": b"x"})
    assert len(next(manifest.walk(tmp_path))[0]) == manifest.MAX_PATH
    _write(tmp_path, {f"{folder}/{'y' * 20}": b"x"})
    with pytest.raises(manifest.PathError, match="longer"):
        list(manifest.walk(tmp_path))


def test_a_tree_of_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, {f"{folder}/{name}": b"" for folder in "ab" for name in "cd"})
    monkeypatch.setattr(manifest, "MAX_FILES", 4)
    assert manifest.summarise(tmp_path).files == 4
    monkeypatch.setattr(manifest, "MAX_FILES", 3)
    with pytest.raises(manifest.ManifestError, match="too many"):
        manifest.summarise(tmp_path)


@pytest.mark.parametrize("pair", [("a／b", "a/b"), ("x/℀", "x/a/c"), ("B", "b/c"), ("X/y", "x/Y")])
def test_two_files_that_are_one_on_some_system_are_refused(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    _write(tmp_path, dict.fromkeys(("m/other", *pair), b""))
    with pytest.raises(manifest.CollisionError):
        manifest.summarise(tmp_path)


def test_what_is_ignored_may_collide(tmp_path: Path) -> None:
    _write(tmp_path, {"A": b"x", "a": b"x"})
    assert list(manifest.walk(tmp_path, {"A"})) == [("a", 1)]
    with pytest.raises(manifest.CollisionError):
        list(manifest.walk(tmp_path))


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_scan_gives_sizes_and_digests_whatever_the_threads(tmp_path: Path, jobs: int) -> None:
    content = {f"d{i % 7}/f{i}": os.urandom(i * 700) for i in range(150)}
    content["large"] = os.urandom(3_000_001)
    _write(tmp_path, content)
    seen: list[int] = []
    tree = manifest.scan(tmp_path, jobs=jobs, progress=seen.append)
    assert {f.path: (f.size, f.sha256) for f in tree.files} == {
        path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in content.items()
    }
    assert sum(seen) == tree.size


def test_links_are_refused_wherever_they_lead(tmp_path: Path) -> None:
    _write(tmp_path, {"a": b"x"})
    (tmp_path / "inside").symlink_to("a")
    with pytest.raises(manifest.LinkError, match="link"):
        manifest.scan(tmp_path)


def test_special_files_are_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(manifest.LinkError):
        manifest.scan(tmp_path)
    with pytest.raises(manifest.LinkError):
        manifest.hash_file(tmp_path / "pipe")


def test_a_link_is_not_followed_when_one_file_is_hashed(tmp_path: Path) -> None:
    _write(tmp_path, {"a": b"x"})
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(manifest.LinkError):
        manifest.hash_file(tmp_path / "link")


def test_a_file_that_is_not_its_listed_size_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"a": b"xx"})
    with pytest.raises(manifest.ChangedError):
        manifest.hash_files(tmp_path, [("a", 3)])


def test_a_file_that_grows_as_fast_as_it_is_read_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"a": bytes(3 << 20)})

    def grow(count: int) -> None:
        with (tmp_path / "a").open("ab") as stream:
            stream.write(bytes(count))

    with pytest.raises(manifest.ChangedError):
        manifest.hash_file(tmp_path / "a", grow)
    assert (tmp_path / "a").stat().st_size < 10 << 20


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"a": bytes(3 << 20)})
    with pytest.raises(manifest.ChangedError):
        manifest.hash_file(tmp_path / "a", lambda _: os.truncate(tmp_path / "a", 1 << 20))


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, {"a": bytes(3 << 20)})

    def write(_: int) -> None:
        with (tmp_path / "a").open("r+b") as stream:
            stream.write(b"x")

    with pytest.raises(manifest.ChangedError):
        manifest.hash_file(tmp_path / "a", write)


def test_a_verifier_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, {f"f{i:03}": b"x" for i in range(600)})
    monkeypatch.setattr(hashing, "_MANY", 0)
    monkeypatch.setattr(hashing._Helper, "__init__", lambda *_: pytest.fail("it started one"))
    assert len(manifest.hash_files(tmp_path, list(manifest.walk(tmp_path)), jobs=4).files) == 600


def test_a_large_file_that_is_refused_ends_the_hashing_of_the_others(tmp_path: Path) -> None:
    _write(tmp_path, {f"f{i:02}": bytes((2 if i == 7 else 1) << 20) for i in range(30)})
    listing = list(manifest.walk(tmp_path))
    seen: list[int] = []

    def cut(count: int) -> None:
        seen.append(count)
        os.truncate(tmp_path / "f07", 5)

    with pytest.raises(manifest.ChangedError):
        manifest.hash_files(tmp_path, listing, jobs=1, progress=cut)
    assert seen == [1 << 20]  # it is the largest, so the first
    seen.clear()
    with pytest.raises(manifest.ManifestError):
        manifest.hash_files(tmp_path, [*listing, ("gone", 1)], jobs=1, progress=seen.append)
    assert not seen


def test_a_refused_tree_leaves_no_file_open(tmp_path: Path) -> None:
    _write(tmp_path, {f"f{i:02}": b"x" for i in range(40)})
    listing = [(f"f{i:02}", 1 if i != 7 else 2) for i in range(40)]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(manifest.ChangedError):
        manifest.hash_files(tmp_path, listing)
    with pytest.raises(manifest.ManifestError):
        manifest.hash_files(tmp_path, [*listing[8:], ("missing", 1)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_has_become_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(manifest.LinkError):
        manifest.hash_files(tmp_path, [("pipe", 0)])


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "C:a", "a\nb", "a\x00b",
     "a\x7f", "e\u0301", "a\u202eb", "a\u200bb", "a.", "a /b", "x" * 1025, "a/" * 65 + "b",
     "\ud800"],
)  # fmt: skip
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(manifest.PathError):
        manifest.check_path(path)


@pytest.mark.parametrize("path", ["a", "a/b.c", "é/ü", "..a", "a b", "日本", ".hidden"])
def test_a_plain_path_is_accepted(path: str) -> None:
    assert manifest.check_path(path) == path


@pytest.mark.parametrize(
    "pair", [("a", "A"), ("straße", "STRASSE"), ("a", "a/b"), ("ﬁle", "file"), ("x/Y", "x/y")]
)
def test_two_paths_that_are_one_file_on_some_system_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(manifest.CollisionError):
        Manifest.of([File(path, 0, "00" * 32) for path in pair])


def test_an_unsorted_or_repeated_file_is_refused() -> None:
    one, two = File("a", 0, "00" * 32), File("b", 0, "00" * 32)
    for order in ((two, one), (one, one)):
        with pytest.raises(manifest.ManifestError):
            Manifest(order)
