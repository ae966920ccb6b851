"""The flow, whole: a real machine, a real container, a real Prefect server."""

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter
from prefect.client.schemas.objects import Artifact, State
from prefect.types import SecretDict

from aicert import log
from aicert.agent.places import default_state
from aicert.agent.spec import Spec
from aicert.certificate import Certificate
from blocks import FolderStore, InputCredentials, LocalMachine, VerificationPolicy
from flows.certify import certify, state_of
from tests.support.pipeline import CERTIFY, machines, mentioning, published, write_spec

pytestmark = pytest.mark.xdist_group("certify")

STEPS = ("provision", "job", "fetch", "image", "train", "outputs", "quote", "publish", "verify")


def flow_run_of(state: State[Any]) -> Any:
    return state.state_details.flow_run_id


def client() -> SyncPrefectClient:
    return get_client(sync_client=True)


@dataclass
class Outcome:
    result: dict[str, Any]
    certificate: Certificate
    state: Path
    store: Path
    flow_run: Any
    artifacts: dict[str, Artifact]
    logs: list[str]


@pytest.fixture(scope="module")
def outcome(prefect_server: str, image: str, tmp_path_factory: Any) -> Iterator[Outcome]:
    """Certify a tiny training, once for the tests that look at what came of it."""
    state = Path(tempfile.mkdtemp(prefix="aicert-"))
    folder = tmp_path_factory.mktemp("run")
    spec = write_spec(folder, f"echo epoch 1; echo oops >&2; {CERTIFY}", image=image)
    ended = certify(
        spec_file=str(spec),
        machine=LocalMachine(state=state),
        store=FolderStore(folder=folder / "store"),
        publish_weights=True,
        return_state=True,
    )
    result = ended.result()
    run = flow_run_of(ended)
    with client() as api:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        artifacts = api.read_artifacts(artifact_filter=wanted)
    data = (folder / "store" / "certificates" / result["digest"] / "certificate.json").read_bytes()
    yield Outcome(
        result,
        Certificate.parse(data),
        state,
        folder / "store",
        run,
        {str(artifact.key): artifact for artifact in artifacts},
        [],
    )
    shutil.rmtree(state, ignore_errors=True)


