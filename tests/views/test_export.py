"""What other tools make of a certificate: in-toto, SLSA, DSSE, Sigstore, openssl."""

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from sigstore_models.bundle.v1 import Bundle

from aicert import reproduction
from aicert.certificate import Certificate
from aicert.cli import main
from aicert.reproduction import FileOutcome, Reproduction
from aicert.tensors import Tolerance
from aicert.views import VIEWS
from tests.support.forger import Forger
from tests.support.linked import BAR, child
from tests.support.views import hostile, made

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "conformance" / "cases"
ROOTS = ROOT / "tests" / "conformance" / "roots.pem"
PAGE = (ROOT / "docs" / "views.md").read_text()

CERTIFICATES = pytest.mark.parametrize("certificate", [made(), made(kind="rsa"), hostile()])


def view(name: str, certificate: Certificate) -> bytes:
    return VIEWS[name].make(certificate, None)


def aicert(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@CERTIFICATES
def test_in_toto_and_slsa_accept_the_statement(certificate: Certificate) -> None:
    """Both publish their format as protocol buffers; the parser refuses unknown fields."""
    statement = json.loads(view("statement", certificate))
    parsed = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert json_format.MessageToDict(parsed)["subject"] == statement["subject"]
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = statement["predicate"]
    provenance = json_format.ParseDict(predicate, provenance_pb2.Provenance())
    assert provenance.build_definition.build_type == "urn:aicert:build:training:v1"
    assert len(provenance.build_definition.resolved_dependencies) == 3
    predicate["buildDefinition"]["more"] = 1
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict(predicate, provenance_pb2.Provenance())


@pytest.mark.parametrize("bar", [BAR, {}])
def test_in_toto_accepts_the_statement_of_an_evaluation(bar: Any) -> None:
    made = child([Forger().certificate()], bar=bar, metrics={"accuracy": 0.95}).certificate()
    accepts_test_result(json.loads(view("statement", made)))


@pytest.mark.parametrize("outcome", ["equal", "within", "different", "missing", "added", "ignored"])
def test_in_toto_accepts_the_statement_of_a_reproduction(outcome: Any) -> None:
    file = FileOutcome("model.safetensors", outcome, "1 of 2 values differ")
    found = Reproduction("aa" * 32, "bb" * 32, (("x", "cc" * 32),), (file,), Tolerance(1e-6))
    accepts_test_result(reproduction.statement(found))


def accepts_test_result(statement: Any) -> None:
    """Hold a statement against what in-toto publishes for test results, v0.1."""
    parsed = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate = json_format.ParseDict(statement["predicate"], test_result_pb2.TestResult())
    assert predicate.result in ("PASSED", "WARNED", "FAILED")
    assert all(item.name and (item.digest or item.uri) for item in predicate.configuration)
    with pytest.raises(json_format.ParseError):
        more = {**statement["predicate"], "more": 1}
        json_format.ParseDict(more, test_result_pb2.TestResult())


@CERTIFICATES
def test_securesystemslib_verifies_the_envelope(certificate: Certificate) -> None:
    public: Any = load_pem_public_key(view("key", certificate))
    # For RSA the library's default is PSS; an attestation key signs with PKCS #1 v1.5.
    scheme = "rsa-pkcs1v15-sha256" if public.key_size > 256 else None
    key = SSlibKey.from_crypto(public, keyid=certificate.keyid, scheme=scheme)
    envelope = Envelope.from_dict(json.loads(view("dsse", certificate)))
    assert envelope.payload == certificate.payload
    assert list(envelope.verify([key], 1)) == [certificate.keyid]
    envelope.payload += b" "
    with pytest.raises(Exception, match="signature"):
        envelope.verify([key], 1)


@CERTIFICATES
def test_sigstore_reads_the_bundle(certificate: Certificate) -> None:
    bundle = Bundle.from_json(view("bundle", certificate))
    assert bundle.dsse_envelope is not None
    assert bundle.dsse_envelope.payload == certificate.payload
    assert bundle.dsse_envelope.signatures[0].sig == certificate.signature


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_openssl_verifies_the_envelope_as_documented(kind: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    certificate = made(kind=kind)
    for name in ("dsse", "key"):
        (tmp_path / VIEWS[name].file).write_bytes(view(name, certificate))
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Verified OK" in done.stdout
    envelope = json.loads(view("dsse", certificate))
    envelope["payload"] = base64.b64encode(certificate.payload + b" ").decode()
    (tmp_path / VIEWS["dsse"].file).write_text(json.dumps(envelope))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_the_command_writes_one_view_or_all(tmp_path: Path) -> None:
    path = CASES / "good-ecc" / "certificate.json"
    certificate = Certificate.parse(path.read_bytes())
    for name, one in VIEWS.items():
        done = aicert(path, "--format", name)
        assert done.exit_code == 0, done.output
        assert done.stdout_bytes == one.make(certificate, None)
        assert f"`{name}`" in PAGE
        assert f"`{one.file}`" in PAGE
    assert aicert(path, "--out", tmp_path / "views").exit_code == 0
    assert {p.name for p in (tmp_path / "views").iterdir()} == {v.file for v in VIEWS.values()}
    assert aicert(path, "--format", "statement", "--out", tmp_path / "a" / "s").exit_code == 0
    assert (tmp_path / "a" / "s").read_bytes() == certificate.payload


def test_with_trust_the_certificate_is_verified_first() -> None:
    path = CASES / "good-ecc" / "certificate.json"
    done = aicert(path, "--format", "card", "--root", ROOTS, "--allow-simulated")
    assert done.exit_code == 0
    assert "Verified" in done.stdout
    refused = aicert(path, "--format", "card", "--root", ROOTS)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("REFUSED")
    said = aicert(path, "--format", "card").stdout
    assert "Not verified" in said


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("--format", "pdf"), 2), ((), 2), (("--format", "card", "--root", "no-such"), 1)],
)
def test_what_cannot_be_written_says_so(arguments: tuple[str, ...], status: int) -> None:
    done = aicert(CASES / "good-ecc" / "certificate.json", *arguments)
    assert done.exit_code == status
    assert done.stderr


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("{}")
    assert aicert(tmp_path / "c", "--format", "card").exit_code == 1
    assert aicert(tmp_path / "d", "--format", "card").exit_code == 3
