"""Rows of Parquet files, as JSON values: a reader that is small, and refuses what it does not know.

It is here and no library because it runs beside the TPM, on somebody else's data: it is memory
safe, holds no more than the pages at hand, and bounds each size before it believes it. What it
reads is what most programs write: pages in the encodings PLAIN, RLE and dictionary; uncompressed,
Snappy or gzip; any nesting of groups and lists. A column of another kind refuses the whole file.

The format: https://github.com/apache/parquet-format (Thrift's compact protocol inside it:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).

What an attacker controls: every byte.
"""

import base64
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

from aicert.errors import Error

MAX_FOOTER = 8 << 20
"""The longest footer, in bytes."""

MAX_VALUES = 500_000
"""The most values in a footer, or in the header of a page."""

MAX_HELD = 512 << 20
"""The most bytes of unpacked pages that are held at once, of all columns together."""

_MAX_COLUMNS = 4096
_MAX_DEPTH = 24
_MAX_HEADER = 1 << 20
_MAGIC = b"PAR1"
_DATA, _INDEX, _DICTIONARY, _DATA_2 = range(4)
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_REQUIRED, _OPTIONAL, _REPEATED = range(3)
_BOOLEAN, _BYTE_ARRAY, _FIXED = 0, 6, 7
_NUMBERS = {1: "i", 2: "q", 4: "f", 5: "d"}
_INT96 = 3
_LIST = 3
_END = object()
_TEXTS = {0, 4, 19}  # ConvertedType: UTF8, ENUM, JSON
# ConvertedTypes of integers: how many bits a value has, and whether it has a sign.
_INTEGERS = {
    11: (8, False), 12: (16, False), 13: (32, False), 14: (64, False),
    15: (8, True), 16: (16, True), 17: (32, True), 18: (64, True),
}  # fmt: skip
_WIDTHS = {1: 32, 2: 64}
_LOGICAL = {1: 0, 3: _LIST, 4: 4, 12: 19}  # LogicalType, as the ConvertedType that says the same
_LOGICAL_INTEGER, _LOGICAL_NULL = 10, 11

Report = Callable[[int], None]

# The structures of parquet.thrift, whole: some libraries take a field for what the format has it to
# be, whatever type it is of, and lose their place. For each field its type, which is one of these,
# another structure, or in a tuple what a list holds.
Shape = int | dict[int, "Shape"] | tuple["Shape"]
_BOOL, _BYTE, _I16, _I32, _I64, _DOUBLE, _BYTES = 1, 3, 4, 5, 6, 7, 8
_ANY: Shape = {}
_STATISTICS: Shape = {
    1: _BYTES, 2: _BYTES, 3: _I64, 4: _I64, 5: _BYTES, 6: _BYTES, 7: _BOOL, 8: _BOOL,
}  # fmt: skip
_KEY_VALUE: Shape = {1: _BYTES, 2: _BYTES}
_TIME: Shape = {1: _BOOL, 2: dict.fromkeys((1, 2, 3), _ANY)}
_LOGICAL_TYPE: Shape = {
    **dict.fromkeys(range(1, 16), _ANY), 5: {1: _I32, 2: _I32}, 7: _TIME, 8: _TIME,
    10: {1: _BYTE, 2: _BOOL}, 16: {1: _BYTE}, 17: {1: _BYTES}, 18: {1: _BYTES, 2: _I32},
}  # fmt: skip
_SCHEMA_ELEMENT: Shape = {
    **dict.fromkeys((1, 2, 3, 5, 6, 7, 8, 9), _I32), 4: _BYTES, 10: _LOGICAL_TYPE,
}  # fmt: skip
_COLUMN_META: Shape = {
    1: _I32, 2: (_I32,), 3: (_BYTES,), 4: _I32, 5: _I64, 6: _I64, 7: _I64, 8: (_KEY_VALUE,),
    9: _I64, 10: _I64, 11: _I64, 12: _STATISTICS, 13: (dict.fromkeys((1, 2, 3), _I32),),
    14: _I64, 15: _I32, 16: {1: _I64, 2: (_I64,), 3: (_I64,)},
    17: {1: dict.fromkeys(range(1, 9), _DOUBLE), 2: (_I32,)},
}  # fmt: skip
_COLUMN: Shape = {
    1: _BYTES, 2: _I64, 3: _COLUMN_META, 4: _I64, 5: _I32, 6: _I64, 7: _I32, 8: _ANY, 9: _BYTES,
}  # fmt: skip
_ROW_GROUP: Shape = {
    1: (_COLUMN,), 2: _I64, 3: _I64, 4: ({1: _I32, 2: _BOOL, 3: _BOOL},), 5: _I64, 6: _I64, 7: _I16,
}  # fmt: skip
_FOOTER: dict[int, Shape] = {
    1: _I32, 2: (_SCHEMA_ELEMENT,), 3: _I64, 4: (_ROW_GROUP,), 5: (_KEY_VALUE,), 6: _BYTES,
    7: ({1: _ANY},), 8: _ANY, 9: _BYTES,
}  # fmt: skip
_PAGE: dict[int, Shape] = {
    **dict.fromkeys((1, 2, 3, 4), _I32), 6: _ANY,
    5: {**dict.fromkeys((1, 2, 3, 4), _I32), 5: _STATISTICS},
    7: {1: _I32, 2: _I32, 3: _BOOL},
    8: {**dict.fromkeys(range(1, 7), _I32), 7: _BOOL, 8: _STATISTICS},
}  # fmt: skip


