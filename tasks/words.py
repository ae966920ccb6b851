"""Words for people: artifact keys, and Markdown and lines that somebody else's text cannot break.

Nothing here needs Prefect, so that a terminal can use it before Prefect is imported.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from aicert.card import clean

_MAX_LINE = 4000
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def key(*parts: str) -> str:
    """Return an artifact key: lower-case letters, digits and dashes, the same in every run."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(("aicert", *parts)).lower()).strip("-")


def plain(line: str) -> str:
    """Return a line of somebody else's output without escapes, so that it changes no terminal."""
    return clean(_ANSI.sub("", line).replace("\t", "    "), _MAX_LINE)


def text(value: object) -> str:
    """Return somebody else's text so that Markdown shows it and does nothing else with it."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&@])", r"\\\1", clean(value)).replace("://", ":\\//")


def code(value: object) -> str:
    """Return somebody else's text as Markdown code, whatever backticks it holds."""
    shown = clean(value, 1000).replace("|", "\\|") or " "
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def key_values(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of names and values."""
    return table(("", ""), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the cells must be Markdown already."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def measured(record: dict[str, Any], labels: Sequence[str] = ()) -> str:
    """Return the Markdown that shows what a step measured: events, digests, the PCRs after."""
    rows = []
    for index, event in enumerate(record["events"]):
        label = labels[index] if index < len(labels) else event["type"]
        rows.append((str(event["recnum"]), label, f"PCR {event['pcr']}", f"`{event['digest']}`"))
    changed = sorted({str(event["pcr"]) for event in record["events"]}, key=int)
    values = [(f"PCR {pcr}", f"`{record['pcrs'][pcr]}`") for pcr in changed]
    if not rows:
        values = [(f"PCR {pcr}", f"`{value}`") for pcr, value in record["pcrs"].items()]
    parts = ["## Measured", ""]
    if rows:
        parts += [
            table(("record", "event", "into", "SHA-256 of the event"), rows),
            "",
            "Each digest was extended into the TPM: new value = SHA-256(old value ‖ digest). "
            "After this step:",
            "",
        ]
    else:
        parts += ["This step measures nothing; the TPM stands at:", ""]
    return "\n".join([*parts, table(("", "value"), values), ""])
