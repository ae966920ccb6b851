"""Endorsement certificates: which are accepted, and each way to be refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from aicert.agent.endorsement import EkCertificateError, EkUntrustedError, check_ek_certificate
from tests.support.tpm import run_tool

NOW = datetime.now(UTC).replace(microsecond=0)
EK, AK, PLATFORM = (ObjectIdentifier(f"2.23.133.8.{n}") for n in (1, 3, 2))
KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "middle", "low", "ek")}


def certify(subject: str, issuer: str, **options: Any) -> x509.Certificate:
    """A certificate for KEYS[subject] by KEYS[issuer]; options lie about the rest."""
    key = options.get("key", KEYS[subject].public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(options.get("subject_name", subject)))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(options.get("not_before", NOW - timedelta(days=1)))
        .not_valid_after(options.get("not_after", NOW + timedelta(days=1)))
    )
    is_ca = options.get("ca", subject != "ek")
    if is_ca is not None:
        length = options.get("path_length") if is_ca else None
        builder = builder.add_extension(x509.BasicConstraints(is_ca, length), critical=True)
    usage = options.get("usage", [EK] if subject == "ek" else None)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    if (signs := options.get("signs_certificates")) is not None:
        bits = dict.fromkeys(_USAGES, False)
        builder = builder.add_extension(
            x509.KeyUsage(**{**bits, "key_cert_sign": signs, "crl_sign": True}), critical=True
        )
    if (oid := options.get("critical")) is not None:
        unknown = x509.UnrecognizedExtension(ObjectIdentifier(oid), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    by = options["by"] if "by" in options else KEYS[issuer]
    return builder.sign(by, options.get("hash", hashes.SHA256()))


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def bundle(*certificates: x509.Certificate) -> bytes:
    pem = serialization.Encoding.PEM
    return b"".join(certificate.public_bytes(pem) for certificate in certificates)


def check(leaf: x509.Certificate, *authorities: x509.Certificate) -> None:
    der = leaf.public_bytes(serialization.Encoding.DER)
    assert check_ek_certificate(der, bundle(*authorities), at=NOW) == leaf


ROOT = certify("root", "root")
MIDDLE = certify("middle", "root")
LOW = certify("low", "middle")


def test_a_root_may_vouch_directly_or_over_intermediates() -> None:
    check(certify("ek", "root"), ROOT)
    check(certify("ek", "low"), ROOT, MIDDLE, LOW)
    check(certify("ek", "low"), LOW, MIDDLE, ROOT, certify("root", "root"))
    check(certify("ek", "root", ca=None), ROOT)


def test_of_two_ways_one_is_enough() -> None:
    """A cross-signed intermediate: one of its issuers is not there, or has run out."""
    expired = certify("middle", "root", not_after=NOW - timedelta(hours=1))
    elsewhere = certify("middle", "another", by=ec.generate_private_key(ec.SECP256R1()))
    check(certify("ek", "middle"), expired, elsewhere, MIDDLE, ROOT)


def test_a_root_may_have_an_old_signature_of_its_own_but_nothing_else_may(tmp_path: Path) -> None:
    """A root's signature over itself proves nothing: it is trusted because it is in the bundle."""
    key = rsa.generate_private_key(65537, 2048)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    plain = key.private_bytes(pem, form, serialization.NoEncryption())
    (tmp_path / "key").write_bytes(plain)
    command = ["openssl", "req", "-x509", "-sha1", "-key", "key", "-subj", "/CN=root"]
    run_tool(*command, "-out", "root", cwd=tmp_path)
    root = x509.load_pem_x509_certificate((tmp_path / "root").read_bytes())
    assert isinstance(root.signature_hash_algorithm, hashes.SHA1)
    middle = certify("middle", "root", by=key)
    later = root.not_valid_before_utc + timedelta(minutes=1)
    leaf = certify("ek", "middle").public_bytes(serialization.Encoding.DER)
    assert check_ek_certificate(leaf, bundle(root, middle), at=later)
    # The same certificate, as an intermediate: its new issuer signed it with SHA-1 as well.
    (tmp_path / "csr.key").write_bytes(plain)
    command = ["openssl", "req", "-new", "-key", "csr.key", "-subj", "/CN=low", "-out", "csr"]
    run_tool(*command, cwd=tmp_path)
    (tmp_path / "ext").write_text("basicConstraints=critical,CA:TRUE\n")
    command = ["openssl", "x509", "-req", "-in", "csr", "-CA", "root", "-CAkey", "key", "-sha1"]
    run_tool(*command, "-extfile", "ext", "-out", "low", cwd=tmp_path)
    low = x509.load_pem_x509_certificate((tmp_path / "low").read_bytes())
    leaf = certify("ek", "low", by=key).public_bytes(serialization.Encoding.DER)
    with pytest.raises(EkUntrustedError):
        check_ek_certificate(leaf, bundle(root, low), at=later)


