"""The model signature: `model.sig`, in the OpenSSF Model Signing format, version 1.

A Sigstore bundle over the digests of the output files, so that tools that know nothing of aicert
can check the weights. The key that signs it is made in the run's TPM, signs this once, and is
certified by the attestation key (TPM2_Certify) for the certificate at hand: the statement carries
that certification beside the fields of the format, which tells readers to ignore what they do not
know. All of the statement follows from the certificate and the certification; `check` builds it
again and demands equal bytes.
"""

import base64
import hashlib
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import ec

from aicert import canonical, dsse, keys, tpm2
from aicert.certificate import MAX_BYTES, MAX_TPM_BYTES
from aicert.errors import Error
from aicert.log import Run
from aicert.reader import Reader
from aicert.verify import Verdict

NAME = "model.sig"
"""What the file is called beside the model."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"


class ModelSignatureError(Error):
    """A model signature is not the one that belongs to the certificate."""

    code = "oms.invalid"
    remedy = "take the certificate and the signature from one place; do not use this signature"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key (TPMT_PUBLIC) and what the attestation key says of it (TPMS_ATTEST, TPMT_SIGNATURE)."""

    public: bytes
    message: bytes
    signature: bytes

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The public key.

        Raises:
            AttributesError, KeySizeError: it is not a key that can sign a model.
        """
        key = self._checked.key
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    @property
    def pem(self) -> bytes:
        """The public key in PEM, as `model_signing verify key` takes it."""
        return self._checked.pem

    @property
    def _checked(self) -> tpm2.Public:
        parsed = tpm2.parse_public(self.public)
        parsed.require_signing_key()
        return parsed


def payload(certificate: str, run: Run, key: SigningKey) -> bytes:
    """Return the statement to sign; `certificate` is the digest (hex) of the run's certificate.

    That digest is also the extra data of the key's certification.
    """
    outputs = run.outputs.manifest
    return canonical.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": run.job.spec.name, "digest": {"sha256": outputs.root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                },
                "resources": [
                    {"name": file.path, "algorithm": "sha256", "digest": file.sha256}
                    for file in outputs.files
                ],
                "aicert": {
                    "certificate": {"sha256": certificate},
                    "signingKey": {
                        "public": _base64(key.public),
                        "message": _base64(key.message),
                        "signature": _base64(key.signature),
                    },
                },
            },
        }
    )


def bundle(payload: bytes, key: SigningKey, signature: bytes) -> bytes:
    """Return the file: a Sigstore bundle with the key's signature (DER) over the payload's PAE."""
    return canonical.dumps(
        {
            "mediaType": dsse.BUNDLE_TYPE,
            "verificationMaterial": {
                # The library compares this with the digest of the PEM file that it is given.
                "publicKey": {"hint": hashlib.sha256(key.pem).hexdigest()},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": _base64(payload),
                "payloadType": dsse.PAYLOAD_TYPE,
                "signatures": [{"sig": _base64(signature), "keyid": ""}],
            },
        }
    )


def check(data: bytes, verdict: Verdict) -> SigningKey:
    """Check a `model.sig` against a certificate that was verified; return the key that signed it.

    Whoever then has the stock tool check a folder with this key knows that the folder's files are
    the certificate's.

    Raises:
        ModelSignatureError: it belongs to another certificate, or says something else.
        Error: (of `tpm2`, `keys`, `canonical`) it is malformed, or a signature is wrong.
    """
    signed, signature = _read(data)
    statement = canonical.loads(signed, max_bytes=MAX_BYTES)
    try:
        carried = statement["predicate"]["aicert"]["signingKey"]
    except (KeyError, TypeError) as error:
        raise ModelSignatureError(
            "the model signature does not say which TPM its key is in",
            advice=f"only the {NAME} that an aicert run has made can be checked with a certificate",
        ) from error
    reader = Reader(carried, "signingKey", ModelSignatureError)
    key = SigningKey(
        *(
            reader.octets64(name, max_bytes=MAX_TPM_BYTES)
            for name in ("public", "message", "signature")
        )
    )
    reader.done()

    # The key is in the TPM that signed the certificate, in the same boot, and meant for it: as the
    # run made it, since a timestamp may have been added since, which gives the file another digest.
    made = replace(verdict.certificate, timestamp=None).digest
    said = tpm2.parse_certified(key.message)
    if not tpm2.parse_signature(key.signature).verify(verdict.ak, key.message):
        raise ModelSignatureError("the attestation key has not certified the signing key")
    quote = tpm2.parse_attest(verdict.certificate.quote.message)
    boot = (said.qualified_signer, said.clock.reset_count, said.clock.restart_count)
    if boot != (quote.qualified_signer, quote.clock.reset_count, quote.clock.restart_count):
        raise ModelSignatureError("the signing key was certified in another boot than the run's")
    if said.name != tpm2.parse_public(key.public).name:
        raise ModelSignatureError("the attestation key has certified another key")
    if said.extra_data != bytes.fromhex(made):
        raise ModelSignatureError(
            "the model signature belongs to another certificate",
            got=said.extra_data,
            expected=made,
        )
    # It signed what follows from the certificate, and the bundle is written in one way.
    keys.verify(key.key, signature, dsse.pae(signed))
    if payload(made, verdict.run, key) != signed:
        raise ModelSignatureError("the model signature says something else than the certificate")
    if bundle(signed, key, signature) != data:
        raise ModelSignatureError("the model signature holds something besides what was signed")
    return key


def _read(data: bytes) -> tuple[bytes, bytes]:
    """Return the payload and the signature of a bundle."""
    top = Reader(
        canonical.loads_canonical(data, max_bytes=MAX_BYTES), "model.sig", ModelSignatureError
    )
    envelope = top.child("dsseEnvelope")
    (signature,) = envelope.children("signatures", min_items=1, max_items=1)
    return (
        envelope.octets64("payload", max_bytes=MAX_BYTES),
        signature.octets64("sig", max_bytes=MAX_TPM_BYTES),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
