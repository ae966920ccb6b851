"""Proofs about records: what is true can be shown, and nothing else can."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from aicert import canonical, events, log, manifest, merkle, proof, records, statement
from aicert.cli import main
from aicert.proof import Leaf, Proof
from tests.support.forger import Forger, run_events

LINES = [b"%d bottles\n" % number for number in range(0, 200, 2)]


def digest(line: bytes) -> bytes:
    return records.record_digest(line, "lines")


def asked(made: list[Any], **kinds: str) -> list[Any]:
    """The events, with records asked for in the spec."""

    def change(event: Any) -> Any:
        if not isinstance(event, events.Job):
            return event
        inputs = tuple(replace(i, records=kinds.get(i.name)) for i in event.spec.inputs)
        return replace(event, spec=replace(event.spec, inputs=inputs))

    return [change(event) for event in made]


@dataclass
class World:
    """A run over an input that commits to its records."""

    folder: Path
    forger: Forger

    @property
    def run(self) -> log.Run:
        return log.parse_run(log.Record.of(event) for event in self.forger.events)

    def item(self) -> events.Input:
        return next(item for item in self.run.inputs if item.name == "data")

    def prove(self, line: bytes) -> Proof:
        return proof.prove(self.item(), self.folder, digest(line))


def world(place: Path, files: dict[str, bytes] | None = None, kind: str = "lines") -> World:
    folder = place / "data"
    folder.mkdir()
    for name, content in (files or {"a": b"".join(LINES), "b": LINES[3]}).items():
        (folder / name).write_bytes(content)
    tree = manifest.scan(folder)
    held = records.commit(folder, tree, kind, scratch=place)
    made = []
    for event in asked(run_events(), data=kind):
        if isinstance(event, events.Input) and event.name == "data":
            event = replace(event, files=len(tree.files), size=tree.size, root=tree.root,
                            manifest=tree.digest, records=held)  # fmt: skip
        made.append(event)
    return World(folder, Forger(events=made))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("small"))


# -- what is true ----------------------------------------------------------------------------------


def test_a_record_that_is_there_is_shown_with_one_leaf(small: World) -> None:
    made = small.prove(b"  42 bottles\r\n")
    assert made.found
    assert len(made.leaves) == 1
    assert proof.check(made, small.run, digest(b"42 bottles")) == small.item()


def test_a_record_that_is_not_there_is_shown_by_its_neighbours(small: World) -> None:
    made = small.prove(b"43 bottles")
    assert not made.found
    assert made.leaves[1].index == made.leaves[0].index + 1
    proof.check(made, small.run, digest(b"43 bottles"))


@given(number=st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_every_record_is_either_there_or_not_and_the_proof_says_which(
    small: World, number: int
) -> None:
    line = b"%d bottles" % number
    made = small.prove(line)
    assert made.found is (line + b"\n" in LINES)
    assert Proof.parse(made.encode()) == made
    assert len(made.encode()) < proof.MAX_BYTES
    proof.check(made, small.run, digest(line))


@given(count=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_in_every_tree_the_ends_are_neighbours_of_what_lies_beyond(
    tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject
) -> None:
    content = b"".join(b"%d\n" % number for number in range(count))
    made = world(tmp_path_factory.mktemp("tree"), {"a": content})
    for wanted in (bytes(32), b"\xff" * 32, data.draw(st.binary(min_size=32, max_size=32))):
        shown = proof.prove(made.item(), made.folder, wanted)
        assert not shown.found
        proof.check(shown, made.run, wanted)
    ends = [proof.prove(made.item(), made.folder, wanted) for wanted in (bytes(32), b"\xff" * 32)]
    assert [leaf.index for shown in ends for leaf in shown.leaves] == [0, count - 1]


def test_a_proof_shows_no_record(small: World) -> None:
    for line in (b"42 bottles", b"43 bottles"):
        assert b"bottles" not in small.prove(line).encode()


@pytest.mark.parametrize("kind", ["jsonl", "files"])
def test_records_of_every_kind_can_be_proved(tmp_path: Path, kind: str) -> None:
    made = world(tmp_path, {"a": b'{"a":1}\n', "b": b'{"b":2}\n'}, kind)
    here, other = tmp_path / "here", tmp_path / "other"
    here.write_bytes(b'{"a":1}\n')
    other.write_bytes(b'{"c":1}\n')
    for place, found in ((here, True), (other, False)):
        wanted = proof.digest_of(place, kind)
        shown = proof.prove(made.item(), made.folder, wanted)
        assert shown.found is found
        proof.check(shown, made.run, wanted)


def test_a_row_of_parquet_is_proved_by_its_json(tmp_path: Path) -> None:
    rows = Path(__file__).parent / "parquet"
    made = world(tmp_path, {"a": (rows / "polars.parquet").read_bytes()}, "parquet")
    here, other = tmp_path / "here", tmp_path / "other"
    here.write_bytes((rows / "flat.jsonl").read_bytes().splitlines()[7])
    other.write_bytes(here.read_bytes().replace(b"55433", b"55434"))
    for place, found in ((here, True), (other, False)):
        wanted = proof.digest_of(place, "parquet")
        shown = proof.prove(made.item(), made.folder, wanted)
        assert shown.found is found
        proof.check(Proof.parse(shown.encode()), made.run, wanted)


def test_an_input_of_one_file_may_be_given_under_any_name(tmp_path: Path) -> None:
    made = world(tmp_path, {"a": b"one\ntwo\n"})
    item = replace(made.item(), sha256=manifest.hash_file(made.folder / "a")[1])
    other = tmp_path / "renamed.txt"
    other.write_bytes(b"one\ntwo\n")
    assert proof.prove(item, other, digest(b"one")).found


def test_no_proof_is_made_from_other_files(small: World, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"".join(LINES))
    with pytest.raises(proof.OtherDataError, match="not the files of the input data"):
        proof.prove(small.item(), tmp_path, digest(b"1 bottles"))


def test_no_proof_is_made_for_another_commitment(small: World) -> None:
    held = small.item().records
    assert held is not None
    item = replace(small.item(), records=replace(held, root="ab" * 32))
    with pytest.raises(proof.OtherDataError, match="not those that the certificate commits to"):
        proof.prove(item, small.folder, digest(b"1 bottles"))


def test_the_input_must_be_named_where_several_have_records(small: World) -> None:
    run = small.run
    held = small.item().records
    both = replace(run, inputs=tuple(replace(item, records=held) for item in run.inputs))
    assert proof.committed(both, "code").name == "code"
    assert proof.committed(run, None).name == "data"
    with pytest.raises(proof.NoCommitmentError, match="several"):
        proof.committed(both, None)


# -- what is not true ------------------------------------------------------------------------------


def leaf(made: World, index: int) -> Leaf:
    """A leaf with its true place and path."""
    lines = [*LINES]
    digests = sorted(map(digest, lines))
    return Leaf(index, digests[index], tuple(merkle.paths(digests, [index])[0]))


def between(made: World, low: int, high: int) -> Proof:
    """A proof of absence for a record that lies between two leaves."""
    held = made.item().records
    assert held is not None
    first, second = leaf(made, low), leaf(made, high)
    value = (int.from_bytes(first.digest) + int.from_bytes(second.digest)) // 2
    return Proof("data", held, value.to_bytes(32), False, (first, second))


def found(made: World) -> Proof:
    return made.prove(b"42 bottles")


def absent(made: World) -> Proof:
    return between(made, 10, 11)


def altered(make: Callable[[World], Proof], **changes: Any) -> Callable[[World], Proof]:
    return lambda made: replace(make(made), **changes)


def held(make: Callable[[World], Proof], **changes: Any) -> Callable[[World], Proof]:
    """The proof with another commitment."""
    return lambda made: replace(make(made), records=replace(make(made).records, **changes))


def moved(make: Callable[[World], Proof], by: int, which: int = 0) -> Callable[[World], Proof]:
    """The proof with a leaf at another place."""

    def change(made: World) -> Proof:
        leaves = list(make(made).leaves)
        leaves[which] = replace(leaves[which], index=leaves[which].index + by)
        return replace(make(made), leaves=tuple(leaves))

    return change


def with_leaves(make: Callable[[World], Proof], *numbers: int) -> Callable[[World], Proof]:
    return lambda made: replace(make(made), leaves=tuple(leaf(made, n) for n in numbers))


def hidden(made: World) -> Proof:
    """A record that is there, between two leaves that are not neighbours."""
    return replace(between(made, 10, 12), record=leaf(made, 11).digest)


def renumbered(made: World) -> Proof:
    """The same, with places that would be neighbours."""
    first, second = hidden(made).leaves
    return replace(hidden(made), leaves=(first, replace(second, index=11)))


def invented(made: World) -> Proof:
    """A neighbour that is in no tree, close to the record."""
    first, second = absent(made).leaves
    near = (int.from_bytes(absent(made).record) - 1).to_bytes(32)
    return replace(absent(made), leaves=(replace(first, digest=near), second))


def taller(made: World) -> Proof:
    """An inner node passed off as a leaf: a step less."""
    one = found(made).leaves[0]
    inner = merkle.node(merkle.leaf(one.digest), one.path[0])
    return replace(found(made), record=inner, leaves=(Leaf(one.index >> 1, inner, one.path[1:]),))


FORGED: dict[str, tuple[Callable[[World], Proof], type[proof.ProofError]]] = {
    "another record is said to be there": (
        altered(found, record=bytes(32)), proof.NeighboursError),
    "what is there is said not to be": (altered(found, found=False), proof.NeighboursError),
    "what is not there is said to be": (altered(absent, found=True), proof.NeighboursError),
    "two leaves for a record that is there": (
        lambda made: replace(found(made), leaves=found(made).leaves * 2), proof.NeighboursError),
    "not neighbours": (hidden, proof.NeighboursError),
    "not neighbours, with other numbers": (renumbered, proof.PathError),
    "the same leaf twice": (with_leaves(absent, 10, 10), proof.NeighboursError),
    "neighbours the wrong way round": (with_leaves(absent, 11, 10), proof.NeighboursError),
    "neighbours of another record, above": (with_leaves(absent, 20, 21), proof.NeighboursError),
    "neighbours of another record, below": (with_leaves(absent, 1, 2), proof.NeighboursError),
    "one neighbour alone": (with_leaves(absent, 10), proof.NeighboursError),
    "the last leaf, for one before it": (
        lambda made: replace(absent(made), leaves=(leaf(made, 99),)), proof.NeighboursError),
    "the first leaf, for one after it": (
        lambda made: replace(absent(made), leaves=(leaf(made, 0),)), proof.NeighboursError),
    "the end of the tree, moved": (
        lambda made: replace(
            absent(made), leaves=(replace(leaf(made, 10), index=99),)), proof.PathError),
    "the start of the tree, moved": (
        lambda made: replace(
            absent(made), leaves=(replace(leaf(made, 11), index=0),)), proof.PathError),
    "a place beyond the tree": (moved(found, 100), proof.NeighboursError),
    "another place in the tree": (moved(found, 1), proof.PathError),
    "a neighbour that is in no tree": (invented, proof.PathError),
    "an inner node as a leaf": (taller, proof.PathError),
    "a path without its last step": (
        lambda made: replace(found(made), leaves=(
            replace(found(made).leaves[0], path=found(made).leaves[0].path[:-1]),)),
        proof.PathError),
    "a path with one step more": (
        lambda made: replace(found(made), leaves=(
            replace(found(made).leaves[0], path=(*found(made).leaves[0].path, bytes(32))),)),
        proof.PathError),
    "another root": (held(found, root="ab" * 32), proof.OtherRootError),
    "another method": (held(found, method="jsonl/1"), proof.OtherMethodError),
    "another count": (held(found, count=102), proof.OtherCountError),
    "another number of leaves": (held(found, distinct=99), proof.OtherCountError),
    "an input that has no records": (altered(found, input="code"), proof.NoCommitmentError),
    "an input that is not there": (altered(found, input="more"), proof.NoCommitmentError),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_proof_is_refused(small: World, name: str) -> None:
    make, error = FORGED[name]
    with pytest.raises(error):
        proof.check(make(small), small.run)


def test_what_the_forgeries_start_from_is_good(small: World) -> None:
    proof.check(found(small), small.run)
    proof.check(absent(small), small.run)


def test_a_proof_about_another_record_is_refused(small: World) -> None:
    with pytest.raises(proof.OtherRecordError):
        proof.check(found(small), small.run, digest(b"43 bottles"))


def test_a_proof_for_other_data_is_refused(small: World, tmp_path: Path) -> None:
    lines = [*LINES[:-1], b"199 bottles\n"]
    other = world(tmp_path, {"a": b"".join(lines), "b": LINES[3]})
    with pytest.raises(proof.OtherRootError):
        proof.check(other.prove(b"42 bottles"), small.run)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_change_to_a_proof_leaves_it_good(small: World, data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([found(small), absent(small)]))
    value = json.loads(good.encode())
    places: list[tuple[Any, Any]] = []

    def collect(inner: Any) -> None:
        for key in inner if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                collect(inner[key])

    collect(value)
    inner, key = data.draw(st.sampled_from(places))
    change: Any = data.draw(st.sampled_from([
        None, 0, 1, 11, True, False, "", "ab" * 32, "data", "code", [], {}, "lines/1", "remove",
    ]))  # fmt: skip
    if change == "remove":
        del inner[key]
    else:
        inner[key] = change
    forged = canonical.dumps(value)
    if forged == good.encode():
        return
    with pytest.raises((proof.ProofError, canonical.CanonicalError)):
        proof.check(Proof.parse(forged), small.run, good.record)


@pytest.mark.parametrize("make", [found, absent])
def test_no_byte_of_a_proof_can_be_changed(small: World, make: Callable[[World], Proof]) -> None:
    good = make(small)
    data = good.encode()
    for position in range(len(data)):
        for bit in (0x01, 0x20):
            mutant = bytearray(data)
            mutant[position] ^= bit
            with pytest.raises((proof.ProofError, canonical.CanonicalError)):
                proof.check(Proof.parse(bytes(mutant)), small.run, good.record)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data[:-1],
        lambda data: data.replace(b'"found":', b'"found":true,"found":'),
        lambda data: data.replace(b"}", b',"more":1}', 1),
        lambda data: data.replace(b"record-proof.v1", b"record-proof.v2"),
        lambda data: data + b" " * proof.MAX_BYTES,
        lambda data: b"[" * 100,
        lambda data: b"",
    ],
)
def test_a_proof_that_is_not_written_as_one_is_refused(
    small: World, spoil: Callable[[bytes], bytes]
) -> None:
    with pytest.raises((proof.FormatError, canonical.CanonicalError)):
        Proof.parse(spoil(found(small).encode()))


# -- the log ---------------------------------------------------------------------------------------


def test_the_commitment_stands_in_the_statement(small: World) -> None:
    built = statement.build(small.run)
    found = built["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [item.get("annotations", {}).get("records") for item in found[1:]] == [
        None,
        small.item().records.to_json(),  # type: ignore[union-attr]
    ]


def test_a_log_without_records_is_written_as_before() -> None:
    for event in run_events():
        assert b'"records"' not in canonical.dumps(event.to_json())


@pytest.mark.parametrize("kinds", [{}, {"data": "jsonl"}, {"data": "lines", "code": "lines"}])
def test_a_log_that_commits_to_what_the_spec_does_not_ask_for_is_refused(
    small: World, kinds: dict[str, str]
) -> None:
    made = asked(small.forger.events, **kinds)
    with pytest.raises(log.GrammarError, match="kind of records"):
        log.parse_run(log.Record.of(event) for event in made)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(small: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate, its root, and a record that is there and one that is not."""
    place = tmp_path_factory.mktemp("files")
    (place / "certificate.json").write_bytes(small.forger.certificate().encode())
    root = small.forger.authority.root
    (place / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (place / "in.txt").write_text("42 bottles\n")
    (place / "out.txt").write_text("43 bottles\n")
    return place


def aicert(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


TRUST = ("--allow-simulated", "--root")


@pytest.mark.parametrize(("name", "sentence"), [
    ("in", "PROVED  the record is in the input data, at least once"),
    ("out", "PROVED  the record is not in the input data"),
])  # fmt: skip
def test_a_record_is_proved_and_checked(
    small: World, files: Path, name: str, sentence: str
) -> None:
    record, shown = files / f"{name}.txt", files / f"{name}.proof"
    certificate = files / "certificate.json"
    done = aicert("prove", certificate, small.folder, record, "--out", shown)
    assert done.exit_code == 0, done.output
    done = aicert("check", shown, certificate, record, *TRUST, files / "root.pem")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(sentence)
    assert "anything about the other inputs: code" in done.stdout
    done = aicert("check", shown, certificate, *TRUST, files / "root.pem", "--json")
    told = json.loads(done.stdout)
    assert (told["found"], told["record"]["given"]) == (name == "in", False)


def test_a_check_verifies_the_certificate_first(small: World, files: Path, tmp_path: Path) -> None:
    shown = tmp_path / "proof.json"
    certificate = files / "certificate.json"
    done = aicert("prove", certificate, small.folder, files / "in.txt")
    shown.write_bytes(done.stdout_bytes)
    assert aicert("check", shown, certificate).exit_code == 1
    done = aicert("check", shown, certificate, "--root", files / "root.pem")
    assert done.exit_code == 1
    assert "assurance" in done.stderr
    forged = certificate.read_bytes().replace(b"lines/1", b"jsonl/1")
    (tmp_path / "forged.json").write_bytes(forged)
    done = aicert("check", shown, tmp_path / "forged.json", *TRUST, files / "root.pem")
    assert done.exit_code == 1
    assert "log.digest" in done.stderr


def test_a_check_refuses_the_proof_of_another_record(
    small: World, files: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "proof.json"
    certificate = files / "certificate.json"
    shown.write_bytes(aicert("prove", certificate, small.folder, files / "in.txt").stdout_bytes)
    done = aicert("check", shown, certificate, files / "out.txt", *TRUST, files / "root.pem")
    assert done.exit_code == 1
    assert "proof.record" in done.stderr


def test_anybody_with_the_data_gets_the_measured_root(small: World, tmp_path: Path) -> None:
    held = small.item().records
    assert held is not None
    done = aicert("root", "lines", small.folder, "--scratch", tmp_path)
    assert json.loads(done.stdout) == held.to_json()
    assert list(tmp_path.iterdir()) == []
    done = aicert("root", "jsonl", small.folder)
    assert done.exit_code == 3
    assert "a, line 1" in done.stderr


def test_what_cannot_be_proved_exits_with_3(small: World, files: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n")
    certificate = files / "certificate.json"
    done = aicert("prove", certificate, tmp_path, files / "in.txt")
    assert done.exit_code == 3
    assert "proof.data" in done.stderr
    two = tmp_path / "two"
    two.write_bytes(b"1\n2\n")
    done = aicert("prove", certificate, small.folder, two)
    assert done.exit_code == 3
    assert "records.none" in done.stderr
    done = aicert("prove", certificate, small.folder, files / "in.txt", "--input", "code")
    assert done.exit_code == 3
    assert "proof.no-commitment" in done.stderr


def test_a_proof_of_a_digest_alone_is_what_the_record_has(small: World) -> None:
    assert found(small).record == hashlib.sha256(b"42 bottles").digest()