@pytest.mark.parametrize("missing", [ROOT, MIDDLE, LOW])
def test_a_gap_in_the_chain_is_refused(missing: x509.Certificate) -> None:
    there = [certificate for certificate in (ROOT, MIDDLE, LOW) if certificate != missing]
    with pytest.raises(EkUntrustedError) as caught:
        check(certify("ek", "low"), *there)
    assert caught.value.code == "enrollment.ek-untrusted"
    assert "CN=low" in str(caught.value.got)


BEFORE, AFTER = NOW - timedelta(hours=1), NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    ("leaf", "authorities"),
    [
        # a forged signature, under the right names
        (certify("ek", "root", by=KEYS["low"]), [ROOT]),
        (certify("ek", "middle"), [ROOT, certify("middle", "root", by=KEYS["low"])]),
        # the right key, under another name
        (certify("ek", "somebody", by=KEYS["root"]), [ROOT]),
        # not valid at the time
        (certify("ek", "root", not_after=BEFORE), [ROOT]),
        (certify("ek", "root", not_before=AFTER), [ROOT]),
        (certify("ek", "root"), [certify("root", "root", not_after=BEFORE)]),
        (certify("ek", "middle"), [ROOT, certify("middle", "root", not_after=BEFORE)]),
        # not a CA, or not one that may issue certificates
        (certify("ek", "root"), [certify("root", "root", ca=False)]),
        (certify("ek", "root"), [certify("root", "root", ca=None)]),
        (certify("ek", "middle"), [ROOT, certify("middle", "root", ca=False)]),
        (certify("ek", "middle"), [ROOT, certify("middle", "root", signs_certificates=False)]),
        # more CAs than one of them allows
        (certify("ek", "low"), [certify("root", "root", path_length=1), MIDDLE, LOW]),
        (certify("ek", "low"), [ROOT, certify("middle", "root", path_length=0), LOW]),
        # an extension that is not understood
        (certify("ek", "middle"), [ROOT, certify("middle", "root", critical="1.2.3.4")]),
        (certify("ek", "middle"), [ROOT, certify("middle", "root", critical="2.5.29.30")]),
        # a hash that is too short
        (certify("ek", "root", hash=hashes.SHA224()), [ROOT]),
        (certify("ek", "middle"), [ROOT, certify("middle", "root", hash=hashes.SHA224())]),
        # two CAs that vouch for each other
        (certify("ek", "low"), [certify("low", "middle"), certify("middle", "low")]),
    ],
)  # fmt: skip
def test_a_chain_that_is_not_right_is_refused(
    leaf: x509.Certificate, authorities: list[x509.Certificate]
) -> None:
    with pytest.raises(EkUntrustedError):
        check(leaf, *authorities)


def test_as_many_cas_as_are_allowed_are_accepted() -> None:
    check(
        certify("ek", "low"),
        certify("root", "root", path_length=2, signs_certificates=True),
        certify("middle", "root", path_length=1, signs_certificates=True),
        certify("low", "middle", path_length=0),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"usage": None},
        {"usage": [AK]},
        {"usage": [PLATFORM]},
        {"ca": True},
        {"critical": "1.2.3.4"},
        {"critical": "2.5.29.30"},  # and malformed
    ],
)
def test_a_certificate_for_another_use_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EkCertificateError) as caught:
        check(certify("ek", "root", **options), ROOT)
    assert caught.value.code == "enrollment.ek-certificate"


@pytest.mark.parametrize("bad", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_bundle_that_cannot_be_read_is_refused(bad: bytes) -> None:
    der = certify("ek", "root").public_bytes(serialization.Encoding.DER)
    with pytest.raises(EkUntrustedError):
        check_ek_certificate(der, bad, at=NOW)


def test_bytes_that_are_no_certificate_are_refused() -> None:
    der = certify("ek", "root").public_bytes(serialization.Encoding.DER)
    for bad in (b"", b"\0", der[:-1], der + b"\0", b"\x30\x82\x40\x01" + bytes(20_000)):
        with pytest.raises(EkCertificateError):
            check_ek_certificate(bad, bundle(ROOT), at=NOW)
    with pytest.raises(EkCertificateError) as caught:
        check_ek_certificate(None, bundle(ROOT), at=NOW)
    assert caught.value.advice is not None


def test_the_time_is_now_unless_another_is_given() -> None:
    expired = certify("ek", "root", not_after=BEFORE)
    der = expired.public_bytes(serialization.Encoding.DER)
    earlier = BEFORE - timedelta(minutes=1)
    assert check_ek_certificate(der, bundle(ROOT), at=earlier) == expired
    with pytest.raises(EkUntrustedError):
        check_ek_certificate(der, bundle(ROOT))
