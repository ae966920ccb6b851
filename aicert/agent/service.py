"""The agent's state: one TPM, one attestation key, one run, and its steps as they stand.

A step is started once and may be joined any number of times: whoever asks for it again gets what
it said so far, what it says from now on, and the record that it made. So a caller whose connection
broke, or a task that is retried, changes nothing.
"""

import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aicert
from aicert import log, oms
from aicert.agent.asked import Asked, check_run
from aicert.agent.ca import Identity
from aicert.agent.channel import (
    Attestation,
    ChannelKey,
    NotMeasuredError,
    binding,
    machine_proof,
)
from aicert.agent.engine import Engine
from aicert.agent.run import (
    QUOTED_PCRS,
    NotEnrolledError,
    Paths,
    Run,
    RunError,
    SpecMismatchError,
    StepOrderError,
)
from aicert.agent.tpm import Ak, Algorithm, Quote, Tpm
from aicert.certificate import CpuReport
from aicert.errors import Error, InternalError
from aicert.events import PCR_CHANNEL
from aicert.manifest import check_path

MAX_MESSAGES = 100_000
"""The most messages kept of one step, for those who join late; the log's file has all of it."""

MAX_SAID = 64 << 20
"""About how many bytes these may take in memory."""

PING_SECONDS = 5.0


class UnknownRunError(RunError):
    """There is no such run, step or file."""

    code = "run.unknown"


class BusyError(RunError):
    """The agent serves another run; one run at a time a boot."""

    code = "run.busy"


class SpentError(RunError):
    """The run failed after it had measured something, and cannot be mended."""

    code = "run.spent"


@dataclass
class Step:
    """A step as it stands: its messages so far, and how it ended."""

    name: str
    asked: Asked = field(default_factory=Asked)
    changed: threading.Condition = field(default_factory=threading.Condition)
    messages: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    dropped: int = 0
    finished: bool = False
    failed: bool = False

    def say(self, message: dict[str, Any]) -> None:
        """Add a message and wake those who listen; the oldest go where there are too many."""
        with self.changed:
            self.messages.append(message)
            self.size += _size(message)
            if len(self.messages) > MAX_MESSAGES or self.size > MAX_SAID:
                half = len(self.messages) // 2  # many at once, for the rest has to move up
                del self.messages[:half]
                self.dropped += half
                self.size = sum(map(_size, self.messages))
            if message["type"] in ("record", "error"):
                self.finished = True
                self.failed = message["type"] == "error"
            self.changed.notify_all()

    def follow(self) -> Iterator[dict[str, Any]]:
        """Yield every message from the first that is there, as they come; a ping in silence.

        Where messages are gone that were not yielded, `skipped` says how many.
        """
        position = 0
        while True:
            with self.changed:
                if position == self.dropped + len(self.messages) and not self.finished:
                    self.changed.wait(PING_SECONDS)
                skipped = max(0, self.dropped - position)
                batch = self.messages[position + skipped - self.dropped :]
                over = self.finished
            position += skipped + len(batch)
            if skipped:
                yield {"type": "skipped", "count": skipped}
            yield from batch
            if over:
                return
            if not batch:
                yield {"type": "ping"}


def _size(message: dict[str, Any]) -> int:
    """Return about how many bytes a message takes in memory."""
    return 500 + sys.getsizeof(message.get("line", ""))


