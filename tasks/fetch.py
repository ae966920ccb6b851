"""Fetch the inputs: resolve, download, check, freeze, measure one event for each."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from aicert.card import size
from tasks.reporting import RETRY_DELAYS, announced, may_retry, show
from tasks.steps import perform
from tasks.words import code, measured, table, text

STEP = "fetch"


@task(
    name=STEP,
    task_run_name=STEP,
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_DELAYS),
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_retry,
)
def fetch(
    handle: dict[str, Any], run: str, *, name: str, secrets: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Have the agent fetch every input; `secrets` has, by input, what its source asks for.

    Nothing is measured until every input is whole and right, so a network that fails may be tried
    again.
    """
    with announced(STEP):
        record = perform(handle, run, STEP, {"secrets": secrets}, name=name)
        inputs = record["summary"]["inputs"]
        rows = [
            (
                text(item["name"]),
                code(item["uri"]),
                code(item["revision"]) if item.get("revision") else "",
                str(item["files"]),
                size(item["size"]),
                f"`{item['sha256']}`",
            )
            for item in inputs
        ]
        head = ("input", "where it came from", "revision", "files", "size", "SHA-256, or root")
        show(
            name,
            STEP,
            f"{name}: the inputs",
            table(head, rows) if rows else "The spec has no inputs.",
            "",
            measured(record, [f"input {text(item['name'])}" for item in inputs]),
        )
    return record
