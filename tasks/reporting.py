"""What every step shares: words for people, live progress, and errors that say what to do.

An artifact that cannot be written is a warning in the run's log and nothing more: artifacts are
views, and a view must not end a training.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from prefect import runtime
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.exceptions import FailedRun, MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.tasks import Task

from aicert.agent.client import AgentError
from aicert.errors import Error
from aicert.words import clean, size
from tasks.words import key, plain

PROGRESS_SECONDS = 1.0
"""How often a progress artifact is written, and how long work must last to get one."""

TAIL_LINES = 12
"""How many of the training's last lines a failure shows."""

RETRY_DELAYS = [2.0, 10.0, 30.0]
"""Seconds before each new attempt of a step that may be tried again."""

_TRANSIENT = frozenset(
    {
        "fetch.network",
        "fetch.changed",
        "fetch.busy",
        "image.copy",
        "store.unreachable",
        "azure-vm.unavailable",
        "azure-vm.throttled",
    }
)

Message = dict[str, Any]


def outlive_the_reader() -> None:
    """Let Prefect's console fall silent once whoever reads this process's output has died.

    A worker reads what its runs write. Where it is killed, `rich` would end the run's process at
    the next line, and a training of hours with it. The lines go on to the server.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            silence = partial(setattr, handler.console, "quiet", True)
            handler.console.on_broken_pipe = silence  # type: ignore[method-assign]


class StepError(Error):
    """A step failed; the text of this error is what the run's state shows.

    `step` names the step, `tail` the training's last lines where there are any. `transient` says
    that the same step may be tried again.
    """

    def __init__(
        self,
        step: str,
        error: Error,
        *,
        tail: Sequence[str] = (),
        transient: bool = False,
    ) -> None:
        """Take over the code and the texts of `error`."""
        super().__init__(error.message, got=error.got, expected=error.expected, advice=error.advice)
        self.code = error.code  # type: ignore[misc]
        self.step = step
        self.error = error
        self.tail = tuple(tail)
        self.transient = transient

    def __str__(self) -> str:
        """Return everything a person needs to know, in a few lines."""
        return self.diagnostics()

    def __repr__(self) -> str:
        """Return the step and the code: Prefect writes this in front of the whole text."""
        return f"StepError({self.step}, {self.code})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the parts, so that the error crosses processes whole."""
        return (_step_error, (self.step, self.error, self.tail, self.transient))

    def diagnostics(self) -> str:
        """Return the failure and, after a training's, its last lines, if it has none yet."""
        text = f"{self.step}: {self.error.diagnostics()}"
        if self.tail and self.tail[-1] not in text:
            text += "\n  the training's last lines:\n" + "\n".join(f"    {x}" for x in self.tail)
        return text


class _WithoutTraceback(logging.Filter):
    """Has the log of a run end with a step's error, which is the whole story.

    Prefect ends it with forty lines of its own: where in itself it raised the error again.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, StepError | FailedRun):
            record.msg, record.args, record.exc_info = "%s", (error,), None
        return True


logging.getLogger("prefect.flow_runs").addFilter(_WithoutTraceback())


def _step_error(step: str, error: Error, tail: tuple[str, ...], transient: bool) -> StepError:
    return StepError(step, error, tail=tail, transient=transient)


def may_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # Prefect's signature
    """Tell whether a task that failed may be tried again: only after a transient error."""
    del task, run
    return isinstance(state.data, StepError) and state.data.transient


OPTIONS: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": len(RETRY_DELAYS),
    "retry_delay_seconds": RETRY_DELAYS,
    "retry_condition_fn": may_retry,
}
"""How every step runs. A measurement is never cached; and whether a step is tried again is for
`may_retry` to say, which knows no failed training, no wrong digest and no failed quote that may."""


def is_transient(error: Error) -> bool:
    """Tell whether a second attempt may mend this: the run still stands, and the cause may pass."""
    return error.code in _TRANSIENT and not (isinstance(error, AgentError) and error.final)


@contextmanager
def failing_as(step: str) -> Iterator[None]:
    """Turn an error of ours into the step's own, which Prefect shows whole."""
    try:
        yield
    except StepError:
        raise
    except Error as error:
        raise StepError(step, error, transient=is_transient(error)) from None


# -- artifacts -----------------------------------------------------------------------------------


