"""Virtual machines in Azure for runs: plan, create, find again, destroy; nothing is left behind.

One request makes the machine, its network interface and its disk, and deleting the machine deletes
them. The name comes from the run, and the request may only create: so a second attempt, or one
after a crash, finds the machine that the first one made. Everything carries the run in its tags, by
which `owned` finds what nobody needs any more, and a schedule of Azure's own stops the machine when
its time is over, whatever became of us.

This is the operator's side. Nothing here is trusted by a verifier.
"""

import json
import re
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

from aicert.agent import azure_identity, azure_roles
from aicert.errors import Error, install
from aicert.words import clean, count

ENDPOINT = "https://management.azure.com"
PRICES = "https://prices.azure.com"

RUN_TAG = "aicert-run"
EXPIRES_TAG = "aicert-expires"
DIGEST_TAG = "aicert-sha256"
"""On a version of an image that deployments/azure/publish.py made: the digest of its disk."""

SHORTEST = timedelta(hours=1)
LONGEST_GUARDED = timedelta(hours=23)
"""Azure's schedules are daily: a later end than this cannot be told from one a day earlier."""

POLL_SECONDS = 10.0

COMPUTE_API = "2025-11-01"
_API = {
    "microsoft.compute/virtualmachines": COMPUTE_API,
    "microsoft.compute/disks": "2025-01-02",
    "microsoft.compute/galleries/images": "2025-03-03",
    "microsoft.compute/galleries/images/versions": "2025-03-03",
    "microsoft.managedidentity/userassignedidentities": "2024-11-30",
    "microsoft.network/networkinterfaces": "2025-05-01",
    "microsoft.network/networksecuritygroups": "2025-05-01",
    "microsoft.network/publicipaddresses": "2025-05-01",
    "microsoft.network/virtualnetworks/subnets": "2025-05-01",
    "microsoft.devtestlab/schedules": "2018-09-15",
}
# Which security types of an image (in lower case) can be booted how.
_SECURITY = {
    "trusted-launch": {
        "trustedlaunch",
        "trustedlaunchsupported",
        "trustedlaunchandconfidentialvmsupported",
    },
    "confidential": {
        "confidentialvm",
        "confidentialvmsupported",
        "trustedlaunchandconfidentialvmsupported",
    },
}
_CONSOLE_BYTES = 4 << 20
_CONSOLE_LINES = 30
_CREATE_SECONDS = 1200.0
_DELETE_SECONDS = 900.0
_GONE = ("ResourceNotFound", "NotFound", "ResourceGroupNotFound")

_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_GROUP = r"[\w.()-]{1,90}"
_ID = rf"/subscriptions/{_UUID}/resourceGroups/{_GROUP}/providers"
_VERSION = r"\d+\.\d+\.\d+"
_FORMS = {
    "subscription": (_UUID, "the subscription's id, a UUID"),
    "group": (_GROUP, "the name of a resource group"),
    "location": (r"[a-z0-9]{2,40}", "a region, such as westeurope"),
    "size": (r"(?:Standard|Basic)_\w{1,60}", "a size, such as Standard_D4s_v5"),
    "image": (
        rf"{_ID}/Microsoft\.Compute/galleries/[\w.]+/images/[\w.-]+/versions/{_VERSION}"
        rf"|/(?:Community|Shared)Galleries/[\w.-]+/Images/[\w.-]+/Versions/{_VERSION}",
        "the id of a version of a gallery's image, by number and not `latest`",
    ),
    "subnet": (
        rf"{_ID}/Microsoft\.Network/virtualNetworks/[\w.-]+/subnets/[\w.-]+",
        "the id of a subnet",
    ),
    "security_group": (
        rf"{_ID}/Microsoft\.Network/networkSecurityGroups/[\w.-]+",
        "the id of a network security group",
    ),
    "identity": (
        rf"{_ID}/Microsoft\.ManagedIdentity/userAssignedIdentities/[\w-]+",
        "the id of a managed identity",
    ),
    "worker": (_UUID, "the client id of a managed identity, a UUID"),
    "zone": (r"[1-9]", "the number of a zone"),
}


class AzureVmError(Error):
    """Azure did not do what it was asked for."""

    code = "azure-vm.failed"


class ConfigError(AzureVmError):
    """What was asked for makes no sense; every mistake is named."""

    code = "azure-vm.config"


class LibraryError(AzureVmError):
    """The libraries for Azure are not installed."""

    code = "azure-vm.missing-extra"


class QuotaError(AzureVmError):
    """The subscription may not have so many cores."""

    code = "azure-vm.quota"


class SizeError(AzureVmError):
    """The size is not to be had there, or cannot do what was asked for."""

    code = "azure-vm.size"


class CapacityError(AzureVmError):
    """Azure has no such machine free there now."""

    code = "azure-vm.capacity"


class ThrottledError(AzureVmError):
    """Too many requests."""

    code = "azure-vm.throttled"


class DeniedError(AzureVmError):
    """This identity may not do that."""

    code = "azure-vm.denied"


