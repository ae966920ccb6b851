"""The tree: the published vectors, every small tree, and no path but the right one."""

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicert.merkle import Tree, leaf, node, paths, root_of


def digests(count: int) -> list[bytes]:
    return sorted(hashlib.sha256(b"%d" % number).digest() for number in range(count))


def root(leaves: list[bytes]) -> bytes:
    tree = Tree()
    tree.extend(leaves)
    assert tree.size == len(leaves)
    return tree.root


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    half = max(2**n for n in range(20) if 2**n < len(leaves))
    left, right = by_definition(leaves[:half]), by_definition(leaves[half:])
    return hashlib.sha256(b"\1" + left + right).digest()


def test_roots_are_those_of_certificate_transparency() -> None:
    # The reference inputs and roots of Certificate Transparency's own tests; a leaf's data may
    # have any length there.
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657",
            "606162636465666768696a6b6c6d6e6f"]  # fmt: skip
    leaves = [bytes.fromhex(item) for item in data]
    known = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for count, expected in known.items():
        assert root(leaves[:count]).hex() == expected


@pytest.mark.parametrize("count", [*range(34), 127, 128, 129])
def test_every_root_is_that_of_the_definition(count: int) -> None:
    leaves = digests(count)
    assert root(leaves) == by_definition(leaves)


def test_in_every_small_tree_each_path_shows_its_leaf_at_its_place_alone() -> None:
    for size in range(1, 34):
        leaves = digests(size)
        top = root(leaves)
        for index, digest in enumerate(leaves):
            (steps,) = paths(leaves, [index])
            for place in range(-1, size + 2):
                assert (root_of(digest, place, size, steps) == top) is (place == index)


def test_paths_of_several_leaves_are_those_of_each() -> None:
    for size in (1, 2, 9, 32, 33):
        leaves = digests(size)
        assert paths(leaves, range(size)) == [paths(leaves, [n])[0] for n in range(size)]


@given(st.integers(1, 300), st.data())
def test_a_path_that_is_altered_in_any_way_leads_elsewhere(size: int, data: st.DataObject) -> None:
    leaves = digests(size)
    index = data.draw(st.integers(0, size - 1))
    (steps,) = paths(leaves, [index])
    top = root(leaves)
    assert root_of(leaves[index], index, size, steps) == top
    assert root_of(leaves[index], index, size, [*steps, top]) != top
    assert root_of(hashlib.sha256(b"other").digest(), index, size, steps) != top
    if steps:
        assert root_of(leaves[index], index, size, steps[:-1]) != top
        which = data.draw(st.integers(0, len(steps) - 1))
        altered = list(steps)
        altered[which] = hashlib.sha256(altered[which]).digest()
        assert root_of(leaves[index], index, size, altered) != top


def test_a_node_does_not_pass_for_a_leaf() -> None:
    leaves = digests(4)
    inner = node(leaf(leaves[0]), leaf(leaves[1]))
    other = node(leaf(leaves[2]), leaf(leaves[3]))
    assert root_of(inner, 0, 2, [other]) != root(leaves)
    assert root([inner, other]) != root(leaves)
    assert all(first < second for first, second in pairwise(leaves))
