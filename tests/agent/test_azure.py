"""An Azure VM's attestation, on a software TPM that holds what such a VM's TPM holds."""

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from aicert import sev, tpm2
from aicert.agent import azure, machine
from aicert.agent.machine import MachineConfig
from aicert.agent.run import Run
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Tpm
from aicert.certificate import Certificate
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
from examples.images import tiny
from tests.support import snp
from tests.support.azure import Vm, Web, azure_vtpm, pem
from tests.support.forger import Authority
from tests.support.nv import define_nv, make_persistent, reserve_nv
from tests.support.snp import Amd
from tests.support.tpm import Factory, relay

NOW = datetime.now(UTC)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture(scope="module")
def amd() -> Amd:
    return Amd()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(NOW - timedelta(days=30), NOW + timedelta(days=300), "Azure")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("azure"))


@pytest.fixture
def vm(factory: Factory, authority: Authority) -> Iterator[Vm]:
    with azure_vtpm(factory, authority) as made:
        yield made


def hcl(amd: Amd, key: Any, **changes: Any) -> bytes:
    """What a confidential VM's NV index holds, small enough for this TPM's."""
    jwk = json.loads(snp.document(key))["keys"][0]
    runtime = snp.document(key, keys=[jwk])
    return snp.hcl(amd.evidence(key, runtime, **changes), size=0)


def nothing(url: str, headers: dict[str, str]) -> bytes:
    raise OSError(f"nobody answers at {url}")


# -- the key and its chain -------------------------------------------------------------------------


def test_the_key_at_its_handle_comes_with_its_chain_completed(vm: Vm, tmp_path: Path) -> None:
    ak, chain = azure.attestation_key(
        vm.tpm, intermediates=pem(tmp_path, *vm.chain[1:]), get=nothing
    )
    assert chain == vm.chain
    assert tpm2.parse_public(ak.public).key.public_numbers() == vm.key.public_numbers()
    tpm2.parse_public(ak.public).require_ak()


def test_a_missing_intermediate_is_named(vm: Vm) -> None:
    with pytest.raises(azure.IntermediateError) as caught:
        azure.attestation_key(vm.tpm, get=nothing)
    assert caught.value.got == "CN=Azure intermediate"
    assert "--intermediates" in (caught.value.advice or "")


def test_a_tpm_without_azures_key_says_that_it_has_none(factory: Factory) -> None:
    with Swtpm(factory.make()) as swtpm, Tpm(swtpm.tcti) as tpm:
        with pytest.raises(azure.NotAzureError) as caught:
            azure.attestation_key(tpm, get=nothing)
        assert "Trusted Launch" in (caught.value.advice or "")
        make_persistent(tpm, azure.AK_HANDLE)
        with pytest.raises(azure.NotAzureError, match="no attestation key"):
            azure.attestation_key(tpm, get=nothing)  # a key, but no certificate
        assert azure.cpu_report(tpm, tpm.open_ak(azure.AK_HANDLE)) is None