class NoIdentityError(AzureVmError):
    """There is no identity to ask Azure with."""

    code = "azure-vm.no-identity"


class ForbiddenByPolicyError(AzureVmError):
    """A policy or a lock of the organisation forbids it."""

    code = "azure-vm.policy"


class ConflictError(AzureVmError):
    """Something else is going on with the machine, or has its name."""

    code = "azure-vm.conflict"


class NotFoundError(AzureVmError):
    """What the machine needs does not exist: a group, an image, a network."""

    code = "azure-vm.not-found"


class InvalidError(AzureVmError):
    """Azure refuses the request as it is."""

    code = "azure-vm.invalid"


class UnavailableError(AzureVmError):
    """Azure cannot be reached, or has a failure of its own."""

    code = "azure-vm.unavailable"


# By the error's code, for the status says little: a quota is a 409, a failed allocation a 200.
_KINDS: tuple[tuple[type[AzureVmError], str, str], ...] = (
    (
        QuotaError,
        r"QuotaExceeded|\w*QuotaExceeded\w*",
        "ask for more cores of this family in this region (Azure portal, Quotas), or take another "
        "size or region",
    ),
    (
        CapacityError,
        r"(?:Zonal)?AllocationFailed|Overconstrained\w*|AllocationTimeout|\w*CapacityExceeded"
        r"|CapacityNotAvailable|\w*SpotPreempted",
        "try later, or another size, zone or region; a spot machine may need to be a regular one",
    ),
    (
        SizeError,
        r"SkuNotAvailable|NotAvailableForSubscription|InvalidVmSize|\w*SizeNotSupported"
        r"|VMSizeDoesNotSupport\w*|\w*SecurityType\w*",
        "choose a size that this region has for your subscription (az vm list-skus), of generation "
        "2, and with the security that you want",
    ),
    (
        ThrottledError,
        r"TooManyRequests|\w*Throttl\w*|OperationNotAllowedRateLimit",
        "wait some minutes; start fewer machines at a time",
    ),
    (
        ForbiddenByPolicyError,
        r"RequestDisallowedByPolicy|RequestDisallowedByAzure|ScopeLocked|DisallowedOperation",
        "ask whoever administers the subscription: a policy or a lock forbids this",
    ),
    (
        DeniedError,
        r"\w*AuthorizationFailed|AuthenticationFailed\w*|\w*AuthenticationToken\w*|Forbidden"
        r"|InvalidAuthentication\w*|\w*Unauthorized\w*",
        "give the worker's identity the roles of deployments/azure (setup.sh does); a new role "
        "takes some minutes to work",
    ),
    (
        NotFoundError,
        r"\w*NotFound|InvalidSubscriptionId|SubscriptionNotRegistered|MissingSubscriptionRegistration"
        r"|InvalidResourceReference",
        "check the names in the machine block: group, image, subnet, identity, and that the "
        "providers Microsoft.Compute and Microsoft.Network are registered",
    ),
    (
        ConflictError,
        r"Conflict|\w*InUse|AnotherOperationInProgress|RetryableError|PropertyChangeNotAllowed"
        r"|OperationPreempted|ResourceExists|PreconditionFailed|NicReservedForAnotherVm"
        r"|OperationNotAllowed",
        "wait until the other operation is over, and try again",
    ),
)


