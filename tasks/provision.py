"""Start a machine: its agent answers, and its attestation key is certified."""

import hashlib
import json
from typing import Any

from prefect import runtime, task

from aicert import tpm2
from aicert.agent import machine
from aicert.agent.machine import MachineConfig
from tasks.reporting import OPTIONS, announced, failing_as, show
from tasks.words import code, key_values, text

STEP = "provision"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def provision(config: MachineConfig, run: str, *, name: str) -> dict[str, Any]:
    """Start a machine for the run and return its handle, which `attach` and `destroy` take.

    The machine ends with this process at the latest; what killed ones left behind is swept first.
    """
    with announced(STEP), failing_as(STEP):
        handle = machine.start(config, run)
        try:
            # For an operator who finds the folder: whose machine it is.
            tags = {"run": run, "flowRun": runtime.flow_run.id, "spec": name}
            (handle.directory / "tags.json").write_text(json.dumps(tags))
            with machine.attach(handle) as client:
                identity, health = client.identity(), client.health()
            public = tpm2.parse_public(identity.ak_public)
            certificate = identity.ek_certificate
            show(
                name,
                STEP,
                f"{handle.kind} machine {handle.id}, its attestation key certified",
                "# The machine",
                "",
                key_values(
                    [
                        ("Machine", code(f"{handle.kind} {handle.id}")),
                        ("Agent", text(f"aicert {health['version']}")),
                        ("Attestation key", f"`{public.name.hex()}`"),
                        (
                            "TPM's certificate",
                            "none"
                            if certificate is None
                            else f"`sha256:{hashlib.sha256(certificate).hexdigest()}`",
                        ),
                    ]
                ),
                "",
                "The operator's CA challenged the TPM (credential activation) and certified the "
                "key: only that TPM can sign with it."
                + (
                    "\n\nThis is a **software TPM**: it shows how it works and proves nothing "
                    "against its operator."
                    if handle.kind == "local"
                    else ""
                ),
            )
        except BaseException:
            machine.destroy(handle)
            raise
    # Copied: Prefect takes every string in a result for a trace of it, the run's id included.
    value: dict[str, Any] = json.loads(json.dumps(handle.to_json()))
    return value
