"""Verifying: one certificate cold, many in one process, with large weights, and a whole store.

The peer is OpenSSF's `model_signing verify` on the same folder. The two prove different things:
`model_signing` one signature over the folder, `aicert` the chain, two quotes, the log and the
statement besides. Rates in one process are by the processor's time.
"""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from aicert import events
from aicert.manifest import scan
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
from benchmarks.harness import (
    BIN,
    GIB,
    MIB,
    ROOT,
    Figure,
    Options,
    Result,
    cold,
    memory,
    python,
    ratio,
    take_turns,
    walls,
    write_file,
)
from benchmarks.hashing import LOOP, signed
from tests.support.forger import Forger, run_events

CASES = ROOT / "tests" / "conformance" / "cases"
ROOTS = ROOT / "tests" / "conformance" / "roots.pem"
FILES = {"metrics.json": "{}", "model.safetensors": "weights"}  # as the corpus has them
_WINDOWS = 25


def measure(options: Options) -> Result:
    """Measure all four."""
    figures = [*_small(options), *_in_process(options), *_large(options), *_store(options)]
    return Result("Verifying", (__doc__ or "").partition("\n\n")[2].strip(), tuple(figures))


def _small(options: Options) -> list[Figure]:
    model = options.folder / "small"
    model.mkdir()
    for path, content in FILES.items():
        (model / path).write_text(content)
    certificate = CASES / "real-good" / "certificate.json"
    ours = [BIN / "aicert", "verify", certificate, "--root", ROOTS, "--model", model,
            "--allow-simulated"]  # fmt: skip
    theirs = signed(model)
    found = take_turns({"ours": lambda: cold(ours), "oms": lambda: cold(theirs)}, options.turns(21))
    return [
        Figure("cold `aicert verify` of a small certificate", walls(found["ours"]), "s", most=0.2),
        Figure("the same, memory", memory(found["ours"]), "MiB", most=57),
        Figure("cold `model_signing verify`", walls(found["oms"]), "s"),
        Figure("the same, memory", memory(found["oms"]), "MiB"),
        ratio("cold, small: `model_signing` of `aicert verify`", walls(found["oms"]),
              walls(found["ours"]), least=2.5),
    ]  # fmt: skip


def _in_process(options: Options) -> list[Figure]:
    trust = TrustStore.builtin().with_roots(ROOTS)
    figures = []
    for kind, name in (("ECC P-256", "good-ecc"), ("RSA 2048", "good-rsa")):
        data = (CASES / name / "certificate.json").read_bytes()
        rates = []
        for _ in range(_WINDOWS):
            count, start = 0, time.process_time()
            while (spent := time.process_time() - start) < (0.02 if options.quick else 0.2):
                verify(data, trust=trust, least=Assurance.SIMULATED)
                count += 1
            rates.append(count / spent)
        figures.append(Figure(f"in one process, {kind}", tuple(rates), "a second", least=500))
    return figures


def _large(options: Options) -> list[Figure]:
    """A certificate over 4 GiB of weights in four files: bound by hashing."""
    total = 256 * MIB if options.quick else 4 * GIB
    model = options.folder / "large"
    for number in range(4):
        write_file(model / f"{number}.safetensors", total // 4)
    forger = Forger(events=run_events(scan(model).files))
    certificate, root = options.folder / "certificate.json", options.folder / "root.pem"
    certificate.write_bytes(forger.certificate().encode())
    root.write_bytes(forger.authority.root_pem)
    ours = [BIN / "aicert", "verify", certificate, "--root", root, "--model", model,
            "--allow-simulated"]  # fmt: skip
    theirs, loop = signed(model), python(LOOP, model)
    found = take_turns(
        {"ours": lambda: cold(ours), "oms": lambda: cold(theirs), "loop": lambda: cold(loop)},
        options.turns(5),
    )
    what = f"with {total / GIB:g} GiB of weights"
    return [
        Figure(f"{what}, cold `aicert verify`", walls(found["ours"]), "s"),
        ratio(f"{what}: of bare hashing", walls(found["ours"]), walls(found["loop"]), most=1.3),
        ratio(f"{what}: of `model_signing`", walls(found["ours"]), walls(found["oms"]), most=0.7),
        ratio(f"{what}: a bare loop's processor time over all cores, of `model_signing`",
              [run.processor / (os.cpu_count() or 1) for run in found["loop"]],
              walls(found["oms"])),
    ]  # fmt: skip


def _store(options: Options) -> list[Figure]:
    """A store of many certificates, audited by one process and by one a core."""
    count = 500 if options.quick else 10_000
    store, root = options.folder / "store", options.folder / "store.pem"
    forger = Forger()
    root.write_bytes(forger.authority.root_pem)
    _fill(forger, store, count)
    cores = os.cpu_count() or 1

    def audit(jobs: int) -> Callable[[], float]:
        line = [BIN / "aicert", "audit", store, "--root", root, "--allow-simulated", "--jobs", jobs]
        return lambda: cold(line).wall

    found = take_turns({"many": audit(cores), "one": audit(1)}, options.turns(2), warm=0)
    rates = tuple(count / wall for wall in found["many"])
    return [
        Figure(f"`aicert audit` of {count:,} certificates, {cores} processes",
               tuple(found["many"]), "s"),
        Figure("the same, certificates a second", rates, "a second"),
        ratio(f"audit: one process of {cores}", found["one"], found["many"]),
    ]  # fmt: skip


def _fill(forger: Forger, store: Path, count: int) -> None:
    """Publish certificates of different runs, as a store holds them."""
    job, *rest = forger.events
    assert isinstance(job, events.Job)
    for number in range(count):
        forger.events = [replace(job, run=str(uuid.UUID(int=number))), *rest]
        data = forger.certificate().encode()
        entry = store / "certificates" / sha256(data).hexdigest()
        entry.mkdir(parents=True)
        (entry / "certificate.json").write_bytes(data)
