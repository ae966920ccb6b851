"""The bills of materials: accepted by the official schemas, and every digest a measured one."""

import json
import re
from io import BytesIO
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_python_model import v3_0_1 as spdx3

from aicert import card
from aicert.certificate import Certificate
from aicert.log import parse_run
from aicert.views import VIEWS
from aicert.views.parts import parts, uri
from tests.support.forger import RECORDS, committing, run_events
from tests.support.views import digests, hostile, leaf, made

RECORDED = made(events=committing(run_events(), "lines", RECORDS))
CERTIFICATES = pytest.mark.parametrize(
    "certificate", [made(), made(kind="rsa"), hostile(), RECORDED]
)


def cyclonedx(certificate: Certificate) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(VIEWS["cyclonedx"].make(certificate, None))
    return found


def spdx(certificate: Certificate) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(VIEWS["spdx"].make(certificate, None))
    return found


@CERTIFICATES
def test_cyclonedx_accepts_the_bom(certificate: Certificate) -> None:
    text = VIEWS["cyclonedx"].make(certificate, None).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bad = text.replace('"specVersion":"1.6"', '"specVersion":1')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bad) is not None


@CERTIFICATES
def test_every_reference_in_cyclonedx_leads_somewhere(certificate: Certificate) -> None:
    bom = cyclonedx(certificate)
    text = json.dumps(bom)
    known = re.findall(r'"bom-ref": ("(?:[^"\\]|\\.)*")', text)
    assert len(known) == len(set(known))
    used = re.findall(r'"ref": ("(?:[^"\\]|\\.)*")', text)
    used += [json.dumps(ref) for item in bom["dependencies"] for ref in item["dependsOn"]]
    assert set(used) <= set(known)
    names = [item["name"] for item in bom["metadata"]["component"]["components"]]
    assert len(names) == len(certificate_files(certificate))


def certificate_files(certificate: Certificate) -> list[Any]:
    content = certificate.records[-1].event.to_json()
    return list(content["files"])


def objects(certificate: Certificate) -> spdx3.SHACLObjectSet:
    """Read the document with the bindings that SPDX generates from its model."""
    found = spdx3.SHACLObjectSet()
    spdx3.JSONLDDeserializer().read(BytesIO(VIEWS["spdx"].make(certificate, None)), found)
    return found


def written(found: spdx3.SHACLObjectSet) -> bytes:
    """Write the document again, which checks every field of every element."""
    stream = BytesIO()
    spdx3.JSONLDSerializer().write(found, stream)
    return stream.getvalue()


@CERTIFICATES
def test_spdx_accepts_the_document(certificate: Certificate) -> None:
    found = objects(certificate)
    # What is not resolved are names that SPDX itself defines.
    missing = found.link()
    assert {str(name) for name in missing} <= {spdx(certificate)["@graph"][0]["createdBy"][0]} | {
        "https://spdx.org/rdf/3.0.1/terms/Core/NoAssertionElement"
    }
    assert len(json.loads(written(found))["@graph"]) == len(spdx(certificate)["@graph"])
    (model,) = found.foreach_type(spdx3.ai_AIPackage)
    assert model.name == "digits"
    assert [data.name for data in found.foreach_type(spdx3.dataset_DatasetPackage)] == ["data"]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("ai_AIPackage", "software_primaryPurpose", "nonsense"),
        ("build_Build", "build_buildStartTime", "yesterday"),
        ("dataset_DatasetPackage", "dataset_datasetType", []),
        ("Relationship", "relationshipType", "nonsense"),
    ],
)
def test_spdx_would_refuse_a_wrong_document(kind: str, field: str, value: Any) -> None:
    document = spdx(made())
    item = next(item for item in document["@graph"] if item["type"] == kind)
    item[field] = value
    found = spdx3.SHACLObjectSet()
    with pytest.raises(Exception):  # noqa: B017 - theirs, of several kinds
        stream = BytesIO(json.dumps(document).encode())
        spdx3.JSONLDDeserializer().read(stream, found)
        written(found)


@CERTIFICATES
@pytest.mark.parametrize("view", ["cyclonedx", "spdx"])
def test_every_digest_in_a_bom_was_measured(certificate: Certificate, view: str) -> None:
    texts = leaf(json.loads(VIEWS[view].make(certificate, None)))
    found = {digest for text in texts for digest in re.findall(r"\b[0-9a-f]{64}\b", text)}
    assert found
    assert found <= digests(certificate)


@pytest.mark.parametrize("view", ["cyclonedx", "spdx", "card"])
def test_the_commitment_to_records_is_told(view: str) -> None:
    text = card.markdown(RECORDED) if view == "card" else VIEWS[view].make(RECORDED, None).decode()
    assert "lines/1" in text
    assert view == "card" or RECORDS.root in text
    assert "10 records" in text or view == "cyclonedx"


@pytest.mark.parametrize("view", ["cyclonedx", "spdx"])
def test_a_bom_says_what_is_only_declared(view: str) -> None:
    text = VIEWS[view].make(made(), None).decode()
    assert "the builder's words" in text
    assert "what the training reported" in text
    assert "verify the certificate" in text


def test_a_program_is_code_and_the_rest_is_data() -> None:
    roles = {part.input.name: part.role for part in parts(parse_run(made().records))}
    assert roles == {"code": "code", "data": "data"}


def test_a_hostile_address_becomes_a_uri() -> None:
    (data,) = [c for c in cyclonedx(hostile())["components"] if c["name"] == "data"]
    for url in (data["externalReferences"][0]["url"], data["data"][0]["contents"]["url"]):
        assert not set(url) & set(' <>"{}|\\^`')


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("hf://datasets/o/n@abc", "hf://datasets/o/n@abc"),
        ("https://[::1]:80/a[1]", "https://[::1]:80/a%5B1%5D"),
        ("s3://b/50%", "s3://b/50%25"),
        ("file:a%20b", "file:a%20b"),
        ("https://x/a#b#c", "https://x/a#b%23c"),
    ],
)
def test_an_address_that_is_a_uri_stays_as_it_is(given: str, made: str) -> None:
    assert uri(given) == made
