"""Run the training in its container; its start and its end are measured, nothing between."""

from typing import Any

from prefect import task

from aicert.words import duration
from tasks.reporting import OPTIONS, announced, show
from tasks.steps import perform
from tasks.words import code, key_values, measured, stands, table, text

STEP = "train"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def train(handle: dict[str, Any], run: str, *, name: str) -> dict[str, Any]:
    """Have the agent run the training; what it prints goes to the run's log, line by line.

    It is never tried again: once its start is measured, a failure ends the run.
    """
    with announced(STEP):
        record = perform(handle, run, STEP, name=name)
        summary = record["summary"]
        rows = [
            ("Exit status", str(summary.get("exitCode", 0))),
            ("Duration", duration(summary["durationMilliseconds"])),
        ]
        if summary.get("warning"):
            rows.append(("Warning", text(summary["warning"])))
        metrics = summary.get("metrics")
        reported = []
        if metrics:
            reported = [
                "## Metrics, as reported by the training",
                "",
                table(
                    ("metric", "value"),
                    [(text(metric), code(value)) for metric, value in metrics.items()],
                ),
                "",
            ]
        show(
            name,
            STEP,
            f"ended well after {duration(summary['durationMilliseconds'])} → {stands(record)}",
            "# The training",
            "",
            key_values(rows),
            "",
            *reported,
            "The start holds the command, the environment, the mounts and the limits; the end the "
            "exit status, the duration, and the digests of the log and the metrics.",
            "",
            measured(record, ["start", "end"]),
        )
    return record
