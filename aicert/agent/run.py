"""One run: the steps, in their order, and what each one measures.

This is the heart of the measured program. It knows no HTTP and no Prefect. A step does its work
first and measures last, so that a step that fails before it has measured anything may be tried
again; once an event is in the TPM, a failure ends the run for good.
"""

import hashlib
import os
import re
import secrets as random
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import aicert
from aicert import canonical, dsse, events, log, oms, records, statement, tpm2
from aicert.agent.asked import NONCE_BYTES, Asked
from aicert.agent.engine import ContainerSpec, Engine, InputMount
from aicert.agent.fetch import Fetched, InputRequest, Resolved, fetch
from aicert.agent.oci import OciImage, acquire
from aicert.agent.spec import Spec
from aicert.agent.tpm import Ak, Quote, Tpm
from aicert.certificate import AttestationKey, Certificate, CpuReport
from aicert.certificate import Quote as QuoteEvidence
from aicert.errors import Error
from aicert.hashing import open_below
from aicert.manifest import File, Manifest, Summary, hashed

QUOTED_PCRS = tuple(range(16))
"""Every PCR that nobody can reset; 16 to 23 can be (PC Client Platform TPM Profile, 4.6)."""

MAX_METRICS_BYTES = 64 << 10
_PARALLEL_INPUTS = 4
_PROGRESS_SECONDS = 0.2
_SHOWN, _UNMATCHED = 10, 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an image that sets no PATH gets, as engines have it."""

Emit = Callable[[dict[str, Any]], None]


class RunError(Error):
    """A run cannot go on."""

    code = "run.failed"


class StepOrderError(RunError):
    """A step was asked for before the one that it follows."""

    code = "run.order"


class SpecMismatchError(RunError):
    """The same run was asked for with another spec."""

    code = "run.other-spec"


class NotEnrolledError(RunError):
    """The attestation key has no certificate yet."""

    code = "run.not-enrolled"


class TpmResetError(RunError):
    """The TPM was reset, restarted or extended by somebody else during the run."""

    code = "run.tpm-reset"


class OutputsError(RunError):
    """The training did not make what the spec asks for."""

    code = "run.outputs"


@dataclass
class Paths:
    """Where a run keeps its files; all below one folder that only the agent writes."""

    root: Path

    def __post_init__(self) -> None:
        """Make the folders."""
        for name in ("inputs", "manifests", "partial", "image", "engine", "outputs"):
            (self.root / name).mkdir(mode=0o755, parents=True, exist_ok=True)

    @property
    def inputs(self) -> Path:
        """One folder for each input."""
        return self.root / "inputs"

    @property
    def manifests(self) -> Path:
        """One file for each input."""
        return self.root / "manifests"

    @property
    def partial(self) -> Path:
        """Downloads that are not whole."""
        return self.root / "partial"

    @property
    def image(self) -> Path:
        """The image, as an OCI layout."""
        return self.root / "image"

    @property
    def engine(self) -> Path:
        """The container engine's own store."""
        return self.root / "engine"

    @property
    def outputs(self) -> Path:
        """What the training writes."""
        return self.root / "outputs"

    @property
    def log(self) -> Path:
        """The training's log."""
        return self.root / "training.log"


@dataclass(frozen=True, slots=True)
class _Brought:
    """An input that was fetched; its manifest lies on the disk, as it may name a million files."""

    resolved: Resolved
    manifest: Summary
    sha256: str | None
    records: events.Records | None


