"""A CPU's report: every part of the way from the attestation key to AMD is checked, each by itself.

The reports of a real machine stand in tests/test_vectors.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from aicert import canonical, sev, verify
from aicert.assurance import Assurance
from aicert.certificate import Certificate, CpuReport
from aicert.errors import Error
from aicert.trust import TrustStore
from tests.support import snp
from tests.support.forger import FINISHED, STARTED, Forger
from tests.support.snp import Amd

AT = (STARTED, FINISHED)


@pytest.fixture(scope="module")
def amd() -> Amd:
    return Amd()


@pytest.fixture(scope="module")
def key() -> Any:
    return rsa.generate_private_key(65537, 2048).public_key()


@pytest.fixture(autouse=True)
def _pinned(amd: Amd, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for fingerprint, processor in amd.pins().items():
        monkeypatch.setitem(sev.ROOTS, fingerprint, processor)
    yield


def check(evidence: CpuReport, key: Any, at: Any = AT) -> sev.Confidential:
    return sev.check(evidence.report, evidence.runtime_data, evidence.chain, key=key, at=at)


def refused(evidence: CpuReport, key: Any, error: type[Error], at: Any = AT) -> None:
    with pytest.raises(error) as caught:
        check(evidence, key, at)
    assert type(caught.value) is error


def test_a_report_that_leads_from_the_key_to_amd_is_accepted(amd: Amd, key: Any) -> None:
    found = check(amd.evidence(key), key)
    assert found == sev.Confidential(
        processor="Milan",
        measurement="6a" * 48,
        id_key_digest=snp.SIGNER.hex(),
        firmware_known=True,
        tcb=snp.TCB.hex(),
    )


def test_no_bit_of_the_report_can_be_flipped(amd: Amd, key: Any) -> None:
    evidence = amd.evidence(key)
    for place in range(sev.REPORT_BYTES):
        for bit in (1, 0x80):
            report = bytearray(evidence.report)
            report[place] ^= bit
            with pytest.raises(sev.SevError):
                check(replace(evidence, report=bytes(report)), key)


def test_no_byte_of_the_document_can_be_changed(amd: Amd, key: Any) -> None:
    evidence = amd.evidence(key)
    for place in range(len(evidence.runtime_data)):
        data = bytearray(evidence.runtime_data)
        data[place] ^= 1
        refused(replace(evidence, runtime_data=bytes(data)), key, sev.SevRuntimeError)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"policy": 0x3001F | 1 << 19}, sev.SevPolicyError),
        ({"policy": 0x3001F | 1 << 18}, sev.SevPolicyError),
        ({"vmpl": 1}, sev.SevPolicyError),
        ({"flags": 1 << 1}, sev.SevReportError),
        ({"flags": 1 << 2}, sev.SevReportError),
        ({"version": 1}, sev.SevReportError),
        ({"version": 6}, sev.SevReportError),
        ({"algorithm": 2}, sev.SevReportError),
        ({"tail": b"\x01" + bytes(31)}, sev.SevRuntimeError),
        ({"tcb": bytes([3]) + snp.TCB[1:]}, sev.SevChipError),
        ({"tcb": snp.TCB[:2] + b"\x01" + snp.TCB[3:]}, sev.SevChipError),
        ({"tcb": snp.TCB[:7] + b"\xda"}, sev.SevChipError),
        ({"chip": bytes(64)}, sev.SevChipError),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_chip_itself_signed_is_held_to_what_it_says(
    amd: Amd, key: Any, change: dict[str, Any], error: type[Error]
) -> None:
    refused(amd.evidence(key, **change), key, error)


def test_an_author_key_may_have_been_used(amd: Amd, key: Any) -> None:
    assert check(amd.evidence(key, flags=1), key).processor == "Milan"


def test_firmware_of_somebody_else_is_told_from_microsofts(amd: Amd, key: Any) -> None:
    assert not check(amd.evidence(key, id_key_digest=b"\x01" * 48), key).firmware_known


def test_a_report_for_another_key_is_refused(amd: Amd, key: Any) -> None:
    other = rsa.generate_private_key(65537, 2048).public_key()
    refused(amd.evidence(other), key, sev.SevKeyError)
    numbers = key.public_numbers()
    third = rsa.RSAPublicNumbers(3, numbers.n).public_key()
    refused(amd.evidence(key), third, sev.SevKeyError)
    elliptic: Any = Forger("ecc").key.public_key()
    refused(amd.evidence(key), elliptic, sev.SevKeyError)


@pytest.mark.parametrize(
    "make",
    [
        lambda jwk: b"",
        lambda jwk: b"{}",
        lambda jwk: b'{"keys":[]}',
        lambda jwk: b'{"keys":{}}',
        lambda jwk: b'{"keys":[1]}',
        lambda jwk: canonical.dumps({"keys": [jwk, jwk]}),
        lambda jwk: canonical.dumps({"keys": [{**jwk, "kid": "HCLEkPub"}]}),
        lambda jwk: canonical.dumps({"keys": [{**jwk, "kty": "EC"}]}),
        lambda jwk: canonical.dumps({"keys": [{**jwk, "n": 5}]}),
        lambda jwk: canonical.dumps({"keys": [{**jwk, "n": jwk["n"] + "="}]}),
        lambda jwk: canonical.dumps({"keys": [{**jwk, "n": "*" * 20}]}),
        lambda jwk: canonical.dumps({"keys": [{**jwk, "n": "A" * 5000}]}),
        lambda jwk: b'{"keys":[],"keys":[' + canonical.dumps(jwk) + b"]}",
        lambda jwk: b"[" * 2000,
    ],
)
def test_a_document_that_names_no_one_key_is_refused(amd: Amd, key: Any, make: Any) -> None:
    jwk = canonical.loads(snp.document(key), max_bytes=1 << 16)["keys"][0]
    refused(amd.evidence(key, runtime=make(jwk)), key, sev.SevRuntimeError)


def test_amds_chain_must_be_whole_in_order_and_end_in_a_pinned_root(amd: Amd, key: Any) -> None:
    evidence = amd.evidence(key)
    vcek, ask, ark = evidence.chain
    other = Amd(vcek_key=amd.vcek_key)
    for chain in (
        (),
        (vcek,),
        (vcek, ask),
        (vcek, ark, ask),
        (ask, vcek, ark),
        (vcek, ark, ark),
        (vcek, ask, ark, ark),
        (vcek, ask, ark + b"\0"),
        (vcek + b"\0", ask, ark),
        (b"", b"", b""),
        other.chain(),
        (other.chain()[0], ask, ark),
        (vcek, other.chain()[1], ark),
    ):
        refused(replace(evidence, chain=chain), key, sev.SevChainError)
    for time in (STARTED - timedelta(days=400), STARTED + timedelta(days=4000)):
        refused(evidence, key, sev.SevChainError, at=[time])


def test_a_report_that_another_chip_signed_is_refused(amd: Amd, key: Any) -> None:
    other = Amd(ark_key=amd.ark_key, ask_key=amd.ask_key)
    evidence = replace(amd.evidence(key), chain=(other.chain()[0], *amd.chain()[1:]))
    refused(evidence, key, sev.SevSignatureError)
    forged = replace(amd.evidence(key), report=other.evidence(key).report)
    refused(forged, key, sev.SevSignatureError)


@pytest.mark.parametrize(
    "change",
    [
        {"product": b"\x16\x08Genoa-B0"},
        {"product": b"\x16\x05Genoa"},
        {"product": b"\x16\x06MilanX"},
        {"product": b"\x0c\x05Milan"},
        {"product": b"\x0c\x08Milan-B0"},
        {"product": b""},
        {"chip": b"\x04\x40" + snp.CHIP},
        {"tcb": (4, 0, 0, 0, 0, 0, 0x18, 0xDB + 256)},
        {"tcb": (-4, 0, 0, 0, 0, 0, 0x18, 0xDB)},
    ],
)
def test_a_chips_certificate_that_says_something_else_is_refused(
    key: Any, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Amd(**change)
    for fingerprint, processor in other.pins().items():
        monkeypatch.setitem(sev.ROOTS, fingerprint, processor)
    refused(other.evidence(key), key, sev.SevChipError)


@pytest.mark.parametrize("product", [b"\x16\x08Genoa-B1", b"\x16\x05Genoa"])
def test_a_chips_certificate_names_its_kind_with_or_without_the_stepping(
    key: Any, product: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Amd(processor="Genoa", product=product)
    for fingerprint, processor in other.pins().items():
        monkeypatch.setitem(sev.ROOTS, fingerprint, processor)
    assert check(other.evidence(key), key).processor == "Genoa"


def test_numbers_that_are_no_der_are_refused() -> None:
    assert sev._small_integer(b"\x02\x02\x00\xdb") == 0xDB
    for der in (b"", b"\x02\x00", b"\x02\x02\x00\x04", b"\x02\x01\x84", b"\x04\x01\x04",
                b"\x02\x02\x04", b"\x02\x01\x04\x00", b"\x02\x02\x01\x00"):  # fmt: skip
        with pytest.raises(sev.SevChipError):
            sev._small_integer(der)


# -- in a certificate ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forger() -> Forger:
    return Forger("rsa")


def trust(forger: Forger, worth: Any, tmp: Any) -> TrustStore:
    (tmp / "root.pem").write_bytes(forger.authority.root_pem)
    return TrustStore.builtin().with_roots(tmp / "root.pem", worth)


def test_a_certificate_carries_the_report_and_says_what_it_shows(
    amd: Amd, forger: Forger, tmp_path: Any
) -> None:
    plain = forger.certificate()
    certificate = snp.with_report(plain, amd.evidence(forger.key.public_key()))
    data = certificate.encode()
    assert Certificate.parse(data) == certificate
    assert b"cpuReport" not in plain.encode()
    verdict = verify.verify(data, trust=trust(forger, "hardware", tmp_path))
    # The boot was not measured: a report alone does not make it confidential.
    assert verdict.assurance is Assurance.HARDWARE
    assert verdict.confidential is not None and verdict.confidential.processor == "Milan"
    assert any("SEV-SNP" in sentence for sentence in verdict.proved)
    assert any("version is not judged" in sentence for sentence in verdict.not_proved)
    shown = verify.to_json(verdict)["confidential"]
    assert shown["measurement"] == "6a" * 48 and shown["firmwareKnown"] is True
    assert verify.to_json(verify.verify(plain.encode(), trust=trust(forger, "hardware", tmp_path)))[
        "confidential"
    ] is None  # fmt: skip


def test_a_report_of_another_machine_spoils_the_certificate(
    amd: Amd, forger: Forger, key: Any, tmp_path: Any
) -> None:
    data = snp.with_report(forger.certificate(), amd.evidence(key)).encode()
    with pytest.raises(sev.SevKeyError):
        verify.verify(data, trust=trust(forger, "hardware", tmp_path))


@pytest.mark.parametrize(
    ("worth", "measured", "known", "expected"),
    [
        ("hardware", True, True, Assurance.CONFIDENTIAL),
        ("hardware", True, False, Assurance.MEASURED),
        ("hardware", False, True, Assurance.HARDWARE),
        ("simulated", True, True, Assurance.SIMULATED),
    ],
)
def test_confidential_takes_a_real_tpm_a_measured_boot_and_known_firmware(
    worth: str, measured: bool, known: bool, expected: Assurance
) -> None:
    class Fake:
        pass

    chain, boot, confidential = Fake(), Fake(), Fake()
    chain.pin = Fake()  # type: ignore[attr-defined]
    chain.pin.assurance = worth  # type: ignore[attr-defined]
    boot.measured = measured  # type: ignore[attr-defined]
    confidential.firmware_known = known  # type: ignore[attr-defined]
    assess: Any = verify._assess
    assert assess(chain, boot, confidential) is expected
    if measured and worth == "hardware":
        assert assess(chain, boot, None) is Assurance.MEASURED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"type": "azure-tdx"}, "certificate.format"),
        ({"report": ""}, "sev.report"),
        ({"report": "AAAA"}, "sev.report"),
        ({"runtimeData": ""}, "sev.runtime-data"),
        ({"certificateChain": []}, "sev.chain"),
        ({"extra": 1}, "certificate.format"),
        ({"report": None}, "certificate.format"),
        (None, "certificate.format"),
    ],
)
def test_a_report_of_another_form_is_refused(
    amd: Amd, forger: Forger, change: Any, code: str, tmp_path: Any
) -> None:
    value = snp.with_report(forger.certificate(), amd.evidence(forger.key.public_key())).to_json()
    report = value["evidence"]["cpuReport"]
    value["evidence"]["cpuReport"] = None if change is None else {**report, **change}
    with pytest.raises(Error) as caught:
        verify.verify(canonical.dumps(value), trust=trust(forger, "hardware", tmp_path))
    assert caught.value.code == code


def test_the_fingerprints_and_digests_have_their_form() -> None:
    assert all(len(bytes.fromhex(name)) == 32 for name in sev.ROOTS)
    assert all(len(bytes.fromhex(name)) == 48 for name in sev.FIRMWARE_SIGNERS)
