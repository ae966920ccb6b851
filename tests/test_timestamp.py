"""Time: RFC 3161 timestamps made by `openssl ts`, and what bounds the time of a run."""

import hashlib
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from aicert import canonical, events, log, timestamp
from aicert.certificate import MAX_TIMESTAMP_BYTES, Certificate
from aicert.timestamp import Request, Stamp, TimeBounds
from aicert.trust import Pin, TrustStore, fingerprint
from aicert.verify import Assurance, to_json, verify
from aicert.x509 import ChainInfo
from tests.support.forger import Authority, Forger, run_events
from tests.support.tsa import OPENSSL, Tsa

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the program openssl is not installed")

DATA = b"what is stamped"
NOW = datetime.now(UTC).replace(microsecond=0)


def token(answer: bytes) -> bytes:
    return timestamp._sorted(timestamp._token(answer))


@pytest.fixture
def tsa(tmp_path: Path) -> Tsa:
    return Tsa(tmp_path / "tsa")


# -- tokens --------------------------------------------------------------------------------------


def test_a_stamp_tells_time_accuracy_and_authority(tsa: Tsa) -> None:
    stamp = timestamp.verify(token(tsa.stamp(DATA)), DATA, [tsa.root])
    assert abs(stamp.time - datetime.now(UTC)) < timedelta(minutes=1)
    assert stamp.accuracy == timedelta(seconds=1.5)
    assert stamp.latest == stamp.time + timedelta(seconds=1.5)
    assert stamp.authority == "CN=tests signer"
    assert stamp.roots == {fingerprint(tsa.root)}


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_rsa_and_longer_hashes_are_accepted(tmp_path: Path, digest: str) -> None:
    tsa = Tsa(tmp_path, key=rsa.generate_private_key(65537, 2048), digest=digest)
    assert timestamp.verify(token(tsa.stamp(DATA, f"-{digest}")), DATA, [tsa.root])


def test_a_chain_with_an_intermediate_is_followed(tmp_path: Path) -> None:
    tsa = Tsa(tmp_path, intermediate=True)
    stamp = timestamp.verify(token(tsa.stamp(DATA)), DATA, [tsa.root])
    assert stamp.roots == {fingerprint(tsa.root)}


def test_of_many_roots_the_one_that_vouches_is_named(tsa: Tsa, tmp_path: Path) -> None:
    other = Tsa(tmp_path / "other", name="other")
    stamp = timestamp.verify(token(tsa.stamp(DATA)), DATA, [other.root, tsa.root])
    assert stamp.roots == {fingerprint(tsa.root)}


def test_a_stamp_over_something_else_is_refused(tsa: Tsa) -> None:
    with pytest.raises(timestamp.TimestampSubjectError) as caught:
        timestamp.verify(token(tsa.stamp(DATA)), b"another", [tsa.root])
    assert caught.value.code == "timestamp.subject"
    assert caught.value.got == hashlib.sha256(DATA).hexdigest()


def test_a_stamp_of_an_authority_that_was_not_named_is_refused(tsa: Tsa, tmp_path: Path) -> None:
    other = Tsa(tmp_path / "other", name="other")
    with pytest.raises(timestamp.TimestampAuthorityError) as caught:
        timestamp.verify(token(other.stamp(DATA)), DATA, [tsa.root])
    assert caught.value.code == "timestamp.authority"
    assert caught.value.expected == "CN=tests root"
    assert "CN=other signer" in str(caught.value.got)
    with pytest.raises(timestamp.TimestampAuthorityError):
        timestamp.verify(token(other.stamp(DATA)), DATA, [])


def test_an_authority_with_the_same_name_and_another_key_is_refused(
    tsa: Tsa, tmp_path: Path
) -> None:
    impostor = Tsa(tmp_path / "other")
    with pytest.raises(timestamp.TimestampAuthorityError):
        timestamp.verify(token(impostor.stamp(DATA)), DATA, [tsa.root])


OTHER_USE = ExtendedKeyUsageOID.CODE_SIGNING
STAMPING = ExtendedKeyUsageOID.TIME_STAMPING