@dataclass
class Run:
    """The state of one run and its steps.

    Steps are called one at a time (the caller sees to that); `cancel` may come from any thread.
    """

    STEPS: ClassVar[tuple[str, ...]] = ("job", "fetch", "image", "train", "outputs", "quote")

    id: str
    tpm: Tpm
    ak: Ak
    ak_chain: tuple[bytes, ...]
    paths: Paths
    make_engine: Callable[[Path], Engine]
    boot_event_log: bytes | None = None
    cpu_report: CpuReport | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    stop_fetching: threading.Event = field(default_factory=threading.Event)

    records: list[log.Record] = field(default_factory=list)
    spec: Spec | None = None
    base: Path | None = None
    baseline: Quote | None = None
    image: OciImage | None = None
    engine: Engine | None = None
    outputs: Manifest | None = None
    certificate: bytes | None = None
    signature: bytes | None = None

    def perform(self, step: str, asked: Asked, emit: Emit) -> dict[str, Any]:
        """Do one step and return its record; `emit` is told of log lines and progress.

        Raises:
            Error: the step failed; `measured_since` tells whether it may be tried again.
        """
        return getattr(self, f"_step_{step}")(asked, emit)  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """Stop whatever is running, as soon as it can be stopped."""
        self.cancelled.set()
        self.stop_fetching.set()

    def close(self) -> None:
        """Remove what the container engine has running; what was fetched and made stays."""
        if self.engine is not None:
            self.engine.cleanup()

    # -- the steps -------------------------------------------------------------------------------

    def _step_job(self, asked: Asked, emit: Emit) -> dict[str, Any]:
        del emit
        spec = Spec.from_json(asked.spec)
        if not self.records:
            self.base = asked.base
            nonce = asked.nonce or random.token_bytes(NONCE_BYTES)
            self.baseline = self.tpm.quote(self.ak, nonce, QUOTED_PCRS)
        elif asked.nonce is not None or asked.base is not None:
            # Quoted at boot, before the channel's key was measured; its files were sent.
            raise RunError(
                "this machine takes neither a nonce for the baseline nor a folder",
                advice="its baseline was quoted at boot; send the files of the spec before the job",
            )
        assert self.baseline is not None
        self.spec = spec
        job = events.read_event(
            {
                "type": "job",
                "version": 1,
                "run": self.id,
                "nonce": tpm2.parse_attest(self.baseline.message).extra_data.hex(),
                "baseline": {"sha256": hashlib.sha256(self.baseline.message).hexdigest()},
                "agent": {"name": "aicert", "version": aicert.__version__},
                "startedOn": events.format_time(datetime.now(UTC)),
                "spec": spec.to_json(),
            }
        )
        self._measure(job)
        return self._record("job", 1, {"spec": canonical.sha256(spec.to_json())})

    def _step_fetch(self, asked: Asked, emit: Emit) -> dict[str, Any]:
        spec = self._spec
        stop = self.stop_fetching = threading.Event()
        if self.cancelled.is_set():
            stop.set()  # it was cancelled before there was this one to set

        def one(item: events.SpecInput) -> _Brought:
            got = fetch(
                InputRequest(item.name, item.uri, item.revision, item.sha256),
                self.paths.inputs / item.name,
                base=self.base,
                secrets=asked.secrets.get(item.name) or {},
                partial=self.paths.partial / item.name,
                on_event=emit,
                cancelled=stop,
            )
            committed = self._commit(item, got, emit, stop)
            with self._manifest_file(item.name).open("wb") as out:
                summary = got.manifest.write(out)
            return _Brought(replace(got.resolved, files=()), summary, got.sha256, committed)

        wanted = self._measured_spec.inputs
        with ThreadPoolExecutor(_PARALLEL_INPUTS) as pool:
            futures = [pool.submit(one, item) for item in wanted]
            ended = wait(futures, return_when=FIRST_EXCEPTION).done
            failed = [future for future in futures if future in ended and future.exception()]
            if failed:
                # What is wrong with one input is wrong with the run: the others may be terabytes.
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                failed[0].result()
            brought = [future.result() for future in futures]
        # Only now, when every input is whole and right, is anything measured.
        for item, got in zip(wanted, brought, strict=True):
            resolved = got.resolved
            self._measure(
                events.Input(
                    name=item.name,
                    uri=resolved.uri,
                    requested=item.uri,
                    revision=resolved.revision,
                    kind=resolved.kind,
                    files=got.manifest.files,
                    size=got.manifest.size,
                    root=got.manifest.root,
                    manifest=got.manifest.digest,
                    sha256=got.sha256,
                    git_commit=resolved.git_commit,
                    expected=item.sha256,
                    records=got.records,
                )
            )
        inputs = [
            {
                "name": item.name,
                "uri": got.resolved.uri,
                "revision": got.resolved.revision,
                "files": got.manifest.files,
                "size": got.manifest.size,
                "sha256": got.sha256 or got.manifest.root,
                "records": None if got.records is None else got.records.to_json(),
            }
            for item, got in zip(wanted, brought, strict=True)
        ]
        return self._record("fetch", len(spec.inputs), {"inputs": inputs})

    def _step_image(self, asked: Asked, emit: Emit) -> dict[str, Any]:
        image = acquire(
            self._spec.image,
            base=self.base,
            into=self.paths.image,
            secrets=asked.secrets.get("image"),
            on_event=emit,
        )
        if self.engine is None:
            self.engine = self.make_engine(self.paths.engine)
        self.engine.load(image)
        # The engine has its own now; what is removed at once is mostly never written to the disk.
        shutil.rmtree(image.layout)
        self.image = image
        self._measure(
            events.Image(
                reference=self._spec.image,
                config=image.config_digest,
                manifest=image.manifest_digest,
                layers=image.layers,
                architecture=image.architecture,
            )
        )
        return self._record(
            "image", 1, {"reference": self._spec.image, "config": image.config_digest}
        )

    def _step_train(self, asked: Asked, emit: Emit) -> dict[str, Any]:
        del asked
        assert self.engine is not None and self.image is not None
        spec = self._measured_spec
        inputs = [
            InputMount(item.name, self.paths.inputs / item.name, item.target)
            for item in spec.inputs
        ]
        environment = {
            "PATH": _PATH,
            # Libraries start a thread for each core that they see, and see all of the machine's:
            # waiting for each other they use up a smaller share, and a loop takes ten times longer.
            "OMP_NUM_THREADS": str(max(1, int(spec.limits.cpus))),
            **self.image.environment,
            **log.agent_variables(spec),
            **spec.environment,
        }
        container = ContainerSpec(
            image=self.image,
            command=spec.command,
            environment=environment,
            inputs=inputs,
            outputs=self.paths.outputs,
            limits=spec.limits,
            log=self.paths.log,
        )
        prepared = self.engine.prepare(container)
        self._measure(
            events.TrainingStart(
                command=spec.command,
                environment=environment,
                user=prepared.user,
                network=prepared.network,
                mounts=(
                    *(events.Mount(i.target, i.name, writable=False) for i in spec.inputs),
                    events.Mount("/outputs", None, writable=True),
                ),
                limits=spec.limits,
                devices=prepared.devices,
                engine_name=self.engine.name,
                engine_version=self.engine.version,
            )
        )

        def on_line(stream: str, line: str) -> None:
            emit({"type": "log", "stream": stream, "line": line})

        result = self.engine.run(prepared, on_line, self.cancelled)
        metrics, warning = self._read_metrics(spec.metrics)
        if warning is not None:
            emit({"type": "log", "stream": "stderr", "line": f"aicert: warning: {warning}"})
        elif result.log_cut:
            warning = f"the log is cut after {result.log_size} bytes"
        if spec.evaluation is not None and metrics is None:
            raise OutputsError(
                "the evaluation reported no metrics",
                got=warning,
                expected=f"a flat JSON object in /outputs/{spec.metrics or 'metrics.json'}",
                advice="have the evaluation write it, and name it under metrics in the spec",
            )
        self._measure(
            events.TrainingEnd(
                exit_code=result.exit_code,
                duration_milliseconds=result.duration_milliseconds,
                log_sha256=result.log_sha256,
                log_size=result.log_size,
                metrics=metrics,
            )
        )
        summary = {
            "durationMilliseconds": result.duration_milliseconds,
            "metrics": None if metrics is None else metrics.values,
            "warning": warning,
        }
        return self._record("train", 2, summary)

    def _step_outputs(self, asked: Asked, emit: Emit) -> dict[str, Any]:
        del asked
        spec = self._measured_spec
        done, told = 0, time.monotonic()
        lock = threading.Lock()

        def progress(count: int) -> None:
            nonlocal done, told
            with lock:
                done += count
                if time.monotonic() - told < _PROGRESS_SECONDS:
                    return
                told = time.monotonic()
            emit(
                {
                    "type": "progress",
                    "what": "hash outputs",
                    "done": done,
                    "total": None,
                    "unit": "bytes",
                }
            )

        files = hashed(self.paths.outputs, progress=progress)
        chosen, unmatched = select_outputs(files, spec.outputs)
        self.outputs = chosen
        self._measure(events.Outputs(datetime.now(UTC).replace(microsecond=0), chosen))
        return self._record(
            "outputs",
            1,
            {
                "root": chosen.root,
                "files": [file.to_json() for file in chosen.files[:100]],
                "count": len(chosen.files),
                "size": chosen.size,
                "unmatched": unmatched,
            },
        )

    def _step_quote(self, asked: Asked, emit: Emit) -> dict[str, Any]:
        del asked, emit
        assert self.baseline is not None
        run = log.parse_run(self.records)
        payload = statement.encode(run)
        signed = dsse.pae(payload)
        signature = tpm2.parse_signature(self.tpm.sign(self.ak, signed))
        quote = self.tpm.quote(self.ak, hashlib.sha256(signed).digest(), QUOTED_PCRS)
        self._check_same_boot(quote)
        certificate = Certificate(
            payload=payload,
            keyid=self.ak.name.hex(),
            signature=signature.encoded,
            attestation_key=AttestationKey(self.ak.public, self.ak_chain),
            baseline_quote=_evidence(self.baseline),
            quote=_evidence(quote),
            records=tuple(self.records),
            boot_event_log=self.boot_event_log,
            cpu_report=self.cpu_report,
        )
        digest = certificate.digest
        self.signature = self._sign_model(digest, run)
        self.certificate = certificate.encode()
        return self._record("quote", 0, {"certificate": digest})

    def _sign_model(self, certificate: str, run: log.Run) -> bytes:
        """Return the `model.sig`: its key is made for it, and the AK certifies that key for it."""
        with self.tpm.signing_key(self.ak) as key:
            attested = self.tpm.certify(self.ak, key, bytes.fromhex(certificate))
            signing = oms.SigningKey(key.public, *attested)
            payload = oms.payload(certificate, run, signing)
            signature = tpm2.parse_signature(self.tpm.sign(key, dsse.pae(payload)))
            return oms.bundle(payload, signing, signature.encoded)

    # -- what the steps share --------------------------------------------------------------------

    @property
    def _spec(self) -> Spec:
        assert self.spec is not None
        return self.spec

    @property
    def _measured_spec(self) -> events.Spec:
        """The spec as it was measured: what runs is what the log says."""
        job = next(r.event for r in self.records if isinstance(r.event, events.Job))
        return job.spec

    def _commit(
        self, item: events.SpecInput, got: Fetched, emit: Emit, stop: threading.Event
    ) -> events.Records | None:
        """Commit to the records of an input as it lies on the disk, where the spec asks for it."""
        if item.records is None:
            return None
        done, told = 0, 0.0

        def progress(count: int) -> None:
            nonlocal done, told
            if stop.is_set():
                raise RunError("the run was cancelled", advice="start a new run")
            done += count
            if time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                emit(
                    {
                        "type": "progress",
                        "what": f"records of {item.name}",
                        "done": done,
                        "total": got.manifest.size,
                        "unit": "bytes",
                    }
                )

        return records.commit(
            got.path, got.manifest, item.records, scratch=self.paths.partial, progress=progress
        )

    def _measure(self, event: events.Event) -> None:
        """Extend the TPM, then write the log: a record without its extend never exists."""
        if self.cancelled.is_set():
            raise RunError("the run was cancelled", advice="start a new run")
        record = log.Record.of(event)
        self.tpm.extend(event.pcr, record.digest)
        self.records.append(record)

    def _record(self, step: str, count: int, summary: dict[str, Any]) -> dict[str, Any]:
        """Say what a step measured, for people: the proof is the certificate."""
        start = len(self.records) - count
        measured = [
            {
                "recnum": start + offset,
                "pcr": record.event.pcr,
                "type": record.event.type,
                "digest": record.digest.hex(),
            }
            for offset, record in enumerate(self.records[start:])
        ]
        values = self.tpm.read_pcrs([events.PCR_OUTPUTS, events.PCR_JOB])
        pcrs = {str(pcr): value.hex() for pcr, value in values.items()}
        return {"step": step, "events": measured, "pcrs": pcrs, "summary": summary}

    def _check_same_boot(self, quote: Quote) -> None:
        """Fail if the TPM did not stay in one boot, or anyone else extended a PCR."""
        assert self.baseline is not None
        before = tpm2.parse_attest(self.baseline.message).clock
        after = tpm2.parse_attest(quote.message).clock
        if (before.reset_count, before.restart_count) != (after.reset_count, after.restart_count):
            raise TpmResetError(
                "the TPM was reset or restarted during the run",
                got=f"resetCount {after.reset_count}, restartCount {after.restart_count}",
                expected=f"resetCount {before.reset_count}, restartCount {before.restart_count}",
                advice="start a new run; the machine must not suspend or reboot while it trains",
            )
        expected = log.replay(self.records, self.baseline.pcrs)
        for pcr in QUOTED_PCRS:
            if quote.pcrs[pcr] != expected[pcr]:
                raise TpmResetError(
                    f"PCR {pcr} was extended by something other than this run",
                    got=quote.pcrs[pcr],
                    expected=expected[pcr],
                    advice="start a new run, and let nothing else use the TPM meanwhile",
                )

    def _read_metrics(self, name: str | None) -> tuple[events.Metrics | None, str | None]:
        """Return the training's metrics, or the reason why they cannot be taken."""
        if name is None:
            return None, None
        try:
            data = _read_output(self.paths.outputs, name, MAX_METRICS_BYTES + 1)
            if len(data) > MAX_METRICS_BYTES:
                return None, f"{name} is larger than {MAX_METRICS_BYTES} bytes: not recorded"
            values = canonical.loads(data, max_bytes=MAX_METRICS_BYTES, max_depth=4)
        except FileNotFoundError:
            return None, None
        except (Error, OSError) as error:
            return None, f"{name} is not recorded: {error}"
        problem = events.metrics_problem(values)
        if problem is not None:
            return None, f"{name} {problem}: not recorded"
        return events.Metrics(hashlib.sha256(data).hexdigest(), values), None

    def manifest(self, name: str) -> Path | bytes | None:
        """Return a manifest that the log names: an input's, or `outputs`; None if it has none.

        It is canonical JSON, in a file or in memory.
        """
        if name == "outputs":
            return None if self.outputs is None else canonical.dumps(self.outputs.to_json())
        measured = (record.event for record in self.records)
        if any(isinstance(event, events.Input) and event.name == name for event in measured):
            return self._manifest_file(name)
        return None

    def _manifest_file(self, name: str) -> Path:
        return self.paths.manifests / f"{name}.json"


