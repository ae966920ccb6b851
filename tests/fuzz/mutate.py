"""Mutators: bytes, framed parts, JSON with base64 and hex inside, and DER.

Random bytes die in the first check of a strict parser. These know just enough of each format to
keep what surrounds a change intact (lengths, canonical form, base64), so that the change itself
reaches the code behind.
"""

import base64
import json
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

from aicert import canonical
from aicert.errors import Error

MAX = 1 << 16
"""The largest mutant of a small seed, in bytes; large inputs are seeds of their own."""

Mutator = Callable[[Random, bytes], bytes]

_BYTES = (0, 1, 2, 3, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF,
          0x80000000, 0xFFFFFFFF, 0x0004, 0x000B, 0x000C, 0x0010, 0x0014, 0x0018,
          0x8018)  # fmt: skip
_CHARACTERS = ("\x00", "\n", "\x1b", "\x7f", "\\", "/", "..", "\u202e", "\u200b", "\u2028",
               "\ud800", "\U0001f600", "e\u0301", "\u00e9", "\ufb01", "K", "ß", "İ", ":", "`", "|",
               "<", "\"", "'", "%2e", "A" * 300)  # fmt: skip
_VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2**53 - 1, 2**53, -(2**53), 2**64, 10**18,
    0.5, -0.0, 1e-7, 1e21, 1.7976931348623157e308, 5e-324, "", "x", "0" * 64, "\ud800", [], {},
    [[]], [{}], {"": 0}, "9999-12-31T23:59:59Z", "0000-00-00T00:00:00Z", "2026-02-30T00:00:00Z",
    "2026-05-01T12:00:60Z", "../x", "a/../b")  # fmt: skip


def octets(random: Random, data: bytes) -> bytes:
    """Change bytes anywhere; one to four changes."""
    out = bytearray(data)
    for _ in range(1 if random.random() < 0.6 else random.randint(2, 4)):
        _change(random, out)
    return bytes(out[:MAX]) if len(data) <= MAX else bytes(out)


def _change(random: Random, out: bytearray) -> None:
    at = random.randrange(len(out) + 1)
    end = min(len(out), at + 1 + int(random.expovariate(0.1)))
    choice = random.randrange(9)
    if choice == 0 and at < len(out):
        out[at] ^= 1 << random.randrange(8)
    elif choice == 1 and at < len(out):
        out[at] = random.choice(_BYTES)
    elif choice == 2 and at < len(out):
        out[at] = (out[at] + random.choice((-1, 1))) & 0xFF
    elif choice == 3:
        out[at:at] = random.randbytes(1 + int(random.expovariate(0.2)))
    elif choice == 4:
        del out[at:end]
    elif choice == 5:
        out[at:at] = out[at:end]
    elif choice == 6:
        word = random.choice(_WORDS)
        size = random.choice((2, 4)) if word <= 0xFFFF else 4
        out[at : at + size] = word.to_bytes(size, random.choice(("big", "little")))
    elif choice == 7:
        del out[at:]
    else:
        chunk = bytes(out[at:end])
        out[at:at] = chunk * random.choice((2, 3, 16, 256))


def frame(parts: Sequence[bytes]) -> bytes:
    """Put parts together, each behind its length in three bytes."""
    return b"".join(struct.pack(">I", len(part))[1:] + part for part in parts)


def unframe(data: bytes) -> list[bytes]:
    """Take parts apart; a part that is cut is what is left."""
    parts = []
    while data:
        size = int.from_bytes(data[:3], "big")
        parts.append(data[3 : 3 + size])
        data = data[3 + size :]
    return parts


def framed(inner: Mutator) -> Mutator:
    """Change one part with `inner`; sometimes drop, double or exchange parts."""

    def mutate(random: Random, data: bytes) -> bytes:
        parts = unframe(data)
        if not parts:
            return frame([random.randbytes(8)])
        at, other = random.randrange(len(parts)), random.randrange(len(parts))
        choice = random.randrange(16)
        if choice == 0:
            del parts[at]
        elif choice == 1 and len(parts) < 12:
            parts.insert(other, parts[at])
        elif choice == 2:
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at] = inner(random, parts[at])
        return frame(parts)

    return mutate


# -- DER -------------------------------------------------------------------------------------------


def der(random: Random, data: bytes) -> bytes:
    """Change one element of DER and mend the lengths around it; or change bytes."""
    if random.random() < 0.15:
        return octets(random, data)
    try:
        tree = _parse_der(data, 0, len(data), 0)
    except ValueError:
        return octets(random, data)
    nodes: list[tuple[list[Any], int]] = []
    _collect(tree, nodes)
    if not nodes:
        return octets(random, data)
    siblings, at = random.choice(nodes)
    tag, content = siblings[at]
    choice = random.randrange(8)
    if choice == 0:
        del siblings[at]
    elif choice == 1:
        siblings.insert(at, siblings[at])
    elif choice == 2:
        other, index = random.choice(nodes)
        if index < len(other):
            siblings[at] = (other[index][0], _encode_content(other[index][1]))
    elif choice == 3:
        siblings[at] = (random.randrange(256), _encode_content(content))
    elif choice == 4:
        siblings[at] = (tag, b"")
    else:
        siblings[at] = (tag, octets(random, _encode_content(content)))
    return _encode_der(tree)


