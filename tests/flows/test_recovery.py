"""What really dies, and what becomes of the run: every part is killed, and every run ends known."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.elsewhere import elsewhere
from tests.support.installation import Installation, installed, run_id
from tests.support.pipeline import (
    CERTIFY,
    ROOT,
    Process,
    assert_gone,
    await_true,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("recovery")]

OUTLIVE = 300


@pytest.fixture(scope="module")
def installed_once() -> Iterator[Installation]:
    """A server and a worker for this module's tests, which kill them.

    A killed run keeps its slot for a minute, so there are more of them than tests.
    """
    with installed("--zombie-seconds", "45", "--slots", "16") as held:
        yield held


@pytest.fixture
def installation(installed_once: Installation, state: Path) -> Iterator[Installation]:
    """The installation, with what a test has killed started again; no machine is left running."""
    yield installed_once
    try:
        for process in mentioning(state):
            os.kill(process.pid, signal.SIGKILL)
    finally:
        if "server" not in installed_once.processes:
            installed_once.start_server()
        if "worker" not in installed_once.processes:
            installed_once.start_worker()


def slow(folder: Path) -> str:
    """Return the script of a training that goes on until `train_on` tells it to end."""
    wait = 'while [ -z "$told" ]; do sleep 0.1; done'
    return f": {folder}; trap told=1 USR1; echo begun; {wait}; echo trained; {CERTIFY}"


def begin(installation: Installation, folder: Path, state: Path, image: str, **machine: Any) -> str:
    """Start a run and wait until it trains, which it does until it is told; return its id."""
    spec = write_spec(folder, slow(folder), image=image)
    run = run_id(installation.run(spec, state, folder / "s", **machine))
    installation.await_line(run, "begun")
    return run


def trainings(folder: Path) -> list[Process]:
    """Return the containers' first processes, of the runs that were begun with this folder."""
    return [each for each in mentioning(folder) if each.command.startswith(f"sh -c : {folder};")]


def train_on(folder: Path) -> None:
    """Wait for the trainings of this folder, have them go on to their end, and wait for that."""
    await_true(lambda: bool(trainings(folder)), 240, "it trains")

    def ended() -> bool:
        left = trainings(folder)
        for training in left:  # one that has only just begun does not hear it yet
            with suppress(ProcessLookupError):
                os.kill(training.pid, signal.SIGUSR1)
        return not left

    await_true(ended, 240, "the training ends")


def reported(installation: Installation, run: str) -> None:
    """Wait until the worker is done with a run that was killed: a retry before it would crash too.

    First its runner reports the crash, then it tries itself, and then it gives this advice.
    """
    line = "Check whether the flow run exceeded its memory allocation."
    await_true(
        lambda: any(said.startswith(line) for said in installation.lines(run)),
        240,
        f"the worker is done with {run}",
    )
    installation.await_state(run, "CRASHED")


def kill(process: Process) -> None:
    """Kill a process, and it alone."""
    os.kill(process.pid, signal.SIGKILL)
    assert_gone([process])


def agent_of(family: list[Process]) -> Process:
    """Return the process of the agent."""
    (found,) = [
        process
        for process in family
        if "-m aicert.agent" in process.command and not process.command.startswith("unshare")
    ]
    return found


def reap(installation: Installation, state: Path, **parameters: Any) -> tuple[set[str], set[str]]:
    """Run the reaper now; return the machines that it ended and the names of runs rescheduled.

    Among these may be reapers, which a schedule and each crash start, and whose worker a test
    has killed as well.
    """
    script = (
        "import sys, json; from blocks import LocalMachine; from flows.reap import reap; "
        "done = reap(LocalMachine(state=sys.argv[1]), **json.loads(sys.argv[2])); "
        "print(json.dumps(done['reaped']))"
    )
    words = (sys.executable, "-c", script, str(state), json.dumps(parameters))
    done = json.loads(installation.command(*words).stdout)
    runs = {which for what, which in done if what == "run rescheduled"}
    ended = {which for what, which in done if what != "run rescheduled"}
    return ended, runs


def name_of(installation: Installation, run: str) -> str:
    """Return the name that the server gave a run."""
    return str(installation.api(f"flow_runs/{run}")["name"])


def slots(installation: Installation) -> int:
    """Return how many machines the server believes to be in use."""
    limits = installation.api("v2/concurrency_limits/filter", {})
    (used,) = [limit["active_slots"] for limit in limits if limit["name"] == "aicert-local"]
    return int(used)


