"""Ordinary signing keys: those of people who publish reference values or verdicts, not a TPM's.

Three kinds are accepted: ECDSA on P-256 with SHA-256, ECDSA on P-384 with SHA-384, and Ed25519. A
key is named by the SHA-256 of its SubjectPublicKeyInfo (DER); that is what a policy pins.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from aicert import dsse
from aicert.errors import Error

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

MAX_KEY_BYTES = 16 << 10
MAX_SPKI_BYTES = 512
MAX_SIGNATURE_BYTES = 256
_KINDS = "ECDSA on P-256 or P-384, or Ed25519"


class KeyFileError(Error):
    """A key cannot be read, or is of a kind that is not accepted."""

    code = "key.invalid"
    remedy = "use a key for ECDSA on P-256 or P-384, or Ed25519"


class KeySignatureError(Error):
    """A signature is not the key's."""

    code = "key.signature"
    remedy = "get the signed file again from whoever signed it"


def load_private_key(path: Path, password: bytes | None = None) -> PrivateKey:
    """Load a private key from a PEM file.

    Raises:
        KeyFileError: the file cannot be read, is encrypted, or holds another kind of key.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_KEY_BYTES:
        raise KeyFileError(f"the key file {path} is too large for a key")
    try:
        key = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{path} holds no private key that can be read",
            expected="a private key in PEM, not encrypted"
            if password is None
            else "a private key in PEM, and its password",
        ) from error
    if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        hash_of(key.public_key())
        return key
    raise _wrong_kind(key)


def load_public_key(spki: bytes) -> PublicKey:
    """Read a public key from its SubjectPublicKeyInfo in DER (RFC 5280, 4.1).

    Raises:
        KeyFileError: it is malformed, not in its one encoding, or of another kind.
    """
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError("the public key cannot be read", got=spki) from error
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise _wrong_kind(key)
    hash_of(key)
    if spki_of(key) != spki:
        raise KeyFileError("the public key is not in its canonical encoding", got=spki)
    return key


def spki_of(key: PrivateKey | PublicKey) -> bytes:
    """Return the key's SubjectPublicKeyInfo in DER."""
    if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        key = key.public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: PrivateKey | PublicKey) -> str:
    """Return the key's name: the SHA-256, in hex, of its SubjectPublicKeyInfo."""
    return hashlib.sha256(spki_of(key)).hexdigest()


def hash_of(key: PublicKey) -> hashes.HashAlgorithm | None:
    """Return the hash that goes with a key; None for Ed25519, which has its own.

    Raises:
        KeyFileError: the key is on another curve.
    """
    if isinstance(key, ed25519.Ed25519PublicKey):
        return None
    if isinstance(key.curve, ec.SECP256R1):
        return hashes.SHA256()
    if isinstance(key.curve, ec.SECP384R1):
        return hashes.SHA384()
    raise _wrong_kind(key)


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Return the key's signature over `data`: DER for ECDSA, 64 bytes for Ed25519."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    algorithm = hash_of(key.public_key())
    assert algorithm is not None
    return key.sign(data, ec.ECDSA(algorithm))


def verify(key: PublicKey, signature: bytes, data: bytes) -> None:
    """Check a signature over `data`.

    Raises:
        KeySignatureError: it is not the key's, or not in its one encoding.
    """
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
            return
        # OpenSSL reads some DER that is not DER; two encodings of one signature are one too many.
        if encode_dss_signature(*decode_dss_signature(signature)) != signature:
            raise ValueError("not DER")
        algorithm = hash_of(key)
        assert algorithm is not None
        key.verify(signature, data, ec.ECDSA(algorithm))
    except (InvalidSignature, ValueError) as error:
        raise KeySignatureError("the signature is not the key's", got=fingerprint(key)) from error


def envelope(payload: bytes, payload_type: str, key: PrivateKey) -> dict[str, Any]:
    """Return `payload` in a DSSE envelope with the key's one signature (DSSE 1.0.2, JSON form)."""
    return {
        "payloadType": payload_type,
        "payload": base64.b64encode(payload).decode("ascii"),
        "signatures": [
            {
                "keyid": fingerprint(key),
                "sig": base64.b64encode(sign(key, dsse.pae(payload, payload_type))).decode("ascii"),
            }
        ],
    }


def _wrong_kind(key: object) -> KeyFileError:
    if isinstance(key, ec.EllipticCurvePublicKey):
        got = f"a key on {key.curve.name}"
    else:
        got = type(key).__name__.strip("_")
    return KeyFileError("this kind of key is not accepted", got=got, expected=_KINDS)
