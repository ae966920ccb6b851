"""Records: how an input is taken apart, and that its commitment is the same however it is made."""

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicert import events, manifest, records
from aicert.events import Records
from aicert.merkle import Tree
from aicert.reader import FieldError, Reader


def made(folder: Path, kind: str, files: dict[str, bytes], **options: Any) -> Records:
    """The commitment to these files."""
    place = folder / "input"
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    commitment = records.commit(
        place, manifest.scan(place), kind, scratch=scratch, **{"progress": None, **options}
    )
    assert list(scratch.iterdir()) == []
    return commitment


def expected(kind: str, normal: list[bytes]) -> Records:
    """What a commitment to these normalised records is."""
    digests = sorted({hashlib.sha256(record).digest() for record in normal})
    tree = Tree()
    tree.extend(digests)
    return Records(f"{kind}/1", tree.root.hex(), len(normal), len(digests))


def test_a_line_is_a_record_without_the_white_space_around_it(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\r\n  two \t\n\n \t \ntwo\nthr ee\n\xc3\xa9\xff\x01"
    assert made(tmp_path, "lines", {"a.txt": content}) == expected(
        "lines", [b"one", b"two", b"two", b"thr ee", b"\xc3\xa9\xff\x01"]
    )


def test_a_line_of_json_is_the_same_record_however_it_is_written(tmp_path: Path) -> None:
    content = b'{"b": 1.0, "a": "\\u00e9"}\n\n {"a":"\xc3\xa9","b":1}\r\n[1e2]\n'
    assert made(tmp_path, "jsonl", {"a.jsonl": content}) == expected(
        "jsonl", ['{"a":"é","b":1}'.encode(), '{"a":"é","b":1}'.encode(), b"[100]"]
    )


def test_an_archive_is_no_text(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    with pytest.raises(records.NotTextError, match="has no lines"):
        made(tmp_path, "lines", {"a.tar.gz": packed.getvalue()})


def test_a_file_is_a_record_whatever_it_is_called(tmp_path: Path) -> None:
    files = {"a": b"one\n", "b/c": b"", "d": b"one\n", "e": b"PAR1"}
    assert made(tmp_path, "files", files) == expected("files", list(files.values()))


@pytest.mark.parametrize("kind", ["lines", "jsonl"])
def test_gzip_is_unpacked(tmp_path: Path, kind: str) -> None:
    content = b"\xef\xbb\xbf" + b"".join(b'{"n":%d}\n' % n for n in range(1000))
    packed = gzip.compress(content[:100], mtime=0) + gzip.compress(content[100:], mtime=0)
    one = made(tmp_path / "one", kind, {"a": content})
    assert made(tmp_path / "two", kind, {"a.gz": packed}) == one
    assert one.count == 1000


def test_how_records_are_spread_over_files_makes_no_difference(tmp_path: Path) -> None:
    one = made(tmp_path / "one", "lines", {"a": b"3\n1\n2\n", "b": b"1"})
    assert made(tmp_path / "two", "lines", {"x/y": b"1\n2", "z": b"\n1\n3"}) == one
    assert (one.count, one.distinct) == (4, 3)


@pytest.mark.parametrize(
    "content",
    [b"\x28\xb5\x2f\xfd\0\0", b"\xfd7zXZ\0\0", b"BZh91AY", b"PK\3\4", b"PAR1\0", b"\xff\xfeh\0",
     b"ARROW1\0\0", b"\x04\x22\x4d\x18", gzip.compress(b"PAR1", mtime=0), b"1\n\0",
     gzip.compress(b"P", mtime=0) + gzip.compress(b"AR1", mtime=0), "1\n2\n".encode("utf-16-le"),
     gzip.compress(gzip.compress(b"1", mtime=0), mtime=0)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["lines", "jsonl"])
def test_what_has_no_lines_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    with pytest.raises(records.NotTextError, match="has no lines"):
        made(tmp_path, kind, {"a.bin": content})


@pytest.mark.parametrize("content", [
    gzip.compress(b"one\n" * 100, mtime=0)[:-9], b"\x1f\x8b", b"\x1f\x8b\x08",
    gzip.compress(b"one\n", mtime=0)[:-8] + b"\0" * 8, gzip.compress(b"one\n", mtime=0) + b"more",
])  # fmt: skip
def test_gzip_that_is_not_whole_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(records.NotTextError, match="not whole gzip"):
        made(tmp_path, "lines", {"a.gz": content})


@pytest.mark.parametrize(
    "line",
    [b"{", b'{"a":1,"a":2}', b"NaN", b"9007199254740993", b'"\\ud800"', b"\xff", b"1 2",
     b"[" * 40 + b"]" * 40],
)  # fmt: skip
def test_a_line_that_is_no_plain_json_is_named(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(records.RecordsError, match=r"b\.jsonl, line 3: "):
        made(tmp_path, "jsonl", {"a.jsonl": b"1\n", "b.jsonl": b"{}\n\n" + line + b"\n"})


@given(content=st.lists(st.sampled_from([b"\n", b" ", b"\r", b"1", b"22"])).map(b"".join),
       head=st.integers(1, 9), packed=st.booleans())  # fmt: skip
def test_lines_are_the_same_wherever_the_head_of_the_file_ends(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: int, packed: bool
) -> None:
    lines = [line.strip() for line in content.split(b"\n") if line.strip()]
    data = gzip.compress(content, mtime=0) if packed else content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_HEAD", head)
        place = tmp_path_factory.mktemp("head")
        if lines:
            assert made(place, "lines", {"a": data}) == expected("lines", lines)
        else:
            with pytest.raises(records.NoRecordsError):
                made(place, "lines", {"a": data})


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 100)
    monkeypatch.setattr(records, "_HEAD", 10)
    for before in (0, 1, 8, 9, 10, 11, 100):
        start = b"x" * before + b"\n" if before else b""
        for end in (b"", b"\n", b"\nz"):
            files = {"a": start + b"y" * 100 + end}
            assert made(tmp_path, "lines", files).count == bool(before) + 1 + end.count(b"z")
            files = {"a": start + b"y" * 101 + end}
            with pytest.raises(records.TooLongError, match=f"a, line {2 if before else 1}:"):
                made(tmp_path, "lines", files)


def test_a_long_text_in_json_is_a_record(tmp_path: Path) -> None:
    document = {"text": "one, two,\n" * 100_000}
    content = json.dumps(document).encode()
    assert made(tmp_path, "jsonl", {"a": content}).count == 1


@pytest.mark.parametrize("kind", ["lines", "jsonl"])
def test_an_input_without_a_record_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(records.NoRecordsError):
        made(tmp_path, kind, {"a": b"", "b": b" \n\r\n"})


def test_a_file_that_is_not_the_one_in_the_manifest_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "input"
    place.mkdir()
    (place / "a").write_bytes(b"one\n")
    listed = manifest.scan(place)
    (place / "a").write_bytes(b"two\n")
    with pytest.raises(records.ChangedError):
        records.commit(place, listed, "lines", scratch=tmp_path)
    (place / "a").unlink()
    (place / "a").symlink_to("/dev/null")
    with pytest.raises(records.RecordsError):
        records.commit(place, listed, "lines", scratch=tmp_path)


def test_what_progress_raises_ends_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, "lines", {"a": b"one\n"}, progress=stop)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    seen: list[int] = []
    made(tmp_path, "lines", {"a": b"one\n" * 10, "b": b"x"}, progress=seen.append)
    assert sum(seen) == 41


@given(
    numbers=st.lists(st.integers(0, 400), max_size=800),
    batch=st.integers(1, 40),
    fan=st.integers(2, 5),
    block=st.integers(1, 9),
)
def test_digests_are_sorted_on_the_disk_as_in_memory(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], batch: int, fan: int, block: int
) -> None:
    digests = [hashlib.sha256(b"%d" % number).digest() for number in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_BATCH", batch)
        patch.setattr(records, "_FAN", fan)
        patch.setattr(records, "_BLOCK", block)
        with records.Sorter(tmp_path_factory.getbasetemp()) as sorter:
            for digest in digests:
                sorter.add(digest)
            chunks = list(sorter.chunks())
    assert [digest for chunk in chunks for digest in chunk] == sorted(set(digests))
    assert sorter.count == len(digests)


def test_memory_does_not_grow_with_the_number_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_BATCH", 2000)
    monkeypatch.setattr(records, "_BLOCK", 64)
    monkeypatch.setattr(records, "_FAN", 8)

    def peak(count: int) -> int:
        content = b"".join(b"%d\n" % number for number in range(count))
        tracemalloc.start()
        try:
            made(tmp_path / str(count), "lines", {"a": content})
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60_000) < 1.3 * peak(6_000)


# -- one record ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "line"),
    [
        ("lines", b" one \r\n", b"one\n"),
        ("lines", b"\xef\xbb\xbfone", b"one"),
        ("jsonl", b'{\n  "a": 1.0\n}\n', b'{"a":1}'),
        ("files", b" one \n", b" one \n"),
    ],
)
def test_a_record_by_itself_has_the_digest_that_it_has_in_an_input(
    tmp_path: Path, kind: str, given: bytes, line: bytes
) -> None:
    digest = records.record_digest(given, kind)
    tree = Tree()
    tree.extend([digest])
    assert made(tmp_path, kind, {"a": line}).root == tree.root.hex()


