"""Turn untrusted JSON objects into typed values, refusing whatever is not expected.

A `Reader` walks one object: each field is taken once, with its type and bounds checked, and
`done()` refuses the fields that nobody asked for. Errors name the place (`evidence.quote.message`).
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

from aicert.errors import Error

T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)  # `\d` is any script's digit
_MISSING = object()


class FieldError(Error):
    """A field is missing, unknown, of the wrong type or out of bounds."""

    code = "format.field"
    remedy = "get the file again from whoever published it"


class Reader:
    """One JSON object being read; `where` is its place in the document, for messages.

    `error` is the class to raise, so that each document reports failures as its own.
    """

    def __init__(self, value: Any, where: str, error: type[Error] = FieldError) -> None:
        """Start reading `value`.

        Raises:
            Error: (of the class given) `value` is not an object.
        """
        self.where = where
        self._error = error
        if type(value) is not dict:
            raise self.fail(where, "is not an object", got=type(value).__name__)
        self._fields: dict[str, Any] = dict(value)

    def fail(
        self, where: str, problem: str, *, got: object = None, expected: object = None
    ) -> Error:
        """Make the error for the place `where`."""
        return self._error(f"{where}: {problem}", got=got, expected=expected)

    def _take(self, name: str) -> Any:
        value = self._fields.pop(name, _MISSING)
        if value is _MISSING:
            raise self.fail(f"{self.where}.{name}", "is missing")
        return value

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self._take(name)
        if type(value) is not kind:
            raise self.fail(
                f"{self.where}.{name}",
                "has the wrong type",
                got=type(value).__name__,
                expected=kind.__name__,
            )
        return value

    def has(self, name: str) -> bool:
        """Tell whether the field stands in the object (and has not been taken yet)."""
        return name in self._fields

    def null(self, name: str) -> bool:
        """Take the field if it is null, and tell whether it was; it must stand there."""
        if name not in self._fields:
            raise self.fail(f"{self.where}.{name}", "is missing")
        if self._fields[name] is None:
            del self._fields[name]
            return True
        return False

    def raw(self, name: str) -> Any:
        """Take a field of any type."""
        return self._take(name)

    def text(self, name: str, *, max_length: int = 4096) -> str:
        """Take a string of at most `max_length` characters."""
        value = self._typed(name, str)
        if len(value) > max_length:
            raise self.fail(
                f"{self.where}.{name}",
                "is too long",
                got=len(value),
                expected=max_length,
            )
        return value

    def optional_text(self, name: str, *, max_length: int = 4096) -> str | None:
        """Take a string or null; the field must stand there."""
        return None if self.null(name) else self.text(name, max_length=max_length)

    def const(self, name: str, expected: T) -> T:
        """Take a field that has one right value."""
        value = self._take(name)
        if type(value) is not type(expected) or value != expected:
            raise self.fail(
                f"{self.where}.{name}",
                "has another value",
                got=value,
                expected=expected,
            )
        return expected

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Take a string that is one of `choices`."""
        value = self._typed(name, str)
        if value not in choices:
            raise self.fail(
                f"{self.where}.{name}",
                "is not known",
                got=value,
                expected=", ".join(choices),
            )
        return value

    def integer(self, name: str, *, low: int = 0, high: int = 2**53 - 1) -> int:
        """Take an integer within [low, high]."""
        value = self._typed(name, int)
        if not low <= value <= high:
            raise self.fail(
                f"{self.where}.{name}",
                "is out of range",
                got=value,
                expected=f"{low} to {high}",
            )
        return value

    def flag(self, name: str) -> bool:
        """Take true or false."""
        return self._typed(name, bool)

    def octets(self, name: str, size: int) -> bytes:
        """Take `size` bytes written in lower-case hex."""
        return self._octets(f"{self.where}.{name}", self._typed(name, str), size)

    def octets_list(self, name: str, size: int, *, max_items: int) -> tuple[bytes, ...]:
        """Take an array of bytes written in lower-case hex, `size` of them each."""
        items = self.texts(name, max_items=max_items)
        return tuple(
            self._octets(f"{self.where}.{name}[{index}]", item, size)
            for index, item in enumerate(items)
        )

    def _octets(self, where: str, value: str, size: int) -> bytes:
        if len(value) != 2 * size or not _HEX.fullmatch(value):
            raise self.fail(where, f"is not {size} bytes in lower-case hex", got=value)
        return bytes.fromhex(value)

    def sha256(self, name: str) -> str:
        """Take a SHA-256 digest; returned as the hex string."""
        return self.octets(name, 32).hex()

    def optional_sha256(self, name: str) -> str | None:
        """Take a SHA-256 digest or null."""
        return None if self.null(name) else self.sha256(name)

    def digest(self, name: str) -> str:
        """Take an object `{"sha256": hex}`; return the hex string."""
        inner = self.child(name)
        value = inner.sha256("sha256")
        inner.done()
        return value

    def time(self, name: str) -> datetime:
        """Take a time such as `2026-11-23T09:00:00Z`: UTC, whole seconds (RFC 3339)."""
        value = self._typed(name, str)
        if not _TIME.fullmatch(value):
            raise self.fail(f"{self.where}.{name}", "is not a UTC time with seconds", got=value)
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            raise self.fail(f"{self.where}.{name}", "is not a time", got=value) from None

    def octets64(self, name: str, *, max_bytes: int) -> bytes:
        """Take bytes in standard base64 with padding (RFC 4648, 4), at most `max_bytes`."""
        return self._octets64(f"{self.where}.{name}", self._typed(name, str), max_bytes)

    def _octets64(self, where: str, value: str, max_bytes: int) -> bytes:
        if len(value) > (max_bytes + 2) // 3 * 4:
            raise self.fail(where, "is too long", expected=f"at most {max_bytes} bytes")
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise self.fail(where, "is not base64", got=value[:60]) from None
        # Two texts may decode to the same bytes (bits under the padding): one of them is right.
        if base64.b64encode(data).decode("ascii") != value:
            raise self.fail(where, "is not canonical base64", got=value[-8:])
        return data

    def child(self, name: str) -> "Reader":
        """Take an object, to be read by a reader of its own."""
        return Reader(self._take(name), f"{self.where}.{name}", self._error)

    def array(self, name: str, *, max_items: int, min_items: int = 0) -> list[Any]:
        """Take an array with a bounded number of items of any type."""
        value: list[Any] = self._typed(name, list)
        if not min_items <= len(value) <= max_items:
            raise self.fail(
                f"{self.where}.{name}",
                "has the wrong number of items",
                got=len(value),
                expected=f"{min_items} to {max_items}",
            )
        return value

    def children(self, name: str, *, max_items: int, min_items: int = 0) -> "Iterator[Reader]":
        """Take an array of objects; yield a reader for each."""
        for index, item in enumerate(self.array(name, max_items=max_items, min_items=min_items)):
            yield Reader(item, f"{self.where}.{name}[{index}]", self._error)

    def texts(
        self, name: str, *, max_items: int, min_items: int = 0, max_length: int = 4096
    ) -> tuple[str, ...]:
        """Take an array of strings."""
        items = self.array(name, max_items=max_items, min_items=min_items)
        for index, item in enumerate(items):
            if type(item) is not str or len(item) > max_length:
                raise self.fail(f"{self.where}.{name}[{index}]", "is not a short string", got=item)
        return tuple(items)

    def octets64_list(self, name: str, *, max_items: int, max_bytes: int) -> tuple[bytes, ...]:
        """Take an array of base64 strings; return their bytes."""
        items = self.texts(name, max_items=max_items, max_length=max_bytes * 2)
        return tuple(
            self._octets64(f"{self.where}.{name}[{index}]", item, max_bytes)
            for index, item in enumerate(items)
        )

    def text_map(self, name: str, *, max_items: int, max_length: int = 4096) -> dict[str, str]:
        """Take an object whose values are strings."""
        value: dict[str, Any] = self._typed(name, dict)
        if len(value) > max_items:
            raise self.fail(f"{self.where}.{name}", "has too many entries", got=len(value))
        for key, item in value.items():
            if type(item) is not str or len(item) > max_length:
                where = f"{self.where}.{name}[{key[:60]!a}]"  # in one line, and it prints
                raise self.fail(where, "is not a short string", got=item)
        return dict(value)

    def read(self, name: str, read: Callable[["Reader"], T]) -> T:
        """Take an object and read it whole with `read`, refusing unknown fields."""
        inner = self.child(name)
        value = read(inner)
        inner.done()
        return value

    def done(self) -> None:
        """Refuse the fields that were not taken."""
        if self._fields:
            unknown = ", ".join(sorted(self._fields)[:5])
            raise self.fail(self.where, "has fields that are not known", got=unknown)
