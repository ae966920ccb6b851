"""Verify every certificate of a store, with what stands beside it: for schedules."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.states import Completed, Failed

from aicert.agent import audit as library
from aicert.agent.audit import Demands, EmptyStoreError, Finding
from aicert.agent.machine import MachineConfig
from aicert.agent.places import default_state
from blocks import AzureBlobStore, FolderStore, FsspecStore, VerificationPolicy
from flows.certify import failure, refuse_exposed_secrets
from tasks.reporting import StepError, artifact, failing_as, logger, told
from tasks.words import code, count, key, table, text

SHOWN = 200
"""The most entries that the report lists; failures come first."""


# While one hangs no other begins: so it ends, before the next night.
@flow(name="audit", log_prints=False, persist_result=False, timeout_seconds=20 * 3600)
def audit(
    store: FolderStore | FsspecStore | AzureBlobStore | None = None,
    policy: VerificationPolicy | None = None,
    weights: bool = True,
    jobs: int = 4,
) -> dict[str, Any]:
    """Verify every certificate of a store; fail where one does not verify.

    Args:
        store: The store. None is the folder ~/.local/state/aicert/store of the worker's user.
        policy: What every certificate must pass. None accepts what this host's own CAs certified.
        weights: Read the published weights too, and compare them with the certificates.
        jobs: How many certificates are verified at a time.
    """
    try:
        with failing_as("audit"):
            refuse_exposed_secrets()
            opened = store or FolderStore(folder=default_state() / "store")
            url, options = opened.source()
            demands = policy.demands() if policy else own_demands()
            progress = _Progress()
            try:
                found = library.audit(
                    url, options, demands, weights=weights, jobs=jobs, on_progress=progress
                )
            except EmptyStoreError:
                if store is not None:
                    raise
                # The one that nobody named, before the first run.
                message = f"nothing is published in {url}"
                return told(Completed(name="Empty", message=message))  # type: ignore[return-value]
    except StepError as error:
        return failure(error)  # type: ignore[return-value]
    bad = [finding for finding in found if finding.error is not None]
    _report(opened.open().url, found, bad)
    data = {
        "certificates": len(found),
        "failed": {item.digest: item.error.code for item in bad if item.error is not None},
    }
    if not bad:
        message = f"all {count(len(found), 'certificate')} verified"
        return told(Completed(message=message, data=data))  # type: ignore[return-value]
    lines = [f"{len(bad)} of {count(len(found), 'certificate')} did not verify"]
    lines += [f"  {item.digest}: {item.error.code}" for item in bad[:20] if item.error]
    return told(Failed(message="\n".join(lines)))  # type: ignore[return-value]


def own_demands() -> Demands:
    """Return the demands of an operator who trusts the CAs of the host's default machines."""
    local, virtual, host = (
        MachineConfig(kind=kind).ca / "authority" / "root.pem" for kind in ("local", "qemu", "host")
    )
    software = tuple(root for root in (local, virtual) if root.exists())
    return Demands(
        roots=software,
        hardware_roots=(host,) if host.exists() else (),
        allow_simulated=bool(software),
    )


class _Progress:
    """Shows in the UI how far an audit has come, where it takes a while."""

    def __init__(self) -> None:
        self._artifact: Any = None
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // total
        if total < 20 or percent == self._shown:
            return
        self._shown = percent
        if self._artifact is None:
            about = f"{total} certificates"
            self._artifact = create_progress_artifact(percent, key("audit", "progress"), about)
        else:
            update_progress_artifact(self._artifact, percent)


def _report(url: str, found: list[Finding], bad: list[Finding]) -> None:
    summary = f"{len(found) - len(bad)} of {count(len(found), 'certificate')} verified"
    logger().info("%s", summary)
    for item in bad:
        assert item.error is not None
        logger().error("%s: %s", item.digest, item.error.diagnostics())
    good = sorted(
        (item for item in found if item.finished_on is not None and item.error is None),
        key=lambda item: str(item.finished_on),
        reverse=True,
    )
    rows = [_row(item) for item in (*bad, *good)[:SHOWN]]
    lines = [
        "# The store",
        "",
        code(url),
        "",
        f"**{summary}**" + ("" if bad else ", with every manifest and weight beside them."),
        "",
        table(("", "certificate", "model", "trained", "assurance", "weights"), rows),
    ]
    if len(found) > SHOWN:
        lines += ["", f"{len(found) - len(rows)} more are not listed."]
    artifact(key("audit"), summary, "\n".join(lines))


def _row(item: Finding) -> tuple[str, ...]:
    trained = "" if item.finished_on is None else item.finished_on.strftime("%Y-%m-%d %H:%M")
    return (
        "✓" if item.error is None else f"**{text(item.error.code)}** {text(item.error.message)}",
        f"`{item.digest[:16]}…`",
        text(item.name or ""),
        trained,
        text(item.assurance or ""),
        "" if item.weights is None else str(item.weights),
    )
