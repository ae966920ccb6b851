"""The firmware's event log: parsed, bounded, and replayed.

TCG PC Client Platform Firmware Profile (PFP) 1.06, 10.2 (TCG_PCR_EVENT, TCG_PCR_EVENT2) and 10.4
(Spec ID Event03, StartupLocality). All integers are little-endian. What the TPM vouches for is the
digests: an event's type and data are whatever somebody wrote into memory, unless the digest is over
the data. They are named so, are for display, and decide nothing.
"""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from aicert.errors import Error

MAX_BYTES = 1 << 20
MAX_EVENTS = 10_000
MAX_EVENT_DATA = 256 << 10
LAST_PCR = 23
_SHOWN = 120

EV_NO_ACTION = 0x00000003
_ACTIONS = frozenset({0x00000005, 0x80000007})  # their data is text
_VARIABLES = frozenset({0x80000001, 0x80000002, 0x8000000C, 0x800000E0})  # UEFI_VARIABLE_DATA
_GLOBAL_VARIABLES = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")  # UEFI 2.10, 3.3
_SPEC_ID = b"Spec ID Event03\x00"
_STARTUP_LOCALITY = b"StartupLocality\x00"

# TPM_ALG_ID -> digest size in bytes, for every algorithm that a log may hold (TPM 2.0 Part 2, 6.3).
_DIGEST_SIZES = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32, 0x0027: 32,
                 0x0028: 48, 0x0029: 64}  # fmt: skip
_SHA256 = 0x000B

# PFP 1.06, 10.4.1, table 27
_NAMES = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}


class BootLogError(Error):
    """The boot event log is not well formed."""

    code = "bootlog.format"
    remedy = "do not rely on this certificate: its boot event log is not what a firmware writes"


class NoSha256Error(BootLogError):
    """The log has no SHA-256 digests."""

    code = "bootlog.no-sha256"


class BootReplayError(BootLogError):
    """The log does not lead to the quoted PCRs."""

    code = "bootlog.replay"


@dataclass(frozen=True, slots=True)
class BootEvent:
    """One event of the firmware, with its digest in the SHA-256 bank.

    Only `pcr` and `digest` are confirmed by a replay. `unauthenticated_data` is authenticated where
    `digest_matches_data`: then the digest is over it; `unauthenticated_type` never is.
    """

    pcr: int
    digest: bytes
    unauthenticated_type: int
    unauthenticated_data: bytes

    @property
    def digest_matches_data(self) -> bool:
        """Tell whether the digest is that of the data as it stands in the log."""
        return hashlib.sha256(self.unauthenticated_data).digest() == self.digest

    @property
    def unauthenticated_type_name(self) -> str:
        """The type's name in the specification, or its number."""
        return _NAMES.get(self.unauthenticated_type, f"{self.unauthenticated_type:#010x}")

    @property
    def unauthenticated_variable(self) -> tuple[uuid.UUID, str, bytes] | None:
        """The vendor, name and value of the UEFI variable that the event claims, or None.

        UEFI_VARIABLE_DATA (PFP, "Measuring UEFI Variables"): GUID, length of the name in UTF-16
        units, length of the value, name, value. Data of another form gives None, not an error.
        """
        data = self.unauthenticated_data
        if self.unauthenticated_type not in _VARIABLES or len(data) < 32:
            return None
        units, size = (int.from_bytes(data[at : at + 8], "little") for at in (16, 24))
        end = 32 + 2 * units
        if end + size != len(data):
            return None
        try:
            name = data[32:end].decode("utf-16-le")
        except UnicodeDecodeError:
            return None
        return uuid.UUID(bytes_le=data[:16]), name, data[end:]

    def describe(self) -> str:
        """Return a line for display: the type, and the variable or action that it names.

        What it says is only claimed, by whoever wrote the log; characters that do not print are
        escaped and the line is cut to a bounded length.
        """
        text = ""
        if (variable := self.unauthenticated_variable) is not None:
            text = variable[1]
        elif self.unauthenticated_type in _ACTIONS:
            text = self.unauthenticated_data[:_SHOWN].decode("ascii", "replace").rstrip("\0")
        text = text if text.isprintable() else ascii(text)[1:-1]
        return f"{self.unauthenticated_type_name} {text[:_SHOWN]}".rstrip()


