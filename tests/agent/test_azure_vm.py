"""Machines in Azure, over the vendor's libraries and the wire, against a strict stand-in."""

import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from aicert.agent import azure_identity, azure_roles, azure_vm
from aicert.agent.azure_vm import AzureVms, VmConfig
from tests.support import tls
from tests.support.arm import (  # fmt: skip
    GROUP,
    IMAGE,
    IMAGE_DEFINITION,
    PREFIX,
    SUBNET,
    SUBSCRIPTION,
    Arm,
    Credential,
    Fault,
)
from tests.support.azure import ROLES as ROLES_FILE
from tests.support.azure import least_rights

RUN = "6f1c0a52-6a2e-4c39-9a0f-0d6ad8f3b7c1"
NAME = f"aicert-{RUN}"
VM = f"{PREFIX}/Microsoft.Compute/virtualMachines/{NAME}"
SECURITY_GROUP = f"{PREFIX}/Microsoft.Network/networkSecurityGroups/nsg"
IDENTITY = f"{PREFIX}/Microsoft.ManagedIdentity/userAssignedIdentities/run"
GROUP_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> tls.Loopback:
    return tls.loopback(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def arm(loopback: tls.Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arm]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(loopback.certificate))
    monkeypatch.setenv("SSL_CERT_FILE", str(loopback.certificate))
    server = Arm(loopback)
    yield server
    server.close()
    assert server.violations == []


@pytest.fixture
def config(arm: Arm) -> VmConfig:
    return VmConfig(
        subscription=SUBSCRIPTION,
        group=GROUP,
        location="westeurope",
        size="Standard_NC40ads_H100_v5",
        image=IMAGE,
        subnet=SUBNET,
        endpoint=arm.url,
    )


def vms(config: VmConfig, credential: Any = None) -> AzureVms:
    return AzureVms(config, credential or Credential(), poll=0, retry_backoff_factor=0)


def puts(arm: Arm) -> list[str]:
    return [path for method, path in arm.requests if method == "PUT"]


# -- plan ------------------------------------------------------------------------------------------


def test_a_plan_is_what_would_be_asked_for_and_asks_for_nothing(arm: Arm, config: VmConfig) -> None:
    plan = vms(config).plan(RUN, {"flow": "certify"}, price=7.5)
    assert arm.requests == []
    assert plan.name == NAME
    properties = plan.request["properties"]
    assert properties["securityProfile"] == {
        "securityType": "TrustedLaunch",
        "uefiSettings": {"secureBootEnabled": True, "vTpmEnabled": True},
    }
    assert "osProfile" not in properties  # no user, no password, no key
    (nic,) = properties["networkProfile"]["networkInterfaceConfigurations"]
    assert nic["properties"]["deleteOption"] == "Delete"
    assert "publicIPAddressConfiguration" not in json.dumps(nic)
    assert properties["storageProfile"]["osDisk"]["deleteOption"] == "Delete"
    for tags in (plan.request["tags"], nic["tags"]):
        assert tags["aicert-run"] == RUN and tags["flow"] == "certify"
        assert datetime.fromisoformat(tags["aicert-expires"]) == plan.expires
    assert abs(plan.expires - datetime.now(UTC) - timedelta(hours=6)) < timedelta(minutes=1)
    assert "may cost up to 45.00" in str(plan)


def test_a_plan_warns_of_what_may_surprise(config: VmConfig) -> None:
    assert vms(config).plan(RUN).warnings == ()
    long = vms(replace(config, lifetime=timedelta(days=3))).plan(RUN)
    assert long.guard is None and "keep the reaper running" in long.warnings[0]
    spot = vms(replace(config, spot=True, max_price=2.5)).plan(RUN)
    assert "at any time" in spot.warnings[0]
    assert spot.request["properties"]["billingProfile"] == {"maxPrice": 2.5}
    assert spot.request["properties"]["evictionPolicy"] == "Delete"
    public = vms(replace(config, public=True, security_group=SECURITY_GROUP)).plan(RUN)
    assert "public address" in public.warnings[0]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"security": "confidential", "size": "Standard_DC8as_v5"},
        {"secure_boot": False},
        {"spot": True},
        {"spot": True, "max_price": 1.25},
        {"public": True, "security_group": SECURITY_GROUP},
        {"security_group": SECURITY_GROUP, "identity": IDENTITY, "zone": "2", "disk_gib": 512},
        {"image": "/CommunityGalleries/gal-1/Images/aicert/Versions/1.2.3"},
        {"image": "/SharedGalleries/gal-1/Images/aicert/Versions/1.2.3"},
    ],
    ids=str,
)
def test_every_kind_of_machine_is_made_as_microsofts_schema_says_and_leaves_nothing(
    arm: Arm, config: VmConfig, change: dict[str, Any]
) -> None:
    machines = vms(replace(config, **change))
    vm = machines.create(RUN)
    assert vm.private_address == "10.0.0.4"
    assert (vm.public_address == "192.0.2.7") is bool(change.get("public"))
    kinds = {path.split("/")[-2] for path in arm.left()}
    assert kinds >= {"virtualmachines", "networkinterfaces", "disks", "schedules"}
    machines.destroy(RUN)
    assert arm.left() == []
    machines.destroy(RUN)  # again, as after a lost reply


