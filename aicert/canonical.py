"""Canonical JSON: RFC 8785 out, a strict I-JSON subset in.

Everything that is measured or signed is canonical JSON, so that one value has one encoding. What
comes in may be an attacker's: its size and depth are bounded before and while it is parsed, and
whatever two parsers might read differently (duplicate keys, NaN, huge integers, lone surrogates)
is refused.
"""

import hashlib
import json
import math
import re
from typing import Any, NoReturn

import rfc8785

from aicert.errors import Error

MAX_SAFE_INT = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact (RFC 7493, 2.2)."""

MAX_MARKS = 100_000
"""The most brackets, commas and backslashes in a document. A small file can stand for large objects
(an empty list takes 3 bytes in it and 64 in memory): this bounds memory and time before parsing."""


class CanonicalError(Error):
    """The bytes are not JSON that we accept."""

    code = "json.invalid"
    remedy = "get the file again from whoever published it, byte for byte; do not edit it"


class TooLargeError(CanonicalError):
    """The document is larger or nested deeper than its limit."""

    code = "json.too-large"
    remedy = "do not use this file: nothing that aicert makes is as large or as deep"


class DuplicateKeyError(CanonicalError):
    """An object names a key twice."""

    code = "json.duplicate-key"
    remedy = "do not use this file: two programs may read two things in it"


class NotCanonicalError(CanonicalError):
    """The document is good JSON but not in its canonical form."""

    code = "json.not-canonical"


def dumps(value: object) -> bytes:
    """Return the RFC 8785 canonical form of `value`, as UTF-8.

    Raises:
        CanonicalError: the value has no canonical form (NaN, an integer beyond 2^53 - 1, a lone
            surrogate, a type that JSON does not have).
    """
    try:
        if _plain(value):
            # The standard encoder then gives the same bytes as RFC 8785 (a test holds the two
            # against each other) at a fifth of the time.
            return _ENCODER.encode(value).encode()
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise CanonicalError("the value has no canonical JSON form", got=error) from error


def sha256(value: object) -> str:
    """Return the SHA-256, in hex, of the canonical form of `value`."""
    return hashlib.sha256(dumps(value)).hexdigest()


def loads(data: bytes, *, max_bytes: int, max_depth: int = 32, max_marks: int = MAX_MARKS) -> Any:
    """Parse JSON strictly.

    Args:
        data: UTF-8 bytes without a byte order mark.
        max_bytes: the largest document accepted.
        max_depth: how deep arrays and objects may nest.
        max_marks: the most brackets, commas and backslashes.

    Raises:
        TooLargeError: a limit is passed.
        DuplicateKeyError: a key stands twice in one object.
        CanonicalError: anything else that is not plain I-JSON.
    """
    if len(data) > max_bytes:
        raise TooLargeError("the JSON document is too large", got=len(data), expected=max_bytes)
    if len(data) > max_marks and (marks := sum(map(data.count, b",[{\\"))) > max_marks:
        raise TooLargeError("the JSON document has too many parts", got=marks, expected=max_marks)
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise CanonicalError("the document is not UTF-8", got=error.reason) from error
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise CanonicalError("the document is not JSON", got=where) from error
    except RecursionError as error:
        raise TooLargeError("the JSON document nests too deep") from error
    _check_depth(value, max_depth - 1)
    if b"\\u" in data:
        _check_text(value)
    return value


def loads_canonical(data: bytes, *, max_bytes: int, max_depth: int = 32) -> Any:
    """Parse JSON strictly, and refuse bytes that are not the canonical form of what they say.

    Raises:
        NotCanonicalError: the bytes are not the RFC 8785 form.
        CanonicalError: as `loads`.
    """
    value = loads(data, max_bytes=max_bytes, max_depth=max_depth)
    if (canonical := dumps(value)) != data:
        got, expected = difference(data, canonical)
        raise NotCanonicalError(
            "the JSON is not in its canonical form (RFC 8785)",
            got=got,
            expected=expected,
            advice="use the file as it was published, byte for byte; do not re-format it",
        )
    return value


def difference(got: bytes, expected: bytes) -> tuple[str, str]:
    """Return, for a person, the first place where two documents differ, as it is in each."""
    at, end = 0, min(len(got), len(expected))
    while at < end:  # by halves: a document may have millions of bytes
        middle = (at + end + 1) // 2
        if got[at:middle] == expected[at:middle]:
            at = middle
        else:
            end = middle - 1
    start = max(0, at - 40)

    def shown(data: bytes) -> str:
        end = " and no more" if len(data) <= at + 20 else "…"
        return f"at byte {at}: {data[start : at + 20].decode('utf-8', 'replace')!r}{end}"

    return shown(got), shown(expected)


def _plain(value: Any) -> bool:
    """Tell whether the standard encoder surely gives the RFC 8785 form of `value`.

    RFC 8785 sorts keys by UTF-16 code units, which for ASCII is the order of code points; and it
    writes floats as ECMAScript does, which is as Python does where neither uses an exponent and
    there is a fraction. Depth is left to the encoder's own limit.
    """
    found: list[Any] = [value]
    for item in found:  # it grows while it is walked: a loop takes half the time of a recursion
        kind = type(item)
        if kind is str:
            if not (item.isascii() and item.isprintable()) and _CONTROL.search(item):
                return False
        elif kind is dict:
            for key in item:
                if type(key) is not str or not (key.isascii() and key.isprintable()):
                    return False
            found.extend(item.values())
        elif kind is list or kind is tuple:
            found.extend(item)
        elif kind is int:
            if not -MAX_SAFE_INT <= item <= MAX_SAFE_INT:
                return False
        elif kind is float:
            if not 1e-4 <= abs(item) < 1e15 or item.is_integer():
                return False
        elif item is not None and kind is not bool:
            return False
    return True


# Characters that the two encoders might escape differently are left to rfc8785.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff]")


def _check_depth(value: Any, left: int) -> None:
    """Refuse deep nesting; the parser itself stops at the interpreter's recursion limit."""
    if left < 0:
        raise TooLargeError("the JSON document nests too deep")
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return
    for item in value:
        if type(item) is dict or type(item) is list:
            _check_depth(item, left - 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError("a key stands twice in one JSON object", got=key)
            seen.add(key)
    return result


def _check_text(value: object) -> None:
    """Refuse lone surrogates, which only an escape can bring in."""
    if type(value) is str:
        if not value.isascii() and _SURROGATE.search(value):
            raise CanonicalError("a JSON string holds a lone surrogate", got=ascii(value[:60]))
    elif type(value) is dict:
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif type(value) is list:
        for item in value:
            _check_text(item)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _integer(text: str) -> int | float:
    if len(text) <= 17 and abs(value := int(text)) <= MAX_SAFE_INT:
        return value
    # RFC 8785 writes a large double, such as 1e18, without an exponent: it is read as the double
    # that it was, and refused where it is not exactly one.
    number = float(text) if len(text) <= 40 else math.inf
    if not math.isfinite(number) or rfc8785.dumps(number) != text.encode():
        raise CanonicalError("an integer is beyond 2^53 - 1", got=text[:40])
    return number


def _float(text: str) -> float:
    value = float(text)
    if len(text) > 40 or not math.isfinite(value):
        raise CanonicalError("a number cannot be kept exact", got=text[:40])
    return value


def _constant(text: str) -> NoReturn:
    raise CanonicalError("the document holds a constant that JSON does not have", got=text)


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)
