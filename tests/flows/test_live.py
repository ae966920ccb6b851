"""While a step runs: progress, retries, and two runs beside each other."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from pydantic import PrivateAttr

from aicert.agent import machine
from aicert.agent.client import AgentError
from aicert.agent.store import Store, UnreachableError
from blocks import FolderStore, LocalMachine
from flows.certify import certify
from tasks import fetch as fetching
from tasks import publish as publishing
from tests.support.pipeline import CERTIFY, driven, machines, published, write_spec

pytestmark = [pytest.mark.xdist_group("live"), pytest.mark.usefixtures("prefect_server")]

SIZE = 24 << 20


@pytest.fixture
def slow_source() -> Iterator[str]:
    """A source on loopback that takes three seconds for its one file."""

    class Slow(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            self._head()
            for _ in range(24):
                self.wfile.write(bytes(1 << 20))
                time.sleep(0.125)

        def _head(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(SIZE))
            self.send_header("ETag", '"1"')
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/weights.bin"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_long_download_shows_its_progress(
    image: str, state: Path, tmp_path: Path, slow_source: str
) -> None:
    spec = write_spec(tmp_path, image=image, name="slowly", input={"uri": slow_source})
    ended = certify(
        spec_file=str(spec),
        machine=LocalMachine(state=state),
        store=FolderStore(folder=tmp_path / "store"),
        return_state=True,
    )
    assert ended.is_completed(), ended
    with get_client(sync_client=True) as api:
        wanted = ArtifactFilter(key=ArtifactFilterKey(like_="aicert-slowly-fetch-input"))
        (artifact,) = api.read_artifacts(artifact_filter=wanted)
    assert artifact.type == "progress"
    assert artifact.data == 100.0
    assert artifact.description == "input data: 24.0 MiB"


class Flaky:
    """Stands for an agent whose source cannot be reached at first."""

    def __init__(self, failures: int, code: str) -> None:
        self.failures = failures
        self.code = code
        self.calls = 0

    def __enter__(self) -> "Flaky":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def step(
        self, run: str, step: str, body: object, on_event: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        self.calls += 1
        if self.calls <= self.failures:
            raise AgentError({"code": self.code, "message": "no", "final": False})
        return {"step": step, "events": [], "pcrs": {}, "summary": {"inputs": []}}


@pytest.mark.parametrize(
    ("failures", "code", "calls", "ends"),
    [
        (2, "fetch.network", 3, "COMPLETED"),
        (9, "fetch.network", 4, "FAILED"),
        (1, "fetch.digest-mismatch", 1, "FAILED"),
    ],
)
def test_a_fetch_is_tried_again_where_that_may_help(
    failures: int, code: str, calls: int, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Flaky(failures, code)
    monkeypatch.setattr(machine, "attach", lambda handle: agent)
    handle = {"id": "m", "kind": "local", "run": "r", "pid": 1, "directory": "/nowhere"}
    at_once = fetching.fetch.with_options(retry_delay_seconds=0)

    @flow(name="retries")
    def retries() -> str:
        done = at_once(handle, "r", name="m", secrets={}, return_state=True)
        return str(done.type.value)

    assert retries() == ends
    assert agent.calls == calls


class Moody(FolderStore):
    """A store that is there when the run begins, and away twice when it is needed."""

    _block_type_slug = "test-moody-store"
    _calls: int = PrivateAttr(default=0)

    def open(self) -> Store:
        self._calls += 1
        if self._calls in (2, 3):
            raise UnreachableError("the store is away")
        return super().open()


def test_a_store_that_is_away_is_waited_for(
    image: str, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing.publish, "retry_delay_seconds", [0.0])
    store = Moody(folder=tmp_path / "store")
    ended = certify(
        spec_file=str(write_spec(tmp_path, image=image)),
        machine=LocalMachine(state=state),
        store=store,
        return_state=True,
    )
    assert ended.is_completed(), ended
    assert store._calls == 5  # the check, three attempts, and the verification
    assert len(published(tmp_path / "store")) == 1


@pytest.mark.slow
def test_two_runs_beside_each_other_are_both_certified(
    prefect_server: str, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"sleep 1; {CERTIFY}", image=image)

    def one(number: int) -> int:
        with driven(spec, state, tmp_path / "store", prefect_server) as run:
            for _ in run.lines():
                pass
            return run.process.wait()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(one, range(2))) == [0, 0]
    assert len(published(tmp_path / "store")) == 2
    assert machines(state) == []