def wrong_signer(tmp_path: Path, **wrong: Any) -> tuple[bytes, x509.Certificate]:
    """A token that a certificate signed which `openssl ts` itself would refuse to use.

    A good authority's token is made, and its signer's certificate then replaced by one with the
    same name, number and key, from the same CA.
    """
    good = Tsa(tmp_path / "good")
    made = token(good.stamp(DATA))
    wrong_usage = wrong.get("usages", (STAMPING,))
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.signer.subject)
        .issuer_name(good.signer.issuer)
        .public_key(good.key.public_key())
        .serial_number(good.signer.serial_number)
        .not_valid_before(good.signer.not_valid_before_utc)
        .not_valid_after(good.signer.not_valid_after_utc)
    )
    if wrong_usage:
        usage = x509.ExtendedKeyUsage(list(wrong_usage))
        builder = builder.add_extension(usage, critical=wrong.get("critical", True))
    key = wrong["by"](good)
    certificate = builder.sign(key, wrong.get("hash", hashes.SHA256()))
    others = [c for c in certificates_of(made) if c != good.signer]
    return with_certificates(made, [certificate, *others]), good.root


def certificates_of(made: bytes) -> list[x509.Certificate]:
    element = timestamp._signed_data(made)[3]
    return [
        x509.load_der_x509_certificate(timestamp._tlv(item.tag, item.content))
        for item in element.children()
    ]


def with_certificates(made: bytes, certificates: list[x509.Certificate]) -> bytes:
    """The token with other certificates in it: they are outside its signature."""
    version, digests, content, _, infos = timestamp._signed_data(made)
    ders = sorted(certificate.public_bytes(Encoding.DER) for certificate in certificates)
    return rebuilt(made, [version, digests, content, b"".join(ders), infos])


def rebuilt(made: bytes, parts: list[Any]) -> bytes:
    """A token of these parts of SignedData; the certificates may come as bytes."""
    tags = (0x02, 0x31, 0x30, 0xA0, 0x31)
    body = b"".join(
        timestamp._tlv(tag, part if isinstance(part, bytes) else part.content)
        for tag, part in zip(tags, parts, strict=True)
    )
    oid = timestamp._tlv(0x06, bytes.fromhex("2a864886f70d010702"))
    return timestamp._tlv(0x30, oid + timestamp._tlv(0xA0, timestamp._tlv(0x30, body)))


@pytest.mark.parametrize(
    ("usages", "critical"),
    [((), True), ((STAMPING,), False), ((OTHER_USE,), True), ((STAMPING, OTHER_USE), True)],
    ids=["none", "not critical", "another", "one too many"],
)
def test_a_signer_that_is_not_for_timestamps_alone_is_refused(
    tmp_path: Path, usages: tuple[Any, ...], critical: bool
) -> None:
    made, root = wrong_signer(
        tmp_path, usages=usages, critical=critical, by=lambda good: good.root_key
    )
    with pytest.raises(timestamp.TimestampAuthorityError) as caught:
        timestamp.verify(made, DATA, [root])
    assert "not for timestamps" in caught.value.message


def test_a_lookalike_certificate_beside_the_signers_is_refused(tsa: Tsa) -> None:
    """The same issuer and number twice: one might be checked and the other believed."""
    made = token(tsa.stamp(DATA))
    signer = tsa.signer
    fake = (
        x509.CertificateBuilder()
        .subject_name(signer.subject)
        .issuer_name(signer.issuer)
        .public_key(tsa.key.public_key())
        .serial_number(signer.serial_number)
        .not_valid_before(signer.not_valid_before_utc)
        .not_valid_after(signer.not_valid_after_utc)
        .add_extension(x509.ExtendedKeyUsage([STAMPING]), critical=True)
        .sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    )
    both = with_certificates(made, [signer, fake, tsa.root])
    with pytest.raises(timestamp.TimestampFormatError, match="does not name one certificate"):
        timestamp.verify(both, DATA, [tsa.root])


def test_a_token_without_its_signers_certificate_is_refused(tsa: Tsa) -> None:
    made = with_certificates(token(tsa.stamp(DATA)), [tsa.root])
    with pytest.raises(timestamp.TimestampFormatError, match="does not name one certificate"):
        timestamp.verify(made, DATA, [tsa.root])


