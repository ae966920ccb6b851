"""A step at the agent: shown once however often it is joined, and over when the agent is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import machine
from aicert.agent.client import AgentError, LostAgentError
from tasks import reporting, steps
from tasks.reporting import StepError
from tasks.steps import perform

HANDLE = {"id": "m", "kind": "local", "run": "r", "pid": 1, "directory": "/nowhere"}
RECORD = {"step": "train", "events": [], "pcrs": {}, "summary": {}}


class Agent:
    """Stands for an agent whose connection breaks, or that fails."""

    def __init__(self, *attempts: tuple[int, Exception | None], lives: bool = True) -> None:
        self.attempts = list(attempts)
        self.lives = lives
        self.lines = [f"line {number}" for number in range(5)]

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def step(
        self, run: str, step: str, body: object, on_event: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        lines, error = self.attempts.pop(0)
        for line in self.lines[:lines]:
            on_event({"type": "log", "stream": "stdout", "line": line})
        if error is not None:
            raise error
        return RECORD

    def health(self) -> dict[str, Any]:
        if not self.lives:
            raise LostAgentError("gone")
        return {}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written to the run's log."""
    lines: list[str] = []

    class Log:
        def info(self, text: str, *values: object) -> None:
            lines.append(text % values)

        warning = error = info

    monkeypatch.setattr(reporting, "logger", Log)
    monkeypatch.setattr(steps, "logger", Log)
    monkeypatch.setattr(steps, "_REJOIN_SECONDS", (0.0, 0.0))
    return lines


def use(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "attach", lambda handle: agent)


def lost() -> LostAgentError:
    return LostAgentError("the connection broke")


def test_messages_that_the_agent_has_no_more_are_counted_and_nothing_is_shown_twice(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Agent):
        def step(self, run: str, step: str, body: object, on_event: Any) -> dict[str, Any]:
            if len(self.attempts) == 1:
                on_event({"type": "skipped", "count": 3})
                self.lines = self.lines[3:]
            return super().step(run, step, body, on_event)

    use(Forgetful((2, lost()), (2, None)), monkeypatch)
    assert perform(HANDLE, "r", "train", name="m") == RECORD
    assert said[-3:] == ["1 messages of the step were not seen here", "line 3", "line 4"]


def test_a_step_that_is_joined_again_shows_nothing_twice(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Agent((2, lost()), (4, lost()), (5, None)), monkeypatch)
    assert perform(HANDLE, "r", "train", name="m") == RECORD
    assert [line for line in said if line.startswith("line")] == [f"line {n}" for n in range(5)]


def test_a_step_ends_at_once_when_the_agent_is_gone(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent((2, lost()), (5, None), lives=False)
    use(agent, monkeypatch)
    with pytest.raises(StepError) as caught:
        perform(HANDLE, "r", "train", name="m")
    assert caught.value.code == "agent.lost"
    assert not caught.value.transient
    assert len(agent.attempts) == 1


def test_a_connection_that_keeps_breaking_ends_the_step(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Agent(*[(1, lost())] * 3), monkeypatch)
    with pytest.raises(StepError, match=r"agent\.lost"):
        perform(HANDLE, "r", "train", name="m")


def test_what_the_agent_says_of_a_failure_is_kept(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = AgentError({"code": "training.exit", "message": "it ended", "got": "3", "final": True})
    use(Agent((3, error)), monkeypatch)
    with pytest.raises(StepError) as caught:
        perform(HANDLE, "r", "train", name="m")
    assert caught.value.code == "training.exit"
    assert caught.value.tail == ("line 0", "line 1", "line 2")
    assert not caught.value.transient


def test_the_lines_of_a_failed_fetch_are_no_training(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = AgentError({"code": "fetch.network", "message": "no answer", "final": False})
    use(Agent((3, error)), monkeypatch)
    with pytest.raises(StepError) as caught:
        perform(HANDLE, "r", "fetch", name="m")
    assert caught.value.tail == ()
    assert caught.value.transient
