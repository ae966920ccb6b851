"""The TPM's structures: what a strict parser takes, and that nothing breaks it."""

import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicert import bootlog, tpm2, x509
from aicert.errors import Error
from aicert.trust import TrustStore
from tests.support import forger
from tests.support.forger import Forger

ECC, RSA = Forger("ecc"), Forger("rsa")
VALUES = {pcr: bytes([pcr]) * 32 for pcr in range(24)}
EXTRA = b"\x05" * 32


@pytest.mark.parametrize("made", [ECC, RSA], ids=["ecc", "rsa"])
def test_a_quote_says_what_was_put_into_it(made: Forger) -> None:
    attest = made.attest(EXTRA, VALUES, clock=7, reset_count=8, restart_count=9)
    quote = made.quote(attest, VALUES)
    parsed = tpm2.check_quote(quote.message, quote.signature, tpm2.parse_public(made.public))
    assert parsed.extra_data == EXTRA
    assert parsed.clock == tpm2.ClockInfo(7, 8, 9, True)
    assert parsed.require_sha256_selection() == frozenset(range(16))
    parsed.check_pcrs(quote.pcrs)


@pytest.mark.parametrize("made", [ECC, RSA], ids=["ecc", "rsa"])
def test_no_bit_of_a_quote_or_its_signature_can_be_flipped(made: Forger) -> None:
    quote = made.quote(made.attest(EXTRA, VALUES), VALUES)
    public = tpm2.parse_public(made.public)
    for part in ("message", "signature"):
        data = getattr(quote, part)
        for position in range(len(data) * 8):
            mutant = bytearray(data)
            mutant[position // 8] ^= 1 << position % 8
            message = bytes(mutant) if part == "message" else quote.message
            signature = bytes(mutant) if part == "signature" else quote.signature
            with pytest.raises(Error):
                tpm2.check_quote(message, signature, public)


@pytest.mark.parametrize("made", [ECC, RSA], ids=["ecc", "rsa"])
def test_no_structure_can_be_cut_or_extended(made: Forger) -> None:
    quote = made.quote(made.attest(EXTRA, VALUES), VALUES)
    for parse, data in (
        (tpm2.parse_attest, quote.message),
        (tpm2.parse_signature, quote.signature),
        (tpm2.parse_public, made.public),
    ):
        for end in range(len(data)):
            with pytest.raises(Error):
                parse(data[:end])
        with pytest.raises(tpm2.TrailingBytesError):
            parse(data + b"\0")


def test_the_name_is_the_hash_of_the_public_area() -> None:
    assert tpm2.parse_public(ECC.public).name == ECC.name


def test_a_signature_becomes_what_other_tools_read() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    signature = tpm2.parse_signature(forger.sign_tpm(ECC.key, b"data"))
    assert isinstance(ECC.key, ec.EllipticCurvePrivateKey)
    ECC.key.public_key().verify(signature.encoded, b"data", ec.ECDSA(hashes.SHA256()))
    assert isinstance(RSA.key, rsa.RSAPrivateKey)


def test_a_key_that_names_its_scheme_verifies_no_other() -> None:
    public = tpm2.parse_public(RSA.public)  # RSASSA with SHA-256
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    assert isinstance(RSA.key, rsa.RSAPrivateKey)
    pss = RSA.key.sign(b"x", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    signature = struct.pack(">HHH", tpm2.ALG_RSAPSS, tpm2.ALG_SHA256, len(pss)) + pss
    assert not tpm2.parse_signature(signature).verify(public, b"x")


PARSERS: list[Callable[[bytes], Any]] = [
    tpm2.parse_attest,
    tpm2.parse_signature,
    tpm2.parse_public,
    tpm2.unwrap_public,
    bootlog.parse,
    lambda data: x509.verify_chain(
        [data], TrustStore.builtin(), at=[forger.STARTED], key=tpm2.parse_public(ECC.public).key
    ),
]
SEEDS = [
    ECC.quote(ECC.attest(EXTRA, VALUES), VALUES).message,
    forger.sign_tpm(RSA.key, b"x"),
    ECC.public,
    RSA.public,
    ECC.chain[0],
]


@pytest.mark.parametrize("parser", range(len(PARSERS)))
@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=600))
def test_random_bytes_never_crash_a_parser(parser: int, data: bytes) -> None:
    start = time.process_time()  # the machine may do other things meanwhile
    try:
        PARSERS[parser](data)
    except Error:
        pass
    assert time.process_time() - start < 1


@pytest.mark.parametrize("parser", range(len(PARSERS)))
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_structures_never_crash_a_parser(parser: int, data: st.DataObject) -> None:
    mutant = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(mutant) - 1))
        mutant[position] = data.draw(st.integers(0, 255))
    try:
        PARSERS[parser](bytes(mutant))
    except Error:
        pass
