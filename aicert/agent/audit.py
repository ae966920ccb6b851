"""Verify a whole store: every certificate, the manifests beside it, and the weights.

Entries are independent, so many are verified at a time, each in a process of a pool. What a store
holds is somebody else's bytes: nothing of it is believed before it is verified.
"""

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from aicert import verify
from aicert.agent.store import Store, StoreError
from aicert.errors import Error
from aicert.log import Run
from aicert.manifest import Manifest
from aicert.policy import Policy
from aicert.trust import TrustStore
from aicert.verify import (
    AlteredFileError,
    Assurance,
    ExtraFileError,
    MissingFileError,
    Verdict,
)


class EmptyStoreError(StoreError):
    """There is nothing to verify."""

    code = "store.empty"


_BATCH = 16
_ALONE = 64
"""Up to so many entries, starting a pool takes longer than it saves."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What every certificate is held against, by the files that say so.

    `roots` and `hardware_roots` are files or folders of root certificates, `policies` policy files;
    where there is none, `allow_simulated` tells whether a software TPM will do.
    """

    roots: tuple[Path, ...] = ()
    hardware_roots: tuple[Path, ...] = ()
    policies: tuple[Path, ...] = ()
    allow_simulated: bool = False

    def load(self) -> "Loaded":
        """Read the files.

        Raises:
            TrustError: a root cannot be read.
            PolicyFileError: a policy has mistakes.
        """
        trust = TrustStore.builtin()
        for path in self.roots:
            trust = trust.with_roots(path, assurance="simulated")
        for path in self.hardware_roots:
            trust = trust.with_roots(path, assurance="hardware")
        if self.policies:
            return Loaded(trust, Policy.all_of(Policy.load(path) for path in self.policies))
        least = Assurance.SIMULATED if self.allow_simulated else Assurance.HARDWARE
        return Loaded(trust, Policy.default(least))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Demands whose files have been read."""

    trust: TrustStore
    policy: Policy

    def verify(
        self, data: bytes, *, model: Path | None = None, ignore: Collection[str] = ()
    ) -> Verdict:
        """Verify a certificate, as `aicert.verify.verify` does."""
        return verify.verify(data, trust=self.trust, policy=self.policy, model=model, ignore=ignore)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one entry: `error` is None where everything about it is as it should be.

    `weights` is the number of weight files that were compared, or None where none are published.
    """

    digest: str
    name: str | None
    finished_on: datetime | None
    assurance: str | None
    weights: int | None
    error: Error | None


def audit(
    url: str,
    options: Mapping[str, Any] | None,
    demands: Demands,
    *,
    weights: bool = True,
    jobs: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Verify every entry of a store, in the order of their digests.

    Args:
        url: where the store is, with the `options` that open it.
        options: what fsspec's driver asks for.
        demands: what every certificate is held against.
        weights: read and compare published weights too.
        jobs: processes.
        on_progress: is told how many entries of how many are done.

    Raises:
        EmptyStoreError: it holds no certificate; a lost store must not pass for a good one.
        StoreError: the store cannot be opened or listed. What is wrong with one entry is its
            finding.
        Error: the files of the demands cannot be read.
    """
    demands.load()  # mistakes are the caller's to hear of, and not a child's
    store = Store(url, options)
    digests = store.digests()
    if not digests:
        raise EmptyStoreError(
            "the store holds no certificate", got=store.url, advice="is this the right place?"
        )
    found: list[Finding] = []
    for findings in _verified(url, options, demands, weights, jobs, digests):
        found += findings
        if on_progress is not None:
            on_progress(len(found), len(digests))
    return found


def _verified(
    url: str,
    options: Mapping[str, Any] | None,
    demands: Demands,
    weights: bool,
    jobs: int,
    digests: tuple[str, ...],
) -> Iterator[list[Finding]]:
    if jobs == 1 or len(digests) <= _ALONE:
        store, loaded = Store(url, options), demands.load()
        for digest in digests:
            yield [check(store, digest, loaded, weights=weights)]
        return
    # Spawned, and not forked: the caller may have threads, and locks that they hold.
    context = multiprocessing.get_context("spawn")
    arguments = (url, options, demands, weights)
    batches = [digests[start : start + _BATCH] for start in range(0, len(digests), _BATCH)]
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=arguments) as pool:
        try:
            yield from pool.map(_work, batches)
        except BaseException:
            # Whoever interrupts an audit does not wait for a store that does not answer.
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise


_process: tuple[Store, Loaded, bool] | None = None


def _begin(url: str, options: Mapping[str, Any] | None, demands: Demands, weights: bool) -> None:
    """Open the store, once a process."""
    global _process
    _process = (Store(url, options), demands.load(), weights)


def _work(digests: tuple[str, ...]) -> list[Finding]:
    assert _process is not None
    store, loaded, weights = _process
    return [check(store, digest, loaded, weights=weights) for digest in digests]


def check(store: Store, digest: str, demands: Loaded, *, weights: bool = True) -> Finding:
    """Verify one entry; whatever is wrong with it, or with reading it, is its finding."""
    name = finished_on = assurance = count = error = None
    try:
        verdict = demands.verify(store.read(digest))
        run = verdict.run
        name, finished_on = run.job.spec.name, run.outputs.finished_on
        assurance = str(verdict.assurance)
        count = _check_files(store, digest, run, weights=weights)
    except Error as problem:
        error = problem
    return Finding(digest, name, finished_on, assurance, count, error)


def _check_files(store: Store, digest: str, run: Run, *, weights: bool) -> int | None:
    """Compare what stands beside a certificate with it; return how many weights there are."""
    files = set(store.files(digest))
    manifests = {item.name: item.manifest for item in run.inputs}
    manifests["outputs"] = run.outputs.manifest.digest
    for name, expected in manifests.items():
        path = f"manifests/{name}.json"
        if path in files:
            _compare(store, digest, path, expected)
    published = sorted(path for path in files if path.startswith("weights/"))
    if not published:
        return None
    if weights:
        _check_weights(store, digest, published, run.outputs.manifest)
    return len(published)


def _check_weights(store: Store, digest: str, published: list[str], manifest: Manifest) -> None:
    known = {f"weights/{file.path}": file for file in manifest.files}
    if extra := [path for path in published if path not in known]:
        raise ExtraFileError("a file is there that the certificate does not name", got=extra[0])
    if missing := sorted(known.keys() - set(published)):
        raise MissingFileError("a certified file is not there", expected=missing[0])
    for path in published:
        _compare(store, digest, path, known[path].sha256, known[path].size)


def _compare(store: Store, digest: str, path: str, expected: str, size: int | None = None) -> None:
    content = sha256()
    for chunk in store.iterate(digest, path, max_bytes=size):
        content.update(chunk)
    if content.hexdigest() != expected:
        raise AlteredFileError(
            "a file's content is not what was certified",
            got=f"{path}: {content.hexdigest()}",
            expected=expected,
            advice="restore it from a good copy; the certificate itself is not affected",
        )
