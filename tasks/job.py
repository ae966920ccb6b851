"""Open the run: the baseline quote, the nonce and the spec become the first event."""

from pathlib import Path
from typing import Any

from prefect import task

from aicert.agent import machine, sending
from aicert.agent.machine import MachineHandle
from aicert.agent.spec import Spec
from aicert.words import duration, size
from tasks.reporting import OPTIONS, Live, announced, failing_as, show
from tasks.steps import perform
from tasks.words import code, key_values, measured, stands, text

STEP = "job"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def job(
    handle: dict[str, Any], run: str, *, spec: dict[str, Any], base: str | None
) -> dict[str, Any]:
    """Send the spec; the agent fixes where the run starts and measures what is asked for.

    `spec` is the normalised spec; `base` the folder that its relative paths start from. A machine
    elsewhere is sent what they name.
    """
    name = str(spec["name"])
    with announced(STEP):
        body = {"spec": spec} if base is None else {"spec": spec, "base": base}
        held = MachineHandle.from_json(handle)
        if held.remote:
            with failing_as(STEP), machine.attach(held) as client:
                if client.health()["run"] is None:
                    folder = None if base is None else Path(base)
                    sending.send(client, Spec.from_json(spec), folder, Live(name, STEP))
            body = {"spec": spec}
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