def certified(installation: Installation, run: str, store: Path) -> str:
    """Wait until a run is certified, once; return the certificate's digest."""
    state = installation.await_state(run, "COMPLETED", "FAILED", seconds=300)
    assert state["type"] == "COMPLETED", state["message"]
    (digest,) = published(store)
    assert digest in state["message"]
    return digest


def run_in(store: Path, digest: str) -> str:
    """Return the id of the measured run in a certificate."""
    text = (store / "certificates" / digest / "certificate.json").read_text()
    (job,) = [
        record["content"]
        for record in json.loads(text)["evidence"]["measurementLog"]
        if record["content"]["type"] == "job"
    ]
    return str(job["run"])


# -- the process of the flow ---------------------------------------------------------------------


def test_a_retry_goes_on_where_the_killed_run_stood(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image, outlive=OUTLIVE)
    (said,) = [line for line in installation.lines(run) if line.startswith("run ")]
    measured = said.split()[1]
    family = installation.family()
    flow = installation.flow_process()
    kill(flow)
    reported(installation, run)
    agent = agent_of(family)
    assert agent.lives and len(machines(state)) == 1
    installation.prefect("flow-run", "retry", run)
    train_on(tmp_path)
    digest = certified(installation, run, tmp_path / "s")
    # The very run that was begun: the same training on the same machine, measured once.
    assert run_in(tmp_path / "s", digest) == measured
    said_so = f"going on with run {measured}"
    await_true(
        lambda: any(line.startswith(said_so) for line in installation.lines(run)), 240, said_so
    )
    assert_gone([agent])
    assert machines(state) == []


def test_a_retry_starts_over_where_the_machine_died_with_the_run(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image)
    (said,) = [line for line in installation.lines(run) if line.startswith("run ")]
    family = installation.family()
    kill(installation.flow_process())
    assert_gone([process for process in family if str(state) in process.command])
    reported(installation, run)
    installation.prefect("flow-run", "retry", run)
    train_on(tmp_path)
    digest = certified(installation, run, tmp_path / "s")
    assert run_in(tmp_path / "s", digest) != said.split()[1]
    assert machines(state) == []


def test_a_retry_trains_nothing_where_the_killed_run_had_published(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image)
    flow = installation.flow_process()
    train_on(tmp_path)
    made = {"flow_run_id": {"any_": [run]}, "key": {"any_": ["aicert-tiny-publish"]}}

    def has_published() -> bool:
        # It stands still meanwhile: however long the answer takes, it is not over then.
        os.kill(flow.pid, signal.SIGSTOP)
        if installation.api("artifacts/filter", {"artifacts": made}):
            return True
        os.kill(flow.pid, signal.SIGCONT)
        return False

    await_true(has_published, 240, "it publishes")
    kill(flow)
    (digest,) = published(tmp_path / "s")
    reported(installation, run)
    installation.prefect("flow-run", "retry", run)
    assert certified(installation, run, tmp_path / "s") == digest
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"name": {"any_": ["train"]}}}
    assert len(installation.api("task_runs/filter", wanted)) == 1
    await_true(lambda: machines(state) == [], 240, "the dead machine's folder is swept")


def test_a_run_whose_process_and_worker_die_is_noticed_and_the_reaper_ends_its_machine(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image, outlive=OUTLIVE)
    # One whose process died when it had said that it runs, and nothing after that.
    deployment = installation.api("deployments/name/certify/certify")["id"]
    body: dict[str, Any] = {"state": {"type": "PENDING", "name": "Pending"}}
    path = f"deployments/{deployment}/create_flow_run"
    silent = str(installation.api(path, body)["id"])
    body = {"state": {"type": "RUNNING", "name": "Running"}}
    installation.api(f"flow_runs/{silent}/set_state", body)
    family = installation.family()
    flow = installation.flow_process()
    installation.kill("worker")
    kill(flow)
    agent = agent_of(family)
    # Nobody is left who could report it: the server misses the heartbeat.
    for dead in (run, silent):
        ended = installation.await_state(dead, "CRASHED", seconds=300)
        assert "no heartbeat" in ended["message"]
    assert agent.lives  # for a retry
    installation.start_worker()
    assert reap(installation, state)[0] == set()
    assert agent.lives
    (machine,) = machines(state)
    # Somebody gives it up: now nobody will come back for the machine.
    cancelled = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
    installation.api(f"flow_runs/{run}/set_state", cancelled)
    assert reap(installation, state)[0] == {machine}
    assert_gone([agent])
    assert machines(state) == [] and published(tmp_path / "s") == ()
    await_true(lambda: slots(installation) == 0, 240, "a killed run's slot is free again")


# -- the worker ----------------------------------------------------------------------------------


