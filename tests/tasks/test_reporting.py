"""What a person reads of a step: keys that stay, text that is harmless, errors that say it all."""

import pickle
from typing import Any

import pytest
from prefect.states import Failed

from aicert.agent.client import AgentError
from aicert.errors import Error
from tasks import reporting, words
from tasks.reporting import Live, StepError, may_retry
from tasks.words import key, measured, plain


def agent_error(code: str, **fields: Any) -> AgentError:
    return AgentError({"code": code, "message": "it went wrong", **fields})


def test_keys_hold_lower_case_letters_digits_and_dashes() -> None:
    assert key("my.model_1", "fetch", "input data/x") == "aicert-my-model-1-fetch-input-data-x"
    assert key("-a-", "job") == "aicert-a-job"


def test_a_failure_says_the_step_the_code_and_what_to_do() -> None:
    cause = agent_error("fetch.digest-mismatch", got="aa", expected="bb", advice="mend it")
    text = str(StepError("fetch", cause))
    assert text.startswith("fetch: it went wrong  [fetch.digest-mismatch]")
    assert "got:      aa" in text
    assert "expected: bb" in text
    assert "what to do: mend it" in text


def test_a_failed_training_shows_its_last_lines() -> None:
    error = StepError("train", agent_error("training.exit"), tail=["epoch 1", "ValueError: nan"])
    assert str(error).endswith("    epoch 1\n    ValueError: nan")


def test_a_step_error_crosses_processes_whole() -> None:
    error = StepError(
        "train", agent_error("training.exit", final=True), tail=["x"], transient=False
    )
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.code, copy.step, copy.tail) == ("training.exit", "train", ("x",))


@pytest.mark.parametrize(
    ("code", "final", "expected"),
    [
        ("fetch.network", False, True),
        ("fetch.network", True, False),
        ("store.unreachable", False, True),
        ("fetch.digest-mismatch", False, False),
        ("training.exit", True, False),
    ],
)
def test_only_what_may_pass_is_tried_again(code: str, final: bool, expected: bool) -> None:
    with pytest.raises(StepError) as caught, reporting.failing_as("fetch"):
        raise agent_error(code, final=final)
    assert may_retry(None, None, Failed(data=caught.value)) is expected  # type: ignore[arg-type]


def test_a_mistake_of_ours_is_not_tried_again() -> None:
    assert may_retry(None, None, Failed(data=ValueError())) is False  # type: ignore[arg-type]


def test_a_training_cannot_write_to_the_terminal_of_who_watches() -> None:
    assert plain("\x1b[31mred\x1b[0m \x1b]0;title\x07ok\x08") == "red ok�"
    assert plain("a\tb") == "a    b"


def test_other_peoples_text_stays_text() -> None:
    assert words.text("<img src=x>") == "\\<img src=x\\>"
    assert words.text("https://x") == "https:\\//x"
    assert words.code("a`b``c|d") == "``` a`b``c\\|d ```"


RECORD = {
    "step": "fetch",
    "events": [{"recnum": 1, "pcr": 14, "type": "input", "digest": "ab" * 32}],
    "pcrs": {"8": "00" * 32, "14": "cd" * 32},
    "summary": {},
}


def test_what_was_measured_is_shown_with_its_place_and_the_pcr_after() -> None:
    text = measured(RECORD, ["input data"])
    assert f"| 1 | input data | 14 | `{'ab' * 32}` |" in text
    assert f"**PCR 14**: `{'cd' * 32}`" in text
    assert "PCR 8" not in text


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Collect what would be written to the server."""
    calls: list[tuple[str, float]] = []

    def create(progress: float, key: str, description: str) -> str:
        calls.append((key, progress))
        return "artifact"

    def update(artifact: str, progress: float) -> None:
        calls.append((artifact, progress))

    monkeypatch.setattr(reporting, "create_progress_artifact", create)
    monkeypatch.setattr(reporting, "update_progress_artifact", update)
    return calls


def test_progress_is_written_once_a_second_and_at_the_end(
    written: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    live = Live("m", "fetch")
    for tenth in range(40):
        clock.now = tenth / 10
        live({"type": "progress", "what": "input d", "done": tenth, "total": 40, "unit": "bytes"})
    live({"type": "progress", "what": "input d", "done": 40, "total": 40, "unit": "bytes"})
    live({"type": "progress", "what": "input d", "done": 40, "total": 40, "unit": "bytes"})
    assert written == [
        ("aicert-m-fetch-input-d", 25.0),
        ("artifact", 50.0),
        ("artifact", 75.0),
        ("artifact", 100.0),
    ]


def test_what_is_done_at_once_has_no_progress(written: list[tuple[str, float]]) -> None:
    live = Live("m", "fetch")
    live({"type": "progress", "what": "input d", "done": 1, "total": 2, "unit": "bytes"})
    live({"type": "progress", "what": "input d", "done": 2, "total": 2, "unit": "bytes"})
    live({"type": "progress", "what": "empty", "done": 0, "total": 0, "unit": "bytes"})
    live({"type": "progress", "what": "unknown", "done": 5, "total": None, "unit": "bytes"})
    assert written == []


def test_an_artifact_that_cannot_be_written_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise OSError("the server is gone")

    said: list[str] = []

    class Log:
        def info(self, text: str, *values: object) -> None:
            pass

        def warning(self, text: str, *values: object) -> None:
            said.append(text % values)

    monkeypatch.setattr(reporting, "create_markdown_artifact", fail)
    monkeypatch.setattr(reporting, "logger", Log)
    reporting.show("m", "job", "title", "body")
    assert said == ["an artifact could not be written: OSError: the server is gone"]


def test_listeners_hear_how_a_step_ended() -> None:
    heard: list[tuple[str, str, str]] = []

    class Ear:
        def step(self, name: str, state: str, detail: str = "") -> None:
            heard.append((name, state, detail))

        def message(self, step: str, message: dict[str, Any]) -> None:
            heard.append((step, message["type"], ""))

    with reporting.listening(Ear()):
        with reporting.announced("job"):
            Live("m", "job")({"type": "log", "stream": "stdout", "line": "x"})
        with pytest.raises(Error), reporting.announced("fetch"):
            raise agent_error("fetch.network")
    with reporting.announced("image"):
        pass
    assert heard == [
        ("job", "running", ""),
        ("job", "log", ""),
        ("job", "done", ""),
        ("fetch", "running", ""),
        ("fetch", "failed", "fetch.network"),
    ]