def test_a_certificate_that_the_firmware_still_asks_for_is_waited_for(
    factory: Factory, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Swtpm(factory.make()) as swtpm, Tpm(swtpm.tcti) as tpm:
        ak = make_persistent(tpm, azure.AK_HANDLE)
        chain = authority.chain(tpm2.parse_public(ak.public).key)
        write = reserve_nv(tpm, azure.AK_CERTIFICATE_INDEX, 1500)
        contents = iter([bytes(1500), chain[0].ljust(1500, b"\0")])
        more = pem(tmp_path, *chain[1:])
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", lambda _: write(next(contents)))
            found = azure.attestation_key(tpm, intermediates=more, get=nothing)
        assert found[1] == chain
        # One that never comes is an error.
        write(bytes(1500))
        monkeypatch.setattr(azure, "CERTIFICATE_SECONDS", 0)
        with pytest.raises(azure.NotAzureError, match="no attestation key"):
            azure.attestation_key(tpm, get=nothing)


def test_a_certificate_of_another_key_is_found_out(
    factory: Factory, authority: Authority, tmp_path: Path
) -> None:
    other = authority.chain(Authority().root_key.public_key())
    with Swtpm(factory.make()) as swtpm, Tpm(swtpm.tcti) as tpm:
        make_persistent(tpm, azure.AK_HANDLE)
        define_nv(tpm, azure.AK_CERTIFICATE_INDEX, other[0])
        with pytest.raises(azure.NotAzureError, match="another key's"):
            azure.attestation_key(tpm, intermediates=pem(tmp_path, *other[1:]), get=nothing)


def test_issuers_are_asked_for_where_the_certificate_says(web: Web, authority: Authority) -> None:
    root = authority.root
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf")])
    uris = ["ldap://127.0.0.1/x", f"{web.url}/none", f"{web.url}/liar", f"{web.url}/root"]
    ways = [
        x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(uri)
        )
        for uri in uris
    ]
    leaf = (
        x509.CertificateBuilder(root.subject, name, authority.root_key.public_key(), 5)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.AuthorityInformationAccess(ways), False)
        .sign(authority.root_key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    der = root.public_bytes(Encoding.DER)
    liar = Authority(name="Azure").root.public_bytes(Encoding.DER)  # the same name, another key
    web.pages = {"/root": der, "/liar": liar}
    assert azure.complete(leaf, (), azure._get) == (leaf, der)
    assert [path for path, _ in web.asked] == ["/none", "/liar", "/root"]
    web.pages["/root"] = b"x" * (azure._MAX_ANSWER + 1)
    with pytest.raises(azure.IntermediateError):
        azure.complete(leaf, (), azure._get)


def test_what_is_carried_are_azures_cas_up_to_the_root_that_verifiers_pin() -> None:
    carried = azure._carried(None)
    roots = [ca for ca in carried if ca.issuer == ca.subject]
    (pin,) = [pin for pin in TrustStore.builtin().list() if pin.name.startswith("Azure")]
    assert [root.fingerprint(hashes.SHA256()).hex() for root in roots] == [pin.fingerprint]
    for ca in carried:
        ca.verify_directly_issued_by(roots[0])


# -- the CPU's report ------------------------------------------------------------------------------


@pytest.fixture
def pinned(amd: Amd, monkeypatch: pytest.MonkeyPatch) -> None:
    for fingerprint, processor in amd.pins().items():
        monkeypatch.setitem(sev.ROOTS, fingerprint, processor)


@pytest.fixture(autouse=True)
def _asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "METADATA_SECONDS", 0)


def test_a_metadata_service_that_is_not_ready_yet_is_asked_again(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "METADATA_SECONDS", 60)
    page = "/metadata/instance/compute/userData"
    with monkeypatch.context() as patch:
        patch.setattr(
            "time.sleep",
            lambda _: web.pages.update({page: azure.user_data(b"\7" * 32).encode()}),
        )
        assert azure.owner_secret(metadata=web.url) == b"\7" * 32
    assert len(web.asked) == 2
    # What it refuses for good, it is asked once.
    web.asked.clear()
    web.status = 400
    with pytest.raises(azure.OwnerError):
        azure.owner_secret(metadata=web.url)
    assert len(web.asked) == 1


def test_the_report_comes_with_the_chips_certificates(
    vm: Vm, amd: Amd, web: Web, pinned: None
) -> None:
    define_nv(vm.tpm, azure.REPORT_INDEX, hcl(amd, vm.key))
    web.serve(amd)
    found = azure.cpu_report(vm.tpm, vm.tpm.open_ak(azure.AK_HANDLE), metadata=web.url)
    assert found is not None and found.chain == amd.chain()
    assert json.loads(found.runtime_data)["keys"][0]["kid"] == "HCLAkPub"
    assert web.asked == [("/metadata/THIM/amd/certification", "true")]


def test_a_report_without_the_chips_certificate_is_an_error_that_says_where_it_is(
    vm: Vm, amd: Amd, web: Web, pinned: None
) -> None:
    define_nv(vm.tpm, azure.REPORT_INDEX, hcl(amd, vm.key))
    ak = vm.tpm.open_ak(azure.AK_HANDLE)
    for page in (None, b"", b"[]", b'{"vcekCert": "x", "certificateChain": "y"}'):
        web.pages = {} if page is None else {"/metadata/THIM/amd/certification": page}
        with pytest.raises(azure.CpuReportError) as caught:
            azure.cpu_report(vm.tpm, ak, metadata=web.url)
        assert "/metadata/THIM/amd/certification" in (caught.value.got or "")


@pytest.mark.parametrize(
    "change", [{"policy": 0x3001F | 1 << 19}, {"tcb": bytes(8)}, {"chip": bytes(64)}]
)
def test_a_report_that_verifiers_would_refuse_is_refused_before_a_training(
    vm: Vm, amd: Amd, web: Web, pinned: None, change: dict[str, Any]
) -> None:
    define_nv(vm.tpm, azure.REPORT_INDEX, hcl(amd, vm.key, **change))
    web.serve(amd)
    with pytest.raises(azure.CpuReportError) as caught:
        azure.cpu_report(vm.tpm, vm.tpm.open_ak(azure.AK_HANDLE), metadata=web.url)
    assert "sev." in (caught.value.got or "")


