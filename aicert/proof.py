"""Proofs about one record: that it is among an input's records, or that it is not.

A proof holds digests alone. That a record is there is shown by its place in the tree; that it is
not, by the two digests between which it would stand, and that they are neighbours. A proof is held
against the commitment in a certificate (`aicert.records`); whether that certificate is true is for
`aicert.verify` to say, before.

What an attacker controls: every byte of the proof. What is trusted: the run that the verifier has
read from a verified certificate.
"""

import os
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from aicert import canonical, records
from aicert.errors import Error
from aicert.events import Input, Records
from aicert.log import Run
from aicert.manifest import hash_file
from aicert.merkle import DIGEST, paths, root_of, split
from aicert.reader import Reader
from aicert.verify import Verdict
from aicert.words import clean, count

MEDIA_TYPE = "application/vnd.aicert.record-proof.v1+json"
MAX_BYTES = 16 << 10
"""The largest proof, in bytes."""

_MAX_PATH = 40


class ProofError(Error):
    """A proof does not show what it says."""

    code = "proof.invalid"
    remedy = "do not believe this proof; ask for one that is made for this certificate"


class FormatError(ProofError):
    """The proof is not well formed."""

    code = "proof.format"


class NoCommitmentError(ProofError):
    """The certificate commits to no records of such an input."""

    code = "proof.no-commitment"


class OtherMethodError(ProofError):
    """The proof takes records apart by another method than the certificate."""

    code = "proof.method"


class OtherCountError(ProofError):
    """The proof is about another number of records."""

    code = "proof.count"


class OtherRootError(ProofError):
    """The proof is about other records."""

    code = "proof.root"


class NeighboursError(ProofError):
    """The leaves that the proof shows do not settle whether the record is there."""

    code = "proof.neighbours"


class PathError(ProofError):
    """A leaf is not where the proof says that it stands."""

    code = "proof.path"


class OtherRecordError(ProofError):
    """The proof is about another record."""

    code = "proof.record"


class OtherDataError(ProofError):
    """The files are not those of the input."""

    code = "proof.data"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of the tree: its place from 0, the digest of its record, its path to the root."""

    index: int
    digest: bytes
    path: tuple[bytes, ...]

    @classmethod
    def read(cls, reader: Reader) -> "Leaf":
        """Read the JSON form."""
        return cls(
            index=reader.integer("index"),
            digest=reader.octets("sha256", DIGEST),
            path=reader.octets_list("path", DIGEST, max_items=_MAX_PATH),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        steps = [step.hex() for step in self.path]
        return {"index": self.index, "sha256": self.digest.hex(), "path": steps}


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof says: whether the record of this digest is among these records of this input.

    `Proof.parse(p.encode()) == p` for every proof.
    """

    input: str
    records: Records
    record: bytes
    found: bool
    leaves: tuple[Leaf, ...]

    @classmethod
    def parse(cls, data: bytes) -> "Proof":
        """Read a proof; nothing in it is believed yet.

        Raises:
            FormatError: it is not one.
            CanonicalError: it is not canonical JSON, or too large.
        """
        value = canonical.loads_canonical(data, max_bytes=MAX_BYTES, max_depth=5)
        reader = Reader(value, "proof", FormatError)
        reader.const("mediaType", MEDIA_TYPE)
        leaves = []
        for item in reader.children("leaves", min_items=1, max_items=2):
            leaves.append(Leaf.read(item))
            item.done()
        proof = cls(
            input=reader.text("input", max_length=63),
            records=reader.read("records", Records.read),
            record=bytes.fromhex(reader.digest("record")),
            found=reader.flag("found"),
            leaves=tuple(leaves),
        )
        reader.done()
        return proof

    def encode(self) -> bytes:
        """Return the file: canonical JSON."""
        return canonical.dumps(
            {
                "mediaType": MEDIA_TYPE,
                "input": self.input,
                "records": self.records.to_json(),
                "record": {"sha256": self.record.hex()},
                "found": self.found,
                "leaves": [leaf.to_json() for leaf in self.leaves],
            }
        )


# -- the verifier's side ---------------------------------------------------------------------------