@dataclass(frozen=True, slots=True)
class VmConfig:
    """Which virtual machine to make. Ids are Azure's own, as `az … show --query id` gives them.

    `lifetime` is how long it may live at most. A machine is private unless `public`, which asks for
    a security group; `max_price` is what an hour of a spot machine may cost, in US dollars.
    `secure_boot` may be turned off for an image that is not signed with a key that Azure knows.
    `worker` is the client id of the managed identity that asks for machines, where the worker has
    several; `identity` is one that the machine itself gets.
    """

    subscription: str
    group: str
    location: str
    size: str
    image: str
    subnet: str
    security: Literal["trusted-launch", "confidential"] = "trusted-launch"
    secure_boot: bool = True
    lifetime: timedelta = timedelta(hours=6)
    spot: bool = False
    max_price: float | None = None
    public: bool = False
    security_group: str | None = None
    identity: str | None = None
    worker: str | None = None
    zone: str | None = None
    disk_gib: int | None = None
    endpoint: str = ENDPOINT

    def check(self) -> None:
        """Find every mistake that needs no question to Azure.

        Raises:
            ConfigError: there are some.
        """
        mistakes = [
            f"{name}: {value!r} is not {what}"
            for name, (form, what) in _FORMS.items()
            if (value := getattr(self, name)) is not None and not re.fullmatch(form, value)
        ]
        if self.lifetime < SHORTEST:
            mistakes.append(f"lifetime: {self.lifetime} is less than {SHORTEST}")
        if self.public and self.security_group is None:
            mistakes.append("public: a machine with a public address needs a security_group")
        if self.max_price is not None and (not self.spot or self.max_price <= 0):
            mistakes.append("max_price: more than nothing, and for a spot machine alone")
        if self.disk_gib is not None and not 1 <= self.disk_gib <= 4095:
            mistakes.append(f"disk_gib: {self.disk_gib} is not 1 to 4095")
        if not self.endpoint.startswith("https://"):
            mistakes.append(f"endpoint: {self.endpoint!r} is not one with TLS")
        if mistakes:
            raise ConfigError(
                f"the machine has {count(len(mistakes), 'mistake')}",
                got="; ".join(mistakes),
                advice="mend them in the machine block",
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What `create` would ask for: the machine's name, the request, the guard, and what to know."""

    name: str
    request: dict[str, Any]
    guard: dict[str, Any] | None
    expires: datetime
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the plan for a person."""
        lines = [f"{self.name}, until {_time(self.expires)}", *self.warnings]
        return "\n".join([*lines, json.dumps(self.request, indent=2)])


@dataclass(frozen=True, slots=True)
class Vm:
    """A machine that runs: its resource id, its addresses, and when it ends at the latest."""

    name: str
    id: str
    run: str
    private_address: str
    public_address: str | None
    expires: datetime


@dataclass(frozen=True, slots=True)
class Owned:
    """Something of a run's that stands in the group: its id, type, run and other tags."""

    id: str
    type: str
    run: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def expired(self) -> bool:
        """Tell whether its time is over; what says nothing readable of it is over, too."""
        try:
            return datetime.fromisoformat(self.tags[EXPIRES_TAG]) < datetime.now(UTC)
        except (KeyError, ValueError, TypeError):
            return True


def vm_name(run: str) -> str:
    """Return the name of a run's machine."""
    return f"aicert-{run}"


class AzureVms:
    """The machines of one configuration. Safe to use from many processes at once."""

    def __init__(
        self, config: VmConfig, credential: Any = None, *, poll: float | None = None, **options: Any
    ) -> None:
        """Connect; nothing is sent yet.

        Args:
            config: which machines.
            credential: by default the worker's identity, as azure-identity finds it.
            poll: seconds between two looks at something that takes a while; 10 by default.
            options: for the libraries' clients.

        Raises:
            ConfigError: the configuration has mistakes.
            LibraryError: the libraries are not installed.
        """
        config.check()
        try:
            from azure.mgmt.authorization import AuthorizationManagementClient
            from azure.mgmt.compute import ComputeManagementClient
            from azure.mgmt.network import NetworkManagementClient
            from azure.mgmt.resource.resources import ResourceManagementClient

            if credential is None:
                credential = azure_identity.find(config.worker)
        except ImportError as error:
            raise LibraryError(
                "the libraries for Azure are not installed",
                got=error,
                advice=install("azure"),
            ) from error
        self.config = config
        poll = POLL_SECONDS if poll is None else poll
        self._poll = poll
        common = {
            "base_url": config.endpoint,
            "credential_scopes": [f"{config.endpoint}/.default"],
            "polling_interval": poll,
            **options,
        }
        self._compute: Any = ComputeManagementClient(credential, config.subscription, **common)
        self._network: Any = NetworkManagementClient(credential, config.subscription, **common)
        self._resources: Any = ResourceManagementClient(credential, config.subscription, **common)
        self._rights: Any = AuthorizationManagementClient(credential, config.subscription, **common)

    # -- plan ------------------------------------------------------------------------------------

    def plan(
        self, run: str, tags: Mapping[str, str] | None = None, *, price: float | None = None
    ) -> Plan:
        """Return what `create` would ask for; nothing is sent. `price` is that of an hour."""
        config, name = self.config, vm_name(run)
        expires = datetime.now(UTC).replace(microsecond=0) + config.lifetime
        marks = {**(tags or {}), RUN_TAG: run, EXPIRES_TAG: _time(expires)}
        guard = None
        warnings = []
        if price is not None:
            hours = config.lifetime.total_seconds() / 3600
            warnings.append(f"may cost up to {price * hours:.2f} ({price:g} an hour), and disk")
        if config.lifetime <= LONGEST_GUARDED:
            guard = _guard(config, name, expires, marks)
        else:
            warnings.append(
                f"WARNING: Azure itself will not stop it (it lives longer than {LONGEST_GUARDED}): "
                "keep the reaper running"
            )
        if config.spot:
            warnings.append("a spot machine: Azure may end it at any time, and the run with it")
        if config.public:
            warnings.append("WARNING: it has a public address")
        return Plan(name, _request(config, name, marks), guard, expires, tuple(warnings))

    # -- create ----------------------------------------------------------------------------------

    def create(
        self, run: str, tags: Mapping[str, str] | None = None, *, user_data: str | None = None
    ) -> Vm:
        """Make the machine of a run, or find the one that an earlier attempt made; wait for it.

        `user_data` (base64) is what only the machine, and who may read it in Azure, can see.

        Raises:
            AzureVmError: (a subclass) it cannot be had; nothing of it is left, unless the error's
                advice says so.
        """
        plan = self.plan(run, tags)
        if user_data is not None:
            plan.request["properties"]["userData"] = user_data
        deadline = time.monotonic() + _CREATE_SECONDS
        try:
            with explained(f"machine {plan.name}"):
                found = self._get(plan.name)
                if found is not None and _state(found) in ("Failed", "Canceled", "Deleting"):
                    # Of an attempt that could not clean up: nothing runs on it.
                    self.destroy(run)
                    found = None
                if found is None:
                    self._make(plan, deadline)
                found = self._settle(plan, deadline)
                self._see_to_guard(plan)
            return self._describe(found, run, plan)
        except BaseException as error:
            try:
                self.destroy(run)
            except Error as left:
                note = f"{left.message}; the reaper removes what is left of {plan.name}"
                if isinstance(error, AzureVmError):
                    error.advice = f"{error.advice}. {note}" if error.advice else note
                else:
                    error.add_note(note)
            raise

    def _make(self, plan: Plan, deadline: float) -> None:
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError, ResourceModifiedError

        try:
            poller = self._compute.virtual_machines.begin_create_or_update(
                self.config.group,
                plan.name,
                plan.request,
                match_condition=MatchConditions.IfMissing,
                api_version=COMPUTE_API,
            )
        except ResourceModifiedError:
            return  # 412: it is there. A reply was lost, or another process was quicker.
        except HttpResponseError as error:
            if error.status_code == 412:
                return
            raise
        self._see_to_guard(plan)  # as soon as there is something to guard
        poller.result(max(1.0, deadline - time.monotonic()))

    def _settle(self, plan: Plan, deadline: float) -> Any:
        """Wait until the machine is made, and return it."""
        while True:
            found = self._get(plan.name, "instanceView")
            if found is None:
                raise ConflictError(
                    "the machine has gone while it was made",
                    got=plan.name,
                    advice="somebody deletes machines here; look into the group's activity log",
                )
            self._require_own(found, plan.request["tags"][RUN_TAG])
            state = _state(found)
            if state == "Succeeded":
                return found
            if state in ("Failed", "Canceled", "Deleting"):
                raise _failure(found, plan.name)
            if time.monotonic() > deadline:
                raise CapacityError(
                    "Azure did not make the machine in time",
                    got=f"{plan.name}: {state}",
                    expected=f"within {_CREATE_SECONDS:g} s",
                    advice="try later, or another size, zone or region",
                )
            time.sleep(self._poll)

    def _see_to_guard(self, plan: Plan) -> None:
        if plan.guard is not None and not self._exists(plan.guard["id"]):
            body = {key: value for key, value in plan.guard.items() if key != "id"}
            self._resources.resources.begin_create_or_update_by_id(
                plan.guard["id"], body, api_version=_API["microsoft.devtestlab/schedules"]
            ).result()

    def _describe(self, found: Any, run: str, plan: Plan) -> Vm:
        with explained("the machine's network interface"):
            (reference,) = found.network_profile.network_interfaces
            nic = self._network.network_interfaces.get(
                self.config.group, reference.id.rpartition("/")[2]
            )
            (ip,) = nic.ip_configurations
            public = None
            if ip.public_ip_address is not None:
                address = self._network.public_ip_addresses.get(
                    self.config.group, ip.public_ip_address.id.rpartition("/")[2]
                )
                public = address.ip_address
        tag = (found.tags or {}).get(EXPIRES_TAG)
        expires = datetime.fromisoformat(tag) if tag else plan.expires
        return Vm(plan.name, found.id, run, ip.private_ip_address, public, expires)

    def _get(self, name: str, expand: str | None = None) -> Any | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return self._compute.virtual_machines.get(
                self.config.group, name, expand=expand, api_version=COMPUTE_API
            )
        except ResourceNotFoundError as error:
            if _code(error) in ("ResourceNotFound", "NotFound"):
                return None
            raise

    def _exists(self, resource: str) -> bool:
        from azure.core.exceptions import ResourceNotFoundError

        version = _API.get(_type(resource))
        try:
            if version is not None:
                self._resources.resources.get_by_id(resource, api_version=version)
        except ResourceNotFoundError:
            return False
        return True

    def console(self, run: str) -> list[str]:
        """Return the last lines that a run's machine wrote on its console, as Azure kept them.

        They are somebody else's text, made harmless; none where Azure has nothing yet.

        Raises:
            AzureVmError: Azure does not give them.
        """
        with explained(f"the console of {vm_name(run)}"):
            found = self._compute.virtual_machines.retrieve_boot_diagnostics_data(
                self.config.group,
                vm_name(run),
                sas_uri_expiration_time_in_minutes=5,
                api_version=COMPUTE_API,
            )
        url = str(found.serial_console_log_blob_uri or "")
        if not url.startswith("https://"):
            return []
        try:
            trusted = ssl.create_default_context()  # of now: urllib keeps its first for good
            with urllib.request.urlopen(url, timeout=20, context=trusted) as response:  # noqa: S310
                text = response.read(_CONSOLE_BYTES)
        except OSError as error:  # its address is a secret, and stands in no error
            raise UnavailableError(
                "the machine's console cannot be read", got=f"{type(error).__name__}"
            ) from None
        lines = (clean(line, 200).strip() for line in text.decode("utf-8", "replace").splitlines())
        return [line for line in lines if line][-_CONSOLE_LINES:]

    # -- destroy ---------------------------------------------------------------------------------

    def destroy(self, run: str) -> None:
        """Delete a run's machine and all that came with it; nothing happens where it is gone.

        Raises:
            AzureVmError: something is left; calling again is safe.
        """
        name = vm_name(run)
        deadline = time.monotonic() + _DELETE_SECONDS
        with explained(f"deleting {name}"), _gone_is_fine():
            found = self._get(name)
            if found is not None:
                self._require_own(found, run)
                self._compute.virtual_machines.begin_delete(
                    self.config.group, name, force_deletion=True, api_version=COMPUTE_API
                ).result(_DELETE_SECONDS)
        # Azure deletes what the machine was made with. What a failed attempt made before there was
        # a machine, and the guard, are ours to delete.
        while left := self._left(run):
            for item in left:
                with suppress(ConflictError):  # in use for some moments more
                    self.remove(item)
            if not (left := self._left(run)):
                break
            if time.monotonic() > deadline:
                raise ConflictError(
                    "not everything could be deleted",
                    got=", ".join(item.id for item in left),
                    advice="delete these by hand, or let the reaper try again",
                )
            time.sleep(self._poll)
        with explained(f"the disk of {name}"), _gone_is_fine():
            self._delete(f"{_prefix(self.config)}/Microsoft.Compute/disks/{name}-os")

    def _left(self, run: str) -> list[Owned]:
        """Return what there still is of a run; the group's list may be some minutes old."""
        with explained(f"looking for what is left of {run}"):
            return [item for item in self.owned() if item.run == run and self._exists(item.id)]

    @staticmethod
    def _require_own(found: Any, run: str) -> None:
        if (found.tags or {}).get(RUN_TAG) != run:
            raise ConflictError(
                "a machine of another owner has this name",
                got=found.name,
                advice="delete it if nobody needs it",
            )

    def owned(self) -> list[Owned]:
        """List what stands in the group for any run, by its tags.

        Raises:
            AzureVmError: the group cannot be listed.
        """
        with explained(f"listing the group {self.config.group}"):
            # Unfiltered: asked for a tag, Azure leaves out the tags of what it lists.
            found = self._resources.resources.list_by_resource_group(self.config.group)
            return [
                Owned(item.id, item.type, tags[RUN_TAG], tags)
                for item in found
                if RUN_TAG in (tags := dict(item.tags or {}))
            ]

    def remove(self, item: Owned) -> None:
        """Delete one thing; nothing happens where it is gone.

        Raises:
            AzureVmError: it cannot be deleted.
        """
        with explained(f"deleting {item.id}"), _gone_is_fine():
            self._delete(item.id)

    def _delete(self, resource: str) -> None:
        version = _API.get(_type(resource))
        if version is None:
            raise InvalidError(
                "this is not something that we made", got=resource, advice="remove its tag"
            )
        self._resources.resources.begin_delete_by_id(resource, api_version=version).result(
            _DELETE_SECONDS
        )

    def reap(self, needed: Callable[[Owned], bool]) -> list[Owned]:
        """Delete what is over its time, or not `needed` any more; return what was deleted.

        Raises:
            AzureVmError: the first thing that could not be deleted, after all others were tried.
        """
        orphans: dict[str, list[Owned]] = {}
        for item in self.owned():
            if item.expired or not needed(item):
                orphans.setdefault(item.run, []).append(item)
        problem: AzureVmError | None = None
        done: list[Owned] = []
        for run, items in orphans.items():
            try:
                self.destroy(run)
                done += items
            except AzureVmError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return done

    # -- a look before ---------------------------------------------------------------------------

    def look(self) -> Iterator[tuple[str, str | AzureVmError]]:
        """Look whether a machine could be made; yield what was looked at, and found, or the error.

        Nothing is changed. Whether Azure has one free is known only when it is asked for.
        """
        yield self._looked("group", self._look_at_group)
        yield self._looked("providers", self._look_at_providers)
        yield self._looked("rights", self._look_at_rights)
        yield self._looked("size", self._look_at_size)
        yield self._looked("quota", self._look_at_quota)
        yield self._looked("image", self._look_at_image)
        for name in ("subnet", "security_group", "identity"):
            if getattr(self.config, name) is not None:
                look = partial(self._look_at, getattr(self.config, name))
                yield self._looked(name, look)

    @staticmethod
    def _looked(name: str, look: Callable[[], str]) -> tuple[str, str | AzureVmError]:
        try:
            with explained(name):
                return name, look()
        except AzureVmError as error:
            return name, error

    def _look_at_group(self) -> str:
        group = self._resources.resource_groups.get(self.config.group)
        return f"{group.name} in {group.location}"

    def _look_at_providers(self) -> str:
        states = {
            name: self._resources.providers.get(name).registration_state
            for name in azure_roles.PROVIDERS
        }
        if missing := [name for name, state in states.items() if state != "Registered"]:
            raise NotFoundError(
                "the subscription has not registered all providers",
                got=", ".join(f"{name}: {states[name]}" for name in missing),
                advice=f"az provider register --namespace {missing[0]}; it takes some minutes",
            )
        return f"{', '.join(states)}: registered"

    def _look_at_rights(self) -> str:
        """Compare what this identity may do with what a run needs, scope by scope."""
        wanted = self.config
        runs = (*azure_roles.RUNS, *(azure_roles.PUBLIC if wanted.public else ()))
        granted = list(self._rights.permissions.list_for_resource_group(wanted.group))
        # What is given in the subscription holds in its groups, too.
        lacking = [
            f"{action} in {where}"
            for where, actions in (
                (f"the group {wanted.group}", runs),
                ("the subscription", azure_roles.SUBSCRIPTION),
            )
            for action in azure_roles.missing(granted, actions)
        ]
        for resource, actions in (
            (wanted.subnet, azure_roles.SUBNET),
            (wanted.security_group, azure_roles.SECURITY_GROUP),
            (wanted.identity, azure_roles.IDENTITY),
        ):
            if resource is not None:
                lacking += [
                    f"{action} for {resource.rpartition('/')[2]}"
                    for action in azure_roles.missing(self._permissions(resource), actions)
                ]
        if lacking:
            raise DeniedError(
                "this identity may not do all that a run needs",
                got="; ".join(lacking),
                advice="give it the roles of deployments/azure (setup.sh does); a new role takes "
                "some minutes to work",
            )
        return "all that a run needs"

    def _permissions(self, resource: str) -> Any:
        group, _, path = resource.partition("/resourceGroups/")[2].partition("/providers/")
        provider, *parts = path.split("/")
        return self._rights.permissions.list_for_resource(
            group, provider, "/".join(parts[:-2]), parts[-2], parts[-1]
        )

    def _look_at(self, resource: str) -> str:
        self._resources.resources.get_by_id(resource, api_version=_API[_type(resource)])
        return resource.rpartition("/providers/")[2]

    def _look_at_image(self) -> str:
        """Look whether the image is there, in this region, and of a kind that can be booted so."""
        wanted = self.config
        if not wanted.image.startswith("/subscriptions/"):
            return f"{wanted.image}: somebody else's gallery, not looked into"
        found = self._resources.resources.get_by_id(
            wanted.image, api_version=_API[_type(wanted.image)]
        )
        version, tags = found.properties, found.tags or {}
        name = wanted.image.partition("/versions/")[0]
        image = self._resources.resources.get_by_id(name, api_version=_API[_type(name)]).properties
        regions = [
            str(item["name"]).lower().replace(" ", "")
            for item in version.get("publishingProfile", {}).get("targetRegions", ())
        ]
        features = {item["name"]: item["value"] for item in image.get("features") or ()}
        security = features.get("SecurityType", "Standard")
        problems = []
        if wanted.location not in regions:
            problems.append(f"not in {wanted.location} but in {', '.join(regions) or 'no region'}")
        if image.get("hyperVGeneration") != "V2":
            problems.append("not of generation 2")
        if image.get("osState") != "Specialized":
            problems.append("not a specialized one: it would wait for a user and a password")
        if security.lower() not in _SECURITY[wanted.security]:
            problems.append(f"of the security type {security}")
        if wanted.secure_boot and DIGEST_TAG in tags and not _has_own_keys(version):
            problems.append("signed by nobody whom its firmware knows, and secure boot is on")
        if problems:
            raise InvalidError(
                "this image will not do",
                got=f"{wanted.image.rpartition('/providers/')[2]}: {', '.join(problems)}",
                advice="publish it with deployments/azure/publish.py; turn secure_boot off where "
                "no key of yours signed the image",
            )
        return f"{wanted.image.rpartition('/providers/')[2]}, {security}"

    def _sku(self) -> tuple[Any, dict[str, str]]:
        wanted = self.config
        for sku in self._compute.resource_skus.list(filter=f"location eq '{wanted.location}'"):
            if sku.resource_type == "virtualMachines" and sku.name == wanted.size:
                return sku, {item.name: item.value for item in sku.capabilities or ()}
        raise SizeError(
            "the region does not have this size",
            got=f"{wanted.size} in {wanted.location}",
            advice="choose another size or region (az vm list-skus)",
        )

    def _look_at_size(self) -> str:
        wanted = self.config
        sku, can = self._sku()
        zones = {zone for place in sku.location_info or () for zone in place.zones or ()}
        problems = []
        for item in sku.restrictions or ():
            if item.type == "Zone":  # the others are open
                zones -= set(item.restriction_info.zones or ())
            else:
                problems.append(f"restricted: {word(item.reason_code)}")
        if wanted.zone is not None and wanted.zone not in zones:
            problems.append(f"not in zone {wanted.zone} but in {sorted(zones) or 'none'}")
        if can.get("CpuArchitectureType", "x64") != "x64":
            problems.append(f"of the architecture {can['CpuArchitectureType']}")
        if "V2" not in can.get("HyperVGenerations", ""):
            problems.append("not of generation 2")
        if wanted.security == "trusted-launch" and can.get("TrustedLaunchDisabled") == "True":
            problems.append("no Trusted Launch")
        if wanted.security == "confidential" and can.get("ConfidentialComputingType") != "SNP":
            problems.append("not confidential with SEV-SNP")
        if wanted.spot and can.get("LowPriorityCapable") == "False":
            problems.append("no spot machines")
        if problems:
            raise SizeError(
                "this size will not do",
                got=f"{wanted.size}: {', '.join(problems)}",
                advice="choose another size or region (az vm list-skus)",
            )
        gpus = can.get("GPUs", "0")
        driver = "" if gpus == "0" else " (`make image` brings no driver for them)"
        has = f"{can.get('vCPUs')} vCPUs, {can.get('MemoryGB')} GiB, {gpus} GPUs{driver}"
        return f"{wanted.size}: {has}"

    def _look_at_quota(self) -> str:
        sku, can = self._sku()
        cores = int(can.get("vCPUs", "0"))
        # The family's, and that of the region over all families.
        kinds = ["lowPriorityCores"] if self.config.spot else [sku.family, "cores"]
        usages = {u.name.value.lower(): u for u in self._compute.usage.list(self.config.location)}
        left = []
        for kind in kinds:
            usage = usages.get(kind.lower())
            if usage is None:
                raise QuotaError(
                    "the region has no quota for this family", got=kind, advice=_KINDS[0][2]
                )
            free = int(usage.limit) - int(usage.current_value)
            left.append(f"{free} of {usage.limit} cores left in {kind}")
            if free < cores:
                raise QuotaError(
                    "there are not enough cores left",
                    got=left[-1],
                    expected=f"{cores}",
                    advice=_KINDS[0][2],
                )
        return f"{', '.join(left)}; {cores} needed"


def price(config: VmConfig, *, prices: str | None = None) -> float | None:
    """Return what an hour of such a machine costs by the public list (US dollars), without disk.

    None where the list does not say. It needs no account, and knows nothing of discounts.

    Raises:
        UnavailableError: the list cannot be read.
    """
    wanted = (
        f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and "
        f"armRegionName eq '{config.location}' and armSkuName eq '{config.size}'"
    )
    url = f"{prices or PRICES}/api/retail/prices?{urllib.parse.urlencode({'$filter': wanted})}"
    try:
        with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310 (https)
            items = json.loads(response.read(4 << 20))["Items"]
        found = [
            float(item["retailPrice"])
            for item in items
            if item["unitOfMeasure"] == "1 Hour"
            and "Windows" not in item["productName"]
            and "Low Priority" not in item["skuName"]
            and ("Spot" in item["skuName"]) == config.spot
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            "the list of prices cannot be read", got=f"{type(error).__name__}: {error}"
        ) from error
    return max(found, default=None)


# -- the request ---------------------------------------------------------------------------------


def _request(config: VmConfig, name: str, tags: dict[str, str]) -> dict[str, Any]:
    confidential = config.security == "confidential"
    disk: dict[str, Any] = {"storageAccountType": "StandardSSD_LRS"}
    if confidential:
        disk["securityProfile"] = {"securityEncryptionType": "VMGuestStateOnly"}
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": config.size},
        "securityProfile": {
            "securityType": "ConfidentialVM" if confidential else "TrustedLaunch",
            "uefiSettings": {"secureBootEnabled": config.secure_boot, "vTpmEnabled": True},
        },
        # No osProfile: the image is specialized. It has no user, no password and no key to set.
        "storageProfile": {
            "imageReference": _image(config.image),
            "osDisk": {
                "name": f"{name}-os",
                "createOption": "FromImage",
                "deleteOption": "Delete",
                "managedDisk": disk,
                **({"diskSizeGB": config.disk_gib} if config.disk_gib else {}),
            },
        },
        "networkProfile": {
            "networkApiVersion": "2022-11-01",
            "networkInterfaceConfigurations": [_interface(config, name, tags)],
        },
        "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},
    }
    if config.spot:
        properties |= {
            "priority": "Spot",
            "evictionPolicy": "Delete",
            "billingProfile": {"maxPrice": -1 if config.max_price is None else config.max_price},
        }
    request: dict[str, Any] = {
        "location": config.location,
        "tags": tags,
        "properties": properties,
    }
    if config.zone is not None:
        request["zones"] = [config.zone]
    if config.identity is not None:
        request["identity"] = {
            "type": "UserAssigned",
            "userAssignedIdentities": {config.identity: {}},
        }
    return request