@dataclass(frozen=True, slots=True)
class BootLog:
    """A parsed log: its events without those that are not extended, and the startup locality."""

    events: tuple[BootEvent, ...]
    startup_locality: int

    def replay(self) -> dict[int, bytes]:
        """Return the value of each PCR that the log extends (32 bytes).

        PCRs start at zero, but PCR 0 at the locality that TPM2_Startup came from (PFP 1.06,
        10.4.5.3).
        """
        pcrs: dict[int, bytes] = {}
        for event in self.events:
            start = self.startup_locality if event.pcr == 0 else 0
            old = pcrs.get(event.pcr, start.to_bytes(32, "big"))
            pcrs[event.pcr] = hashlib.sha256(old + event.digest).digest()
        return pcrs

    @property
    def claimed_secure_boot(self) -> bool | None:
        """Whether the log says that secure boot was on; None where it does not say.

        For display. The firmware measures the variable SecureBoot into PCR 7 (PFP, "PCR[7]"),
        but only a reference value for PCR 7 tells whether this firmware is to be believed. A value
        that its digest does not cover, or that changes within the log, says nothing.
        """
        values = {
            variable[2]
            for event in self.events
            if event.pcr == 7 and event.digest_matches_data
            if (variable := event.unauthenticated_variable) is not None
            if variable[:2] == (_GLOBAL_VARIABLES, "SecureBoot")
        }
        return {b"\x00": False, b"\x01": True}.get(values.pop()) if len(values) == 1 else None

    def check(self, pcrs: Mapping[int, bytes]) -> None:
        """Check that the replay gives the quoted values of the PCRs that the log extends.

        Raises:
            BootReplayError: a PCR differs, or was not quoted.
        """
        for pcr, value in sorted(self.replay().items()):
            if pcrs.get(pcr) != value:
                raise BootReplayError(
                    f"the boot event log does not account for PCR {pcr}",
                    got=value,
                    expected=pcrs.get(pcr, "a quoted value"),
                    advice="the log was cut or changed, or something else was extended at boot",
                )


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise BootLogError(
                "the boot event log ends within an event", got=f"at byte {self.position}"
            )
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def blob(self, limit: int = MAX_EVENT_DATA) -> bytes:
        """A 32-bit size, and as many bytes."""
        size = self.number(4)
        if size > limit:
            raise BootLogError("an event's data is too large", got=size, expected=limit)
        return self.take(size)


def parse(data: bytes) -> BootLog:
    """Parse a crypto-agile event log (as in /sys/kernel/security/tpm0/binary_bios_measurements).

    Padding of zero or 0xff bytes after the last event, as firmware leaves it, is accepted.

    Raises:
        NoSha256Error: the log is in the old SHA-1 format, or has no SHA-256 bank.
        BootLogError: it is cut, malformed, or too large.
    """
    if len(data) > MAX_BYTES:
        raise BootLogError("the boot event log is too large", got=len(data), expected=MAX_BYTES)
    cursor = _Cursor(data)
    sizes = _read_header(cursor)
    events: list[BootEvent] = []
    locality = 0
    end = min(len(data.rstrip(padding)) for padding in (b"\x00", b"\xff"))
    started = False  # whether PCR 0 was extended
    while cursor.position < end:
        if len(events) >= MAX_EVENTS:
            raise BootLogError("the boot event log has too many events", expected=MAX_EVENTS)
        event = _read_event(cursor, sizes)
        if event.unauthenticated_type != EV_NO_ACTION:
            events.append(event)
            started = started or event.pcr == 0
        elif event.unauthenticated_data.startswith(_STARTUP_LOCALITY):
            locality = _locality(event, started)
    return BootLog(tuple(events), locality)


