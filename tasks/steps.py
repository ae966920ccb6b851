"""One step at the agent: ask for it, follow it, join it again where the connection breaks."""

import time
from typing import Any

from aicert.agent import machine
from aicert.agent.client import AgentClient, LostAgentError
from aicert.agent.machine import MachineHandle
from aicert.errors import Error
from tasks.reporting import Live, Message, StepError, is_transient, logger

_REJOIN_SECONDS = (0.2, 1.0, 3.0)


def perform(
    handle: dict[str, Any],
    run: str,
    step: str,
    body: dict[str, Any] | None = None,
    *,
    name: str,
) -> dict[str, Any]:
    """Do a step of the run at the agent and return its record; show messages as they come.

    The agent starts a step once: where the connection breaks and the agent still lives, the step
    is joined again, and what was shown already is not shown twice.

    Raises:
        StepError: the step failed, or the agent is gone.
    """
    live = Live(name, step)
    seen = 0

    def once(client: AgentClient) -> dict[str, Any]:
        position = 0

        def show(message: Message) -> None:
            nonlocal position, seen
            if message["type"] == "skipped":
                # The agent keeps the last lines alone; the log's file has all.
                position += message["count"]
                if position > seen:
                    logger().warning("%d messages of the step were not seen here", position - seen)
                    seen = position
                return
            position += 1
            if position > seen:
                seen = position
                live(message)

        return client.step(run, step, body, show)

    with machine.attach(MachineHandle.from_json(handle)) as client:
        for delay in (*_REJOIN_SECONDS, None):
            try:
                return once(client)
            except LostAgentError as error:
                if delay is None or not _lives(client, delay):
                    raise StepError(step, error, tail=tuple(live.tail)) from None
                logger().warning("the connection to the agent broke; joining %s again", step)
            except Error as error:
                raise StepError(
                    step,
                    error,
                    tail=tuple(live.tail) if step == "train" else (),
                    transient=is_transient(error),
                ) from None
    raise AssertionError("unreachable")


def _lives(client: AgentClient, delay: float) -> bool:
    """Tell whether the agent still answers, after a moment."""
    time.sleep(delay)
    try:
        client.health()
    except Error:
        return False
    return True
