"""The block of a machine in Azure: its mistakes, its plan, and what its check finds."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import azure_vm
from blocks import AzureMachine, Check
from tests.support import tls
from tests.support.arm import GROUP, IMAGE, SUBNET, SUBSCRIPTION, Arm, Credential

FIELDS: dict[str, Any] = {
    "subscription": SUBSCRIPTION,
    "group": GROUP,
    "location": "westeurope",
    "size": "Standard_NC40ads_H100_v5",
    "image": IMAGE,
    "subnet": SUBNET,
}


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arm]:
    files = tls.loopback(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(files.certificate))
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", lambda **_: Credential())
    server = Arm(files)
    capabilities = {"vCPUs": "40", "MemoryGB": "320", "GPUs": "1", "HyperVGenerations": "V2"}
    server.skus = [
        {
            "resourceType": "virtualMachines",
            "name": FIELDS["size"],
            "family": "StandardNCadsH100v5Family",
            "capabilities": [{"name": k, "value": v} for k, v in capabilities.items()],
        }
    ]
    server.usages = [
        {"limit": 80, "currentValue": 0, "name": {"value": name}}
        for name in ("StandardNCadsH100v5Family", "cores")
    ]
    yield server
    server.close()
    assert server.violations == []


@pytest.fixture
def prices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            item = {"unitOfMeasure": "1 Hour", "productName": "NC", "skuName": "NC40"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"Items": [{**item, "retailPrice": 8.5}]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(azure_vm, "PRICES", f"http://127.0.0.1:{server.server_address[1]}")
    yield
    server.shutdown()
    server.server_close()


def found(block: AzureMachine) -> dict[str, Check]:
    return {check.name: check for check in block.check()}


def test_a_check_says_that_a_machine_can_be_made_and_for_how_much(arm: Arm, prices: None) -> None:
    block = AzureMachine(**FIELDS, endpoint=arm.url)
    checks = found(block)
    assert [*checks] == [
        "group", "providers", "rights", "size", "quota", "image", "subnet", "price",
    ]  # fmt: skip
    assert all(check.ok for check in checks.values())
    assert checks["price"].found.startswith("8.5 US dollars an hour, at most 51.00 for a run")
    assert {method for method, _ in arm.requests} == {"GET"}
    plan = str(block.plan())
    assert "may cost up to 51.00" in plan and '"vTpmEnabled": true' in plan


def test_a_check_names_what_is_missing_and_what_to_do(
    arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_vm, "PRICES", "http://127.0.0.1:1")
    arm.usages = []
    arm.permissions[""] = [(["*/read"], [])]
    arm.providers["Microsoft.DevTestLab"] = "NotRegistered"
    checks = found(AzureMachine(**FIELDS, endpoint=arm.url))
    bad = {name: check for name, check in checks.items() if not check.ok}
    assert {*bad} == {"providers", "rights", "quota"}
    assert all(check.advice for check in bad.values())
    assert "virtualMachines/write in the group trainings" in bad["rights"].found
    assert checks["price"].found.startswith("unknown")  # which is no reason not to train


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": IMAGE.replace("1.0.0", "latest")}, "image"),
        ({"public": True}, "public"),
        ({"lifetime_hours": 0.5}, "lifetime_hours"),
        ({"max_price": 1}, "max_price"),
    ],
)
def test_a_mistake_is_found_when_the_block_is_saved(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AzureMachine(**{**FIELDS, **change})


def test_a_machine_needs_the_libraries_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "azure.mgmt.compute", None)
    (check,) = AzureMachine(**FIELDS).check()
    assert not check.ok and "'.[azure]'" in (check.advice or "")