def test_a_run_survives_its_worker(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image)
    installation.kill("worker")
    train_on(tmp_path)
    certified(installation, run, tmp_path / "s")
    await_true(lambda: machines(state) == [], 240, "the machine is gone")


def test_a_run_that_a_dead_worker_had_taken_is_begun_by_another(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    installation.kill("worker")
    run = run_id(installation.run(write_spec(tmp_path, image=image), state, tmp_path / "s"))
    # As a worker does when it takes a run, the moment before it starts a process for it.
    pending = {"state": {"type": "PENDING", "name": "Pending"}, "force": True}
    installation.api(f"flow_runs/{run}/set_state", pending)
    installation.start_worker()
    ended, runs = reap(installation, state, pending_minutes=0)
    assert name_of(installation, run) in runs and ended == set()
    certified(installation, run, tmp_path / "s")


def test_the_reaper_knows_the_runs_of_every_deployment(
    installation: Installation, state: Path
) -> None:
    installation.kill("worker")
    deployments = installation.api("deployments/filter", {})
    pending = {"type": "PENDING", "name": "Pending"}
    runs = []
    for deployment in deployments:
        needed = deployment["parameter_openapi_schema"].get("required", [])
        path = f"deployments/{deployment['id']}/create_flow_run"
        runs.append(
            installation.api(
                path, {"state": pending, "parameters": dict.fromkeys(needed, "/nowhere")}
            )["id"]
        )
    known = (ROOT / "prefect.yaml").read_text().count("entrypoint: ")
    assert len(runs) == known > 0
    rescheduled = reap(installation, state, pending_minutes=0)[1]
    for run in runs:
        assert name_of(installation, run) in rescheduled
        assert installation.state(run)["type"] == "SCHEDULED"
        installation.api(f"flow_runs/{run}", method="DELETE")


# -- the machine ---------------------------------------------------------------------------------


def test_a_killed_agent_fails_the_run_and_leaves_nothing(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image)
    family = [process for process in installation.family() if str(state) in process.command]
    kill(agent_of(family))
    ended = installation.await_state(run, "FAILED", "COMPLETED", "CRASHED")
    assert ended["type"] == "FAILED" and "[agent.lost]" in ended["message"], ended
    assert_gone(family)
    assert machines(state) == [] and published(tmp_path / "s") == ()


def test_a_killed_container_fails_the_run_and_says_so(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image)
    (training,) = trainings(tmp_path)
    assert training in installation.family()
    kill(training)
    ended = installation.await_state(run, "FAILED", "COMPLETED", "CRASHED")
    assert ended["type"] == "FAILED" and "[training.killed]" in ended["message"], ended
    assert machines(state) == [] and published(tmp_path / "s") == ()


# -- the server and the network ------------------------------------------------------------------


def test_a_run_goes_on_while_the_server_is_dead(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    before = slots(installation)
    run = begin(installation, tmp_path, state, image)
    installation.kill("server")
    train_on(tmp_path)
    installation.start_server()
    certified(installation, run, tmp_path / "s")
    assert machines(state) == []
    await_true(lambda: slots(installation) <= before, 240, "the run's slot is free again")
    # The worker waits longer and longer before it asks again; the next test's does not.
    installation.kill("worker")


def test_a_run_goes_on_when_the_network_is_lost_for_a_while(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    run = begin(installation, tmp_path, state, image)
    installation.stop("server")  # connections stay open, and nothing answers: as behind a cut
    train_on(tmp_path)
    time.sleep(5)
    installation.go_on("server")
    certified(installation, run, tmp_path / "s")
    assert machines(state) == []


def test_workers_on_two_hosts_share_the_runs_and_train_on_while_a_network_is_cut(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    installation.kill("worker")
    spec = write_spec(tmp_path, slow(tmp_path), image=image)
    runs = [run_id(installation.run(spec, state, tmp_path / str(n))) for n in range(2)]
    with elsewhere(installation) as one, elsewhere(installation) as other:
        try:
            for name, host in (("one", one), ("other", other)):
                installation.start_worker(name, 1, before=host.enter(), server=host.address)
            for run in runs:
                installation.await_line(run, "begun")
            one.cut()
            train_on(tmp_path)
            time.sleep(5)
            one.mend()
            for number, run in enumerate(runs):
                certified(installation, run, tmp_path / str(number))
            lines = [line for run in runs for line in installation.lines(run)]
            workers = {line.split("'")[1] for line in lines if line.startswith("Worker ")}
            assert workers == {"one", "other"}
            await_true(lambda: machines(state) == [], 240, "the machines are gone")
        finally:
            for name in ("one", "other"):
                installation.kill(name)
