"""Reference values: the signed document, and what a boot is held against."""

import base64
import hashlib
import json
import os
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from aicert import bootlog, canonical, dsse, keys, reference
from aicert.errors import Error
from aicert.reference import Events, Reference, ReferenceValues, Shape
from tests.support.boot import SEPARATOR, Boot, digest, log

ISSUED = datetime(2026, 11, 23, 9, 0, 0, tzinfo=UTC)
GOLDEN = (0, 1)


def document(boot: Boot | None = None, **changes: Any) -> ReferenceValues:
    """The document of the image that `Boot` boots: as for a QEMU machine."""
    pcrs = (boot or Boot()).pcrs
    shape = Shape("qemu-2-2048", {pcr: pcrs[pcr] for pcr in GOLDEN}, {}, frozenset())
    values = ReferenceValues(
        image="aicert-os",
        version="1.0.0",
        issued_on=ISSUED,
        pcrs={pcr: pcrs[pcr] for pcr in (2, 3, 4, 5, 6, 7, 9, 11)},
        events={},
        zero=frozenset({10, 12, 13}),
        shapes=(shape,),
        notes="PCRs 0 and 1 were recorded on the machine",
    )
    return replace(values, **changes)


def signed(values: ReferenceValues | None = None, key: keys.PrivateKey | None = None) -> Reference:
    return reference.parse(reference.sign(values or document(), key or KEY))


