"""The whole flow with a machine in Azure: a stand-in makes it, a real agent runs on it, and the
certificate ends in Azurite."""

import hashlib
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed, Running
from pydantic import SecretStr

from aicert.agent import azure_machine, azure_vm, machine
from aicert.certificate import Certificate
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
from blocks import AzureBlobStore, AzureMachine, VerificationPolicy
from examples.images import tiny
from flows.certify import certify, clean_up
from flows.reap import reap
from tests.agent.fetch import stores
from tests.support.arm import Arm, Fault
from tests.support.azure import Cloud, machine_block, made_up_cloud
from tests.support.pipeline import CERTIFY, write_spec

pytestmark = [pytest.mark.xdist_group("azure-flow"), pytest.mark.usefixtures("prefect_server")]


@dataclass
class Azure:
    """The stand-in, what runs on it, a store in Azurite, and a job's folder."""

    arm: Arm
    cloud: Cloud
    machine: AzureMachine
    store: AzureBlobStore
    container: Any
    policy: VerificationPolicy
    job: Path

    @property
    def state(self) -> Path:
        return self.machine.config().state

    def run(self, script: str = f"echo epoch 1; {CERTIFY}", **parameters: Any) -> State[Any]:
        spec = write_spec(self.job, script, image="oci:image")
        return certify(
            spec_file=str(spec),
            machine=self.machine,
            store=self.store,
            policy=self.policy,
            publish_weights=True,
            return_state=True,
            **parameters,
        )

    def assert_nothing_is_left(self) -> None:
        assert self.arm.left() == []
        assert list((self.state / "machines").iterdir()) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    folder = Path(tempfile.mkdtemp(prefix="aicert-"))
    with made_up_cloud(tmp_path_factory.mktemp("azure")) as (arm, cloud):
        files = cloud.files
        options = ("--cert", str(files.certificate), "--key", str(files.key))
        with stores.azurite(*options) as address:
            account, key = stores.Azure.account, stores.Azure.key
            service = BlobServiceClient(f"{address}/{account}", key)
            container = service.create_container(f"box-{uuid.uuid4()}", public_access="blob")
            root = folder / "azure-root.pem"
            root.write_bytes(cloud.authority.root_pem)
            (folder / "job").mkdir()
            tiny.build(folder / "job" / "image")
            yield Azure(
                arm,
                cloud,
                machine_block(arm, cloud, folder / "state"),
                AzureBlobStore(
                    url=f"{address}/{account}/{container.container_name}/models",
                    account_key=SecretStr(key),
                ),
                container,
                VerificationPolicy(hardware_roots=root),
                folder / "job",
            )


@pytest.fixture
def azure(whole: Azure) -> Iterator[Azure]:
    yield whole
    whole.arm.faults.clear()
    whole.cloud.close()


