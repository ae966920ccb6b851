"""Start a machine: its agent answers, and its attestation key is certified."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from prefect import runtime, task

from aicert import tpm2
from aicert.agent import machine
from aicert.agent.machine import MachineConfig
from tasks.reporting import OPTIONS, announced, failing_as, logger, show
from tasks.words import code, key_values, text

STEP = "provision"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def provision(config: MachineConfig, run: str, *, name: str, spec: str) -> dict[str, Any]:
    """Start a machine for the run and return its handle, which `attach` and `destroy` take.

    Where this is a retry and the run's machine still lives, it is that one, and the handle names
    its run. What killed machines left behind is swept first. `spec` is the spec's digest: one that
    was changed meanwhile needs a new machine.
    """
    with announced(STEP), failing_as(STEP):
        tags = {"flowRun": str(runtime.flow_run.id), "name": name, "spec": spec}
        say: Callable[[str], None] = logger().info
        handle = machine.adopt(config, tags, say)
        if handle is not None:
            logger().warning("going on with run %s on machine %s", handle.run, handle.id)
        else:
            handle = machine.start(config, run, tags, say)
        try:
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
                (
                    "Azure certified the key when it made the virtual machine; its chain leads to "
                    "Azure's own root."
                    if handle.kind in ("azure-host", "azure")
                    else "The operator's CA challenged the TPM (credential activation) and "
                    "certified the key: only that TPM can sign with it."
                )
                + (
                    "\n\nThis is a **software TPM**: it shows how it works and proves nothing "
                    "against its operator."
                    if handle.kind in ("local", "qemu")
                    else ""
                )
                + (
                    "\n\nThe machine booted the measured image, as its TPM said for a fresh nonce "
                    "before anything was sent to it."
                    if handle.kind == "qemu"
                    else ""
                ),
            )
        except BaseException:
            machine.destroy(handle)
            raise
    # Copied: Prefect takes every string in a result for a trace of it, the run's id included.
    value: dict[str, Any] = json.loads(json.dumps(handle.to_json()))
    return value
