"""Measure the verifier: `python -m benchmarks.verify`, or `make bench-verify`.

Three things: a cold `aicert verify` of a small certificate with its folder (wall, peak memory); the
same folder checked by `model_signing verify key`, in turns with it; verifications a second in one
process on one core. Prints a table and writes `results/verify.md`.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import aicert
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify

ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests" / "conformance" / "cases"
ROOTS = ROOT / "tests" / "conformance" / "roots.pem"
RESULTS = Path(__file__).parent / "results" / "verify.md"
BIN = Path(sys.executable).parent
_WINDOWS = 25
_WORDS = {None: "", True: "met", False: "MISSED"}
FILES = {"metrics.json": "{}", "model.safetensors": "weights"}  # as the corpus has them


@dataclass(frozen=True)
class Cold:
    """One cold start: seconds on the wall, seconds of the processor, peak memory in MiB."""

    wall: float
    processor: float
    memory: float


def cold(command: Sequence[str]) -> Cold:
    """Run a command to its end and measure it, and it alone."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Cold(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def rate(name: str, seconds: float) -> tuple[float, float]:
    """Verifications of one certificate a second of the processor: the median, and the best."""
    trust = TrustStore.builtin().with_roots(ROOTS)
    data = (CASES / name / "certificate.json").read_bytes()
    rates = []
    for _ in range(_WINDOWS):
        count, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds / _WINDOWS:
            verify(data, trust=trust, least=Assurance.SIMULATED)
            count += 1
        rates.append(count / spent)
    return statistics.median(rates), max(rates)


def prepare(folder: Path) -> tuple[list[str], list[str]]:
    """Make the folder and a signature over it; return the two commands to compare."""
    model = folder / "model"
    model.mkdir()
    for path, content in FILES.items():
        (model / path).write_text(content)
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (folder / "key.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    oms = str(BIN / "model_signing")
    cold([oms, "sign", "key", str(model), "--private_key", str(folder / "key.pem"),
          "--signature", str(folder / "model.sig")])  # fmt: skip
    ours = [str(BIN / "aicert"), "verify", str(CASES / "real-good" / "certificate.json"),
            "--root", str(ROOTS), "--model", str(model), "--allow-simulated"]  # fmt: skip
    theirs = [oms, "verify", "key", str(model), "--signature", str(folder / "model.sig"),
              "--public_key", str(folder / "key.pub")]  # fmt: skip
    return ours, theirs


def spread(values: Sequence[float]) -> str:
    """The median, and the range around it."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def report(
    ours: Sequence[Cold], theirs: Sequence[Cold], rates: dict[str, tuple[float, float]]
) -> str:
    """The results, as Markdown."""
    wall = [statistics.median(run.wall for run in runs) for runs in (ours, theirs)]
    memory = [statistics.median(run.memory for run in runs) for runs in (ours, theirs)]
    load = os.getloadavg()[0]
    rows = [
        ("cold `aicert verify`, wall", f"{spread([r.wall for r in ours])} s", "< 0.2 s",
         wall[0] < 0.2),
        ("the same, peak memory", f"{memory[0]:.1f} MiB", "< 60 MB", memory[0] * 1.048576 < 60),
        ("cold `model_signing verify key`, wall", f"{spread([r.wall for r in theirs])} s", "",
         None),
        ("the same, peak memory", f"{memory[1]:.1f} MiB", "", None),
        ("`aicert` is faster by", f"{wall[1] / wall[0]:.1f} times", ">= 2.5 times",
         wall[1] / wall[0] >= 2.5),
        *((f"in process, {name}", f"{middle:.0f} a second (best {best:.0f})", ">= 500 a second",
           middle >= 500) for name, (middle, best) in rates.items()),
    ]  # fmt: skip
    lines = [
        "# The verifier's speed",
        "",
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with aicert {aicert.__version__}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; "
        f"{len(ours)} cold runs of each program, in turns. Medians, with the range in brackets. "
        f"Rates are by the processor's time, in {_WINDOWS} windows.",
        "",
        "| what | measured | target | |",
        "|---|---|---|---|",
        *(
            f"| {what} | {measured} | {target} | {_WORDS[met]} |"
            for what, measured, target, met in rows
        ),
        "",
        "Both programs check the same folder of two small files. They prove different things: "
        "`model_signing` one signature over the folder, `aicert` the chain, two quotes, the log "
        "and the statement besides.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21, help="cold runs of each program")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each rate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = prepare(Path(folder))
        for command in commands:
            cold(command)  # the first one reads from the disk
        runs = [[cold(command) for command in commands] for _ in range(options.runs)]
    rates = {
        "ECC P-256": rate("good-ecc", options.seconds),
        "RSA 2048": rate("good-rsa", options.seconds),
    }
    text = report([run[0] for run in runs], [run[1] for run in runs], rates)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
