"""Many runs at once, and a worker dies half-way: `python -m benchmarks.load`, as root.

Fifty runs of a tiny training are queued on PostgreSQL for one worker, four machines at a time. When
half of them are certified, the worker and all that it started is killed, as if its host were
switched off, and another takes its place. The runs that it had are noticed, then retried, as an
operator would. In the end every run names a certificate of its own, the store has been audited, and
no machine is left.

Prints a table, and writes `results/load.md`.
"""

import argparse
import os
import pwd
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aicert.agent.audit import Demands, audit
from benchmarks.harness import machine
from examples.images import tiny
from tests.support.installation import Installation, installed, machine_of, store_of
from tests.support.pipeline import descendants, machines, published, write_spec

RESULTS = Path(__file__).parent / "results" / "load.md"
SLOTS = 4
ZOMBIE_SECONDS = 45
NAMED = re.compile(r"/certificates/([0-9a-f]{64})/")


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a cluster of its own behind a Unix socket; yield its address as Prefect takes it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    programs, user = found[-1].parent, pwd.getpwnam("postgres")
    folder.mkdir(mode=0o755)
    data, sockets = folder / "data", folder / "run"
    for made in (data, sockets):
        made.mkdir(mode=0o700)
        os.chown(made, user.pw_uid, user.pw_gid)
    who: dict[str, Any] = {
        "user": user.pw_uid, "group": user.pw_gid, "extra_groups": (), "cwd": "/",
        "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL,
    }  # fmt: skip
    make: list[str | Path] = [programs / "initdb", "-D", data, "-A", "peer", "-E", "UTF8"]
    subprocess.run(make, check=True, **who)
    serve: list[str | Path] = [
        programs / "postgres",
        "-D",
        data,
        "-k",
        sockets,
        "-c",
        "listen_addresses=",
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(serve, stderr=log, **who)
    try:
        # As docs/operations.md has it: a role without rights of its own, which the socket knows.
        owner = pwd.getpwuid(os.geteuid()).pw_name
        role: list[str | Path] = [programs / "createuser", "-h", sockets, owner]
        for _ in range(50):
            if not subprocess.run(role, stderr=subprocess.DEVNULL, check=False, **who).returncode:
                break
            time.sleep(0.2)
        make = [programs / "createdb", "-h", sockets, "--owner", owner, "aicert"]
        subprocess.run(make, check=True, **who)
        yield f"postgresql+asyncpg://{owner}@/aicert?host={sockets}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


class Watch:
    """Counts, as long as it is entered, how many machines live at a time."""

    def __init__(self, state: Path) -> None:
        self._state, self._over, self.most = state, threading.Event(), 0

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.most = max(self.most, len(machines(self._state)))

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


class Load:
    """A number of runs of one deployment."""

    def __init__(self, held: Installation, state: Path, store: Path, spec: Path) -> None:
        self.held, self.state, self.store = held, state, store
        self.deployment = held.api("deployments/name/certify/certify")["id"]
        self.parameters = {
            "spec_file": str(spec),
            "machine": machine_of(state),
            "store": store_of(store),
        }
        self.runs: list[str] = []

    def start(self, count: int) -> None:
        """Schedule runs for now."""
        path = f"deployments/{self.deployment}/create_flow_run"
        body = {"parameters": self.parameters, "state": {"type": "SCHEDULED"}}
        self.runs += [str(self.held.api(path, body)["id"]) for _ in range(count)]

    def found(self) -> list[dict[str, Any]]:
        """Return the runs."""
        query = {"flow_runs": {"id": {"any_": self.runs}}, "limit": 200}
        return list(self.held.api("flow_runs/filter", query))

    def states(self) -> Counter[str]:
        """Return how many runs are in which type of state."""
        return Counter(run["state"]["type"] for run in self.found())

    def wait(self, over: "set[str]", count: int, seconds: float) -> None:
        """Wait until so many runs are in a state of these types."""
        deadline = time.monotonic() + seconds
        while sum(self.states()[kind] for kind in over) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"not over after {seconds} s: {self.states()}")
            time.sleep(1)