def _has_own_keys(version: Mapping[str, Any]) -> bool:
    """Tell whether a version of an image names keys, besides Azure's, that may sign what boots."""
    settings = (version.get("securityProfile") or {}).get("uefiSettings") or {}
    return bool((settings.get("additionalSignatures") or {}).get("db"))


def _image(image: str) -> dict[str, str]:
    kind = image.split("/")[1]
    names = {
        "CommunityGalleries": "communityGalleryImageId",
        "SharedGalleries": "sharedGalleryImageId",
    }
    return {names.get(kind, "id"): image}


def _interface(config: VmConfig, name: str, tags: dict[str, str]) -> dict[str, Any]:
    address: dict[str, Any] = {"subnet": {"id": config.subnet}, "primary": True}
    if config.public:
        address["publicIPAddressConfiguration"] = {
            "name": f"{name}-ip",
            "tags": tags,
            "sku": {"name": "Standard", "tier": "Regional"},
            "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
        }
    properties: dict[str, Any] = {
        "primary": True,
        "deleteOption": "Delete",
        "ipConfigurations": [{"name": "ip", "properties": address}],
    }
    if config.security_group is not None:
        properties["networkSecurityGroup"] = {"id": config.security_group}
    return {"name": f"{name}-nic", "tags": tags, "properties": properties}


