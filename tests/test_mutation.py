"""Every byte of a valid certificate changed, every JSON value dropped, doubled or retyped.

Each mutant must be refused. None may crash the verifier, and none may be accepted: in a canonical
file no byte is free.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert import canonical
from aicert.errors import Error
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
from tests.support.forger import Forger

SHARDS = 16


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