def test_more_certificates_than_a_chain_has_are_refused(tsa: Tsa, tmp_path: Path) -> None:
    more = [Tsa(tmp_path / str(number)).root for number in range(8)]
    made = with_certificates(token(tsa.stamp(DATA)), [tsa.signer, *more])
    with pytest.raises(timestamp.TimestampFormatError, match="number of certificates"):
        timestamp.verify(made, DATA, [tsa.root])


def test_an_intermediate_that_is_no_ca_is_refused(tmp_path: Path) -> None:
    tsa = Tsa(tmp_path, intermediate=True, intermediate_is_ca=False)
    with pytest.raises(timestamp.TimestampAuthorityError):
        timestamp.verify(token(tsa.stamp(DATA)), DATA, [tsa.root])


def test_a_signer_that_had_expired_when_it_signed_is_refused(tmp_path: Path) -> None:
    tsa = Tsa(tmp_path, ends=-timedelta(days=1))
    with pytest.raises(timestamp.TimestampAuthorityError, match="no timestamp authority"):
        timestamp.verify(token(tsa.stamp(DATA)), DATA, [tsa.root])


def test_hashes_that_are_broken_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    stamped = Tsa(tmp_path / "imprint")
    with pytest.raises(timestamp.TimestampFormatError, match="hash that is not accepted"):
        timestamp.verify(token(stamped.stamp(DATA, "-sha1")), DATA, [stamped.root])
    signed = Tsa(tmp_path / "signature", digest="sha1")
    with pytest.raises(timestamp.TimestampFormatError, match="algorithm that is not accepted"):
        timestamp.verify(token(signed.stamp(DATA)), DATA, [signed.root])
    weak = Tsa(tmp_path / "certificate", certificate_hash=hashes.SHA224())
    with pytest.raises(timestamp.TimestampFormatError, match="signed with a hash"):
        timestamp.verify(token(weak.stamp(DATA)), DATA, [weak.root])


@pytest.mark.parametrize(("exponent", "bits"), [(65537, 1024), (3, 2048)])
def test_weak_keys_are_refused(tmp_path: Path, exponent: int, bits: int) -> None:
    tsa = Tsa(tmp_path, key=rsa.generate_private_key(exponent, bits))
    with pytest.raises(timestamp.TimestampFormatError, match="too weak"):
        timestamp.verify(token(tsa.stamp(DATA)), DATA, [tsa.root])


def test_no_bit_of_a_token_can_be_flipped(tsa: Tsa) -> None:
    made = with_certificates(token(tsa.stamp(DATA)), [tsa.signer])
    assert timestamp.verify(made, DATA, [tsa.root])
    for position in range(len(made)):
        for bit in range(8):
            flipped = bytearray(made)
            flipped[position] ^= 1 << bit
            with pytest.raises(timestamp.TimestampError):
                timestamp.verify(bytes(flipped), DATA, [tsa.root])


def test_random_changes_are_refused_or_change_nothing_that_is_believed(tsa: Tsa) -> None:
    """What can change is a certificate in the token that nothing rests on: the copy of the root."""
    made = token(tsa.stamp(DATA))
    good = timestamp.verify(made, DATA, [tsa.root])
    chance = random.Random(5)
    refused = 0
    for _ in range(3000):
        mutant = bytearray(made)
        for _ in range(chance.randint(1, 5)):
            position, size = chance.randrange(len(mutant)), chance.randint(0, 4)
            mutant[position : position + chance.randint(0, 4)] = chance.randbytes(size)
        try:
            assert timestamp.verify(bytes(mutant), DATA, [tsa.root]) == good
        except timestamp.TimestampError:
            refused += 1
    assert refused > 2900


@pytest.mark.parametrize("cut", [0, 1, 2, 10, 100, -1])
def test_a_cut_token_is_refused(tsa: Tsa, cut: int) -> None:
    with pytest.raises(timestamp.TimestampFormatError):
        timestamp.verify(token(tsa.stamp(DATA))[:cut], DATA, [tsa.root])


def test_bytes_after_a_token_are_refused(tsa: Tsa) -> None:
    with pytest.raises(timestamp.TimestampFormatError, match="bytes follow"):
        timestamp.verify(token(tsa.stamp(DATA)) + b"\x00", DATA, [tsa.root])


