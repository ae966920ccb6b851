"""Certify a training: from a spec to a published certificate that verifies.

provision -> job -> fetch -> image -> train -> outputs -> quote -> publish -> verify -> destroy

What is provisioned is destroyed, whatever happened. A failure shows in the run's state what went
wrong, what was expected and what to do; nothing is left half-published.
"""

import json
import shlex
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from prefect import flow, runtime
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, State
from prefect.concurrency.sync import concurrency
from prefect.flows import Flow
from prefect.states import Completed, Failed
from prefect.tasks import Task

from aicert.agent import machine as machines
from aicert.agent import spec as specs
from aicert.agent.machine import MachineConfig, MachineHandle
from aicert.agent.places import default_state
from aicert.agent.spec import Spec
from aicert.errors import Error
from aicert.verify import Verdict
from blocks import (
    AnyMachine,
    AzureBlobStore,
    CertificateStore,
    FolderStore,
    FsspecStore,
    InputCredentials,
    LocalMachine,
    Machine,
    VerificationPolicy,
)
from blocks.base import AicertBlock
from flows import earlier, original
from tasks.destroy import destroy, end
from tasks.fetch import fetch
from tasks.image import image
from tasks.job import job
from tasks.outputs import outputs
from tasks.provision import provision
from tasks.publish import publish
from tasks.quote import quote
from tasks.reporting import StepError, failing_as, logger, outlive_the_reader, told
from tasks.train import train
from tasks.verify import local_folder, verify

P = ParamSpec("P")


class ChoiceError(Error):
    """The parameters do not say which spec to run."""

    code = "run.spec-choice"


class ExposedSecretError(Error):
    """A secret stands in the run's parameters, where everybody reads it."""

    code = "run.exposed-secret"


def run_name() -> str:
    """Name a run after its spec, and after its own id to tell it from others of the same spec."""
    parameters = runtime.flow_run.parameters
    spec, file = parameters.get("spec"), parameters.get("spec_file")
    if isinstance(spec, dict):
        spec = spec.get("name")
    elif isinstance(spec, Spec):
        spec = spec.name
    if not spec:
        path = Path(str(file or "certify")).expanduser()
        try:
            spec = specs.load(path).name
        except Error:  # the run will say so
            spec = path.stem if path.stem != "spec" else path.absolute().parent.name
    return f"{spec}-{str(runtime.flow_run.id)[-6:]}"


