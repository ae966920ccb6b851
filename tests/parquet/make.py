"""Make the Parquet files beside this, and what is in them, with programs that write such files.

    pip install pyarrow duckdb polars fastparquet pandas
    python tests/parquet/make.py

It was done once; the files are what the tests read, and need none of these programs.
"""

import base64
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import duckdb
import fastparquet
import pandas
import polars
import pyarrow
import pyarrow.parquet

HERE = Path(__file__).parent
WORDS = ["", "a", "é", "two words", "x" * 90]
COUNT = 500
FLAT = [
    {
        "id": number * 7919 if number % 5 else None,
        "text": WORDS[number % 5] + str(number % 17) if number % 7 else None,
        "label": None if number % 11 == 0 else number % 3 == 0,
        "score": None if number % 13 == 0 else number / 8,
    }
    for number in range(COUNT)
]
CHATS = pyarrow.schema(
    [
        ("id", pyarrow.uint64()),
        ("turns", pyarrow.list_(pyarrow.struct([("who", pyarrow.string()),
                                               ("said", pyarrow.list_(pyarrow.string()))]))),
        ("grid", pyarrow.list_(pyarrow.list_(pyarrow.int8()))),
        ("meta", pyarrow.struct([("raw", pyarrow.binary()), ("four", pyarrow.binary(4)),
                                 ("deep", pyarrow.struct([("x", pyarrow.float32())]))])),
    ]
)  # fmt: skip
TURNS = [{"who": None, "said": None}, None, {"who": "b", "said": ["x", None, ""]}]
NESTED: list[dict[str, Any]] = [
    {
        "id": number,
        "turns": [None, [], [{"who": "a", "said": []}], TURNS][number % 4],
        "grid": [[[]], None, [[1], None, [2, -3, None]], []][number % 4],
        "meta": None if number % 5 == 0 else {
            "raw": bytes([number % 256, 0, 255]), "four": b"abcd" if number % 3 else None,
            "deep": {"x": number / 4} if number % 2 else None},
    }
    for number in range(97)
]  # fmt: skip


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    text = "\n".join(json.dumps(plain(row), ensure_ascii=False) for row in rows)
    (HERE / f"{name}.jsonl").write_text(text + "\n" if text else "")


def arrow(name: str, rows: list[dict[str, Any]], schema: Any, **options: Any) -> None:
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, HERE / f"{name}.parquet", **options)


def main() -> None:
    flat = pyarrow.Table.from_pylist(FLAT).schema
    for name, options in {
        "arrow-snappy": {},
        "arrow-gzip-pages-2": {"compression": "gzip", "data_page_version": "2.0",
                               "data_page_size": 200, "use_dictionary": False},
        "arrow-plain-groups": {"compression": "none", "row_group_size": 64,
                               "use_dictionary": False},
    }.items():  # fmt: skip
        arrow(name, FLAT, flat, **options)
    arrow("arrow-nested", NESTED, CHATS)
    arrow("arrow-nested-pages-2", NESTED, CHATS, data_page_version="2.0", data_page_size=100,
          row_group_size=50, compression="none")  # fmt: skip
    required = pyarrow.schema([pyarrow.field("id", pyarrow.int32(), nullable=False)])
    arrow("arrow-required", [{"id": n} for n in range(9)], required)
    arrow("arrow-empty", [], flat)

    frame = pandas.DataFrame(FLAT).drop(columns=["id", "label"])
    fastparquet.write(str(HERE / "fastparquet.parquet"), frame, compression="SNAPPY")
    polars.DataFrame(FLAT).write_parquet(HERE / "polars.parquet", compression="snappy")
    held = pyarrow.Table.from_pylist(FLAT)  # noqa: F841 (DuckDB finds it by its name)
    duckdb.sql(f"COPY (SELECT * FROM held) TO '{HERE / 'duckdb.parquet'}' (FORMAT parquet)")

    keep("flat", FLAT)
    keep("nested", NESTED)

    one = [pyarrow.field("x", kind) for kind in (
        pyarrow.timestamp("us"), pyarrow.decimal128(9, 2), pyarrow.date32(),
        pyarrow.map_(pyarrow.string(), pyarrow.int8()), pyarrow.float16())]  # fmt: skip
    day = datetime.date(2026, 1, 1)
    values: list[Any] = [datetime.datetime.combine(day, datetime.time()), decimal.Decimal("1.25"),
                         day, [("a", 1)], 1.5]  # fmt: skip
    for field, value in zip(one, values, strict=True):
        name = f"refused-{str(field.type).partition('(')[0].partition('[')[0].partition('<')[0]}"
        arrow(name, [{"x": value}], pyarrow.schema([field]))
    arrow("refused-zstd", FLAT[:3], flat, compression="zstd")
    arrow("refused-delta", [{"x": 1}, {"x": 5}], None, use_dictionary=False,
          column_encoding={"x": "DELTA_BINARY_PACKED"})  # fmt: skip
    arrow("refused-nan", [{"x": float("nan")}], None)
    arrow("refused-large", [{"x": 2**53}], None)


if __name__ == "__main__":
    main()
