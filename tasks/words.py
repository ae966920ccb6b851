"""Words for people: artifact keys, and what steps have in common to say in Markdown.

Nothing here needs Prefect, so that a terminal can use it before Prefect is imported.
"""

import re
from collections.abc import Sequence
from typing import Any

from aicert.words import clean, code, count, key_values, table, text

__all__ = [
    "code", "command_block", "count", "key", "key_values", "measured", "plain", "stands", "table",
    "text",
]  # fmt: skip

_MAX_LINE = 4000
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def key(*parts: str) -> str:
    """Return an artifact key: lower-case letters, digits and dashes, the same in every run."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(("aicert", *parts)).lower()).strip("-")


def plain(line: str) -> str:
    """Return a line of somebody else's output without escapes, so that it changes no terminal."""
    return clean(_ANSI.sub("", line).replace("\t", "    "), _MAX_LINE)


def command_block(command: str) -> str:
    """Return a command as a Markdown block, an option a line, so that all of it is seen."""
    shown = clean(command, 4000).replace("```", "")
    return "```\n" + shown.replace(" --", " \\\n  --") + "\n```"


def measured(record: dict[str, Any], labels: Sequence[str] = ()) -> str:
    """Return the Markdown that shows what a step measured: events, digests, the PCRs after."""
    rows = [
        (
            str(event["recnum"]),
            labels[index] if index < len(labels) else text(event["type"]),
            str(event["pcr"]),
            f"`{event['digest']}`",
        )
        for index, event in enumerate(record["events"])
    ]
    if not rows:
        values = [(f"PCR {pcr}", f"`{value}`") for pcr, value in record["pcrs"].items()]
        return "\n".join(
            ["## Measured", "", "Nothing more; the TPM stands at:", "", key_values(values), ""]
        )
    values = [(f"PCR {pcr}", f"`{record['pcrs'][pcr]}`") for pcr in _changed(record)]
    return "\n".join(
        [
            "## Measured",
            "",
            table(("record", "event", "PCR", "SHA-256 of the event"), rows),
            "",
            "Each digest was extended into the TPM: new value = SHA-256(old value ‖ digest). "
            "After this step:",
            "",
            key_values(values),
            "",
        ]
    )


def stands(record: dict[str, Any]) -> str:
    """Return in a few words where the PCRs of a step stand after it."""
    return ", ".join(f"PCR {pcr} = {record['pcrs'][pcr][:16]}…" for pcr in _changed(record))


def _changed(record: dict[str, Any]) -> list[str]:
    return sorted({str(event["pcr"]) for event in record["events"]}, key=int)