def _read_output(folder: Path, name: str, limit: int) -> bytes:
    """Return at most the first `limit` bytes of a file that the training wrote.

    No link is followed on the way to it: it would lead to a file of the host's.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_below(root, name)
    finally:
        os.close(root)
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        return stream.read(limit)


def select_outputs(files: Iterable[File], patterns: tuple[str, ...]) -> tuple[Manifest, list[str]]:
    """Return the files that match a pattern, and the first paths of those that match none.

    Patterns are those of `PurePath.match` per component, with `**` for any number of folders.

    Args:
        files: those that the training wrote, in the order of a manifest.
        patterns: what the spec names.

    Raises:
        OutputsError: a pattern matches nothing, or there are too many files.
    """
    expressions = [compile_pattern(pattern) for pattern in patterns]
    unused = dict(zip(patterns, expressions, strict=True))
    chosen: list[File] = []
    first: list[str] = []
    others: list[str] = []
    count = 0
    for file in files:
        if len(first) < _SHOWN:
            first.append(file.path)
        unused = {p: e for p, e in unused.items() if not e.fullmatch(file.path)}
        if any(expression.fullmatch(file.path) for expression in expressions):
            count += 1
            if count <= events.MAX_OUTPUTS:
                chosen.append(file)
        elif len(others) < _UNMATCHED:
            others.append(file.path)
    if unused:
        raise OutputsError(
            "the training wrote no file that an output pattern names",
            got=", ".join(first) or "nothing",
            expected=next(iter(unused)),
            advice="let the training write it below $AICERT_OUTPUTS (/outputs), "
            "or mend 'outputs' in the spec",
        )
    if count > events.MAX_OUTPUTS:
        raise OutputsError(
            "there are too many outputs",
            got=count,
            expected=f"at most {events.MAX_OUTPUTS}",
            advice="have the training pack them into fewer files, or name fewer in 'outputs'",
        )
    return Manifest(tuple(chosen)), others


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the expression for a glob pattern: `*` and `?` within a name, `**` across folders."""
    parts = []
    for part in PurePosixPath(pattern).parts:
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            text = re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            parts.append(f"{text}/")
    expression = "".join(parts)
    # A pattern that ends in `**` means every file below.
    expression = expression[:-1] if expression.endswith("/") else f"{expression}[^/]+"
    return re.compile(expression)


def _evidence(quote: Quote) -> QuoteEvidence:
    return QuoteEvidence(quote.message, quote.signature, dict(quote.pcrs))