@pytest.mark.parametrize(
    "change",
    [
        {"subscription": "mine"},
        {"group": "a/b"},
        {"location": "West Europe"},
        {"size": "big"},
        {"image": IMAGE.replace("1.0.0", "latest")},
        {"image": IMAGE.rpartition("/versions/")[0]},
        {"image": "Canonical:ubuntu:server:latest"},
        {"subnet": "default"},
        {"lifetime": timedelta(minutes=59)},
        {"public": True},
        {"max_price": 1.0},
        {"spot": True, "max_price": -1.0},
        {"disk_gib": 0},
        {"zone": "west"},
        {"endpoint": "http://127.0.0.1"},
        {"identity": "me"},
    ],
    ids=str,
)
def test_a_mistake_is_found_before_anything_is_asked_for(
    arm: Arm, config: VmConfig, change: dict[str, Any]
) -> None:
    with pytest.raises(azure_vm.ConfigError) as caught:
        vms(replace(config, **change))
    assert (caught.value.got or "").startswith(list(change)[-1])
    assert arm.requests == []


def test_all_mistakes_are_named_at_once(config: VmConfig) -> None:
    with pytest.raises(azure_vm.ConfigError) as caught:
        vms(replace(config, size="x", zone="y", public=True))
    assert all(name in (caught.value.got or "") for name in ("size", "zone", "public"))


# -- create ----------------------------------------------------------------------------------------


def test_a_second_attempt_finds_the_machine_of_the_first(arm: Arm, config: VmConfig) -> None:
    first = vms(config).create(RUN)
    asked = len(puts(arm))
    # Another process, after a crash.
    assert vms(config).create(RUN) == first
    assert len(puts(arm)) == asked
    assert len(arm.of_type("virtualMachines")) == 1


def test_a_machine_that_is_still_being_made_is_waited_for(arm: Arm, config: VmConfig) -> None:
    machines = vms(config)
    plan = machines.plan(RUN)
    made = arm._make(VM, json.loads(json.dumps(plan.request)))  # by a process that died
    timer = threading.Timer(0.3, lambda: arm._made(made))
    timer.start()
    try:
        assert machines.create(RUN).id == VM
    finally:
        timer.join()
    assert [path for path in puts(arm) if path == VM] == []
    assert len(arm.of_type("schedules")) == 1  # the guard that the dead process did not set


def test_a_reply_that_is_lost_makes_no_second_machine(arm: Arm, config: VmConfig) -> None:
    arm.faults = [Fault("PUT", "virtualMachines", None, after=True)]
    assert vms(config).create(RUN).id == VM
    assert len(arm.of_type("virtualMachines")) == len(arm.of_type("networkInterfaces")) == 1


def test_what_a_failed_attempt_left_is_removed_before_the_next(arm: Arm, config: VmConfig) -> None:
    machines = vms(config)
    made = arm._make(VM, json.loads(json.dumps(machines.plan(RUN).request)))
    arm.allocation_fails = ("AllocationFailed", "no room")
    arm._made(made)
    arm.allocation_fails = None
    old = arm.of_type("networkInterfaces")[0]["id"]
    assert machines.create(RUN).private_address == "10.0.0.4"
    assert [nic["id"] for nic in arm.of_type("networkInterfaces")] != [old]


