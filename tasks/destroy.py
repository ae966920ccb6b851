"""End the machine, whatever happened, and leave no trace of it."""

import threading
from contextlib import suppress
from typing import Any

from prefect import task

from aicert.agent import machine
from aicert.agent.machine import MachineHandle
from aicert.errors import Error
from tasks.reporting import OPTIONS, announced

STEP = "destroy"
CANCEL_SECONDS = 1.0


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def destroy(handle: dict[str, Any], run: str, *, keep: bool = False) -> dict[str, Any]:
    """End the machine and remove its folder (unless `keep`); nothing happens where it is gone."""
    with announced(STEP):
        end(handle, run, keep=keep)
    return {"kept": str(handle["directory"]) if keep else None}


def end(handle: dict[str, Any], run: str, *, keep: bool = False) -> None:
    """Cancel the run at the agent and end the machine; needs no Prefect, and may be called twice.

    The agent is asked politely for a moment only: ending the machine ends it in any case.
    """
    held = MachineHandle.from_json(handle)
    if held.socket.exists():

        def cancel() -> None:
            with suppress(Error), machine.attach(held) as client:
                client.cancel(run)

        polite = threading.Thread(target=cancel, name="cancel", daemon=True)
        polite.start()
        polite.join(CANCEL_SECONDS)
    machine.destroy(held, keep=keep)
