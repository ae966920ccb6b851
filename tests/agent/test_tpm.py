"""The TPM: a real software TPM, and other programs' view of it."""

import dataclasses
import hashlib
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tpm2_pytss import (
    ESYS_TR,
    TPM2_SU,
    TPM2B_PUBLIC,
    TPMA_NV,
    TPMS_ATTEST,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
)

from aicert import tpm2, verify
from aicert.agent import tpm_errors as errors
from aicert.agent.credential import make_credential
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Ak, Algorithm, EkKind, Tpm
from tests.support.nv import define_nv, make_persistent, make_primary
from tests.support.tpm import Factory, Tap, relay, run_tool

ALL = range(16)
AK_ATTRIBUTES = {
    "fixedtpm", "fixedparent", "sensitivedataorigin", "userwithauth", "noda", "restricted", "sign",
}  # fmt: skip


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("tpms"))


@pytest.fixture
def swtpm(factory: Factory) -> Iterator[Swtpm]:
    with Swtpm(factory.make()) as running:
        yield running


@pytest.fixture
def tpm(swtpm: Swtpm) -> Iterator[Tpm]:
    with Tpm(swtpm.tcti) as connected:
        yield connected


@pytest.fixture
def ak(tpm: Tpm) -> Ak:
    return tpm.create_ak()


def handles(swtpm: Swtpm, kind: str) -> list[str]:
    """What tpm2-tools find in the TPM."""
    with relay(swtpm) as tcti:
        return run_tool("tpm2_getcap", "-T", tcti, f"handles-{kind}").replace("- ", "").split()


def esapi(tpm: Tpm) -> Any:
    """The library's own context: to bring the TPM into a state that `Tpm` itself never makes."""
    return tpm._esapi


# -- endorsement keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), [("rsa2048", 2048), ("ecc384", 384)])
def test_the_ek_is_the_one_in_its_certificate(tpm: Tpm, kind: EkKind, size: int) -> None:
    der = tpm.ek_certificate(kind)
    assert der is not None
    certified = x509.load_der_x509_certificate(der).public_key()
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    made = tpm2.parse_public(tpm.ek_public(kind)).key
    assert certified.public_bytes(*form) == made.public_bytes(*form)
    assert made.key_size == size


def test_an_ek_without_a_certificate_can_be_made_too(tpm: Tpm) -> None:
    assert tpm.ek_certificate("ecc256") is None
    assert tpm2.parse_public(tpm.ek_public("ecc256")).key.key_size == 256


def test_padding_after_the_ek_certificate_is_cut(tpm: Tpm, monkeypatch: Any) -> None:
    der = tpm.ek_certificate("rsa2048")
    assert der is not None
    monkeypatch.setattr(tpm, "read_nv", lambda index: der + b"\xff" * 40)
    assert tpm.ek_certificate("rsa2048") == der


def test_a_tpm_without_certificates_makes_no_ak_unless_an_ek_is_named(tmp_path: Path) -> None:
    run_tool("swtpm_setup", "--tpm2", "--tpmstate", str(tmp_path))
    with Swtpm(tmp_path) as swtpm, Tpm(swtpm.tcti) as tpm:
        with pytest.raises(errors.NoEkCertificateError) as caught:
            tpm.create_ak()
        assert caught.value.code == "tpm.no-ek-certificate"
        assert "0x01c00002" in caught.value.diagnostics()
        assert tpm.create_ak(ek="ecc384").ek == "ecc384"


# -- attestation keys ------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "ek"), [("ecc", "ecc384"), ("rsa", "rsa2048")])
def test_the_ak_is_restricted_and_cannot_leave_its_tpm(
    tpm: Tpm, algorithm: Algorithm, ek: str
) -> None:
    ak = tpm.create_ak(algorithm)
    assert ak.ek == ek
    tpm2.parse_public(ak.public).require_ak()
    public, _ = TPMT_PUBLIC.unmarshal(ak.public)
    assert set(str(public.objectAttributes).split("|")) == AK_ATTRIBUTES
    assert ak.name == bytes(TPM2B_PUBLIC(public).get_name())