def test_a_machine_of_somebody_else_is_neither_used_nor_deleted(arm: Arm, config: VmConfig) -> None:
    made = arm._make(VM, json.loads(json.dumps(vms(config).plan(RUN).request)))
    arm._made(made)
    made["tags"] = {"aicert-run": "another"}
    with pytest.raises(azure_vm.ConflictError):
        vms(config).create(RUN)
    with pytest.raises(azure_vm.ConflictError):
        vms(config).destroy(RUN)
    assert VM.lower() in arm.resources


def test_two_processes_that_start_one_run_get_one_machine(arm: Arm, config: VmConfig) -> None:
    arm.looks = 3
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(vms(config).create(RUN))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len({vm.id for vm in found}) == 1
    assert len(arm.of_type("networkInterfaces")) == 1


def test_a_schedule_of_azures_own_ends_the_machine_whatever_becomes_of_us(
    arm: Arm, config: VmConfig
) -> None:
    arm.looks = 100
    vm = vms(config).create(RUN)
    (guard,) = arm.of_type("schedules")
    assert guard["properties"]["targetResourceId"] == vm.id
    assert guard["properties"]["dailyRecurrence"]["time"] == vm.expires.strftime("%H%M")
    # It was set before the machine was ready: a process that dies while it waits leaves it guarded.
    order = [path.split("/")[-2] for method, path in arm.requests if method == "PUT"]
    assert order == ["virtualMachines", "schedules"]
    looks = [i for i, (_, path) in enumerate(arm.requests) if "/operations/" in path]
    guarded = next(i for i, r in enumerate(arm.requests) if r[0] == "PUT" and "schedules" in r[1])
    assert guarded < looks[-1]


# -- failures --------------------------------------------------------------------------------------

REFUSALS = [
    (409, "OperationNotAllowed", "exceeding approved Total Regional Cores quota", "quota"),
    (409, "QuotaExceeded", "", "quota"),
    (409, "SkuNotAvailable", "not available in location", "size"),
    (400, "InvalidParameter", "The value of parameter vmSize is invalid", "size"),
    (400, "BadRequest", "VM size does not support security type ConfidentialVM", "size"),
    (400, "InvalidParameter", "osDisk.name is invalid", "invalid"),
    (403, "AuthorizationFailed", "does not have authorization to perform action", "denied"),
    (403, "LinkedAuthorizationFailed", "subnets/join/action", "denied"),
    (403, "RequestDisallowedByPolicy", "policy 'allowed locations'", "policy"),
    (409, "ScopeLocked", "", "policy"),
    (404, "ResourceGroupNotFound", "", "not-found"),
    (404, "SubscriptionNotFound", "", "not-found"),
    (404, "ImageNotFound", "", "not-found"),
    (409, "Conflict", "", "conflict"),
    (409, "SomethingNew", "", "conflict"),
    (418, "SomethingNew", "", "invalid"),
    (403, "SomethingNew", "", "denied"),
]


@pytest.mark.parametrize(("status", "code", "message", "expected"), REFUSALS)
def test_what_azure_refuses_becomes_one_clear_error_and_leaves_nothing(
    arm: Arm, config: VmConfig, status: int, code: str, message: str, expected: str
) -> None:
    arm.faults = [Fault("PUT", "virtualMachines", status, code, message)]
    with pytest.raises(azure_vm.AzureVmError) as caught:
        vms(config).create(RUN)
    assert caught.value.code == f"azure-vm.{expected}"
    assert code in (caught.value.got or "") and NAME in (caught.value.got or "")
    assert caught.value.advice and len(caught.value.message) > 10
    assert arm.left() == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AllocationFailed", "capacity"),
        ("ZonalAllocationFailed", "capacity"),
        ("OverconstrainedAllocationRequest", "capacity"),
        ("SkuNotAvailable", "size"),
        ("InternalExecutionError", "unavailable"),
    ],
)
def test_an_allocation_that_fails_later_leaves_nothing(
    arm: Arm, config: VmConfig, code: str, expected: str
) -> None:
    arm.allocation_fails = (code, "We do not have sufficient capacity")
    with pytest.raises(azure_vm.AzureVmError) as caught:
        vms(config).create(RUN)
    assert caught.value.code == f"azure-vm.{expected}"
    assert "sufficient capacity" in (caught.value.got or "")
    assert arm.left() == []


