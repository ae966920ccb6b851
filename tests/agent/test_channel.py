"""Attested TLS: a real agent on a TCP port with a real TPM in software, and those in between."""

import contextlib
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert import events, log, tpm2
from aicert.agent import engine
from aicert.agent.ca import DevelopmentCa, Enrollment
from aicert.agent.channel import (
    Attestation,
    ChannelKey,
    NotMeasuredError,
    Remote,
    ReplayedError,
    UnreachableError,
    binding,
)
from aicert.agent.client import AgentClient, AgentError, LostAgentError
from aicert.agent.run import QUOTED_PCRS, Run
from aicert.agent.service import Service
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Tpm
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
from examples.images import tiny
from tests.agent.test_run import RUN, spec
from tests.support.ports import free_port
from tests.support.tpm import Factory

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("tpms"))


@dataclasses.dataclass
class Far:
    """An agent that listens on a port, and its TPM's CA."""

    port: int
    ca: DevelopmentCa
    process: subprocess.Popen[bytes]

    def find(self) -> Remote:
        return Remote.find("127.0.0.1", self.port)

    def enrol(self, client: AgentClient) -> tpm2.Public:
        """Have the CA certify its key; from then on that key is known to live in the TPM."""
        identity = client.identity()
        enrollment = Enrollment(self.ca, self.ca.ek_roots)
        challenge = enrollment.begin(identity)
        answer = client.activate(challenge.credential_blob, challenge.encrypted_secret)
        client.set_ak_certificate(enrollment.finish(answer))
        return tpm2.parse_public(identity.ak_public)