def clean_up(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Remove what the machine of a run left behind whose process was killed.

    A machine ended with that process; this removes its folder, from wherever Prefect calls it. One
    that may outlive its process is ended here where the run was cancelled, for nobody will retry
    that; other machines that live are left alone, so it can do no harm.
    """
    del flow
    folder = state_of(flow_run.parameters.get("machine"))
    if state.is_cancelled():
        for machine in machines.living(folder):
            if machine.tags.get("flowRun") == str(flow_run.id):
                machines.destroy(machine.handle)
    for swept in machines.sweep(folder):
        logger().info("removed what machine %s left behind", swept)


def state_of(machine: object) -> Path:
    """Return the state folder of a machine as a run's parameters give it: a reference or fields."""
    if isinstance(machine, dict) and "$ref" in machine:
        block = Block.load_from_ref(machine["$ref"], _sync=True)  # type: ignore[call-arg]
        assert isinstance(block, Machine)
        return block.config().state
    return (
        LocalMachine(state=machine.get("state") if isinstance(machine, dict) else None)
        .config()
        .state
    )


SLOT_SECONDS = 60
"""How long a killed run's slot stays taken."""


@flow(
    name="certify",
    flow_run_name=run_name,
    log_prints=False,
    persist_result=False,
    on_cancellation=[clean_up],
    on_crashed=[clean_up],
)
def certify(
    spec: Spec | None = None,
    spec_file: str | None = None,
    base: str | None = None,
    certified: dict[str, str] | None = None,
    machine: AnyMachine | None = None,
    store: FolderStore | FsspecStore | AzureBlobStore | None = None,
    credentials: InputCredentials | None = None,
    policy: VerificationPolicy | None = None,
    publish_weights: bool = False,
) -> dict[str, Any]:
    """Run a training on a machine with a TPM, and publish a certificate of it.

    The certificate binds the outputs to the data, code, container and software that made them.

    Args:
        spec: What to train, by fields. Choose this or a spec file.
        spec_file: What to train: the path of a YAML or JSON file, as the worker sees it. Relative
            paths in it start from its folder.
        base: For a spec by fields: the folder on the worker that its relative paths start from.
            None: such a spec reads no files of the worker.
        certified: Certified models to add to the inputs, by name: the paths of their certificates
            on the worker, with `weights` beside each. They must pass the same policy.
        machine: Where to train. None is a machine on the worker's host with a software TPM, for
            trying things out.
        store: Where to publish. None is the folder ~/.local/state/aicert/store of the worker's
            user.
        credentials: What the sources of the inputs and of the image ask for.
        policy: What the certificate must pass before it is published, and after. None lets your
            own CA vouch for the machine, and is content with the software TPM of a local one.
        publish_weights: Publish the outputs beside the certificate. If not, they end with the
            machine.
    """

    def work() -> dict[str, Any]:
        with failing_as("spec"):
            chosen, folder = choose_spec(spec, spec_file, base)
        where = machine or LocalMachine()
        for name, certificate in (certified or {}).items():
            with failing_as("original"):
                held = original.weights(certificate, None, why=f"the input {name}")
                demanded = policy or own_policy(where.config())
                verified = demanded.verify(original.read(certificate), model=held)
                chosen = original.add(chosen, folder, name, verified, held)
        return perform(
            chosen,
            folder,
            machine=where,
            store=store or FolderStore(folder=default_state() / "store"),
            secrets=credentials.for_spec(chosen) if credentials else {},
            policy=policy,
            publish_weights=publish_weights,
        )

    return ended(work)  # type: ignore[no-any-return]


def ended(work: Callable[[], dict[str, Any] | State[Any]]) -> Any:
    """Return the state in which a run ends: that of its result, or of the step that failed.

    A state, and not a value or an error: so its message is the whole story, and nothing else.
    """
    try:
        with failing_as("parameters"):
            refuse_exposed_secrets()
        done = work()
    except StepError as error:
        return failure(error)
    if isinstance(done, State):
        return told(done)
    return told(Completed(message=f"certified: {done['certificate']}", data=done))


def refuse_exposed_secrets() -> None:
    """Refuse a run of a deployment whose parameters hold a secret: the server keeps and shows them.

    Raises:
        ExposedSecretError: a block with a secret was given by its fields.
    """
    if runtime.deployment.id is None:
        return  # called from Python: Prefect is told of blocks without their secrets
    for name, value in runtime.flow_run.parameters.items():
        if isinstance(value, AicertBlock) and value.exposed:
            raise ExposedSecretError(
                "a secret stands in this run's parameters, which the server keeps and shows",
                got=f"{name}, given by its fields",
                expected="a saved block, by its name",
                advice="take the secret out of use, and delete this run; save the block, and give "
                f'{{"$ref": {{"block_document_slug": "{value.get_block_type_slug()}/NAME"}}}}',
            )


def failure(error: StepError) -> State[Any]:
    """Return the state of a run that failed."""
    return told(Failed(message=str(error), data=error.with_traceback(None)))


def choose_spec(
    spec: Spec | None, spec_file: str | None, base: str | None = None
) -> tuple[Spec, str | None]:
    """Return the spec and the folder that its relative paths start from.

    Raises:
        ChoiceError: neither or both of the two are given.
        SpecError: the file has mistakes; all are named.
    """
    if (spec is None) == (spec_file is None):
        raise ChoiceError(
            "the run needs a spec" if spec is None else "there are two specs",
            expected="either `spec` (by fields) or `spec_file` (a file on the worker)",
            advice="fill in one of the two",
        )
    if spec is not None:
        return spec, base
    assert spec_file is not None
    path = Path(spec_file).expanduser().absolute()
    return specs.load(path), str(path.parent)


def perform(
    spec: Spec,
    base: str | None,
    *,
    machine: Machine,
    store: CertificateStore,
    secrets: dict[str, dict[str, Any]],
    policy: VerificationPolicy | None,
    publish_weights: bool,
) -> dict[str, Any]:
    """Do every step, and destroy the machine in any case; return where the certificate is."""
    outlive_the_reader()
    with failing_as("spec"):
        spec.require_model()
    config = machine.config()
    with failing_as("store"):
        # Now, and not after hours of training.
        store.open().check()
    lives = (living.tags.get("flowRun") for living in machines.living(config.state))
    if str(runtime.flow_run.id) not in lives:
        demanded = policy or own_policy(config)
        if (verdict := earlier.published(spec, store, demanded)) is not None:
            return _published_earlier(verdict, store, demanded, publish_weights)
    # Waits for a slot where the operator has set a limit; a lost lease must not end a training, and
    # a killed run must not keep its slot for long.
    limit = f"aicert-{config.kind}"
    with concurrency(limit, lease_duration=SLOT_SECONDS, raise_on_lease_renewal_failure=False):
        return _perform(spec, base, config, store, secrets, policy, publish_weights)


def _perform(
    spec: Spec,
    base: str | None,
    config: MachineConfig,
    store: CertificateStore,
    secrets: dict[str, dict[str, Any]],
    policy: VerificationPolicy | None,
    publish_weights: bool,
) -> dict[str, Any]:
    start = time.monotonic()
    name = spec.name
    chain = _Chain()
    handle = chain(provision, config, str(uuid.uuid4()), name=name, spec=spec.digest)
    run = str(uuid.UUID(handle["run"]))  # a string of our own: see `_Chain`
    logger().info("run %s of %s, spec sha256:%s", run, spec.name, spec.digest)
    try:
        policy = policy or own_policy(config)
        chain(job, handle, run, spec=spec.to_json(), base=base)
        chain(fetch, handle, run, name=name, secrets=secrets)
        chain(image, handle, run, name=name, secrets=secrets)
        trained = chain(train, handle, run, name=name)
        made = chain(outputs, handle, run, name=name)
        quoted = chain(quote, handle, run, name=name)
        published = chain(
            publish,
            handle,
            run,
            name=name,
            digest=quoted["summary"]["certificate"],
            store=store,
            policy=policy,
            weights=publish_weights,
        )
        command = verify_command(published, policy)
        verdict = chain(verify, published, name=name, store=store, policy=policy, command=command)
    except Exception as error:
        if config.outlive and isinstance(error, StepError) and error.transient:
            logger().warning(
                "machine %s stays for %d s: retry this run, and it goes on from here",
                handle["id"],
                config.outlive,
            )
            machines.release(MachineHandle.from_json(handle))
        else:
            _destroy(chain, handle, run, keep=config.keep)
        raise
    except BaseException:
        # Cancelled or interrupted: at once, and with nothing of Prefect in between.
        end(handle, run)
        raise
    _destroy(chain, handle, run, keep=False)
    return {
        "name": name,
        "run": run,
        **published,
        "assurance": verdict["assurance"],
        "verify": command,
        "outputs": made["summary"],
        "metrics": trained["summary"]["metrics"],
        "trainingMilliseconds": trained["summary"]["durationMilliseconds"],
        "totalMilliseconds": round((time.monotonic() - start) * 1000),
    }


def _published_earlier(
    verdict: Verdict, store: CertificateStore, policy: VerificationPolicy, weights: bool
) -> dict[str, Any]:
    """Do what is left of a run whose certificate an earlier attempt of it published; return it."""
    run, digest = verdict.run, verdict.certificate_digest
    logger().warning("certificate sha256:%s was published before this run was killed", digest)
    url = f"{store.open().url}/certificates/{digest}"
    published = {
        "digest": digest,
        "url": url,
        "certificate": f"{url}/certificate.json",
        "weights": f"{url}/weights" if weights else None,
        "new": False,
    }
    command = verify_command(published, policy)
    name = run.job.spec.name
    again = verify(published, name=name, store=store, policy=policy, command=command)
    made = run.outputs.manifest
    return {
        "name": name,
        "run": run.job.run,
        **published,
        "assurance": again["assurance"],
        "verify": command,
        "outputs": {
            "root": made.root,
            "files": [file.to_json() for file in made.files[:100]],
            "count": len(made.files),
            "size": made.size,
            "unmatched": [],
        },
        "metrics": None if run.end.metrics is None else dict(run.end.metrics.values),
        "trainingMilliseconds": run.end.duration_milliseconds,
        "totalMilliseconds": 0,
    }


def own_policy(config: MachineConfig) -> VerificationPolicy:
    """Return the policy of an operator who trusts the CA that certifies such machines."""
    root = config.ca / "authority" / "root.pem"
    if config.kind in ("azure-host", "azure"):
        return VerificationPolicy()  # whose roots hold Azure's own
    if not root.exists():
        return VerificationPolicy()  # no CA yet: there is nothing that it has certified
    if config.kind in ("local", "qemu"):
        return VerificationPolicy(allow_simulated=True, roots=root)
    return VerificationPolicy(hardware_roots=root)


class _Chain:
    """Calls tasks one after another, so that the run page draws them as one line."""

    def __init__(self) -> None:
        # All of them, and not the last alone: Prefect knows results by the address of the object,
        # and a result that is forgotten would lend its address to something else.
        self._results: list[Any] = []

    def __call__(
        self, step: Task[P, dict[str, Any]], *args: P.args, **kwargs: P.kwargs
    ) -> dict[str, Any]:
        # Prefect knows results, and the strings in them, by identity, and would draw an arrow from
        # `provision` to every step that takes its handle: so a step gets copies, and waits for
        # the one before it.
        options: dict[str, Any] = {"wait_for": self._results[-1:]}
        result = step(*map(_copy, args), **kwargs, **options)
        self._results.append(result)
        return dict(result)


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, dict) else value


def _destroy(chain: _Chain, handle: dict[str, Any], run: str, *, keep: bool) -> None:
    try:
        chain(destroy, handle, run, keep=keep)
    finally:
        end(handle, run, keep=keep)  # whatever became of the task


def verify_command(published: dict[str, Any], policy: VerificationPolicy) -> str:
    """Return what a person runs to check for themselves."""
    folder = local_folder(published["url"])
    place = published["url"] if folder is None else str(folder)
    words = ["aicert", "verify", f"{place}/certificate.json"]
    if published["weights"] is not None:
        words += ["--model", f"{place}/weights"]
    if policy.roots is not None:
        words += ["--root", str(policy.roots)]
    if policy.hardware_roots is not None:
        words += ["--hardware-root", str(policy.hardware_roots)]
    if policy.policy is not None:
        words += ["--policy", str(policy.policy)]
    elif policy.allow_simulated:
        words += ["--allow-simulated"]
    return shlex.join(words)
