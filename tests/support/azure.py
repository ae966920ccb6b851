"""Virtual machines of Azure, as far as a test needs them: a vTPM, the metadata service, an agent.

The vTPM is a software TPM with the handle and the NV indices of an Azure VM's; the machine is a
process on loopback that runs the agent as the image does.
"""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aicert import tpm2
from aicert.agent import azure, azure_machine, azure_vm, engine
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Tpm
from blocks import AzureMachine
from tests.support import guard, tls
from tests.support.arm import (
    GROUP,
    IMAGE,
    PREFIX,
    SUBNET,
    SUBSCRIPTION,
    Arm,
    Credential,
    Rights,
)
from tests.support.forger import Authority
from tests.support.nv import define_nv, make_persistent
from tests.support.ports import free_port
from tests.support.snp import Amd
from tests.support.tpm import Factory, relay

ROLES = Path(__file__).parents[2] / "deployments" / "azure" / "roles.json"


class Web:
    """Azure's metadata service and its CAs' addresses, on loopback."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.status: int | None = None
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append((self.path, self.headers.get("Metadata")))
                page = web.pages.get(self.path.partition("?")[0])
                self.send_response(web.status or (404 if page is None else 200))
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, amd: Amd) -> None:
        vcek, *others = (
            x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
            for der in amd.chain()
        )
        answer = {"vcekCert": vcek, "certificateChain": "".join(others), "tcbm": "DB18000000000004"}
        self.pages["/metadata/THIM/amd/certification"] = json.dumps(answer).encode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Vm:
    """A software TPM with the handle and the NV indices of an Azure VM's."""

    tpm: Tpm
    swtpm: Swtpm
    chain: tuple[bytes, ...]
    key: Any


@contextmanager
def azure_vtpm(factory: Factory, authority: Authority) -> Iterator[Vm]:
    """Run a vTPM whose attestation key `authority` certified, as Azure does."""
    with Swtpm(factory.make()) as swtpm, Tpm(swtpm.tcti) as tpm:
        ak = make_persistent(tpm, azure.AK_HANDLE)
        key = tpm2.parse_public(ak.public).key
        chain = authority.chain(key)
        # Padded, and with a password that nobody is told, as Azure's firmware has it.
        padded = chain[0] + b"\0" * 100
        define_nv(tpm, azure.AK_CERTIFICATE_INDEX, padded, password="of the firmware")
        yield Vm(tpm, swtpm, chain, key)


def pem(folder: Path, *certificates: bytes) -> Path:
    """Write certificates to a file; return its path."""
    path = folder / "intermediates.pem"
    path.write_bytes(
        b"".join(
            x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates
        )
    )
    return path


@dataclass
class Cloud:
    """Runs a machine, at one port of loopback, for each that the stand-in for Azure makes."""

    factory: Factory
    authority: Authority
    files: tls.Loopback
    folder: Path
    port: int
    booted: int = 0
    _machines: dict[str, ExitStack] = field(default_factory=dict)

    @property
    def outside(self) -> Path:
        """Where it stands what an agent tried to reach beyond this machine."""
        return self.folder / "outside"

    @property
    def root(self) -> bytes:
        """The root (DER) that the attestation keys chain to."""
        return self.authority.root.public_bytes(Encoding.DER)

    def boot(self, machine: dict[str, Any], user_data: str | None) -> None:
        """Start a machine: its metadata service, its vTPM, and its agent."""
        self.booted += 1
        folder = self.folder / f"vm{self.booted}"
        folder.mkdir()
        with ExitStack() as stack:
            web = Web()
            stack.callback(web.close)
            web.pages["/metadata/instance/compute/userData"] = (user_data or "").encode()
            vm = stack.enter_context(azure_vtpm(self.factory, self.authority))
            vm.tpm.close()
            tcti = stack.enter_context(relay(vm.swtpm))
            log = stack.enter_context((folder / "agent.log").open("wb"))
            process = subprocess.Popen(
                [
                    sys.executable, "-I", guard.__file__, str(self.outside),
                    "aicert.agent", "--platform", "auto",
                    "--state", str(folder / "run"), "--listen", f"127.0.0.1:{self.port}",
                    "--tpm", tcti, "--metadata", web.url,
                    "--intermediates", str(pem(folder, *vm.chain[1:])),
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(engine.clear, folder / "run" / "engine")
            stack.callback(process.wait, 240)
            stack.callback(process.send_signal, signal.SIGTERM)
            self._machines[machine["id"].lower()] = stack.pop_all()

    def end(self, machine: dict[str, Any]) -> None:
        """End a machine."""
        if stack := self._machines.pop(machine["id"].lower(), None):
            stack.close()

    def close(self) -> None:
        """End all machines."""
        for stack in self._machines.values():
            stack.close()
        self._machines.clear()


def least_rights() -> Rights:
    """The roles of a worker, each at the scope that it is meant for, and no other right."""
    roles = json.loads(ROLES.read_text())
    return {
        scope: [(roles[name]["actions"], [])]
        for scope, name in {
            f"/subscriptions/{SUBSCRIPTION}": "aicert looker",
            PREFIX.removesuffix("/providers"): "aicert runs",
            SUBNET: "aicert network",
            IMAGE.partition("/images/")[0]: "aicert image reader",
        }.items()
    }


@contextmanager
def made_up_cloud(folder: Path) -> Iterator[tuple[Arm, Cloud]]:
    """Stand in for Azure: resource manager, identities, and machines that really run an agent."""
    now = datetime.now(UTC)
    authority = Authority(now - timedelta(days=30), now + timedelta(days=300), "Azure")
    files = tls.loopback(folder)
    arm = Arm(files)
    arm.permissions = least_rights()
    cloud = Cloud(Factory(folder / "factory"), authority, files, folder, free_port())
    arm.address = "127.0.0.1"
    arm.on_made, arm.on_deleted = cloud.boot, cloud.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(files.certificate))
        patch.setenv("SSL_CERT_FILE", str(files.certificate))
        patch.setattr("azure.identity.DefaultAzureCredential", lambda **_: Credential())
        patch.setattr(azure_vm, "POLL_SECONDS", 0.01)
        patch.setattr(azure_machine, "LOOK_SECONDS", 0.05)
        try:
            yield arm, cloud
        finally:
            cloud.close()
            arm.close()
    assert arm.violations == []
    assert not cloud.outside.exists(), cloud.outside.read_text()


def machine_block(arm: Arm, cloud: Cloud, state: Path, **fields: Any) -> AzureMachine:
    """Return the block of a machine in the stand-in."""
    return AzureMachine(
        subscription=SUBSCRIPTION,
        group=GROUP,
        location="westeurope",
        size="Standard_NC40ads_H100_v5",
        image=IMAGE,
        subnet=SUBNET,
        endpoint=arm.url,
        port=cloud.port,
        state=state,
        **fields,
    )
