"""The agent, whole: a real machine, a real TPM in software, real containers, over its socket."""

import dataclasses
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert import canonical, log, tpm2
from aicert.agent import machine, service
from aicert.agent.ca import DevelopmentCa, Enrollment
from aicert.agent.client import AgentClient, AgentError, LostAgentError
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.agent.run import Run, compile_pattern, select_outputs
from aicert.agent.service import Service, Step
from aicert.agent.spec import Spec, parse
from aicert.agent.swtpm import Swtpm, manufacture
from aicert.agent.tpm import Tpm
from aicert.certificate import Certificate
from aicert.errors import Error
from aicert.manifest import File
from aicert.trust import TrustStore
from aicert.verify import Assurance, Verdict, verify
from examples.images import tiny
from tests.agent.fetch.web import Handler, Page, Web
from tests.support.pipeline import await_true

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="machines need namespaces and containers: run the tests as root"
)

TRAIN = "cat /inputs/data/in.txt; echo w > /outputs/model.bin; printf '{\"loss\": 0.5}' > " + (
    "/outputs/metrics.json"
)


RUN = "6f1c0a52-6a2e-4c39-9a0f-0d6ad8f3b7c1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny image, an input, and the state of the machines."""
    folder = tmp_path_factory.mktemp("run")
    tiny.build(folder / "image")
    (folder / "in.txt").write_text("hello")
    return folder


def spec(command: str = TRAIN, **changes: Any) -> Spec:
    text = canonical.dumps(
        {
            "name": "tiny",
            "image": "oci:image",
            "command": ["sh", "-c", command],
            "inputs": [{"name": "data", "uri": "file:in.txt"}],
            **changes,
        }
    ).decode()
    return parse(text, source="test.json")


@dataclasses.dataclass
class Live:
    """A machine and a run on it."""

    handle: MachineHandle
    place: Path
    run: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.client: AgentClient = machine.attach(self.handle)

    def job(self, made: Spec) -> dict[str, Any]:
        return self.step("job", {"spec": made.to_json(), "base": str(self.place)})

    def step(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.client.step(self.run, name, body, self.events.append)

    def all(self, made: Spec) -> bytes:
        self.job(made)
        for name in Run.STEPS[1:]:
            self.step(name)
        return self.client.certificate(self.run)


@pytest.fixture
def config(place: Path) -> MachineConfig:
    return MachineConfig(state=place / "state")


@pytest.fixture
def live(config: MachineConfig, place: Path) -> Iterator[Live]:
    handle = machine.start(config, "run")
    try:
        yield Live(handle, place)
    finally:
        machine.destroy(handle)


def trust(place: Path) -> TrustStore:
    return TrustStore.builtin().with_roots(place / "state" / "ca" / "authority" / "root.pem")


def verified(data: bytes, place: Path, model: Path | None = None) -> Verdict:
    return verify(data, trust=trust(place), model=model, least=Assurance.SIMULATED)


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_a_run_ends_with_a_certificate_that_verifies_with_its_files(
    place: Path, tmp_path: Path, algorithm: Any
) -> None:
    handle = machine.start(MachineConfig(state=place / "state", algorithm=algorithm), "run")
    try:
        live = Live(handle, place)
        data = live.all(spec())
        model = tmp_path / "model"
        model.mkdir()
        for name in ("model.bin", "metrics.json"):
            (model / name).write_bytes(b"".join(live.client.open_file(live.run, "outputs", name)))
        inputs = b"".join(live.client.open_file(live.run, "manifests", "data"))
        log_bytes = b"".join(live.client.open_file(live.run, "logs", "training.log"))
    finally:
        machine.destroy(handle)
    verdict = verified(data, place, model)
    assert verdict.assurance is Assurance.SIMULATED
    run = verdict.run
    assert run.job.run == live.run
    assert run.end.metrics is not None
    assert run.end.metrics.values == {"loss": 0.5}
    assert canonical.sha256(canonical.loads(inputs, max_bytes=1 << 20)) == run.inputs[0].manifest
    assert log_bytes == b"hello"
    assert {"type": "log", "stream": "stdout", "line": "hello"} in live.events
    assert not handle.directory.exists()


def test_two_runs_give_two_certificates_and_equal_weights(
    config: MachineConfig, place: Path
) -> None:
    made = []
    for _ in range(2):
        handle = machine.start(config, "run")
        try:
            made.append(Certificate.parse(Live(handle, place).all(spec())))
        finally:
            machine.destroy(handle)
    one, two = made
    assert one.digest != two.digest
    roots = {log.parse_run(c.records).outputs.manifest.root for c in made}
    assert len(roots) == 1


def test_openssl_accepts_the_chain_and_the_signature(
    live: Live, place: Path, tmp_path: Path
) -> None:
    certificate = Certificate.parse(live.all(spec()))
    for name, der in zip(("leaf", "ca", "root"), certificate.attestation_key.chain, strict=True):
        (tmp_path / f"{name}.der").write_bytes(der)
        subprocess.run(
            ["openssl", "x509", "-inform", "DER", "-in", tmp_path / f"{name}.der", "-out",
             tmp_path / f"{name}.pem"],
            check=True,
        )  # fmt: skip
    subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "root.pem", "-untrusted",
         tmp_path / "ca.pem", tmp_path / "leaf.pem"],
        check=True,
    )  # fmt: skip
    key = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "leaf.pem", "-noout", "-pubkey"],
        check=True,
        capture_output=True,
    ).stdout
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "signed").write_bytes(certificate.signed_bytes)
    (tmp_path / "signature").write_bytes(certificate.signature)
    quote = certificate.quote
    (tmp_path / "message").write_bytes(quote.message)
    (tmp_path / "quote").write_bytes(tpm2.parse_signature(quote.signature).encoded)
    for data, signature in (("signed", "signature"), ("message", "quote")):
        subprocess.run(
            ["openssl", "dgst", "-sha256", "-verify", tmp_path / "key.pem", "-signature",
             tmp_path / signature, tmp_path / data],
            check=True,
        )  # fmt: skip


