"""A stand-in for Azure Resource Manager: the wire, the rules that we rely on, and faults on demand.

It speaks TLS and the protocol of long-running operations (201 or 202, Azure-AsyncOperation,
Location, Retry-After), deletes what a machine was made with as `deleteOption` says, leaves a
machine behind where an allocation fails, holds every request and its own answers against
Microsoft's schemas, made strict, and lets nobody do what their roles do not name: to look at how an
operation stands is a right of its own, in the subscription. What it does not know is a violation,
and fails the test. It is not Azure: what only Azure knows (which sizes there are, how long things
take, what it refuses) is scripted by the tests.
"""

import gzip
import json
import re
import socket
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
from azure.core.credentials import AccessToken

from aicert.agent.azure_roles import PROVIDERS
from tests.support.tls import Loopback

SCHEMAS = Path(__file__).parent / "arm_schemas"
SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
GROUP = "trainings"
PREFIX = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
SUBNET = f"{PREFIX}/Microsoft.Network/virtualNetworks/net/subnets/runs"
IMAGE_DEFINITION = f"{PREFIX}/Microsoft.Compute/galleries/gal/images/aicert"
IMAGE = f"{PREFIX}/Microsoft.Compute/galleries/gal/images/aicert/versions/1.0.0"
TOKEN = "a-token-of-the-worker"
Rights = dict[str, list[tuple[list[str], list[str]]]]
OPERATION = r"/locations/[^/]+/(?:\w*operations)/[0-9a-f]{32}$"

VM = "microsoft.compute/virtualmachines"
IMAGES = "microsoft.compute/galleries/images"
VERSIONS = "microsoft.compute/galleries/images/versions"
NICS = "microsoft.network/networkinterfaces"
ADDRESSES = "microsoft.network/publicipaddresses"

# By type: the file, and what the type is called in it.
KINDS = {
    VM: ("Microsoft.Compute-2025-11-01", "virtualMachines"),
    IMAGES: ("Microsoft.Compute-2025-03-03", "galleries_images"),
    VERSIONS: ("Microsoft.Compute-2025-03-03", "galleries_images_versions"),
    NICS: ("Microsoft.Network-2025-07-01", "networkInterfaces"),
    ADDRESSES: ("Microsoft.Network-2025-07-01", "publicIPAddresses"),
}
READ_ONLY = ("provisioningState", "instanceView")
"""Properties that an answer has and no request: the schemas are those of requests."""


@cache
def schema(kind: str) -> dict[str, Any]:
    """Return what Microsoft's schema says of one kind of resource alone, made strict.

    Without descriptions and template expressions, nothing may be there that it does not name, and
    any size of a machine will do: the list of sizes is older than most of them.
    """
    file, name = KINDS[kind]
    original = json.loads(gzip.decompress((SCHEMAS / f"{file}.json.gz").read_bytes()))
    definitions = original["definitions"]
    machine = original["resourceDefinitions"][name]
    machine = {**machine, "properties": {**machine["properties"]}}
    machine["properties"].pop("resources", None)
    needed: set[str] = set()
    pending = list(_references(machine))
    while pending:
        if (name := pending.pop()) not in needed:
            needed.add(name)
            pending += _references(definitions[name])
    made: dict[str, Any] = _strict(machine)
    made["definitions"] = {name: _strict(definitions[name]) for name in sorted(needed)}
    if kind == VM:
        made["definitions"]["HardwareProfile"]["properties"]["vmSize"] = {"type": "string"}
    # Name, type and version stand in the address of the request.
    made["required"] = ["properties", "location"]
    for name in ("name", "type", "apiVersion"):
        del made["properties"][name]
    return made


