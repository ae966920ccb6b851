"""Hashing: a manifest of large and of many small files, against the least that could be done.

The peers: the shortest hashlib loop, with four threads; a walk that reads every file and
hashes nothing, and one that does; OpenSSF's `model_signing verify` on the same files. All are
whole processes, with the files in the page cache.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from aicert.hashing import MAX_HELPERS
from benchmarks.harness import (
    BIN,
    GIB,
    MIB,
    ROOT,
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
    write_file,
    write_small,
)

MIDDLE = 80 << 10
OURS = """
import sys
from pathlib import Path
from aicert.manifest import summarise
print(summarise(Path(sys.argv[1])).digest)
"""
# What a helper process does, in one of its own: from its start to the end of a batch.
HELPER = """
import os, sys
sys.path.append(sys.argv[1])
from aicert import hashing
names = sorted(os.listdir(f"{sys.argv[2]}/0000"))[:hashing.BATCH]
hashing.hash_batch(hashing.open_root(sys.argv[2]), [("0000", names)], hashing.MIDDLE)
"""
LOOP = """
import hashlib, os, sys
from concurrent.futures import ThreadPoolExecutor
def one(path):
    digest, buffer = hashlib.sha256(), bytearray(1 << 20)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(one, [e.path for e in os.scandir(sys.argv[1])]))
"""
WALK = """
import os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        with open(f"{folder}/{name}", "rb", buffering=0) as stream:
            stream.read()
"""
HASH = WALK.replace("import os", "import hashlib, os").replace(
    "stream.read()", "hashlib.sha256(stream.read()).digest()"
)
NOTES = (
    "Large files are bound by the cores: a bare loop's processor time, shared out over all, "
    "is the least that hashing takes with OpenSSL's SHA-256, with no start-up and nothing beside "
    "it. The row says what ratio to `model_signing` that would be on this machine.",
    "Of a small file most of the time goes by under the interpreter's lock. So where there are "
    f"thousands, helper processes take batches of them: one for each further core, at most "
    f"{MAX_HELPERS}. Memory is that of the largest process; a helper's stands by itself.",
)


def signed(model: Path) -> list[str]:
    """Sign a folder with `model_signing`; return the command that verifies it."""
    key, public, signature = (model.with_suffix(end) for end in (".key", ".pub", ".sig"))
    cold(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key])
    cold(["openssl", "ec", "-in", key, "-pubout", "-out", public])
    tool = BIN / "model_signing"
    cold([tool, "sign", "key", model, "--private_key", key, "--signature", signature])
    return [
        *map(str, (tool, "verify", "key", model)),
        *("--public_key", str(public), "--signature", str(signature)),
    ]


def _compare(commands: dict[str, list[str]], turns: int) -> dict[str, list[Cold]]:
    def runner(command: Sequence[str]) -> Callable[[], Cold]:
        return lambda: cold(command)

    return take_turns({name: runner(line) for name, line in commands.items()}, turns)


def measure(options: Options) -> Result:
    """Measure four large files, one, and many small ones."""
    total = 256 * MIB if options.quick else 4 * GIB
    count = 5_000 if options.quick else 100_000
    figures: list[Figure] = []

    four = options.folder / "four"
    for number in range(4):
        write_file(four / f"{number}.safetensors", total // 4)
    what = f"{total / GIB:g} GiB in four files"
    found = _compare(
        {"ours": python(OURS, four), "loop": python(LOOP, four), "oms": signed(four)},
        options.turns(9),
    )
    figures += [
        Figure(f"{what}: manifest", walls(found["ours"]), "s"),
        ratio(f"{what}: of a bare loop", walls(found["ours"]), walls(found["loop"]), most=1.15),
        ratio(f"{what}: of model_signing", walls(found["ours"]), walls(found["oms"]), most=0.7),
        ratio(f"{what}: a bare loop's processor time over all cores, of model_signing",
              [run.processor / (os.cpu_count() or 1) for run in found["loop"]],
              walls(found["oms"])),
        Figure(f"{what}: memory", memory(found["ours"]), "MiB", most=95),
        Figure(f"{what}: memory of model_signing", memory(found["oms"]), "MiB"),
    ]  # fmt: skip

    shutil.rmtree(four)

    one = options.folder / "one"
    write_file(one / "model.safetensors", total)
    what = f"{total / GIB:g} GiB in one file"
    found = _compare({"ours": python(OURS, one), "loop": python(LOOP, one)}, options.turns(5))
    figures += [
        Figure(f"{what}: manifest", walls(found["ours"]), "s"),
        ratio(f"{what}: of one bare core", walls(found["ours"]), walls(found["loop"]), most=1.05),
        Figure(f"{what}: memory", memory(found["ours"]), "MiB", most=95),
    ]
    shutil.rmtree(one)

    small = options.folder / "small"
    write_small(small, count)
    what = f"{count:,} files of 4 KiB"
    found = _compare(
        {"ours": python(OURS, small), "walk": python(WALK, small), "hash": python(HASH, small)},
        options.turns(9),
    )
    figures += [
        Figure(f"{what}: manifest", walls(found["ours"]), "s"),
        ratio(f"{what}: of walking and reading", walls(found["ours"]), walls(found["walk"]),
              most=1.3),
        ratio(f"{what}: of hashing them too", walls(found["ours"]), walls(found["hash"])),
        Figure(f"{what}: memory", memory(found["ours"]), "MiB", most=95),
        Figure(f"{what}: memory of a helper", memory([cold(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", HELPER, ROOT, small])]), "MiB"),
    ]  # fmt: skip
    # Half a minute a turn.
    found = _compare({"ours": python(OURS, small), "oms": signed(small)}, options.turns(2))
    figures += [
        ratio(f"{what}: of model_signing", walls(found["ours"]), walls(found["oms"]), most=0.7),
        Figure(f"{what}: memory of model_signing", memory(found["oms"]), "MiB"),
    ]
    shutil.rmtree(small)

    # Too many to hold something for each while they wait, and too large to be read in one go.
    for number in range(count):
        path = small / f"{number // 1000:04}" / f"{number:07}.bin"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        with path.open("wb") as stream:
            stream.truncate(MIDDLE)
    runs = [cold(python(OURS, small)) for _ in range(options.turns(3))]
    what = f"{count:,} sparse files of {MIDDLE >> 10} KiB"
    figures += [
        Figure(f"{what}: manifest", walls(runs), "s"),
        Figure(f"{what}: memory", memory(runs), "MiB", most=95),
    ]
    about = (__doc__ or "").partition("\n\n")[2].strip()
    return Result("Hashing", about, tuple(figures), notes=NOTES)
