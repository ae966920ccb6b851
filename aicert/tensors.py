"""Compare two safetensors files tensor by tensor, within a stated tolerance.

The format: eight bytes (little-endian) with the length of a JSON object, which names each tensor's
`dtype`, `shape` and `data_offsets`, then the tensors' bytes, without a hole, little-endian. See
https://github.com/huggingface/safetensors#format.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aicert import canonical
from aicert.errors import Error

MAX_HEADER = 16 << 20
"""The longest header, in bytes. The format allows 100 MB; no model has one that comes near this."""

_MAX_MARKS = 1_000_000  # of 100,000 tensors, and little enough to be read in a second
_CHUNK = 1 << 18

_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
_CODES = {
    "BOOL": "B", "U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "U64": "Q",
    "I64": "q", "F16": "e", "BF16": "f", "F32": "f", "F64": "d",
}  # fmt: skip


class TensorError(Error):
    """A file is not of the safetensors format, or holds a type that is not known."""

    code = "tensors.format"
    remedy = "compare without a tolerance, or leave the file out with --ignore"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Two values x (of the first) and y agree where |x - y| <= absolute + relative * |x|."""

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would accept anything.

        Raises:
            ValueError: a bound is negative or not finite.
        """
        if not all(math.isfinite(bound) and bound >= 0 for bound in self.to_json().values()):
            raise ValueError("a tolerance is a number, zero or more")

    def to_json(self) -> dict[str, float]:
        """Return the JSON form."""
        return {"absolute": float(self.absolute), "relative": float(self.relative)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in its file, in bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two files are apart: the largest |x - y|, and in how many values of how many."""

    within: bool
    largest: float
    differing: int
    values: int
    where: str | None
    """The first tensor that is out of tolerance, or what else tells the files apart."""


def compare(first: Path, second: Path, tolerance: Tolerance) -> Distance:
    """Compare two safetensors files; memory stays flat.

    The names, types, shapes and metadata must be equal. NaN agrees with NaN, an infinity with
    itself, and neither with anything else.

    Raises:
        TensorError: one of them is not a safetensors file.
        OSError: one of them cannot be read.
    """
    with first.open("rb") as left, second.open("rb") as right:
        tensors, metadata = read_header(left)
        others, other_metadata = read_header(right)
        if metadata != other_metadata:
            return Distance(False, math.inf, 0, 0, "the metadata")
        if tensors.keys() != others.keys():
            name = min(tensors.keys() ^ others.keys())
            return Distance(False, math.inf, 0, 0, f"{name}, which only one of them has")
        largest, differing, values, where = 0.0, 0, 0, None
        for name, tensor in tensors.items():
            other = others[name]
            if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
                return Distance(False, math.inf, 0, 0, f"{name}: type or shape")
            values += (tensor.end - tensor.begin) // _SIZES[tensor.dtype]
            for x, y in _differing(left, tensor, right, other):
                distance = abs(x - y)
                differing += 1
                allowed = tolerance.absolute + tolerance.relative * abs(x)
                # An infinity would allow anything, and NaN compares with nothing.
                if math.isnan(distance) or not (math.isfinite(x) and math.isfinite(y)):
                    distance = math.inf
                if distance > allowed or math.isinf(distance):
                    where = where or name
                largest = max(largest, distance)
        return Distance(where is None, largest, differing, values, where)


def _differing(
    left: BinaryIO, tensor: Tensor, right: BinaryIO, other: Tensor
) -> Iterator[tuple[float, float]]:
    """Yield the pairs of values that are not equal."""
    place, length = 0, tensor.end - tensor.begin
    while place < length:
        step = min(_CHUNK, length - place)
        left.seek(tensor.begin + place)
        right.seek(other.begin + place)
        one, two = left.read(step), right.read(step)
        if len(one) != step or len(two) != step:
            raise TensorError("a file became shorter while it was read")
        if one != two:
            for x, y in zip(_decode(tensor.dtype, one), _decode(tensor.dtype, two), strict=True):
                if x != y and not (math.isnan(x) and math.isnan(y)):
                    yield x, y
        place += step


def _decode(dtype: str, data: bytes) -> tuple[Any, ...]:
    if dtype == "BF16":  # the upper half of an F32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        data = bytes(wide)
    code = _CODES[dtype]
    return struct.unpack(f"<{len(data) // struct.calcsize(f'<{code}')}{code}", data)


def read_header(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, in the order of their bytes, and the metadata.

    Raises:
        TensorError: the file is not of the format: nothing may overlap, be left out, or follow.
        OSError: it cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) != 8 or length > min(MAX_HEADER, size - 8):
        raise TensorError("this is not a safetensors file", got=f"a header of {length} bytes")
    try:
        header = canonical.loads(
            file.read(length), max_bytes=MAX_HEADER, max_depth=4, max_marks=_MAX_MARKS
        )
    except Error as error:
        raise TensorError("the header of a safetensors file is malformed", got=error) from error
    if not isinstance(header, dict):
        raise TensorError("the header of a safetensors file is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TensorError("the metadata of a safetensors file are not texts")
    tensors = {name: _tensor(name, item, 8 + length) for name, item in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = 8 + length
    for name, tensor in ordered.items():
        if tensor.begin != at:
            raise TensorError("tensors overlap, or leave a hole", got=name)
        at = tensor.end
    if at != size:
        raise TensorError("something follows the tensors", got=f"{size - at} bytes")
    return ordered, metadata


def _tensor(name: str, item: Any, base: int) -> Tensor:
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorError("a tensor is not described as it must be", got=name)
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise TensorError("a tensor has a type that is not known", got=f"{name}: {dtype!r}"[:200])
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
            raise TensorError("a tensor has a shape or a place that is none", got=name)
    if len(shape) > 64 or len(offsets) != 2:
        raise TensorError("a tensor has a shape or a place that is none", got=name)
    begin, end = offsets
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise TensorError("a tensor has not the size of its shape", got=name)
    return Tensor(dtype, tuple(shape), base + begin, base + end)
