"""The model's signature: made in a run, checked by us and by the stock tool of OpenSSF."""

import base64
import dataclasses
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_signing
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from aicert import canonical, keys, oms, timestamp
from aicert.agent import machine
from aicert.agent.machine import MachineConfig
from aicert.agent.run import Run
from aicert.agent.spec import parse
from aicert.cli import main
from aicert.errors import Error
from aicert.trust import TrustStore
from aicert.verify import Assurance, Verdict, verify
from examples.images import tiny
from tests.support.forger import public_area
from tests.support.tsa import OPENSSL, Tsa

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="machines need namespaces and containers: run the tests as root"
)

TRAIN = "mkdir -p /outputs/a; for f in model.bin a/b.bin a.bin; do echo $f > /outputs/$f; done"


@dataclasses.dataclass
class Made:
    """What a run made, in a folder of a test's own."""

    certificate: Path
    signature: Path
    model: Path
    root: Path

    @property
    def verdict(self) -> Verdict:
        trust = TrustStore.builtin().with_roots(self.root)
        return verify(self.certificate.read_bytes(), trust=trust, least=Assurance.SIMULATED)

    def aicert(self, *arguments: str) -> Result:
        known = ["--root", str(self.root), "--allow-simulated", "--signature", str(self.signature)]
        return CliRunner().invoke(main, ["verify", str(self.certificate), *known, *arguments])

    def stock(self) -> subprocess.CompletedProcess[str]:
        """Run OpenSSF's tool with the key that `aicert verify` gives."""
        key = self.certificate.with_name("model.pub")
        done = self.aicert("--signature-key", str(key))
        assert done.exit_code == 0, done.output
        command = [sys.executable, "-m", "model_signing", "verify", "key"]
        options = ["--signature", str(self.signature), "--public_key", str(key), str(self.model)]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["ecc", "rsa"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("oms")
    tiny.build(place / "image")
    fields = {"name": "tiny", "image": "oci:image", "command": ["sh", "-c", TRAIN]}
    spec = parse(canonical.dumps(fields).decode(), source="test.json")
    handle = machine.start(MachineConfig(state=place / "state", algorithm=request.param), "oms")
    made = Made(
        place / "certificate.json",
        place / oms.NAME,
        place / "model",
        place / "state" / "ca" / "authority" / "root.pem",
    )
    try:
        with machine.attach(handle) as client:
            name = str(uuid.uuid4())
            for step in Run.STEPS:
                body = {"spec": spec.to_json(), "base": str(place)} if step == "job" else {}
                client.step(name, step, body)
            made.certificate.write_bytes(client.certificate(name))
            made.signature.write_bytes(b"".join(client.open_file(name, "signatures", oms.NAME)))
            for file in ("model.bin", "a/b.bin", "a.bin"):
                path = made.model / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"".join(client.open_file(name, "outputs", file)))
    finally:
        machine.destroy(handle)
    return made


@pytest.fixture
def made(run: Made, tmp_path: Path) -> Made:
    """A copy that a test may alter."""
    subprocess.run(["cp", "-r", run.certificate, run.signature, run.model, tmp_path], check=True)
    return Made(
        tmp_path / run.certificate.name,
        tmp_path / run.signature.name,
        tmp_path / run.model.name,
        run.root,
    )


def test_the_stock_tool_accepts_the_weights_of_a_run(made: Made) -> None:
    done = made.stock()
    assert done.returncode == 0, done.stderr
    assert "Verification succeeded" in done.stdout


def alter(model: Path) -> None:
    (model / "model.bin").write_text("other")


def add(model: Path) -> None:
    (model / "more.bin").write_text("more")


def remove(model: Path) -> None:
    (model / "a" / "b.bin").unlink()


def swap(model: Path) -> None:
    (model / "model.bin").rename(model / "x")
    (model / "a.bin").rename(model / "model.bin")
    (model / "x").rename(model / "a.bin")


@pytest.mark.parametrize("change", [alter, add, remove, swap])
def test_the_stock_tool_refuses_other_weights(made: Made, change: Callable[[Path], None]) -> None:
    change(made.model)
    done = made.stock()
    assert done.returncode == 1
    assert "Verification failed" in done.stderr


def test_the_root_digest_is_that_of_the_format(made: Made) -> None:
    theirs = model_signing.hashing.Config().hash(made.model)
    names = [item.identifier for item in theirs.resource_descriptors()]
    outputs = made.verdict.run.outputs.manifest
    assert names == [file.path for file in outputs.files]
    statement = json.loads(base64.b64decode(envelope(made)["payload"]))
    assert statement["subject"] == [{"name": "tiny", "digest": {"sha256": outputs.root}}]