@pytest.mark.parametrize("kind", ["ecc256", "ecc384", "rsa2048"])
@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_the_ak_is_a_child_of_the_ek(tpm: Tpm, algorithm: Algorithm, kind: EkKind) -> None:
    ak = tpm.create_ak(algorithm, ek=kind)
    parent = tpm2.parse_public(tpm.ek_public(kind)).name
    # Qualified names: a hash over the way down from the hierarchy (Part 1, 16.5), in the nameAlg
    # of each key.
    new: Any = {0x000B: hashlib.sha256, 0x000C: hashlib.sha384}
    algorithm_id = int.from_bytes(parent[:2], "big")
    qualified = parent[:2] + new[algorithm_id](bytes.fromhex("4000000b") + parent).digest()
    expected = ak.name[:2] + hashlib.sha256(qualified + ak.name).digest()
    quote = tpm.quote(ak, b"", [0])
    assert tpm2.parse_attest(quote.message).qualified_signer == expected


def test_every_ak_is_another_key(tpm: Tpm) -> None:
    assert tpm.create_ak().name != tpm.create_ak().name


def test_a_persistent_ak_and_its_certificate_can_be_used(tpm: Tpm, swtpm: Swtpm) -> None:
    """As on Azure: a key at 0x81000003, its certificate in NV 0x01C101D0."""
    made = make_persistent(tpm, 0x81000003)
    define_nv(tpm, 0x01C101D0, b"certificate" * 150)
    swtpm.power_cycle()
    with Tpm(swtpm.tcti) as later:
        ak = later.open_ak(0x81000003)
        assert (ak.public, ak.name) == (made.public, made.name)
        later.quote(ak, b"nonce", ALL)
        assert later.read_nv(0x01C101D0) == b"certificate" * 150
        secret = b"s" * 32
        challenge = make_credential(later.ek_public(ak.ek), ak.name, secret)
        assert later.activate(ak, *challenge) == secret


def test_a_persistent_key_that_is_no_ak_is_refused(tpm: Tpm) -> None:
    with pytest.raises(tpm2.AkError):  # the persistent EK that swtpm_setup leaves
        tpm.open_ak(0x81010001)
    for handle in (0x81000003, 0x80000000):
        with pytest.raises(errors.UnfitKeyError):
            tpm.open_ak(handle)


# -- credentials -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ecc256", "ecc384", "rsa2048"])
def test_the_tpm_answers_a_challenge_for_its_own_key(tpm: Tpm, kind: EkKind) -> None:
    ak = tpm.create_ak(ek=kind)
    for secret in (b"", b"s", b"s" * 16, b"s" * 32):
        challenge = make_credential(tpm.ek_public(kind), ak.name, secret)
        assert tpm.activate(ak, *challenge) == secret


@pytest.mark.parametrize("kind", ["ecc256", "ecc384", "rsa2048"])
def test_a_challenge_for_another_ak_is_refused(tpm: Tpm, kind: EkKind) -> None:
    ak, other = tpm.create_ak(ek=kind), tpm.create_ak(ek=kind)
    challenge = make_credential(tpm.ek_public(kind), other.name, b"s" * 32)
    with pytest.raises(errors.CredentialError) as caught:
        tpm.activate(ak, *challenge)
    assert caught.value.code == "tpm.credential"
    assert "TPM2_ActivateCredential with TPM_RC_INTEGRITY" in caught.value.message
    assert "0x1df, parameter 1" in str(caught.value.got)


@pytest.mark.parametrize("place", [0, 1, 2, 10, 60, -1])
def test_a_damaged_challenge_is_refused(tpm: Tpm, ak: Ak, place: int) -> None:
    blob, secret = make_credential(tpm.ek_public(ak.ek), ak.name, b"s" * 32)
    damaged = bytearray(blob)
    damaged[place] ^= 1
    with pytest.raises(errors.TpmError):
        tpm.activate(ak, bytes(damaged), secret)
    for wrong in (b"", b"\0", blob + b"\0", blob[:-1], b"\xff\xff" + b"x" * 0xFFFF):
        with pytest.raises(errors.CredentialError):
            tpm.activate(ak, wrong, secret)
        with pytest.raises(errors.CredentialError):
            tpm.activate(ak, blob, wrong)
    assert tpm.activate(ak, blob, secret) == b"s" * 32


