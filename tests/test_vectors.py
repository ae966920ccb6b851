"""Evidence that nobody here made: real clouds, a real TPM, real and broken firmware logs.

The files lie beside the repository, in ../shared/vectors (or where AICERT_VECTORS says).
"""

import base64
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from aicert import bootlog, sev, tpm2, x509
from aicert.agent.azure import IntermediateError, _carried, complete, unwrap
from aicert.trust import TrustStore

VECTORS = Path(os.environ.get("AICERT_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))
pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"the captured evidence is not at {VECTORS} (set AICERT_VECTORS)"
)

TRUST = TrustStore.builtin()


def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def public_of(key: Any, attributes: int = 0x00050072) -> tpm2.Public:
    """The public area of a key whose own was not captured; attributes as the clouds make them."""
    if isinstance(key, rsa.RSAPublicKey):
        size = key.key_size
        area = struct.pack(">HHI", 1, 0x0B, attributes) + struct.pack(">H", 0)
        area += struct.pack(">HHHHI", 0x10, 0x14, 0x0B, size, 0) + struct.pack(">H", size // 8)
        return tpm2.parse_public(area + key.public_numbers().n.to_bytes(size // 8, "big"))
    numbers = key.public_numbers()
    area = struct.pack(">HHI", 0x23, 0x0B, attributes) + struct.pack(">H", 0)
    area += struct.pack(">HHHHH", 0x10, 0x18, 0x0B, 3, 0x10)
    for number in (numbers.x, numbers.y):
        area += struct.pack(">H", 32) + number.to_bytes(32, "big")
    return tpm2.parse_public(area)


def rsassa(signature: bytes) -> bytes:
    return struct.pack(">HHH", 0x14, 0x0B, len(signature)) + signature


def der(data: bytes) -> bytes:
    if b"-----BEGIN" in data:
        return cx509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    return data


# -- Azure Trusted Launch --------------------------------------------------------------------------

IN_APRIL_2024 = datetime(2024, 4, 25, tzinfo=UTC)
TODAY = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
def azure() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read("azure-trusted-launch/attestation-2024-04-docs.json"))
    return found


def azure_chain(azure: dict[str, Any]) -> list[bytes]:
    chain = azure["remote_attestation"]["cert_chain"]
    return [der(base64.b64decode(item["base64"])) for item in chain]


def azure_key(azure: dict[str, Any]) -> Any:
    return cx509.load_der_x509_certificate(azure_chain(azure)[0]).public_key()


def azure_quote(azure: dict[str, Any]) -> tuple[tpm2.Attest, dict[int, bytes]]:
    quote = azure["remote_attestation"]["quote"]
    message, signature, pcrs = (
        base64.b64decode(quote[name]["base64"]) for name in ("message", "signature", "pcr")
    )
    attest = tpm2.check_quote(message, signature, public_of(azure_key(azure)))
    # tpm2-tools' file of PCR values: a selection in host form, then lists of eight digests.
    digests = list(_tpm2_tools_digests(pcrs))
    return attest, dict(enumerate(digests[:24]))


def _tpm2_tools_digests(data: bytes) -> Iterator[bytes]:
    """Digests in a file that tpm2_quote wrote: host structs, little-endian.

    TPML_PCR_SELECTION (132 bytes: count, then 16 of 8 bytes), a count of TPML_DIGEST, and each of
    these: a count and eight of a 16-bit size and 64 bytes.
    """
    position = 4 + 16 * 8
    (lists,) = struct.unpack_from("<I", data, position)
    position += 4
    for _ in range(lists):
        (count,) = struct.unpack_from("<I", data, position)
        position += 4
        for index in range(8):
            (size,) = struct.unpack_from("<H", data, position)
            if index < count:
                yield data[position + 2 : position + 2 + size]
            position += 66


def test_azure_trusted_launch_quote_is_signed_by_its_certified_key(azure: dict[str, Any]) -> None:
    attest, pcrs = azure_quote(azure)
    assert attest.require_sha256_selection() == frozenset(range(24))
    attest.check_pcrs(pcrs)
    assert attest.extra_data == b""  # the ancestor's quotes carry no nonce


def test_azure_trusted_launch_chain_was_valid_then_and_is_expired_now(
    azure: dict[str, Any],
) -> None:
    chain, key = azure_chain(azure), azure_key(azure)
    info = x509.verify_chain(chain, TRUST, at=[IN_APRIL_2024], key=key)
    assert info.pin.assurance == "hardware"
    assert info.not_after.date().isoformat() == "2025-10-30"
    with pytest.raises(x509.ExpiredError):
        x509.verify_chain(chain, TRUST, at=[IN_APRIL_2024, TODAY], key=key)


def test_azure_chain_without_its_intermediate_is_refused(azure: dict[str, Any]) -> None:
    leaf, _, root = azure_chain(azure)
    key = azure_key(azure)
    for chain in ([leaf, root], [leaf]):
        with pytest.raises(x509.ChainError) as caught:
            x509.verify_chain(chain, TRUST, at=[IN_APRIL_2024], key=key)
        assert caught.value.code in ("chain.issuer", "chain.incomplete")


def test_azure_event_log_replays_to_a_pcr_that_anybody_can_reset(azure: dict[str, Any]) -> None:
    _, pcrs = azure_quote(azure)
    value = bytes(32)
    for event in azure["event_log"]:
        value = hashlib.sha256(value + hashlib.sha256(event.encode()).digest()).digest()
    assert value == pcrs[16]


# -- Azure confidential VM -------------------------------------------------------------------------


def test_azure_confidential_vm_quote_is_by_the_key_in_its_report() -> None:
    evidence = json.loads(read("azure-cvm-snp/evidence-v0.json"))
    report = bytes(evidence["report"])
    runtime = json.loads(report[report.index(b'{"keys"') :].split(b"\x00", 1)[0])
    jwk = next(key for key in runtime["keys"] if key["kid"] == "HCLAkPub")
    modulus, exponent = (
        int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in ("n", "e")
    )
    public = public_of(rsa.RSAPublicNumbers(exponent, modulus).public_key())
    quote = evidence["quote"]
    attest = tpm2.check_quote(bytes(quote["message"]), rsassa(bytes(quote["signature"])), public)
    pcrs = {number: bytes(value) for number, value in enumerate(quote["pcrs"])}
    attest.check_pcrs(pcrs)
    assert attest.require_sha256_selection() == frozenset(range(24))
    assert attest.extra_data == b"challenge"
    swapped = {**pcrs, 0: pcrs[1], 1: pcrs[0]}
    with pytest.raises(tpm2.PcrDigestError):
        attest.check_pcrs(swapped)


@pytest.fixture(scope="module")
def confidential_vm() -> tuple[bytes, bytes, tuple[bytes, ...], Any]:
    """The CPU's report, the document under it, AMD's certificates, the attestation key."""
    evidence = json.loads(read("azure-cvm-snp/evidence-v0.json"))
    unwrapped = unwrap(bytes(evidence["report"]))
    assert unwrapped is not None
    report, document = unwrapped
    ask, ark = cx509.load_pem_x509_certificates(read("azure-cvm-snp/milan_ask_ark_asvk.pem"))[:2]
    vcek = der(evidence["vcek"].encode())
    chain = (vcek, *(certificate.public_bytes(Encoding.DER) for certificate in (ask, ark)))
    (jwk,) = [key for key in json.loads(document)["keys"] if key["kid"] == "HCLAkPub"]
    modulus, exponent = (
        int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "=="), "big") for name in ("n", "e")
    )
    return report, document, chain, rsa.RSAPublicNumbers(exponent, modulus).public_key()


def test_azure_confidential_vm_leads_from_its_key_to_amds_root(confidential_vm: Any) -> None:
    report, document, chain, key = confidential_vm
    found = sev.check(report, document, chain, key=key, at=[TODAY])
    assert (found.processor, found.tcb, found.firmware_known) == ("Milan", "04000000000018db", True)
    with pytest.raises(sev.SevChainError):
        sev.check(report, document, chain, key=key, at=[datetime(2033, 1, 1, tzinfo=UTC)])


def test_azure_confidential_vm_with_any_byte_changed_is_refused(confidential_vm: Any) -> None:
    report, document, chain, key = confidential_vm
    for place in range(len(report)):
        changed = report[:place] + bytes([report[place] ^ 1]) + report[place + 1 :]
        with pytest.raises(sev.SevError):
            sev.check(changed, document, chain, key=key, at=[TODAY])
    for place in range(0, len(document), 7):
        changed = document[:place] + bytes([document[place] ^ 1]) + document[place + 1 :]
        with pytest.raises(sev.SevRuntimeError):
            sev.check(report, changed, chain, key=key, at=[TODAY])
    vlek = read("azure-cvm-snp/milan_ask_ark_asvk.pem")
    asvk = cx509.load_pem_x509_certificates(vlek)[2].public_bytes(Encoding.DER)
    with pytest.raises(sev.SevChainError):
        sev.check(report, document, (chain[0], asvk, chain[2]), key=key, at=[TODAY])


def test_the_azure_certificates_that_are_carried_complete_a_real_leafs_chain(
    azure: dict[str, Any],
) -> None:
    def get(url: str, headers: dict[str, str]) -> bytes:
        raise OSError("no network")

    leaf, intermediate, root = azure_chain(azure)
    # This leaf's CA has expired and is not carried any more: it is given as an operator would.
    given = cx509.load_der_x509_certificate(intermediate)
    carried = (given, *_carried(None))
    assert complete(leaf, carried, get) == (leaf, intermediate, root)
    with pytest.raises(IntermediateError) as caught:
        complete(leaf, _carried(None), get)
    assert "Global Virtual TPM CA - 01" in (caught.value.got or "")


# -- Google ----------------------------------------------------------------------------------------


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def protobuf(data: bytes) -> list[tuple[int, Any]]:
    """The fields of a protobuf message, as (number, integer or bytes)."""
    fields, position = [], 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 == 0:
            value: Any
            value, position = _varint(data, position)
        elif tag & 7 == 2:
            size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        else:
            raise AssertionError(f"wire type {tag & 7}")
        fields.append((tag >> 3, value))
    return fields


@pytest.fixture(scope="module")
def google() -> dict[str, Any]:
    fields = protobuf(read("gcp/gce-cos-85-nonce9009.pb"))
    found: dict[str, Any] = {"quotes": []}
    # message Attestation: ak_pub 1, quotes 2, event_log 3, …, ak_cert 6
    for number, value in fields:
        if number == 1:
            found["ak"] = value
        elif number == 2:
            found["quotes"].append(dict(protobuf(value)))
        elif number == 3:
            found["log"] = value
        elif isinstance(value, bytes) and value[:2] == b"\x30\x82":
            found["certificate"] = value
    return found


def _google_quote(google: dict[str, Any]) -> tuple[tpm2.Attest, dict[int, bytes]]:
    """The quote over the SHA-256 bank: quote 1, raw_sig 2, pcrs 3 {hash 1, pcrs 2: map}."""
    public = tpm2.parse_public(google["ak"])
    for quote in google["quotes"]:
        fields = protobuf(quote[3])
        if (1, 0x000B) in fields:
            entries = [dict(protobuf(value)) for number, value in fields if number == 2]
            pcrs = {entry.get(1, 0): entry[2] for entry in entries}
            return tpm2.check_quote(quote[1], quote[2], public), pcrs
    raise AssertionError("no SHA-256 quote")


def test_google_shielded_vm_holds_in_every_part_today(google: dict[str, Any]) -> None:
    public = tpm2.parse_public(google["ak"])
    public.require_ak()
    attest, pcrs = _google_quote(google)
    attest.check_pcrs(pcrs)
    assert attest.extra_data.hex() == "9009"
    bootlog.parse(google["log"]).check(pcrs)
    chain = [
        google["certificate"],
        der(read("gcp/tpm_ek_intermediate_2.crt")),
        der(read("gcp/tpm_ek_root_1.cer")),
    ]
    info = x509.verify_chain(chain, TRUST, at=[TODAY], key=public.key)
    assert info.pin.name == "Google tpm_ek_root_1"


def test_google_quotes_in_other_banks_are_refused(google: dict[str, Any]) -> None:
    public = tpm2.parse_public(google["ak"])
    refused = 0
    for quote in google["quotes"]:
        if (1, 0x000B) not in protobuf(quote[3]):
            # Signed with SHA-256 or not: a quote over another bank must never pass for one of ours.
            with pytest.raises((tpm2.SelectionError, tpm2.AlgorithmError)):
                tpm2.check_quote(quote[1], quote[2], public).require_sha256_selection()
            refused += 1
    assert refused == len(google["quotes"]) - 1 >= 1


def test_google_boot_log_with_one_event_changed_does_not_replay(google: dict[str, Any]) -> None:
    _, pcrs = _google_quote(google)
    log = bytearray(google["log"])
    event = bootlog.parse(bytes(log)).events[3]
    start = log.index(event.digest)
    log[start] ^= 1
    with pytest.raises(bootlog.BootReplayError):
        bootlog.parse(bytes(log)).check(pcrs)


def test_google_confidential_vm_with_an_ecc_key_holds_today() -> None:
    capture = json.loads(read("gcp-ecc/test-gcp-amd-fixture.json"))
    point = capture["ak_pubkeys"]["ecc_p256"]
    numbers = ec.EllipticCurvePublicNumbers(
        int(point["x"], 16), int(point["y"], 16), ec.SECP256R1()
    )
    public = public_of(numbers.public_key())
    tpm = capture["attestation"]["tpm"]["ecc_p256"]
    r, s = decode_dss_signature(bytes.fromhex(tpm["signature"]))
    signature = struct.pack(">HH", 0x18, 0x0B)
    signature += b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (r, s))
    attest = tpm2.check_quote(bytes.fromhex(tpm["attest_data"]), signature, public)
    assert attest.extra_data.hex() == capture["nonce"]
    attest.check_pcrs(
        {int(n): bytes.fromhex(value) for n, value in capture["pcrs"]["sha256"].items()}
    )
    pem = capture["attestation"]["gcp"]["ak_cert_chain"].encode()
    chain = [c.public_bytes(Encoding.DER) for c in cx509.load_pem_x509_certificates(pem)]
    info = x509.verify_chain(chain, TRUST, at=[TODAY], key=public.key)
    assert info.pin.name == "Google EK/AK CA Root"