def logger() -> "logging.Logger | logging.LoggerAdapter[logging.Logger]":
    """Return the run's logger, or a plain one outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("aicert")


def show(name: str, step: str, summary: str, *body: str) -> None:
    """Write the artifact of a step, under the key that it has in every run of this spec.

    `summary` is one line: it stands in the run's log and in every list of artifacts.
    """
    logger().info("%s: %s", step, summary)
    artifact(key(name, step), summary, "\n".join(body))


def artifact(artifact_key: str, summary: str, markdown: str) -> None:
    """Write a Markdown artifact."""
    _quietly(
        lambda: create_markdown_artifact(markdown=markdown, key=artifact_key, description=summary)
    )


def _quietly(write: Callable[[], Any]) -> Any:
    try:
        return write()
    except Exception as error:
        logger().warning("an artifact could not be written: %s: %s", type(error).__name__, error)
        return None


# -- how a run ended -----------------------------------------------------------------------------

TOLD = "aicert.run"
"""The event that tells how a run of ours ended: `aicert.run.completed` or `aicert.run.failed`."""

TOLD_SECONDS = 2.0
"""How long a run waits for the server to take the event."""


def told(state: State[Any]) -> State[Any]:
    """Tell in an event how a run ends, and return the state in which it does.

    `prefect deployment run --watch` prints events, and of the state no more than its name: so a
    script's log says where the certificate is, or what went wrong. It reads them until the run has
    ended; the server should have this one before.
    """
    line = "; ".join(" ".join(part.split()) for part in str(state.message or "").splitlines())
    line = line.replace(":; ", ": ")  # where a list begins
    # Prefect prints the name as markup of `rich`, which would take a code in brackets for a tag.
    name = clean(line, 1000).replace("[", "(").replace("]", ")")
    resource = {
        "prefect.resource.id": f"{TOLD}.{runtime.flow_run.id}",
        "prefect.resource.name": name,
    }
    emit_event(f"{TOLD}.{'completed' if state.is_completed() else 'failed'}", resource)
    sent = threading.Thread(target=EventsWorker.instance().wait_until_empty, daemon=True)
    sent.start()
    sent.join(TOLD_SECONDS)
    return state


# -- what a terminal may want to hear ------------------------------------------------------------


class Listener(Protocol):
    """Somebody who wants to hear how a run goes, beside Prefect: a terminal, for instance."""

    def step(self, name: str, state: str, detail: str = "") -> None:
        """Hear that a step is `running`, `done` or `failed`."""

    def message(self, step: str, message: Message) -> None:
        """Hear a log line or a progress message of a step."""


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` hear every step of the runs in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def announced(step: str) -> Iterator[None]:
    """Tell listeners that a step runs, and how it ended."""
    _tell(lambda listener: listener.step(step, "running"))
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, Error) else type(error).__name__
        if isinstance(error, StepError):
            logger().error("%s", error)
        _tell(lambda listener: listener.step(step, "failed", code))
        raise
    _tell(lambda listener: listener.step(step, "done"))


def _tell(say: Callable[[Listener], None]) -> None:
    for listener in tuple(_listeners):
        say(listener)


# -- live ----------------------------------------------------------------------------------------


class Live:
    """Shows the messages of one step as they come: log lines and progress.

    Lines go to the run's log. What takes longer than `PROGRESS_SECONDS` gets a progress artifact
    of its own, written at most that often, and once more when it is done.
    """

    def __init__(self, name: str, step: str) -> None:
        """Show a step of the spec `name`."""
        self._name = name
        self._step = step
        self._log = logger()
        self._progress: dict[str, _Progress] = {}
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def __call__(self, message: Message) -> None:
        """Show one message."""
        _tell(lambda listener: listener.message(self._step, message))
        if message["type"] == "log":
            line = plain(str(message["line"]))
            self.tail.append(line)
            self._log.info("%s", line)
        elif message["type"] == "progress":
            what = str(message["what"])
            if what not in self._progress:
                name = "progress" if what == self._step else what
                self._progress[what] = _Progress(key(self._name, self._step, name), what)
            self._progress[what].show(
                message["done"], message.get("total"), clean(message["unit"], 20)
            )


class _Progress:
    """The progress artifact of one thing that takes its time."""

    def __init__(self, artifact_key: str, what: str) -> None:
        self._key = artifact_key
        self._what = clean(what, 100)
        self._artifact: UUID | None = None
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._finished = False

    def show(self, done: int, total: int | None, unit: str) -> None:
        """Write the artifact, if it is time."""
        finished = total is not None and done >= total
        if self._finished or not total:
            return
        if time.monotonic() < self._next and not (finished and self._artifact is not None):
            return
        self._next = time.monotonic() + PROGRESS_SECONDS
        self._finished = finished
        percent = min(100.0, 100.0 * done / total)
        artifact = self._artifact
        if artifact is None:
            about = f"{self._what}: {size(total) if unit == 'bytes' else f'{total} {unit}'}"
            self._artifact = _quietly(lambda: create_progress_artifact(percent, self._key, about))
        else:
            _quietly(lambda: update_progress_artifact(artifact, percent))