def test_a_step_out_of_order_is_refused(live: Live) -> None:
    with pytest.raises(AgentError) as caught:
        live.step("fetch")
    assert caught.value.code == "run.order"
    live.job(spec())
    with pytest.raises(AgentError) as caught:
        live.step("train")
    assert caught.value.code == "run.order"
    live.step("fetch")  # the run goes on


def test_a_step_asked_for_again_returns_the_record_that_it_made(live: Live) -> None:
    first = live.job(spec())
    assert live.job(spec()) == first
    fetched = live.step("fetch")
    assert live.step("fetch") == fetched
    health = live.client.health()
    assert health["steps"] == {"job": "done", "fetch": "done"}


@pytest.mark.parametrize(
    "changes", [{"spec": spec(name="other").to_json()}, {"base": "/"}, {"nonce": "00" * 32}]
)
def test_a_job_asked_for_again_with_something_else_is_refused(
    live: Live, changes: dict[str, Any]
) -> None:
    live.job(spec())
    asked = {"spec": spec().to_json(), "base": str(live.place)}
    with pytest.raises(AgentError) as caught:
        live.step("job", asked | changes)
    assert caught.value.code == "run.other-spec"
    assert live.step("job", asked)["step"] == "job"


def test_a_step_that_is_running_can_be_joined_from_its_first_line(live: Live) -> None:
    live.job(spec("echo first; sleep 2; echo last; echo x > /outputs/x"))
    for name in ("fetch", "image"):
        live.step(name)
    seen: list[list[str]] = [[], []]
    records: list[Any] = [None, None]

    def follow(index: int) -> None:
        with machine.attach(live.handle) as client:
            records[index] = client.step(
                live.run, "train", {}, lambda e: seen[index].append(str(e.get("line")))
            )

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records[0] == records[1]
    assert seen[0] == seen[1] == ["first", "last"]


def test_the_agent_serves_one_run(live: Live) -> None:
    live.job(spec())
    with pytest.raises(AgentError) as caught:
        live.client.step(str(uuid.uuid4()), "job", {"spec": spec().to_json()})
    assert caught.value.code == "run.busy"


def test_a_step_that_failed_before_measuring_may_be_tried_again(live: Live, place: Path) -> None:
    live.job(spec(inputs=[{"name": "data", "uri": "file:later.txt"}]))
    with pytest.raises(AgentError) as caught:
        live.step("fetch")
    assert caught.value.code == "fetch.not-found"
    assert not caught.value.final
    (place / "later.txt").write_text("here now")
    try:
        assert live.step("fetch")["summary"]["inputs"][0]["size"] == 8
    finally:
        (place / "later.txt").unlink()


