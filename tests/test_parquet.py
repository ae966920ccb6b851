"""Rows of Parquet: as the programs that wrote them mean them (tests/parquet), and nothing else."""

import gzip
import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicert import manifest, parquet, records
from aicert.errors import Error
from aicert.events import Records
from aicert.parquet import ParquetError

FILES = Path(__file__).parent / "parquet"


@contextmanager
def opened(data: bytes | Path) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data if isinstance(data, bytes) else data.read_bytes())
        file.flush()
        yield file.fileno()


def rows(data: bytes | Path) -> list[Any]:
    with opened(data) as descriptor:
        return list(parquet.rows(descriptor))


def expected(name: str) -> list[Any]:
    return [json.loads(line) for line in (FILES / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name",
    ["arrow-snappy", "arrow-gzip-pages-2", "arrow-plain-groups", "duckdb", "polars", "fastparquet"],
)
def test_rows_are_read_as_they_were_written(name: str) -> None:
    wanted = expected("flat")
    if name == "fastparquet":
        wanted = [{"text": row["text"], "score": row["score"]} for row in wanted]
    assert rows(FILES / f"{name}.parquet") == wanted


@pytest.mark.parametrize("name", ["arrow-nested", "arrow-nested-pages-2"])
def test_lists_and_groups_are_put_together(name: str) -> None:
    assert rows(FILES / f"{name}.parquet") == expected("nested")


def test_a_column_may_have_no_nulls_and_a_file_no_rows() -> None:
    assert rows(FILES / "arrow-required.parquet") == [{"id": number} for number in range(9)]
    assert rows(FILES / "arrow-empty.parquet") == []


# -- as records ------------------------------------------------------------------------------------


def committed(folder: Path, kind: str, *names: str) -> Records:
    place = folder / "input"
    place.mkdir(exist_ok=True)
    for name in names:
        (place / name).write_bytes((FILES / name).read_bytes())
    return records.commit(place, manifest.scan(place), kind, scratch=folder)


@pytest.mark.parametrize(("name", "text"), [("arrow-snappy", "flat"), ("arrow-nested", "nested")])
def test_a_row_is_the_record_that_its_json_would_be(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    held = committed(tmp_path / "a", "parquet", f"{name}.parquet")
    lines = committed(tmp_path / "b", "jsonl", f"{text}.jsonl")
    assert held == replace(lines, method="parquet/1")
    line = (FILES / f"{text}.jsonl").read_bytes().splitlines()[3]
    assert records.record_digest(line, "parquet") == records.record_digest(line, "jsonl")


def test_rows_of_several_files_are_one_set(tmp_path: Path) -> None:
    held = committed(tmp_path, "parquet", "duckdb.parquet", "polars.parquet")
    assert held.count == 2 * len(expected("flat"))
    assert held.distinct == len({json.dumps(row) for row in expected("flat")})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("refused-timestamp", "of a kind that is not read"),
        ("refused-decimal128", "of a kind that is not read"),
        ("refused-date32", "of a kind that is not read"),
        ("refused-halffloat", "of a kind that is not read"),
        ("refused-map", "of a kind that is not read"),
        ("refused-zstd", "Zstandard"),
        ("refused-delta", "encoding 5"),
        ("refused-nan", "row 1: the value has no canonical JSON form"),
        ("refused-large", "row 1: the value has no canonical JSON form"),
    ],
)
def test_what_has_no_one_form_refuses_the_file_and_says_what_to_do(
    tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(records.RecordsError) as caught:
        committed(tmp_path, "parquet", f"{name}.parquet")
    assert f"{name}.parquet" in caught.value.message
    assert says in f"{caught.value.message} {caught.value.got}"
    assert "JSONL" in (caught.value.advice or "")


def test_no_other_file_may_lie_beside(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "README.md").write_text("# Data\n")
    with pytest.raises(records.RecordsError, match=r"README\.md: this is not a Parquet file"):
        committed(tmp_path, "parquet", "duckdb.parquet")


def test_a_file_that_changed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    place = tmp_path / "input"
    place.mkdir()
    (place / "a").write_bytes((FILES / "duckdb.parquet").read_bytes())
    tree = manifest.scan(place)
    (place / "a").write_bytes((FILES / "polars.parquet").read_bytes())
    with pytest.raises(records.ChangedError):
        records.commit(place, tree, "parquet", scratch=tmp_path)


def test_a_long_file_can_be_stopped(tmp_path: Path) -> None:
    seen: list[int] = []
    with opened(FILES / "duckdb.parquet") as descriptor:
        assert sum(1 for _ in parquet.rows(descriptor, seen.append)) == 500
    assert seen == []  # now and then, and not for so few

    class StopError(Exception):
        pass

    def stop(_: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        place = tmp_path / "input"
        place.mkdir()
        (place / "a").write_bytes((FILES / "duckdb.parquet").read_bytes())
        records.commit(place, manifest.scan(place), "parquet", scratch=tmp_path, progress=stop)


# -- what an attacker writes -----------------------------------------------------------------------

GOOD = {
    name: (FILES / f"{name}.parquet").read_bytes()
    for name in ("arrow-snappy", "arrow-nested-pages-2", "duckdb", "arrow-required")
}


@given(st.sampled_from(sorted(GOOD)), st.data())
@settings(max_examples=150, deadline=None)
def test_no_bytes_do_anything_but_fail_as_they_should(name: str, data: st.DataObject) -> None:
    damaged = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with opened(bytes(damaged)) as descriptor:
        try:
            for number, _ in enumerate(parquet.rows(descriptor)):
                if number > 2000:
                    break
        except Error:
            pass


@pytest.mark.parametrize("name", GOOD)
def test_a_file_that_is_cut_is_refused(name: str) -> None:
    whole = GOOD[name]
    for size in [*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        with pytest.raises(ParquetError):
            rows(whole[:size])


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1", b"PAR1PAR1", b"PARE" + bytes(8) + b"PARE", b"PAR1\0\0\0\0PARE",
     b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", b"PAR1\x00\x01\0\0\0PAR1"],
)  # fmt: skip
def test_what_is_not_parquet_is_refused(data: bytes) -> None:
    with pytest.raises(ParquetError):
        rows(data)


KINDS = {"t": 1, "f": 2, "i": 5, "q": 6, "b": 8, "l": 9, "s": 12}


def thrift(*fields: tuple[int, str, Any]) -> bytes:
    """A structure of Thrift's compact protocol, of fields with their kinds.

    They are t(rue), f(alse), i(nteger of 32 bits), q (of 64), b(ytes), l(ist), s(tructure).
    """
    made, last = b"", 0
    for field, kind, value in fields:
        step = field - last
        made += bytes([(step if 0 < step < 16 else 0) << 4 | KINDS[kind]])
        made += b"" if 0 < step < 16 else _value("i", field)
        made += _value(kind, value)
        last = field
    return made + b"\0"


def _value(kind: str, value: Any) -> bytes:
    if kind in "tf":
        return b""
    if kind in "iq":
        return varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == "b":
        return varint(len(value)) + bytes(value)
    if kind == "l":
        inner, items = value
        return bytes([0xF0 | KINDS[inner]]) + varint(len(items)) + b"".join(
            item if inner == "s" else _value(inner, item) for item in items
        )  # fmt: skip
    return bytes(value)


def varint(value: int) -> bytes:
    made = b""
    while value >= 0x80:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])