def test_a_training_on_a_machine_in_azure_ends_with_a_certificate_that_anybody_verifies(
    azure: Azure,
) -> None:
    state = azure.run()
    assert state.is_completed(), state.message
    result = state.result()
    assert result["assurance"] == "hardware"
    azure.assert_nothing_is_left()
    assert len([r for r in azure.arm.requests if r[0] == "PUT" and "virtualMachines" in r[1]]) == 1

    name = f"models/certificates/{result['digest']}/certificate.json"
    data = azure.container.download_blob(name).readall()
    assert hashlib.sha256(data).hexdigest() == result["digest"]
    root = azure.policy.hardware_roots
    assert root is not None
    trust = TrustStore.builtin().with_roots(root, "hardware")
    verdict = verify(data, trust=trust)
    assert verdict.assurance is Assurance.HARDWARE
    # The channel over which the training was asked for is in the log, before the job.
    assert verdict.run.channel_key is not None
    assert Certificate.parse(data).attestation_key.chain[-1] == azure.cloud.root
    weights = azure.container.download_blob(name.replace("certificate.json", "weights/model.bin"))
    assert weights.readall() == b"hello\n"

    # And from its address, by the command, as somebody would who has nothing else.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "aicert", "verify", result["certificate"]),
            *("--hardware-root", str(root)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("VERIFIED  tiny"), done.stdout + done.stderr


def test_the_secret_of_the_machine_is_told_to_azure_alone(
    azure: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets: list[str] = []
    prepare = azure_machine.prepare

    def keep(wanted: azure_machine.AzureMachine, directory: Path) -> None:
        prepare(wanted, directory)
        secrets.append(json.loads((directory / "azure.json").read_text())["secret"])

    monkeypatch.setattr(azure_machine, "prepare", keep)
    state = azure.run()
    assert state.is_completed(), state.message
    (secret,) = secrets
    with get_client(sync_client=True) as api:
        wanted = {"flow_run_id": {"any_": [str(state.state_details.flow_run_id)]}}
        logs = api._client.post("/logs/filter", json={"logs": wanted, "limit": 200}).text
        artifacts = api._client.post("/artifacts/filter", json={"artifacts": wanted}).text
    assert "tiny" in artifacts
    assert secret not in logs + artifacts + json.dumps(state.result())


def test_a_training_that_fails_leaves_no_machine(azure: Azure) -> None:
    state = azure.run("echo nan loss >&2; exit 3")
    assert state.is_failed()
    assert "[training.exit]" in str(state.message) and "nan loss" in str(state.message)
    azure.assert_nothing_is_left()


def test_what_azure_refuses_is_how_the_run_fails_with_what_to_do(azure: Azure) -> None:
    azure.arm.faults = [Fault("PUT", "virtualMachines", 409, "QuotaExceeded", "0 cores left")]
    state = azure.run()
    assert str(state.message).startswith("provision: ")
    assert "[azure-vm.quota]" in str(state.message) and "Quotas" in str(state.message)
    azure.assert_nothing_is_left()


def test_passing_troubles_of_azures_do_not_keep_a_run_from_its_certificate(azure: Azure) -> None:
    before = len(azure.arm.requests)
    azure.arm.faults = [
        Fault("PUT", "virtualMachines", 429, "TooManyRequests", headers={"Retry-After": "0"}),
        Fault("PUT", "virtualMachines", None, after=True),  # it is made, and the reply is lost
        Fault("GET", "virtualMachines", 503, "ServerBusy", headers={"Retry-After": "0"}),
        Fault("DELETE", "virtualMachines", 503, "ServerBusy", headers={"Retry-After": "0"}),
    ]
    azure.arm.looks = 20  # and nothing there is quick, deleting least of all
    state = azure.run()
    azure.arm.looks = 1
    assert state.is_completed(), state.message
    assert azure.arm.faults == []
    made = [path for verb, path in azure.arm.requests[before:] if verb == "PUT"]
    assert len({path for path in made if "virtualMachines" in path}) == 1
    name = f"models/certificates/{state.result()['digest']}/certificate.json"
    data = azure.container.download_blob(name).readall()
    root = azure.policy.hardware_roots
    assert root is not None
    trust = TrustStore.builtin().with_roots(root, "hardware")
    assert verify(data, trust=trust).assurance is Assurance.HARDWARE
    azure.assert_nothing_is_left()


def test_an_allocation_that_fails_ends_the_run_with_what_to_do_and_leaves_nothing(
    azure: Azure,
) -> None:
    azure.arm.allocation_fails = ("AllocationFailed", "We do not have sufficient capacity")
    state = azure.run()
    azure.arm.allocation_fails = None
    assert "[azure-vm.capacity]" in str(state.message) and "zone or region" in str(state.message)
    azure.assert_nothing_is_left()


def test_an_input_outside_of_the_specs_folder_is_not_sent(azure: Azure) -> None:
    (azure.job.parent / "elsewhere").mkdir(exist_ok=True)
    spec = write_spec(azure.job, image="oci:image", input={"uri": "file:../elsewhere"})
    state = certify(
        spec_file=str(spec),
        machine=azure.machine,
        store=azure.store,
        policy=azure.policy,
        return_state=True,
    )
    assert "[send.refused]" in str(state.message)
    azure.assert_nothing_is_left()


# -- what died -------------------------------------------------------------------------------------


def left_by(azure: Azure, state: State[Any]) -> Any:
    """Make a machine for a flow run that is in this state, as a process that died left it."""
    with get_client(sync_client=True) as api:
        run = api.create_flow_run(certify, name="dead", state=Running())
        handle = machine.start(
            azure.machine.config(), str(uuid.uuid4()), {"flowRun": str(run.id), "name": "tiny"}
        )
        machine.release(handle)
        api.set_flow_run_state(run.id, state, force=True)
        return api.read_flow_run(run.id), state


def test_the_reaper_deletes_the_machines_of_runs_that_are_over_and_of_no_other(
    azure: Azure,
) -> None:
    left_by(azure, Running())
    assert reap(azure.machine, return_state=True).is_completed()
    assert len(azure.arm.of_type("virtualMachines")) == 1
    (living,) = machine.living(azure.state)
    machine.destroy(living.handle)
    left_by(azure, Failed())
    reap(azure.machine, grace_minutes=60)
    assert len(azure.arm.of_type("virtualMachines")) == 1
    reap(azure.machine, grace_minutes=0)
    azure.assert_nothing_is_left()


def test_the_reaper_finds_by_their_tags_the_machines_of_a_host_that_is_gone(
    azure: Azure, tmp_path: Path
) -> None:
    left_by(azure, Failed())
    elsewhere = azure.machine.model_copy(update={"state": tmp_path})
    reap(elsewhere, grace_minutes=60)
    assert len(azure.arm.of_type("virtualMachines")) == 1
    reap(elsewhere, grace_minutes=0)
    assert azure.arm.left() == []
    # The folder that the host left, should it come back, is removed too.
    reap(azure.machine, grace_minutes=0)
    azure.assert_nothing_is_left()


def test_the_reaper_ends_what_is_over_its_time_whoever_it_belongs_to(
    azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(azure, Running())
    for item in azure.arm.resources.values():
        if "aicert-expires" in item.get("tags", {}):
            item["tags"]["aicert-expires"] = "2026-01-01T00:00:00Z"
    over = datetime.now(UTC) - timedelta(minutes=1)
    monkeypatch.setattr(azure_machine, "expires", lambda directory: over)
    reap(azure.machine)
    azure.assert_nothing_is_left()


def test_a_reaper_that_is_refused_fails_and_says_so(azure: Azure) -> None:
    left_by(azure, Failed())
    azure.arm.faults = [Fault("DELETE", "virtualMachines", 403, "AuthorizationFailed", "no", 9)]
    state = reap(azure.machine, grace_minutes=0, return_state=True)
    assert state.is_failed() and "not removed" in str(state.message)
    azure.arm.faults.clear()
    reap(azure.machine, grace_minutes=0)
    azure.assert_nothing_is_left()


def test_a_cancelled_runs_machine_is_deleted_at_once(azure: Azure) -> None:
    run, _ = left_by(azure, Running())
    run.parameters = {"machine": {"state": str(azure.state)}}
    clean_up(certify, run, Cancelled())
    azure.assert_nothing_is_left()


def test_the_names_of_azures_errors_that_pass_are_those_that_are_tried_again() -> None:
    from tasks.reporting import is_transient

    assert is_transient(azure_vm.UnavailableError("x"))
    assert is_transient(azure_vm.ThrottledError("x"))
    assert not is_transient(azure_vm.QuotaError("x"))
