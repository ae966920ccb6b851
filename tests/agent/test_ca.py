"""The operator's CA, and enrolment: only a key that lives in a TPM gets a certificate."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from aicert import tpm2, trust
from aicert import x509 as chains
from aicert.agent import ca as module
from aicert.agent.ca import Challenge, DevelopmentCa, Enrollment, Identity
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Ak, Algorithm, EkKind, Tpm
from aicert.agent.tpm_errors import CredentialError
from aicert.errors import Error
from aicert.reader import FieldError
from tests.support import forger
from tests.support.tpm import Factory, made_up_ek, run_tool

RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("tpms"))


@pytest.fixture
def tpm(factory: Factory) -> Iterator[Tpm]:
    with Swtpm(factory.make()) as swtpm, Tpm(swtpm.tcti) as connected:
        yield connected


@pytest.fixture
def ca(tmp_path: Path) -> DevelopmentCa:
    return DevelopmentCa.open_or_create(tmp_path / "ca")


def identity_of(tpm: Tpm, ak: Ak) -> Identity:
    return Identity(tpm.ek_certificate(ak.ek), tpm.ek_public(ak.ek), ak.public)


def parse(chain: list[bytes]) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in chain]


# -- the CA ----------------------------------------------------------------------------------------


def test_a_ca_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = DevelopmentCa.open_or_create(tmp_path / "deep" / "ca")
    again = DevelopmentCa.open_or_create(tmp_path / "deep" / "ca")
    assert first.root_fingerprint == again.root_fingerprint
    (name,) = first.root_certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "aicert development root CA"
    other = DevelopmentCa.open_or_create(tmp_path / "other")
    assert other.root_fingerprint != first.root_fingerprint


def test_many_processes_at_once_make_one_ca(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from aicert.agent.ca import DevelopmentCa\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(DevelopmentCa.open_or_create(Path(sys.argv[1])).root_fingerprint)\n"
    )
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "ca")], stdin=pipe, stdout=pipe, text=True
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert answers == {DevelopmentCa.open_or_create(tmp_path / "ca").root_fingerprint + "\n"}
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["authority", "lock"]


def test_one_who_was_killed_while_making_a_ca_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o700)
    (tmp_path / "ca" / "new").mkdir()
    (tmp_path / "ca" / "new" / "root.pem").write_text("half")
    assert DevelopmentCa.open_or_create(tmp_path / "ca").root_pem.startswith(b"-----BEGIN")


def test_keys_are_for_their_owner_alone_and_the_roots_is_gone(
    ca: DevelopmentCa, tmp_path: Path
) -> None:
    files = {path.name: path for path in (tmp_path / "ca" / "authority").iterdir()}
    assert sorted(files) == ["ak.key", "ak.pem", "ek.key", "ek.pem", "root.pem"]
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    root = ca.root_certificate.public_key().public_bytes(*SPKI)
    for name in ("ak.key", "ek.key"):
        key: Any = serialization.load_pem_private_key(files[name].read_bytes(), None)
        assert key.public_key().public_bytes(*SPKI) != root


SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("folder", ["ca", "ca/authority"])
@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_ca_that_others_could_read_is_refused(
    ca: DevelopmentCa, tmp_path: Path, folder: str, mode: int
) -> None:
    (tmp_path / folder).chmod(mode)
    with pytest.raises(module.CaPermissionError) as caught:
        DevelopmentCa.open_or_create(tmp_path / "ca")
    assert caught.value.code == "ca.permissions"
    assert "chmod 700" in str(caught.value.advice)


@pytest.mark.parametrize("name", ["ak.key", "ak.pem", "ek.pem", "root.pem"])
@pytest.mark.parametrize("damage", ["gone", "garbage", "another"])
def test_a_damaged_ca_is_refused_and_never_replaced(
    ca: DevelopmentCa, tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / "ca" / "authority" / name
    if damage == "gone":
        path.unlink()
    elif damage == "garbage":
        path.write_text("garbage")
    else:
        DevelopmentCa.open_or_create(tmp_path / "other")
        path.write_bytes((tmp_path / "other" / "authority" / name).read_bytes())
    with pytest.raises(module.CaError) as caught:
        DevelopmentCa.open_or_create(tmp_path / "ca")
    assert caught.value.code == "ca.failed"


def test_an_expired_ca_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ISSUER_LIFETIME", timedelta(seconds=-60))
    with pytest.raises(module.CaExpiredError) as caught:
        DevelopmentCa.open_or_create(tmp_path / "ca")
    assert caught.value.code == "ca.expired"


# -- the certificate -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_openssl_accepts_the_chain(ca: DevelopmentCa, tmp_path: Path, kind: str) -> None:
    chain = ca.issue_ak_certificate(forger.public_area(forger.new_key(kind)))
    assert len(chain) == 3
    for name, certificate in zip(("leaf", "issuer", "root"), parse(chain), strict=True):
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    for options in ([], ["-x509_strict"], ["-x509_strict", "-check_ss_sig", "-policy_check"]):
        command = ["openssl", "verify", *options, "-CAfile", "root.pem"]
        command += ["-untrusted", "issuer.pem", "leaf.pem"]
        assert "leaf.pem: OK" in run_tool(*command, cwd=tmp_path)
    assert (tmp_path / "root.pem").read_bytes() == ca.root_pem


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_the_verifier_accepts_the_chain_if_the_root_is_pinned(ca: DevelopmentCa, kind: str) -> None:
    public = forger.public_area(forger.new_key(kind))
    chain, key = ca.issue_ak_certificate(public), tpm2.parse_public(public).key
    now = datetime.now(UTC)
    pin = trust.Pin("ours", ca.root_fingerprint, "simulated", "here")
    store = trust.TrustStore().with_pins([pin])
    info = chains.verify_chain(chain, store, at=[now], key=key)
    assert info.pin == pin
    # For a year; and from a little before now, for clocks that are slow.
    assert timedelta(minutes=4) < now - info.not_before < timedelta(minutes=6)
    assert timedelta(days=364) < info.not_after - now < timedelta(days=366)
    with pytest.raises(chains.UnpinnedRootError):
        chains.verify_chain(chain, trust.TrustStore.builtin(), at=[now], key=key)


def test_the_leaf_is_for_attestation_and_nothing_else(ca: DevelopmentCa) -> None:
    public = forger.public_area(forger.new_key())
    leaf, issuer, root = parse(ca.issue_ak_certificate(public))
    extensions = leaf.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not (usage.value.key_cert_sign or usage.value.key_encipherment)
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [oid.dotted_string for oid in extended] == ["2.23.133.8.3"]
    for certificate, lengths in ((issuer, 0), (root, 1)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value.path_length == lengths
    again = parse(ca.issue_ak_certificate(public))[0]
    assert again.serial_number != leaf.serial_number


def test_a_certificate_does_not_outlive_its_issuer(ca: DevelopmentCa) -> None:
    public = forger.public_area(forger.new_key())
    leaf, issuer, _ = parse(ca.issue_ak_certificate(public, lifetime=timedelta(days=9999)))
    assert leaf.not_valid_after_utc == issuer.not_valid_after_utc


@pytest.mark.parametrize(
    "attributes",
    [
        forger.AK_ATTRIBUTES & ~forger.FIXED_TPM,
        forger.AK_ATTRIBUTES & ~forger.FIXED_PARENT,
        forger.AK_ATTRIBUTES & ~forger.SENSITIVE_ORIGIN,
        forger.AK_ATTRIBUTES & ~forger.RESTRICTED,
        forger.AK_ATTRIBUTES & ~forger.SIGN,
        forger.AK_ATTRIBUTES | forger.DECRYPT,
    ],
)
def test_a_key_that_could_sign_forged_quotes_gets_no_certificate(
    ca: DevelopmentCa, attributes: int
) -> None:
    public = forger.public_area(forger.new_key(), attributes)
    with pytest.raises(tpm2.AkError):
        ca.issue_ak_certificate(public)


# -- enrolment -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "ek"),
    [("ecc", "ecc384"), ("ecc", "rsa2048"), ("rsa", "rsa2048"), ("rsa", "ecc384")],
)
def test_a_key_in_a_tpm_is_certified(
    tpm: Tpm, factory: Factory, algorithm: Algorithm, ek: EkKind
) -> None:
    ak = tpm.create_ak(algorithm, ek=ek)
    enrollment = Enrollment(factory.ca, factory.ca.ek_roots)
    challenge = enrollment.begin(Identity.from_json(identity_of(tpm, ak).to_json()))
    chain = enrollment.finish(
        tpm.activate(ak, challenge.credential_blob, challenge.encrypted_secret)
    )
    leaf = parse(chain)[0]
    key = tpm2.parse_public(ak.public).key
    assert leaf.public_key().public_bytes(*SPKI) == key.public_bytes(*SPKI)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (name,) = names.get_values_for_type(x509.DirectoryName)
    assert [part.value for part in name] == ["id:00001014", "swtpm", "id:20191023"]


def test_a_vendors_roots_and_intermediates_serve_as_well(tpm: Tpm, ca: DevelopmentCa) -> None:
    """An operator's machine: the EK certificate is not the CA's own."""
    vendor, ak = Vendor(), tpm.create_ak()
    der = vendor.certify(tpm2.parse_public(tpm.ek_public(ak.ek)).key)
    enrollment = Enrollment(ca, vendor.bundle)
    challenge = enrollment.begin(Identity(der, tpm.ek_public(ak.ek), ak.public))
    answer = tpm.activate(ak, challenge.credential_blob, challenge.encrypted_secret)
    assert len(enrollment.finish(answer)) == 3


def test_the_wrong_secret_gets_no_certificate_and_no_second_try(tpm: Tpm, factory: Factory) -> None:
    ak = tpm.create_ak()
    enrollment = Enrollment(factory.ca, factory.ca.ek_roots)
    challenge = enrollment.begin(identity_of(tpm, ak))
    right = tpm.activate(ak, challenge.credential_blob, challenge.encrypted_secret)
    for wrong in (b"", right[:-1], right + b"\0", bytes(32)):
        with pytest.raises(module.WrongSecretError) as caught:
            enrollment.finish(wrong)
        assert caught.value.code == "enrollment.wrong-secret"
        with pytest.raises(module.OrderError):
            enrollment.finish(right)
        challenge = enrollment.begin(identity_of(tpm, ak))
        with pytest.raises(module.WrongSecretError):  # the old answer to the new challenge
            enrollment.finish(right)
        challenge = enrollment.begin(identity_of(tpm, ak))
        right = tpm.activate(ak, challenge.credential_blob, challenge.encrypted_secret)
    assert enrollment.finish(right)
    with pytest.raises(module.OrderError):
        enrollment.finish(right)


def test_there_is_no_answer_without_a_challenge(ca: DevelopmentCa) -> None:
    with pytest.raises(module.OrderError):
        Enrollment(ca, ca.ek_roots).finish(b"")


def test_a_tpm_cannot_answer_for_a_key_that_it_does_not_hold(tpm: Tpm, factory: Factory) -> None:
    """The attack that activation is for: somebody's own key, presented with a good EK."""
    ak = tpm.create_ak()
    outside = forger.public_area(forger.new_key())
    enrollment = Enrollment(factory.ca, factory.ca.ek_roots)
    challenge = enrollment.begin(dataclasses.replace(identity_of(tpm, ak), ak_public=outside))
    with pytest.raises(CredentialError):
        tpm.activate(ak, challenge.credential_blob, challenge.encrypted_secret)