def file(
    page: bytes,
    count: int,
    *,
    codec: int = 0,
    kind: int = 2,
    optional: int = 1,
    converted: int | None = None,
) -> bytes:
    """A file of one column and one page of it."""
    meaning = [] if converted is None else [(6, "i", converted)]
    schema = [thrift((4, "b", b"schema"), (5, "i", 1)),
              thrift((1, "i", kind), (3, "i", optional), (4, "b", b"x"), *meaning)]  # fmt: skip
    about = thrift((1, "i", kind), (2, "l", ("i", [0])), (3, "l", ("b", [b"x"])),
                   (4, "i", codec), (5, "q", count), (6, "q", len(page)),
                   (7, "q", len(page)), (9, "q", 4))  # fmt: skip
    chunk = thrift((2, "q", 4), (3, "s", about))
    group = thrift((1, "l", ("s", [chunk])), (2, "q", len(page)), (3, "q", count))
    footer = thrift((1, "i", 1), (2, "l", ("s", schema)), (3, "q", count), (4, "l", ("s", [group])))
    return b"PAR1" + page + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def page(body: bytes, count: int, *, size: int | None = None, encoding: int = 0) -> bytes:
    about = thrift((1, "i", count), (2, "i", encoding), (3, "i", 3), (4, "i", 3))
    unpacked = len(body) if size is None else size
    return thrift((1, "i", 0), (2, "i", unpacked), (3, "i", len(body)), (5, "s", about)) + body


def test_a_small_file_of_our_own_is_read() -> None:
    levels = varint(3 << 1) + b"\1"  # three times there
    body = len(levels).to_bytes(4, "little") + levels
    body += b"".join(n.to_bytes(8, "little", signed=True) for n in (1, -2, 3))
    assert rows(file(page(body, 3), 3)) == [{"x": 1}, {"x": -2}, {"x": 3}]


