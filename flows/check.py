"""Look whether the blocks that a run would use work, on the worker where it would run."""

from typing import Any

from prefect import flow
from prefect.states import Completed, Failed

from aicert.agent.places import default_state
from blocks import (
    AnyMachine,
    AzureBlobStore,
    FolderStore,
    FsspecStore,
    InputCredentials,
    LocalMachine,
    VerificationPolicy,
)
from blocks.checks import Check
from flows.certify import ExposedSecretError, refuse_exposed_secrets
from tasks.reporting import artifact, logger, told
from tasks.words import key, table, text


@flow(name="check", log_prints=False, persist_result=False, timeout_seconds=600)
def check(
    machine: AnyMachine | None = None,
    store: FolderStore | FsspecStore | AzureBlobStore | None = None,
    credentials: InputCredentials | None = None,
    policy: VerificationPolicy | None = None,
) -> dict[str, Any]:
    """Look whether a run could start here with these blocks; nothing is changed.

    Args:
        machine: Where a run would train. None is a machine with a software TPM.
        store: Where it would publish. None is the folder ~/.local/state/aicert/store.
        credentials: What it would show to its sources.
        policy: What its certificate would have to pass.
    """
    found: list[Check] = []
    try:
        refuse_exposed_secrets()
    except ExposedSecretError as error:
        found.append(Check.failed("parameters", error))
    found += (machine or LocalMachine()).check()
    found += (store or FolderStore(folder=default_state() / "store")).check()
    found += credentials.check() if credentials else []
    found += policy.check() if policy else []
    bad = [item for item in found if not item.ok]
    for item in found:
        logger().log(20 if item.ok else 40, "%s", item)
    summary = f"{len(found) - len(bad)} of {len(found)} checks passed"
    rows = [
        ("✓" if item.ok else "**✗**", text(item.name), text(item.found), text(item.advice or ""))
        for item in (*bad, *(item for item in found if item.ok))
    ]
    head = ("", "what", "found", "what to do")
    artifact(key("check"), summary, "\n".join(["# Checks", "", table(head, rows)]))
    data = {"checks": len(found), "failed": [item.name for item in bad]}
    if bad:
        message = "\n".join([summary, *(f"  {item}" for item in bad)])
        return told(Failed(message=message))  # type: ignore[return-value]
    return told(Completed(message=summary, data=data))  # type: ignore[return-value]
