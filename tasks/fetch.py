"""Fetch the inputs: resolve, download, check, freeze, measure one event for each."""

from typing import Any

from prefect import task

from aicert.words import size
from tasks.reporting import OPTIONS, announced, show
from tasks.steps import perform
from tasks.words import code, count, key_values, measured, stands, text

STEP = "fetch"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
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
        total = size(sum(item["size"] for item in inputs))
        show(
            name,
            STEP,
            f"{count(len(inputs), 'input')}, {total} → {stands(record)}"
            if inputs
            else "the spec has no inputs",
            "# The inputs",
            "",
            *(line for item in inputs for line in _about(item)),
            measured(record, [f"input {text(item['name'])}" for item in inputs]),
        )
    return record


def _about(item: dict[str, Any]) -> list[str]:
    rows = [("SHA-256 of the content", f"`{item['sha256']}`")]
    if item.get("revision"):
        rows.insert(0, ("revision", code(item["revision"])))
    if held := item["records"]:
        many = count(held["count"], "record")
        rows.append((many, f"{held['distinct']} of them distinct, method {held['method']}"))
        rows.append(("root of the records", f"`{held['root']}`"))
    what = f"{count(item['files'], 'file')}, {size(item['size'])}, from {code(item['uri'])}"
    return [f"**{text(item['name'])}**: {what}", "", key_values(rows), ""]