def test_many_nulls_take_no_memory() -> None:
    count = (1 << 31) - 1
    levels = varint(count << 1) + b"\0"
    body = len(levels).to_bytes(4, "little") + levels
    with opened(file(page(body, count), count)) as descriptor:
        tracemalloc.start()
        for number, row in enumerate(parquet.rows(descriptor)):
            assert row == {"x": None}
            if number == 50_000:
                break
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("codec", [0, 1, 2])
def test_a_page_is_not_as_long_as_it_likes(codec: int) -> None:
    bomb = gzip.compress(bytes(1 << 24)) if codec == 2 else varint(1 << 40) + b"\0"
    for size in ((1 << 31) - 1, 100):
        tracemalloc.start()
        with pytest.raises(ParquetError):
            rows(file(page(bomb, 3, size=size), 3, codec=codec))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (page(bytes(24), 3), 4),  # fewer than the row group has
        (page(bytes(24), 3), 2),  # more
        (page(bytes(16), 3), 3),  # a value is missing
        (page(bytes(24), 3, encoding=8), 3),  # no dictionary
        (page(bytes(24), 3, encoding=99), 3),
        (b"", 3),
    ],
)
def test_a_column_that_contradicts_its_row_group_is_refused(data: bytes, count: int) -> None:
    assert rows(file(page(bytes(24), 3), 3, optional=0)) == [{"x": 0}] * 3
    with pytest.raises(ParquetError):
        rows(file(data, count, optional=0))


@pytest.mark.parametrize(
    ("converted", "value", "row"),
    [(15, 127, 127), (15, 128, None), (15, -128, -128), (15, -129, None), (11, 255, 255),
     (11, -1, None), (12, 65536, None), (13, -1, 2**32 - 1), (17, -1, -1), (18, 1, None),
     (14, 1, None)],
)  # fmt: skip
def test_an_integer_is_what_its_type_allows_or_refused(
    converted: int, value: int, row: int | None
) -> None:
    """Where it is beyond, readers differ: a row could be one thing to the training, one to us."""
    body = page(value.to_bytes(4, "little", signed=True), 1)
    data = file(body, 1, kind=1, optional=0, converted=converted)
    if row is None:
        with pytest.raises(ParquetError):
            rows(data)
    else:
        assert rows(data) == [{"x": row}]


# -- what two readers would read differently -------------------------------------------------------

COLUMN = [(1, "i", 2), (2, "l", ("i", [0])), (3, "l", ("b", [b"x"])), (4, "i", 0), (5, "q", 1),
          (6, "q", 0), (7, "q", 0), (9, "q", 4)]  # fmt: skip


def other(
    element: list[tuple[int, str, Any]] | None = None,
    column: list[tuple[int, str, Any]] | None = None,
    extra: list[bytes] | None = None,
    pages: bytes | None = None,
    footer: list[tuple[int, str, Any]] | None = None,
) -> bytes:
    """A file of one column `x` of 64 bits and one row, 7, in which some fields are others."""
    pages = page((7).to_bytes(8, "little"), 1) if pages is None else pages
    named = [(1, "i", 2), (3, "i", 0), (4, "b", b"x")] if element is None else element
    schema = [thrift((4, "b", b"schema"), (5, "i", 1)), thrift(*named), *(extra or [])]
    about = [(f, k, len(pages) if f in (6, 7) else v) for f, k, v in column or COLUMN]
    chunk = thrift((2, "q", 4), (3, "s", thrift(*about)))
    group = thrift((1, "l", ("s", [chunk])), (2, "q", len(pages)), (3, "q", 1))
    made = thrift((1, "i", 1), (2, "l", ("s", schema)), (3, "q", 1), (4, "l", ("s", [group])),
                  *(footer or []))  # fmt: skip
    return b"PAR1" + pages + made + len(made).to_bytes(4, "little") + b"PAR1"


def header(*about: tuple[int, str, Any]) -> bytes:
    """A page of the second version, its value neither packed nor seen to be so by all."""
    made = thrift(*about)
    return thrift((1, "i", 3), (2, "i", 8), (3, "i", 8), (8, "s", made)) + bytes(8)


V2 = [(1, "i", 1), (2, "i", 0), (3, "i", 1), (4, "i", 0), (5, "i", 0), (6, "i", 0)]
X = [(1, "i", 2), (3, "i", 0), (4, "b", b"x")]