class Service:
    """What the HTTP API serves. All methods are safe to call from any thread."""

    def __init__(
        self,
        tpm: Tpm,
        *,
        state: Path,
        algorithm: Algorithm = "ecc",
        engine: str | None = None,
        ak: Ak | None = None,
        ak_chain: tuple[bytes, ...] = (),
        boot_event_log: bytes | None = None,
        cpu_report: CpuReport | None = None,
        channel: ChannelKey | None = None,
        secret: bytes | None = None,
    ) -> None:
        """Serve the TPM; make an attestation key unless one is given with its chain.

        With a `channel` its key is measured now, and the run's baseline is quoted just before: so
        the log of the run, which begins with that key, leads from the one quote to the other.
        `secret` is what the machine was given by the one that it was made for.

        Raises:
            NotMeasuredError: something was measured into the channel's PCR before.
        """
        self._tpm = tpm
        self._state = state
        self._engine = engine
        self._ak = ak or tpm.create_ak(algorithm)
        self._chain = ak_chain
        self._boot_event_log = boot_event_log
        self._cpu_report = cpu_report
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._steps: dict[str, Step] = {}
        self._spent = False
        self._channel = channel
        self.secret = secret
        self._baseline: Quote | None = None
        if channel is not None:
            self._baseline = self._measure_channel(channel)

    def _measure_channel(self, channel: ChannelKey) -> Quote:
        baseline = self._tpm.quote(self._ak, secrets.token_bytes(32), QUOTED_PCRS)
        if any(baseline.pcrs[PCR_CHANNEL]):
            raise NotMeasuredError(
                f"PCR {PCR_CHANNEL} is not free for the key of this agent's channel",
                got=baseline.pcrs[PCR_CHANNEL],
                expected="zero: one agent a boot",
                advice="boot the machine anew",
            )
        self._tpm.extend(PCR_CHANNEL, log.Record.of(channel.event).digest)
        return baseline

    def attest(self, nonce: bytes) -> Attestation:
        """Have the TPM say, for a caller's nonce, whose channel this is and what was booted."""
        assert self._channel is not None
        quote = self._tpm.quote(self._ak, binding(nonce, self._channel.spki), QUOTED_PCRS)
        spki, secret = self._channel.spki, self.secret
        proof = None if secret is None else machine_proof(secret, nonce, spki)
        return Attestation(quote.message, quote.signature, quote.pcrs, self._boot_event_log, proof)

    @property
    def received(self) -> Path:
        """The folder of what the caller sent: the relative paths of the spec start there."""
        return self._state / "received"

    def receive(self, name: str) -> Path:
        """Return where a file that the caller sends goes: `name` is a relative path of the spec.

        Raises:
            StepOrderError: the run has begun.
            PathError: the name leaves the folder, or could not be certified.
        """
        with self._lock:
            self._refuse_after_start("send files")
            path = self.received / check_path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            return path

    # -- enrolment -------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """Return what a CA needs to certify the attestation key."""
        return Identity(
            ek_certificate=self._tpm.ek_certificate(self._ak.ek),
            ek_public=self._tpm.ek_public(self._ak.ek),
            ak_public=self._ak.public,
        )

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Answer a CA's challenge: TPM2_ActivateCredential."""
        with self._lock:
            self._refuse_after_start("activate a credential")
            return self._tpm.activate(self._ak, credential_blob, encrypted_secret)

    def set_chain(self, chain: tuple[bytes, ...]) -> None:
        """Take the certificate chain that the CA issued for the attestation key."""
        with self._lock:
            self._refuse_after_start("change the attestation key's certificate")
            self._chain = chain

    def _refuse_after_start(self, what: str) -> None:
        if self._run is not None:
            raise StepOrderError(f"it is too late to {what}: the run has begun")

    # -- the run ---------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Return the agent's version and where its run stands."""
        with self._lock:
            return {
                "version": aicert.__version__,
                "enrolled": bool(self._chain),
                "run": None if self._run is None else self._run.id,
                "steps": {
                    name: "failed" if s.failed else "done" if s.finished else "running"
                    for name, s in self._steps.items()
                },
                "spent": self._spent,
            }

    def start(self, run_id: str, name: str, body: Any) -> Step:
        """Start a step, or join it where it was started before.

        A step that failed before it had measured anything is started anew.

        Raises:
            RequestError: this is not how the step is asked for.
            BusyError: the agent serves another run.
            SpecMismatchError: the run was started with another spec, folder or nonce.
            StepOrderError: the step before this one is not done.
            SpentError: the run has failed for good.
        """
        asked = Asked.read(name, body)
        with self._lock:
            run = self._run_for(run_id, name)
            known = self._steps.get(name)
            if known is not None and not known.failed:
                before = known.asked
                if (asked.spec, asked.base) != (before.spec, before.base) or (
                    asked.nonce is not None and asked.nonce != before.nonce
                ):
                    raise SpecMismatchError(
                        "the run was started with another spec, folder or nonce",
                        advice="use another machine: this one's run is measured already",
                    )
                return known
            if self._spent:
                raise SpentError(
                    "the run failed after it had measured something",
                    advice="start a new run: a fresh machine, a fresh log",
                )
            for earlier in Run.STEPS[: Run.STEPS.index(name)]:
                done = self._steps.get(earlier)
                if done is None or not done.finished or done.failed:
                    raise StepOrderError(
                        f"the step {name!r} comes after {earlier!r}, which is not done",
                        expected=" -> ".join(Run.STEPS),
                    )
            step = self._steps[name] = Step(name, asked)
        threading.Thread(
            target=self._work, args=(run, step), name=f"step-{name}", daemon=True
        ).start()
        return step

    def _run_for(self, run_id: str, name: str) -> Run:
        if name not in Run.STEPS:
            raise UnknownRunError("there is no such step", got=name, expected=", ".join(Run.STEPS))
        if self._run is None:
            if not self._chain:
                raise NotEnrolledError(
                    "the attestation key has no certificate",
                    advice="enrol the machine first (POST /v1/activate, PUT /v1/ak-certificate)",
                )
            if name != Run.STEPS[0]:
                raise StepOrderError("the run has not begun", got=name, expected=Run.STEPS[0])
            started: dict[str, Any] = {}
            if self._channel is not None:
                started["baseline"] = self._baseline
                started["records"] = [log.Record.of(self._channel.event)]
                started["base"] = self.received
            self._run = Run(
                id=check_run(run_id),
                tpm=self._tpm,
                ak=self._ak,
                ak_chain=self._chain,
                paths=Paths(self._state),
                make_engine=lambda directory: Engine.detect(directory, prefer=self._engine),
                boot_event_log=self._boot_event_log,
                cpu_report=self._cpu_report,
                **started,
            )
        if self._run.id != run_id:
            raise BusyError(
                "the agent serves another run",
                got=run_id,
                expected=self._run.id,
                advice="use another machine, or wait until this one is destroyed",
            )
        return self._run

    def _work(self, run: Run, step: Step) -> None:
        measured = len(run.records)
        start = time.monotonic()
        problem: Error
        try:
            asked, step.asked = step.asked, replace(step.asked, secrets={})
            record = run.perform(step.name, asked, step.say)
            record["milliseconds"] = round((time.monotonic() - start) * 1000)
            step.say({"type": "record", "record": record})
            return
        except Error as error:
            problem = error
        except Exception as error:  # a mistake of ours: the run fails closed, the agent lives on
            problem = InternalError(
                f"the agent failed in step {step.name!r}", got=f"{type(error).__name__}: {error}"
            )
        with self._lock:
            self._spent = self._spent or len(run.records) > measured or run.cancelled.is_set()
            final = self._spent
        step.say({"type": "error", "error": {**problem.to_json(), "final": final}})

    def cancel(self, run_id: str) -> None:
        """Stop the run, for good: its container is killed, its steps fail."""
        with self._lock:
            run = self._known(run_id)
            self._spent = True
        run.cancel()

    def close(self) -> None:
        """Stop the run and remove what the container engine keeps."""
        run = self._run
        if run is not None:
            run.cancel()
            run.close()

    # -- what the run made -----------------------------------------------------------------------

    def certificate(self, run_id: str) -> bytes:
        """Return the certificate, once the step `quote` is done."""
        certificate = self._known(run_id).certificate
        if certificate is None:
            raise UnknownRunError("the run has no certificate yet", advice="finish its steps")
        return certificate

    def open_file(self, run_id: str, kind: str, name: str) -> Path | bytes:
        """Return a file of the run: bytes, or its path.

        Only names that the run's own manifests hold are served.
        """
        run = self._known(run_id)
        if kind == "manifests" and (found := run.manifest(name)) is not None:
            return found
        if kind == "logs" and name == "training.log" and run.paths.log.exists():
            return run.paths.log
        if kind == "signatures" and name == oms.NAME and run.signature is not None:
            return run.signature
        if (
            kind == "outputs"
            and run.outputs is not None
            and any(file.path == name for file in run.outputs.files)
        ):
            return run.paths.outputs / name
        raise UnknownRunError("the run has no such file", got=f"{kind}/{name}")

    def _known(self, run_id: str) -> Run:
        if self._run is None or self._run.id != run_id:
            raise UnknownRunError("the agent has no such run", got=run_id)
        return self._run
