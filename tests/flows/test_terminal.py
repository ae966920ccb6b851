"""What a person sees who runs `aicert run`, and what a script's log gets."""

import io
from typing import Any

from rich.console import Console

from flows.terminal import Terminal


def show(*events: tuple[Any, ...], terminal: bool, verbose: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=terminal,
        width=100,
        highlight=False,
        _environ={"TERM": "xterm"},  # whatever this process was started from
    )
    with Terminal(verbose=verbose, console=console) as shown:
        for kind, *arguments in events:
            getattr(shown, kind)(*arguments)
            shown._live.refresh() if terminal else None
    return out.getvalue()


LINE = {"type": "log", "stream": "stdout", "line": "epoch 1 \x1b[2J[bold]loss[/bold]"}
HALF = {"type": "progress", "what": "input d", "done": 1 << 20, "total": 2 << 20, "unit": "bytes"}


def test_a_script_gets_one_line_a_step() -> None:
    text = show(
        ("step", "fetch", "running"),
        ("message", "fetch", HALF),
        ("message", "fetch", LINE),
        ("step", "fetch", "done"),
        ("step", "train", "running"),
        ("step", "train", "failed", "training.exit"),
        terminal=False,
    )
    first, second = text.splitlines()
    assert first.startswith("✓ fetch") and first.endswith(" s")
    assert second.startswith("✗ train") and second.endswith("training.exit")


def test_a_terminal_shows_what_runs_and_how_far_it_is() -> None:
    text = show(("step", "fetch", "running"), ("message", "fetch", HALF), terminal=True)
    assert "fetch" in text
    assert "input d" in text
    assert "1.0/2.0 MiB" in text


def test_a_trainings_line_is_shown_as_text_and_only_where_asked_for() -> None:
    events = (("step", "train", "running"), ("message", "train", LINE))
    assert "epoch 1 [bold]loss[/bold]" in show(*events, terminal=False, verbose=True)
    assert "\x1b[2J" not in show(*events, terminal=True, verbose=True)
    assert show(*events, terminal=False) == ""