KEY = ec.generate_private_key(ec.SECP256R1())
KEYS: dict[str, keys.PrivateKey] = {
    "P-256": KEY,
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


# -- the document --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYS)
def test_a_signed_document_reads_back_equal_and_names_its_signer(kind: str) -> None:
    data = reference.sign(document(), KEYS[kind])
    read = reference.parse(data)
    assert read.values == document()
    assert ReferenceValues.parse(document().encode()) == document()
    assert read.digest == hashlib.sha256(data).hexdigest()
    assert read.signer == keys.fingerprint(KEYS[kind])
    read.require_signer({read.signer, "00" * 32})


def test_a_signer_that_is_not_pinned_is_refused_by_name() -> None:
    with pytest.raises(reference.ReferenceSignerError) as caught:
        signed().require_signer({"00" * 32})
    assert caught.value.code == "reference.signer"
    assert "aicert-os 1.0.0" in caught.value.message
    assert caught.value.got == keys.fingerprint(KEY)
    with pytest.raises(reference.ReferenceSignerError, match="not pinned"):
        signed().require_signer(())


def test_no_byte_of_a_signed_document_can_be_flipped() -> None:
    data = reference.sign(document(), KEYS["Ed25519"])
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(Error):
            reference.parse(bytes(flipped))


def test_a_signature_over_other_bytes_is_refused() -> None:
    value = json.loads(reference.sign(document(), KEY))
    other = replace(document(), version="1.0.1")
    value["dsseEnvelope"]["payload"] = base64.b64encode(other.encode()).decode()
    with pytest.raises(reference.ReferenceSignatureError) as caught:
        reference.parse(canonical.dumps(value))
    assert caught.value.code == "reference.signature"


def test_a_signature_for_another_payload_type_is_refused() -> None:
    """A statement that the same key signed must not pass for reference values."""
    value = json.loads(reference.sign(document(), KEY))
    signature = keys.sign(KEY, dsse.pae(document().encode(), dsse.PAYLOAD_TYPE))
    value["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(reference.ReferenceSignatureError):
        reference.parse(canonical.dumps(value))


def test_another_key_beside_the_signature_is_refused() -> None:
    value = json.loads(reference.sign(document(), KEY))
    other = KEYS["P-384"]
    value["publicKey"] = base64.b64encode(keys.spki_of(other)).decode()
    with pytest.raises(reference.ReferenceValuesError, match="keyid"):
        reference.parse(canonical.dumps(value))
    value["dsseEnvelope"]["signatures"][0]["keyid"] = keys.fingerprint(other)
    with pytest.raises(reference.ReferenceSignatureError):
        reference.parse(canonical.dumps(value))


def test_a_re_encoded_ecdsa_signature_is_refused() -> None:
    value = json.loads(reference.sign(document(), KEY))
    entry = value["dsseEnvelope"]["signatures"][0]
    der = base64.b64decode(entry["sig"])
    padded = der[:1] + b"\x81" + der[1:]  # the same number, a longer length
    entry["sig"] = base64.b64encode(padded).decode()
    with pytest.raises(reference.ReferenceSignatureError):
        reference.parse(canonical.dumps(value))


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP521R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["RSA", "P-521", "secp256k1"],
)
def test_keys_of_other_kinds_are_refused(key: Any, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import PublicFormat

    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(keys.KeyFileError) as caught:
        keys.load_public_key(spki)
    assert caught.value.expected == "ECDSA on P-256 or P-384, or Ed25519"
    path = tmp_path / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(keys.KeyFileError, match="not accepted"):
        keys.load_private_key(path)


def test_private_keys_are_read_from_pem_with_and_without_a_password(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    for password in (None, b"secret"):
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        assert keys.fingerprint(keys.load_private_key(path, password)) == keys.fingerprint(KEY)
    with pytest.raises(keys.KeyFileError, match="holds no private key"):
        keys.load_private_key(path)
    with pytest.raises(keys.KeyFileError, match="cannot be read"):
        keys.load_private_key(tmp_path / "none.pem")
    path.write_bytes(bytes(keys.MAX_KEY_BYTES + 1))
    with pytest.raises(keys.KeyFileError, match="too large"):
        keys.load_private_key(path)


def test_a_public_key_in_another_encoding_is_refused() -> None:
    spki = keys.spki_of(KEY)
    with pytest.raises(keys.KeyFileError):
        keys.load_public_key(spki + b"\x00")
    with pytest.raises(keys.KeyFileError, match="cannot be read"):
        keys.load_public_key(b"not a key")


ZERO = "00" * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pcrs": {}}, "nothing is said of PCRs"),
        ({"zero": frozenset({10, 11, 12, 13})}, "more than one thing is said of PCRs"),
        ({"zero": frozenset({8, 10, 12, 13})}, "not the boot's"),
        ({"zero": frozenset({10, 12, 13, 14})}, "not the boot's"),
        ({"zero": frozenset({10, 12, 13, 17})}, "not the boot's"),
        ({"shapes": ()}, "need shapes"),
        ({"shapes": document().shapes * 2}, "its own name"),
        ({"events": {4: Events(frozenset({SEPARATOR}))}}, "more than one thing"),
    ],
)
def test_a_document_that_is_incomplete_or_contradictory_cannot_be_made(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(reference.ReferenceValuesError, match=message):
        document(**change)


@pytest.mark.parametrize("pcr", sorted(reference.IMAGE_PCRS))
def test_a_pcr_that_tells_images_apart_cannot_be_left_open(pcr: int) -> None:
    values = document()
    kept = {number: value for number, value in values.pcrs.items() if number != pcr}
    shape = replace(values.shapes[0], unconstrained=frozenset({pcr}))
    with pytest.raises(reference.ReferenceValuesError, match="tell images apart") as caught:
        replace(values, pcrs=kept, zero=values.zero - {pcr}, shapes=(shape,))
    assert caught.value.got == f"[{pcr}]"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.update(mediaType="application/other"), "mediaType"),
        (lambda v: v.update(extra=1), "not known"),
        (lambda v: v.pop("notes"), "notes"),
        (lambda v: v["image"].update(name=""), "empty or not printable"),
        (lambda v: v["image"].update(version="a\nb"), "empty or not printable"),
        (lambda v: v["pcrs"].update({"4": "00"}), "32 bytes"),
        (lambda v: v["pcrs"].update({"24": ZERO}), "not known"),
        (lambda v: v["pcrs"].update({"04": ZERO}), "not known"),
        (lambda v: v.update(zero=[13, 12, 10]), "sorted"),
        (lambda v: v.update(zero=[10, 12, 13, True]), "PCR numbers"),
        (lambda v: v.update(events={"4": {"allowed": [], "required": []}}), "allows nothing"),
        (
            lambda v: v.update(events={"4": {"allowed": [ZERO], "required": ["11" * 32]}}),
            "requires what it does not allow",
        ),
        (lambda v: v.update(events={"4": {"allowed": ["zz"], "required": []}}), "not hex"),
        (lambda v: v.update(events={"4": {"allowed": ["AA" * 32], "required": []}}), "lower-case"),
        (lambda v: v.update(events={"4": {"allowed": [ZERO, ZERO], "required": []}}), "twice"),
        (lambda v: v.update(issuedOn="yesterday"), "not a UTC time"),
        (lambda v: v.update(shapes=[]), "number of items"),
    ],
)
def test_a_malformed_document_is_refused_with_the_place(edit: Any, message: str) -> None:
    value = document().to_json()
    edit(value)
    with pytest.raises(reference.ReferenceValuesError, match=message):
        ReferenceValues.parse(canonical.dumps(value))