def test_a_token_beyond_the_limit_is_refused_before_it_is_read(tsa: Tsa) -> None:
    with pytest.raises(timestamp.TimestampFormatError, match="too large"):
        timestamp.verify(bytes(MAX_TIMESTAMP_BYTES + 1), DATA, [tsa.root])


def test_unsigned_attributes_are_refused(tsa: Tsa) -> None:
    """They are outside the signature: anybody could add them to a published certificate."""
    made = token(tsa.stamp(DATA))
    version, digests, content, certificates, infos = timestamp._signed_data(made)
    (info,) = timestamp._take(infos, 0x30)
    longer = timestamp._tlv(0x30, info.content + timestamp._tlv(0xA1, b""))
    with pytest.raises(timestamp.TimestampFormatError, match="a part that is not known"):
        timestamp.verify(
            rebuilt(made, [version, digests, content, certificates, longer]), DATA, [tsa.root]
        )


def test_openssl_agrees_that_the_kept_token_is_good(tsa: Tsa) -> None:
    import subprocess

    made = token(tsa.stamp(DATA))
    (tsa.folder / "token").write_bytes(made)
    assert OPENSSL is not None
    arguments = ["-data", "data", "-in", "token", "-token_in", "-CAfile", "root.pem"]
    done = subprocess.run(
        [OPENSSL, "ts", "-verify", *arguments], cwd=tsa.folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


# -- certificates --------------------------------------------------------------------------------


def run_at(started: datetime, finished: datetime) -> list[Any]:
    return [
        replace(event, started_on=started)
        if isinstance(event, events.Job)
        else replace(event, finished_on=finished)
        if isinstance(event, events.Outputs)
        else event
        for event in run_events()
    ]


@pytest.fixture
def forger() -> Forger:
    """A machine whose run ended a minute ago."""
    authority = Authority(
        not_before=NOW - timedelta(days=2), not_after=NOW + timedelta(days=30), name="machine"
    )
    made = run_at(NOW - timedelta(minutes=3), NOW - timedelta(minutes=1))
    return Forger(authority=authority, events=made)


def trusting(forger: Forger) -> TrustStore:
    pin = Pin("machine root", fingerprint(forger.authority.root), "hardware", "test")
    return TrustStore().with_pins([pin])


def stamped(certificate: Certificate, tsa: Tsa) -> Certificate:
    request = timestamp.make_request(certificate)
    return timestamp.attach(certificate, request, tsa.answer(request.der), [tsa.root])


def test_what_is_stamped_is_statement_and_signature(forger: Forger) -> None:
    certificate = forger.certificate()
    envelope = canonical.loads(certificate.encode(), max_bytes=1 << 20)["dsseEnvelope"]
    assert timestamp.message(certificate) == canonical.dumps(envelope)
    other = replace(certificate, signature=b"another")
    assert timestamp.message(other) != timestamp.message(certificate)
    later = replace(certificate, timestamp=b"\x30\x00")
    assert timestamp.message(later) == timestamp.message(certificate)


def test_a_stamped_certificate_verifies_and_says_by_when_it_existed(
    forger: Forger, tsa: Tsa
) -> None:
    certificate = stamped(forger.certificate(), tsa)
    verdict = verify(certificate.encode(), trust=trusting(forger), timestamp_roots=[tsa.root])
    assert verdict.times.stamp is not None
    assert verdict.times.stamped_while_valid
    (line,) = [line for line in verdict.proved if "stamped" in line]
    assert "existed before" in line
    assert "CN=tests signer" in line
    time = to_json(verdict)["time"]
    assert time["timestamp"] == "good"
    assert time["existedBefore"] == events.format_time(verdict.times.stamp.latest)


def test_a_chain_is_kept_in_the_order_that_the_library_reads(
    forger: Forger, tmp_path: Path
) -> None:
    """`openssl ts` writes the certificates as a chain; DER wants a set in its own order."""
    for number in range(4):
        tsa = Tsa(tmp_path / str(number), intermediate=True)
        certificate = stamped(forger.certificate(), tsa)
        assert certificate.timestamp is not None
        ders = [c.public_bytes(Encoding.DER) for c in certificates_of(certificate.timestamp)]
        assert len(ders) == 3
        assert ders == sorted(ders)
        assert verify(
            certificate.encode(), trust=trusting(forger), timestamp_roots=[tsa.root]
        ).times.stamp


def test_where_no_authority_is_named_a_timestamp_bounds_nothing_and_that_is_said(
    forger: Forger, tsa: Tsa
) -> None:
    certificate = stamped(forger.certificate(), tsa)
    verdict = verify(certificate.encode(), trust=trusting(forger))
    assert verdict.times.unchecked_stamp
    assert verdict.times.not_after is None
    assert not any("stamped" in line for line in verdict.proved)
    assert any("was not checked" in line for line in verdict.not_proved)
    assert to_json(verdict)["time"]["timestamp"] == "unchecked"


def test_without_a_timestamp_nothing_is_said_of_one(forger: Forger) -> None:
    verdict = verify(forger.certificate().encode(), trust=trusting(forger))
    assert verdict.times.stamp is None
    assert not verdict.times.unchecked_stamp
    assert not any("timestamp" in line for line in verdict.not_proved)
    assert any("machine's own clock" in line for line in verdict.not_proved)
    assert to_json(verdict)["time"]["timestamp"] == "none"


def test_what_is_not_even_a_token_is_refused_also_unchecked(forger: Forger) -> None:
    for garbage in (b"", b"garbage", b"\x30\x03\x02\x01\x00"):
        certificate = replace(forger.certificate(), timestamp=garbage)
        with pytest.raises(timestamp.TimestampFormatError):
            verify(certificate.encode(), trust=trusting(forger))


def test_another_runs_timestamp_is_refused(forger: Forger, tsa: Tsa) -> None:
    other = stamped(Forger(authority=forger.authority, events=forger.events).certificate(), tsa)
    certificate = replace(forger.certificate(), timestamp=other.timestamp)
    with pytest.raises(timestamp.TimestampSubjectError):
        verify(certificate.encode(), trust=trusting(forger), timestamp_roots=[tsa.root])


def test_a_run_that_ended_after_it_was_stamped_is_refused(tsa: Tsa) -> None:
    now = datetime.now(UTC).replace(microsecond=0)  # of this test: the module's may be long past
    made = run_at(now, now + timestamp.CLOCK_TOLERANCE + timedelta(minutes=2))
    authority = Authority(not_before=now - timedelta(days=1), not_after=now + timedelta(days=30))
    forger = Forger(authority=authority, events=made)
    certificate = forger.certificate()
    answer = tsa.stamp(timestamp.message(certificate))
    certificate = replace(certificate, timestamp=token(answer))
    with pytest.raises(timestamp.TimestampContradictionError) as caught:
        verify(certificate.encode(), trust=trusting(forger), timestamp_roots=[tsa.root])
    assert caught.value.code == "timestamp.contradiction"
    assert "clock was ahead" in str(caught.value.advice)


def test_a_clock_a_little_ahead_is_no_contradiction(tsa: Tsa) -> None:
    made = run_at(NOW, NOW + timestamp.CLOCK_TOLERANCE - timedelta(minutes=1))
    authority = Authority(not_before=NOW - timedelta(days=1), not_after=NOW + timedelta(days=30))
    forger = Forger(authority=authority, events=made)
    certificate = stamped(forger.certificate(), tsa)
    assert verify(certificate.encode(), trust=trusting(forger), timestamp_roots=[tsa.root])


# -- the library ---------------------------------------------------------------------------------


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    yield


def test_a_timestamp_that_should_be_checked_is_never_skipped_for_want_of_the_library(
    forger: Forger, tsa: Tsa, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = stamped(forger.certificate(), tsa)
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    with pytest.raises(timestamp.TimestampExtraError) as caught:
        verify(certificate.encode(), trust=trusting(forger), timestamp_roots=[tsa.root])
    assert caught.value.code == "timestamp.missing-extra"
    assert "'.[timestamp]'" in str(caught.value.advice)
    # Where nobody is believed there is nothing to check, and the verdict says that.
    assert verify(certificate.encode(), trust=trusting(forger)).times.unchecked_stamp


def test_asking_for_a_timestamp_without_the_library_names_the_extra(
    forger: Forger, no_library: None
) -> None:
    with pytest.raises(timestamp.TimestampExtraError, match="rfc3161-client"):
        timestamp.make_request(forger.certificate())


# -- asking --------------------------------------------------------------------------------------


def test_an_answer_to_another_request_is_refused(forger: Forger, tsa: Tsa) -> None:
    certificate = forger.certificate()
    request = timestamp.make_request(certificate)
    answer = tsa.answer(request.der)
    with pytest.raises(timestamp.TimestampError, match="another request"):
        timestamp.attach(certificate, replace(request, nonce=request.nonce + 1), answer, [tsa.root])


def test_a_refusal_is_named_as_one(forger: Forger, tsa: Tsa) -> None:
    certificate = forger.certificate()
    request = timestamp.make_request(certificate)
    refusal = tsa.answer(b"\x30\x03\x02\x01\x01")  # not a request
    with pytest.raises(timestamp.TimestampError) as caught:
        timestamp.attach(certificate, request, refusal, [tsa.root])
    assert caught.value.got == "status 2"


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"\x30\x00", b"\x30\x02\x30\x00", bytes(1 << 17)]
)
def test_an_answer_that_is_none_is_refused(forger: Forger, tsa: Tsa, answer: bytes) -> None:
    with pytest.raises(timestamp.TimestampError):
        timestamp.attach(forger.certificate(), Request(b"", 1), answer, [tsa.root])


