"""A Prefect server and a worker, set up as an operator does it, for tests that need real ones."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.pipeline import ROOT, Process, await_true, descendants
from tests.support.ports import free_port

BIN = Path(sys.executable).parent
DONE = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


LEASES = "prefect.server.concurrency.lease_storage.filesystem"


@dataclass
class Installation:
    """A server and a worker, and what the command line needs to talk to them."""

    home: Path
    port: int
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the UI is."""
        return f"http://127.0.0.1:{self.port}"

    # -- processes -------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start the server and wait until it answers."""
        self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        await_true(self._answers, 300, "the server answers")

    def start_worker(
        self,
        name: str = "worker",
        limit: int = 8,
        *,
        before: Sequence[str] = (),
        server: str = "127.0.0.1",
    ) -> None:
        """Start a worker, for so many runs at a time. It polls on its own time.

        `before` are the words that start its command on another host, `server` is the server's
        address from there.
        """
        options = ("--pool", "aicert", "--name", name, "--limit", str(limit))
        there = {"PREFECT_API_URL": f"http://{server}:{self.port}/api"}
        self._start(name, "worker", "start", *options, before=before, settings=there)

    def _start(
        self,
        name: str,
        *arguments: str,
        before: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, BIN / "prefect", *arguments],
                cwd=self.home,
                env={**self.environment, **(settings or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        assert self.processes["server"].poll() is None, (self.home / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/api/health", timeout=10):
                return True
        except OSError:
            return False

    def stop(self, name: str) -> None:
        """Let the server or the worker stand still until it is sent SIGCONT."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let it go on."""
        self.processes[name].send_signal(signal.SIGCONT)

    def kill(self, name: str) -> None:
        """Kill the server or the worker, and it alone."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def family(self) -> list[Process]:
        """Return what the worker has started."""
        return descendants(self.processes["worker"].pid)[1:]

    def flow_process(self) -> Process:
        """Return the process of the flow that trains: the one that started the machine."""
        (unshare,) = [item for item in self.family() if item.command.startswith("unshare")]
        parent = int(Path(f"/proc/{unshare.pid}/stat").read_text().rpartition(")")[2].split()[1])
        (found,) = [item for item in self.family() if item.pid == parent]
        return found

    # -- the command line and the API ------------------------------------------------------------

    def command(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout."""
        done = subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert not (check and done.returncode), f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def prefect(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the `prefect` command."""
        return self.command(BIN / "prefect", *arguments, check=check)

    def api(self, path: str, body: object = None, method: str | None = None) -> Any:
        """Ask the server; again where SQLite is busy, as Prefect's own client does.

        A busy machine may keep an answer for a minute: tests that hold the time do so themselves.
        """
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        for patience in (0.2, 0.4, 0.8, 1.6, 3.2, None):
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    text = response.read()
                break
            except urllib.error.HTTPError as error:
                if error.code != 503 or patience is None:
                    raise
                time.sleep(patience)
        return json.loads(text) if text else None

    def run(
        self,
        spec: Path,
        state: Path,
        store: Path,
        *options: str,
        check: bool = True,
        flow: str = "certify",
        **machine: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Start a run of a deployment."""
        return self.prefect(
            *("deployment", "run", f"{flow}/{flow}", *options),
            *("--param", f"spec_file={spec}"),
            *("--param", f"machine={json.dumps(machine_of(state, **machine))}"),
            *("--param", f"store={json.dumps(store_of(store))}"),
            check=check,
        )

    def state(self, run: str) -> dict[str, Any]:
        """Return the state of a run."""
        return dict(self.api(f"flow_runs/{run}")["state"])

    def await_state(self, run: str, *types: str, seconds: float = 240) -> dict[str, Any]:
        """Wait until a run is in a state of one of these types, and return it."""
        await_true(lambda: self.state(run)["type"] in types, seconds, f"{run} is {types}")
        return self.state(run)

    def since(self, run: str, type_: str) -> float:
        """Return how many seconds ago a run came into a type of state."""
        states = self.api(f"flow_run_states/?flow_run_id={run}")
        (stamp,) = [state["timestamp"] for state in states if state["type"] == type_]
        return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()

    def lines(self, run: str) -> list[str]:
        """Return the log of a run."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        return [found["message"] for found in self.api("logs/filter", wanted)]

    def await_line(self, run: str, line: str, seconds: float = 240) -> None:
        """Wait until a line is in the log of a run."""
        await_true(lambda: line in self.lines(run), seconds, f"the log of {run} says {line!r}")


def machine_of(state: Path, **fields: Any) -> dict[str, Any]:
    """Return a machine as a parameter."""
    return {"block_type_slug": "aicert-local-machine", "state": str(state), **fields}


def store_of(folder: Path) -> dict[str, Any]:
    """Return a store as a parameter."""
    return {"block_type_slug": "aicert-folder-store", "folder": str(folder)}


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    """Return the id of the run that a command started."""
    found = re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)
    assert found is not None, done
    return found[1]


@contextmanager
def installed(*options: str, **settings: str) -> Iterator[Installation]:
    """Set up what an operator sets up, with the commands that the documentation names.

    Args:
        options: for `bootstrap`.
        settings: more of Prefect's variables.
    """
    home = Path(tempfile.mkdtemp(prefix="aicert-system-"))
    port = free_port()
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            # Nor does an operator have every process compile the checkout again.
            if not name.startswith("PREFECT_") and name != "PYTHONDONTWRITEBYTECODE"
        },
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "NO_COLOR": "1",
        "COLUMNS": "300",
        **settings,
    }
    held = Installation(home, port, environment)
    try:
        held.start_server()
        held.command(sys.executable, "deployments/bootstrap.py", *options)
        held.start_worker()
        yield held
    finally:
        held.close()
