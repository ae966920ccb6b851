"""Open the run: the baseline quote, the nonce and the spec become the first event."""

from typing import Any

from prefect import task

from aicert.words import duration, size
from tasks.reporting import OPTIONS, announced, show
from tasks.steps import perform
from tasks.words import code, key_values, measured, stands, text

STEP = "job"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def job(
    handle: dict[str, Any], run: str, *, spec: dict[str, Any], base: str | None
) -> dict[str, Any]:
    """Send the spec; the agent fixes where the run starts and measures what is asked for.

    `spec` is the normalised spec; `base` the folder that its relative paths start from.
    """
    name = str(spec["name"])
    with announced(STEP):
        body = {"spec": spec} if base is None else {"spec": spec, "base": base}
        record = perform(handle, run, STEP, body, name=name)
        limits = spec["limits"]
        show(
            name,
            STEP,
            f"spec sha256:{record['summary']['spec'][:16]}… → {stands(record)}",
            "# The job",
            "",
            key_values(
                [
                    ("Run", code(run)),
                    ("Spec", f"`sha256:{record['summary']['spec']}`"),
                    ("Image", code(spec["image"])),
                    ("Command", code(" ".join(spec["command"]))),
                    ("Inputs", text(", ".join(item["name"] for item in spec["inputs"]) or "none")),
                    ("Outputs", code(", ".join(spec["outputs"]))),
                    (
                        "Limits",
                        text(
                            f"{size(limits['memory'])} of memory, {limits['cpus']} CPUs, "
                            f"{limits['gpus']} GPUs, {duration(limits['time'] * 1000)}"
                        ),
                    ),
                    ("Seed", str(spec["seed"])),
                ]
            ),
            "",
            "The first event holds the spec, a nonce and the digest of a baseline quote: where the "
            "TPM stood before the run, and in which boot.",
            "",
            measured(record),
        )
    return record