def test_a_document_in_another_form_than_the_canonical_is_refused() -> None:
    with pytest.raises(canonical.NotCanonicalError):
        reference.parse(json.dumps(json.loads(reference.sign(document(), KEY))).encode())
    with pytest.raises(canonical.TooLargeError):
        reference.parse(b" " * (reference.MAX_BYTES + 1))


def test_a_document_that_could_not_be_read_again_is_not_signed() -> None:
    many = {
        pcr: Events(frozenset(digest(f"{pcr} {n}") for n in range(reference.MAX_EVENTS)))
        for pcr in (2, 3, 4, 5, 6, 7, 9, 11)
    }
    shapes = tuple(replace(document().shapes[0], name=f"shape {n}", events=many) for n in range(3))
    values = document(pcrs={}, shapes=shapes)
    with pytest.raises(reference.ReferenceValuesError, match="too large"):
        reference.sign(values, KEY)


# -- the check -----------------------------------------------------------------------------------


def test_the_image_that_was_booted_is_recognised_pcr_by_pcr() -> None:
    boot = Boot()
    result = reference.check_boot(boot.log, boot.pcrs, [signed()])
    assert result.measured
    assert str(result.matches[0]) == "aicert-os 1.0.0 on qemu-2-2048"
    kinds = {item.pcr: item.kind for item in result.pcrs}
    assert kinds == {
        **dict.fromkeys((0, 1, 2, 3, 4, 5, 6, 7, 9, 11), "value"),
        **dict.fromkeys((10, 12, 13), "zero"),
        **dict.fromkeys((8, 14, 15), "run"),
    }


def test_where_every_pcr_has_a_value_the_log_is_not_needed() -> None:
    assert reference.check_boot(None, Boot().pcrs, [signed()]).measured


def test_without_reference_values_nothing_is_measured_and_the_log_explains() -> None:
    boot = Boot()
    result = reference.check_boot(boot.log, boot.pcrs)
    assert not result.measured
    assert result.nearest is None
    kinds = {item.pcr: item.kind for item in result.pcrs}
    assert kinds[0] == kinds[11] == "log"
    assert kinds[12] == "open"
    bare = reference.check_boot(None, boot.pcrs)
    assert {item.kind for item in bare.pcrs} == {"open", "run"}
    assert not bare.measured


@pytest.mark.parametrize("pcr", range(16))
def test_a_change_of_any_pcr_is_not_the_image_any_more(pcr: int) -> None:
    boot = Boot()
    changed = Boot([*boot.events, (pcr, digest("something else"))])
    result = reference.check_boot(changed.log, changed.pcrs, [signed()])
    assert not result.measured
    assert result.nearest is not None
    (problem,) = result.nearest.problems
    assert problem.pcr == pcr
    assert changed.pcrs[pcr].hex() in str(problem)


def test_a_command_line_from_outside_is_not_the_image() -> None:
    """It leaves PCRs 4 and 11 as they are, and changes only 9 and 12."""
    events = [(pcr, d) for pcr, d in Boot().events if d != digest("command line")]
    other = Boot([*events, (9, digest("init=/bin/sh")), (12, digest("init=/bin/sh"))])
    assert (other.pcrs[4], other.pcrs[11]) == (Boot().pcrs[4], Boot().pcrs[11])
    result = reference.check_boot(other.log, other.pcrs, [signed()])
    assert not result.measured
    assert result.nearest is not None
    assert [problem.pcr for problem in result.nearest.problems] == [9, 12]


def test_the_shape_that_fits_is_found_among_many() -> None:
    other = Boot([(0, digest("another firmware")), *Boot().events[1:]])
    golden = {pcr: other.pcrs[pcr] for pcr in GOLDEN}
    values = document(shapes=(document().shapes[0], Shape("qemu-4-4096", golden, {}, frozenset())))
    result = reference.check_boot(other.log, other.pcrs, [signed(values)])
    assert [match.shape for match in result.matches] == ["qemu-4-4096"]