# -- PCRs ------------------------------------------------------------------------------------------


def test_extend_is_a_hash_over_the_old_value_and_the_digest(tpm: Tpm) -> None:
    before = tpm.read_pcrs(range(24))
    digest = hashlib.sha256(b"event").digest()
    tpm.extend(14, digest)
    after = tpm.read_pcrs(range(24))
    assert after[14] == hashlib.sha256(before[14] + digest).digest()
    assert {**after, 14: before[14]} == before


def test_tpm2_tools_read_the_same_pcrs(tpm: Tpm, swtpm: Swtpm, tmp_path: Path) -> None:
    for pcr in ALL:
        tpm.extend(pcr, bytes([pcr]) * 32)
    with relay(swtpm) as tcti:
        selection = "sha256:" + ",".join(map(str, ALL))
        run_tool("tpm2_pcrread", "-T", tcti, selection, "-o", "pcrs", cwd=tmp_path)
    assert (tmp_path / "pcrs").read_bytes() == b"".join(tpm.read_pcrs(ALL).values())


@pytest.mark.parametrize("pcr", [-1, 16, 17, 22, 23, 24])
def test_a_pcr_that_can_be_reset_is_never_extended(tpm: Tpm, pcr: int) -> None:
    before = tpm.read_pcrs(range(24))
    with pytest.raises(errors.PcrError):
        tpm.extend(pcr, b"d" * 32)
    assert tpm.read_pcrs(range(24)) == before


@pytest.mark.parametrize("size", [0, 20, 31, 33, 48])
def test_a_digest_of_another_size_is_refused(tpm: Tpm, size: int) -> None:
    with pytest.raises(errors.PcrError):
        tpm.extend(14, b"d" * size)
    assert tpm.read_pcrs([14]) == {14: bytes(32)}


def test_an_inactive_sha256_bank_is_refused(factory: Factory) -> None:
    state = factory.make()
    command = ("swtpm_setup", "--tpm2", "--tpmstate", str(state), "--reconfigure")
    run_tool(*command, "--pcr-banks", "sha384")
    with Swtpm(state) as swtpm, Tpm(swtpm.tcti) as tpm:
        ak = tpm.create_ak()
        for use in (
            lambda: tpm.extend(14, b"d" * 32),
            lambda: tpm.read_pcrs([14]),
            lambda: tpm.quote(ak, b"", [14]),
        ):
            with pytest.raises(errors.BankInactiveError) as caught:
                use()
            assert caught.value.got == "sha384"


def test_pcrs_are_read_as_they_were_at_one_time(swtpm: Swtpm) -> None:
    tap = Tap(swtpm.exchange, "PCR_Read")
    with Tpm(tap) as tpm, Tpm(swtpm.tcti) as other:

        def extend_between_reads() -> None:
            tap.before = lambda: other.extend(0, b"x" * 32)

        tap.before = extend_between_reads  # before the first read: arm the second
        values = tpm.read_pcrs(ALL)
        assert tap.seen == 4  # two reads, and both again
        assert values == other.read_pcrs(ALL)
        assert values[0] != bytes(32)


# -- quotes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
@pytest.mark.parametrize("pcrs", [[0], [8, 14, 15], [*ALL], [*range(24)], [14, 8, 14]])
def test_tpm2_checkquote_accepts_the_quote(
    tpm: Tpm, tmp_path: Path, algorithm: Algorithm, pcrs: list[int]
) -> None:
    ak = tpm.create_ak(algorithm)
    tpm.extend(14, b"d" * 32)
    quote = tpm.quote(ak, b"nonce" * 4, pcrs)
    check_with_tools(ak, quote, b"nonce" * 4, tmp_path)
    changed = dataclasses.replace(quote, pcrs={**quote.pcrs, min(pcrs): b"x" * 32})
    for wrong, extra_data in ((quote, b"other"), (changed, b"nonce" * 4)):
        with pytest.raises(AssertionError):  # the tool can say no
            check_with_tools(ak, wrong, extra_data, tmp_path)