@pytest.mark.parametrize(
    ("kind", "given"),
    [("lines", b""), ("lines", b" \n"), ("lines", b"one\ntwo"), ("jsonl", b"\n"),
     ("jsonl", b"{}\n{}"), ("jsonl", b"{")],
)  # fmt: skip
def test_what_is_not_one_record_is_refused(kind: str, given: bytes) -> None:
    with pytest.raises(records.RecordsError):
        records.record_digest(given, kind)


# -- the event -------------------------------------------------------------------------------------

GOOD = {"method": "lines/1", "root": "ab" * 32, "count": 3, "distinct": 2}


def test_a_commitment_reads_back_equal() -> None:
    read = Records.read(Reader(GOOD, "records"))
    assert read.to_json() == GOOD
    assert read.kind == "lines"


@pytest.mark.parametrize("change", [
    {"method": "lines"}, {"method": "lines/2"}, {"root": "AB" * 32}, {"count": 0},
    {"distinct": 4}, {"distinct": 0}, {"count": 1 << 41}, {"count": True}, {"count": 3.0},
])  # fmt: skip
def test_a_commitment_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        Records.read(Reader({**GOOD, **change}, "records"))


def test_every_kind_that_a_spec_may_ask_for_has_one_method() -> None:
    for kind, method in events.RECORD_METHODS.items():
        assert Records(method, "ab" * 32, 1, 1).kind == kind