def _guard(config: VmConfig, name: str, expires: datetime, tags: dict[str, str]) -> dict[str, Any]:
    """Return the schedule by which Azure itself stops, and bills no more, a machine."""
    prefix = _prefix(config)
    return {
        "id": f"{prefix}/Microsoft.DevTestLab/schedules/shutdown-computevm-{name}",
        "location": config.location,
        "tags": tags,
        "properties": {
            "status": "Enabled",
            "taskType": "ComputeVmShutdownTask",
            "dailyRecurrence": {"time": expires.strftime("%H%M")},
            "timeZoneId": "UTC",
            "notificationSettings": {"status": "Disabled", "timeInMinutes": 30},
            "targetResourceId": f"{prefix}/Microsoft.Compute/virtualMachines/{name}",
        },
    }


def _prefix(config: VmConfig) -> str:
    return f"/subscriptions/{config.subscription}/resourceGroups/{config.group}/providers"


def word(value: Any) -> str:
    """Return a word of Azure's, which the library may have made a member of an enumeration."""
    return str(getattr(value, "value", value))


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _type(resource: str) -> str:
    """Return the type of the resource that an id names, in lower case."""
    provider, *rest = resource.rpartition("/providers/")[2].lower().split("/")
    return "/".join([provider, *rest[::2]])