def test_an_allocation_that_fails_after_a_crash_is_explained_by_the_machine_itself(
    arm: Arm, config: VmConfig
) -> None:
    machines = vms(config)
    made = arm._make(VM, json.loads(json.dumps(machines.plan(RUN).request)))
    arm.allocation_fails = ("AllocationFailed", "no room")
    timer = threading.Timer(0.3, lambda: arm._made(made))
    timer.start()
    try:
        with pytest.raises(azure_vm.CapacityError) as caught:
            machines.create(RUN)
    finally:
        timer.join()
    assert "no room" in (caught.value.got or "")
    assert arm.left() == []


def test_passing_troubles_are_waited_out(arm: Arm, config: VmConfig) -> None:
    arm.faults = [
        Fault("PUT", "virtualMachines", 429, "TooManyRequests", headers={"Retry-After": "0"}),
        Fault("GET", "operations", 503, "ServerBusy", times=2),
        Fault("DELETE", "virtualMachines", 500, "InternalServerError"),
    ]
    machines = vms(config)
    assert machines.create(RUN).id == VM
    machines.destroy(RUN)
    assert arm.faults == [] and arm.left() == []


def test_troubles_that_stay_are_named(arm: Arm, config: VmConfig) -> None:
    lasting = {"headers": {"Retry-After": "0"}, "times": 10_000}
    for status, code, expected in (
        (429, "TooManyRequests", azure_vm.ThrottledError),
        (503, "ServerBusy", azure_vm.UnavailableError),
    ):
        arm.faults = [Fault("GET", "", status, code, **lasting)]  # type: ignore[arg-type]
        with pytest.raises(expected):
            AzureVms(config, Credential(), poll=0, retry_total=2, retry_backoff_factor=0).owned()


def test_a_clean_up_that_fails_is_said_and_left_to_the_reaper(arm: Arm, config: VmConfig) -> None:
    arm.allocation_fails = ("AllocationFailed", "no room")
    arm.faults = [Fault("DELETE", "virtualMachines", 403, "AuthorizationFailed", "delete")]
    with pytest.raises(azure_vm.CapacityError) as caught:
        vms(config).create(RUN)
    assert "the reaper removes what is left" in (caught.value.advice or "")
    assert VM.lower() in arm.resources
    assert {item.run for item in vms(config).owned()} == {RUN}
    vms(config).reap(lambda item: False)
    assert arm.left() == []


