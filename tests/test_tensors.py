"""Safetensors files, compared value by value; malformed ones refused."""

import json
import math
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicert.tensors import TensorError, Tolerance, compare


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], **metadata: str) -> Path:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += data
    return raw(path, header, body)


def raw(path: Path, header: object, body: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def floats(*values: float) -> tuple[str, list[int], bytes]:
    return "F32", [len(values)], struct.pack(f"<{len(values)}f", *values)


def pair(tmp_path: Path, one: Any, two: Any) -> tuple[Path, Path]:
    return write(tmp_path / "a", {"w": one}), write(tmp_path / "b", {"w": two})


def test_equal_files_are_at_no_distance(tmp_path: Path) -> None:
    one, two = pair(tmp_path, floats(1, math.nan, math.inf), floats(1, math.nan, math.inf))
    found = compare(one, two, Tolerance())
    assert (found.within, found.largest, found.differing, found.values) == (True, 0, 0, 3)


@pytest.mark.parametrize(
    ("x", "y", "tolerance", "within"),
    [
        (1.0, 1.5, Tolerance(0.5), True),
        (1.0, 1.5, Tolerance(0.25), False),
        (-8.0, -9.0, Tolerance(relative=0.125), True),
        (-9.0, -8.0, Tolerance(relative=0.1), False),
        (0.0, -0.0, Tolerance(), True),
        (math.inf, 3e38, Tolerance(1e300, 1e300), False),
        (3e38, math.inf, Tolerance(1e300, 1e300), False),
        (math.inf, -math.inf, Tolerance(1e300, 1e300), False),
        (math.nan, 1.0, Tolerance(1e300, 1e300), False),
        (1.0, math.nan, Tolerance(1e300, 1e300), False),
    ],
)
def test_a_value_is_within_the_tolerance_or_not(
    tmp_path: Path, x: float, y: float, tolerance: Tolerance, within: bool
) -> None:
    found = compare(*pair(tmp_path, floats(7, x), floats(7, y)), tolerance)
    assert found.within is within
    assert (found.where is None) is within
    if not within and (math.isnan(x + y) or math.isinf(x + y)):
        assert found.largest == math.inf


@pytest.mark.parametrize(
    ("dtype", "one", "two", "distance"),
    [
        ("BOOL", b"\0\1", b"\0\0", 1),
        ("I8", b"\x80", b"\x7f", 255),
        ("U8", b"\0", b"\xff", 255),
        ("I16", b"\0\x80", b"\xff\x7f", 65535),
        ("I64", struct.pack("<q", -5), struct.pack("<q", 7), 12),
        ("U64", struct.pack("<Q", 2**63), struct.pack("<Q", 2**63 + 4096), 4096),
        ("F16", struct.pack("<e", 1.5), struct.pack("<e", 2), 0.5),
        ("BF16", struct.pack("<f", 1.5)[2:], struct.pack("<f", -2)[2:], 3.5),
        ("F64", struct.pack("<d", 1), struct.pack("<d", 1 + 2**-50), 2**-50),
    ],
)
def test_every_type_is_read_as_what_it_is(
    tmp_path: Path, dtype: str, one: bytes, two: bytes, distance: float
) -> None:
    count = 2 if dtype == "BOOL" else 1
    files = pair(tmp_path, (dtype, [count], one), (dtype, [1, count], two))
    assert compare(*files, Tolerance(1e9)).where == "w: type or shape"
    files = pair(tmp_path, (dtype, [count], one), (dtype, [count], two))
    found = compare(*files, Tolerance())
    assert (found.within, found.largest, found.differing) == (False, distance, 1)


def test_large_tensors_are_compared_to_their_end(tmp_path: Path) -> None:
    zeros = bytes(3 << 20)
    other = zeros[:-4] + struct.pack("<f", 2)
    shape = [3 << 10, 256]
    found = compare(*pair(tmp_path, ("F32", shape, zeros), ("F32", shape, other)), Tolerance(1))
    assert (found.largest, found.differing, found.values, found.where) == (2, 1, 3 << 18, "w")


def test_what_is_no_value_must_be_equal(tmp_path: Path) -> None:
    one = write(tmp_path / "a", {"w": floats(1)}, epoch="1")
    assert compare(one, write(tmp_path / "b", {"w": floats(1)}), Tolerance(9)).where is not None
    other = write(tmp_path / "b", {"v": floats(1)}, epoch="1")
    found = compare(one, other, Tolerance(9))
    assert found.where == "v, which only one of them has" and not found.within


def test_the_order_in_the_file_does_not_count(tmp_path: Path) -> None:
    one = write(tmp_path / "a", {"v": floats(1), "w": floats(2)})
    two = write(tmp_path / "b", {"w": floats(2), "v": floats(1)})
    assert compare(one, two, Tolerance()).within


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"{", b""),
        (b'{"w":1,"w":1}', b""),
        ({"w": GOOD}, b"123"),
        ({"w": GOOD}, b"12345"),
        ({"w": {**GOOD, "dtype": "F8_E4M3"}}, b"1234"),
        ({"w": {**GOOD, "dtype": ["F32"]}}, b"1234"),
        ({"w": {**GOOD, "shape": [2]}}, b"1234"),
        ({"w": {**GOOD, "shape": [-1]}}, b"1234"),
        ({"w": {**GOOD, "shape": [True]}}, b"1234"),
        ({"w": {**GOOD, "shape": [1.0]}}, b"1234"),
        ({"w": {**GOOD, "shape": [1] * 65}}, b"1234"),
        ({"w": {**GOOD, "data_offsets": [4, 8]}}, b"12345678"),
        ({"w": {**GOOD, "data_offsets": [0, 4, 4]}}, b"1234"),
        ({"w": {**GOOD, "more": 1}}, b"1234"),
        ({"w": GOOD, "v": GOOD}, b"1234"),
        ({"w": 4}, b"1234"),
        ({"w": GOOD, "__metadata__": {"a": 1}}, b"1234"),
        ({"w": GOOD, "__metadata__": "a"}, b"1234"),
    ],
    ids=str,
)
def test_a_malformed_file_is_refused(tmp_path: Path, header: object, body: bytes) -> None:
    good = write(tmp_path / "good", {"w": floats(1)})
    bad = raw(tmp_path / "bad", header, body)
    for files in ((good, bad), (bad, good)):
        with pytest.raises(TensorError):
            compare(*files, Tolerance())


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(TensorError):
        compare(bad, bad, Tolerance())


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_accepts_anything_is_none(bound: float) -> None:
    with pytest.raises(ValueError, match="zero or more"):
        Tolerance(bound)
    with pytest.raises(ValueError, match="zero or more"):
        Tolerance(0, bound)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_fail_as_they_should(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        with suppress(TensorError):
            compare(path, path, Tolerance())
