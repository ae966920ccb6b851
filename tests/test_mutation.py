"""Every byte of a valid certificate changed, every JSON value dropped, doubled or retyped.

No mutant may crash the verifier. Each is refused; or it is one of a boot event log, whose data no
digest covers, or of a timestamp that nobody checks, and then all that the verifier says is what it
said before, but for how many events it calls uncovered.
"""

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aicert import canonical, sev
from aicert.errors import Error
from aicert.trust import TrustStore
from aicert.verify import Assurance, to_json, verify
from tests.support import boot, snp
from tests.support.forger import Forger

SHARDS = 16
CASES = Path(__file__).parent / "conformance" / "cases"


@pytest.fixture(scope="module", params=["ecc", "rsa"])
def certified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Forger(request.param)
    root = tmp_path_factory.mktemp("root") / "root.pem"
    Path(root).write_bytes(made.authority.root_pem)
    trust = TrustStore.builtin().with_roots(root)
    data = made.certificate().encode()
    verify(data, trust=trust, least=Assurance.SIMULATED)  # it is valid to begin with
    return data, trust


def refused(data: bytes, trust: TrustStore) -> bool:
    try:
        verify(data, trust=trust, least=Assurance.SIMULATED)
    except Error:
        return True
    return False


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_byte_can_be_changed(certified: Any, shard: int) -> None:
    data, trust = certified
    for position in range(shard, len(data), SHARDS):
        # One bit; and the bit that tells upper case from lower.
        for bit in (0x01, 0x20):
            mutant = bytearray(data)
            mutant[position] ^= bit
            assert refused(bytes(mutant), trust), f"byte {position} ^ {bit:#x} is accepted"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_file_cannot_be_cut_or_extended(certified: Any, shard: int) -> None:
    data, trust = certified
    for position in range(shard * 7, len(data), SHARDS * 7):
        assert refused(data[:position], trust)
        assert refused(data[:position] + data[position + 1 :], trust)
        assert refused(data[:position] + b" " + data[position:], trust)
        doubled = data[:position] + data[position : position + 1] + data[position:]
        assert refused(doubled, trust)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


OTHERS: tuple[Any, ...] = (None, True, 0, -1, 0.5, "", "x", [], {}, [None], {"x": 1})


def mutants(value: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """Mutants of a document at one place: dropped, doubled, retyped."""

    def at() -> tuple[Any, Any]:
        mutant = copy.deepcopy(value)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        return mutant, parent

    mutant, parent = at()
    del parent[path[-1]]
    yield mutant
    mutant, parent = at()
    old = parent[path[-1]]
    if isinstance(parent, list):
        parent.insert(path[-1], old)
    else:
        parent[f"{path[-1]}_"] = old
    yield mutant
    for other in OTHERS:
        if type(other) is not type(old) or other != old:
            mutant, parent = at()
            parent[path[-1]] = other
            yield mutant


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_value_can_be_dropped_doubled_or_retyped(certified: Any, shard: int) -> None:
    data, trust = certified
    value = canonical.loads(data, max_bytes=1 << 20)
    for number, path in enumerate(places(value)):
        if number % SHARDS != shard:
            continue
        for mutant in mutants(value, path):
            assert refused(canonical.dumps(mutant), trust), path


@pytest.mark.parametrize("shard", range(4))
def test_no_value_can_be_exchanged_with_its_neighbour(certified: Any, shard: int) -> None:
    data, trust = certified
    value = canonical.loads(data, max_bytes=1 << 20)
    for number, path in enumerate(places(value)):
        if number % 4 != shard or not isinstance(path[-1], int):
            continue
        mutant = copy.deepcopy(value)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        if path[-1] and parent[path[-1]] != parent[path[-1] - 1]:
            index = path[-1]
            parent[index - 1], parent[index] = parent[index], parent[index - 1]
            assert refused(canonical.dumps(mutant), trust), path


@pytest.mark.parametrize("shard", range(4))
def test_no_key_can_stand_twice(certified: Any, shard: int) -> None:
    data, trust = certified
    value = canonical.loads(data, max_bytes=1 << 20)
    for number, path in enumerate(places(value)):
        if number % 4 != shard or not isinstance(path[-1], str):
            continue
        mutant = copy.deepcopy(value)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}\x01"] = parent[path[-1]]
        doubled = canonical.dumps(mutant).replace(rb"\u0001", b"")
        with pytest.raises(canonical.DuplicateKeyError):
            verify(doubled, trust=trust, least=Assurance.SIMULATED)