@pytest.fixture
def far(factory: Factory, short_tmp: Path) -> Iterator[Far]:
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "aicert.agent", "--state", str(short_tmp / "run"),
            "--listen", f"127.0.0.1:{port}", "--tpm", f"swtpm-state:{factory.make()}",
        ]
    )  # fmt: skip
    try:
        for _ in range(2400):
            with contextlib.suppress(UnreachableError):
                Remote.find("127.0.0.1", port)
                break
            assert process.poll() is None
            time.sleep(0.05)
        yield Far(port, factory.ca, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        engine.clear(short_tmp / "run" / "engine")


def test_the_tpm_vouches_for_the_channel_before_anything_is_sent(far: Far) -> None:
    remote = far.find()
    with AgentClient(remote) as client:
        client.claim(remote)
        ak = far.enrol(client)
        answer = client.attest(remote, ak)
    measured = log.Record.of(events.ChannelKey(remote.spki)).digest
    assert measured == events.event_digest(events.ChannelKey(remote.spki))
    assert sorted(answer.pcrs) == list(QUOTED_PCRS)
    assert any(answer.pcrs[15]) and not any(answer.pcrs[14])


def test_an_agent_belongs_to_the_first_who_claims_it(far: Far) -> None:
    first, second = far.find(), far.find()
    assert first.certificate == second.certificate and first.token != second.token
    with AgentClient(first) as client, AgentClient(second) as other:
        for caller in (client, other):
            with pytest.raises(AgentError) as refused:
                caller.identity()
            assert refused.value.code == "channel.token"
        client.claim(first)
        client.claim(first)  # again, where the answer was lost
        client.identity()
        with pytest.raises(AgentError) as claimed:
            other.claim(second)
        assert claimed.value.code == "channel.claimed"
        for act in (other.health, other.identity, lambda: other.cancel(RUN)):
            with pytest.raises(AgentError) as refused:
                act()
            assert refused.value.code == "channel.token"


@pytest.mark.skipif(os.geteuid() != 0, reason="containers need root: run the tests as root")
def test_a_run_over_the_channel_ends_with_a_certificate_that_names_its_key(
    far: Far, tmp_path: Path
) -> None:
    tiny.build(tmp_path / "image")
    (tmp_path / "in.txt").write_text("hello")
    remote = far.find()
    with AgentClient(remote) as client:
        client.claim(remote)
        ak = far.enrol(client)
        client.attest(remote, ak)
        for path in sorted(tmp_path.rglob("*")):
            if path.is_file():
                client.send(str(path.relative_to(tmp_path)), path)
        for body in ({"base": "/etc"}, {"nonce": NONCE.hex()}):
            with pytest.raises(AgentError, match="neither a nonce"):
                client.step(RUN, "job", {"spec": spec().to_json(), **body})
        client.step(RUN, "job", {"spec": spec().to_json()})
        with pytest.raises(AgentError, match="too late"):
            client.send("late", tmp_path / "in.txt")
        for step in Run.STEPS[1:]:
            client.step(RUN, step)
        data = client.certificate(RUN)
    root = tmp_path / "root.pem"
    root.write_bytes(far.ca.root_pem)
    trust = TrustStore.builtin().with_roots(root)
    verdict = verify(data, trust=trust, least=Assurance.SIMULATED)
    assert verdict.run.channel_key == events.ChannelKey(remote.spki)


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", ""])
def test_a_file_that_is_sent_stays_in_its_folder(far: Far, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    remote = far.find()
    with AgentClient(remote) as client:
        client.claim(remote)
        with pytest.raises(AgentError):
            client.send(name, tmp_path / "file")


def test_a_file_in_the_place_of_a_folder_is_refused(far: Far, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    remote = far.find()
    with AgentClient(remote) as client:
        client.claim(remote)
        client.send("data/in.txt", tmp_path / "file")
        for name in ("data", "data/in.txt/x"):
            with pytest.raises(AgentError) as caught:
                client.send(name, tmp_path / "file")
            assert caught.value.code == "api.request"


class Middle:
    """Somebody in between, with a TLS key of their own: passes everything on, both ways."""

    def __init__(self, port: int) -> None:
        self.key = ChannelKey()
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._context = self.key.context()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._server.accept()
                threading.Thread(target=self._pass, args=(plain,), daemon=True).start()

    def _pass(self, plain: socket.socket) -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as near,
            trusting.wrap_socket(socket.create_connection(("127.0.0.1", self._port))) as far,
        ):
            near.settimeout(0.05)
            far.settimeout(0.05)
            while True:
                for source, target in ((near, far), (far, near)):
                    with contextlib.suppress(TimeoutError):
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        target.sendall(data)

    def close(self) -> None:
        self._server.close()


def test_somebody_in_between_is_found_out(far: Far) -> None:
    middle = Middle(far.port)
    try:
        remote = Remote.find("127.0.0.1", middle.port)
        assert remote.spki == middle.key.spki != far.find().spki
        with AgentClient(remote) as client:
            client.claim(remote)
            # Even enrolment passes, for the TPM is the right one; its quote is for another channel.
            ak = far.enrol(client)
            with pytest.raises(ReplayedError):
                client.attest(remote, ak)
    finally:
        middle.close()


def test_the_client_speaks_to_no_other_key_than_the_attested(far: Far) -> None:
    other = ChannelKey()
    remote = dataclasses.replace(far.find(), certificate=other.certificate)
    with AgentClient(remote) as client, pytest.raises(LostAgentError) as lost:
        client.claim(remote)
    assert "CERTIFICATE_VERIFY_FAILED" in str(lost.value.got)


@pytest.fixture
def service(factory: Factory, tmp_path: Path) -> Iterator[tuple[Service, ChannelKey, Tpm]]:
    with Swtpm(factory.make()) as software, Tpm(software.tcti) as tpm:
        key = ChannelKey()
        yield Service(tpm, state=tmp_path, channel=key), key, tpm


Made = tuple[Service, ChannelKey, Tpm]


def ak_of(service: Service) -> tpm2.Public:
    return tpm2.parse_public(service.identity().ak_public)


def test_an_old_answer_is_refused(service: Made) -> None:
    agent, key, _ = service
    old = agent.attest(NONCE)
    assert old.check(ak_of(agent), NONCE, key.spki) == old.pcrs
    with pytest.raises(ReplayedError):
        old.check(ak_of(agent), bytes(32), key.spki)
    with pytest.raises(ReplayedError):
        old.check(ak_of(agent), NONCE, ChannelKey().spki)


def test_another_tpms_answer_is_refused(service: Made, factory: Factory, tmp_path: Path) -> None:
    agent, key, _ = service
    with Swtpm(factory.make()) as software, Tpm(software.tcti) as tpm:
        other = Service(tpm, state=tmp_path / "other", channel=key)
        with pytest.raises(tpm2.QuoteSignatureError):
            other.attest(NONCE).check(ak_of(agent), NONCE, key.spki)


def test_a_key_that_was_not_measured_or_not_alone_is_refused(service: Made) -> None:
    agent, key, tpm = service
    unmeasured = tpm.quote(agent._ak, binding(NONCE, ChannelKey().spki), QUOTED_PCRS)
    answer = Attestation(unmeasured.message, unmeasured.signature, unmeasured.pcrs, None)
    with pytest.raises(ReplayedError):
        answer.check(ak_of(agent), NONCE, key.spki)
    tpm.extend(15, bytes(32))
    with pytest.raises(NotMeasuredError):
        agent.attest(NONCE).check(ak_of(agent), NONCE, key.spki)


def test_a_second_agent_in_one_boot_is_refused(service: Made, tmp_path: Path) -> None:
    _, _, tpm = service
    with pytest.raises(NotMeasuredError, match="not free"):
        Service(tpm, state=tmp_path / "second", channel=ChannelKey())


def test_altered_values_beside_a_quote_are_refused(service: Made) -> None:
    agent, key, _ = service
    answer = agent.attest(NONCE)
    pcrs: dict[int, bytes] = {**answer.pcrs, 4: bytes(32 * [1])}
    with pytest.raises(tpm2.PcrDigestError):
        dataclasses.replace(answer, pcrs=pcrs).check(ak_of(agent), NONCE, key.spki)
    assert Attestation.from_json(answer.to_json()) == answer


def test_a_channel_is_kept_in_a_private_file(tmp_path: Path) -> None:
    remote = Remote("127.0.0.1", 1, ChannelKey().certificate, "ab" * 32)
    remote.save(tmp_path / "channel.json")
    assert Remote.load(tmp_path / "channel.json") == remote
    assert (tmp_path / "channel.json").stat().st_mode & 0o777 == 0o600


def test_where_nothing_answers_is_said() -> None:
    port: Any = free_port()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        Remote.find("127.0.0.1", port)
