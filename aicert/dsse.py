"""Dead Simple Signing Envelope: the bytes that are signed (DSSE 1.0.2, protocol)."""

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""The payload type of an in-toto statement."""

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""The media type of a Sigstore bundle, which may hold an envelope."""


def pae(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the pre-authentication encoding of a payload.

    `"DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload`, lengths in bytes as ASCII decimals.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