TWO_WAYS = {
    # Libraries made from parquet.thrift pass over a field of another type, as if it were not there.
    "the dictionary's place, of 32 bits": other(column=[*COLUMN, (11, "i", 4)]),
    "what a value means, of 64 bits": other([*X, (6, "q", 14)]),
    "whether it is packed, a number": other(pages=header(*V2, (7, "i", 0))),
    "statistics of another type": other(column=[*COLUMN, (12, "s", thrift((4, "b", b"x")))]),
    # Some read no page of a column that has nothing but nulls, as they are told.
    "only nulls, and a value": other(column=[*COLUMN, (12, "s", thrift((3, "q", 1)))]),
    "what wrote it, a number": other(footer=[(6, "i", 1)]),
    "the size of a page, of 64 bits": other(pages=header((1, "q", 1), *V2[1:], (7, "f", None))),
    "the schema, a list of numbers": other(footer=[(2, "l", ("i", [1, 2]))]),
    # They read a second one into the first: what it leaves out stays.
    "a column's place twice": other(column=[*COLUMN, (9, "q", 4)]),
    "whether it is packed, twice": other(pages=header(*V2, (7, "t", None), (7, "f", None))),
    "a second list of row groups": other(footer=[(4, "l", ("s", []))]),
    # They cut a number, and a field's, to its width.
    "a type of more bits": other([(1, "i", 2 + (1 << 32)), *X[1:]]),
    "a field's number of more bits": other(column=[*COLUMN, (11 + (1 << 16), "q", 4)]),
    # Some take what has columns below it for a group, and some what has a type for a column.
    "a column that is a group": other([(1, "i", 2), (3, "i", 0), (4, "b", b"x"), (5, "i", 1)]),
    "a repetition that is none": other([(1, "i", 2), (3, "i", 3), (4, "b", b"x")]),
    # Some begin at the dictionary's place wherever that is, some where the values are.
    "a dictionary after its values": other(column=[*COLUMN, (11, "q", 5)]),
    "a dictionary before the file": other(column=[*COLUMN, (11, "q", -4)]),
    "a meaning of two kinds": other([*X, (10, "s", thrift((1, "s", b"\0"), (4, "s", b"\0")))]),
    "a meaning of no kind": other([*X, (10, "s", b"\0")]),
    "a meaning that is not known": other([*X, (10, "s", thrift((40, "s", b"\0")))]),
}


def test_a_file_that_all_read_alike_is_read() -> None:
    assert rows(other()) == [{"x": 7}]
    assert rows(other(column=[*COLUMN, (11, "q", 4)])) == [{"x": 7}]
    assert rows(other(column=[*COLUMN, (12, "s", thrift((3, "q", 0)))])) == [{"x": 7}]
    assert rows(other([*X, (6, "i", 18), (9, "i", 3)], footer=[(7, "l", ("s", []))])) == [{"x": 7}]
    assert rows(other(pages=header(*V2, (7, "f", None)))) == [{"x": 0}]


@pytest.mark.parametrize("name", TWO_WAYS)
def test_what_readers_would_take_in_two_ways_is_refused(name: str) -> None:
    """Else a proof that a record is not there would say nothing of what the training read."""
    with pytest.raises(ParquetError):
        rows(TWO_WAYS[name])


def test_structures_do_not_nest_for_ever() -> None:
    with pytest.raises(ParquetError, match="too deep"):
        deep = b"\xfc" + b"\x1c" * 99 + b"\0" * 100  # in a field that nobody knows
        rows(b"PAR1" + deep + len(deep).to_bytes(4, "little") + b"PAR1")


# -- Snappy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (b"\x00", b""),
        (b"\x03\x08abc", b"abc"),
        (b"\x09\x08abc" + b"\x09\x03", b"abcabcabc"),  # a copy that overlaps itself
        (b"\x05\x00a" + b"\x01\x01", b"aaaaa"),
        (b"\x06\x08abc" + b"\x0a\x03\x00", b"abcabc"),
        (b"\x06\x08abc" + b"\x0b\x03\x00\x00\x00", b"abcabc"),
        (b"\x64" + b"\xf0\x63" + bytes(range(100)), bytes(range(100))),
    ],
)
def test_snappy_is_unpacked(packed: bytes, expected: bytes) -> None:
    assert parquet.unsnap(packed, len(expected)) == expected


@pytest.mark.parametrize(
    "packed",
    [b"\x03\x08ab", b"\x03\x01\x01", b"\x04\x08abc", b"\x02\x08abc", b"\x09\x08abc\x09\x04",
     b"\x09\x08abc\x09\x00", b"\xff" * 20, b"\x03\xf8"],
)  # fmt: skip
def test_damaged_snappy_is_refused(packed: bytes) -> None:
    with pytest.raises((ParquetError, IndexError)):
        parquet.unsnap(packed, packed[0])


@given(st.binary(max_size=60))
def test_no_bytes_make_snappy_grow(data: bytes) -> None:
    try:
        assert len(parquet.unsnap(data, 100)) == 100
    except (ParquetError, IndexError):
        pass