def test_an_input_without_such_records_stops_the_run_before_anything_is_measured(
    live: Live, place: Path
) -> None:
    live.job(spec(inputs=[
        {"name": "code", "uri": "file:in.txt"},
        {"name": "data", "uri": "file:in.txt", "records": "jsonl"},
    ]))  # fmt: skip
    for _ in range(2):  # what was fetched is taken up again
        with pytest.raises(AgentError) as caught:
            live.step("fetch")
        assert caught.value.code == "records.invalid"
        assert "in.txt, line 1" in caught.value.diagnostics()
        assert not caught.value.final


def test_records_are_committed_to_with_progress_and_leave_no_files(live: Live, place: Path) -> None:
    (place / "lines.txt").write_text("one\ntwo\none\n")
    rows = Path(__file__).parents[1] / "parquet" / "duckdb.parquet"
    live.job(spec(inputs=[
        {"name": "data", "uri": "file:lines.txt", "records": "lines"},
        {"name": "rows", "uri": rows.as_uri(), "records": "parquet"},
    ]))  # fmt: skip
    held = [item["records"] for item in live.step("fetch")["summary"]["inputs"]]
    assert [(one["method"], one["count"]) for one in held] == [("lines/1", 3), ("parquet/1", 500)]
    assert held[0]["distinct"] == 2
    assert any(event.get("what") == "records of data" for event in live.events)
    left = [path.name for path in live.handle.directory.rglob(".records-*")]
    assert left == []


def test_an_input_with_another_digest_stops_the_run_and_names_the_file(live: Live) -> None:
    live.job(spec(inputs=[{"name": "data", "uri": "file:in.txt", "sha256": "00" * 32}]))
    with pytest.raises(AgentError) as caught:
        live.step("fetch")
    assert caught.value.code == "fetch.digest-mismatch"
    assert "in.txt" in caught.value.diagnostics()
    assert caught.value.expected is not None
    with pytest.raises(AgentError) as caught:
        live.client.certificate(live.run)
    assert caught.value.code == "run.unknown"


def test_an_input_that_is_wrong_stops_the_others(live: Live) -> None:
    def slow(handler: Handler) -> bool:
        time.sleep(0.5)
        return False

    with Web() as web:
        web.pages["/large"] = Page(bytes(256 << 20), always=slow)
        live.job(spec(inputs=[
            {"name": "large", "uri": f"{web.url}/large"},
            {"name": "wrong", "uri": "file:in.txt", "sha256": "00" * 32},
        ]))  # fmt: skip
        with pytest.raises(AgentError) as caught:
            live.step("fetch")
        assert caught.value.code == "fetch.digest-mismatch"
        assert len(web.asked) <= 1 + 4  # to see what is there, and what was on its way


def test_a_failed_training_ends_the_run_for_good(live: Live) -> None:
    live.job(spec("echo why it failed; exit 7"))
    for name in ("fetch", "image"):
        live.step(name)
    with pytest.raises(AgentError) as caught:
        live.step("train")
    assert caught.value.code == "training.exit"
    assert caught.value.final
    assert "why it failed" in caught.value.diagnostics()
    for name, code in (("train", "run.spent"), ("outputs", "run.spent")):
        with pytest.raises(AgentError) as caught:
            live.step(name)
        assert caught.value.code == code


def test_a_missing_output_is_named_with_what_was_written(live: Live) -> None:
    live.job(spec("echo x > /outputs/wrong.bin", outputs=["*.safetensors"]))
    for name in ("fetch", "image", "train"):
        live.step(name)
    with pytest.raises(AgentError) as caught:
        live.step("outputs")
    assert caught.value.code == "run.outputs"
    assert (caught.value.got, caught.value.expected) == ("wrong.bin", "*.safetensors")


def test_a_training_starts_no_more_threads_than_its_share_can_feed(live: Live) -> None:
    live.job(spec("echo $OMP_NUM_THREADS", limits={"cpus": 2.5}))
    for name in ("fetch", "image", "train"):
        live.step(name)
    assert {"type": "log", "stream": "stdout", "line": "2"} in live.events


def test_the_spec_has_the_last_word_on_threads(live: Live) -> None:
    live.job(spec("echo $OMP_NUM_THREADS", environment={"OMP_NUM_THREADS": "7"}))
    for name in ("fetch", "image", "train"):
        live.step(name)
    assert {"type": "log", "stream": "stdout", "line": "7"} in live.events


