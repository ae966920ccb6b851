"""Train again where something has changed: for schedules.

A mutable name (a branch, a tag, a folder) is looked at as a run would resolve it. Where all of
them still lead to what the newest certificate names, the run says so and stops.
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed

from aicert.agent import changes
from aicert.agent.places import default_state
from aicert.agent.spec import Spec
from aicert.verify import Verdict
from blocks import (
    AnyMachine,
    AzureBlobStore,
    CertificateStore,
    FolderStore,
    FsspecStore,
    InputCredentials,
    LocalMachine,
    VerificationPolicy,
)
from flows.certify import choose_spec, clean_up, ended, own_policy, perform, run_name
from tasks.reporting import artifact, failing_as, logger
from tasks.words import code, key, key_values, text


@flow(
    name="retrain",
    flow_run_name=run_name,
    log_prints=False,
    persist_result=False,
    on_cancellation=[clean_up],
    on_crashed=[clean_up],
)
def retrain(
    spec: Spec | None = None,
    spec_file: str | None = None,
    base: str | None = None,
    machine: AnyMachine | None = None,
    store: FolderStore | FsspecStore | AzureBlobStore | None = None,
    credentials: InputCredentials | None = None,
    policy: VerificationPolicy | None = None,
    publish_weights: bool = True,
) -> dict[str, Any]:
    """Certify a training again, if its spec, image or inputs have changed since the last time.

    The newest certificate of this name in the store that the policy accepts is the last time. The
    parameters are those of `certify`.

    Args:
        spec: What to train, by fields. Choose this or a spec file.
        spec_file: What to train: the path of a YAML or JSON file, as the worker sees it.
        base: For a spec by fields: the folder on the worker that its relative paths start from.
        machine: Where to train. None is a machine on the worker's host with a software TPM.
        store: Where to look and to publish. None is the folder ~/.local/state/aicert/store.
        credentials: What the sources of the inputs and of the image ask for.
        policy: What certificates must pass. None lets your own CA vouch for the machine.
        publish_weights: Publish the outputs beside the certificate.
    """

    def work() -> Any:
        with failing_as("spec"):
            chosen, folder = choose_spec(spec, spec_file, base)
        where = machine or LocalMachine()
        place = store or FolderStore(folder=default_state() / "store")
        secrets = credentials.for_spec(chosen) if credentials else {}
        demanded = policy or own_policy(where.config())
        last, changed = look(chosen, folder, place, secrets, demanded)
        if last is not None and not changed:
            url = f"{place.open().url}/certificates/{last.certificate_digest}"
            _show(chosen.name, last, url)
            return Completed(
                name="Unchanged",
                message=f"nothing has changed since {url}/certificate.json",
                data={"name": chosen.name, "changed": [], "certificate": f"{url}/certificate.json"},
            )
        result = perform(
            chosen,
            folder,
            machine=where,
            store=place,
            secrets=secrets,
            policy=policy,
            publish_weights=publish_weights,
        )
        return {**result, "changed": changed}

    return ended(work)  # type: ignore[no-any-return]


def look(
    spec: Spec,
    base: str | None,
    store: CertificateStore,
    secrets: dict[str, dict[str, Any]],
    policy: VerificationPolicy,
) -> tuple[Verdict | None, list[str]]:
    """Return the last certified run, if there is one, and what has changed since."""
    with failing_as("store"):
        opened = store.open()
        opened.check()
        demands = policy.demands().load()
        last = changes.newest(opened, spec.name, demands.verify)
    if last is None:
        logger().info("the store holds no certificate of %s that the policy accepts", spec.name)
        return None, []
    with failing_as("changes"):
        folder = None if base is None else Path(base)
        changed = changes.changes(spec, last.run, base=folder, secrets=secrets)
    for change in changed:
        logger().info("changed since %s…: %s", last.certificate_digest[:16], change)
    return last, changed


def _show(name: str, last: Verdict, url: str) -> None:
    summary = f"nothing has changed since certificate sha256:{last.certificate_digest[:16]}…"
    logger().info("%s", summary)
    rows = [
        ("Certificate", code(f"{url}/certificate.json")),
        ("Trained", text(last.run.outputs.finished_on.isoformat())),
        ("Assurance", f"`{last.assurance}`"),
    ]
    lines = (
        "# Nothing has changed",
        "",
        "The spec, the image and every input are those of the newest certificate, so there was "
        "nothing to train.",
        "",
        key_values(rows),
    )
    artifact(key(name, "unchanged"), summary, "\n".join(lines))
