"""Words for people: numbers with units, and somebody else's text made harmless.

All text in a certificate is somebody else's. Nothing here needs more than the standard library.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence


def clean(text: object, limit: int = 300) -> str:
    """Return `text` on one line without control or format characters, cut to `limit`."""
    shown = "".join(
        "�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c
        for c in str(text)[: limit + 1]
    )
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(milliseconds: int) -> str:
    """Return a duration in the largest fitting units."""
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def text(value: object, limit: int = 300) -> str:
    """Return somebody else's text so that Markdown shows it and does nothing else with it."""
    shown = re.sub(r"([\\`*_{}\[\]<>()#+!|~&@])", r"\\\1", clean(value, limit))
    shown = re.sub(r"^(\s*)([-=])(?=\s|\2|$)", r"\1\\\2", shown)  # a rule, a list, a heading
    shown = re.sub(r"^(\s*\d+)\.(?=\s|$)", r"\1\\.", shown)  # a numbered list
    shown = re.sub(r"(?i)(www)\.", r"\1\\.", shown)  # a link, as GitHub and others make them
    return shown.replace("://", ":\\//")


def code(value: object) -> str:
    """Return somebody else's text as Markdown code, whatever backticks it holds."""
    shown = clean(value, 1000)
    if "\\|" in shown:
        # In a table some readers see an escaped bar there and some the end of the cell, which
        # would be that of the code too: only text can say it to all of them.
        return text(value, 1000)
    shown = shown.replace("|", "\\|") or " "
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def block(lines: str) -> str:
    """Return lines, each of them clean, as a Markdown block of code, whatever they hold."""
    longest = max((len(run) for run in re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{lines}\n{fence}"


def key_values(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of names and values; the first of them stands as its head.

    Markdown has no table without one, and an empty one is drawn as an empty row; a table that is
    but a head may not be drawn at all, so one pair is a line. Of no pairs it is nothing.
    """
    head = list(rows)
    if len(head) > 1:
        return table(head[0], head[1:])
    return "".join(f"**{name}**: {value}" for name, value in head)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the cells must be Markdown already."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
