"""The bills of materials: accepted by the official schemas, and every digest a measured one."""

import json
import re
from dataclasses import replace
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
from tests.support.forger import RECORDS, Forger, committing, run_events
from tests.support.linked import BAR, child
from tests.support.views import digests, hostile, leaf, made

RECORDED = made(events=committing(run_events(), "lines", RECORDS))
MAKER = Forger()
BASE = MAKER.certificate()
TUNED = child([BASE], MAKER, name="tuned").certificate()
EVALUATED = child([TUNED], MAKER, bar=BAR, metrics={"accuracy": 0.97}, name="bench").certificate()
CERTIFICATES = pytest.mark.parametrize(
    "certificate", [made(), made(kind="rsa"), hostile(), RECORDED, TUNED, EVALUATED]
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
    names = {model.name for model in found.foreach_type(spdx3.ai_AIPackage)}
    expected = {TUNED.digest: {"tuned", "model0"}, EVALUATED.digest: {"model0"}}
    assert names == expected.get(certificate.digest, {"digits"})
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


def test_a_base_model_is_a_model_with_a_certificate_and_no_data_set() -> None:
    bom = cyclonedx(TUNED)
    (base,) = [item for item in bom["components"] if item["name"] == "model0"]
    assert base["type"] == "machine-learning-model" and "data" not in base
    (ancestor,) = bom["metadata"]["component"]["pedigree"]["ancestors"]
    for item in (base, ancestor):
        attested = [x for x in item["externalReferences"] if x["type"] == "attestation"]
        assert [x["hashes"][0]["content"] for x in attested] == [BASE.digest]
    card = bom["metadata"]["component"]["modelCard"]["modelParameters"]
    assert [x["ref"] for x in card["datasets"]] == ["input:data"]
    graph = spdx(TUNED)["@graph"]
    assert related(graph, "trainedOn") == [("model", ["input-data"])]
    assert related(graph, "descendantOf") == [("model", ["input-model0"])]
    assert ("input-model0", ["certificate-model0"]) in related(graph, "hasEvidence")


def test_the_results_of_an_evaluation_are_no_model_but_tell_of_one() -> None:
    bom = cyclonedx(EVALUATED)
    assert bom["metadata"]["component"]["type"] == "data"
    (model,) = [item for item in bom["components"] if item["type"] == "machine-learning-model"]
    (metric,) = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", "0.97")
    assert "evaluation" in metric["slice"]
    graph = spdx(EVALUATED)["@graph"]
    assert related(graph, "trainedOn") == []
    assert related(graph, "testedOn") == [("input-model0", ["input-data"])]
    (package,) = [item for item in graph if item["type"] == "ai_AIPackage"]
    assert [(x["key"], x["value"]) for x in package["ai_metric"]] == [("accuracy", "0.97")]


def related(graph: list[dict[str, Any]], kind: str) -> list[tuple[str, list[str]]]:
    """Return the relations of a kind, by the last part of each name."""
    return [
        (item["from"].partition("#")[2], [to.partition("#")[2] for to in item["to"]])
        for item in graph
        if item["type"] == "Relationship" and item["relationshipType"] == kind
    ]


@pytest.mark.parametrize(
    ("uri", "command", "role"),
    [
        ("file:train.py", "python3 /inputs/code/train.py", "code"),
        ("file:program", "/inputs/code", "code"),
        ("git+https://x/y", "sh", "code"),
        ("file:notes.txt", "sh", "data"),
        ("file:data.csv", "python3 /inputs/data/x.py --more /inputs/code/data.csv", "data"),
        ("hf://owner/model", "sh -c /inputs/code/x", "model"),
        ("hf://datasets/owner/set", "sh", "data"),
    ],
)
def test_what_an_input_is_follows_from_its_address_and_the_command(
    uri: str, command: str, role: str
) -> None:
    run = parse_run(made().records)
    code, data = run.inputs
    start = replace(run.start, command=tuple(command.split()))
    run = replace(run, inputs=(replace(code, uri=uri), data), start=start)
    assert parts(run)[0].role == role


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
