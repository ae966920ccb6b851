"""As a builder and an operator do it: a server, a worker, a deployment, a run, a cancelled run."""

import json
import os
import re
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks import HostMachine, LocalMachine, QemuMachine
from tests.support.installation import BIN, Installation, machine_of, run_id, store_of
from tests.support.pipeline import (
    CERTIFY,
    assert_gone,
    await_true,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("system")]

SAVE = """
import sys
from prefect.types import SecretDict
from blocks import InputCredentials
InputCredentials(secrets=SecretDict({"data": {"token": sys.argv[1]}})).save("saved")
"""


def test_setting_up_again_changes_nothing_and_keeps_what_an_operator_changed(
    installation: Installation,
) -> None:
    limit = "aicert-host"
    installation.prefect("gcl", "update", limit, "--limit", "2")
    rules = installation.api("automations/filter", {})
    paused = next(rule for rule in rules if rule["name"] == "aicert: clean up after a crash")
    installation.api(f"automations/{paused['id']}", {"enabled": False}, "PATCH")
    before = installation.api("deployments/name/retrain/retrain")
    own = {
        "parameters": {"spec_file": "/srv/ours.yaml", "publish_weights": False},
        "tags": ["aicert", "team-a", "training"],
        "concurrency_limit": 3,
        "paused": True,
    }
    deployment = f"deployments/{before['id']}"
    schedules = f"{deployment}/schedules"
    installation.api(deployment, own, "PATCH")
    weekly = {"cron": "0 5 * * 1", "timezone": "Europe/Zurich"}
    installation.api(f"{schedules}/{before['schedules'][0]['id']}", {"active": True}, "PATCH")
    installation.api(schedules, [{"schedule": weekly, "parameters": {"spec_file": "/srv/b.yaml"}}])
    try:
        done = installation.command(sys.executable, "deployments/bootstrap.py")
        rules = installation.api("automations/filter", {})
        after = installation.api("deployments/name/retrain/retrain")
    finally:
        installation.api(f"automations/{paused['id']}", {"enabled": True}, "PATCH")
        for schedule in installation.api(deployment)["schedules"]:
            installation.api(f"{schedules}/{schedule['id']}", method="DELETE")
        names = ("schedule", "active", "slug", "parameters")
        as_it_was = [{name: item[name] for name in names} for item in before["schedules"]]
        installation.api(schedules, as_it_was)
        fields = {name: before[name] for name in ("parameters", "tags", "paused")}
        installation.api(deployment, {**fields, "concurrency_limit": 1}, "PATCH")
    assert "made" not in done.stdout and "updated" not in done.stdout
    kept = "its own parameters, schedules, paused, tags, concurrency limit kept"
    assert re.findall(r"kept.*|.*kept", done.stdout) == [
        f"deployment   there      retrain/retrain: {kept}"
    ]
    assert {name: after[name] for name in ("parameters", "tags", "paused")} == {
        name: own[name] for name in ("parameters", "tags", "paused")
    }
    assert after["global_concurrency_limit"]["limit"] == 3
    nightly, other = sorted(after["schedules"], key=lambda item: not item["slug"])
    assert (nightly["schedule"]["cron"], nightly["active"]) == ("0 3 * * *", True)
    assert other["schedule"]["cron"] == "0 5 * * 1" and other["slug"] is None
    assert other["parameters"] == {"spec_file": "/srv/b.yaml"}


def test_every_kind_of_machine_has_a_limit(installation: Installation) -> None:
    limits = installation.api("v2/concurrency_limits/filter", {})
    kinds = {block().config().kind for block in (LocalMachine, QemuMachine)}
    kinds |= {HostMachine(ek_roots=Path("/roots.pem")).config().kind, "azure-host", "azure"}
    assert {f"aicert-{kind}" for kind in kinds} <= {limit["name"] for limit in limits}


