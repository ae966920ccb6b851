"""Data statements: commit to ten million records, prove one, check the proof.

The peer is the least that could be done: a loop that reads and normalises the same records, hashes
each, and keeps nothing. All are whole processes, with the file in the page cache. One core works;
the others are free for other inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from aicert import manifest, records
from benchmarks.harness import (
    BIN,
    Cold,
    Figure,
    Options,
    Result,
    cold,
    memory,
    python,
    ratio,
    take_turns,
    walls,
)
from tests.support.forger import Forger, committing, run_events

COMMIT = """
import sys, tempfile
from pathlib import Path
from aicert.manifest import scan
from aicert.records import commit
folder, kind = Path(sys.argv[1]), sys.argv[2]
with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
    print(commit(folder, scan(folder), kind, scratch=Path(scratch)))
"""
LOOP = """
import hashlib, sys
from aicert.records import normalise
with open(sys.argv[1], "rb") as stream:
    for line in stream:
        hashlib.sha256(normalise(line, sys.argv[2])).digest()
"""
LINES = {
    "lines": b"record %d: the quick brown fox jumps over the lazy dog\n",
    "jsonl": b'{"text": "the quick brown fox jumps over the lazy dog", "id": %d, "label": true}\n',
}


def write(path: Path, line: bytes, count: int) -> None:
    """Write lines that all differ."""
    path.parent.mkdir()
    with path.open("wb") as stream:
        for start in range(0, count, 10_000):
            stream.write(b"".join(line % number for number in range(start, start + 10_000)))


def certified(folder: Path, place: Path, kind: str) -> Path:
    """Write a certificate of a run over this folder, with its root beside it; return its path."""
    tree = manifest.scan(folder)
    held = records.commit(folder, tree, kind, scratch=place)
    made = committing(run_events(), kind, held)
    made[2] = replace(made[2], files=len(tree.files), size=tree.size, root=tree.root,
                      manifest=tree.digest)  # fmt: skip
    forger = Forger(events=made)
    (place / "root.pem").write_bytes(forger.authority.root.public_bytes(Encoding.PEM))
    path = place / "certificate.json"
    path.write_bytes(forger.certificate().encode())
    return path


def measure(options: Options) -> Result:
    """Measure each kind of records that are lines, and a proof that a record is not there."""
    count = 200_000 if options.quick else 10_000_000
    figures: list[Figure] = []

    def runner(command: Sequence[object]) -> Callable[[], Cold]:
        return lambda: cold(command)

    for kind, line in LINES.items():
        folder = options.folder / kind
        write(folder / "data", line, count)
        found = take_turns(
            {
                "ours": runner(python(COMMIT, folder, kind)),
                "loop": runner(python(LOOP, folder / "data", kind)),
            },
            options.turns(1),  # minutes each
            warm=0,
        )
        what = f"{count:,} records, `{kind}`"
        figures += [
            Figure(f"{what}: commit", walls(found["ours"]), "s", most=300),
            ratio(f"{what}: of hashing alone", walls(found["ours"]), walls(found["loop"])),
            Figure(f"{what}: memory", memory(found["ours"]), "MiB", most=128),
        ]

    folder = options.folder / "lines"
    certificate = certified(folder, options.folder, "lines")
    record, proof = options.folder / "record", options.folder / "proof.json"
    record.write_bytes(LINES["lines"] % -1)
    prove = [BIN / "aicert", "data", "prove", certificate, folder, record, "--out", proof]
    check = [BIN / "aicert", "data", "check", proof, certificate, record, "--allow-simulated",
             "--root", options.folder / "root.pem"]  # fmt: skip
    proving = [cold(prove)]
    checking = [cold(check) for _ in range(options.turns(11))]
    figures += [
        Figure("prove that one is not there", walls(proving), "s", most=300),
        Figure("prove: memory", memory(proving), "MiB", most=128),
        Figure("check that proof, cold", walls(checking), "s", most=1),
        Figure("the proof", (proof.stat().st_size,), "bytes"),
    ]
    return Result("Data statements", (__doc__ or "").partition("\n\n")[2].strip(), tuple(figures))
