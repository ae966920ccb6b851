"""The file formats of a disk that boots: PE, cpio, dm-verity, FAT16, GPT, and firmware variables.

Only as much of each as the image needs, written so that equal content gives equal bytes: nothing
here asks for the time, a random number, or the order of a folder.
"""

import hashlib
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
BLOCK = 4096

# -- PE (Microsoft PE/COFF specification) ----------------------------------------------------------


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


@dataclass(frozen=True, slots=True)
class _Pe:
    """Where the parts of a PE32+ file lie."""

    header: int
    optional: int
    table: int
    sections: int

    @classmethod
    def read(cls, data: bytes | bytearray) -> "_Pe":
        header = struct.unpack_from("<I", data, 0x3C)[0]
        if data[header : header + 4] != b"PE\0\0":
            raise ValueError("this is not a PE file")
        sections, size = struct.unpack_from("<H12xH", data, header + 6)
        optional = header + 24
        if struct.unpack_from("<H", data, optional)[0] != 0x20B:
            raise ValueError("this is not a PE32+ file")
        return cls(header, optional, optional + size, sections)

    @property
    def checksum(self) -> int:
        return self.optional + 64

    @property
    def certificates(self) -> int:
        """The data directory's entry of the signatures."""
        return self.optional + 112 + 4 * 8


def pe_sections(data: bytes) -> dict[str, bytes]:
    """Return the sections of a PE file by name: what is loaded, without padding."""
    pe = _Pe.read(data)
    found = {}
    for number in range(pe.sections):
        name, size, _, raw, at = struct.unpack_from("<8sIIII", data, pe.table + 40 * number)
        found[name.rstrip(b"\0").decode("ascii")] = data[at : at + min(size, raw)]
    return found