def test_an_interrupted_wait_leaves_nothing(
    arm: Arm, config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AzureVms, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vms(config).create(RUN)
    assert arm.left() == []


def test_an_identity_that_azure_does_not_know_is_denied(arm: Arm, config: VmConfig) -> None:
    class Nobody:
        def get_token(self, *_: str, **__: Any) -> Any:
            raise ClientAuthenticationError("no identity was found\nof any kind")

    with pytest.raises(azure_vm.DeniedError) as denied:
        vms(config, Credential("wrong")).owned()
    assert "roles" in (denied.value.advice or "")
    with pytest.raises(azure_vm.NoIdentityError) as nobody:
        vms(config, Nobody()).owned()
    assert "az login" in (nobody.value.advice or "")
    assert (nobody.value.got or "").endswith("no identity was found")


def test_an_identity_is_looked_for_in_the_environment_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(
        "azure.identity.DefaultAzureCredential", lambda **given: asked.append(given)
    )
    azure_identity.find()
    azure_identity.find("0b1f")
    # The library takes AZURE_CLIENT_ID only where nothing is given, and None is something.
    assert asked == [{}, {"managed_identity_client_id": "0b1f"}]


def test_tokens_are_asked_for_the_endpoint_alone(arm: Arm, config: VmConfig) -> None:
    credential = Credential()
    vms(config, credential).owned()
    assert credential.scopes == {f"{arm.url}/.default"}


def test_an_azure_that_nobody_serves_is_unavailable(config: VmConfig) -> None:
    away = replace(config, endpoint="https://127.0.0.1:1")
    with pytest.raises(azure_vm.UnavailableError):
        AzureVms(away, Credential(), retry_total=0).owned()


# -- destroy, and the reaper -----------------------------------------------------------------------


def test_a_slow_delete_is_waited_for(arm: Arm, config: VmConfig) -> None:
    machines = vms(config)
    machines.create(RUN)
    arm.looks = 20
    machines.destroy(RUN)
    assert arm.left() == []


def test_the_stand_in_answers_nothing_that_azure_has_no_word_for(
    arm: Arm, config: VmConfig
) -> None:
    machines = vms(config)
    machines.create(RUN)
    arm.resources[VM.lower()]["properties"]["storageProfile"]["osDisc"] = {}
    machines.create(RUN)
    assert arm.violations and all("'osDisc' was unexpected" in text for text in arm.violations)
    arm.violations.clear()
    del arm.resources[VM.lower()]["properties"]["storageProfile"]["osDisc"]
    machines.destroy(RUN)


def test_what_azure_does_not_delete_with_the_machine_is_deleted_by_its_tags(
    arm: Arm, config: VmConfig
) -> None:
    machines = vms(config)
    machines.create(RUN)
    arm.delete_with.clear()  # whatever was asked for
    machine = arm.resources[VM.lower()]
    machine["properties"]["storageProfile"]["osDisk"]["deleteOption"] = "Detach"
    machines.destroy(RUN)
    assert arm.left() == []


def test_the_reaper_deletes_what_is_over_its_time_or_not_needed(arm: Arm, config: VmConfig) -> None:
    machines = vms(config)
    runs = [RUN.replace("6f1c", f"000{number}") for number in range(3)]
    for run in runs:
        machines.create(run, {"flow": run[:4]})
    for item in arm.resources.values():
        if (item.get("tags") or {}).get("aicert-run") == runs[0]:
            item["tags"]["aicert-expires"] = "2026-01-01T00:00:00Z"
    arm.resources[f"{PREFIX}/x/y/z".lower()] = {"id": f"{PREFIX}/x/y/z", "tags": {"other": "1"}}
    reaped = machines.reap(lambda item: item.tags["flow"] != runs[1][:4])
    assert {item.run for item in reaped} == set(runs[:2])
    assert {item.run for item in machines.owned()} == {runs[2]}
    assert f"{PREFIX}/x/y/z".lower() in arm.resources
    assert machines.reap(lambda item: True) == []


def test_a_machine_whose_end_cannot_be_read_is_over(arm: Arm, config: VmConfig) -> None:
    for tags in ({}, {"aicert-expires": "soon"}, {"aicert-expires": "2026-01-01T00:00:00"}):
        assert azure_vm.Owned("id", "type", RUN, tags).expired
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert not azure_vm.Owned("id", "type", RUN, {"aicert-expires": later}).expired


def test_the_reaper_tries_all_before_it_says_what_failed(arm: Arm, config: VmConfig) -> None:
    machines = vms(config)
    runs = [RUN.replace("6f1c", f"000{number}") for number in range(2)]
    for run in runs:
        machines.create(run)
    arm.faults = [Fault("DELETE", f"aicert-{runs[0]}", 403, "AuthorizationFailed", times=99)]
    with pytest.raises(azure_vm.DeniedError):
        machines.reap(lambda item: False)
    assert {item.run for item in machines.owned()} == {runs[0]}


# -- a look before ---------------------------------------------------------------------------------


def sku(name: str, **capabilities: str) -> dict[str, Any]:
    usual = {"vCPUs": "40", "MemoryGB": "320", "GPUs": "1", "HyperVGenerations": "V1,V2"}
    return {
        "resourceType": "virtualMachines",
        "name": name,
        "family": "StandardNCadsH100v5Family",
        "locations": ["westeurope"],
        "capabilities": [{"name": k, "value": v} for k, v in {**usual, **capabilities}.items()],
        "locationInfo": [{"location": "westeurope", "zones": ["1", "2", "3"]}],
        "restrictions": [],
    }


def restricted(kind: str, *zones: str) -> list[dict[str, Any]]:
    info = {"locations": ["westeurope"], **({"zones": list(zones)} if zones else {})}
    return [
        {
            "type": kind,
            "values": ["westeurope"],
            "restrictionInfo": info,
            "reasonCode": "NotAvailableForSubscription",
        }
    ]


def usage(limit: int, used: int, name: str = "standardNCadsH100v5Family") -> dict[str, Any]:
    return {"limit": limit, "currentValue": used, "unit": "Count", "name": {"value": name}}


REGION = usage(500, 0, "cores")


def test_a_look_says_that_all_is_there(arm: Arm, config: VmConfig) -> None:
    arm.skus = [sku("Standard_D2s_v5"), sku(config.size)]
    arm.usages = [usage(100, 60), REGION]
    found = dict(vms(config).look())
    assert found == {
        "group": "trainings in westeurope",
        "providers": "Microsoft.Compute, Microsoft.DevTestLab, Microsoft.Network: registered",
        "rights": "all that a run needs",
        "size": "Standard_NC40ads_H100_v5: 40 vCPUs, 320 GiB, 1 GPUs (`make image` brings no "
        "driver for them)",
        "quota": "40 of 100 cores left in StandardNCadsH100v5Family, 500 of 500 cores left in "
        "cores; 40 needed",
        "image": "Microsoft.Compute/galleries/gal/images/aicert/versions/1.0.0, "
        "TrustedLaunchAndConfidentialVmSupported",
        "subnet": "Microsoft.Network/virtualNetworks/net/subnets/runs",
    }
    assert {method for method, _ in arm.requests} == {"GET"}


def test_a_look_names_what_is_missing(arm: Arm, config: VmConfig) -> None:
    arm.skus = [sku(config.size)]
    arm.usages = [usage(100, 61), REGION]
    other = replace(config, subnet=SUBNET.replace("/net/", "/none/"))
    found: dict[str, Any] = dict(vms(other).look())
    assert found["quota"].code == "azure-vm.quota" and "39 of 100" in found["quota"].got
    assert found["subnet"].code == "azure-vm.not-found"
    arm.usages = []
    found = dict(vms(replace(config, group="other", size="Standard_Z9")).look())
    assert found["group"].code == "azure-vm.not-found"
    assert found["size"].code == found["quota"].code == "azure-vm.size"


@pytest.mark.parametrize(
    ("change", "capabilities", "problem"),
    [
        ({}, {"HyperVGenerations": "V1"}, "generation 2"),
        ({}, {"TrustedLaunchDisabled": "True"}, "Trusted Launch"),
        ({"security": "confidential"}, {}, "not confidential"),
        ({"security": "confidential"}, {"ConfidentialComputingType": "TDX"}, "not confidential"),
        ({"spot": True}, {"LowPriorityCapable": "False"}, "no spot"),
        ({}, {"CpuArchitectureType": "Arm64"}, "Arm64"),
    ],
)
def test_a_look_finds_a_size_that_will_not_do(
    arm: Arm, config: VmConfig, change: Any, capabilities: Any, problem: str
) -> None:
    arm.skus = [sku(config.size, **capabilities)]
    found: dict[str, Any] = dict(vms(replace(config, **change)).look())
    assert found["size"].code == "azure-vm.size" and problem in found["size"].got


def test_a_look_heeds_the_restrictions_of_the_zone_that_is_asked_for_alone(
    arm: Arm, config: VmConfig
) -> None:
    def look(**change: Any) -> Any:
        return dict(vms(replace(config, **change)).look())["size"]

    size = sku(config.size)
    arm.skus = [size]
    size["restrictions"] = restricted("Zone", "3")
    assert "40 vCPUs" in look() and "40 vCPUs" in look(zone="2")
    assert "not in zone 3 but in ['1', '2']" in look(zone="3").got
    size["restrictions"] = restricted("Location")
    assert "NotAvailableForSubscription" in look().got
    size["restrictions"] = []
    size["locationInfo"] = [{"location": "westeurope"}]
    assert "not in zone 1 but in none" in look(zone="1").got


def test_a_look_heeds_the_quota_of_the_region_over_all_families(arm: Arm, config: VmConfig) -> None:
    arm.skus = [sku(config.size)]
    arm.usages = [usage(100, 0), usage(350, 311, "cores")]
    quota: Any = dict(vms(config).look())["quota"]
    assert quota.code == "azure-vm.quota" and quota.got == "39 of 350 cores left in cores"
    # Spot machines have one of their own, over all families.
    arm.usages.append(usage(40, 0, "lowPriorityCores"))
    found = dict(vms(replace(config, spot=True)).look())
    assert found["quota"] == "40 of 40 cores left in lowPriorityCores; 40 needed"


def test_a_look_finds_an_image_that_secure_boot_would_not_start(arm: Arm, config: VmConfig) -> None:
    version = arm.resources[IMAGE.lower()]
    version["tags"] = {"aicert-sha256": "ab" * 32}  # published by us
    image: Any = dict(vms(config).look())["image"]
    assert "secure boot is on" in image.got and "turn secure_boot off" in image.advice
    assert "LaunchAnd" in str(dict(vms(replace(config, secure_boot=False)).look())["image"])
    signatures = {"db": [{"type": "x509", "value": ["AA=="]}]}
    version["properties"] = version["properties"] | {
        "securityProfile": {"uefiSettings": {"additionalSignatures": signatures}}
    }
    assert "LaunchAnd" in str(dict(vms(config).look())["image"])


@pytest.mark.parametrize(
    ("change", "properties", "problem"),
    [
        ({}, {"osState": "Generalized"}, "a user and a password"),
        ({}, {"hyperVGeneration": "V1"}, "generation 2"),
        ({}, {"features": []}, "type Standard"),
        ({"security": "confidential"}, {"features": [
            {"name": "SecurityType", "value": "TrustedLaunchSupported"}]}, "LaunchSupported"),
        ({"location": "eastus"}, {}, "not in eastus but in westeurope"),
    ],
)  # fmt: skip
def test_a_look_finds_an_image_that_will_not_do(
    arm: Arm, config: VmConfig, change: Any, properties: Any, problem: str
) -> None:
    arm.resources[IMAGE_DEFINITION.lower()]["properties"] |= properties
    found: dict[str, Any] = dict(vms(replace(config, **change)).look())
    assert problem in found["image"].got and "publish.py" in found["image"].advice


def test_a_look_names_every_right_and_provider_that_is_missing(arm: Arm, config: VmConfig) -> None:
    arm.permissions = {
        f"/subscriptions/{SUBSCRIPTION}": [(["*/read"], ["Microsoft.Compute/skus/read"])],
        GROUP_ID: [
            (["Microsoft.Compute/*"], ["microsoft.compute/disks/*", "Microsoft.Compute/skus/*"]),
            (["Microsoft.Network/networkInterfaces/*", "Microsoft.DevTestLab/schedules/write"], []),
        ],
    }
    arm.providers["Microsoft.DevTestLab"] = "NotRegistered"
    found: dict[str, Any] = dict(vms(config).look())
    assert found["rights"].got == (
        "Microsoft.Compute/disks/delete in the group trainings; "
        "Microsoft.Compute/disks/write in the group trainings; "
        "Microsoft.DevTestLab/schedules/delete in the group trainings; "
        "Microsoft.Compute/skus/read in the subscription; "
        "Microsoft.Network/virtualNetworks/subnets/join/action for runs"
    )
    assert "setup.sh" in found["rights"].advice
    assert found["providers"].got == "Microsoft.DevTestLab: NotRegistered"
    assert "az provider register" in found["providers"].advice


ROLES = json.loads(ROLES_FILE.read_text())


def test_the_roles_are_exactly_what_the_code_needs() -> None:
    assert {name: sorted(role["actions"]) for name, role in ROLES.items()} == {
        "aicert runs": sorted(azure_roles.RUNS + azure_roles.PUBLIC),
        "aicert network": sorted(azure_roles.SUBNET + azure_roles.SECURITY_GROUP),
        "aicert image reader": sorted(azure_roles.IMAGE),
        "aicert identity user": sorted(azure_roles.IDENTITY),
        "aicert looker": sorted(azure_roles.SUBSCRIPTION),
        "aicert store": sorted(azure_roles.STORE),
        "aicert publisher": sorted(azure_roles.PUBLISHER),
        "aicert publishing looker": sorted(azure_roles.PUBLISHER_SUBSCRIPTION),
    }
    assert {name: role["dataActions"] for name, role in ROLES.items() if "dataActions" in role} == {
        "aicert store": sorted(azure_roles.STORE_DATA),
        "aicert publisher": sorted(azure_roles.PUBLISHER_DATA),
    }
    assert not any("*" in action for role in ROLES.values() for action in role["actions"])


def test_the_roles_are_enough_where_they_are_given_and_nothing_is_in_them_for_nothing(
    arm: Arm, config: VmConfig
) -> None:
    arm.skus, arm.usages = [sku(config.size)], [usage(100, 0), REGION]
    for place in (SECURITY_GROUP, IDENTITY):
        arm.resources[place.lower()] = {"id": place, "name": place.rpartition("/")[2]}
    arm.permissions = least_rights()
    for scope, name in ((SECURITY_GROUP, "aicert network"), (IDENTITY, "aicert identity user")):
        arm.permissions[scope] = [(ROLES[name]["actions"], [])]
    public = replace(config, public=True, security_group=SECURITY_GROUP, identity=IDENTITY)
    machines = vms(public)
    assert [
        found.got for _, found in machines.look() if isinstance(found, azure_vm.AzureVmError)
    ] == []
    machines.create(RUN)
    machines.console(RUN)
    machines.destroy(RUN)
    # What Azure leaves behind is deleted thing by thing.
    machines.create(RUN)
    arm.delete_with.clear()
    arm.resources[VM.lower()]["properties"]["storageProfile"]["osDisk"].pop("deleteOption")
    (disk,) = arm.of_type("disks")
    disk["tags"] = {"aicert-run": RUN}
    machines.destroy(RUN)
    allowed = {
        action.lower()
        for name in azure_roles.WORKER
        for action in ROLES[name]["actions"]
        if not ROLES[name].get("dataActions")
    }
    asked = {action.lower() for action in arm.actions() | arm.linked}
    # Everybody may ask what they may do.
    assert asked - allowed == {"microsoft.authorization/permissions/read"}
    assert allowed - asked == set()


def test_how_an_operation_stands_is_seen_in_the_subscription_alone(
    arm: Arm, config: VmConfig
) -> None:
    arm.permissions = {GROUP_ID: [(["*"], [])], SUBNET: [(["*"], [])], IMAGE: [(["*"], [])]}
    with pytest.raises(azure_vm.DeniedError) as caught:
        vms(config).create(RUN)
    assert "Microsoft.Compute/locations/operations/read" in (caught.value.got or "")


def test_the_console_of_a_machine_is_its_last_lines_made_harmless(
    arm: Arm, config: VmConfig
) -> None:
    machines = vms(config)
    machines.create(RUN)
    lines = [f"line {number}" for number in range(40)]
    arm.console = "\r\n".join([*lines, "", "\x1b[2Jaicert: \x07there is no disk \xff" + "x" * 500])
    *others, last = machines.console(RUN)
    assert others == lines[-29:]
    assert last.startswith("�[2Jaicert: �there is no disk") and len(last) < 250
    arm.console = ""
    assert machines.console(RUN) == []
    with pytest.raises(azure_vm.NotFoundError):
        machines.console(RUN.replace("6f1c", "0000"))
    arm.faults = [Fault("GET", "/console/", 403)]
    with pytest.raises(azure_vm.UnavailableError) as caught:
        machines.console(RUN)
    assert "secret" not in str(caught.value.got) + str(caught.value.__context__)


def test_the_price_of_an_hour_comes_from_the_public_list(config: VmConfig) -> None:
    asked = []
    items = [
        {"retailPrice": price, "unitOfMeasure": "1 Hour", "productName": product, "skuName": name}
        for price, product, name in (
            (6.98, "NCads H100 v5 Linux", "NC40ads H100 v5"),
            (8.82, "NCads H100 v5 Windows", "NC40ads H100 v5"),
            (1.40, "NCads H100 v5 Linux", "NC40ads H100 v5 Spot"),
            (1.20, "NCads H100 v5 Linux", "NC40ads H100 v5 Low Priority"),
        )
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(urllib.parse.unquote_plus(self.path))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"Items": items}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    prices = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert azure_vm.price(config, prices=prices) == 6.98
        assert azure_vm.price(replace(config, spot=True), prices=prices) == 1.40
        items.clear()
        assert azure_vm.price(config, prices=prices) is None
    finally:
        server.shutdown()
        server.server_close()
    assert "armSkuName eq 'Standard_NC40ads_H100_v5'" in asked[0]
    with pytest.raises(azure_vm.UnavailableError):
        azure_vm.price(config, prices=prices)


# -- the stand-in itself ---------------------------------------------------------------------------


def test_the_stand_in_refuses_what_azure_would_not_know(arm: Arm, config: VmConfig) -> None:
    machines = vms(config)
    changes: list[Callable[[Any], object]] = [
        lambda request: request["properties"]["securityProfile"]["uefiSettings"].update(vTpm=True),
        lambda request: request["properties"]["securityProfile"].update(securityType="Trusted"),
        lambda request: request["properties"].update(osProfil={}),
        lambda request: request.pop("location"),
        lambda request: request["tags"].update(a=1),
    ]
    for change in changes:
        plan = machines.plan(RUN)
        change(plan.request)
        with pytest.raises(azure_vm.AzureVmError):
            with azure_vm.explained("it"):
                machines._make(plan, 0)
    assert len(arm.violations) == 5
    arm.violations.clear()