def check(proof: Proof, run: Run, record: bytes | None = None) -> Input:
    """Check a proof against a verified run, and return the input that it is about.

    Args:
        proof: what is to be shown.
        run: of a certificate that was verified.
        record: the digest of the record that the verifier has in mind, if there is one.

    Raises:
        ProofError: (a subclass) it does not show what it says.
    """
    item = committed(run, proof.input)
    expected, got = item.records, proof.records
    assert expected is not None
    if got.method != expected.method:
        raise OtherMethodError(
            "the proof was made by another method", got=got.method, expected=expected.method
        )
    if (got.count, got.distinct) != (expected.count, expected.distinct):
        raise OtherCountError(
            "the proof is about another number of records",
            got=f"{got.count}, {got.distinct} of them distinct",
            expected=f"{expected.count}, {expected.distinct} of them distinct",
        )
    if got.root != expected.root:
        raise OtherRootError(
            "the proof is about other records",
            got=got.root,
            expected=expected.root,
            advice="have it made for this certificate",
        )
    if record is not None and record != proof.record:
        raise OtherRecordError(
            "the proof is about another record",
            got=proof.record,
            expected=record,
            advice="a record must be the same to the byte, after the method's normalisation",
        )
    _check_leaves(proof)
    for leaf in proof.leaves:
        root = root_of(leaf.digest, leaf.index, expected.distinct, leaf.path)
        if root is None or root.hex() != expected.root:
            raise PathError(
                f"leaf {leaf.index} is not at its place in the tree",
                got="no path to any root" if root is None else root,
                expected=expected.root,
            )
    return item


def _check_leaves(proof: Proof) -> None:
    """Check that the leaves settle the question, if they stand where they say."""
    last = proof.records.distinct - 1
    order = [leaf.digest for leaf in proof.leaves]
    places = [leaf.index for leaf in proof.leaves]
    if proof.found:
        good = order == [proof.record]
    elif len(order) == 2:
        good = places[1] == places[0] + 1 and order[0] < proof.record < order[1]
    elif proof.record < order[0]:
        good = places == [0]
    else:
        good = places == [last] and order[0] < proof.record
    if not good or not all(place <= last for place in places):
        raise NeighboursError(
            "the leaves do not show that the record is "
            + ("there" if proof.found else "not there"),
            got=", ".join(f"{d.hex()[:16]}… at {n}" for d, n in zip(order, places, strict=True)),
            expected="the record itself"
            if proof.found
            else "the two neighbours between which it would stand, or the one at an end",
        )


def committed(run: Run, name: str | None) -> Input:
    """Return the input of this name, or the only one, whose records the run commits to.

    Raises:
        NoCommitmentError: there is none, or more than one where no name is given.
    """
    items = [item for item in run.inputs if item.records is not None]
    found = [item for item in items if name in (None, item.name)]
    if len(found) != 1:
        have = ", ".join(item.name for item in items)
        what = "no input" if name is None else f"no input {name!a}"
        raise NoCommitmentError(
            f"the certificate commits to the records of {what}"
            if not found
            else "the certificate commits to the records of several inputs",
            got=have or None,
            advice="name one of them" if have else "ask for `records` in the spec of a run",
        )
    return found[0]


def proved(proof: Proof) -> str:
    """Return what a proof that was checked shows, as a sentence."""
    if proof.found:
        return f"the record is in the input {proof.input}, at least once"
    return f"the record is not in the input {proof.input}"


def not_proved(proof: Proof, run: Run) -> tuple[str, ...]:
    """Return what a proof that was checked does not show, each in a sentence for a person."""
    if proof.found:
        limits = ["that the training used the record: it was there to be read"]
    else:
        limits = [
            "that nothing like it is there: what differs in one byte, is encoded or packed, or is "
            "a part of another record, is another record"
        ]
    others = [item.name for item in run.inputs if item.name != proof.input]
    if others:
        limits.append(f"anything about the other inputs: {', '.join(others)}")
    limits.append("anything about the container image, which may hold data too")
    return tuple(limits)