def check_with_tools(ak: Ak, quote: Any, extra_data: bytes, directory: Path) -> None:
    """Have tpm2-tools verify a quote, with the key as PEM."""
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    files = {
        "ak.pem": tpm2.parse_public(ak.public).key.public_bytes(*form),
        "message": quote.message,
        "signature": quote.signature,
        "values": serialized(quote.pcrs),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    run_tool(
        "tpm2_checkquote", "-u", "ak.pem", "-m", "message", "-s", "signature", "-g", "sha256",
        "-f", "values", "-q", extra_data.hex(),
        cwd=directory,
    )  # fmt: skip


def serialized(pcrs: Mapping[int, bytes]) -> bytes:
    """PCR values as tpm2_quote writes them: C structures, with eight digests in each list."""
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    selection = struct.pack("<IHB", 1, 0x000B, 3) + bits
    values = list(pcrs.values())
    batches = [values[start : start + 8] for start in range(0, len(values), 8)]
    lists = b"".join(
        (struct.pack("<I", len(batch)) + b"".join(struct.pack("<H64s", 32, v) for v in batch))
        .ljust(4 + 8 * 66, b"\0")
        for batch in batches
    )  # fmt: skip
    return selection.ljust(4 + 16 * 8, b"\0") + struct.pack("<I", len(batches)) + lists


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_tpm2_pytss_reads_in_the_quote_what_was_asked_for(tpm: Tpm, algorithm: Algorithm) -> None:
    ak = tpm.create_ak(algorithm)
    quote = tpm.quote(ak, b"nonce", [8, 14])
    attest, used = TPMS_ATTEST.unmarshal(quote.message)
    assert used == len(quote.message)
    assert attest.magic == 0xFF544347
    assert bytes(attest.extraData) == b"nonce"
    selection = attest.attested.quote.pcrSelect
    assert len(selection) == 1
    assert bytes(selection[0].pcrSelect)[:3] == bytes([0, 0x41, 0])
    digest = hashlib.sha256(quote.pcrs[8] + quote.pcrs[14]).digest()
    assert bytes(attest.attested.quote.pcrDigest) == digest
    assert attest.clockInfo.resetCount == tpm.clock_info().reset_count
    signature, _ = TPMT_SIGNATURE.unmarshal(quote.signature)
    key, _ = TPMT_PUBLIC.unmarshal(ak.public)
    signature.verify_signature(TPM2B_PUBLIC(key), quote.message)


@pytest.mark.parametrize("size", [0, 1, 32, 64])
def test_extra_data_of_up_to_64_bytes_is_quoted(tpm: Tpm, ak: Ak, size: int) -> None:
    quote = tpm.quote(ak, b"n" * size, [0])
    assert tpm2.parse_attest(quote.message).extra_data == b"n" * size


def test_more_extra_data_or_no_pcr_is_refused(tpm: Tpm, ak: Ak) -> None:
    for extra_data, pcrs in ((b"n" * 65, [0]), (b"n", [])):
        with pytest.raises(errors.QuoteError):
            tpm.quote(ak, extra_data, pcrs)


def test_a_quote_is_taken_again_if_a_pcr_changed_meanwhile(swtpm: Swtpm) -> None:
    tap = Tap(swtpm.exchange, "PCR_Read")
    with Tpm(tap) as tpm, Tpm(swtpm.tcti) as other:
        ak = tpm.create_ak()
        tap.before = lambda: other.extend(3, b"x" * 32)
        quote = tpm.quote(ak, b"nonce", ALL)
        assert tap.seen == 4
        assert quote.pcrs == other.read_pcrs(ALL)
        tpm2.parse_attest(quote.message).check_pcrs(quote.pcrs)


def test_a_quote_gives_up_if_pcrs_never_stand_still(swtpm: Swtpm) -> None:
    tap = Tap(swtpm.exchange, "PCR_Read")
    with Tpm(tap) as tpm, Tpm(swtpm.tcti) as other:
        ak = tpm.create_ak()

        def extend() -> None:
            other.extend(3, b"x" * 32)
            tap.before = extend

        tap.before = extend
        with pytest.raises(errors.BusyError):
            tpm.quote(ak, b"nonce", [3])


def test_a_quote_that_was_altered_on_its_way_is_refused(swtpm: Swtpm) -> None:
    tap = Tap(swtpm.exchange, "Quote")
    with Tpm(tap) as tpm:
        ak = tpm.create_ak()

        def alter(response: bytes) -> bytes:
            return response.replace(b"the nonce", b"a nonce..")

        tap.after = alter
        with pytest.raises(tpm2.QuoteSignatureError):
            tpm.quote(ak, b"the nonce", ALL)


def test_an_older_quote_is_refused(swtpm: Swtpm) -> None:
    tap = Tap(swtpm.exchange, "Quote")
    seen: list[bytes] = []
    with Tpm(tap) as tpm:
        ak = tpm.create_ak()
        tap.after = lambda response: seen.append(response) or response  # type: ignore[func-returns-value]
        tpm.quote(ak, b"old", ALL)
        tap.after = lambda response: seen[0]
        with pytest.raises(errors.QuoteError):
            tpm.quote(ak, b"new", ALL)
        tap.after = lambda response: seen[0]
        with pytest.raises(errors.QuoteError):
            tpm.quote(ak, b"old", [1, 2])


# -- signatures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_data_of_any_length_is_signed(tpm: Tpm, algorithm: Algorithm) -> None:
    ak = tpm.create_ak(algorithm)
    key = tpm2.parse_public(ak.public).key
    for size in (0, 1, 3, 4, 1023, 1024, 1025, 2048, 2049, 100_000):
        data = bytes(range(256)) * (size // 256 + 1)
        data = data[:size]
        signature = tpm2.parse_signature(tpm.sign(ak, data)).encoded
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())


def test_openssl_accepts_the_signature(tpm: Tpm, ak: Ak, tmp_path: Path) -> None:
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    data = b"a statement" * 1000
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "key").write_bytes(tpm2.parse_public(ak.public).key.public_bytes(*form))
    (tmp_path / "sig").write_bytes(tpm2.parse_signature(tpm.sign(ak, data)).encoded)
    command = ("openssl", "dgst", "-sha256", "-verify", "key", "-signature", "sig", "data")
    assert "Verified OK" in run_tool(*command, cwd=tmp_path)