def _read_header(cursor: _Cursor) -> dict[int, int]:
    """Read the first event, in the old format, that says which digests the others have."""
    pcr, kind = cursor.number(4), cursor.number(4)
    cursor.take(20)  # a SHA-1 digest of zeros
    if (pcr, kind) != (0, EV_NO_ACTION) and _is_old_format(cursor.data):
        raise NoSha256Error(
            "the boot event log is in the old format, with SHA-1 alone",
            expected="a crypto-agile log that begins with Spec ID Event03",
            advice="enable the TPM's SHA-256 bank in the firmware's settings",
        )
    header = _Cursor(cursor.blob())
    if (pcr, kind) != (0, EV_NO_ACTION) or not header.data.startswith(_SPEC_ID):
        raise BootLogError("the boot event log does not begin with Spec ID Event03")
    header.take(len(_SPEC_ID))
    header.take(4 + 1 + 1 + 1 + 1)  # platformClass, specVersionMinor, Major, Errata, uintnSize
    sizes: dict[int, int] = {}
    count = header.number(4)
    if not 1 <= count <= 16:
        raise BootLogError("the number of digest algorithms", got=count, expected="1 to 16")
    for _ in range(count):
        algorithm, size = header.number(2), header.number(2)
        if _DIGEST_SIZES.get(algorithm, size) != size or size > 64 or algorithm in sizes:
            raise BootLogError("a digest algorithm's size is wrong", got=f"{algorithm:#x}: {size}")
        sizes[algorithm] = size
    header.take(header.number(1))  # vendorInfo
    if header.position != len(header.data):
        raise BootLogError("bytes follow the Spec ID event's fields")
    if _SHA256 not in sizes:
        raise NoSha256Error(
            "the boot event log has no SHA-256 digests",
            got=", ".join(f"{a:#06x}" for a in sizes),
            advice="enable the TPM's SHA-256 bank in the firmware's settings",
        )
    return sizes


def _is_old_format(data: bytes) -> bool:
    """Tell whether this is a log of TCG_PCR_EVENT throughout: PCR, type, SHA-1, size, data."""
    cursor = _Cursor(data)
    end = len(data.rstrip(b"\x00"))
    try:
        while cursor.position < end:
            pcr, kind = cursor.number(4), cursor.number(4)
            cursor.take(20)
            cursor.blob()
            if pcr > LAST_PCR and kind != EV_NO_ACTION:
                return False
    except BootLogError:
        return False
    return cursor.position > 0


def _read_event(cursor: _Cursor, sizes: Mapping[int, int]) -> BootEvent:
    pcr, kind, count = cursor.number(4), cursor.number(4), cursor.number(4)
    if pcr > LAST_PCR and kind != EV_NO_ACTION:
        raise BootLogError("an event names a PCR that does not exist", got=pcr)
    # Some firmware lists every bank that the TPM could have, and extends those that are active.
    if not 1 <= count <= len(sizes):
        raise BootLogError(
            "an event has another number of digests", got=count, expected=f"1 to {len(sizes)}"
        )
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = cursor.number(2)
        if algorithm not in sizes or algorithm in digests:
            raise BootLogError("an event's digest is not one of the log's", got=f"{algorithm:#06x}")
        digests[algorithm] = cursor.take(sizes[algorithm])
    if _SHA256 not in digests:
        raise NoSha256Error(
            "an event of the boot event log has no SHA-256 digest",
            got=", ".join(f"{a:#06x}" for a in digests),
            advice="enable the TPM's SHA-256 bank in the firmware's settings",
        )
    return BootEvent(pcr, digests[_SHA256], kind, cursor.blob())


def _locality(event: BootEvent, started: bool) -> int:
    """Read the StartupLocality event: PCR 0, one byte, before anything is extended into PCR 0."""
    value = event.unauthenticated_data[len(_STARTUP_LOCALITY) :]
    if event.pcr != 0 or len(value) != 1 or value[0] > 4 or started:
        raise BootLogError("a StartupLocality event is malformed or out of place", got=value)
    return value[0]