def test_a_training_ends_with_a_certificate_that_its_own_command_verifies(outcome: Outcome) -> None:
    done = subprocess.run(
        shlex.split(outcome.result["verify"]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VERIFIED  tiny")


def test_what_is_published_is_the_certificate_its_manifests_the_card_and_the_weights(
    outcome: Outcome,
) -> None:
    assert published(outcome.store) == (outcome.certificate.digest,)
    entry = outcome.store / "certificates" / outcome.certificate.digest
    assert sorted(p.relative_to(entry).as_posix() for p in entry.rglob("*") if p.is_file()) == [
        "bom.cdx.json",
        "bom.spdx.json",
        "card.html",
        "card.md",
        "certificate.json",
        "manifests/data.json",
        "manifests/outputs.json",
        "model.sig",
        "weights/metrics.json",
        "weights/model.bin",
    ]
    assert (entry / "weights" / "model.bin").read_text() == "hello\n"


def test_every_step_has_an_artifact_under_its_own_key(outcome: Outcome) -> None:
    assert set(outcome.artifacts) == {
        *(f"aicert-tiny-{step}" for step in STEPS),
        "aicert-tiny-certificate-card",
    }


def test_the_artifacts_show_the_digests_of_the_certificates_log(outcome: Outcome) -> None:
    shown: dict[int, tuple[int, str]] = {}
    for step in STEPS:
        text = str(outcome.artifacts[f"aicert-tiny-{step}"].data)
        for record, pcr, digest in re.findall(
            r"\| (\d+) \|[^|]*\| (\d+) \| `([0-9a-f]{64})`", text
        ):
            shown[int(record)] = (int(pcr), digest)
    records = outcome.certificate.records
    assert shown == {n: (r.event.pcr, r.digest.hex()) for n, r in enumerate(records)}


def test_the_artifacts_show_where_the_pcrs_stand_after_each_step(outcome: Outcome) -> None:
    records = outcome.certificate.records
    start = outcome.certificate.baseline_quote.pcrs
    for step, count, pcr in (("job", 1, 14), ("fetch", 2, 14), ("image", 3, 14), ("train", 5, 14),
                             ("outputs", 6, 8)):  # fmt: skip
        value = log.replay(records[:count], start)[pcr].hex()
        assert f"**PCR {pcr}**: `{value}`" in str(outcome.artifacts[f"aicert-tiny-{step}"].data)


def test_the_card_has_the_verdict_where_it_is_and_the_command(outcome: Outcome) -> None:
    card = str(outcome.artifacts["aicert-tiny-certificate-card"].data)
    assert "**Verified, assurance `simulated`**" in card
    assert outcome.result["certificate"] in card
    assert "--allow-simulated" in card
    assert f"sha256:{outcome.certificate.digest}" in card


def test_metrics_are_shown_as_the_trainings_own_word(outcome: Outcome) -> None:
    shown = str(outcome.artifacts["aicert-tiny-train"].data)
    assert "as reported by the training" in shown
    assert "| loss | `0.5` |" in shown
    assert outcome.result["metrics"] == {"loss": 0.5}


def test_the_trainings_lines_are_in_the_runs_log(outcome: Outcome) -> None:
    with client() as api:
        wanted = LogFilter.model_validate({"flow_run_id": {"any_": [str(outcome.flow_run)]}})
        for _ in range(2400):  # the log is sent in batches
            lines = [entry.message for entry in api.read_logs(log_filter=wanted, limit=200)]
            if "epoch 1" in lines and "oops" in lines:
                return
            time.sleep(0.1)
    raise AssertionError(lines)


def test_the_task_runs_are_one_chain(outcome: Outcome) -> None:
    with client() as api:
        graph = api._client.get(f"/flow_runs/{outcome.flow_run}/graph-v2").json()
    nodes = {node["id"]: node for _, node in graph["nodes"]}
    chain = {
        node["label"]: {nodes[parent["id"]]["label"] for parent in node["parents"]}
        for node in nodes.values()
    }
    order = (*STEPS, "destroy")
    assert chain == {
        step: (set() if index == 0 else {order[index - 1]}) for index, step in enumerate(order)
    }


def test_nothing_of_the_machine_is_left(outcome: Outcome) -> None:
    assert machines(outcome.state) == []
    assert mentioning(outcome.state) == []


# -- what goes wrong -----------------------------------------------------------------------------


def fail(spec: Path, state: Path, **parameters: Any) -> str:
    """Run a flow that must fail; return its state's message, after a look for leftovers."""
    store = spec.parent / "store"
    ended = certify(
        spec_file=str(spec),
        machine=LocalMachine(state=state),
        store=FolderStore(folder=store),
        return_state=True,
        **parameters,
    )
    assert ended.is_failed(), ended
    assert published(store) == ()
    assert machines(state) == []
    assert mentioning(state) == []
    return str(ended.message)


@pytest.mark.usefixtures("prefect_server")
class TestFailures:
    """Each names what went wrong, publishes nothing, and leaves nothing behind."""

    def test_a_training_that_fails(self, image: str, state: Path, tmp_path: Path) -> None:
        spec = write_spec(tmp_path, "echo epoch 1; echo nan loss >&2; exit 3", image=image)
        message = fail(spec, state)
        assert message.startswith("train: ")
        assert "[training.exit]" in message
        assert "epoch 1" in message and "nan loss" in message

    def test_a_training_that_takes_too_long(self, image: str, state: Path, tmp_path: Path) -> None:
        spec = write_spec(tmp_path, "sleep 60", image=image, limits={"time": 1})
        assert "[training.timeout]" in fail(spec, state)

    def test_a_training_that_takes_too_much_memory(
        self, image: str, state: Path, tmp_path: Path
    ) -> None:
        script = "dd if=/dev/zero of=/dev/null bs=512M count=1"
        spec = write_spec(tmp_path, script, image=image, limits={"memory": "32MiB"})
        assert "[training.out-of-memory]" in fail(spec, state)

    def test_an_input_that_is_not_the_expected_one(
        self, image: str, state: Path, tmp_path: Path
    ) -> None:
        spec = write_spec(tmp_path, image=image, input={"sha256": "ab" * 32})
        message = fail(spec, state)
        assert message.startswith("fetch: ")
        assert "[fetch.digest-mismatch]" in message
        assert "ab" * 32 in message

    def test_an_input_that_is_not_there(self, image: str, state: Path, tmp_path: Path) -> None:
        spec = write_spec(tmp_path, image=image, input={"uri": "file:///nowhere"})
        assert "[fetch.not-found]" in fail(spec, state)

    def test_an_image_that_is_not_there(self, state: Path, tmp_path: Path) -> None:
        spec = write_spec(tmp_path, image="oci:/nowhere")
        message = fail(spec, state)
        assert message.startswith("image: ")
        assert "[image.not-found]" in message

    def test_outputs_that_were_not_made(self, image: str, state: Path, tmp_path: Path) -> None:
        spec = write_spec(tmp_path, image=image, outputs=["model.safetensors"])
        assert "[run.outputs]" in fail(spec, state)

    def test_a_certificate_that_the_policy_refuses(
        self, image: str, state: Path, tmp_path: Path
    ) -> None:
        message = fail(write_spec(tmp_path, image=image), state, policy=VerificationPolicy())
        assert message.startswith("publish: ")

    def test_a_store_that_cannot_be_written(self, image: str, state: Path, tmp_path: Path) -> None:
        spec = write_spec(tmp_path, image=image)
        (tmp_path / "file").write_text("in the way")
        ended = certify(
            spec_file=str(spec),
            machine=LocalMachine(state=state),
            store=FolderStore(folder=tmp_path / "file" / "store"),
            return_state=True,
        )
        assert ended.is_failed()
        assert str(ended.message).startswith("store: ")
        assert not (state / "machines").exists()  # found out before anything was started


@pytest.mark.usefixtures("prefect_server")
class TestSpecs:
    """Mistakes in a spec are named before anything is started."""

    def test_a_file_with_mistakes(self, state: Path, tmp_path: Path) -> None:
        path = tmp_path / "spec.yaml"
        path.write_text("name: Bad Name\nimage: oci:x\ncommand: [a]\nlimitz: {}\n")
        message = fail(path, state)
        assert message.startswith("spec: ")
        assert f"{path}:1:7" in message
        assert "limitz" in message
        assert not (state / "machines").exists()

    def test_neither_and_both(self, image: str, state: Path, tmp_path: Path) -> None:
        spec = Spec.model_validate(
            {"name": "a", "image": image, "command": ["true"], "limits": {"memory": "64MiB"}}
        )
        for given, file in ((None, None), (spec, "x")):
            ended = certify(
                spec=given, spec_file=file, machine=LocalMachine(state=state), return_state=True
            )
            assert ended.is_failed()
            assert "[run.spec-choice]" in str(ended.message)

    def test_a_spec_by_fields_needs_no_file(self, image: str, state: Path, tmp_path: Path) -> None:
        write_spec(tmp_path, image=image)
        fields = json.loads((tmp_path / "spec.json").read_text())
        ended = certify(
            spec=fields,
            base=str(tmp_path),
            machine=LocalMachine(state=state, algorithm="rsa"),
            store=FolderStore(folder=tmp_path / "store"),
            return_state=True,
        )
        assert ended.is_completed(), ended
        result = ended.result()
        assert result["weights"] is None
        assert published(tmp_path / "store") == (result["digest"],)
        assert not (tmp_path / "store" / "certificates" / result["digest"] / "weights").exists()


@pytest.mark.usefixtures("prefect_server")
class TestCleanUp:
    """What Prefect calls for a run whose process was killed."""

    def test_it_sweeps_the_state_of_the_machine_that_the_run_was_given(self, state: Path) -> None:
        LocalMachine(state=state).save("swept", overwrite=True)
        reference = {"$ref": {"block_document_slug": "aicert-local-machine/swept"}}
        assert state_of(reference) == state
        assert state_of({"state": str(state), "algorithm": "ecc"}) == state
        assert state_of(None) == default_state()


def test_secrets_reach_the_agent_alone(
    prefect_server: str, image: str, state: Path, tmp_path: Path
) -> None:
    secret = "correct-horse-battery-staple"
    secrets = {"data": {"headers": {"X-Key": secret}}}
    asked: list[str | None] = []

    class Source(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("X-Key"))
            self.send_response(200 if asked[-1] == secret else 401)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_address[1]}/a.txt"
        ended = certify(
            spec_file=str(write_spec(tmp_path, image=image, name="quiet", input={"uri": uri})),
            machine=LocalMachine(state=state, keep_failed=True),
            store=FolderStore(folder=tmp_path / "store"),
            credentials=InputCredentials(secrets=SecretDict(secrets)),
            return_state=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert ended.is_completed(), ended
    assert secret in asked
    run = str(flow_run_of(ended))
    with client() as api:
        wanted = {"flow_run_id": {"any_": [run]}}
        # Logs arrive in batches, later than the run's end on a busy machine.
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            logs = api._client.post("/logs/filter", json={"logs": wanted, "limit": 200}).text
            if "Finished in state" in logs:
                break
            time.sleep(0.5)
        known = [
            api._client.get(f"/flow_runs/{run}").text,
            logs,
            api._client.post("/artifacts/filter", json={"artifacts": wanted}).text,
            api._client.post(
                "/task_runs/filter", json={"flow_runs": {"id": wanted["flow_run_id"]}}
            ).text,
        ]
    assert all(run in text or "quiet" in text for text in known)
    assert not any(secret in text for text in known)
    files = [p for p in (tmp_path / "store").rglob("*") if p.is_file()]
    assert files and not any(secret.encode() in p.read_bytes() for p in files)