@pytest.mark.parametrize("size", [4, 100, 1024, 1025, 5000])
def test_the_tpm_never_signs_what_looks_like_its_own(
    tpm: Tpm, ak: Ak, swtpm: Swtpm, size: int
) -> None:
    quote = tpm.quote(ak, b"nonce", ALL).message
    forged = quote.replace(b"nonce", b"forge").ljust(size, b"\0")[:size]
    with pytest.raises(errors.GeneratedDataError) as caught:
        tpm.sign(ak, forged)
    assert caught.value.code == "tpm.generated-data"
    assert len(handles(swtpm, "transient")) == 1


def test_another_key_that_took_the_aks_place_does_not_sign_for_it(swtpm: Swtpm) -> None:
    with Tpm(swtpm.tcti) as tpm, Tpm(swtpm.tcti) as other:
        ak = tpm.create_ak()
        swtpm.power_cycle()
        other.create_ak()  # at the handle where the first one was
        with pytest.raises(errors.KeyLostError):
            tpm.sign(ak, b"data")
        with pytest.raises(tpm2.QuoteSignatureError):
            tpm.quote(ak, b"nonce", ALL)


# -- one boot --------------------------------------------------------------------------------------


def test_a_reset_is_seen_and_the_key_is_gone(tpm: Tpm, ak: Ak, swtpm: Swtpm) -> None:
    before = tpm.clock_info()
    tpm.extend(14, b"d" * 32)
    quote = tpm2.parse_attest(tpm.quote(ak, b"", ALL).message)
    assert (quote.clock.reset_count, quote.clock.restart_count) == (before.reset_count, 0)
    swtpm.power_cycle()
    after = tpm.clock_info()
    assert (after.reset_count, after.restart_count) == (before.reset_count + 1, 0)
    assert tpm.read_pcrs([14]) == {14: bytes(32)}
    with pytest.raises(errors.KeyLostError) as caught:
        tpm.quote(ak, b"", ALL)
    assert caught.value.code == "tpm.key-lost"
    assert "TPM_RC_REFERENCE_H0" in caught.value.message