# -- a hardware TPM --------------------------------------------------------------------------------


def test_hardware_tpm_key_has_the_name_that_its_maker_gives() -> None:
    area = tpm2.unwrap_public(read("keylime/ak.pub"))
    assert tpm2.parse_public(area).name == read("keylime/ak.name")


def test_hardware_tpm_quote_is_signed_over_its_pcrs() -> None:
    public = tpm2.parse_public(tpm2.unwrap_public(read("keylime/ak.pub")))
    assert load_pem_public_key(read("keylime/akpub.pem")) == public.key
    attest = tpm2.check_quote(read("keylime/quote.out"), read("keylime/quotesig.out"), public)
    pcrs = dict(zip((15, 16, 22), _tpm2_tools_digests(read("keylime/quotepcr.out")), strict=True))
    attest.check_pcrs(pcrs)


def test_hardware_tpm_bogus_log_is_refused() -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(read("keylime/binary_bios_measurements-bogus"))


# -- firmware logs ---------------------------------------------------------------------------------

EXPECTED = (
    json.loads(read("eventlogs/expected_pcrs.json"))
    if (VECTORS / "eventlogs" / "expected_pcrs.json").exists()
    else {}
)


@pytest.mark.parametrize("name", [n for n, banks in EXPECTED.items() if "sha256" in banks])
def test_a_real_firmware_log_replays_to_every_published_value(name: str) -> None:
    replayed = bootlog.parse(read(name)).replay()
    for pcr, value in EXPECTED[name]["sha256"].items():
        assert replayed[int(pcr)].hex() == value


@pytest.mark.parametrize("name", [n for n, banks in EXPECTED.items() if "sha256" not in banks])
def test_a_log_without_the_sha256_bank_is_a_clear_error(name: str) -> None:
    with pytest.raises(bootlog.NoSha256Error, match="SHA"):
        bootlog.parse(read(name))


@pytest.mark.parametrize(
    "name", ["eventlogs/short_no_action_eventlog", "eventlogs/ebs_event_missing_eventlog"]
)
def test_a_broken_or_odd_log_is_refused(name: str) -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(read(name))


@pytest.mark.parametrize("name", [n for n, banks in EXPECTED.items() if "sha256" in banks])
def test_a_log_cut_at_any_byte_is_refused_or_replays_to_something_else(name: str) -> None:
    data = read(name)
    whole = bootlog.parse(data).replay()
    for end in range(0, len(data) - 1, 97):
        try:
            assert bootlog.parse(data[:end]).replay() != whole
        except bootlog.BootLogError:
            pass