class ParquetError(Error):
    """A file is not Parquet, is damaged, or holds something that is not read."""

    code = "records.parquet"
    remedy = "see that its folder holds Parquet alone; or write the file anew"


def rows(descriptor: int, report: Report = lambda _: None) -> Iterator[dict[str, Any]]:
    """Yield the rows of an open file, each as what JSON can say of it.

    Booleans, integers, floating-point numbers (of either width, as doubles), texts, lists and
    groups are what they are in JSON, null is null, and other bytes are base64.

    Raises:
        ParquetError: (while it goes on) the file is damaged, or holds something else.
        OSError: it cannot be read.
    """
    try:
        footer = _footer(descriptor)
        elements = iter(_list(footer, 2))
        root = _node(next(elements, {}), elements, 0, 0, (), 0)
        if next(elements, None) is not None or not root.children:
            raise ParquetError("the schema of a Parquet file is not one tree")
        groups = _list(footer, 4)
        if footer[3] != sum(group[3] for group in groups):
            raise ParquetError("the Parquet file has not the rows that it says")
        for group in groups:
            yield from _group(descriptor, root, group, report)
    except (
        struct.error, zlib.error, LookupError, TypeError, AttributeError, ValueError, OverflowError,
    ) as error:  # fmt: skip
        raise ParquetError("the Parquet file is damaged", got=error) from error


# -- Thrift ----------------------------------------------------------------------------------------


