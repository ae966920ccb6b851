"""Verification summaries: their form by the specification, and what may stand in them."""

import base64
import importlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import aicert
from aicert import canonical, dsse, keys, vsa
from aicert.assurance import Assurance
from aicert.policy import Policy
from aicert.trust import Pin, TrustStore, fingerprint
from aicert.verify import Verdict, verify
from tests.support.forger import Forger

ON = datetime(2026, 11, 23, 9, 0, 0, tzinfo=UTC)
POLICY = Policy.parse("policy: 1\nnetwork: none", "mine.yaml")


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    forger = Forger()
    pin = Pin("root", fingerprint(forger.authority.root), "hardware", "test")
    trust = TrustStore().with_pins([pin])
    return verify(forger.certificate().encode(), trust=trust, policy=POLICY)


def conforms(statement: dict[str, Any]) -> dict[str, Any]:
    """Check what in-toto Statement v1 and SLSA's VSA v1 demand; return the predicate."""
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/verification_summary/v1"
    assert statement["subject"]
    for subject in statement["subject"]:
        assert subject["name"]
        assert re.fullmatch("[0-9a-f]{64}", subject["digest"]["sha256"])
    predicate: dict[str, Any] = statement["predicate"]
    required = {"verifier", "resourceUri", "policy", "verificationResult", "verifiedLevels"}
    optional = {"timeVerified", "inputAttestations", "dependencyLevels", "slsaVersion"}
    assert required <= predicate.keys() <= required | optional
    assert re.match("[a-z]+:", predicate["verifier"]["id"])
    assert re.match("[a-z]+:", predicate["resourceUri"])
    assert datetime.strptime(predicate["timeVerified"], "%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007
    for resource in (predicate["policy"], *predicate["inputAttestations"]):
        assert re.match("[a-z]+:", resource["uri"])
        assert re.fullmatch("[0-9a-f]{64}", resource["digest"]["sha256"])
    assert predicate["verificationResult"] in ("PASSED", "FAILED")
    levels = predicate["verifiedLevels"]
    assert levels
    # Values of one's own are allowed, but none that begins like SLSA's.
    assert not any(level.startswith("SLSA_") for level in levels)
    assert (levels == ["FAILED"]) == (predicate["verificationResult"] == "FAILED")
    return predicate


def test_a_passed_verdict_is_summed_up_over_the_output_files(verdict: Verdict) -> None:
    statement = vsa.passed(verdict, POLICY, verified_on=ON)
    predicate = conforms(statement)
    assert statement["subject"] == [
        {"name": file.path, "digest": {"sha256": file.sha256}}
        for file in verdict.run.outputs.manifest.files
    ]
    assert predicate["verificationResult"] == "PASSED"
    assert predicate["verifiedLevels"] == ["AICERT_HARDWARE"]
    assert predicate["timeVerified"] == "2026-11-23T09:00:00Z"
    assert predicate["policy"]["digest"] == {"sha256": POLICY.digest}
    assert predicate["verifier"] == {
        "id": "urn:aicert:verifier:v1",
        "version": {"aicert": aicert.__version__},
    }
    (attestation,) = predicate["inputAttestations"]
    assert attestation["digest"] == {"sha256": verdict.certificate.digest}


def test_a_failed_verdict_repeats_nothing_of_the_certificate(verdict: Verdict) -> None:
    statement = vsa.failed(verdict.certificate_digest, POLICY, verified_on=ON)
    predicate = conforms(statement)
    assert statement["subject"] == [
        {"name": "certificate", "digest": {"sha256": verdict.certificate_digest}}
    ]
    assert predicate["verificationResult"] == "FAILED"
    text = json.dumps(statement)
    for file in verdict.run.outputs.manifest.files:
        assert file.path not in text
        assert file.sha256 not in text


def test_the_caller_may_name_the_model_and_the_verifier(verdict: Verdict) -> None:
    statement = vsa.passed(
        verdict,
        POLICY,
        verified_on=ON,
        resource="https://models.example/digits",
        verifier="https://verifier.example/",
    )
    predicate = conforms(statement)
    assert predicate["resourceUri"] == "https://models.example/digits"
    assert predicate["verifier"]["id"] == "https://verifier.example/"


@pytest.mark.parametrize("text", ["digits", "a b:c", "https://", "x:\n", "https://[", "ü:x"])
def test_what_is_no_uri_cannot_name_them(verdict: Verdict, text: str) -> None:
    for wrong in ({"resource": text}, {"verifier": text}):
        with pytest.raises(vsa.SummaryError, match="must be a URI") as caught:
            vsa.passed(verdict, POLICY, verified_on=ON, **wrong)
        assert caught.value.code == "vsa.invalid"


@pytest.mark.parametrize("assurance", list(Assurance))
def test_every_assurance_has_a_level_that_is_not_slsas(assurance: Assurance) -> None:
    assert vsa.level(assurance) == f"AICERT_{assurance.name}"


def test_the_published_schema_accepts_both(verdict: Verdict) -> None:
    """in-toto publishes the predicate as a protocol buffer; its parser refuses unknown fields.

    It differs from the specification in two fields: it has no `verifier.version`, which SLSA added
    later, and one text for `verifiedLevels`, which is an array.
    """
    schema = importlib.import_module("in_toto_attestation.predicates.vsa.v1.vsa_pb2")
    statement_schema = importlib.import_module("in_toto_attestation.v1.statement_pb2")
    json_format = importlib.import_module("google.protobuf.json_format")
    for statement in (
        vsa.passed(verdict, POLICY, verified_on=ON),
        vsa.failed(verdict.certificate_digest, POLICY, verified_on=ON),
    ):
        json_format.ParseDict(statement, statement_schema.Statement())
        predicate = statement["predicate"]
        assert predicate["verifier"].pop("version")
        (predicate["verifiedLevels"],) = predicate["verifiedLevels"]
        parsed = json_format.ParseDict(predicate, schema.VerificationSummary())
        assert json_format.MessageToDict(parsed) == predicate


def test_in_totos_own_validator_accepts_the_statement(verdict: Verdict) -> None:
    module = importlib.import_module("in_toto_attestation.v1.statement")
    statement = module.Statement.copy_from_pb  # the validator works on the parsed form
    pb2 = importlib.import_module("in_toto_attestation.v1.statement_pb2")
    json_format = importlib.import_module("google.protobuf.json_format")
    made = vsa.passed(verdict, POLICY, verified_on=ON)
    statement(json_format.ParseDict(made, pb2.Statement())).validate()


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "Ed25519"],
)
def test_a_signed_summary_is_an_envelope_that_others_verify(
    verdict: Verdict, key: keys.PrivateKey
) -> None:
    statement = vsa.passed(verdict, POLICY, verified_on=ON)
    data = vsa.sign(statement, key)
    envelope = json.loads(data)
    assert canonical.dumps(envelope) == data
    assert base64.b64decode(envelope["payload"]) == vsa.encode(statement)
    assert envelope["payloadType"] == dsse.PAYLOAD_TYPE
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == keys.fingerprint(key)
    keys.verify(
        key.public_key(),
        base64.b64decode(signature["sig"]),
        dsse.pae(vsa.encode(statement)),
    )
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return  # below, P-384 goes with SHA-256
    other_dsse = importlib.import_module("securesystemslib.dsse")
    signer = importlib.import_module("securesystemslib.signer")
    public = signer.SSlibKey.from_crypto(key.public_key(), keyid=signature["keyid"])
    read = other_dsse.Envelope.from_dict(envelope)
    assert read.verify([public], 1)
    read.payload = read.payload.replace(b"PASSED", b"FAILED")
    with pytest.raises(Exception, match="signature"):
        read.verify([public], 1)


def test_a_summary_that_was_changed_is_not_the_signers(verdict: Verdict) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signature = keys.sign(key, dsse.pae(vsa.encode(vsa.passed(verdict, POLICY, verified_on=ON))))
    other = vsa.encode(vsa.failed(verdict.certificate_digest, POLICY, verified_on=ON))
    with pytest.raises(keys.KeySignatureError) as caught:
        keys.verify(key.public_key(), signature, dsse.pae(other))
    assert caught.value.code == "key.signature"
    assert key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