def test_an_authority_that_the_builder_did_not_name_is_refused_at_once(
    forger: Forger, tsa: Tsa, tmp_path: Path
) -> None:
    certificate = forger.certificate()
    request = timestamp.make_request(certificate)
    other = Tsa(tmp_path / "other", name="other")
    with pytest.raises(timestamp.TimestampAuthorityError):
        timestamp.attach(certificate, request, other.answer(request.der), [tsa.root])


# -- bounds --------------------------------------------------------------------------------------

RUN = log.parse_run(log.Record.of(event) for event in run_at(NOW, NOW + timedelta(minutes=5)))
STAMP = Stamp(NOW + timedelta(days=1), timedelta(seconds=1), "CN=somebody", frozenset())


def known(**changes: Any) -> TimeBounds:
    fields = {
        "started": NOW,
        "finished": NOW + timedelta(minutes=5),
        "key_not_before": NOW - timedelta(days=3),
        "key_not_after": NOW + timedelta(days=300),
    }
    return TimeBounds(**{**fields, **changes})


def test_bounds_without_a_timestamp_come_from_the_run_and_the_chain() -> None:
    chain = ChainInfo(Pin("x", "00", "hardware", "t"), NOW - timedelta(days=3), NOW)
    bounds = timestamp.bounds(Forger().certificate(), RUN, chain)
    assert (bounds.started, bounds.finished) == (NOW, NOW + timedelta(minutes=5))
    assert (bounds.key_not_before, bounds.key_not_after) == (NOW - timedelta(days=3), NOW)
    assert bounds.not_after is None


