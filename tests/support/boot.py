"""A firmware's event log, made event by event, and a machine that booted by it."""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aicert import bootlog

SEPARATOR = hashlib.sha256(bytes(4)).digest()


def digest(text: str) -> bytes:
    """The digest of something that was loaded at boot."""
    return hashlib.sha256(text.encode()).digest()


def log(
    events: Iterable[tuple[int, bytes]], *, kind: int = 0x8000_0003, data: bytes = b"?"
) -> bytes:
    """A crypto-agile log with these extensions (PCR, SHA-256 digest), in order."""
    algorithms = struct.pack("<IHH", 1, 0x000B, 32)
    header = b"Spec ID Event03\x00" + struct.pack("<IBBBB", 0, 0, 2, 0, 2) + algorithms + b"\x00"
    parts = [struct.pack("<II20sI", 0, 3, bytes(20), len(header)), header]
    for pcr, value in events:
        parts.append(struct.pack("<IIIH", pcr, kind, 1, 0x000B) + value)
        parts.append(struct.pack("<I", len(data)) + data)
    return b"".join(parts)


def booted() -> list[tuple[int, bytes]]:
    """The events of a boot: firmware into 0 to 7, a unified kernel image into 4, 9 and 11."""
    events = [(pcr, digest(f"firmware {pcr}")) for pcr in (0, 1, 7)]
    events += [(pcr, SEPARATOR) for pcr in range(8)]
    events += [(4, digest("uki")), (4, digest("kernel")), (9, digest("command line"))]
    return [*events, (9, digest("initrd")), (11, digest("section .linux"))]


@dataclass
class Boot:
    """A boot: its log, and the PCRs that it leaves behind."""

    events: list[tuple[int, bytes]] = field(default_factory=booted)

    @property
    def log(self) -> bytes:
        """The event log."""
        return log(self.events)

    @property
    def pcrs(self) -> dict[int, bytes]:
        """The values of PCRs 0 to 23 after the boot."""
        replayed: Mapping[int, bytes] = bootlog.parse(self.log).replay()
        return {pcr: replayed.get(pcr, bytes(32)) for pcr in range(24)}
