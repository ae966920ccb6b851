"""The challenge that only one TPM can answer: TPM2_MakeCredential, without a TPM.

A secret is encrypted so that the TPM which holds a certain endorsement key gives it away, and only
if it also holds a key with a certain name. Clauses are those of the TCG TPM 2.0 Library, Part 1
(Architecture), revision 1.59, unless another document is named.
"""

import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from aicert import tpm2
from aicert.errors import Error

Hash = hashes.SHA256 | hashes.SHA384


class EkTemplateError(Error):
    """The endorsement key is not one that is safe to challenge."""

    code = "enrollment.ek-template"


class SecretSizeError(Error):
    """The secret is too long for a credential."""

    code = "enrollment.secret-size"


@dataclass(frozen=True, slots=True)
class _Template:
    """What distinguishes a default EK template (TCG EK Credential Profile 2.5, B.3 and B.4)."""

    attributes: int
    name_algorithm: int
    policy: bytes
    symmetric_bits: int
    key: type[Any]
    key_size: int


# fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt; templates of the
# "high range" also userWithAuth.
_LOW, _HIGH = 0x000300B2, 0x000300F2
# PolicySecret(TPM_RH_ENDORSEMENT), and that or PolicyAuthorizeNV.
_POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
_RSA, _ECC = rsa.RSAPublicKey, ec.EllipticCurvePublicKey
_TEMPLATES = frozenset(
    {
        _Template(_LOW, tpm2.ALG_SHA256, _POLICY_A_SHA256, 128, _RSA, 2048),  # L-1
        _Template(_LOW, tpm2.ALG_SHA256, _POLICY_A_SHA256, 128, _ECC, 256),  # L-2
        _Template(_HIGH, tpm2.ALG_SHA384, _POLICY_B_SHA384, 256, _ECC, 384),  # H-3
    }
)


def make_credential(ek_public: bytes, ak_name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Encrypt a secret to the TPM that holds an EK and a key with this name (Part 1, 24.4).

    Args:
        ek_public: TPMT_PUBLIC of the EK: one of the TCG's default templates.
        ak_name: TPM Name of the attestation key.
        secret: at most as long as a digest of the EK's nameAlg.

    Returns:
        TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.

    Raises:
        EkTemplateError: the EK is another.
    """
    ek = tpm2.parse_public(ek_public)
    template = _Template(
        ek.attributes.value, ek.name_algorithm, ek.policy, ek.symmetric_bits or 0,
        _RSA if isinstance(ek.key, _RSA) else _ECC, ek.key.key_size,
    )  # fmt: skip
    # With another template the same secret key could be one that decrypts whatever it is given.
    if template not in _TEMPLATES or ek.scheme is not None:
        raise EkTemplateError(
            "the endorsement key is not made from one of the TCG's default templates",
            got=f"{ek.attributes}; {template.key.__name__} {ek.key.key_size}",
            expected="RSA 2048 (L-1), P-256 (L-2) or P-384 (H-3), with the default policy",
        )
    algorithm = hashes.SHA256() if ek.name_algorithm == tpm2.ALG_SHA256 else hashes.SHA384()
    size = algorithm.digest_size
    if len(secret) > size:
        raise SecretSizeError("the secret is too long", got=len(secret), expected=f"<= {size}")
    seed, encrypted_seed = _share_seed(ek.key, algorithm)
    key = _kdf_a(algorithm, seed, b"STORAGE", ak_name, template.symmetric_bits // 8)
    identity = _encrypt_cfb(key, _tpm2b(secret))
    mac_key = _kdf_a(algorithm, seed, b"INTEGRITY", b"", size)
    mac = hmac.digest(mac_key, identity + ak_name, algorithm.name)
    return _tpm2b(_tpm2b(mac) + identity), _tpm2b(encrypted_seed)


def _share_seed(key: tpm2.PublicKey, algorithm: Hash) -> tuple[bytes, bytes]:
    """Return a seed and its form for the TPM alone (Part 1, B.10.3 for RSA, C.6.1 for ECC)."""
    if isinstance(key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(algorithm.digest_size)
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, label=b"IDENTITY\0")
        return seed, key.encrypt(seed, oaep)
    ephemeral = ec.generate_private_key(key.curve)
    shared = ephemeral.exchange(ec.ECDH(), key)
    width = (key.key_size + 7) // 8
    ours, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = ours.x.to_bytes(width, "big"), ours.y.to_bytes(width, "big")
    # KDFe (11.4.10.3) is the concatenation KDF of SP 800-56A.
    info = b"IDENTITY\0" + x + theirs.x.to_bytes(width, "big")
    seed = ConcatKDFHash(algorithm, algorithm.digest_size, info).derive(shared)
    return seed, _tpm2b(x) + _tpm2b(y)


def _kdf_a(algorithm: Hash, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa (11.4.10.2): the KDF of SP 800-108 in counter mode, with HMAC and 32-bit integers."""
    counter = CounterLocation.BeforeFixed
    return KBKDFHMAC(
        algorithm, Mode.CounterMode, size, 4, 4, counter, label, context, fixed=None
    ).derive(key)


def _encrypt_cfb(key: bytes, data: bytes) -> bytes:
    """AES in CFB mode with an IV of zero: each key is used once (Part 1, 24.4).

    Written out because the library is about to drop this mode.
    """
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - CFB's building block
    result, feedback = b"", bytes(16)
    for start in range(0, len(data), 16):
        plain = data[start : start + 16]
        stream = block.update(feedback)
        feedback = bytes(a ^ b for a, b in zip(plain, stream, strict=False))
        result += feedback
    return result


def _tpm2b(data: bytes) -> bytes:
    """A TPM2B: a 16-bit size and as many bytes (Part 2, 10.4)."""
    return len(data).to_bytes(2, "big") + data
