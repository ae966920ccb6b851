"""Hold our reader of Parquet against those of Arrow, DuckDB and Polars, on files that are damaged.

    pip install pyarrow duckdb polars
    python tests/parquet/compare.py SEED COUNT

A row that we commit to must be what a training reads: whatever we read, each of the others must
read alike, or refuse. Prints every file that one of them reads otherwise, and keeps it. What is not
compared is whether bytes are text, where the file's schema and a writer's notes differ. Known: a
group that the schema no longer calls a list is one to DuckDB; what is in it is the same.
"""

import base64
import io
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.parquet

from aicert import parquet
from aicert.errors import Error

HERE = Path(__file__).parent
MOST = 3000


def plain(value: Any) -> Any:
    """What can be compared: texts as the base64 of their bytes, numbers by how they are written."""
    if isinstance(value, str | bytes):
        return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return repr(value)


def ours(data: bytes) -> list[Any] | None:
    """The rows as we read them; texts are base64 already where they are bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            found = []
            for row in parquet.rows(file.fileno()):
                found.append(row)
                if len(found) > MOST:
                    return None
            return found
        except Error:
            return None


def _arrow(data: bytes) -> list[Any]:
    return list(pyarrow.parquet.ParquetFile(io.BytesIO(data)).read().to_pylist())


def _polars(data: bytes) -> list[Any]:
    return list(polars.read_parquet(io.BytesIO(data)).to_dicts())


def _duckdb(data: bytes) -> list[Any]:
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        found = duckdb.sql("select * from read_parquet($name)", params={"name": file.name})
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


READERS: dict[str, Callable[[bytes], list[Any]]] = {
    "Arrow": _arrow,
    "Polars": _polars,
    "DuckDB": _duckdb,
}


def same(left: Any, right: Any) -> bool:
    """Tell whether two rows are the same, bytes that one of them takes for text included."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return bool(plain(left) == plain(right) or left == plain(right))


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Change one to three bytes, mostly in the footer, or add or take one there."""
    made = bytearray(data)
    size = int.from_bytes(made[-8:-4], "little")
    for _ in range(chance.randint(1, 3)):
        footer = len(made) - 8 - size
        inside = chance.random() < 0.75
        at = chance.randrange(footer, len(made) - 8) if inside else chance.randrange(4, 64)
        how = chance.random()
        if how < 0.4:
            made[at] = chance.randrange(256)
        elif how < 0.8 or at < footer:
            made[at] ^= 1 << chance.randrange(8)
        elif how < 0.9:
            made[at:at] = bytes([chance.choice([0, 1, 2, 4, 8, 16, 17, 18, 21, 22, 28, 128])])
            size += 1
        else:
            del made[at]
            size -= 1
        made[-8:-4] = size.to_bytes(4, "little")
    return bytes(made)


def main(seed: int, count: int) -> int:
    """Compare on so many files; return 1 where a reader differs."""
    chance = random.Random(seed)
    good = [path.read_bytes() for path in sorted(HERE.glob("*.parquet"))
            if not path.name.startswith("refused")]  # fmt: skip
    told: Counter[str] = Counter()
    for number in range(count):
        data = damaged(chance, chance.choice(good))
        rows = ours(data)
        if rows is None:
            continue
        told["read by us"] += 1
        for name, read in READERS.items():
            try:
                theirs = read(data)
            except BaseException:  # a panic of Polars is no Exception
                told[f"refused by {name}"] += 1
                continue
            if not same(rows, theirs):
                told[f"read otherwise by {name}"] += 1
                kept = Path(tempfile.gettempdir()) / f"differs-{name}-{seed}-{number}.parquet"
                kept.write_bytes(data)
                print(kept)
    print(dict(told))
    return int(any("otherwise" in key for key in told))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