def test_a_clear_ends_the_key_and_changes_its_parent(tpm: Tpm, ak: Ak) -> None:
    """TPM2_Clear zeroes resetCount; so no key that signed before may sign after."""
    esapi(tpm).clear(ESYS_TR.LOCKOUT)
    assert tpm.clock_info().reset_count == 0
    with pytest.raises(errors.KeyLostError):
        tpm.quote(ak, b"", ALL)


def test_a_clouds_key_comes_back_after_a_clear_and_can_be_told_from_ours(
    tpm: Tpm, ak: Ak, swtpm: Swtpm
) -> None:
    """An administrator makes two boots look like one: that a verifier can only say."""
    quote = tpm2.parse_attest(tpm.quote(ak, b"", ALL).message)
    assert not tpm2.parse_public(ak.public).outlives_clear(quote.qualified_signer)
    tpm.close()
    quotes: list[tpm2.Attest] = []
    for _ in range(2):
        with Tpm(swtpm.tcti) as again:
            esapi(again).clear(ESYS_TR.LOCKOUT)
            time.sleep(0.1 * len(quotes))
            key = make_primary(again)
            public = tpm2.parse_public(key.public)
            message = again.quote(key, b"", ALL)
            quotes.append(tpm2.check_quote(message.message, message.signature, public))
            assert public.outlives_clear(quotes[-1].qualified_signer)
        swtpm.power_cycle()
    verify._check_boot(*quotes)


# -- nothing is left behind ------------------------------------------------------------------------


def test_nothing_is_left_in_the_tpm_but_the_ak(tpm: Tpm, ak: Ak, swtpm: Swtpm) -> None:
    """swtpm has room for three objects and three sessions."""
    for number in range(20):
        tpm.quote(ak, b"n%d" % number, ALL)
        tpm.sign(ak, b"x" * 3000)
        challenge = make_credential(tpm.ek_public(ak.ek), ak.name, b"s" * 32)
        assert tpm.activate(ak, *challenge) == b"s" * 32
        with pytest.raises(errors.CredentialError):
            tpm.activate(ak, challenge[0], make_credential(tpm.ek_public(ak.ek), b"", b"")[1])
    assert len(handles(swtpm, "transient")) == 1
    assert handles(swtpm, "loaded-session") == []
    assert handles(swtpm, "saved-session") == []
    tpm.close()
    assert handles(swtpm, "transient") == []


def test_a_signing_key_is_certified_signs_anything_and_is_forgotten(
    tpm: Tpm, ak: Ak, swtpm: Swtpm
) -> None:
    data = b"\xffTCG" + bytes(2000)  # what a restricted key would not sign
    with tpm.signing_key(ak) as key:
        message, signature = tpm.certify(ak, key, b"for this")
        with pytest.raises(errors.GeneratedDataError):
            tpm.sign(ak, data)
        signed = tpm2.parse_signature(tpm.sign(key, data[1:]))
    public = tpm2.parse_public(key.public)
    public.require_signing_key()
    with pytest.raises(tpm2.AttributesError):
        public.require_ak()
    with pytest.raises(tpm2.AttributesError):
        tpm2.parse_public(ak.public).require_signing_key()
    assert signed.verify(public, data[1:])
    said = tpm2.parse_certified(message)
    assert (said.name, said.extra_data) == (key.name, b"for this")
    assert tpm2.parse_signature(signature).verify(tpm2.parse_public(ak.public), message)
    assert len(handles(swtpm, "transient")) == 1


def test_a_hash_that_fails_midway_leaves_nothing(swtpm: Swtpm) -> None:
    tap = Tap(swtpm.exchange, "SequenceUpdate")
    with Tpm(tap) as tpm:
        ak = tpm.create_ak()
        tap.after = lambda response: struct.pack(">HII", 0x8001, 10, 0x101)
        with pytest.raises(errors.FailureModeError):
            tpm.sign(ak, b"x" * 3000)
        assert len(handles(swtpm, "transient")) == 1
        tpm.sign(ak, b"x" * 3000)


def test_a_full_tpm_is_reported_as_busy(tpm: Tpm) -> None:
    tpm.create_ak()
    tpm.create_ak()
    with pytest.raises(errors.BusyError) as caught:
        tpm.create_ak()
    assert "TPM_RC_OBJECT_MEMORY" in caught.value.message
    assert caught.value.advice is not None


