"""Merkle trees over digests: roots, and paths that show where one leaf stands.

The tree is that of Certificate Transparency (RFC 6962, 2.1; RFC 9162, 2.1): a leaf is
SHA-256(0x00 || digest), a node is SHA-256(0x01 || left || right), and of n leaves the largest power
of two below n is on the left. So neither a node passes for a leaf, nor one number of leaves for
another where that number is known.
"""

import hashlib
from collections.abc import Iterable, Sequence

DIGEST = 32
"""Bytes in a digest."""

_PIECE = 1 << 12

_sha256 = hashlib.sha256


def split(data: bytes) -> list[bytes]:
    """Return the digests that stand in `data` one after the other."""
    return [data[start : start + DIGEST] for start in range(0, len(data), DIGEST)]


def leaf(digest: bytes) -> bytes:
    """Return the leaf of a digest."""
    return _sha256(b"\0" + digest).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Return the node above two others."""
    return _sha256(b"\1" + left + right).digest()


class Tree:
    """A tree that takes its leaves one after the other, and holds a few dozen nodes of them."""

    def __init__(self) -> None:
        """Start with no leaf."""
        self.size = 0
        # Of whole subtrees, the largest first: one for each bit of `size` that is set.
        self._peaks: list[bytes] = []

    def extend(self, digests: Iterable[bytes]) -> None:
        """Add leaves at the right."""
        peaks, size = self._peaks, self.size
        for digest in digests:
            made = _sha256(b"\0" + digest).digest()
            bits = size
            while bits & 1:
                made = _sha256(b"\1" + peaks.pop() + made).digest()
                bits >>= 1
            peaks.append(made)
            size += 1
        self.size = size

    @property
    def root(self) -> bytes:
        """The root; that of no leaf is SHA-256 of nothing (RFC 6962, 2.1)."""
        if not self._peaks:
            return _sha256(b"").digest()
        *rest, made = self._peaks
        for peak in reversed(rest):
            made = node(peak, made)
        return made


def paths(digests: Sequence[bytes], indices: Iterable[int]) -> list[list[bytes]]:
    """Return, for each of these leaves, the siblings on the way up to the root (RFC 6962, 2.1.1).

    `digests` is sliced in pieces, so it may be a view of a file. Every leaf is hashed; what the
    paths of neighbours share is hashed once.
    """
    known: dict[tuple[int, int], bytes] = {}
    found = []
    for index in indices:
        siblings = []
        low, high = 0, len(digests)
        while high - low > 1:
            middle = low + (1 << (high - low - 1).bit_length() - 1)
            left, right = (low, middle), (middle, high)
            (low, high), other = (left, right) if index < middle else (right, left)
            if other not in known:
                known[other] = _root(digests, *other)
            siblings.append(known[other])
        found.append(siblings[::-1])
    return found


def _root(digests: Sequence[bytes], low: int, high: int) -> bytes:
    tree = Tree()
    for start in range(low, high, _PIECE):
        tree.extend(digests[start : min(start + _PIECE, high)])
    return tree.root


def root_of(digest: bytes, index: int, size: int, siblings: Sequence[bytes]) -> bytes | None:
    """Return the root of a tree of `size` leaves in which this one stands at `index`.

    None where no such path can be: the index is not in the tree, or the path has another length
    than such a leaf's (RFC 9162, 2.1.3.2).
    """
    if not 0 <= index < size:
        return None
    made, last = leaf(digest), size - 1
    for sibling in siblings:
        if last == 0:
            return None
        if index & 1 or index == last:
            made = node(sibling, made)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            made = node(made, sibling)
        index, last = index >> 1, last >> 1
    return made if last == 0 else None