def reap(held: Installation, state: Path, options: str = "") -> None:
    """Run the reaper on this host."""
    script = "import sys; from blocks import LocalMachine; from flows.reap import reap; "
    script += f"reap(LocalMachine(state=sys.argv[1]), {options})"
    held.command(sys.executable, "-c", script, str(state))


def measure(count: int, home: Path, url: str) -> list[tuple[str, str]]:
    """Do it once; return what was found, by name."""
    tiny.build(home / "image")
    state, store = home / "state", home / "store"
    script = "cat /inputs/data/* > /outputs/model.bin; sleep 2"
    spec = write_spec(home / "job", script, image=f"oci:{home / 'image'}")
    options = ("--slots", str(SLOTS), "--zombie-seconds", str(ZOMBIE_SECONDS))
    setting = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
    with installed(*options, **setting) as held, Watch(state) as watch:
        load = Load(held, state, store, spec)
        begin = time.monotonic()
        load.start(count)
        load.wait({"COMPLETED"}, count // 2, 900)
        until_kill = time.monotonic() - begin
        done = load.states()["COMPLETED"]
        # Prefect's worker has started processes of its own; the host takes all of them with it.
        for process in descendants(held.processes.pop("worker").pid):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        held.start_worker("other")
        # The reaper, with less patience than usual: a run that the worker had taken and not
        # begun is nobody's until then.
        time.sleep(ZOMBIE_SECONDS + 30)
        taken = load.states()["PENDING"]
        reap(held, state, "pending_minutes=1")
        load.wait({"COMPLETED", "CRASHED", "FAILED"}, count, 1200)
        first = load.states()
        settled = time.monotonic() - killed
        failures = []
        # What an operator does in the UI.
        while again := [run for run in load.found() if run["state"]["type"] != "COMPLETED"]:
            for run in again:
                if run["state"]["type"] == "FAILED":
                    failures.append(run["state"]["message"])
                    print(f"{run['name']}: {run['state']['message']}", file=sys.stderr)
                held.prefect("flow-run", "retry", run["id"])
            load.wait({"COMPLETED", "CRASHED", "FAILED"}, count, 600)
        total = time.monotonic() - begin
        reap(held, state)
        ended = load.found()
    demands = Demands(roots=(state / "ca" / "authority" / "root.pem",), allow_simulated=True)
    findings = audit(str(store), None, demands)
    bad = [item for item in findings if item.error is not None]
    digests = set(published(store))
    # None twice, none lost: each run names a certificate, and it is nobody else's.
    named = {match[1] for run in ended if (match := NAMED.search(run["state"]["message"]))}
    more = len(digests - named)
    times = [run["total_run_time"] for run in ended]
    assert not bad and len(named) == count and named <= digests, (bad, len(named), len(digests))
    assert not machines(state), machines(state)
    return [
        ("runs", str(count)),
        ("machines at a time: the limit, the most seen", f"{SLOTS}, {watch.most}"),
        ("certified before the worker was killed", f"{done}, in {until_kill:.0f} s"),
        ("certified a minute, until then", f"{60 * done / until_kill:.1f}"),
        ("lost with the worker, noticed as crashed, retried", str(first["CRASHED"])),
        ("failed, retried", str(len(failures))),
        ("taken by it and not begun, scheduled again by the reaper", str(taken)),
        ("until every other run had ended, from the kill", f"{settled:.0f} s"),
        ("all certified after", f"{total:.0f} s"),
        (
            "a run's own time, median and most",
            f"{statistics.median(times):.1f} s, {max(times):.1f} s",
        ),
        ("certificates, each named by one run", str(len(named))),
        ("more certificates, published by a run that was killed right after", str(more)),
        ("certificates refused by the audit", str(len(bad))),
        ("machines left after the reaper", str(len(machines(state)))),
    ]


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="twelve runs; writes nothing")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="aicert-"))
    home.chmod(0o755)
    before = os.getloadavg()[0]
    try:
        with postgres(home / "postgres") as url:
            rows = measure(12 if options.quick else 50, home, url)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    text = "\n".join([
        "# Many runs, and a worker that dies",
        "",
        "`python -m benchmarks.load`, as root: one worker, and then another, on PostgreSQL, "
        "and a training of two seconds. "
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on {machine()}; the load average "
        f"before was {before:.1f}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ])  # fmt: skip
    print(text)
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
