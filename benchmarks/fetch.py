"""Fetching: download, hash and write in one pass, beside tools that only download.

The sources are an nginx and an Azurite (Azure Blob Storage) on this machine, and a folder. The
peers are curl, fsspec, Azure's own library with four connections, and cp; compared is the fastest
of them in each turn. They hash nothing. Source and target lie in memory (`/dev/shm`), so that the
programs are compared and not the disk; times are taken inside the process, as the agent is long
running when it fetches. Azurite is JavaScript on one core, and bounds whoever asks it. A URL is one
file, so many files come from Azurite and from a folder.

cp keeps one core busy, and we need the processor's time of cp and that of hashing, on as many cores
as there are: on two, what there is to be had is hardly more than what is asked for, and any other
program that runs meanwhile takes from us and not from cp. So the processor's times stand beside the
rates: that of a bare loop that reads and hashes the same files is there for comparison, and "at
best" is the rate of whoever needs the time of cp and of the hashing and shares it out over all
cores without loss.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import (
    MIB,
    ROOT,
    Figure,
    Options,
    Result,
    ratio,
    take_turns,
    write_file,
    write_small,
)
from tests.agent.fetch import stores

BLOCK = 16 * MIB

OURS = """
import json, resource, sys, time
from pathlib import Path
from aicert.agent import fetch
uri, into, secrets = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
if not uri.startswith("file:"):
    from aicert.agent.fetch import http, objectstore
    import adlfs, azure.storage.blob.aio
def worked():  # helper processes too
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
start, before = time.perf_counter(), worked()
fetch.fetch(fetch.InputRequest("it", uri), into / "tree", base=into, partial=into / "partial",
            secrets=secrets)
print(time.perf_counter() - start, worked() - before)
"""
HASH = """
import hashlib, sys, time
from pathlib import Path
files = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file())
memory = memoryview(bytearray(1 << 18))
start, worked = time.perf_counter(), time.process_time()
for path in files:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(memory):
            digest.update(memory[:count])
    digest.hexdigest()
print(time.perf_counter() - start, time.process_time() - worked)
"""
FSSPEC = """
import json, sys, time
import fsspec
protocol, source, into, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
fs = fsspec.filesystem(protocol, **options)
start, worked = time.perf_counter(), time.process_time()
fs.get(source, into + "/tree", recursive=source.endswith("/"))
print(time.perf_counter() - start, time.process_time() - worked)
"""
AZURE = """
import sys, time
from azure.storage.blob import ContainerClient
connection, container, name, into = sys.argv[1:]
client = ContainerClient.from_connection_string(connection, container)
start, worked = time.perf_counter(), time.process_time()
with open(into + "/tree", "wb") as stream:
    client.get_blob_client(name).download_blob(max_concurrency=4).readinto(stream)
print(time.perf_counter() - start, time.process_time() - worked)
"""


class Took(NamedTuple):
    """What a program took: seconds by the clock and of the processor."""

    wall: float
    processor: float


def measure(options: Options) -> Result:
    """Measure one large file and many small ones from each source, and a cut."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name:
        folder = Path(name)
        figures += _folder(folder, options)
        figures += _nginx(folder, options)
        notes = []
        try:
            figures += _azurite(folder, options)
        except pytest.skip.Exception as reason:
            notes.append(f"Not measured: {reason}.")
    about = (__doc__ or "").partition("\n\n")[2].strip()
    return Result("Fetching", about, tuple(figures), notes=tuple(notes))


