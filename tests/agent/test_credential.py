"""Credentials: against the specification, against tpm2_pytss's own, and against a TPM."""

import hmac
import secrets
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from tpm2_pytss import TPM2B_PUBLIC, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential as independent_make_credential

from aicert import tpm2
from aicert.agent import credential
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import EkKind, Tpm
from tests.support.forger import new_key, public_area
from tests.support.tpm import Factory, made_up_ek

KINDS: tuple[EkKind, ...] = ("ecc256", "ecc384", "rsa2048")
NAME = b"\x00\x0b" + bytes(32)


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("tpms"))


@pytest.fixture
def tpm(factory: Factory) -> Iterator[Tpm]:
    with Swtpm(factory.make()) as swtpm, Tpm(swtpm.tcti) as connected:
        yield connected


def read(data: bytes) -> tuple[bytes, bytes]:
    """A TPM2B, and what follows it."""
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


@pytest.mark.parametrize("kind", ["ecc256", "ecc384", "rsa2048"])
def test_a_credential_can_be_opened_by_hand_from_the_specification(kind: str) -> None:
    """Part 1, 24 and 11.4.10, step by step, with hmac and hashlib alone."""
    key, public, new = made_up_ek(kind)
    blob, encrypted = credential.make_credential(public, NAME, b"the secret" * 3)
    encrypted, rest = read(encrypted)
    assert rest == b""
    size = new().digest_size
    if isinstance(key, rsa.RSAPrivateKey):
        sha256 = hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(sha256), sha256, b"IDENTITY\0")
        seed = key.decrypt(encrypted, oaep)
        assert len(seed) == size
    else:
        x, rest = read(encrypted)
        y, rest = read(rest)
        width = key.key_size // 8
        assert (len(x), len(y), rest) == (width, width, b"")
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), key.curve
        )
        z = key.exchange(ec.ECDH(), numbers.public_key())
        ours = key.public_key().public_numbers().x.to_bytes(width, "big")
        seed = new(b"\0\0\0\1" + z + b"IDENTITY\0" + x + ours).digest()
    bits = 128 if size == 32 else 256
    storage = hmac.digest(seed, b"\0\0\0\1STORAGE\0" + NAME + bits.to_bytes(4, "big"), new)[
        : bits // 8
    ]
    integrity = hmac.digest(seed, b"\0\0\0\1INTEGRITY\0" + (size * 8).to_bytes(4, "big"), new)
    blob, rest = read(blob)
    assert rest == b""
    mac, identity = read(blob)
    assert mac == hmac.digest(integrity, identity + NAME, new)
    # CFB: each block of the stream is the cipher over the block of ciphertext before it.
    cipher = Cipher(algorithms.AES(storage), modes.ECB()).encryptor()
    stream = cipher.update(bytes(16) + identity[:16] + identity[16:32])[: len(identity)]
    plain = bytes(a ^ b for a, b in zip(identity, stream, strict=True))
    assert plain == b"\0\x1e" + b"the secret" * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_tpm_takes_both_makers_credentials_alike(tpm: Tpm, kind: EkKind) -> None:
    ak = tpm.create_ak(ek=kind)
    public, _ = TPMT_PUBLIC.unmarshal(tpm.ek_public(kind))
    secret = secrets.token_bytes(32)
    ours = credential.make_credential(tpm.ek_public(kind), ak.name, secret)
    theirs = independent_make_credential(TPM2B_PUBLIC(public), secret, ak.name)
    assert [len(part) for part in ours] == [len(part.marshal()) for part in theirs]
    assert tpm.activate(ak, *ours) == secret
    assert tpm.activate(ak, *(part.marshal() for part in theirs)) == secret


def test_no_two_credentials_are_alike(tpm: Tpm) -> None:
    for kind in KINDS:
        one, two = (
            credential.make_credential(tpm.ek_public(kind), NAME, b"s" * 32) for _ in range(2)
        )
        assert one[0] != two[0]
        assert one[1] != two[1]


def test_a_secret_that_is_longer_than_a_digest_is_refused(tpm: Tpm) -> None:
    for kind, size in (("rsa2048", 32), ("ecc384", 48)):
        public = tpm.ek_public(kind)  # type: ignore[arg-type]
        credential.make_credential(public, NAME, b"s" * size)
        with pytest.raises(credential.SecretSizeError):
            credential.make_credential(public, NAME, b"s" * (size + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bit", [1, 2, 4, 5, 6, 7, 10, 11, 16, 17, 18])
def test_an_ek_with_other_attributes_is_refused(tpm: Tpm, kind: EkKind, bit: int) -> None:
    altered = bytearray(tpm.ek_public(kind))
    altered[7 - bit // 8] ^= 1 << bit % 8
    tpm2.parse_public(bytes(altered))  # it is only the attribute that is wrong
    with pytest.raises(credential.EkTemplateError) as caught:
        credential.make_credential(bytes(altered), NAME, b"s")
    assert caught.value.code == "enrollment.ek-template"


@pytest.mark.parametrize("kind", KINDS)
def test_an_ek_with_another_policy_or_cipher_is_refused(tpm: Tpm, kind: EkKind) -> None:
    public = tpm.ek_public(kind)
    size = int.from_bytes(public[8:10], "big")
    other_policy = public[:10] + bytes(size) + public[10 + size :]
    no_policy = public[:8] + bytes(2) + public[10 + size :]
    cipher = 10 + size
    other_bits = public[: cipher + 2] + (192).to_bytes(2, "big") + public[cipher + 4 :]
    no_cipher = public[:cipher] + b"\x00\x10" + public[cipher + 6 :]
    for altered in (other_policy, no_policy, other_bits, no_cipher):
        tpm2.parse_public(altered)
        with pytest.raises(credential.EkTemplateError):
            credential.make_credential(altered, NAME, b"s")


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_a_signing_key_is_no_ek(kind: str) -> None:
    with pytest.raises(credential.EkTemplateError):
        credential.make_credential(public_area(new_key(kind)), NAME, b"s")