def test_the_image_is_not_kept_beside_the_engines_own(live: Live) -> None:
    live.job(spec())
    live.step("fetch")
    live.step("image")
    assert not list((live.handle.directory).rglob("oci-layout"))


def test_hashing_many_files_is_told_now_and_then_and_not_for_each(live: Live) -> None:
    live.job(spec("for a in 0 1 2 3 4 5 6 7 8 9; do for b in 0 1 2 3 4 5 6 7 8 9; do "
                  f"echo > /outputs/$a$b; done; done; {TRAIN}"))  # fmt: skip
    for name in ("fetch", "image", "train"):
        live.step(name)
    before, start = len(live.events), time.monotonic()
    live.step("outputs")
    assert len(live.events) - before <= (time.monotonic() - start) * 5 + 1


def test_a_link_among_the_outputs_is_refused(live: Live) -> None:
    live.job(spec("ln -s /etc/passwd /outputs/model.bin"))
    for name in ("fetch", "image", "train"):
        live.step(name)
    with pytest.raises(AgentError) as caught:
        live.step("outputs")
    assert caught.value.code == "manifest.link"


@pytest.mark.parametrize(
    "content", ['{"a": [1]}', "not json", '{"a": 1, "a": 2}', '{"a": NaN}', "[1]"]
)
def test_metrics_that_cannot_be_taken_are_left_out_with_a_warning(live: Live, content: str) -> None:
    live.job(spec(f"printf '%s' '{content}' > /outputs/metrics.json"))
    for name in ("fetch", "image"):
        live.step(name)
    record = live.step("train")
    assert record["summary"]["metrics"] is None
    assert "metrics.json" in record["summary"]["warning"]
    assert any("warning" in str(event.get("line")) for event in live.events)


def test_metrics_are_not_read_through_a_link_to_the_hosts_files(live: Live, place: Path) -> None:
    (place / "private.json").write_text('{"secret": 1}')
    script = f"ln -s {place} /outputs/sub; ln -s {place}/private.json /outputs/m.json"
    live.job(spec(script, metrics="sub/private.json"))
    for name in ("fetch", "image"):
        live.step(name)
    summary = live.step("train")["summary"]
    assert summary["metrics"] is None
    assert "sub/private.json is not recorded" in summary["warning"]


def test_metrics_may_lie_in_a_folder(live: Live) -> None:
    live.job(spec("mkdir /outputs/sub; echo '{\"loss\": 1}' > /outputs/sub/m.json",
                  metrics="sub/m.json"))  # fmt: skip
    for name in ("fetch", "image"):
        live.step(name)
    assert live.step("train")["summary"]["metrics"] == {"loss": 1}


def test_cancelling_stops_the_training_and_the_run(live: Live) -> None:
    live.job(spec("echo started; sleep 600"))
    for name in ("fetch", "image"):
        live.step(name)

    def cancel_when_started(event: dict[str, Any]) -> None:
        if event.get("line") == "started":
            with machine.attach(live.handle) as other:
                other.cancel(live.run)

    with pytest.raises(AgentError) as caught:
        live.client.step(live.run, "train", {}, cancel_when_started)
    assert caught.value.code == "training.cancelled"
    assert caught.value.final


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("outputs", "model.bin"),
        ("outputs", "../training.log"),
        ("outputs", "%2e%2e/training.log"),
        ("logs", "../../agent.log"),
        ("manifests", "../ca"),
        ("manifests", "data"),  # it has none yet
        ("manifests", "outputs"),
        ("state", "x"),
    ],
)
def test_only_the_runs_own_files_are_served(live: Live, kind: str, path: str) -> None:
    live.job(spec())
    with pytest.raises(AgentError) as caught:
        list(live.client.open_file(live.run, kind, path))
    assert caught.value.code in ("run.unknown", "agent.http")


def test_the_key_cannot_be_certified_anew_once_the_run_has_begun(live: Live) -> None:
    live.job(spec())
    with pytest.raises(AgentError) as caught:
        live.client.set_ak_certificate([b"anything"])
    assert caught.value.code == "run.order"
    with pytest.raises(AgentError) as caught:
        live.client.activate(b"x", b"y")
    assert caught.value.code == "run.order"