class _Thrift:
    """Reads structures of Thrift's compact protocol as dictionaries by field number.

    A row must be what the training reads, by whatever library. Those made from parquet.thrift pass
    over a field whose type is not the one there, let a field that comes again change what came
    before, and cut a number to its width: where they would do so, the structure is refused.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._count = 0

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ParquetError("a number in a Parquet file is too long")

    def integer(self, bits: int) -> int:
        value = self.varint()
        if value >> bits:
            raise ParquetError("a number in a Parquet file is beyond its type", got=value)
        return value >> 1 ^ -(value & 1)

    def octets(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ParquetError("a structure of a Parquet file ends too soon")
        self.at += count
        return self.data[self.at - count : self.at]

    def structure(self, shape: dict[int, Shape], depth: int = 0) -> dict[int, Any]:
        """Read a structure; what stands in it and not in its shape is None."""
        found: dict[int, Any] = {}
        field = 0
        while head := self.octets(1)[0]:
            field = field + (head >> 4) if head >> 4 else self.integer(16)
            if field in found or field >> 15 not in (0, -1):
                raise ParquetError("a structure of a Parquet file has a field twice", got=field)
            kind = head & 15
            wanted = shape.get(field)
            _check_kind(kind, wanted)
            # A truth value stands in the head itself.
            value = kind == 1 if kind in (1, 2) else self.value(kind, wanted, depth)
            found[field] = None if wanted is None else value
        return found

    def value(self, kind: int, shape: Shape | None, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise ParquetError("a structure of a Parquet file is too large", expected=MAX_VALUES)
        if depth > _MAX_DEPTH:
            raise ParquetError("a structure of a Parquet file nests too deep")
        if kind in (1, 2):  # of a list
            return self.octets(1)[0] == 1
        if kind == 3:
            return int.from_bytes(self.octets(1), signed=True)
        if kind in (4, 5, 6):
            return self.integer({4: 16, 5: 32, 6: 64}[kind])
        if kind == 7:
            return struct.unpack("<d", self.octets(8))[0]
        if kind == 8:
            return self.octets(self.varint())
        if kind in (9, 10):
            head = self.octets(1)[0]
            count = head >> 4 if head >> 4 < 15 else self.varint()
            if count > len(self.data) - self.at:  # each takes a byte at least
                raise ParquetError("a structure of a Parquet file ends too soon")
            inner = shape[0] if isinstance(shape, tuple) else None
            if count:
                _check_kind(head & 15, inner)
            return [self.value(head & 15, inner, depth + 1) for _ in range(count)]
        if kind == 11 and self.varint() == 0:
            return {}
        if kind == 12:
            return self.structure(shape if isinstance(shape, dict) else {}, depth + 1)
        raise ParquetError("a structure of a Parquet file is not known", got=f"type {kind}")


def _check_kind(kind: int, shape: Shape | None) -> None:
    """Refuse a field of another type than parquet.thrift has it."""
    wanted = 12 if isinstance(shape, dict) else 9 if isinstance(shape, tuple) else shape
    if wanted is not None and (1 if kind == 2 else kind) != wanted:
        raise ParquetError(
            "a field in a Parquet file is of another type", got=f"type {kind}", expected=wanted
        )


def _list(structure: dict[int, Any], field: int) -> list[dict[int, Any]]:
    found = structure.get(field, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ParquetError("the Parquet file is damaged", got=f"field {field} is no list")
    return found


def _read(descriptor: int, size: int, place: int) -> bytes:
    if place < 0 or size > os.fstat(descriptor).st_size - place:
        raise ParquetError("the Parquet file ends too soon")
    data = b""
    while len(data) < size and (more := os.pread(descriptor, size - len(data), place + len(data))):
        data += more
    if len(data) != size:
        raise ParquetError("the Parquet file ends too soon")
    return data


def _footer(descriptor: int) -> dict[int, Any]:
    length = os.fstat(descriptor).st_size
    if length < 12 or _read(descriptor, 4, 0) != _MAGIC:
        raise ParquetError("this is not a Parquet file, or an encrypted one")
    tail = _read(descriptor, 8, length - 8)
    size = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC:
        raise ParquetError("the Parquet file has no footer, or an encrypted one")
    if size > min(MAX_FOOTER, length - 12):
        raise ParquetError("the footer of the Parquet file is too long", got=f"{size} bytes")
    found = _Thrift(_read(descriptor, size, length - 8 - size)).structure(_FOOTER)
    if found.get(8) is not None:
        raise ParquetError("the Parquet file is encrypted")
    return found


# -- the schema ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A field of the schema, with the levels at which it is there (Dremel's).

    `levels` are the definition and the repetition level of its values; `convert` makes a leaf's
    value one of JSON; `element` is what a list holds, where the field is one.
    """

    name: str
    path: tuple[str, ...]
    repetition: int
    levels: tuple[int, int]
    children: "list[_Node]"
    kind: int | None = None
    length: int = 0
    convert: Callable[[Any], Any] | None = None
    element: "_Node | None" = None

    def leaves(self) -> "Iterator[_Node]":
        if self.kind is not None:
            yield self
        for child in self.children:
            yield from child.leaves()