def test_the_nearest_document_is_named_where_none_matches() -> None:
    boot = Boot([*Boot().events, (12, digest("credential"))])
    far = document(version="0.9.0", pcrs={**document().pcrs, 4: bytes(32), 9: bytes(32)})
    result = reference.check_boot(boot.log, boot.pcrs, [signed(far), signed()])
    assert str(result.nearest) == "aicert-os 1.0.0 on qemu-2-2048"


# -- by events -----------------------------------------------------------------------------------


def by_events(**changes: Any) -> ReferenceValues:
    """The same image where PCR 4 is judged by its events, and PCRs 0 and 1 are left to the log."""
    kept = {pcr: value for pcr, value in document().pcrs.items() if pcr != 4}
    images = frozenset({digest("uki"), digest("kernel")})
    loose = Shape("any", {}, {}, frozenset(GOLDEN))
    fields = {"pcrs": kept, "events": {4: Events(images | {SEPARATOR}, images)}, "shapes": (loose,)}
    return document(**{**fields, **changes})


def test_a_pcr_made_of_listed_events_matches_and_says_what_is_left_open() -> None:
    boot = Boot()
    result = reference.check_boot(boot.log, boot.pcrs, [signed(by_events())])
    assert result.measured
    kinds = {item.pcr: item.kind for item in result.pcrs}
    assert kinds[4] == "events"
    assert kinds[0] == kinds[1] == "log"
    assert "any value would pass" in str(result.pcrs[0])


def test_an_event_that_is_not_listed_is_named() -> None:
    boot = Boot([*Boot().events, (4, digest("another uki"))])
    result = reference.check_boot(boot.log, boot.pcrs, [signed(by_events())])
    assert not result.measured
    assert result.nearest is not None
    (problem,) = result.nearest.problems
    assert str(problem) == (
        f"PCR 4: its event 3 is not one of the image's: {digest('another uki').hex()}"
    )


def test_a_required_event_that_is_missing_is_named() -> None:
    boot = Boot([event for event in Boot().events if event[1] != digest("uki")])
    result = reference.check_boot(boot.log, boot.pcrs, [signed(by_events())])
    assert not result.measured
    assert result.nearest is not None
    assert "a required event is missing" in str(result.nearest.problems[0])


def test_without_a_log_nothing_is_judged_by_events() -> None:
    result = reference.check_boot(None, Boot().pcrs, [signed(by_events())])
    assert not result.measured
    assert result.nearest is not None
    # PCRs 0 and 1 the document leaves open: they may be anything, and no log need explain them.
    assert [problem.pcr for problem in result.nearest.problems] == [4]


def test_firmware_that_hands_out_no_log_can_be_measured() -> None:
    shape = replace(document().shapes[0], pcrs={}, unconstrained=frozenset(GOLDEN))
    result = reference.check_boot(None, Boot().pcrs, [signed(document(shapes=(shape,)))])
    assert result.measured
    left_open = [found.pcr for found in result.pcrs if found.kind == "open"]
    assert left_open == sorted(GOLDEN)


def test_events_that_do_not_replay_to_the_quoted_value_decide_nothing() -> None:
    """A log may say that PCR 9 is made of good events; only the quoted value makes it true."""
    good = document()
    kept = {pcr: value for pcr, value in good.pcrs.items() if pcr != 9}
    allowed = Events(frozenset({digest("command line"), digest("initrd")}))
    values = document(pcrs=kept, events={9: allowed})
    pcrs = {**Boot().pcrs, 9: digest("what was really extended")}
    result = reference.check_boot(Boot().log, pcrs, [signed(values)])
    assert not result.measured
    assert result.nearest is not None
    assert "does not give its value" in str(result.nearest.problems[0])


def test_a_pcr_left_open_must_still_agree_with_the_log() -> None:
    kept = document().zero - {10}
    shape = replace(document().shapes[0], unconstrained=frozenset({10}))
    values = document(zero=kept, shapes=(shape,))
    boot = Boot([*Boot().events, (10, digest("logged"))])
    assert reference.check_boot(boot.log, boot.pcrs, [signed(values)]).measured
    lied = {**boot.pcrs, 10: digest("something else")}
    assert not reference.check_boot(boot.log, lied, [signed(values)]).measured


def test_types_and_data_in_the_log_decide_nothing() -> None:
    boot = Boot()
    known = signed(by_events())
    plain = reference.check_boot(boot.log, boot.pcrs, [known])
    dressed = log(boot.events, kind=0x0D, data=b"aicert-os, trust me")
    assert reference.check_boot(dressed, boot.pcrs, [known]) == plain


