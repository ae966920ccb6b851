"""The TPM: what each command costs on a software TPM, and how many a run needs.

Times are of our own calls, ESAPI and the locking included. A measurement is one extend of 32 bytes
whatever was measured: the digest of an event that names a terabyte takes no longer.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from aicert.agent import machine, spec
from aicert.agent.machine import MachineConfig
from aicert.agent.run import QUOTED_PCRS, Run
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Tpm
from aicert.certificate import Certificate
from benchmarks.harness import MIB, Figure, Options, Result, take_turns, write_file
from examples.images import tiny
from tests.support.tpm import Factory

CALLS = 50


def measure(options: Options) -> Result:
    """Measure commands, and the events of a small and of a large run."""
    figures = []
    factory = Factory(options.folder / "tpms")
    with Swtpm(factory.make()) as software, Tpm(software.tcti) as tpm:
        keys: Mapping[str, Any] = {
            "ECC P-256": tpm.create_ak("ecc"),
            "RSA 2048": tpm.create_ak("rsa"),
        }
        actions: dict[str, Callable[[], object]] = {
            "extend": lambda: tpm.extend(14, sha256(b"event").digest())
        }
        for name, key in keys.items():
            actions[f"quote, {name}"] = partial(tpm.quote, key, bytes(32), QUOTED_PCRS)
            actions[f"sign 10 KiB, {name}"] = partial(tpm.sign, key, bytes(10_000))
        found = take_turns({name: _timed(action) for name, action in actions.items()},
                           options.turns(11))  # fmt: skip
    for name, values in found.items():
        figures.append(Figure(name, tuple(values), "ms", most=1 if name == "extend" else 10))
    sizes = (MIB, (64 if options.quick else 1024) * MIB)
    small, large = (_events(options, size) for size in sizes)
    figures += [
        Figure("extends in a run with 1 MiB of input", (small,)),
        Figure(f"the same with {sizes[1] // MIB:,} MiB", (large,), most=small),
    ]
    return Result("The TPM", (__doc__ or "").partition("\n\n")[2].strip(), tuple(figures))


def _timed(action: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            action()
        return (time.perf_counter() - start) / CALLS * 1000

    return run


def _events(options: Options, size: int) -> int:
    """Return how many events a run over this much input has measured."""
    job = options.folder / f"job{size}"
    tiny.build(job / "image")
    write_file(job / "data.bin", size)
    (job / "spec.json").write_text(json.dumps({
        "name": "tiny", "image": f"oci:{job / 'image'}",
        "command": ["sh", "-c", "echo > /outputs/model.bin"],
        "inputs": [{"name": "data", "uri": "file:data.bin"}],
    }))  # fmt: skip
    checked, run = spec.load(job / "spec.json"), str(uuid.uuid4())
    handle = machine.start(MachineConfig(state=options.folder / "state"), "bench")
    try:
        with machine.attach(handle) as client:
            body: dict[str, Any] | None = {"spec": checked.to_json(), "base": str(job)}
            for step in Run.STEPS:
                client.step(run, step, body, lambda _: None)
                body = None
            return len(Certificate.parse(client.certificate(run)).records)
    finally:
        machine.destroy(handle)