# -- what only some certificates have --------------------------------------------------------------

PARTS = ("bootEventLog", "timestamp", "report", "runtimeData", "certificateChain")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A certificate with all that one may have, and how to verify it."""
    machine, amd, made = boot.Boot(), snp.Amd(), Forger("rsa")
    made.start = machine.pcrs
    plain = made.certificate(boot_event_log=boot.log(machine.events, data=b"uncovered"))
    stamped = json.loads((CASES / "timestamp-unchecked" / "certificate.json").read_bytes())
    certificate = replace(
        plain,
        timestamp=base64.b64decode(stamped["timestamp"]),
        cpu_report=amd.evidence(made.key.public_key()),
    )
    root = tmp_path_factory.mktemp("root") / "root.pem"
    root.write_bytes(made.authority.root_pem)
    trust = TrustStore.builtin().with_roots(root, "hardware")
    with pytest.MonkeyPatch.context() as patch:
        for fingerprint, processor in amd.pins().items():
            patch.setitem(sev.ROOTS, fingerprint, processor)
        yield certificate.to_json(), trust, said(certificate.encode(), trust)


def said(data: bytes, trust: TrustStore) -> dict[str, Any]:
    """All that the verifier says of a certificate, but what names or counts uncovered bytes.

    Software extends PCRs above 7 too, so a log need not account for these: whether it does is said.
    """
    told = to_json(verify(data, trust=trust))
    assert told["confidential"] and told["time"]["timestamp"] == "unchecked"
    del told["certificate"], told["boot"]["log"]["dataNotAuthenticated"]
    told["boot"]["pcrs"] = {pcr: told["boot"]["pcrs"][str(pcr)] for pcr in range(8)}
    told["notProved"] = [line for line in told["notProved"] if "boot event log" not in line]
    return told


def part(value: Any, name: str) -> tuple[Any, Any]:
    """Where a part stands: what holds it, and its key."""
    if name == "timestamp":
        return value, name
    evidence = value["evidence"]
    return (evidence, name) if name in evidence else (evidence["cpuReport"], name)


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", ["bootEventLog", "timestamp", "certificateChain"])
def test_no_byte_of_such_a_part_changes_what_is_said(full: Any, name: str, shard: int) -> None:
    value, trust, before = full
    holder, key = part(value, name)
    old = holder[key]
    # Of the certificates one stands for all; tests/test_sev.py has the report and its document.
    texts = old[1:2] if isinstance(old, list) else [old]
    accepted = 0
    try:
        for text in texts:
            data = base64.b64decode(text)
            for position in range(shard, len(data), SHARDS):
                mutant = bytearray(data)
                mutant[position] ^= 1 << position // SHARDS % 8
                changed = base64.b64encode(mutant).decode()
                holder[key] = [old[0], changed, *old[2:]] if isinstance(old, list) else changed
                try:
                    after = said(canonical.dumps(value), trust)
                except Error:
                    continue
                assert after == before, position
                accepted += 1
    finally:
        holder[key] = old
    assert accepted == 0 or name in ("bootEventLog", "timestamp")


@pytest.mark.parametrize("name", PARTS)
def test_such_a_part_cannot_be_doubled_or_retyped(full: Any, name: str) -> None:
    value, trust, _ = full
    holder, _ = part(value, name)
    (path,) = [p for p in places(value) if p[-1] == name and "attestationKey" not in p]
    assert holder[name]
    # Without its log or its timestamp a certificate says less, and is another one.
    dropped = [None] if name in ("bootEventLog", "timestamp") else []
    for mutant in mutants(value, path):
        if part(mutant, name)[0].get(name, 0) in dropped:
            continue
        with pytest.raises(Error):
            verify(canonical.dumps(mutant), trust=trust)
