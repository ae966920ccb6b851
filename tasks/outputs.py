"""Hash what the training made and measure it into a PCR of its own."""

from typing import Any

from prefect import task

from aicert.words import size
from tasks.reporting import OPTIONS, announced, show
from tasks.steps import perform
from tasks.words import code, count, key_values, measured, stands, table

STEP = "outputs"
_ROWS = 50


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def outputs(handle: dict[str, Any], run: str, *, name: str) -> dict[str, Any]:
    """Have the agent hash the outputs that the spec names."""
    with announced(STEP):
        record = perform(handle, run, STEP, name=name)
        summary = record["summary"]
        files = summary["files"][:_ROWS]
        notes = []
        if (more := summary["count"] - len(files)) > 0:
            notes += [f"… and {more} more.", ""]
        if summary["unmatched"]:
            left = ", ".join(code(path) for path in summary["unmatched"])
            notes += [f"Not among the outputs, and not certified: {left}", ""]
        show(
            name,
            STEP,
            f"{count(summary['count'], 'file')}, {size(summary['size'])} → {stands(record)}",
            "# The outputs",
            "",
            key_values(
                [
                    ("Files", f"{summary['count']}, {size(summary['size'])}"),
                    ("Root digest", f"`{summary['root']}`"),
                ]
            ),
            "",
            table(
                ("file", "size", "SHA-256"),
                [(code(f["path"]), size(f["size"]), f"`{f['sha256']}`") for f in files],
            ),
            "",
            *notes,
            measured(record),
        )
    return record