def test_a_document_over_which_no_cpu_reports_is_that_of_a_machine_without(
    vm: Vm, amd: Amd, web: Web
) -> None:
    wrapped = bytearray(hcl(amd, vm.key))
    wrapped[32 + 1184 + 8] = 3  # the type of the report
    define_nv(vm.tpm, azure.REPORT_INDEX, bytes(wrapped))
    assert azure.cpu_report(vm.tpm, vm.tpm.open_ak(azure.AK_HANDLE), metadata=web.url) is None
    assert web.asked == []


def test_a_container_that_is_malformed_or_of_another_cpu_is_refused(amd: Amd, vm: Vm) -> None:
    evidence = amd.evidence(vm.key)
    good = snp.hcl(evidence)
    assert azure.unwrap(good) == (evidence.report, evidence.runtime_data)
    assert azure.unwrap(good[: len(good.rstrip(b"\0"))]) == azure.unwrap(good)
    bad = [good[:size] for size in (0, 31, 32, 1216, 1235, 1236, 1300)]
    bad += [b"HCLB" + good[4:], good[:4] + b"\x03" + good[5:]]
    bad += [snp.hcl(evidence, kind=4), snp.hcl(evidence, hash_type=2)]
    huge = bytearray(good)
    huge[32 + 1184 + 16 : 32 + 1184 + 20] = b"\xff" * 4
    for data in (*bad, bytes(huge)):
        with pytest.raises(azure.CpuReportError):
            azure.unwrap(data)


# -- the agent, whole ------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="machines need namespaces and containers")
@pytest.mark.parametrize("confidential", [False, True], ids=["trusted-launch", "confidential"])
def test_a_run_on_an_azure_vm_ends_with_a_certificate_that_chains_to_azure(
    vm: Vm, amd: Amd, web: Web, authority: Authority, tmp_path: Path, short_tmp: Path,
    confidential: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if confidential:
        define_nv(vm.tpm, azure.REPORT_INDEX, hcl(amd, vm.key))
        web.serve(amd)
    tiny.build(tmp_path / "image")
    vm.tpm.close()
    with relay(vm.swtpm) as tcti, agent_that_pins(amd, tmp_path, monkeypatch):
        config = MachineConfig(
            kind="azure-host",
            state=short_tmp / "state",
            tcti=tcti,
            intermediates=pem(tmp_path, *vm.chain[1:]),
            metadata=web.url,
        )
        handle = machine.start(config, "run")
        try:
            with machine.attach(handle) as client:
                run = str(uuid.uuid4())
                client.step(run, "job", {"spec": spec(), "base": str(tmp_path)})
                for name in Run.STEPS[1:]:
                    client.step(run, name)
                data = client.certificate(run)
        finally:
            machine.destroy(handle)
    assert not (short_tmp / "state" / "host-ca").exists()
    certificate = Certificate.parse(data)
    assert certificate.attestation_key.chain == vm.chain
    (tmp_path / "root.pem").write_bytes(authority.root_pem)
    trust = TrustStore.builtin().with_roots(tmp_path / "root.pem", "hardware")
    for fingerprint, processor in amd.pins().items():
        monkeypatch.setitem(sev.ROOTS, fingerprint, processor)
    verdict = verify(data, trust=trust)
    assert verdict.assurance is Assurance.HARDWARE
    assert (verdict.confidential is not None) is confidential
    if confidential:
        # The report is this machine's alone.
        assert certificate.cpu_report is not None
        other = replace(certificate, cpu_report=amd.evidence(amd.ark_key.public_key()))
        with pytest.raises(sev.SevKeyError):
            verify(other.encode(), trust=trust)


def spec() -> dict[str, Any]:
    from aicert.agent.spec import parse

    text = json.dumps(
        {
            "name": "tiny",
            "image": "oci:image",
            "command": ["sh", "-c", "echo w > /outputs/model.bin"],
            "inputs": [],
            "metrics": None,
        }
    )
    return parse(text, source="test.json").to_json()


@contextmanager
def agent_that_pins(amd: Amd, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the agent, which is another process, know a made-up AMD: it is started by a program of
    ours that adds the pin and then is the agent."""
    program = folder / "python"
    pins = repr(amd.pins())
    code = f"import runpy, sys; from aicert import sev; sev.ROOTS.update({pins}); " + (
        "sys.argv[0] = 'aicert.agent'; runpy.run_module('aicert.agent', run_name='__main__')"
    )
    # Called as: python -I -m aicert.agent OPTIONS
    program.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -I -c "{code}" "$@"\n')
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(program))
        yield
