"""Reproduce a training: from a certificate alone to a second run, and what the two share.

The second run is certified like any other. Beside its certificate stands the comparison, as an
in-toto statement that anybody can make again from the two certificates (`aicert compare`).
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.states import Completed

from aicert import keys, reproduction, vsa
from aicert.agent.places import default_state
from aicert.agent.reproduce import pinned, require_image
from aicert.agent.store import SourceError, Store
from aicert.errors import Error
from aicert.reproduction import Reproduction
from aicert.tensors import Tolerance
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
from flows.certify import clean_up, ended, own_policy, perform
from flows.original import read
from flows.original import weights as original_weights
from tasks.reporting import StepError, artifact, failing_as, logger
from tasks.words import code, key, key_values, table, text

STEP = "compare"


class ToleranceError(Error):
    """A tolerance is not a number, zero or more."""

    code = "reproduction.tolerance"


def run_name() -> str:
    """Name a run after its own id."""
    return f"reproduce-{str(runtime.flow_run.id)[-6:]}"


@flow(
    name="reproduce",
    flow_run_name=run_name,
    log_prints=False,
    persist_result=False,
    on_cancellation=[clean_up],
    on_crashed=[clean_up],
)
def reproduce(
    certificate: str,
    base: str | None = None,
    inputs: dict[str, str] | None = None,
    image: str | None = None,
    weights: str | None = None,
    absolute_tolerance: float | None = None,
    relative_tolerance: float | None = None,
    ignore: list[str] | None = None,
    statement_key: str | None = None,
    machine: LocalMachine | HostMachine | AzureHostMachine | None = None,
    store: FolderStore | FsspecStore | AzureBlobStore | None = None,
    credentials: InputCredentials | None = None,
    policy: VerificationPolicy | None = None,
    original_policy: VerificationPolicy | None = None,
) -> dict[str, Any]:
    """Train again what a certificate describes, and compare what comes out, bit by bit.

    Inputs are demanded by their digests, and the image by its own. The run fails where the outputs
    differ, or where tensors differ by more than a tolerance.

    Args:
        certificate: The certificate to reproduce: a path on the worker, or an https:// address.
        base: The folder on the worker that relative paths of the original spec start from.
        inputs: Where to have inputs from instead, by name. The content must be the same.
        image: Where to have the image from instead. It must be the same image.
        weights: The original's outputs, a folder on the worker, for a comparison with a tolerance.
            None is the folder `weights` beside the certificate.
        absolute_tolerance: How far values of tensors may be apart. None: every bit counts.
        relative_tolerance: The same, as a part of the original's value.
        ignore: Outputs that do not count, such as a file with times in it.
        statement_key: A private key (a PEM file on the worker) to sign the comparison with.
        machine: Where to train. None is a machine on the worker's host with a software TPM.
        store: Where to publish the second certificate. None is ~/.local/state/aicert/store.
        credentials: What the sources of the inputs and of the image ask for.
        policy: What the second certificate must pass. None lets your own CA vouch for it.
        original_policy: What the first must pass. None is the same policy.
    """

    def work() -> Any:
        where = machine or LocalMachine()
        place = store or FolderStore(folder=default_state() / "store")
        with failing_as("original"):
            tolerance = _tolerance(absolute_tolerance, relative_tolerance)
            signer = None if statement_key is None else keys.load_private_key(Path(statement_key))
            why = "a comparison with a tolerance"
            folder = original_weights(certificate, weights, why=why) if tolerance else None
            demanded = original_policy or policy or own_policy(where.config())
            original = demanded.verify(read(certificate), model=folder)
            spec = pinned(original.run, places=inputs, image=image)
            secrets = credentials.for_spec(spec) if credentials else {}
            start = None if base is None else Path(base).expanduser()
            require_image(original.run, spec, base=start, secrets=secrets.get("image"))
        logger().info("reproducing certificate sha256:%s", original.certificate_digest)
        try:
            result = perform(
                spec,
                base,
                machine=where,
                store=place,
                secrets=secrets,
                policy=policy,
                publish_weights=True,
            )
        except StepError as error:
            raise _elsewhere(error) from None
        with failing_as(STEP):
            opened = place.open()
            data = opened.read(result["digest"])
            again = (policy or own_policy(where.config())).verify(data)
            found = _compare(original, again, folder, opened, tolerance, ignore or [])
            name = f"reproduces-{original.certificate_digest}.json"
            made = reproduction.statement(found)
            views = {name: vsa.encode(made)}
            if signer is not None:
                views[name.replace(".json", ".dsse.json")] = vsa.sign(made, signer)
            opened.publish(data, views=views)
            _show(original.run.job.spec.name, found, f"{result['url']}/{name}")
            found.require()
        return Completed(
            message=f"{reproduction.headline(found)}\n{result['url']}/{name}",
            data={
                **result,
                "original": found.original,
                "result": found.result,
                "statement": f"{result['url']}/{name}",
                "comparison": reproduction.text(found),
            },
        )

    return ended(work)  # type: ignore[no-any-return]


def _elsewhere(error: StepError) -> StepError:
    """Return the failure of a step with what somebody can do who has only the certificate."""
    if error.step != "fetch" or error.transient:
        return error
    known = error.error
    known.advice = (
        "the original had it from there; where you have the same content elsewhere, name that "
        "place (--input NAME=URI, or --base for relative paths; in Prefect `inputs` and `base`)"
    )
    return StepError(error.step, known, tail=error.tail)


def _tolerance(absolute: float | None, relative: float | None) -> Tolerance | None:
    if absolute is None and relative is None:
        return None
    try:
        return Tolerance(absolute or 0.0, relative or 0.0)
    except ValueError as error:
        raise ToleranceError(str(error), got=f"{absolute}, {relative}") from None


def _compare(
    original: Verdict,
    again: Verdict,
    folder: Path | None,
    store: Store,
    tolerance: Tolerance | None,
    ignore: list[str],
) -> Reproduction:
    if tolerance is None or folder is None:
        return reproduction.compare(original, again, ignore=ignore)
    with tempfile.TemporaryDirectory(prefix="aicert-") as name:
        for file in again.run.outputs.manifest.files:
            if file.path.endswith(reproduction.TENSORS):
                _bring(store, again.certificate_digest, file.path, file.sha256, Path(name))
        folders = folder, Path(name)
        return reproduction.compare(
            original, again, tolerance=tolerance, folders=folders, ignore=ignore
        )


def _bring(store: Store, entry: str, path: str, sha256: str, folder: Path) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in store.iterate(entry, f"weights/{path}"):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        raise SourceError("the store returns other weights than were published", got=path)


def _show(name: str, found: Reproduction, url: str) -> None:
    summary = reproduction.headline(found)
    logger().info("%s", summary)
    rows = [
        ("Original", f"`sha256:{found.original}`"),
        ("Again", f"`sha256:{found.again}`"),
        ("Result", text(summary)),
    ]
    files = [(text(f.path), text(f.outcome), text(f.detail or "")) for f in found.files]
    lines = [
        "# Reproduction",
        "",
        key_values(rows),
        "",
        table(("file", "outcome", "how far away"), files),
        "",
        "The statement:",
        "",
        code(url),
    ]
    artifact(key(name, "reproduction"), summary, "\n".join(lines))