@pytest.mark.parametrize("pcr", sorted(reference.FIRMWARE_PCRS))
def test_a_log_that_does_not_account_for_the_firmware_is_refused(pcr: int) -> None:
    boot = Boot()
    with pytest.raises(bootlog.BootReplayError, match=f"PCR {pcr}") as caught:
        reference.check_boot(boot.log, {**boot.pcrs, pcr: digest("x")})
    assert caught.value.code == "bootlog.replay"


@pytest.mark.parametrize("pcr", sorted(reference.FIRMWARE_PCRS))
def test_a_log_that_is_silent_about_a_firmware_pcr_is_refused(pcr: int) -> None:
    """A cut log must not pass by saying nothing."""
    boot = Boot()
    cut = log([event for event in boot.events if event[0] != pcr])
    with pytest.raises(bootlog.BootReplayError, match=f"PCR {pcr}"):
        reference.check_boot(cut, boot.pcrs, [signed()])


def test_what_an_operating_system_extends_later_is_no_contradiction() -> None:
    """Programs extend PCRs above 7 after the firmware's log has ended."""
    pcrs = {**Boot().pcrs, 11: digest("boot phase"), 8: digest("grub")}
    result = reference.check_boot(Boot().log, pcrs)
    assert result.log_replayed
    assert not result.measured


@pytest.mark.parametrize("pcr", sorted(reference.RUN_PCRS))
def test_a_measured_machine_starts_with_the_runs_own_pcrs_at_zero(pcr: int) -> None:
    pcrs = {**Boot().pcrs, pcr: digest("extended before the run")}
    result = reference.check_boot(Boot().log, pcrs, [signed()])
    assert not result.measured
    assert result.nearest is not None
    assert "was not zero" in str(result.nearest.problems[0])


def test_a_malformed_log_is_refused_whatever_the_values_say() -> None:
    with pytest.raises(bootlog.BootLogError):
        reference.check_boot(b"\x00" * 50, Boot().pcrs, [signed()])


def test_random_documents_never_crash_the_parser() -> None:
    data = reference.sign(document(), KEYS["Ed25519"])
    chance = random.Random(3)
    for _ in range(2000):
        mutant = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            position = chance.randrange(len(mutant))
            mutant[position : position + chance.randint(0, 3)] = chance.randbytes(
                chance.randint(0, 3)
            )
        if bytes(mutant) != data:
            with pytest.raises(Error):
                reference.parse(bytes(mutant))


# -- evidence nobody here made -------------------------------------------------------------------

VECTORS = Path(os.environ.get("AICERT_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))
LOGS = VECTORS / "eventlogs"


@pytest.mark.skipif(not LOGS.is_dir(), reason=f"the captured logs are not at {LOGS}")
@pytest.mark.parametrize("name", ["ubuntu-2104-no-dbx.bin", "rhel8-uefi.bin", "cos-93-amd-sev.bin"])
def test_a_real_boot_is_held_against_the_values_of_its_own_log(name: str) -> None:
    data = (LOGS / name).read_bytes()
    parsed = bootlog.parse(data)
    replayed = parsed.replay()
    pcrs = {pcr: replayed.get(pcr, bytes(32)) for pcr in range(24)}
    by_log = reference.check_boot(data, pcrs)
    assert not by_log.measured
    assert {item.kind for item in by_log.pcrs if item.pcr < 8} == {"log"}
    boot = sorted(reference.BOOT_PCRS)
    events = {
        pcr: Events(frozenset(event.digest for event in parsed.events if event.pcr == pcr))
        for pcr in boot
        if pcr in replayed
    }
    values = document(
        pcrs={},
        events=events,
        zero=frozenset(pcr for pcr in boot if pcr not in replayed),
        shapes=(Shape("captured", {}, {}, frozenset()),),
    )
    # GRUB extends PCR 8 and shim PCR 14, which a run needs for itself: no such boot is measured.
    used = [pcr for pcr in sorted(reference.RUN_PCRS) if pcr in replayed]
    result = reference.check_boot(data, pcrs, [signed(values)])
    finding = result.matches[0] if result.matches else result.nearest
    assert finding is not None
    assert [problem.pcr for problem in finding.problems] == used
