"""Canonical JSON: one encoding for a value, and no two readings of a document."""

import json
import time
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from aicert import canonical

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-canonical.MAX_SAFE_INT, canonical.MAX_SAFE_INT)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | integers | floats | text,
    lambda children: st.lists(children, max_size=5) | st.dictionaries(text, children, max_size=5),
    max_leaves=20,
)


@given(values)
def test_every_value_has_the_bytes_that_rfc_8785_gives(value: Any) -> None:
    assert canonical.dumps(value) == rfc8785.dumps(value)


@given(values)
def test_canonical_bytes_read_back_to_the_same_bytes(value: Any) -> None:
    data = canonical.dumps(value)
    assert canonical.dumps(canonical.loads_canonical(data, max_bytes=1 << 20)) == data


@given(values)
def test_another_encoding_of_the_same_value_is_refused_as_not_canonical(value: Any) -> None:
    data = json.dumps(value, indent=1).encode()
    if data != canonical.dumps(value):
        with pytest.raises(canonical.CanonicalError):
            canonical.loads_canonical(data, max_bytes=1 << 20)


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_but_never_crash(data: bytes) -> None:
    try:
        canonical.loads(data, max_bytes=100)
    except canonical.CanonicalError:
        pass


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b'{"a":1,"a":2}', "json.duplicate-key"),
        (b'{"a":1,"\\u0061":2}', "json.duplicate-key"),
        (b"[" * 33 + b"]" * 33, "json.too-large"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "json.too-large"),
        (b" " * 1001, "json.too-large"),
        (b"[NaN]", "json.invalid"),
        (b"[-Infinity]", "json.invalid"),
        (b"[1e999]", "json.invalid"),
        (b"[9007199254740993]", "json.invalid"),
        (b"[-9007199254740993]", "json.invalid"),
        (b"[9007199254740992]", None),  # exactly a double, as RFC 8785 writes it
        (b"[" + b"1" * 400 + b"]", "json.invalid"),
        (b'["\\ud800"]', "json.invalid"),
        (b'{"\\udfff":1}', "json.invalid"),
        (b'["\xed\xa0\x80"]', "json.invalid"),
        (b"\xef\xbb\xbf{}", "json.invalid"),
        (b'{"a":1} ', None),
        (b'{"a":1}x', "json.invalid"),
        (b"{'a':1}", "json.invalid"),
        (b"", "json.invalid"),
        (b'"\x01"', "json.invalid"),
    ],
)
def test_a_document_that_two_parsers_might_read_differently_is_refused(
    document: bytes, code: str | None
) -> None:
    if code is None:
        canonical.loads(document, max_bytes=1000)
        return
    with pytest.raises(canonical.CanonicalError) as caught:
        canonical.loads(document, max_bytes=1000)
    assert caught.value.code == code


def test_brackets_in_a_string_are_not_depth() -> None:
    text = "[{" * 200 + '\\"'
    assert canonical.loads(canonical.dumps([text]), max_bytes=10_000) == [text]


@pytest.mark.parametrize("value", [float("nan"), 2**53, {1: 2}, b"x", object(), "\ud800"])
def test_a_value_without_a_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(canonical.CanonicalError):
        canonical.dumps(value)


def test_the_first_difference_is_shown_and_found_at_once() -> None:
    for got, expected, at in (
        (b"abc", b"abd", 2),
        (b"", b"a", 0),
        (b"ab", b"a", 1),
        (b"x", b"y", 0),
    ):
        assert all(f"at byte {at}:" in text for text in canonical.difference(got, expected))
    long = b"a" * (16 << 20)
    started = time.process_time()
    first, second = canonical.difference(long + b"\n", long)
    assert time.process_time() - started < 0.5
    assert first.startswith(f"at byte {len(long)}: ") and second.endswith("and no more")