def test_eight_threads_may_use_one_tpm(tpm: Tpm, ak: Ak, swtpm: Swtpm) -> None:
    public = tpm2.parse_public(ak.public)
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(12):
            match (thread + turn) % 4:
                case 0:
                    tpm.extend(thread, bytes([turn]) * 32)
                case 1:
                    nonce = bytes([thread, turn])
                    quote = tpm.quote(ak, nonce, ALL)
                    attest = tpm2.check_quote(quote.message, quote.signature, public)
                    assert attest.extra_data == nonce
                    attest.check_pcrs(quote.pcrs)
                case 2:
                    data = bytes([thread, turn]) * 1000
                    assert tpm2.parse_signature(tpm.sign(ak, data)).verify(public, data)
                case 3:
                    challenge = make_credential(tpm.ek_public(ak.ek), ak.name, b"%d" % thread)
                    assert tpm.activate(ak, *challenge) == b"%d" % thread

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()
    assert len(handles(swtpm, "transient")) == 1
    # Every extend arrived, and in its thread's order.
    for thread, value in tpm.read_pcrs(range(8)).items():
        expected = bytes(32)
        for turn in range(12):
            if (thread + turn) % 4 == 0:
                expected = hashlib.sha256(expected + bytes([turn]) * 32).digest()
        assert value == expected


# -- NV memory -------------------------------------------------------------------------------------


def test_nv_memory_is_read_whole_within_a_limit(tpm: Tpm) -> None:
    content = bytes(range(256)) * 8
    define_nv(tpm, 0x01C10000, content[:2000])
    define_nv(tpm, 0x01C10002, b"x", TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE)
    assert tpm.read_nv(0x01C10000) == content[:2000]
    assert tpm.read_nv(0x01C10002) == b"x"
    with pytest.raises(errors.NvError):
        tpm.read_nv(0x01C10000, max_bytes=1999)
    for missing in (0x01C10001, 0x81010001):
        with pytest.raises(errors.NvError):
            tpm.read_nv(missing)


def test_nv_memory_with_a_password_is_read_as_the_owner_and_else_as_anybody(tpm: Tpm) -> None:
    # As Azure's firmware makes them: read "by anybody", with a password that nobody knows.
    define_nv(tpm, 0x01C10004, b"of the firmware", password="secret")
    assert tpm.read_nv(0x01C10004) == b"of the firmware"
    define_nv(tpm, 0x01C10005, b"of anybody")
    esapi(tpm).hierarchy_change_auth(ESYS_TR.OWNER, "owned")
    esapi(tpm).tr_set_auth(ESYS_TR.OWNER, "")  # which the library has remembered
    try:
        assert tpm.read_nv(0x01C10005) == b"of anybody"
        with pytest.raises(errors.AuthorizationError):
            tpm.read_nv(0x01C10004)
    finally:
        esapi(tpm).tr_set_auth(ESYS_TR.OWNER, "owned")
        esapi(tpm).hierarchy_change_auth(ESYS_TR.OWNER, "")


# -- errors ----------------------------------------------------------------------------------------


def test_a_missing_device_is_named_with_advice(tmp_path: Path) -> None:
    with pytest.raises(errors.UnreachableError) as caught:
        Tpm(f"device:{tmp_path}/tpmrm0")
    assert caught.value.code == "tpm.unreachable"
    assert "does not exist" in caught.value.diagnostics()
    assert "firmware" in caught.value.diagnostics()


@pytest.mark.parametrize("tcti", ["swtpm:path=/nonexistent/socket", "nonsense", "nonsense:x"])
def test_a_tcti_that_leads_nowhere_is_refused(tcti: str) -> None:
    with pytest.raises(errors.UnreachableError):
        Tpm(tcti)