def test_the_command_line_says_that_the_signature_was_checked(made: Made) -> None:
    done = made.aicert("--model", str(made.model))
    assert done.exit_code == 0
    assert "was signed by a key in the same TPM" in done.stdout
    inside = made.model / oms.NAME
    made.signature.rename(inside)
    made.signature = inside
    done = made.aicert("--model", str(made.model), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["signatureChecked"] is True


def envelope(made: Made) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.signature.read_bytes())["dsseEnvelope"]
    return found


def refused(made: Made, data: bytes, match: str) -> None:
    with pytest.raises(Error, match=match):
        oms.check(data, made.verdict)


def test_the_signature_of_another_run_is_refused(made: Made) -> None:
    certificate = dataclasses.replace(made.verdict.certificate, keyid="00" * 32)
    other = dataclasses.replace(made.verdict, certificate=certificate)
    with pytest.raises(oms.ModelSignatureError, match="belongs to another certificate"):
        oms.check(made.signature.read_bytes(), other)


@pytest.mark.parametrize(
    ("field", "match"),
    [
        ("public", "has certified another key"),
        ("message", "has not certified"),
        ("signature", "has not certified"),
    ],
)
def test_a_key_that_the_attestation_key_has_not_certified_is_refused(
    made: Made, field: str, match: str
) -> None:
    """The forger signs the right statement, with a key outside the TPM."""
    verdict = made.verdict
    own = ec.generate_private_key(ec.SECP256R1())
    good = oms.check(made.signature.read_bytes(), verdict)
    fields = {name: getattr(good, name) for name in ("public", "message", "signature")}
    if field == "public":
        fields["public"] = public_area(own, 0x00040072)
    elif field == "message":
        fields["message"] = good.message[:-1] + bytes([good.message[-1] ^ 1])
    else:
        fields["signature"] = made.verdict.certificate.quote.signature
    key = oms.SigningKey(**fields)
    payload = oms.payload(verdict.certificate_digest, verdict.run, key)
    refused(made, oms.bundle(payload, key, keys.sign(own, b"anything")), match)


def test_a_quote_does_not_pass_for_a_certification(made: Made) -> None:
    verdict = made.verdict
    quote = verdict.certificate.quote
    good = oms.check(made.signature.read_bytes(), verdict)
    key = oms.SigningKey(good.public, quote.message, quote.signature)
    payload = oms.payload(verdict.certificate_digest, verdict.run, key)
    refused(made, oms.bundle(payload, key, b"\x30\x00"), "another attestation")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["dsseEnvelope"]["signatures"][0].update(sig="MAA="), "not the key's"),
        (lambda v: v["dsseEnvelope"]["signatures"][0].update(keyid="x"), "something besides"),
        (lambda v: v["verificationMaterial"]["publicKey"].update(hint="x"), "something besides"),
        (lambda v: v.update(note="x"), "something besides"),
        (lambda v: v["dsseEnvelope"].update(payload="e30="), "does not say which TPM"),
    ],
)
def test_a_bundle_that_was_altered_is_refused(made: Made, change: Any, match: str) -> None:
    value = json.loads(made.signature.read_bytes())
    change(value)
    refused(made, canonical.dumps(value), match)


def test_an_altered_signature_makes_the_command_fail(made: Made) -> None:
    made.signature.write_bytes(made.signature.read_bytes().replace(b'"keyid":""', b'"keyid":"x"'))
    done = made.aicert()
    assert done.exit_code == 1
    assert "oms.invalid" in done.stderr
    assert made.aicert("--signature-key", "k").exit_code == 1
    made.signature.unlink()
    assert made.aicert().exit_code == 3


def test_a_key_needs_a_signature(made: Made) -> None:
    arguments = ["verify", str(made.certificate), "--signature-key", "k"]
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.skipif(OPENSSL is None, reason="the program openssl is not installed")
def test_a_timestamp_that_is_added_later_takes_the_signature_from_nobody(
    run: Made, tmp_path: Path
) -> None:
    tsa = Tsa(tmp_path / "tsa")
    certificate = run.verdict.certificate
    request = timestamp.make_request(certificate)
    stamped = timestamp.attach(certificate, request, tsa.answer(request.der), [tsa.root])
    path = tmp_path / "certificate.json"
    path.write_bytes(stamped.encode())
    done = dataclasses.replace(run, certificate=path).aicert("--timestamp-root", str(tsa.root_file))
    assert done.exit_code == 0, done.output