def test_a_run_of_the_deployment_is_certified(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    secret = "battery-staple-correct-horse"
    installation.command(sys.executable, "-c", SAVE, secret)
    saved = {"$ref": {"block_document_slug": "aicert-input-credentials/saved"}}
    options = ("--watch", "--param", f"credentials={json.dumps(saved)}")
    done = installation.run(write_spec(tmp_path, image=image), state, tmp_path / "s", *options)
    assert "finished successfully" in done.stdout
    # Not in the database, a log, the store or what was printed.
    kept = [path for folder in (installation.home, tmp_path) for path in folder.rglob("*")]
    assert any(path.name == "prefect.db" for path in kept)
    assert not any(secret.encode() in path.read_bytes() for path in kept if path.is_file())
    assert secret not in done.stdout + done.stderr
    (digest,) = published(tmp_path / "s")
    run = run_id(done)
    assert installation.api(f"flow_runs/{run}")["name"] == f"tiny-{run[-6:]}"
    message = installation.state(run)["message"]
    assert f"aicert.run.completed * {message}\n" in done.stdout
    assert message == f"certified: {tmp_path.as_uri()}/s/certificates/{digest}/certificate.json"
    # The deployment publishes the weights unless it is told not to.
    assert (tmp_path / "s" / "certificates" / digest / "weights" / "model.bin").exists()
    assert machines(state) == []


def test_aicert_run_shows_on_the_server_that_is_named_and_says_everything_once(
    installation: Installation, image: str, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    done = installation.command(
        *(BIN / "aicert", "run", str(write_spec(tmp_path, image=image)), "--json"),
        *("--store", str(store)),
    )
    result = json.loads(done.stdout)
    assert (result["verdict"], (result["digest"],)) == ("certified", published(store))
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("✓")] == [
        *("provision", "job", "fetch", "image", "train", "outputs", "quote", "publish", "verify"),
        "destroy",
    ]
    assert "INFO" not in done.stderr
    told = [run["state"]["message"] for run in installation.api("flow_runs/filter", {})]
    assert f"certified: {result['certificate']}" in told


def test_a_run_that_fails_says_why_and_the_command_fails(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "echo nan >&2; exit 3", image=image)
    done = installation.run(spec, state, tmp_path / "s", "--watch", check=False)
    assert done.returncode != 0
    run = run_id(done)
    state_now = installation.state(run)
    assert state_now["type"] == "FAILED"
    assert state_now["message"].startswith("train: ")
    assert "[training.exit]" in state_now["message"] and "nan" in state_now["message"]
    installation.await_line(run, state_now["message"])
    assert installation.lines(run)[-1] == state_now["message"]  # and no traceback
    (said,) = re.findall(r"aicert\.run\.failed \* (.*)", done.stdout)
    assert said.startswith("train: the training ended with status 3 (training.exit); expected: 0;")


def test_a_check_that_fails_says_what_to_do(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = json.dumps(store_of(tmp_path / "file"))
    done = installation.prefect(
        *("deployment", "run", "check/check", "--watch", "--param", f"store={store}"), check=False
    )
    assert done.returncode == 1
    message = installation.state(run_id(done))["message"]
    assert str(tmp_path / "file") in message
    installation.await_line(run_id(done), message)
    assert installation.lines(run_id(done))[-1] == message


def test_a_parameter_that_does_not_fit_is_refused_at_once(installation: Installation) -> None:
    done = installation.prefect(
        *("deployment", "run", "certify/certify", "--param", "publish_weights=perhaps"),
        check=False,
    )
    assert done.returncode != 0
    assert "perhaps" in done.stdout + done.stderr


def test_a_secret_in_the_parameters_is_refused(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    secret = "correct-horse-battery-staple"
    given = {"block_type_slug": "aicert-input-credentials", "secrets": {"data": {"token": secret}}}
    option = ("--watch", "--param", f"credentials={json.dumps(given)}")
    spec = write_spec(tmp_path, image=image)
    done = installation.run(spec, state, tmp_path / "s", *option, check=False)
    assert done.returncode == 1
    message = installation.state(run_id(done))["message"]
    assert message.startswith("parameters: ") and "[run.exposed-secret]" in message
    assert "aicert-input-credentials/NAME" in message and secret not in message
    assert machines(state) == []


def test_a_cancelled_run_ends_container_and_machine_within_ten_seconds(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 500; {CERTIFY}", image=image)
    took: list[float] = []
    # A machine may be busy with other things at one time, but not at each.
    while not took or (min(took) >= 10 and len(took) < 3):
        started = installation.run(spec, state, tmp_path / "s")
        run = run_id(started)
        installation.await_line(run, "begun")
        family = installation.family()
        assert any("swtpm" in member.command for member in family)
        installation.prefect("flow-run", "cancel", run)
        assert_gone(family)
        await_true(lambda: not mentioning(state), 240, "the machine ends")
        took.append(installation.since(run, "CANCELLING"))
        installation.await_state(run, "CANCELLED")
        assert machines(state) == []
        assert published(tmp_path / "s") == ()
    assert min(took) < 10


def test_a_killed_run_is_reported_and_swept(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 500; {CERTIFY}", image=image)
    started = installation.run(spec, state, tmp_path / "s")
    run = run_id(started)
    installation.await_line(run, "begun")
    family = installation.family()
    flow = installation.flow_process()
    os.kill(flow.pid, signal.SIGKILL)
    assert_gone([m for m in family if m == flow or str(state) in m.command])
    installation.await_state(run, "CRASHED")
    # The hook that Prefect calls for a crashed run removes the folder.
    await_true(lambda: machines(state) == [], 240, "the folder is swept")
    assert published(tmp_path / "s") == ()


def test_a_schedule_trains_once_and_then_says_that_nothing_has_changed(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    parameters = {
        "spec_file": str(write_spec(tmp_path, image=image)),
        "machine": machine_of(state),
        "store": store_of(tmp_path / "s"),
    }
    deployment = installation.api("deployments/name/retrain/retrain")["id"]
    schedules = f"deployments/{deployment}/schedules"
    soon = {"interval": 5, "anchor_date": datetime.now(UTC).isoformat()}
    wanted = [{"schedule": soon, "active": True, "parameters": parameters}]
    (schedule,) = installation.api(schedules, wanted)
    query = {
        "flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"name": {"any_": []}}},
        "sort": "START_TIME_ASC",
    }

    def ended(name: str) -> list[str]:
        query["flow_runs"]["state"]["name"]["any_"] = [name]  # type: ignore[index]
        return [run["state"]["message"] for run in installation.api("flow_runs/filter", query)]

    try:
        await_true(lambda: bool(ended("Unchanged")), 240, "a run finds nothing changed")
    finally:
        installation.api(f"{schedules}/{schedule['id']}", method="DELETE")
    (digest,) = published(tmp_path / "s")
    place = f"{tmp_path.as_uri()}/s/certificates/{digest}/certificate.json"
    assert ended("Completed") == [f"certified: {place}"]
    assert set(ended("Unchanged")) == {f"nothing has changed since {place}"}
    assert ended("Failed") == ended("Crashed") == []