def test_age_counts_from_the_stated_end_or_an_earlier_timestamp() -> None:
    now = NOW + timedelta(days=10, minutes=5)
    assert known().age(now) == timedelta(days=10)
    assert known(stamp=STAMP).age(now) == timedelta(days=10)
    early = replace(STAMP, time=NOW + timedelta(minutes=2))
    assert known(stamp=early).age(now) == timedelta(days=10, minutes=2, seconds=59)


def test_only_a_stamp_before_the_chains_end_shows_that_the_key_was_vouched_for() -> None:
    assert not known().stamped_while_valid
    assert known(stamp=STAMP).stamped_while_valid
    assert not known(stamp=STAMP, key_not_after=NOW).stamped_while_valid


def test_a_certificate_outlives_its_chain_and_says_when_the_key_was_vouched_for() -> None:
    """Azure's intermediate expired in November 2025; what it vouched for before stays good."""
    start = NOW - timedelta(days=700)
    authority = Authority(
        not_before=start - timedelta(days=30), not_after=start + timedelta(days=30)
    )
    forger = Forger(authority=authority, events=run_at(start, start + timedelta(minutes=5)))
    verdict = verify(forger.certificate().encode(), trust=trusting(forger))
    assert verdict.times.key_not_after < datetime.now(UTC)
    assert verdict.assurance is Assurance.HARDWARE