def test_another_tpm_cannot_answer(
    tpm: Tpm, factory: Factory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_factory = Factory(tmp_path_factory.mktemp("other"))
    with Swtpm(other_factory.make()) as swtpm, Tpm(swtpm.tcti) as other:
        ak = other.create_ak()
        mixed = Identity(tpm.ek_certificate("ecc384"), tpm.ek_public("ecc384"), ak.public)
        challenge = Enrollment(factory.ca, factory.ca.ek_roots).begin(mixed)
        with pytest.raises(CredentialError):
            other.activate(ak, challenge.credential_blob, challenge.encrypted_secret)


class Vendor:
    """A maker of TPMs: a root, an intermediate, EK certificates."""

    def __init__(self) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        day = timedelta(days=1)
        self.authority = forger.Authority(not_before=now - day, not_after=now + day, name="vendor")
        _, self.intermediate, self.root = parse(list(self.authority.chain(self._any_key())))
        self.bundle = self.pem(self.intermediate) + self.pem(self.root)

    @staticmethod
    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    @staticmethod
    def _any_key() -> Any:
        return forger.new_key().public_key()

    def certify(self, key: Any, **options: Any) -> bytes:
        return self.authority.chain(key, **{"usage": forger.EK_USAGE, **options})[0]


@pytest.fixture(scope="session")
def vendor() -> Vendor:
    return Vendor()


def begin(ca: DevelopmentCa, bundle: bytes, identity: Identity, **changes: Any) -> Challenge:
    return Enrollment(ca, bundle).begin(dataclasses.replace(identity, **changes))


def test_what_does_not_fit_together_is_refused(ca: DevelopmentCa, vendor: Vendor) -> None:
    key, public, _ = made_up_ek("ecc384")
    ak_public = forger.public_area(forger.new_key())
    good = Identity(vendor.certify(key.public_key()), public, ak_public)
    begin(ca, vendor.bundle, good)  # so each refusal has only the cause that it names

    other_key, other_public, _ = made_up_ek("rsa2048")
    unscheme = ak_public.replace(bytes.fromhex("0018000b0003"), bytes.fromhex("00100003"))
    altered = bytearray(public)
    altered[5] ^= 4  # decrypt becomes sign, in effect: another template
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"ek_certificate": None}, "enrollment.ek-certificate"),
        ({"ek_certificate": b"garbage"}, "enrollment.ek-certificate"),
        ({"ek_certificate": b"\x30" * 20_000}, "enrollment.ek-certificate"),
        ({"ek_certificate": vendor.certify(other_key.public_key())}, "enrollment.ek-mismatch"),
        ({"ek_public": other_public}, "enrollment.ek-mismatch"),
        ({"ek_public": bytes(altered)}, "enrollment.ek-template"),
        ({"ek_public": public + b"\0"}, "tpm.trailing-bytes"),
        ({"ak_public": public}, "ak.attributes"),
        ({"ak_public": unscheme}, "enrollment.ak-scheme"),
        ({"ak_public": b""}, "tpm.structure"),
    ]
    for changes, code in refusals:
        with pytest.raises(Error) as caught:
            begin(ca, vendor.bundle, good, **changes)
        assert caught.value.code == code, changes
    with pytest.raises(Error) as caught:
        begin(ca, ca.ek_roots, good)
    assert caught.value.code == "enrollment.ek-untrusted"


def test_an_identity_survives_its_json_form() -> None:
    for certificate in (None, b"certificate"):
        identity = Identity(certificate, b"ek", b"ak")
        assert Identity.from_json(identity.to_json()) == identity


@pytest.mark.parametrize(
    "changes",
    [{"more": 1}, {"ekPublic": None}, {"akPublic": "A"}, {"ekPublic": "A" * 10_000}],
)
def test_a_malformed_identity_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        Identity.from_json({**Identity(None, b"ek", b"ak").to_json(), **changes})
