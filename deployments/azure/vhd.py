"""A raw disk as Azure takes it: a fixed VHD whose size is a whole number of MiB.

Nothing is copied: the disk is read where it lies, zeros and the footer are added in memory. Clauses
are those of Microsoft's Virtual Hard Disk Image Format Specification, version 1.0.
"""

import hashlib
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
SECTOR = 512
FOOTER_BYTES = 512

_SPACE = uuid.UUID("5c4f1d1e-4b43-5d8c-9f0a-2f3d1f0b7a11")
_FIXED = 2


class FixedVhd:
    """A raw disk with the footer of a fixed VHD behind it.

    Equal disks give equal bytes: the footer has no time in it, and its id comes from the content.
    """

    def __init__(self, disk: Path) -> None:
        """Read the disk once, for its digest."""
        self._disk = disk
        self.virtual_size = -(-disk.stat().st_size // MIB) * MIB
        """The size in bytes of the disk that a machine sees."""
        content = hashlib.sha256()
        for piece in self._pieces(MIB):
            content.update(piece)
        self.footer = footer(self.virtual_size, uuid.uuid5(_SPACE, content.hexdigest()))
        content.update(self.footer)
        self.sha256 = content.hexdigest()
        """The digest of the VHD, footer included."""

    @property
    def size(self) -> int:
        """The size in bytes of the VHD."""
        return self.virtual_size + FOOTER_BYTES

    def chunks(self, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield what is not zero, with its offset; `size` is a whole number of sectors."""
        for number, piece in enumerate(self._pieces(size)):
            if piece.strip(b"\0"):
                yield number * size, piece
        yield self.virtual_size, self.footer

    def _pieces(self, size: int) -> Iterator[bytes]:
        left = self.virtual_size
        with self._disk.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while left:
                piece = file.read(min(size, left))
                piece += bytes(min(size, left) - len(piece))
                left -= len(piece)
                yield piece


def footer(size: int, identity: uuid.UUID) -> bytes:
    """Return the footer of a fixed disk of so many bytes ("Hard Disk Footer Format")."""
    cylinders, heads, sectors = geometry(size // SECTOR)
    fields = struct.pack(
        ">8sIIQI4sI4sQQHBBI",
        b"conectix",
        0x00000002,  # features: the bit that is always set
        0x00010000,  # version of the format
        0xFFFFFFFFFFFFFFFF,  # no header follows: the disk is fixed
        0,  # seconds since 2000
        b"win ",  # of others' disks, some readers round the size to the geometry's
        0x00010000,
        b"Wi2k",  # the host's system; others are not known to the specification
        size,
        size,
        cylinders,
        heads,
        sectors,
        _FIXED,
    )
    tail = identity.bytes + b"\0"
    # "A one's complement of the sum of all the bytes in the footer without the checksum field."
    checksum = ~sum(fields + tail) & 0xFFFFFFFF
    return (fields + struct.pack(">I", checksum) + tail).ljust(FOOTER_BYTES, b"\0")


def geometry(total: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors of a disk of so many sectors ("CHS Calculation")."""
    total = min(total, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        return total // sectors // heads, heads, sectors
    sectors = 17
    tracks = total // sectors
    heads = max((tracks + 1023) // 1024, 4)
    if tracks >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        tracks = total // sectors
    if tracks >= heads * 1024:
        sectors, heads = 63, 16
        tracks = total // sectors
    return tracks // heads, heads, sectors