def _node(
    element: dict[int, Any],
    rest: Iterator[dict[int, Any]],
    definition: int,
    repeated: int,
    path: tuple[str, ...],
    depth: int,
) -> _Node:
    """Read an element of the schema and all below it, which follow it in the list."""
    if depth > _MAX_DEPTH:
        raise ParquetError("the schema of the Parquet file nests too deep")
    name = element[4].decode()
    repetition = element.get(3, _REQUIRED) if depth else _REQUIRED
    if repetition not in (_REQUIRED, _OPTIONAL, _REPEATED):
        raise ParquetError("the Parquet file is damaged", got=f"repetition {repetition}")
    path = (*path, name) if depth else ()
    definition += repetition != _REQUIRED
    repeated += repetition == _REPEATED
    made = _Node(name, path, repetition, (definition, repeated), [])
    meaning = _meaning(element)
    count = element.get(5, 0)
    if 1 not in element:
        if not 0 <= count <= _MAX_COLUMNS:
            raise ParquetError("the schema of the Parquet file is too large")
        for _ in range(count):
            if (below := next(rest, None)) is None:
                raise ParquetError("the schema of a Parquet file is not one tree")
            made.children.append(_node(below, rest, definition, repeated, path, depth + 1))
        names = {child.name for child in made.children}
        if len(names) != count or sum(1 for _ in made.leaves()) > _MAX_COLUMNS:
            raise ParquetError(
                "two columns of the Parquet file have one name, or there are too many"
            )
        if meaning == _LIST:
            made.element = _element(made)
        elif meaning is not None:
            raise _unread(path, "a map, or another kind of group")
    else:
        if count:  # what some take for a group, others for a column
            raise ParquetError("a column of the Parquet file has columns below it")
        made.kind = element[1]
        made.length = element.get(2, 0)
        made.convert = _conversion(made, meaning)
    return made


def _meaning(element: dict[int, Any]) -> int | None:
    """Return what a field's values mean, as a ConvertedType; -1 where we know of none."""
    logical = element.get(10)
    if logical is None:
        return element.get(6)
    if len(logical) != 1:
        return -1
    (which,) = logical
    if which == _LOGICAL_INTEGER:
        width = logical[which].get(1), logical[which].get(2)
        return next((known for known, has in _INTEGERS.items() if has == width), -1)
    if which == _LOGICAL_NULL:
        return None
    return _LOGICAL.get(which, -1)


def _element(node: _Node) -> _Node:
    """Return what a list's field has for each of its items (LogicalTypes.md, Lists)."""
    if len(node.children) != 1 or node.children[0].repetition != _REPEATED:
        raise _unread(node.path, "a list that is written in an unusual way")
    (inner,) = node.children
    if len(inner.children) == 1 and inner.name not in ("array", f"{node.name}_tuple"):
        return inner.children[0]
    return inner


def _conversion(node: _Node, meaning: int | None) -> Callable[[Any], Any] | None:
    """Return what makes a value of a leaf one of JSON; None where it is one already."""
    kind = node.kind
    if kind in (_BOOLEAN, 4, 5) and meaning is None:
        return None
    if kind in _WIDTHS and meaning is None:
        return None
    if kind in _WIDTHS and meaning in _INTEGERS:
        bits, signed = _INTEGERS[meaning]
        if (bits == 64) == (_WIDTHS[kind] == 64):
            return partial(_integer, width=_WIDTHS[kind], bits=bits, signed=signed)
    if kind == _BYTE_ARRAY and meaning in _TEXTS:
        return partial(str, encoding="utf-8", errors="strict")
    if kind in (_BYTE_ARRAY, _FIXED) and meaning is None:
        return lambda value: base64.b64encode(value).decode()
    raise _unread(node.path, f"type {kind}, which means {meaning}")


def _integer(value: int, *, width: int, bits: int, signed: bool) -> int:
    """Return an integer of so many bits that is stored in `width` of them."""
    if not signed:
        value &= (1 << width) - 1
    if not (-(1 << bits - 1) <= value < 1 << bits - 1 if signed else value < 1 << bits):
        # Readers differ in what they make of it; a row must be what the training reads.
        raise ParquetError("an integer in the Parquet file is beyond its type", got=value)
    return value


