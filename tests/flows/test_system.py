"""As a builder and an operator do it: a server, a worker, a deployment, a run, a cancelled run."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.pipeline import (
    CERTIFY,
    ROOT,
    assert_gone,
    await_true,
    descendants,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("system")]

BIN = Path(sys.executable).parent


@dataclass
class Installation:
    """A server and a worker, and what the command line needs to talk to them."""

    url: str
    environment: dict[str, str]
    worker: subprocess.Popen[bytes]
    home: Path

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the `prefect` command."""
        return subprocess.run(
            [BIN / "prefect", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=check,
        )

    def api(self, path: str, body: object = None) -> Any:
        """Ask the server."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def run(self, spec: Path, state: Path, store: Path, *options: str, check: bool = True) -> Any:
        """Start a run of the deployment."""
        machine = {"block_type_slug": "aicert-local-machine", "state": str(state)}
        folder = {"block_type_slug": "aicert-folder-store", "folder": str(store)}
        return self.prefect(
            *("deployment", "run", "certify/certify", *options),
            *("--param", f"spec_file={spec}"),
            *("--param", f"machine={json.dumps(machine)}"),
            *("--param", f"store={json.dumps(folder)}"),
            check=check,
        )


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    """Return the id of the run that a command started."""
    found = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
    assert found is not None, done
    return found[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    """Set up what an operator sets up, with the commands that the documentation names."""
    home = Path(tempfile.mkdtemp(prefix="aicert-system-"))
    url = f"http://127.0.0.1:{free_port()}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "300",
    }
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port",
             url.rpartition(":")[2]],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    worker = None
    try:

        def answers() -> bool:
            assert server.poll() is None, (home / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{url}/api/health", timeout=2):
                    return True
            except OSError:
                return False

        await_true(answers, 120, "the server answers")
        held = Installation(url, environment, None, home)  # type: ignore[arg-type]
        held.prefect("work-pool", "create", "aicert", "--type", "process")
        held.prefect("block", "register", "-m", "blocks")
        held.prefect("deploy", "--all", "--no-prompt")
        with (home / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [BIN / "prefect", "worker", "start", "--pool", "aicert"],
                cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        held.worker = worker
        yield held
    finally:
        for process in (worker, server):
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(home, ignore_errors=True)


def test_a_run_of_the_deployment_is_certified(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    done = installation.run(write_spec(tmp_path, image=image), state, tmp_path / "s", "--watch")
    assert "finished successfully" in done.stdout
    (digest,) = published(tmp_path / "s")
    run = run_id(done)
    message = installation.api(f"flow_runs/{run}")["state"]["message"]
    assert message == f"certified: {tmp_path.as_uri()}/s/certificates/{digest}/certificate.json"
    # The deployment publishes the weights unless it is told not to.
    assert (tmp_path / "s" / "certificates" / digest / "weights" / "model.bin").exists()
    assert machines(state) == []


def test_a_run_that_fails_says_why_and_the_command_fails(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "echo nan >&2; exit 3", image=image)
    done = installation.run(spec, state, tmp_path / "s", "--watch", check=False)
    assert done.returncode != 0
    run = run_id(done)
    state_now = installation.api(f"flow_runs/{run}")["state"]
    assert state_now["type"] == "FAILED"
    assert state_now["message"].startswith("train: ")
    assert "[training.exit]" in state_now["message"] and "nan" in state_now["message"]


def test_a_parameter_that_does_not_fit_is_refused_at_once(installation: Installation) -> None:
    done = installation.prefect(
        *("deployment", "run", "certify/certify", "--param", "publish_weights=perhaps"),
        check=False,
    )
    assert done.returncode != 0
    assert "perhaps" in done.stdout + done.stderr


def test_a_cancelled_run_ends_container_and_machine_within_ten_seconds(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 100; {CERTIFY}", image=image)
    started = installation.run(spec, state, tmp_path / "s")
    run = run_id(started)
    trains = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    await_true(
        lambda: any(line["message"] == "begun" for line in installation.api("logs/filter", trains)),
        60,
        "the training has begun",
    )
    family = descendants(installation.worker.pid)[1:]
    assert any("swtpm" in member.command for member in family)
    start = time.monotonic()
    installation.prefect("flow-run", "cancel", run)
    await_true(lambda: not mentioning(state), 12, "the machine ends")
    assert time.monotonic() - start < 12  # the command itself takes two of them
    assert_gone(family)
    await_true(
        lambda: installation.api(f"flow_runs/{run}")["state"]["type"] == "CANCELLED",
        30,
        "the run is cancelled",
    )
    assert machines(state) == []
    assert published(tmp_path / "s") == ()


def test_a_killed_run_is_reported_and_swept(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 100; {CERTIFY}", image=image)
    started = installation.run(spec, state, tmp_path / "s")
    run = run_id(started)
    trains = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    await_true(
        lambda: any(line["message"] == "begun" for line in installation.api("logs/filter", trains)),
        60,
        "the training has begun",
    )
    family = descendants(installation.worker.pid)[1:]
    # The process of the flow is the one that started the machine.
    by_pid = {member.pid: member for member in family}
    (unshare,) = [member for member in family if member.command.startswith("unshare")]
    parent = int(Path(f"/proc/{unshare.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(by_pid[parent].pid, 9)
    assert_gone([m for m in family if m.pid == parent or str(state) in m.command])
    await_true(
        lambda: installation.api(f"flow_runs/{run}")["state"]["type"] == "CRASHED",
        30,
        "the run is reported as crashed",
    )
    # The hook that Prefect calls for a crashed run removes the folder.
    await_true(lambda: machines(state) == [], 30, "the folder is swept")
    assert published(tmp_path / "s") == ()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
def test_the_ui_draws_the_card(
    installation: Installation, image: str, state: Path, tmp_path: Path
) -> None:
    done = installation.run(write_spec(tmp_path, image=image), state, tmp_path / "s", "--watch")
    (digest,) = published(tmp_path / "s")
    wanted = {
        "key": {"any_": ["aicert-tiny-certificate-card"]},
        "flow_run_id": {"any_": [run_id(done)]},
    }
    (found,) = installation.api("artifacts/filter", {"artifacts": wanted})
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
        "--virtual-time-budget=15000",
        f"{installation.url}/artifacts/artifact/{found['id']}",
    ]
    page = ""
    # The browser's time is virtual: on a busy machine it may be over before the page has answered.
    for _ in range(6):
        page = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True
        ).stdout
        if "What this proves" in page:
            break
    assert "What this proves" in page
    assert digest in page