def test_the_library_writes_nothing_of_its_own() -> None:
    code = (
        "from aicert.agent.tpm import Tpm\n"
        "from aicert.agent.tpm_errors import UnreachableError\n"
        "try: Tpm('swtpm:path=/nonexistent/socket')\n"
        "except UnreachableError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_a_tpm_behind_a_socket_can_be_used(swtpm: Swtpm) -> None:
    with relay(swtpm) as tcti, Tpm(tcti) as tpm:
        tpm.quote(tpm.create_ak(), b"nonce", ALL)


def test_a_tpm_that_was_not_started_says_so(swtpm: Swtpm) -> None:
    def not_started(command: bytes) -> bytes:
        del command
        return struct.pack(">HII", 0x8001, 10, 0x100)

    with pytest.raises(errors.NotStartedError):
        Tpm(not_started)


@pytest.mark.parametrize(
    ("rc", "error", "name"),
    [
        (0x922, errors.BusyError, "RETRY"),
        (0x903, errors.BusyError, "SESSION_MEMORY"),
        (0x921, errors.LockoutError, "LOCKOUT"),
        (0x101, errors.FailureModeError, "FAILURE"),
        (0x99D, errors.PolicyError, "POLICY_FAIL"),
        (0x9A2, errors.AuthorizationError, "BAD_AUTH"),
        (0x2C4, errors.TpmError, "VALUE"),
        (0xC0922, errors.BusyError, "RETRY"),  # from a resource manager
        (0x17F, errors.TpmError, "0x17f"),
    ],
)
def test_a_response_code_becomes_an_error_of_its_own(
    swtpm: Swtpm, rc: int, error: type[Exception], name: str
) -> None:
    tap = Tap(swtpm.exchange, "PCR_Extend")
    with Tpm(tap) as tpm:
        tap.after = lambda response: struct.pack(">HII", 0x8001, 10, rc)
        if name == "RETRY":
            # The library tries again by itself, five times.
            tpm_busy = struct.pack(">HII", 0x8001, 10, rc)

            def again(response: bytes) -> bytes:
                tap.after = again
                return tpm_busy

            tap.after = again
        with pytest.raises(error) as caught:
            tpm.extend(14, b"d" * 32)
    assert type(caught.value) is error
    assert f"TPM2_PCR_Extend with TPM_RC_{name}" in str(caught.value)


def test_a_password_on_the_endorsement_hierarchy_is_named(tpm: Tpm, ak: Ak) -> None:
    challenge = make_credential(tpm.ek_public(ak.ek), ak.name, b"s")
    esapi(tpm).hierarchy_change_auth(ESYS_TR.ENDORSEMENT, "password")
    esapi(tpm).tr_set_auth(ESYS_TR.ENDORSEMENT, "")
    with pytest.raises(errors.AuthorizationError) as caught:
        tpm.activate(ak, *challenge)
    assert caught.value.code == "tpm.authorization"
    assert "endorsement" in str(caught.value.advice)


def test_a_tpm_that_vanishes_is_unreachable_from_then_on(tpm: Tpm, ak: Ak, swtpm: Swtpm) -> None:
    swtpm.stop()
    for _ in range(3):
        with pytest.raises(errors.UnreachableError):
            tpm.quote(ak, b"", ALL)
        with pytest.raises(errors.UnreachableError):
            tpm.read_pcrs([0])


def test_a_closed_connection_is_unreachable(swtpm: Swtpm) -> None:
    tpm = Tpm(swtpm.tcti)
    ak = tpm.create_ak()
    tpm.close()
    tpm.close()
    for use in (
        lambda: tpm.read_pcrs([0]),
        lambda: tpm.quote(ak, b"", ALL),
        lambda: tpm.sign(ak, b"data"),
        lambda: tpm.create_ak(),
        lambda: tpm.ek_public("rsa2048"),
    ):
        with pytest.raises(errors.UnreachableError):
            use()


def test_ecdsa_signatures_are_not_repeated(tpm: Tpm, ak: Ak) -> None:
    """Two signatures with one random number would give the key away."""
    encoded = [tpm2.parse_signature(tpm.sign(ak, b"same")).encoded for _ in range(8)]
    assert len({decode_dss_signature(signature)[0] for signature in encoded}) == 8


def test_a_restart_alone_is_seen_too(tpm: Tpm, swtpm: Swtpm) -> None:
    """Shutdown(STATE), then a boot: resumes count as restarts, or as resets; never as nothing."""
    before = tpm.clock_info()
    esapi(tpm).shutdown(TPM2_SU.STATE)
    swtpm.power_cycle()
    assert tpm.clock_info() != before
    after = tpm.clock_info()
    assert (after.reset_count, after.restart_count) != (before.reset_count, before.restart_count)
