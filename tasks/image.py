"""Bring the container image into the agent's own store, every blob checked, and measure it."""

from typing import Any

from prefect import task

from tasks.reporting import OPTIONS, announced, show
from tasks.steps import perform
from tasks.words import code, key_values, measured, stands

STEP = "image"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def image(
    handle: dict[str, Any], run: str, *, name: str, secrets: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Have the agent resolve, check and load the image; `secrets["image"]` opens its registry."""
    with announced(STEP):
        record = perform(handle, run, STEP, {"secrets": secrets}, name=name)
        summary = record["summary"]
        show(
            name,
            STEP,
            f"config sha256:{summary['config'][:16]}… → {stands(record)}",
            "# The image",
            "",
            key_values(
                [
                    ("Reference", code(summary["reference"])),
                    ("Config digest", f"`sha256:{summary['config']}`"),
                ]
            ),
            "",
            "The config digest is the image's identity: it names every layer. Each layer was "
            "checked against it before the engine saw it.",
            "",
            measured(record),
        )
    return record