def test_a_spec_with_a_mistake_is_refused_by_the_agent_too(live: Live) -> None:
    wrong = {**spec().to_json(), "limits": {"memory": -1}}
    with pytest.raises(AgentError) as caught:
        live.step("job", {"spec": wrong})
    assert caught.value.code == "spec.invalid"


def test_a_request_that_the_api_does_not_have_is_refused_before_anything_is_done(
    live: Live,
) -> None:
    http = live.client._http
    whole: dict[str, Any] = {"spec": spec().to_json(), "base": str(live.place)}
    bases: list[Any] = [5, "here", "", "/a\0b", {}]
    nonces: list[Any] = [7, "00", "ZZ" * 32, ""]
    bad: list[Any] = [{"base": base} for base in bases] + [{"nonce": nonce} for nonce in nonces]
    bad += [{"secrets": {}}, {"more": 1}]
    for step, content in [
        ("job", b"x" * (5 << 20)),
        *(("job", content) for content in (b"{", b'{"a":1,"a":2}', b"[1]", b"null", b"\xff", b"")),
        *(("job", canonical.dumps(whole | changes)) for changes in bad),
        *(("fetch", canonical.dumps({"secrets": value})) for value in ("a", [1], {"data": "a"})),
        ("train", b'{"command": ["sh"]}'),
    ]:
        response = http.post(f"/runs/{live.run}/steps/{step}", content=content)
        assert response.status_code == 409, content
        assert response.json()["error"]["code"].startswith(("api.request", "json.")), content
    response = http.post("/runs/not-a-uuid/steps/job", content=canonical.dumps(whole))
    assert response.json()["error"]["code"] == "api.request"
    assert live.client.health()["run"] is None
    live.job(spec())  # the agent is still free for a run