def _unread(path: tuple[str, ...], what: str) -> ParquetError:
    return ParquetError(
        f"the column {'.'.join(path)[:200]!a} is of a kind that is not read",
        got=what,
        expected="booleans, integers, floating-point numbers, texts, bytes, lists, groups",
        advice="write such a column as text; or the rows as JSONL; or ask for records: files",
    )


# -- pages -----------------------------------------------------------------------------------------


class _Column:
    """The values of a leaf in one row group, page after page."""

    def __init__(self, descriptor: int, node: _Node, chunk: dict[int, Any], room: "_Room") -> None:
        about = chunk[3]
        if chunk.get(1) is not None or chunk.get(8) is not None:
            raise ParquetError("a column of the Parquet file lies elsewhere, or is encrypted")
        if tuple(part.decode() for part in about[3]) != node.path or about[1] != node.kind:
            raise ParquetError("the columns of the Parquet file are not those of its schema")
        self._descriptor, self._node, self._room = descriptor, node, room
        self._codec, self._left = about[4], about[5]
        first = about.get(11, 0)  # of the dictionary; some write zero where there is none
        if self._left and not 0 <= first <= about[9]:
            raise ParquetError("a dictionary of the Parquet file does not stand before its column")
        self._place = first or about[9]
        self._end = self._place + about[7]
        self._dictionary: list[Any] | None = None
        self._only_nulls = about.get(12, {}).get(3, 0) >= max(1, self._left)

    def entries(self) -> Iterator[tuple[int, int, Any]]:
        """Yield repetition level, definition level and value (None where there is none)."""
        # Where the statistics say that there are only nulls, some libraries read no page.
        return map(_null, self._entries()) if self._only_nulls else self._entries()

    def _entries(self) -> Iterator[tuple[int, int, Any]]:
        full, deepest = self._node.levels
        convert = self._node.convert
        for repetitions, definitions, values in self._pages():
            if not full:
                for value in values:
                    yield 0, 0, value if convert is None else convert(value)
                continue
            for repetition, definition in zip(repetitions, definitions, strict=True):
                if definition > full or repetition > deepest:
                    raise ParquetError("a level in the Parquet file is none")
                if definition < full:
                    yield repetition, definition, None
                    continue
                value = next(values, _END)
                if value is _END:
                    raise ParquetError("a page of the Parquet file has too few values")
                yield repetition, definition, value if convert is None else convert(value)

    def _pages(self) -> Iterator[tuple[Iterator[int], Iterator[int], Iterator[Any]]]:
        while self._left > 0:
            header, body = self._page()
            kind = header[1]
            if kind == _DICTIONARY:
                if self._dictionary is not None:
                    raise ParquetError("a column of the Parquet file has two dictionaries")
                count = header[7][1]
                data = self._unpacked(body, header[2], "dictionary")
                self._dictionary = list(islice(self._plain(data), count))
                if len(self._dictionary) != count:
                    raise ParquetError("a dictionary of the Parquet file is not whole")
            elif kind == _DATA:
                count, encoding = header[5][1], header[5][2]
                for levels, field in zip(self._node.levels, (3, 4), strict=True):
                    if levels and header[5].get(field, _RLE) != _RLE:
                        raise ParquetError("levels of the Parquet file are not run-length encoded")
                data = self._unpacked(body, header[2], "page")
                repetitions, data = self._levels(data, count, 1)
                definitions, data = self._levels(data, count, 0)
                yield self._counted(count, repetitions, definitions, self._values(encoding, data))
            elif kind == _DATA_2:
                about = header[8]
                count, encoding = about[1], about[4]
                below, above = about[6], about[5]
                if min(below, above) < 0 or below + above > min(len(body), header[2]):
                    raise ParquetError(
                        "the Parquet file is damaged", got="levels longer than a page"
                    )
                deep = self._runs(body[:below], count, 1)
                high = self._runs(body[below : below + above], count, 0)
                data, size = body[below + above :], header[2] - below - above
                if about.get(7, True):
                    data = self._unpacked(data, size, "page")
                elif len(data) != size:
                    raise ParquetError("a page of the Parquet file has another size than it says")
                yield self._counted(count, deep, high, self._values(encoding, data))
            elif kind != _INDEX:
                raise ParquetError("a page of the Parquet file is not known", got=f"type {kind}")

    def _counted(
        self,
        count: int,
        repetitions: Iterator[int],
        definitions: Iterator[int],
        values: Iterator[Any],
    ) -> tuple[Iterator[int], Iterator[int], Iterator[Any]]:
        if not 0 < count <= self._left:
            raise ParquetError("the pages of the Parquet file hold more or less than they say")
        self._left -= count
        if not self._node.levels[0]:
            values = _exactly(values, count)
        return repetitions, definitions, values

    def _page(self) -> tuple[dict[int, Any], bytes]:
        """Return the next page's header and body, still packed."""
        size = min(_MAX_HEADER, self._end - self._place)
        ahead = _read(self._descriptor, min(size, 512), self._place) if size > 0 else b""
        try:
            thrift = _Thrift(ahead)
            header = thrift.structure(_PAGE)
        except (ParquetError, IndexError):  # with statistics it may be long
            thrift = _Thrift(_read(self._descriptor, max(size, 0), self._place))
            header = thrift.structure(_PAGE)
        self._place += thrift.at
        packed = header[3]
        if not (0 <= packed <= self._end - self._place and header[2] >= 0):
            raise ParquetError("a page of the Parquet file is longer than its column")
        self._room.take(self, "page", max(packed, header[2]))
        body = _read(self._descriptor, packed, self._place)
        self._place += packed
        return header, body

    def _unpacked(self, data: bytes, size: int, what: str) -> bytes:
        # As values of Python a dictionary takes about this many times its bytes.
        self._room.take(self, what, size * 12 if what == "dictionary" else size)
        if self._codec == 0:
            made = data
        elif self._codec == 1:
            made = unsnap(data, size)
        elif self._codec == 2:
            packed = zlib.decompressobj(31)
            made = packed.decompress(data, size + 1)
            if not packed.eof or packed.unused_data:
                raise ParquetError("a page of the Parquet file is not whole gzip")
        else:
            names = {3: "LZO", 4: "Brotli", 5: "LZ4", 6: "Zstandard", 7: "LZ4"}
            raise ParquetError(
                "the Parquet file is packed in a way that is not read",
                got=names.get(self._codec, self._codec),
                expected="Snappy, gzip, or nothing",
                advice="write it with one of these; or the rows as JSONL",
            )
        if len(made) != size:
            raise ParquetError("a page of the Parquet file has another size than it says")
        return made

    def _levels(self, data: bytes, count: int, which: int) -> tuple[Iterator[int], bytes]:
        if not self._node.levels[which]:
            return repeat(0, count), data
        size = int.from_bytes(data[:4], "little")
        if size > len(data) - 4:
            raise ParquetError("the Parquet file is damaged", got="levels longer than a page")
        return self._runs(data[4 : 4 + size], count, which), data[4 + size :]

    def _runs(self, data: bytes, count: int, which: int) -> Iterator[int]:
        highest = self._node.levels[which]
        if not highest:
            return repeat(0, count)
        return _exactly(_hybrid(data, highest.bit_length()), count)

    def _values(self, encoding: int, data: bytes) -> Iterator[Any]:
        if encoding == _PLAIN:
            return self._plain(data)
        if encoding == _RLE and self._node.kind == _BOOLEAN:
            size = int.from_bytes(data[:4], "little")
            return map(bool, _hybrid(data[4 : 4 + size], 1))
        if encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
            if self._dictionary is None:
                raise ParquetError("a column of the Parquet file has no dictionary")
            # A page of nulls alone may have no byte, and so no width.
            return map(self._dictionary.__getitem__, _hybrid(data[1:], data[0]) if data else ())
        raise ParquetError(
            "a column of the Parquet file is encoded in a way that is not read",
            got=f"{'.'.join(self._node.path)[:200]!a}: encoding {encoding}",
            expected="plain, or with a dictionary",
            advice="write it with another encoding (often: format version 1.0 or 2.4 with a "
            "dictionary); or the rows as JSONL",
        )

    def _plain(self, data: bytes) -> Iterator[Any]:
        kind = self._node.kind
        if kind == _BOOLEAN:
            return ((byte >> bit) & 1 == 1 for byte in data for bit in range(8))
        if kind in _NUMBERS:
            return (value for (value,) in struct.iter_unpack(f"<{_NUMBERS[kind]}", data))
        if kind == _FIXED and self._node.length > 0:
            step = self._node.length
            return (data[at : at + step] for at in range(0, len(data) - step + 1, step))
        if kind == _BYTE_ARRAY:
            return _texts(data)
        raise ParquetError("the Parquet file is damaged", got=f"type {kind}")


