"""What a machine's PCRs will be, from the image's files alone.

PCRs start at zero and are extended (TPM 2.0 Part 1, 17.3): new = SHA-256(old || digest). What is
extended, in which order, is what the firmware (TCG PC Client Platform Firmware Profile 1.06,
3.3.4), systemd's stub and Linux do:

* PCRs 2, 3, 6: a separator alone: no drivers of others, no vendor's own events.
* PCR 4: the action of calling a boot option, the separator, the Authenticode digests of the UKI and
  of the kernel in it, which the stub starts through the firmware.
* PCR 5: the separator, the partition table of the disk, two actions of leaving the firmware.
* PCR 7: secure boot's state and keys, the separator; with it on, also the key that let the UKI in
  (and PCR 4 lacks the kernel, which the stub then starts by itself: the UKI's signature covers it).
* PCR 9: the command line as the kernel's EFI stub gets it (UTF-16LE with its zero), the initrd.
* PCR 10: Linux's IMA: one digest over PCRs 0 to 9, so that it follows from them. With secure boot
  on, each module that is loaded, too.
* PCR 11: name (with its zero) and content of each section of the UKI, in the stub's order
  (systemd-stub(7); `systemd-measure` computes the same).
* PCRs 12, 13: zero: nothing was handed to the stub from outside.

PCRs 0 and 1 are the firmware's own, and are known only by booting it.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping

from deployments.image import formats

SEPARATOR = hashlib.sha256(bytes(4)).digest()
CALLING = hashlib.sha256(b"Calling EFI Application from Boot Option").digest()
LEAVING = (
    hashlib.sha256(b"Exit Boot Services Invocation").digest(),
    hashlib.sha256(b"Exit Boot Services Returned with Success").digest(),
)
# The order in which the stub measures (systemd 257, src/fundamental/uki.h).
SECTIONS = (".linux", ".cmdline", ".initrd", ".sbat")

SECURE_BOOT_OFF = {"SecureBoot": b"\0", "PK": b"", "KEK": b"", "db": b"", "dbx": b""}
NO_SECURE_BOOT = {**SECURE_BOOT_OFF, "SecureBoot": b""}
"""What firmware measures that knows no secure boot: a variable that is not there is empty."""


def extend(digests: Iterable[bytes]) -> bytes:
    """Return the PCR that these digests give."""
    value = bytes(32)
    for digest in digests:
        value = _sha256(value + digest)
    return value


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def pcrs(
    uki: bytes, disk: bytes, variables: Mapping[str, bytes] = SECURE_BOOT_OFF
) -> dict[int, bytes]:
    """Return the PCRs that the firmware of a machine does not change: 2 to 7, 9 and 11.

    12 and 13 are zero.

    Args:
        uki: the unified kernel image.
        disk: the beginning of the disk that it boots from, with its partition table.
        variables: of secure boot: what the machine has.
    """
    sections = formats.pe_sections(uki)
    options = sections[".cmdline"].decode("ascii").encode("utf-16-le") + b"\0\0"
    inner = [] if _secure(variables) else [formats.authenticode(sections[".linux"])]
    return {
        **dict.fromkeys((2, 3, 6), extend([SEPARATOR])),
        4: extend([CALLING, SEPARATOR, formats.authenticode(uki), *inner]),
        7: secure_boot(variables),
        5: extend([SEPARATOR, _sha256(_table(disk)), *LEAVING]),
        9: extend([_sha256(options), _sha256(sections[".initrd"])]),
        11: extend(
            _sha256(data)
            for name in SECTIONS
            for data in (name.encode() + b"\0", sections[name])
        ),
    }  # fmt: skip


def _table(disk: bytes) -> bytes:
    """Return UEFI_GPT_DATA: the header, and those entries that are in use."""
    header = disk[formats.SECTOR : formats.SECTOR + 92]
    at, count, size = struct.unpack_from("<QII", header, 72)
    start = at * formats.SECTOR
    entries = [disk[start + n * size : start + (n + 1) * size] for n in range(count)]
    used = [entry for entry in entries if any(entry[:16])]
    return header + struct.pack("<Q", len(used)) + b"".join(used)


def _secure(variables: Mapping[str, bytes]) -> bool:
    return variables["SecureBoot"] == b"\1"


def secure_boot(variables: Mapping[str, bytes] = SECURE_BOOT_OFF) -> bytes:
    """Return PCR 7 of a machine with these variables; its `db` holds one key, or none."""
    events = [_variable(name, content) for name, content in variables.items()]
    events.append(SEPARATOR)
    if _secure(variables):
        # EV_EFI_VARIABLE_AUTHORITY: the entry of the list that let the UKI in.
        events.append(_variable("db", variables["db"][formats.SIGNATURE_LIST_HEADER :]))
    return extend(events)


def _variable(name: str, content: bytes) -> bytes:
    """Return the digest of UEFI_VARIABLE_DATA."""
    vendor = formats.vendor_of(name).bytes_le
    sizes = struct.pack("<QQ", len(name), len(content))
    return _sha256(vendor + sizes + name.encode("utf-16-le") + content)


def ima(values: Mapping[int, bytes]) -> bytes:
    """Return PCR 10, from PCRs 0 to 9 (PCR 8 is zero then): IMA's one event, `boot_aggregate`.

    Linux, security/integrity/ima, the template `ima-sig` (no signature).
    """
    aggregate = _sha256(b"".join(values.get(pcr, bytes(32)) for pcr in range(10)))
    parts = (b"sha256:\0" + aggregate, b"boot_aggregate\0", b"")
    return extend([_sha256(b"".join(struct.pack("<I", len(part)) + part for part in parts))])