def answer_schema(kind: str) -> dict[str, Any]:
    """Return the schema of an answer: a request's, and what names the resource."""
    asked = schema(kind)
    names = ("id", "name", "type")
    return asked | {
        "properties": asked["properties"] | {name: {"type": "string"} for name in names},
        "required": [*asked["required"], *names],
    }


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref" and item.startswith("#/definitions/"):
                yield item.removeprefix("#/definitions/")
            else:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "oneOf" in schema:
        kept = [item for item in schema["oneOf"] if "expression" not in item.get("$ref", "")]
        if len(kept) == 1:
            return _strict(kept[0])
    made = {
        key: {name: _strict(item) for name, item in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
        if key != "description"
    }
    if made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


class Credential:
    """A token for the stand-in, as azure-identity would get one."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.scopes: set[str] = set()

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes.update(scopes)
        return AccessToken(self.token, 1 << 40)


@dataclass
class Fault:
    """What is answered instead, `times` over, to requests that match; `after` doing what they ask.

    `status` None breaks the connection off.
    """

    method: str
    path: str
    status: int | None
    code: str = ""
    message: str = ""
    times: int = 1
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Operation:
    """A long-running operation: how many more looks at it, or at a machine, it lasts; its end."""

    looks: int
    end: Callable[[], dict[str, Any] | None]
    outcome: dict[str, Any] | None = None

    def advance(self) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.outcome = self.end()


class Arm:
    """The stand-in. `resources` are by id in lower case; `requests` are (method, path).

    `linked` is what was asked of the caller's roles besides, by what a request is joined to;
    `delete_with` what becomes of what was made with a machine, when that is deleted.
    """

    def __init__(self, files: Loopback) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.violations: list[str] = []
        self.linked: set[str] = set()
        self.faults: list[Fault] = []
        self.allocation_fails: tuple[str, str] | None = None
        self.looks = 1
        self.address = "10.0.0.4"
        self.console = "aicert: the agent starts\n"
        self.on_made: Callable[[dict[str, Any], str | None], None] = lambda machine, data: None
        self.on_deleted: Callable[[dict[str, Any]], None] = lambda machine: None
        self._user_data: dict[str, str] = {}
        self.skus: list[dict[str, Any]] = []
        self.usages: list[dict[str, Any]] = []
        self._operations: dict[str, Operation] = {}
        self.version_fails: tuple[str, str] | None = None
        self.on_version: Callable[[dict[str, Any]], None] = lambda version: None
        # What is put here by a request of its own; Azure makes the others with a machine.
        self._schemas = {
            kind: jsonschema.Draft4Validator(schema(kind)) for kind in (VM, IMAGES, VERSIONS)
        }
        self._answers = {kind: jsonschema.Draft4Validator(answer_schema(kind)) for kind in KINDS}
        self.delete_with: dict[str, str | None] = {}
        self._lock = threading.RLock()
        self.providers = dict.fromkeys(PROVIDERS, "Registered")
        # By scope, and for all below it: the roles of the caller, as (actions, not actions).
        self.permissions: Rights = {"": [(["*"], [])]}
        image = {
            "identifier": {"publisher": "aicert", "offer": "aicert", "sku": "aicert"},
            "osType": "Linux",
            "osState": "Specialized",
            "hyperVGeneration": "V2",
            "features": [
                {"name": "SecurityType", "value": "TrustedLaunchAndConfidentialVmSupported"}
            ],
        }
        version = {
            "publishingProfile": {"targetRegions": [{"name": "West Europe"}]},
            "storageProfile": {},
        }
        for place, properties in ((SUBNET, {}), (IMAGE, version), (IMAGE_DEFINITION, image)):
            self._add(place, type_of(place), {"properties": properties})
        arm = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                arm._serve(self, self.rfile.read(length))

            do_GET = do_PUT = do_DELETE = do_POST = do_PATCH = do_HEAD = _any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = files.context().wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """What there is of a type, such as `networkInterfaces`."""
        return [item for key, item in self.resources.items() if f"/{kind.lower()}/" in key]

    def left(self) -> list[str]:
        """The ids of what there is besides the network and the image."""
        network = {place.lower() for place in (SUBNET, IMAGE, IMAGE_DEFINITION)}
        return sorted(self.resources.keys() - network)

    def actions(self) -> set[str]:
        """What was asked for, as roles name it."""
        return {_action(*request) for request in self.requests if _api(request[1])}

    def _may(self, action: str, scope: str) -> bool:
        """Tell whether a role of the caller's, at this scope or above it, allows something."""
        name = action.lower()
        return any(
            any(fnmatchcase(name, form.lower()) for form in actions)
            and not any(fnmatchcase(name, form.lower()) for form in others)
            for actions, others in self._roles(scope)
        )

    def _roles(self, scope: str) -> list[tuple[list[str], list[str]]]:
        return [
            role
            for place, roles in self.permissions.items()
            if f"{scope.lower()}/".startswith(f"{place.lower()}/" if place else "/")
            for role in roles
        ]

    @staticmethod
    def _denied(code: str, action: str, scope: str) -> tuple[int, dict[str, str], Any]:
        text = f"the client does not have authorization to perform action '{action}' over '{scope}'"
        return 403, {}, _error(code, text)

    # -- requests --------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        path, _, query = handler.path.partition("?")
        path = urllib.parse.unquote(path)
        with self._lock:
            self.requests.append((handler.command, path))
            fault = next(
                (f for f in self.faults if f.method == handler.command and re.search(f.path, path)),
                None,
            )
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                if not fault.after:
                    return self._fail(handler, fault)
            status, headers, answer = self._answer(handler, path, query, body)
            self._check_answer(answer)
            if fault is not None:
                return self._fail(handler, fault)
        return _send(handler, status, headers, answer)

    def _check_answer(self, answer: Any) -> None:
        """Hold a resource that is answered with against Microsoft's schema."""
        kind = type_of(answer["id"]) if isinstance(answer, dict) and "id" in answer else ""
        if kind in self._answers:
            properties = {k: v for k, v in answer["properties"].items() if k not in READ_ONLY}
            for error in self._answers[kind].iter_errors({**answer, "properties": properties}):
                where = "/".join(map(str, error.path))
                self.violations.append(f"answer {answer['id']}: {where}: {error.message}")

    @staticmethod
    def _fail(handler: BaseHTTPRequestHandler, fault: Fault) -> None:
        if fault.status is None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        _send(handler, fault.status, fault.headers, _error(fault.code, fault.message))

    def _answer(
        self, handler: BaseHTTPRequestHandler, path: str, query: str, body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        if path.startswith("/console/"):  # it is the address that is secret
            return 200, {}, self.console
        if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, _error("InvalidAuthenticationToken", "the access token is invalid")
        parameters = dict(urllib.parse.parse_qsl(query))
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", parameters.get("api-version", "")):
            return self._violation(400, f"no api-version: {handler.command} {path}")
        # Everybody may ask what they may do.
        action = _action(handler.command, path)
        if not (self._may(action, path) or action == "Microsoft.Authorization/permissions/read"):
            return self._denied("AuthorizationFailed", action, path)
        if re.search(OPERATION, path, re.IGNORECASE):
            return self._look(path)
        if handler.command in ("PUT", "PATCH") or body:
            if handler.headers.get("Content-Type", "").partition(";")[0] != "application/json":
                return self._violation(415, f"not JSON: {path}")
            value = json.loads(body)
        else:
            value = None
        root = f"/subscriptions/{SUBSCRIPTION}".lower()
        lower = path.lower()
        if not lower.startswith(root):
            return 404, {}, _error("SubscriptionNotFound", "the subscription could not be found")
        group = f"{root}/resourcegroups/{GROUP}".lower()
        listed = {
            f"{root}/providers/microsoft.compute/skus": self.skus,
            f"{root}/providers/microsoft.compute/locations/westeurope/usages": self.usages,
            f"{group}/resources": [self._listed(i, parameters) for i in self.resources.values()],
        }
        if handler.command == "GET" and lower.endswith("/microsoft.authorization/permissions"):
            # The library leaves two slashes where there is no parent; Azure takes them for one.
            scope = lower.rpartition("/providers/")[0].replace("//", "/")
            roles = self._roles(scope)
            return 200, {}, {"value": [{"actions": a, "notActions": n} for a, n in roles]}
        if handler.command == "GET" and (match := re.fullmatch(f"{root}/providers/([^/]+)", lower)):
            states = {name.lower(): state for name, state in self.providers.items()}
            state = states.get(match[1], "NotRegistered")
            return 200, {}, {"namespace": match[1], "registrationState": state}
        if handler.command == "GET" and lower in listed:
            return 200, {}, {"value": listed[lower]}
        if lower == group and handler.command == "GET":
            return 200, {}, {"id": path, "name": GROUP, "location": "westeurope"}
        if not lower.startswith(f"{group}/providers/"):
            return 404, {}, _error("ResourceGroupNotFound", f"the group of {path}")
        if handler.command == "GET":
            if type_of(path) == VM:  # time passes, whether anybody knows of the operation or not
                for operation in list(self._operations.values()):
                    operation.advance()
            found = self.resources.get(lower)
            if found is None:
                return 404, {}, _error("ResourceNotFound", f"{path} was not found")
            if "userData" in parameters.get("$expand", "") and lower in self._user_data:
                data = {"userData": self._user_data[lower]}
                return 200, {}, {**found, "properties": {**found["properties"], **data}}
            return 200, {}, found
        if handler.command == "PUT":
            return self._put(handler, path, value)
        if handler.command == "DELETE":
            return self._delete(path)
        machine, _, verb = lower.rpartition("/")
        if (handler.command, verb) == ("POST", "retrievebootdiagnosticsdata"):
            if machine not in self.resources:
                return 404, {}, _error("ResourceNotFound", f"{machine} was not found")
            return 200, {}, {"serialConsoleLogBlobUri": f"{self.url}/console/log?sig=secret"}
        return self._violation(405, f"{handler.command} {path}")

    @staticmethod
    def _listed(item: dict[str, Any], parameters: dict[str, str]) -> dict[str, Any]:
        kept = {key: item.get(key) for key in ("id", "name", "type", "location", "tags")}
        if "tag" in parameters.get("$filter", ""):
            del kept["tags"]  # as Azure does
        return kept

    def _violation(self, status: int, text: str) -> tuple[int, dict[str, str], Any]:
        self.violations.append(text)
        return status, {}, _error("BadRequest", text)

    def _put(
        self, handler: BaseHTTPRequestHandler, path: str, value: Any
    ) -> tuple[int, dict[str, str], Any]:
        kind = type_of(path)
        if kind == "microsoft.devtestlab/schedules":
            return self._put_schedule(path, value)
        if kind not in self._schemas:
            return self._violation(400, f"PUT {path}")
        problems = [
            f"{'/'.join(map(str, error.path))}: {error.message}"
            for error in self._schemas[kind].iter_errors(value)
        ]
        if problems:
            return self._violation(400, f"PUT {path}: {'; '.join(problems)}")
        if kind != VM:
            return self._put_image(path, kind, value)
        for action, scope in _linked(value):
            self.linked.add(action)
            if not self._may(action, scope):
                return self._denied("LinkedAuthorizationFailed", action, scope)
        old = self.resources.get(path.lower())
        if old is not None and handler.headers.get("If-None-Match") == "*":
            return 412, {}, _error("PreconditionFailed", "the resource already exists")
        if old is not None:
            return self._violation(409, f"PUT over what is there: {path}")
        machine = self._make(path, value)
        return 201, self._begin(lambda: self._made(machine)), machine

    def _make(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """Make the machine, its disk, its interfaces and their addresses."""
        machine = self._add(path, VM, value)
        machine["properties"]["provisioningState"] = "Creating"
        # Shown only to the machine itself, and to who asks for it.
        if data := machine["properties"].pop("userData", None):
            self._user_data[path.lower()] = data
        network = machine["properties"]["networkProfile"]
        made = []
        for number, wanted in enumerate(network.pop("networkInterfaceConfigurations")):
            inner = wanted["properties"]
            # Azure gives the interface a name of its own.
            name = f"{wanted['name']}-{uuid.uuid4().hex[:8]}"
            nic = f"{PREFIX}/Microsoft.Network/networkInterfaces/{name}"
            address = inner["ipConfigurations"][0]["properties"]
            host, _, last = self.address.rpartition(".")
            ip: dict[str, Any] = {"privateIPAddress": f"{host}.{int(last) + number}"}
            if public := address.get("publicIPAddressConfiguration"):
                place = f"{PREFIX}/Microsoft.Network/publicIPAddresses/{public['name']}"
                self._add(place, "Microsoft.Network/publicIPAddresses", public)
                self.resources[place.lower()]["properties"]["ipAddress"] = "192.0.2.7"
                self.delete_with[place.lower()] = public["properties"].get("deleteOption")
                ip["publicIPAddress"] = {"id": place}
            self._add(nic, "Microsoft.Network/networkInterfaces", {"tags": wanted.get("tags", {})})
            self.resources[nic.lower()]["properties"] = {
                "ipConfigurations": [{"name": "ip", "properties": ip}]
            }
            self.delete_with[nic.lower()] = inner.get("deleteOption")
            made.append({"id": nic, "properties": {"deleteOption": inner.get("deleteOption")}})
        network["networkInterfaces"] = made
        disk = machine["properties"]["storageProfile"]["osDisk"]
        place = f"{PREFIX}/Microsoft.Compute/disks/{disk['name']}"
        self._add(place, "Microsoft.Compute/disks", {})
        return machine

    def _made(self, machine: dict[str, Any]) -> dict[str, Any] | None:
        if self.allocation_fails is None:
            machine["properties"]["provisioningState"] = "Succeeded"
            self.on_made(machine, self._user_data.get(machine["id"].lower()))
            return None
        code, message = self.allocation_fails
        machine["properties"]["provisioningState"] = "Failed"
        status = {"code": f"ProvisioningState/failed/{code}", "message": message, "level": "Error"}
        machine["properties"]["instanceView"] = {"statuses": [status]}
        return {"code": code, "message": message}

    def _put_image(
        self, path: str, kind: str, value: dict[str, Any]
    ) -> tuple[int, dict[str, str], Any]:
        """Make an image of a gallery, or a version of one, which takes a while."""
        above = path.rpartition("/")[0].rpartition("/")[0]
        if kind == VERSIONS and above.lower() not in self.resources:
            return 404, {}, _error("ParentResourceNotFound", f"{above} was not found")
        if path.lower() in self.resources:
            return self._violation(409, f"PUT over what is there: {path}")
        made = self._add(path, kind, value)
        made["properties"]["provisioningState"] = "Creating"

        def end() -> dict[str, Any] | None:
            if kind == VERSIONS and self.version_fails is not None:
                made["properties"]["provisioningState"] = "Failed"
                code, message = self.version_fails
                return {"code": code, "message": message}
            if kind == VERSIONS:
                self.on_version(made)
            made["properties"]["provisioningState"] = "Succeeded"
            return None

        return 201, self._begin(end, "Microsoft.Compute", "capsOperations"), made

    def _put_schedule(self, path: str, value: Any) -> tuple[int, dict[str, str], Any]:
        wanted = {
            "status": r"Enabled",
            "taskType": r"ComputeVmShutdownTask",
            "timeZoneId": r"UTC",
            "targetResourceId": rf"{PREFIX}/Microsoft\.Compute/virtualMachines/[\w-]+",
        }
        inner = value["properties"]
        target = str(inner["targetResourceId"])
        if (
            value.keys() - {"location", "tags", "properties"}
            or inner.keys() - {*wanted, "dailyRecurrence", "notificationSettings"}
            or not all(re.fullmatch(form, inner[name]) for name, form in wanted.items())
            or not re.fullmatch(r"([01]\d|2[0-3])[0-5]\d", inner["dailyRecurrence"]["time"])
            or path.rpartition("/")[2] != f"shutdown-computevm-{target.rpartition('/')[2]}"
        ):
            return self._violation(400, f"a schedule that is none: {value}")
        if target.lower() not in self.resources:
            return 400, {}, _error("BadRequest", "the schedule's machine does not exist")
        return 201, {}, self._add(path, "Microsoft.DevTestLab/schedules", value)

    def _add(self, path: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        made = {
            "id": path,
            "name": path.rpartition("/")[2],
            "type": kind,
            "location": value.get("location", "westeurope"),
            "tags": value.get("tags", {}),
            "properties": json.loads(json.dumps(value.get("properties", {}))),
        }
        self.resources[path.lower()] = made
        return made

    def _delete(self, path: str) -> tuple[int, dict[str, str], Any]:
        found = self.resources.get(path.lower())
        if found is None:
            return 204, {}, None
        if type_of(path) == VM:
            found["properties"]["provisioningState"] = "Deleting"
            return 202, self._begin(lambda: self._deleted(path)), None
        holders = [item for item in self.of_type("virtualMachines") if path in json.dumps(item)]
        if holders:
            return 409, {}, _error("NicInUse", f"{path} is in use")
        if type_of(path) == "microsoft.devtestlab/schedules":
            del self.resources[path.lower()]
            return 200, {}, None

        def end() -> None:
            self.resources.pop(path.lower(), None)

        if type_of(path) == "microsoft.compute/disks":
            return 202, self._begin(end, "Microsoft.Compute", "DiskOperations"), None
        return 202, self._begin(end, "Microsoft.Network"), None

    def _deleted(self, path: str) -> None:
        machine = self.resources.pop(path.lower(), None)
        if machine is None:
            return
        self._user_data.pop(path.lower(), None)
        self.on_deleted(machine)
        profile = machine["properties"]["networkProfile"]["networkInterfaces"]
        for nic in (self.resources[item["id"].lower()] for item in profile):
            if self.delete_with.get(nic["id"].lower()) == "Delete":
                del self.resources[nic["id"].lower()]
                for ip in nic["properties"]["ipConfigurations"]:
                    public = ip["properties"].get("publicIPAddress")
                    if public and self.delete_with.get(public["id"].lower()) == "Delete":
                        del self.resources[public["id"].lower()]
        disk = machine["properties"]["storageProfile"]["osDisk"]
        if disk.get("deleteOption") == "Delete":
            del self.resources[f"{PREFIX}/Microsoft.Compute/disks/{disk['name']}".lower()]

    # -- long-running operations ------------------------------------------------------------------

    def _begin(
        self,
        end: Callable[[], dict[str, Any] | None],
        provider: str = "Microsoft.Compute",
        kind: str = "operations",
    ) -> dict[str, str]:
        """Begin what takes a while; it is looked at in the subscription, as Azure has it."""
        name = uuid.uuid4().hex
        self._operations[name] = Operation(self.looks, end)
        place = f"{self.url}/subscriptions/{SUBSCRIPTION}/providers/{provider}"
        place += f"/locations/westeurope/{kind}/{name}?api-version=2025-11-01"
        return {
            "Azure-AsyncOperation": place,
            "Location": f"{place}&result=1",
            "Retry-After": "0",
        }

    def _look(self, path: str) -> tuple[int, dict[str, str], Any]:
        operation = self._operations.get(path.rpartition("/")[2])
        if operation is None:
            return self._violation(404, f"there is no operation {path}")
        operation.advance()
        if operation.looks > 0:
            return 200, {"Retry-After": "0"}, {"status": "InProgress"}
        if operation.outcome is not None:
            # A failed operation is a good answer: the status is 200.
            return 200, {}, {"status": "Failed", "error": operation.outcome}
        return 200, {}, {"status": "Succeeded"}


def _api(path: str) -> bool:
    return path.startswith("/subscriptions/")


def _action(method: str, path: str) -> str:
    """What a request is, as roles name it."""
    verbs = {"GET": "read", "PUT": "write", "DELETE": "delete", "POST": "action"}
    return f"{_kind(path)}/{verbs.get(method, method)}"


def _linked(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What whoever makes a machine must be allowed besides: action and scope."""
    group = PREFIX.removesuffix("/providers")
    properties = machine["properties"]
    yield "Microsoft.Compute/disks/write", group
    if image := properties["storageProfile"]["imageReference"].get("id"):
        yield "Microsoft.Compute/galleries/images/versions/read", image
    for identity in machine.get("identity", {}).get("userAssignedIdentities", ()):
        yield "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action", identity
    for nic in properties["networkProfile"]["networkInterfaceConfigurations"]:
        inner = nic["properties"]
        address = inner["ipConfigurations"][0]["properties"]
        yield "Microsoft.Network/virtualNetworks/subnets/join/action", address["subnet"]["id"]
        if guard := inner.get("networkSecurityGroup"):
            yield "Microsoft.Network/networkSecurityGroups/join/action", guard["id"]
        kinds = ["networkInterfaces"]
        kinds += ["publicIPAddresses"] if "publicIPAddressConfiguration" in address else []
        for kind in kinds:
            yield f"Microsoft.Network/{kind}/write", group
            yield f"Microsoft.Network/{kind}/join/action", group


def _kind(path: str) -> str:
    """The type of what a path names, as roles name it."""
    _, found, tail = path.rpartition("/providers/")
    parts = tail.split("/") if found else []
    if found and len(parts) > 1:
        if "/locations/" in tail:
            return f"{parts[0]}/locations/{parts[3]}"
        return "/".join([parts[0], *parts[1::2]])
    if found:
        return "Microsoft.Resources/subscriptions/providers"
    return "Microsoft.Resources/" + "/".join(path.strip("/").split("/")[::2])


def type_of(path: str) -> str:
    """The type that a resource's id names, in lower case."""
    provider, *rest = path.rpartition("/providers/")[2].lower().split("/")
    return "/".join([provider, *rest[::2]])


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], value: Any
) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    data = b"" if value is None else text.encode()
    handler.send_response(status)
    for name, text in headers.items():
        handler.send_header(name, text)
    if data:
        handler.send_header("Content-Type", "application/json; charset=utf-8")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