def pe_add(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """Return a PE file with more sections, after those it has; its time is zero.

    Raises:
        ValueError: its header has no room for them.
    """
    data = bytearray(stub)
    pe = _Pe.read(data)
    alignment, file_alignment = struct.unpack_from("<II", data, pe.optional + 32)
    (headers,) = struct.unpack_from("<I", data, pe.optional + 60)
    last = [struct.unpack_from("<8sIIII", data, pe.table + 40 * n) for n in range(pe.sections)]
    address = max(_align(entry[2] + entry[1], alignment) for entry in last)
    if pe.table + 40 * (pe.sections + len(sections)) > headers:
        raise ValueError("the stub's header has no room for more sections")
    for count, (name, content) in enumerate(sections.items()):
        data += bytes(_align(len(data), file_alignment) - len(data))
        raw = _align(len(content), file_alignment)
        struct.pack_into(
            "<8sIIIIIIHHI",
            data,
            pe.table + 40 * (pe.sections + count),
            name.encode("ascii"), len(content), address, raw, len(data), 0, 0, 0, 0,
            0x4000_0040,  # initialised data, readable
        )  # fmt: skip
        data += content + bytes(raw - len(content))
        address = _align(address + len(content), alignment)
    struct.pack_into("<H", data, pe.header + 6, pe.sections + len(sections))
    struct.pack_into("<I", data, pe.header + 8, 0)  # TimeDateStamp
    struct.pack_into("<I", data, pe.optional + 56, address)  # SizeOfImage
    struct.pack_into("<I", data, pe.checksum, 0)
    struct.pack_into("<I", data, pe.checksum, _pe_checksum(data))
    return bytes(data)


def _pe_checksum(data: bytes | bytearray) -> int:
    padded = bytes(data) + bytes(len(data) % 2)
    total = sum(memoryview(padded).cast("H"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(data)


def authenticode(data: bytes) -> bytes:
    """Return the SHA-256 by which firmware measures a PE file.

    Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash": all
    but the checksum, the entry of the signatures, and the signatures themselves.
    """
    pe = _Pe.read(data)
    at, size = struct.unpack_from("<II", data, pe.certificates)
    end = at if size else len(data)
    digest = hashlib.sha256(data[: pe.checksum])
    digest.update(data[pe.checksum + 4 : pe.certificates])
    digest.update(data[pe.certificates + 8 : end])
    # Firmware pads what is not a multiple of eight bytes, as a signature would.
    digest.update(bytes(-end % 8))
    return digest.digest()


# -- cpio ("new ASCII", as the kernel reads it) ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder (content None) or link of an initrd."""

    mode: int
    content: bytes | None = None


def cpio(entries: Mapping[str, Entry]) -> bytes:
    """Return an archive of entries in the order of their names; root's, at time zero."""
    parts = []
    ordered = [*sorted(entries.items()), ("TRAILER!!!", Entry(0, b""))]
    for number, (name, entry) in enumerate(ordered, 1):
        content = entry.content or b""
        inode = 0 if name == "TRAILER!!!" else number
        fields = (inode, entry.mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % SECTOR)


# -- dm-verity (Documentation/admin-guide/device-mapper/verity.rst, version 1) ---------------------


def verity(path: Path, salt: bytes) -> tuple[bytes, bytes]:
    """Return the hash tree of a file of whole blocks, as it lies behind it, and its root hash."""
    level = []
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            if len(block) != BLOCK:
                raise ValueError("the file is not made of whole blocks")
            level.append(hashlib.sha256(salt + block).digest())
    levels: list[bytes] = []
    per_block = BLOCK // 32
    while True:
        blocks = [
            b"".join(level[at : at + per_block]).ljust(BLOCK, b"\0")
            for at in range(0, len(level), per_block)
        ]
        levels.insert(0, b"".join(blocks))
        level = [hashlib.sha256(salt + block).digest() for block in blocks]
        if len(level) == 1:
            return b"".join(levels), level[0]


# -- FAT16 (Microsoft FAT specification) -----------------------------------------------------------

_CLUSTER = 4096
_ROOT_ENTRIES = 512


def _fat_name(name: str) -> bytes:
    stem, _, extension = name.partition(".")
    if not (0 < len(stem) <= 8 and len(extension) <= 3 and name == name.upper()):
        raise ValueError(f"not a short name: {name}")
    return stem.encode("ascii").ljust(8) + extension.encode("ascii").ljust(3)


def _fat_entry(name: bytes, attributes: int, cluster: int, size: int) -> bytes:
    # 1 January 1980, the epoch of FAT: no other time stands in it.
    day = 1 << 5 | 1
    return struct.pack(
        "<11sBBBHHHHHHHI", name, attributes, 0, 0, 0, day, day, 0, 0, day, cluster, size
    )


def fat16(path: Sequence[str], content: bytes, size: int) -> bytes:
    """Return a FAT16 file system of `size` bytes that holds one file below its folders."""
    sectors = size // SECTOR
    fat_sectors = _align(2 * (size // _CLUSTER + 2), SECTOR) // SECTOR
    data_start = (1 + 2 * fat_sectors) * SECTOR + _ROOT_ENTRIES * 32
    clusters = (size - data_start) // _CLUSTER
    if not 4085 <= clusters < 65525 or len(content) + _CLUSTER * len(path) > clusters * _CLUSTER:
        raise ValueError("the file system's size does not fit FAT16, or the file does not fit it")
    image = bytearray(size)
    struct.pack_into(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        image, 0, b"\xeb\x3c\x90", b"AICERT  ", SECTOR, _CLUSTER // SECTOR, 1, 2, _ROOT_ENTRIES,
        sectors if sectors < 65536 else 0, 0xF8, fat_sectors, 32, 2, 0,
        0 if sectors < 65536 else sectors, 0x80, 0, 0x29, 0x41494345, b"AICERT ESP ", b"FAT16   ",
    )  # fmt: skip
    image[510:512] = b"\x55\xaa"
    fat = [0xFFF8, 0xFFFF]
    table = (1 + 2 * fat_sectors) * SECTOR
    for depth, name in enumerate(path):
        cluster = len(fat)
        at = data_start + (cluster - 2) * _CLUSTER
        if depth == len(path) - 1:
            count = _align(len(content), _CLUSTER) // _CLUSTER
            image[table : table + 32] = _fat_entry(_fat_name(name), 0x20, cluster, len(content))
            image[at : at + len(content)] = content
            fat += [*range(cluster + 1, cluster + count), 0xFFFF]
        else:
            image[table : table + 32] = _fat_entry(_fat_name(name), 0x10, cluster, 0)
            up = cluster - 1 if depth else 0
            image[at : at + 32] = _fat_entry(b".          ", 0x10, cluster, 0)
            image[at + 32 : at + 64] = _fat_entry(b"..         ", 0x10, up, 0)
            fat.append(0xFFFF)
            table = at + 64
    packed = struct.pack(f"<{len(fat)}H", *fat)
    for copy in range(2):
        start = (1 + copy * fat_sectors) * SECTOR
        image[start : start + len(packed)] = packed
    return bytes(image)


# -- GPT (UEFI 2.10, 5.3) --------------------------------------------------------------------------

_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_ROOT = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")  # root, x86-64
_ENTRIES = 128


@dataclass(frozen=True, slots=True)
class Table:
    """A partition table: its sectors in front of the partitions, and behind them."""

    front: bytes
    back: bytes
    first_sectors: tuple[int, ...]


def gpt(name: str, partitions: Mapping[str, int]) -> Table:
    """Return the table of a disk with an ESP and root file systems of these sizes in bytes.

    Its identifiers are made of `name`, so that equal images are equal disks.
    """
    starts, entries, sector = [], [], 2048
    for number, (label, size) in enumerate(partitions.items()):
        count = _align(size, 1 << 20) // SECTOR
        kind = _ESP if number == 0 else _ROOT
        own = uuid.uuid5(_ROOT, f"{name}/{label}")
        entries.append(
            struct.pack(
                "<16s16sQQQ72s",
                kind.bytes_le, own.bytes_le, sector, sector + count - 1, 0,
                label.encode("utf-16-le"),
            )
        )  # fmt: skip
        starts.append(sector)
        sector += count
    table = b"".join(entries).ljust(_ENTRIES * 128, b"\0")
    total = sector + 1 + len(table) // SECTOR
    disk = uuid.uuid5(_ROOT, name).bytes_le

    def header(own: int, other: int, at: int) -> bytes:
        fields = (
            b"EFI PART", 0x10000, 92, 0, 0, own, other, 2048, sector - 1, disk, at, _ENTRIES, 128,
            zlib.crc32(table),
        )  # fmt: skip
        head = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", *fields))
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        return bytes(head).ljust(SECTOR, b"\0")

    protective = bytearray(SECTOR)
    struct.pack_into("<BBBBBBBBII", protective, 446, 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, total - 1)
    protective[510:512] = b"\x55\xaa"
    front = bytes(protective) + header(1, total - 1, 2) + table
    back = table + header(total - 1, 1, sector)
    return Table(front.ljust(2048 * SECTOR, b"\0"), back, tuple(starts))


# -- firmware variables (UEFI 2.10, 8.2 and 32.4; EDK II, AuthenticatedVariableFormat.h) -----------

_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_STORE = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
SIGNATURE_LIST_HEADER = 28
# Kept, for the boot services and the running system, changed by signature alone.
_ATTRIBUTES = 0x27


def vendor_of(name: str) -> uuid.UUID:
    """Return the namespace of one of secure boot's variables."""
    return _DATABASE if name in ("db", "dbx") else _GLOBAL


def signature_list(certificate: bytes) -> bytes:
    """Return an EFI_SIGNATURE_LIST of one X.509 certificate (DER); its owner is made of it."""
    owner = uuid.uuid5(_X509, hashlib.sha256(certificate).hexdigest())
    size = 16 + len(certificate)
    head = struct.pack("<16sIII", _X509.bytes_le, SIGNATURE_LIST_HEADER + size, 0, size)
    return head + owner.bytes_le + certificate


def variable_store(empty: bytes, variables: Mapping[str, bytes]) -> bytes:
    """Return a firmware's flash of variables, made of an empty one, with some of secure boot's.

    Raises:
        ValueError: it is none, not an empty one, or has no room.
    """
    data = bytearray(empty)
    (at,) = struct.unpack_from("<H", data, 48)  # EFI_FIRMWARE_VOLUME_HEADER.HeaderLength
    store, size = struct.unpack_from("<16sI", data, at)
    if data[40:44] != b"_FVH" or store != _STORE.bytes_le:
        raise ValueError("this is no store of authenticated variables")
    end, at = at + size, at + 28
    if data[at : at + 2] != b"\xff\xff":
        raise ValueError("the store has variables already")
    for name, content in variables.items():
        words = name.encode("utf-16-le") + b"\0\0"
        head = struct.pack(
            "<HBBIQ16sIII16s",
            0x55AA, 0x3F, 0, _ATTRIBUTES, 0, bytes(16), 0, len(words), len(content),
            vendor_of(name).bytes_le,
        )  # fmt: skip
        entry = head + words + content
        if at + len(entry) > end:
            raise ValueError("the store has no room for these variables")
        data[at : at + len(entry)] = entry
        at = _align(at + len(entry), 4)
    return bytes(data)