def test_a_job_that_failed_after_its_baseline_may_be_tried_again(
    inside: tuple[Swtpm, Tpm, Service], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tpm, service = inside
    body = {"spec": spec().to_json(), "base": str(place)}

    def refuse(pcr: int, digest: bytes) -> None:
        raise Error("the TPM is busy")

    with monkeypatch.context() as patch:
        patch.setattr(tpm, "extend", refuse)
        assert list(service.start(RUN, "job", body).follow())[-1]["type"] == "error"
    assert list(service.start(RUN, "job", body).follow())[-1]["type"] == "record"


def test_a_dead_agent_is_a_lost_agent(config: MachineConfig, place: Path) -> None:
    handle = machine.start(config, "run")
    live = Live(handle, place)
    machine.destroy(handle)
    with pytest.raises(LostAgentError):
        live.client.health()


def test_the_socket_and_its_folder_are_the_owners_alone(live: Live) -> None:
    assert live.handle.socket.stat().st_mode & 0o777 == 0o600
    assert live.handle.directory.stat().st_mode & 0o777 == 0o700


def test_a_killed_machine_is_swept_by_the_next_start(config: MachineConfig, place: Path) -> None:
    handle = machine.start(config, "run")
    live = Live(handle, place)
    live.job(spec())
    live.step("fetch")
    with machine._lock:
        process, keeper = machine._keeps.pop(handle.id)
    assert process is not None
    process.kill()
    process.wait()
    os.close(keeper)
    assert handle.directory.exists()
    deadline = time.monotonic() + 120
    while machine._held(handle.directory):  # the kernel ends the namespace on its own time
        assert time.monotonic() < deadline
        time.sleep(0.05)
    after = machine.start(config, "run")
    try:
        assert not handle.directory.exists()
        assert after.directory.exists()
    finally:
        machine.destroy(after)


def abandon(handle: MachineHandle) -> None:
    """Let go of a machine as the kernel does it for a process that dies."""
    with machine._lock:
        _, keeper = machine._keeps.pop(handle.id)
    os.close(keeper)


def lives(handle: MachineHandle) -> bool:
    return machine._held(handle.directory)


def test_a_machine_ends_with_the_process_that_keeps_it(config: MachineConfig) -> None:
    handle = machine.start(config, "run")
    try:
        abandon(handle)
        await_true(lambda: not lives(handle), 120, "the machine ends")
    finally:
        machine.destroy(handle)


def test_a_machine_that_outlives_its_process_goes_on_where_it_stood(
    config: MachineConfig, place: Path
) -> None:
    config = dataclasses.replace(config, outlive=60)
    handle = machine.start(config, RUN, {"flowRun": "a"})
    try:
        Live(handle, place, RUN).job(spec())
        assert machine.adopt(config, {"flowRun": "b"}) is None
        abandon(handle)
        assert machine.sweep(config.state) == []
        adopted = machine.adopt(config, {"flowRun": "a"})
        assert adopted == handle
        live = Live(adopted, place, RUN)
        assert live.job(spec())["summary"]["spec"]  # joined: it is not measured a second time
        assert live.client.health()["steps"] == {"job": "done"}
        live.step("fetch")
        machine.destroy(adopted)
        assert not lives(handle)
        assert not handle.directory.exists()
    finally:
        machine.destroy(handle)


def test_a_machine_that_is_kept_by_another_is_not_taken_over(config: MachineConfig) -> None:
    config = dataclasses.replace(config, outlive=60)
    handle = machine.start(config, RUN, {"flowRun": "a"})
    try:
        with machine._lock:
            held = machine._keeps.pop(handle.id)  # as if another process held it
        assert machine.adopt(config, {"flowRun": "a"}) is None
        assert lives(handle)
        with machine._lock:
            machine._keeps[handle.id] = held
    finally:
        machine.destroy(handle)


def test_a_machine_that_nobody_adopts_ends_by_itself(config: MachineConfig) -> None:
    handle = machine.start(dataclasses.replace(config, outlive=1), RUN, {"flowRun": "a"})
    try:
        machine.release(handle)
        assert lives(handle)
        await_true(lambda: not lives(handle), 120, "the machine ends")
    finally:
        machine.destroy(handle)


def test_a_machine_whose_run_is_spent_is_not_adopted(config: MachineConfig, place: Path) -> None:
    config = dataclasses.replace(config, outlive=60)
    handle = machine.start(config, RUN, {"flowRun": "a"})
    try:
        live = Live(handle, place, RUN)
        live.job(spec())
        live.client.cancel(RUN)
        machine.release(handle)
        assert machine.adopt(config, {"flowRun": "a"}) is None
        assert not lives(handle)
    finally:
        machine.destroy(handle)


def test_what_a_run_left_is_deleted_after_its_machine_was_destroyed(
    config: MachineConfig, place: Path
) -> None:
    handle = machine.start(config, "run")
    try:
        live = Live(handle, place)
        live.job(spec())
        live.step("fetch")  # frozen inputs are in it now
    finally:
        machine.destroy(handle)
    assert not handle.directory.exists()
    removed = config.state / "removed"
    await_true(lambda: list(removed.iterdir()) == [], 20, "what was removed is deleted")


def test_a_deletion_that_was_cut_is_taken_up_by_the_next_start(config: MachineConfig) -> None:
    left = config.state / "removed" / "left"
    (left / "frozen").mkdir(parents=True)
    (left / "frozen" / "file").write_bytes(b"x")
    (left / "frozen").chmod(0o555)
    outside = config.state / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x")
    (left / "link").symlink_to(outside)
    assert machine.sweep(config.state) == []
    await_true(lambda: not left.exists(), 20, "what was removed is deleted")
    assert (outside / "file").exists()


def test_a_folder_that_is_kept_is_not_swept(config: MachineConfig) -> None:
    handle = machine.start(config, "run")
    store, outputs = (handle.directory / "run" / name for name in ("engine/store", "outputs"))
    for folder in (store, outputs):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_bytes(b"x")
    machine.destroy(handle, keep=True)
    assert machine.sweep(config.state) == []
    assert handle.directory.exists()
    assert not lives(handle)
    assert (outputs / "file").exists()
    # All but the unpacked image: that is large, and known by its digest.
    assert not store.exists()
    removed = config.state / "removed"
    await_true(lambda: list(removed.iterdir()) == [], 20, "the image is deleted")


def test_a_state_folder_with_too_long_a_path_is_named(tmp_path: Path) -> None:
    state = tmp_path / ("x" * 100)
    with pytest.raises(machine.StatePathError, match="too long") as caught:
        machine.start(MachineConfig(state=state), "run")
    assert caught.value.advice
    assert not state.exists()


# -- within one process, where the TPM can be reached behind the agent's back --------------------


@pytest.fixture
def inside(place: Path, short_tmp: Path) -> Iterator[tuple[Swtpm, Tpm, Service]]:
    ca = DevelopmentCa.open_or_create(place / "state" / "ca")
    manufacture(short_tmp / "tpm", ca)
    with Swtpm(short_tmp / "tpm") as device, Tpm(device.tcti) as tpm:
        service = Service(tpm, state=short_tmp / "run")
        enrollment = Enrollment(ca, ca.ek_roots)
        challenge = enrollment.begin(service.identity())
        secret = service.activate(challenge.credential_blob, challenge.encrypted_secret)
        service.set_chain(tuple(enrollment.finish(secret)))
        yield device, tpm, service
        service.close()


def advance(
    service: Service, place: Path, between: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Do every step, with something happening before the quote; return the last message."""
    run = str(uuid.uuid4())
    message: dict[str, Any] = {}
    for name in Run.STEPS:
        if name == "quote":
            between()
        body = {"spec": spec().to_json(), "base": str(place)} if name == "job" else {}
        message = list(service.start(run, name, body).follow())[-1]
    return message


def test_a_pcr_extended_by_somebody_else_fails_the_run(
    inside: tuple[Swtpm, Tpm, Service], place: Path
) -> None:
    _, tpm, service = inside
    message = advance(service, place, lambda: tpm.extend(4, b"\x07" * 32))
    assert message["error"]["code"] == "run.tpm-reset"
    assert "PCR 4" in message["error"]["message"]


def test_a_tpm_that_was_reset_fails_the_run(
    inside: tuple[Swtpm, Tpm, Service], place: Path
) -> None:
    device, _, service = inside
    message = advance(service, place, device.power_cycle)
    assert message["type"] == "error"
    assert message["error"]["code"].startswith(("tpm.", "run.tpm-reset"))


def test_without_a_certificate_for_its_key_no_run_begins(place: Path, short_tmp: Path) -> None:
    ca = DevelopmentCa.open_or_create(place / "state" / "ca")
    manufacture(short_tmp / "tpm", ca)
    with Swtpm(short_tmp / "tpm") as device, Tpm(device.tcti) as tpm:
        service = Service(tpm, state=short_tmp / "run")
        with pytest.raises(Exception, match="no certificate"):
            service.start(str(uuid.uuid4()), "job", {"spec": {}})


# -- pure parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("**", ["a", "a/b", "a/b/c"], []),
        ("*", ["a", "b.c"], ["a/b"]),
        ("*.bin", ["x.bin", ".bin"], ["x.bin/y", "a/x.bin", "xbin"]),
        ("**/*.bin", ["x.bin", "a/x.bin", "a/b/x.bin"], ["x.txt"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("a.b", ["a.b"], ["aXb"]),
    ],
)
def test_patterns_match_as_people_expect(pattern: str, yes: list[str], no: list[str]) -> None:
    expression = compile_pattern(pattern)
    assert all(expression.fullmatch(path) for path in yes)
    assert not any(expression.fullmatch(path) for path in no)


@pytest.mark.parametrize(("lines", "length"), [(3000, 10), (300, 40_000)])
def test_of_many_messages_the_last_are_kept_and_the_missing_counted(
    monkeypatch: pytest.MonkeyPatch, lines: int, length: int
) -> None:
    monkeypatch.setattr(service, "MAX_MESSAGES", 1000)
    monkeypatch.setattr(service, "MAX_SAID", 5_000_000)
    step = Step("train")
    early = step.follow()
    said: list[dict[str, Any]] = [
        {"type": "log", "line": f"{number}".ljust(length)} for number in range(lines)
    ]
    step.say(said[0])
    assert next(early) == said[0]
    for message in said[1:]:
        step.say(message)
    step.say({"type": "record", "record": {}})
    assert len(step.messages) <= 1000 and step.size <= 5_000_000
    for follower, seen in ((early, 1), (step.follow(), 0)):
        skipped, *rest = follower
        assert skipped["type"] == "skipped"
        assert rest[:-1] == said[seen + skipped["count"] :] and len(rest) > 50
        assert rest[-1]["type"] == "record"


def test_what_no_pattern_names_is_left_out_and_told() -> None:
    files = [File(name, 0, "00" * 32) for name in ("a.bin", "b.txt")]
    chosen, left = select_outputs(files, ("*.bin",))
    assert [file.path for file in chosen.files] == ["a.bin"]
    assert left == ["b.txt"]