def _parse_der(data: bytes, at: int, end: int, depth: int) -> list[Any]:
    elements = []
    while at < end:
        tag, size, start = data[at], 0, at + 2
        if start > end:
            raise ValueError
        if (size := data[at + 1]) & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 3:
                raise ValueError
            size = int.from_bytes(data[start : start + count], "big")
            start += count
        if start + size > end:
            raise ValueError
        content: Any = data[start : start + size]
        if depth < 12 and (tag & 0x20 or (tag == 0x04 and size > 2)):
            try:
                content = _parse_der(data, start, start + size, depth + 1)
            except ValueError:
                pass
        elements.append((tag, content))
        at = start + size
    return elements


def _collect(elements: list[Any], nodes: list[tuple[list[Any], int]]) -> None:
    for index, (_, content) in enumerate(elements):
        nodes.append((elements, index))
        if isinstance(content, list):
            _collect(content, nodes)


def _encode_content(content: Any) -> bytes:
    return _encode_der(content) if isinstance(content, list) else bytes(content)


def _encode_der(elements: list[Any]) -> bytes:
    return b"".join(tlv(tag, _encode_content(content)) for tag, content in elements)


def tlv(tag: int, content: bytes) -> bytes:
    """One DER element."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


# -- JSON ------------------------------------------------------------------------------------------


def document(random: Random, data: bytes) -> bytes:
    """Change values of a JSON document and write it canonically again; or change bytes."""
    if random.random() < 0.1 or len(data) > 2 * MAX:
        return octets(random, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return octets(random, data)
    holder = [value]
    for _ in range(1 if random.random() < 0.7 else random.randint(2, 4)):
        _change_json(random, holder)
    if not holder:
        return b""
    try:
        return canonical.dumps(holder[0])
    except Error:
        try:
            return json.dumps(holder[0], separators=(",", ":"), sort_keys=True).encode()
        except (ValueError, RecursionError):
            return data
    except (ValueError, OverflowError):
        return data


def _places(value: Any, places: list[tuple[Any, Any]], depth: int = 0) -> None:
    if depth > 40:
        return
    if type(value) is dict:
        for key, item in value.items():
            places.append((value, key))
            _places(item, places, depth + 1)
    elif type(value) is list:
        for index, item in enumerate(value):
            places.append((value, index))
            _places(item, places, depth + 1)


def _change_json(random: Random, holder: list[Any]) -> None:
    places: list[tuple[Any, Any]] = []
    _places(holder, places)
    if not places:
        return
    parent, key = random.choice(places)
    choice = random.randrange(12)
    if choice == 0 and parent is not holder:
        del parent[key]
    elif choice == 1:
        if isinstance(parent, list):
            parent.insert(key, deepcopy(parent[key]))
        else:
            parent[random.choice((key + "_", key.upper(), "", random.choice(_CHARACTERS)))] = (
                deepcopy(parent[key])
            )
    elif choice == 2:
        # A copy: what is changed later must not be shared, or a value may come to hold itself.
        parent[key] = deepcopy(random.choice(_VALUES))
    elif choice == 3:
        other, index = random.choice(places)
        parent[key] = json.loads(json.dumps(other[index]))
    elif choice == 4:
        other, index = random.choice(places)
        if other is parent:
            parent[key], parent[index] = parent[index], parent[key]
    elif choice == 5:
        for _ in range(random.choice((1, 2, 30, 40))):
            parent[key] = [parent[key]] if random.random() < 0.5 else {"a": parent[key]}
    else:
        parent[key] = _leaf(random, parent[key])


def _leaf(random: Random, value: Any) -> Any:
    if type(value) is str:
        return _text(random, value)
    if type(value) is bool or value is None:
        return deepcopy(random.choice(_VALUES))
    if isinstance(value, int):
        third = value / 3 if abs(value) < 1 << 64 else 0.5
        return random.choice((value + 1, value - 1, -value, value * 2, 0, third))
    if isinstance(value, float):
        return random.choice((value * 1.5, -value, int(value) if abs(value) < 1e15 else 0))
    return deepcopy(random.choice(_VALUES))


def _text(random: Random, text: str) -> str:
    if len(text) >= 8 and random.random() < 0.7:
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raw = b""
        if raw and len(text) % 2 == 0 and all(c in "0123456789abcdef" for c in text):
            return octets(random, bytes.fromhex(text)).hex()
        if raw:
            change = der if raw[0] == 0x30 else octets
            if raw[0] == 0x7B:
                change = document
            return base64.b64encode(change(random, raw)).decode()
    at = random.randrange(len(text) + 1)
    choice = random.randrange(5)
    if choice == 0:
        return text[:at] + random.choice(_CHARACTERS) + text[at:]
    if choice == 1:
        return text[:at] + text[at + 1 :]
    if choice == 2:
        return text[:at]
    if choice == 3:
        return text[:at] + chr(random.choice((random.randrange(128), random.randrange(0xD800)))) + (
            text[at + 1 :]
        )  # fmt: skip
    return text.swapcase() if random.random() < 0.5 else text + text[at:]


def text(random: Random, data: bytes) -> bytes:
    """Change UTF-8 text; lone surrogates survive."""
    changed = data.decode("utf-8", "surrogatepass" if b"\xed" in data else "replace")
    for _ in range(random.randint(1, 3)):
        changed = _text(random, changed)
    return changed.encode("utf-8", "surrogatepass")[:MAX]
