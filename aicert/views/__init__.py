"""Views: what a certificate says, in the forms that other tools and people read.

A view proves nothing by itself: it repeats a certificate, names it by digest, and says so. What is
in it is what the certificate says; where the certificate was verified just now, the views for
people say with what result. Each view is a pure function of the two.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aicert import canonical, card, dsse, tpm2
from aicert.certificate import Certificate
from aicert.verify import Verdict

if TYPE_CHECKING:
    from aicert.lineage import Node


class Make(Protocol):
    """Makes a view of a certificate, of the verdict on it, and of its lineage where it is known."""

    def __call__(
        self, certificate: Certificate, verdict: Verdict | None, behind: "Node | None" = None, /
    ) -> bytes:
        """Return the file."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """A form in which a certificate can be written: what makes it, its file's name, a sentence."""

    file: str
    about: str
    make: Make


def _dsse(certificate: Certificate, *_: object) -> bytes:
    return canonical.dumps(certificate.to_json()["dsseEnvelope"])


def _bundle(certificate: Certificate, *_: object) -> bytes:
    return canonical.dumps(
        {
            "mediaType": dsse.BUNDLE_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": certificate.keyid},
                "tlogEntries": [],
            },
            "dsseEnvelope": certificate.to_json()["dsseEnvelope"],
        }
    )


def _statement(certificate: Certificate, *_: object) -> bytes:
    return certificate.payload


def _key(certificate: Certificate, *_: object) -> bytes:
    return tpm2.parse_public(certificate.attestation_key.public).pem


def _card(certificate: Certificate, verdict: Verdict | None, behind: "Node | None" = None) -> bytes:
    return card.readme(certificate, verdict, behind).encode()


def _html(certificate: Certificate, verdict: Verdict | None, behind: "Node | None" = None) -> bytes:
    from aicert.views import page

    return page.page(certificate, verdict, behind).encode()


def _cyclonedx(certificate: Certificate, verdict: Verdict | None, *_: object) -> bytes:
    from aicert.views import cyclonedx

    return canonical.dumps(cyclonedx.bom(certificate, verdict))


def _spdx(certificate: Certificate, verdict: Verdict | None, *_: object) -> bytes:
    from aicert.views import spdx

    return canonical.dumps(spdx.document(certificate, verdict))


VIEWS: dict[str, View] = {
    "card": View("card.md", "the card for people, in Markdown", _card),
    "html": View("card.html", "the same as a page that checks itself", _html),
    "cyclonedx": View("bom.cdx.json", "a bill of materials: CycloneDX 1.6 ML-BOM", _cyclonedx),
    "spdx": View("bom.spdx.json", "a bill of materials: SPDX 3.0.1, AI and dataset", _spdx),
    "statement": View("statement.json", "the in-toto statement with SLSA provenance", _statement),
    "dsse": View("statement.dsse.json", "the same, signed: the DSSE envelope", _dsse),
    "bundle": View("statement.sigstore.json", "the same, in a Sigstore bundle", _bundle),
    "key": View("attestation-key.pem", "the key that signed it, in PEM", _key),
}
"""Every view, by the name that `aicert export --format` knows it under."""
