"""The TPM: what each command costs on a software TPM, and how many a run needs.

Times are of our own calls, ESAPI and the locking included. A measurement is one extend of 32 bytes
whatever was measured: the digest of an event that names a terabyte takes no longer.
"""

import json
import statistics
import time
import uuid
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

from aicert.agent import machine, spec
from aicert.agent.machine import MachineConfig
from aicert.agent.run import QUOTED_PCRS, Run
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Ak, Algorithm, Tpm
from aicert.certificate import Certificate
from benchmarks.harness import MIB, Figure, Options, Result, take_turns, write_file
from examples.images import tiny
from tests.support.tpm import Factory

CALLS = 50


def measure(options: Options) -> Result:
    """Measure commands, and the events of a small and of a large run."""
    factory = Factory(options.folder / "tpms")
    figures = [
        *_commands(factory, "ecc", "ECC P-256", options.turns(11)),
        *_commands(factory, "rsa", "RSA 2048", options.turns(11)),
    ]
    sizes = (MIB, (64 if options.quick else 1024) * MIB)
    small, large = (_events(options, size) for size in sizes)
    figures += [
        Figure("extends in a run with 1 MiB of input", (small,)),
        Figure(f"the same with {sizes[1] // MIB:,} MiB", (large,), most=small),
    ]
    return Result("The TPM", (__doc__ or "").partition("\n\n")[2].strip(), tuple(figures))


def _commands(factory: Factory, algorithm: Algorithm, name: str, turns: int) -> list[Figure]:
    """Measure what a run asks for, with an attestation key of this kind; each in a TPM of its own.

    (A TPM holds three keys at a time.)
    """
    with Swtpm(factory.make()) as software, Tpm(software.tcti) as tpm:
        key = tpm.create_ak(algorithm)
        extend = partial(tpm.extend, 14, sha256(b"event").digest())
        actions: dict[str, Callable[[], object]] = {
            "extend": extend,
            "quote": partial(tpm.quote, key, bytes(32), QUOTED_PCRS),
            "sign 10 KiB": partial(tpm.sign, key, bytes(10_000)),
            "a key for the model: make, certify, use": partial(_model, tpm, key),
        }
        found = take_turns({what: _timed(action) for what, action in actions.items()}, turns)
    most = {"extend": 1, "quote": 10, "sign 10 KiB": 10}
    middles = [statistics.median(values) for values in found.values()]
    whole = sum(count * one for count, one in zip((6, 2, 1, 1), middles, strict=True))
    return [
        *(Figure(f"{name}: {what}", tuple(values), "ms", most=most.get(what))
          for what, values in found.items()),
        Figure(f"{name}: all that a run with one input asks for", (whole,), "ms"),
    ]  # fmt: skip


def _model(tpm: Tpm, ak: Ak) -> None:
    """Do what the model's signature takes."""
    with tpm.signing_key(ak) as key:
        tpm.certify(ak, key, bytes(32))
        tpm.sign(key, bytes(10_000))


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
