"""How a run looks on a terminal: a line for each step, bars for what takes its time."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from aicert.words import clean
from tasks.words import plain

Message = dict[str, Any]


class Terminal:
    """Shows steps, progress and, where asked (`verbose`), the training's lines.

    On a terminal the running step is shown live; elsewhere each step is one line when it is done,
    so that a script's log stays readable.
    """

    def __init__(self, *, verbose: bool = False, console: Console | None = None) -> None:
        """Write to standard error, or to `console`."""
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._verbose = verbose
        self._started: dict[str, float] = {}
        self._spinner = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[line]}"),
            console=self._console,
            transient=True,
        )
        self._bars = Progress(
            TextColumn("    {task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=self._console,
            transient=True,
        )
        self._running: TaskID | None = None
        self._known: dict[str, TaskID] = {}
        self._live = _group(self._console, self._spinner, self._bars)

    def __enter__(self) -> "Terminal":
        """Begin to draw."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        if self._console.is_terminal:
            self._live.stop()

    def waiting(self, what: str) -> None:
        """Show that something is awaited before the first step."""
        self._show(what)

    def step(self, name: str, state: str, detail: str = "") -> None:
        """Show that a step runs, or how it ended."""
        if state == "running":
            self._started[name] = time.monotonic()
            self._show(name)
            return
        seconds = time.monotonic() - self._started.get(name, time.monotonic())
        mark = "[green]✓[/]" if state == "done" else "[red]✗[/]"
        text = f"{mark} {name:<10} {seconds:6.1f} s"
        self._console.print(f"{text}  [red]{escape(detail)}[/]" if detail else text)
        self._show(None)

    def message(self, step: str, message: Message) -> None:
        """Show a log line or progress."""
        del step
        if message["type"] == "log":
            line = plain(str(message["line"]))
            if self._verbose:
                self._console.print(f"  [dim]{escape(line)}[/]", soft_wrap=True)
            elif self._running is not None:
                self._spinner.update(self._running, line=escape(line[:100]))
        elif message["type"] == "progress" and message.get("unit") == "bytes":
            what = clean(message["what"], 40)
            if what not in self._known:
                self._known[what] = self._bars.add_task(escape(what), total=message.get("total"))
            self._bars.update(
                self._known[what], completed=message["done"], total=message.get("total")
            )

    def _show(self, name: str | None) -> None:
        if self._running is not None:
            self._spinner.remove_task(self._running)
            self._running = None
        for task in self._known.values():
            self._bars.remove_task(task)
        self._known.clear()
        if name is not None:
            self._running = self._spinner.add_task(f"{name:<10}", total=None, line="")


def _group(console: Console, *parts: Progress) -> Any:
    from rich.console import Group
    from rich.live import Live

    return Live(Group(*parts), console=console, transient=True, refresh_per_second=10)