def _null(entry: tuple[int, int, Any]) -> tuple[int, int, Any]:
    if entry[2] is not None:
        raise ParquetError("a column of the Parquet file has values, and says that it has none")
    return entry


class _Room:
    """Counts the unpacked pages of all columns of a row group, and bounds them."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, str], int] = {}

    def take(self, column: _Column, what: str, size: int) -> None:
        """Note how long a column's page or dictionary is, in place of the one before.

        Raises:
            ParquetError: all of them together would be too much.
        """
        self._sizes[id(column), what] = size
        if sum(self._sizes.values()) > MAX_HELD:
            raise ParquetError(
                "the pages of the Parquet file are too large",
                expected=f"at most {MAX_HELD} bytes of all columns together",
                advice="write it with smaller pages",
            )


def _exactly(values: Iterator[Any], count: int) -> Iterator[Any]:
    number = 0
    for number, value in enumerate(islice(values, count), 1):  # noqa: B007 (the last one counts)
        yield value
    if number != count:
        raise ParquetError("the Parquet file is damaged", got=f"{number} values of {count}")


def _texts(data: bytes) -> Iterator[bytes]:
    at, end = 0, len(data)
    while at < end:
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if at > end:
            raise ParquetError("a text in the Parquet file ends too soon")
        yield data[start:at]


def _hybrid(data: bytes, width: int) -> Iterator[int]:
    """Yield what is run-length encoded or packed by bits, each value of so many bits."""
    if width > 32:
        raise ParquetError("the Parquet file is damaged", got=f"values of {width} bits")
    return chain.from_iterable(_hybrid_runs(_Thrift(data), width))


def _hybrid_runs(stream: _Thrift, width: int) -> Iterator[Iterator[int]]:
    mask = (1 << width) - 1
    while stream.at < len(stream.data):
        head = stream.varint()
        if not head & 1:
            value = int.from_bytes(stream.octets((width + 7) // 8), "little")
            yield repeat(value, min(head >> 1, 1 << 62))
            continue
        if not width:
            yield repeat(0, min((head >> 1) * 8, 1 << 62))
            continue
        for _ in range(head >> 1):
            left = len(stream.data) - stream.at
            if not left:
                return  # the last group may be cut where no value is left in it
            eight = int.from_bytes(stream.octets(min(width, left)), "little")
            yield iter([(eight >> width * place) & mask for place in range(8)])


def unsnap(data: bytes, size: int) -> bytes:
    """Return what Snappy has packed, `size` bytes (format_description.txt of Snappy).

    Raises:
        ParquetError: it is damaged, or has another size.
    """
    stream = _Thrift(data)
    if stream.varint() != size:
        raise ParquetError("a page of the Parquet file has another size than it says")
    made = bytearray()
    while stream.at < len(data):
        tag = stream.octets(1)[0]
        kind, length = tag & 3, (tag >> 2) + 1
        if not kind:
            if length > 60:
                length = int.from_bytes(stream.octets(length - 60), "little") + 1
            made += stream.octets(length)
        else:
            if kind == 1:
                length = (tag >> 2 & 7) + 4
                offset = (tag >> 5) << 8 | stream.octets(1)[0]
            else:
                offset = int.from_bytes(stream.octets(2 if kind == 2 else 4), "little")
            start = len(made) - offset
            if not 0 < offset <= len(made):
                raise ParquetError("a page of the Parquet file is not whole Snappy")
            if offset >= length:
                made += made[start : start + length]
            else:  # it repeats itself
                made += (made[start:] * (length // offset + 1))[:length]
        if len(made) > size:
            break
    if len(made) != size:
        raise ParquetError("a page of the Parquet file is not whole Snappy")
    return bytes(made)


# -- rows ------------------------------------------------------------------------------------------


def _group(
    descriptor: int, root: _Node, group: dict[int, Any], report: Report
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a row group."""
    leaves, chunks, count = list(root.leaves()), _list(group, 1), group[3]
    if len(leaves) != len(chunks) or not leaves:
        raise ParquetError("the columns of the Parquet file are not those of its schema")
    room = _Room()
    columns = {
        leaf.path: _Entries(_Column(descriptor, leaf, chunk, room).entries())
        for leaf, chunk in zip(leaves, chunks, strict=True)
    }
    if all(leaf.levels[0] < 2 and len(leaf.path) == 1 and not leaf.levels[1] for leaf in leaves):
        names = [leaf.name for leaf in leaves]
        flat = zip(*(column.values() for column in columns.values()), strict=True)
        found: Iterator[dict[str, Any]] = (dict(zip(names, row, strict=True)) for row in flat)
    else:
        found = _nested(root, columns)
    number = 0
    for number, row in enumerate(found, 1):
        if not number & 0x3FFF:
            report(0)
        if number > count:
            break
        yield row
    if number != count:
        raise ParquetError("a row group of the Parquet file has not the rows that it says")


