"""Evaluate a certified model: run a benchmark on it, and certify what came of that.

The benchmark is a spec like that of any training, with `evaluation` in it: which input is the
model, and what its metrics must reach. The run is measured and certified like a training; its
certificate is about the model, and bound to the model's own certificate.
"""

import shlex
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.states import Completed

from aicert import evaluation, links
from aicert.agent.places import default_state
from aicert.agent.spec import Spec
from aicert.errors import Error
from aicert.log import Run
from aicert.verify import Verdict
from blocks import (
    AzureBlobStore,
    AzureHostMachine,
    FolderStore,
    FsspecStore,
    HostMachine,
    InputCredentials,
    LocalMachine,
    VerificationPolicy,
)
from flows import original
from flows.certify import choose_spec, clean_up, ended, own_policy, perform
from tasks.reporting import artifact, failing_as, logger
from tasks.words import code, command_block, key, key_values, table, text

STEP = "evaluate"


class NoEvaluationError(Error):
    """The spec is that of a training."""

    code = "evaluation.spec"


class BarError(Error):
    """The model did not reach what the spec demands; that is certified too."""

    code = "evaluation.failed"


def run_name() -> str:
    """Name a run after its own id."""
    return f"evaluate-{str(runtime.flow_run.id)[-6:]}"


@flow(
    name="evaluate",
    flow_run_name=run_name,
    log_prints=False,
    persist_result=False,
    on_cancellation=[clean_up],
    on_crashed=[clean_up],
)
def evaluate(
    certificate: str,
    spec: Spec | None = None,
    spec_file: str | None = None,
    base: str | None = None,
    weights: str | None = None,
    machine: LocalMachine | HostMachine | AzureHostMachine | None = None,
    store: FolderStore | FsspecStore | AzureBlobStore | None = None,
    credentials: InputCredentials | None = None,
    policy: VerificationPolicy | None = None,
    original_policy: VerificationPolicy | None = None,
) -> dict[str, Any]:
    """Run an evaluation of a certified model, and publish a certificate of it.

    The run fails where the model does not reach what the spec demands; its certificate is
    published either way.

    Args:
        certificate: The model's certificate: a path on the worker, or an https:// address.
        spec: The evaluation, by fields. Choose this or a spec file.
        spec_file: The evaluation: the path of a YAML or JSON file, as the worker sees it.
        base: For a spec by fields: the folder on the worker that its relative paths start from.
        weights: The model, a folder on the worker. None is `weights` beside the certificate.
        machine: Where to run it. None is a machine on the worker's host with a software TPM.
        store: Where to publish. None is ~/.local/state/aicert/store.
        credentials: What the sources of the inputs and of the image ask for.
        policy: What the evaluation's certificate must pass. None lets your own CA vouch for it.
        original_policy: What the model's must pass. None is the same policy.
    """

    def work() -> Any:
        where = machine or LocalMachine()
        place = store or FolderStore(folder=default_state() / "store")
        with failing_as("original"):
            folder = original.weights(certificate, weights, why="an evaluation")
            demanded = original_policy or policy or own_policy(where.config())
            data = original.read(certificate)
            verified = demanded.verify(data, model=folder)
        with failing_as("spec"):
            chosen, start = choose_spec(spec, spec_file, base)
            chosen = _with_model(chosen, start, verified, folder)
        logger().info("evaluating certificate sha256:%s", verified.certificate_digest)
        result = perform(
            chosen,
            start,
            machine=where,
            store=place,
            secrets=credentials.for_spec(chosen) if credentials else {},
            policy=policy,
            publish_weights=True,
        )
        with failing_as(STEP):
            made = place.open().read(result["digest"])
            run = (policy or own_policy(where.config())).verify(made).run
            links.check_evaluation(run, verified.certificate, verified.run)
            found = evaluation.result(run)
            assert found is not None
            summary = evaluation.says(run)
            _show(verified.run.job.spec.name, run, result, certificate)
            if found.failed:
                raise BarError(
                    "the model does not reach what the evaluation demands",
                    got=", ".join(f"{k} {v}" for k, v in (result["metrics"] or {}).items()),
                    expected=", ".join((*found.passed, *found.failed)),
                    advice=f"its certificate says so: {result['certificate']}",
                )
        return Completed(
            message=f"evaluated: {summary}\n{result['certificate']}",
            data={
                **result,
                "original": verified.certificate_digest,
                "result": found.word,
                "passed": list(found.passed),
                "summary": summary,
            },
        )

    return ended(work)  # type: ignore[no-any-return]


def _with_model(spec: Spec, base: str | None, verdict: Verdict, folder: Path) -> Spec:
    """Return the spec with the model as an input, or refuse one that evaluates something else."""
    if spec.evaluation is None:
        raise NoEvaluationError(
            "the spec is that of a training",
            got=spec.name,
            advice="say in it what is evaluated: `evaluation: {model: model}`",
        )
    return original.add(spec, base, spec.evaluation.model, verdict, folder)


def _show(name: str, run: Run, result: dict[str, Any], certificate: str) -> None:
    found = evaluation.result(run)
    assert found is not None
    summary = evaluation.says(run)
    logger().info("%s", summary)
    rows = [
        ("Evaluation", text(run.job.spec.name)),
        ("Result", f"**{found.word}**"),
        ("Certificate", f"`sha256:{result['digest']}`"),
    ]
    demands = [(text(item), "reached") for item in found.passed]
    demands += [(text(item), "**not reached**") for item in found.failed]
    metrics = [(text(k), text(str(v))) for k, v in (result["metrics"] or {}).items()]
    command = shlex.join(["aicert", "verify", certificate, "--evaluation", result["certificate"]])
    lines = [
        f"# {text(run.job.spec.name)}",
        "",
        key_values(rows),
        "",
        *([table(("demanded before the run", ""), demands), ""] if demands else []),
        table(("metric", "as measured"), metrics),
        "",
        code(result["certificate"]),
        "",
        "See both together:",
        "",
        command_block(command),
    ]
    artifact(key(name, "evaluation", run.job.spec.name), summary, "\n".join(lines))