def _folder(folder: Path, options: Options) -> list[Figure]:
    size, count = (256 * MIB, 2_000) if options.quick else (2048 * MIB, 20_000)
    source = folder / "source"
    peers = {"cp": ["cp", "-r", source], "hashing": [sys.executable, "-c", HASH, source]}
    for number in range(4):
        write_file(source / f"{number}.bin", size // 4)
    large = _compare(folder, f"file:{source}", {}, peers, options.turns(5))
    shutil.rmtree(source)
    write_small(source, count)
    small = _compare(folder, f"file:{source}", {}, peers, options.turns(5))
    shutil.rmtree(source)
    return [
        *_copying(f"a folder, {size // MIB:,} MiB in four files", size, large),
        *_copying(f"a folder, {count:,} files of 4 KiB", count * 4096, small),
    ]


def _copying(what: str, size: int, found: dict[str, list[Took]]) -> list[Figure]:
    """The usual figures, and how near to what the cores allow."""
    hashing = found.pop("hashing")
    ours, cp = found["ours"], found["cp"]
    both = [a.processor + b.processor for a, b in zip(cp, hashing, strict=True)]
    best = [seconds / (os.cpu_count() or 1) for seconds in both]
    return [
        *_figures(what, size, found),
        *(
            Figure(f"{what}: processor time, {name}", tuple(t.processor for t in times), "s")
            for name, times in (("ours", ours), ("cp", cp), ("hashing", hashing))
        ),
        ratio(f"{what}: processor time, of cp's and the hashing's", [t.processor for t in ours],
              both),
        ratio(f"{what}: rate at best on {os.cpu_count()} cores, of cp", [t.wall for t in cp], best),
    ]  # fmt: skip


def _nginx(folder: Path, options: Options) -> list[Figure]:
    size = (256 if options.quick else 2048) * MIB
    (folder / "source").mkdir()
    write_file(folder / "source" / "data.bin", size)
    with nginx(folder / "source", folder) as (address, asked):
        url = f"{address}/data.bin"
        peers = {
            "curl": ["curl", "--silent", "--fail", url, "--output"],
            "fsspec": [sys.executable, "-c", FSSPEC, "http", url, "INTO", "{}"],
        }
        found = _compare(folder, url, {}, peers, options.turns(5))
        sent = asked()
        cut = _cut(folder, url, size, lambda: asked() - sent)
    shutil.rmtree(folder / "source")
    return [*_figures(f"nginx, {size // MIB:,} MiB in one file", size, found), *cut]


def _azurite(folder: Path, options: Options) -> list[Figure]:
    size, count = (64 * MIB, 100) if options.quick else (512 * MIB, 1_000)
    with stores.azurite() as endpoint:
        store = stores.Azure(endpoint, "bench")
        store.put("large/data.bin", os.urandom(MIB) * (size // MIB))
        for number in range(count):
            store.put(f"small/{number:05}", os.urandom(4096))
        given = store.secrets["storage_options"]
        assert isinstance(given, dict)
        connection, same = str(given["connection_string"]), json.dumps(given)
        large = _compare(
            folder, store.uri("large/data.bin"), store.secrets,
            {"fsspec": [sys.executable, "-c", FSSPEC, "az", "bench/large/data.bin", "INTO",
                        same],
             "azure": [sys.executable, "-c", AZURE, connection, "bench", "large/data.bin", "INTO"]},
            options.turns(5),
        )  # fmt: skip
        small = _compare(
            folder, store.uri("small/"), store.secrets,
            {"fsspec": [sys.executable, "-c", FSSPEC, "az", "bench/small/", "INTO", same]},
            options.turns(5),
        )  # fmt: skip
    return [
        *_figures(f"Azurite, {size // MIB:,} MiB in one blob", size, large),
        *_figures(f"Azurite, {count:,} blobs of 4 KiB", count * 4096, small),
    ]


# -- one comparison --------------------------------------------------------------------------------


def _compare(
    folder: Path, uri: str, secrets: object, peers: Mapping[str, Sequence[object]], turns: int
) -> dict[str, list[Took]]:
    target = folder / "target"

    def runner(command: Sequence[object]) -> Callable[[], Took]:
        # INTO stands for the target; a program that does not tell its time is timed from outside.
        line = [str(target) if part == "INTO" else str(part) for part in command]
        told = line[0] == sys.executable

        def run() -> Took:
            target.mkdir()
            try:
                start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
                done = subprocess.run(
                    line if told else [*line, f"{target}/tree"],
                    cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                if told:
                    return Took(*map(float, done.stdout.split()))
                wall, after = (
                    time.perf_counter() - start,
                    resource.getrusage(resource.RUSAGE_CHILDREN),
                )
                return Took(wall, sum(after[:2]) - sum(before[:2]))
            finally:
                shutil.rmtree(target)

        return run

    ours = [sys.executable, "-c", OURS, uri, "INTO", json.dumps(secrets)]
    contestants = {"ours": runner(ours), **{k: runner(line) for k, line in peers.items()}}
    return take_turns(contestants, turns)


def _figures(what: str, size: int, found: dict[str, list[Took]]) -> list[Figure]:
    """Rates of all, and ours as a part of the fastest's in each turn."""
    peers = {name: times for name, times in found.items() if name != "ours"}
    fastest = [min(took.wall for took in turn) for turn in zip(*peers.values(), strict=True)]
    rates = [
        Figure(f"{what}: {name}", tuple(size / MIB / took.wall for took in times), "MiB/s")
        for name, times in found.items()
    ]
    label = next(iter(peers)) if len(peers) == 1 else f"the fastest of {', '.join(peers)}"
    return [*rates, ratio(f"{what}: rate, of {label}", fastest,
                          [took.wall for took in found["ours"]], least=0.9)]  # fmt: skip


def _cut(folder: Path, url: str, size: int, asked: Callable[[], int]) -> list[Figure]:
    """Kill a fetch half-way, and see what the next one asks for."""
    target = folder / "target"
    target.mkdir()
    line = [sys.executable, "-c", OURS, url, str(target), "{}"]
    journal = target / "partial" / "journal"
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        while first.poll() is None and _blocks(journal) < size // BLOCK // 2:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
    missing = size - _blocks(journal) * BLOCK
    time.sleep(0.5)  # until nginx has noticed, and has logged what it sent
    before = asked()
    start = time.perf_counter()
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    part, whole = (asked() - before) / missing, asked() / size
    shutil.rmtree(target)
    return [
        Figure(f"killed with {missing // MIB:,} MiB missing: asked for again, of the missing",
               (part,), "×", most=1.01),
        Figure("sent by the server for both attempts, of the file", (whole,)),
        Figure("the second attempt, start of the program included", (seconds,), "s"),
    ]  # fmt: skip


def _blocks(journal: Path) -> int:
    try:
        return max(0, len(journal.read_text().splitlines()) - 1)
    except FileNotFoundError:
        return 0


@contextmanager
def nginx(root: Path, scratch: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Serve a folder on a free port; yield the address, and what tells how many bytes were sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, configuration = scratch / "access.log", scratch / "nginx.conf"
    configuration.write_text(
        f"daemon off; worker_processes 2; pid {scratch}/nginx.pid; error_log {scratch}/error.log;"
        "user root; events {} http { sendfile on; log_format bytes $body_bytes_sent;"
        f"access_log {log} bytes; server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    with subprocess.Popen(
        ["nginx", "-p", scratch, "-c", configuration, "-e", scratch / "error.log"]
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None and time.monotonic() < deadline, "nginx did not start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}", lambda: sum(map(int, log.read_text().split()))
        finally:
            process.terminate()
