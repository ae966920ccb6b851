"""Put right what died: machines that nobody needs, and runs that a dead worker had taken.

Run it on every host that trains, for it looks at this host's machines; given a machine in Azure, it
also finds by their tags those of hosts that are gone. Everything it does is safe to do twice, and
at any time: what lives and is needed is left alone.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed, Scheduled

from aicert.agent import machine as machines
from aicert.agent.azure_vm import AzureVms, Owned
from aicert.agent.machine import FLOW_RUN_TAG, MachineHandle
from aicert.errors import Error
from blocks import AnyMachine, LocalMachine
from tasks.reporting import artifact, logger, told
from tasks.words import count, key, table, text

TAG = "aicert"
"""What every deployment of ours is tagged with, and so its runs."""


# While one hangs no other begins: so it ends.
@flow(name="reap", log_prints=False, persist_result=False, timeout_seconds=1800)
def reap(
    machine: AnyMachine | None = None,
    grace_minutes: float = 10,
    pending_minutes: float = 5,
) -> dict[str, Any]:
    """Remove what killed runs left, and reschedule runs that were never begun.

    Args:
        machine: Whose state folder to look at, and whose resource group where it is one in Azure.
            None is ~/.local/state/aicert.
        grace_minutes: How long a machine may outlive the end of its run. That of a cancelled run
            is ended at once.
        pending_minutes: How long a run may be pending before its worker counts as dead.
    """
    config = (machine or LocalMachine()).config()
    now = datetime.now(UTC)
    left: list[str] = []
    done = [("folder of a machine that was killed", item) for item in machines.sweep(config.state)]
    with get_client(sync_client=True) as client:
        grace = timedelta(minutes=grace_minutes, seconds=config.outlive)
        for living in machines.living(config.state):
            run = _read(client, living.tags.get("flowRun"))
            over = run is not None and _is_over(run, now, grace)
            if over or (living.expires is not None and living.expires < now):
                name = "a run that nobody knows" if run is None else run.name
                if destroyed(living.handle):
                    done.append((f"machine of {name}, which is over", living.handle.id))
                else:
                    left.append(living.handle.id)
        if config.azure is not None:

            def needed(item: Owned) -> bool:
                run = _read(client, item.tags.get(FLOW_RUN_TAG))
                return run is None or not _is_over(run, now, grace)

            try:
                reaped = AzureVms(config.azure.vm).reap(needed)
            except Error as error:
                logger().error("%s", error.diagnostics())
                left.append(config.azure.vm.group)
            else:
                done += [("in Azure, without a run that needs it", item.id) for item in reaped]
        for run in _stuck(client, now - timedelta(minutes=pending_minutes)):
            state: State[Any] = Scheduled(message="its worker died before the run began")
            client.set_flow_run_state(run.id, state, force=True)
            done.append(("run rescheduled", run.name))
    for what, which in done:
        logger().info("%s: %s", what, which)
    summary = f"{count(len(done), 'thing')} put right" if done else "nothing to put right"
    if done:
        rows = [(text(what), text(which)) for what, which in done]
        artifact(key("reap"), summary, "\n".join(["# Reaped", "", table(("what", "which"), rows)]))
    if left:
        message = f"{summary}; not removed, see the log: {', '.join(left)}"
        return told(Failed(message=message))  # type: ignore[return-value]
    return told(Completed(message=summary, data={"reaped": done}))  # type: ignore[return-value]


def destroyed(handle: MachineHandle) -> bool:
    """Destroy a machine; say why where it cannot be done."""
    try:
        machines.destroy(handle)
    except Error as error:
        logger().error("%s", error.diagnostics())
        return False
    return True


def _read(client: SyncPrefectClient, run: str | None) -> FlowRun | None:
    """Return a run; None where this server knows nothing of it, so that it is not ours to judge."""
    try:
        return client.read_flow_run(UUID(run)) if run else None
    except (ObjectNotFound, ValueError):
        return None


def _is_over(run: FlowRun, now: datetime, grace: timedelta) -> bool:
    """Tell whether a run will not need its machine any more."""
    if run.state is None or not run.state.is_final():
        return False
    return run.state.is_cancelled() or run.state.timestamp < now - grace


def _stuck(client: SyncPrefectClient, before: datetime) -> list[FlowRun]:
    """Return the runs that a worker took and never began."""
    pending = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=pending, tags=FlowRunFilterTags(all_=[TAG])),
        limit=200,
    )
    return [
        run
        for run in runs
        if run.deployment_id is not None
        and run.state is not None
        and run.state.timestamp < before
        and run.start_time is None
    ]


if __name__ == "__main__":
    reap()