class _Entries:
    """A column's entries with a look at the next one, which is None at the end."""

    def __init__(self, entries: Iterator[tuple[int, int, Any]]) -> None:
        self._entries = entries
        self.next: tuple[int, int, Any] | None = None

    def values(self) -> Iterator[Any]:
        return (value for _, _, value in self._entries)

    def begin(self) -> None:
        """Look at the first entry."""
        self.next = next(self._entries, None)

    def take(self) -> Any:
        """Return the value of the next entry, and go on."""
        if self.next is None:
            raise ParquetError("a column of the Parquet file is shorter than another")
        value = self.next[2]
        self.next = next(self._entries, None)
        return value


def _nested(root: _Node, columns: dict[tuple[str, ...], _Entries]) -> Iterator[dict[str, Any]]:
    """Put rows together from the levels of their values."""
    below = {}
    pending = [root]
    while pending:
        node = pending.pop()
        pending += node.children
        below[node.path] = [columns[leaf.path] for leaf in node.leaves()]

    def there(node: _Node) -> bool:
        """Tell whether a field is there; where not, pass over what says so."""
        ahead = below[node.path][0].next
        if ahead is None:
            raise ParquetError("a column of the Parquet file is shorter than another")
        if ahead[1] >= node.levels[0]:
            return True
        for column in below[node.path]:
            if column.next is None or column.next[1] >= node.levels[0]:
                raise ParquetError("the columns of the Parquet file contradict each other")
            column.take()
        return False

    def value(node: _Node) -> Any:
        if node.repetition == _OPTIONAL and not there(node):
            return None
        return items(node, node) if node.repetition == _REPEATED else content(node)

    def content(node: _Node) -> Any:
        if node.kind is not None:
            return columns[node.path].take()
        if node.element is not None:
            return items(node.children[0], node.element)
        return {child.name: value(child) for child in node.children}

    def items(repeated: _Node, element: _Node) -> list[Any]:
        found: list[Any] = []
        if not there(repeated):
            return found
        while True:
            found.append(content(element) if element is repeated else value(element))
            levels = {column.next[0] if column.next else 0 for column in below[repeated.path]}
            (level,) = levels  # all columns below go on, or none does
            if level < repeated.levels[1]:
                return found
            if level > repeated.levels[1]:
                raise ParquetError("the columns of the Parquet file contradict each other")

    for column in columns.values():
        column.begin()
    first = next(iter(columns.values()))
    while first.next is not None:
        yield content(root)
        if any((column.next is None) != (first.next is None) for column in columns.values()):
            raise ParquetError("a column of the Parquet file is shorter than another")
        if any(column.next and column.next[0] for column in columns.values()):
            raise ParquetError("the columns of the Parquet file contradict each other")