def text(proof: Proof, verdict: Verdict, *, named: bool) -> str:
    """Return the outcome as a few lines for a terminal; `named`: the verifier gave the record."""
    held = proof.records
    record = "the one that you gave" if named else "known by this digest alone: give it, to be sure"
    return "\n".join(
        [
            f"PROVED  {proved(proof)}",
            f"  record       sha256:{proof.record.hex()} ({record})",
            f"  input        {count(held.count, 'record')}, {held.distinct} distinct; "
            f"method {held.method}",
            f"  certificate  sha256:{verdict.certificate_digest}",
            f"  model        {clean(verdict.run.job.spec.name)}, assurance: {verdict.assurance}",
            "Not proved:",
            *(f"  - {clean(limit)}" for limit in not_proved(proof, verdict.run)),
        ]
    )


def to_json(proof: Proof, verdict: Verdict, *, named: bool) -> dict[str, Any]:
    """Return the outcome for programs; `named`: the verifier gave the record."""
    return {
        "verdict": "proved",
        "found": proof.found,
        "input": proof.input,
        "record": {"sha256": proof.record.hex(), "given": named},
        "records": proof.records.to_json(),
        "certificate": {"sha256": verdict.certificate_digest},
        "assurance": str(verdict.assurance),
        "notProved": list(not_proved(proof, verdict.run)),
    }


# -- the prover's side -----------------------------------------------------------------------------


def prove(
    item: Input,
    place: Path,
    record: bytes,
    *,
    scratch: Path | None = None,
    progress: records.Progress | None = None,
) -> Proof:
    """Make the proof that the record of this digest is among the input's, or is not.

    Args:
        item: the input as its certificate has it.
        place: the input's files: the folder, or the file where it is one.
        record: SHA-256 of the normalised record.
        scratch: a folder for about 100 bytes for each record; the system's, if there is none.
        progress: called with numbers of bytes read.

    Raises:
        NoCommitmentError: the input's records are not committed to.
        OtherDataError: the files are not those of the input.
        RecordsError: they cannot be read.
        ManifestError: they cannot be read.
    """
    if item.records is None:
        raise NoCommitmentError("the input's records are not committed to", got=item.name)
    folder, manifest = records.listing(place)
    same = item.sha256 is not None and [file.sha256 for file in manifest.files] == [item.sha256]
    if not same and manifest.digest != item.manifest:
        raise OtherDataError(
            f"these are not the files of the input {item.name}",
            got=f"{len(manifest.files)} files, manifest {manifest.digest}",
            expected=f"{item.files} files, manifest {item.manifest}",
            advice=f"give them as they came from {item.uri}, with their names and nothing besides",
        )
    with tempfile.TemporaryDirectory(prefix="aicert-", dir=scratch) as kept:
        leaves = Path(kept) / "leaves"
        with leaves.open("wb") as keep:
            kind = item.records.kind
            made = records.commit(
                folder, manifest, kind, scratch=Path(kept), keep=keep, progress=progress
            )
        if made != item.records:
            raise OtherDataError(
                "the records are not those that the certificate commits to",
                got=f"{made.method}, root {made.root}",
                expected=f"{item.records.method}, root {item.records.root}",
            )
        with leaves.open("rb") as stream:
            digests = _Leaves(stream.fileno(), made.distinct)
            index = bisect_left(digests, record)
            found = index < made.distinct and digests[index] == record
            places = [index] if found else [n for n in (index - 1, index) if 0 <= n < made.distinct]
            shown = tuple(
                Leaf(number, digests[number], tuple(path))
                for number, path in zip(places, paths(digests, places), strict=True)
            )
    return Proof(item.name, made, record, found, shown)


class _Leaves(Sequence[bytes]):
    """The digests in a file, read as they are asked for."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, int):
            return os.pread(self._descriptor, DIGEST, index * DIGEST)
        start, stop, _ = index.indices(self._size)
        return split(os.pread(self._descriptor, (stop - start) * DIGEST, start * DIGEST))


def digest_of(place: Path, kind: str) -> bytes:
    """Return the digest of the one record in a file.

    Raises:
        RecordsError: it does not hold one record of this kind.
        ManifestError: it cannot be read.
    """
    if kind == "files":
        return bytes.fromhex(hash_file(place)[1])
    try:
        with place.open("rb") as stream:
            data = stream.read(records.MAX_RECORD + 4)
    except OSError as error:
        raise records.RecordsError("the record cannot be read", got=error) from error
    return records.record_digest(data, kind)
