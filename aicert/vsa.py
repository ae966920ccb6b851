"""Verification summaries: a verdict as an in-toto attestation that other tools read.

The statement has the predicate `https://slsa.dev/verification_summary/v1` (SLSA 1.x, Verification
Summary Attestation). It says that somebody verified a certificate, under which policy, with what
result; it is worth what its signer's word is worth. The levels are aicert's own, such as
`AICERT_HARDWARE`; nothing here claims a SLSA level.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aicert import __version__, canonical, dsse, keys
from aicert.assurance import Assurance
from aicert.errors import Error
from aicert.events import format_time

if TYPE_CHECKING:
    from aicert.policy import Policy
    from aicert.verify import Verdict

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/verification_summary/v1"
VERIFIER_ID = "urn:aicert:verifier:v1"
"""Who verified, where the caller does not say: this program, wherever it ran."""

PASSED, FAILED = "PASSED", "FAILED"


class SummaryError(Error):
    """A verification summary cannot be made of what was given."""

    code = "vsa.invalid"
    remedy = "read what was expected, and give that"


def passed(
    verdict: "Verdict",
    policy: "Policy",
    *,
    verified_on: datetime,
    resource: str | None = None,
    verifier: str = VERIFIER_ID,
) -> dict[str, Any]:
    """Return the statement about a certificate that was verified.

    Its subjects are the output files that the certificate names.

    Args:
        verdict: the verdict.
        policy: the policy that it was reached under.
        verified_on: the time (UTC) by the caller's clock.
        resource: a URI of the model; by default one made of the digest of its files.
        verifier: a URI that says who verified.

    Raises:
        SummaryError: `resource` or `verifier` is not a URI.
    """
    outputs = verdict.run.outputs.manifest
    return _statement(
        [{"name": file.path, "digest": {"sha256": file.sha256}} for file in outputs.files],
        resource=resource or f"urn:aicert:model:sha256:{outputs.digest}",
        certificate=verdict.certificate_digest,
        policy=policy,
        verified_on=verified_on,
        verifier=verifier,
        result=PASSED,
        levels=[level(verdict.assurance)],
    )


def failed(
    certificate: str,
    policy: "Policy",
    *,
    verified_on: datetime,
    resource: str | None = None,
    verifier: str = VERIFIER_ID,
) -> dict[str, Any]:
    """Return the statement about a certificate that was refused.

    Its subject is the certificate itself: nothing that a refused certificate says of files may
    stand in an attestation.

    Args:
        certificate: the SHA-256 of the certificate file, in hex.
        policy: the policy that it was held against.
        verified_on: the time (UTC) by the caller's clock.
        resource: a URI of the model; by default one made of the certificate's digest.
        verifier: a URI that says who verified.

    Raises:
        SummaryError: `resource` or `verifier` is not a URI.
    """
    return _statement(
        [{"name": "certificate", "digest": {"sha256": certificate}}],
        resource=resource or _certificate_uri(certificate),
        certificate=certificate,
        policy=policy,
        verified_on=verified_on,
        verifier=verifier,
        result=FAILED,
        levels=[FAILED],
    )


def level(assurance: Assurance) -> str:
    """Return the name under which an assurance stands in `verifiedLevels`."""
    return f"AICERT_{assurance.name}"


def encode(statement: Mapping[str, Any]) -> bytes:
    """Return the statement as a file: canonical JSON."""
    return canonical.dumps(dict(statement))


def sign(statement: Mapping[str, Any], key: keys.PrivateKey) -> bytes:
    """Return the statement in a DSSE envelope, signed, as a file: canonical JSON."""
    return canonical.dumps(keys.envelope(encode(statement), dsse.PAYLOAD_TYPE, key))


def _certificate_uri(digest: str) -> str:
    return f"urn:aicert:certificate:sha256:{digest}"


def _statement(
    subjects: list[dict[str, Any]],
    *,
    resource: str,
    certificate: str,
    policy: "Policy",
    verified_on: datetime,
    verifier: str,
    result: str,
    levels: list[str],
) -> dict[str, Any]:
    for name, uri in (("resource", resource), ("verifier", verifier)):
        if not _is_uri(uri):
            raise SummaryError(
                f"the {name} of a verification summary must be a URI",
                got=uri,
                expected="for example https://models.example/digits or urn:example:digits",
            )
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "verifier": {"id": verifier, "version": {"aicert": __version__}},
            "timeVerified": format_time(verified_on),
            "resourceUri": resource,
            "policy": {
                "uri": f"urn:aicert:policy:sha256:{policy.digest}",
                "digest": {"sha256": policy.digest},
            },
            "inputAttestations": [
                {"uri": _certificate_uri(certificate), "digest": {"sha256": certificate}}
            ],
            "verificationResult": result,
            "verifiedLevels": levels,
        },
    }


def _is_uri(text: str) -> bool:
    """Tell whether a text is an absolute URI (RFC 3986, 4.3), near enough: scheme and a rest."""
    if not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or parts.path))