# -- errors --------------------------------------------------------------------------------------


def _state(vm: Any) -> str:
    return str(vm.provisioning_state)


def _code(error: Any) -> str:
    detail = getattr(error, "error", None)
    return str(getattr(detail, "code", None) or "")


def _failure(vm: Any, name: str) -> AzureVmError:
    """Return the error of a machine that Azure could not make, as the machine itself tells it."""
    view = getattr(vm, "instance_view", None)
    for status in getattr(view, "statuses", None) or ():
        state, _, code = str(status.code).partition("/failed/")
        if state == "ProvisioningState" and code:
            return _classified(code, str(status.message), name)
    return _classified(_state(vm), "", name)


def _classified(code: str, text: str, what: str, status: int | None = None) -> AzureVmError:
    text = " ".join(text.split())[:500]
    got = f"{what}: {code or status}: {text}".rstrip(": ")
    # Azure says "OperationNotAllowed" of a quota, and "InvalidParameter" of a size.
    if code == "OperationNotAllowed" and "quota" in text.lower():
        code = "QuotaExceeded"
    if code in ("InvalidParameter", "BadRequest") and re.search(
        r"vmSize|VM size|VirtualMachineSize|security ?type", text, re.IGNORECASE
    ):
        code = "InvalidVmSize"
    for kind, pattern, advice in _KINDS:
        if re.fullmatch(pattern, code):
            return kind(kind.__doc__ or "", got=got, advice=advice)
    by_status = {401: 5, 403: 5, 404: 6, 409: 7, 412: 7, 429: 3}
    if status in by_status:
        kind, _, advice = _KINDS[by_status[status]]
        return kind(kind.__doc__ or "", got=got, advice=advice)
    if status is not None and 400 <= status < 500:
        return InvalidError(
            InvalidError.__doc__ or "", got=got, advice="check the machine block; Azure says where"
        )
    return UnavailableError(
        UnavailableError.__doc__ or "", got=got, advice="try again later (status.azure.com)"
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise into one of our errors."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    try:
        yield
    except Error:
        raise
    except ClientAuthenticationError as error:
        if azure_identity.is_absent(error):
            raise NoIdentityError(
                NoIdentityError.__doc__ or "",
                got=f"{what}: {str(error).splitlines()[0]}",
                advice=azure_identity.ADVICE,
            ) from error
        raise _classified(_code(error) or "AuthenticationFailed", str(error), what) from error
    except HttpResponseError as error:
        message = str(getattr(error.error, "message", None) or error.message)
        raise _classified(_code(error), message, what, error.status_code) from error
    except AzureError as error:
        raise _classified("", f"{type(error).__name__}: {error}", what) from error


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        yield
    except ResourceNotFoundError as error:
        if _code(error) not in _GONE:
            raise
