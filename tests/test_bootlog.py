"""The firmware's event log: what it replays to, what it may not say, and what is only claimed."""

import hashlib
import struct
import time
import uuid
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicert import bootlog
from aicert.errors import Error

SHA1, SHA256, SHA384 = 0x0004, 0x000B, 0x000C
SIZES = {SHA1: 20, SHA256: 32, SHA384: 48}
NO_ACTION, SEPARATOR, ACTION, EFI_ACTION, VARIABLE = 3, 4, 5, 0x80000007, 0x80000001
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
ZERO = bytes(32)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def old_event(pcr: int, kind: int, data: bytes, digest: bytes = bytes(20)) -> bytes:
    """TCG_PCR_EVENT: the first event of every log, and all events of an old one."""
    return struct.pack("<II20sI", pcr, kind, digest, len(data)) + data


def spec_id(
    algorithms: Iterable[tuple[int, int]] = ((SHA256, 32),),
    *,
    count: int | None = None,
    signature: bytes = b"Spec ID Event03\0",
    vendor: bytes = b"\0",
) -> bytes:
    listed = list(algorithms)
    data = signature + struct.pack("<IBBBB", 0, 0, 2, 105, 2)
    data += struct.pack("<I", len(listed) if count is None else count)
    return data + b"".join(struct.pack("<HH", *pair) for pair in listed) + vendor


def header(algorithms: Iterable[int] = (SHA256,)) -> bytes:
    return old_event(0, NO_ACTION, spec_id([(a, SIZES[a]) for a in algorithms]))


def event(
    pcr: int, kind: int, data: bytes = b"", *, digests: dict[int, bytes] | None = None
) -> bytes:
    """TCG_PCR_EVENT2."""
    digests = {SHA256: sha256(data)} if digests is None else digests
    body = b"".join(struct.pack("<H", a) + value for a, value in digests.items())
    return struct.pack("<III", pcr, kind, len(digests)) + body + struct.pack("<I", len(data)) + data


def locality(value: bytes, pcr: int = 0) -> bytes:
    return event(pcr, NO_ACTION, b"StartupLocality\0" + value, digests={SHA256: ZERO})


def variable(name: str, value: bytes, vendor: uuid.UUID = GLOBAL, pcr: int = 7) -> bytes:
    encoded = name.encode("utf-16-le")
    data = vendor.bytes_le + struct.pack("<QQ", len(encoded) // 2, len(value)) + encoded + value
    return event(pcr, VARIABLE, data)


GOOD = (
    header()
    + locality(b"\x03")
    + event(0, 8, b"firmware 1.0")
    + variable("SecureBoot", b"\x01")
    + event(7, SEPARATOR, bytes(4))
    + event(5, EFI_ACTION, b"Exit Boot Services Invocation")
)


# -- replay ----------------------------------------------------------------------------------------


def test_pcrs_are_the_hash_chain_of_their_events() -> None:
    log = bootlog.parse(header() + event(4, 5, b"a") + event(9, 5, b"x") + event(4, 5, b"b"))
    assert log.replay() == {
        4: sha256(sha256(ZERO + sha256(b"a")) + sha256(b"b")),
        9: sha256(ZERO + sha256(b"x")),
    }


def test_a_no_action_event_is_not_extended() -> None:
    log = bootlog.parse(header() + event(4, NO_ACTION, b"SP800-155 Event") + event(4, 5, b"a"))
    assert log.replay() == {4: sha256(ZERO + sha256(b"a"))}
    assert len(log.events) == 1


def test_a_no_action_event_may_name_no_pcr() -> None:
    assert bootlog.parse(header() + event(0xFFFFFFFF, NO_ACTION, b"x")).events == ()


@pytest.mark.parametrize("value", [0, 3, 4])
def test_pcr_0_starts_at_the_startup_locality_and_no_other_does(value: int) -> None:
    log = bootlog.parse(header() + locality(bytes([value])) + event(0, 8, b"a") + event(1, 8, b"a"))
    assert log.replay() == {
        0: sha256(bytes(31) + bytes([value]) + sha256(b"a")),
        1: sha256(ZERO + sha256(b"a")),
    }


@pytest.mark.parametrize(
    "log",
    [
        header() + event(0, 8, b"a") + locality(b"\x03"),
        header() + locality(b"\x05"),
        header() + locality(b""),
        header() + locality(b"\x03\x00"),
        header() + locality(b"\x03", pcr=1),
    ],
    ids=["after PCR 0", "locality 5", "none", "two bytes", "PCR 1"],
)
def test_a_startup_locality_out_of_place_is_refused(log: bytes) -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(log)


def test_of_several_banks_the_sha256_one_is_replayed() -> None:
    data = b"firmware"
    digests = {SHA384: b"\x38" * 48, SHA1: b"\x01" * 20, SHA256: sha256(data)}
    log = bootlog.parse(header([SHA1, SHA256, SHA384]) + event(0, 8, data, digests=digests))
    assert log.events[0].digest == sha256(data)


def test_banks_that_the_header_lists_and_that_are_not_active_need_no_digest() -> None:
    data = b"firmware"
    digests = {SHA1: b"\x01" * 20, SHA256: sha256(data)}
    log = bootlog.parse(header([SHA1, SHA256, SHA384]) + event(0, 8, data, digests=digests))
    assert log.events[0].digest == sha256(data)


def test_the_quoted_values_must_be_those_that_the_log_leads_to() -> None:
    log = bootlog.parse(GOOD)
    pcrs = dict.fromkeys(range(24), ZERO) | log.replay()
    log.check(pcrs)
    for pcr in log.replay():
        with pytest.raises(bootlog.BootReplayError):
            log.check({**pcrs, pcr: bytes([1]) * 32})
        with pytest.raises(bootlog.BootReplayError):
            log.check({p: value for p, value in pcrs.items() if p != pcr})


def test_events_cannot_be_dropped_doubled_or_swapped_within_a_pcr() -> None:
    one, two = event(4, 5, b"1"), event(4, 5, b"2")
    right = bootlog.parse(header() + one + two).replay()
    for wrong in (one, two, two + one, one + one + two, one + two + two):
        with pytest.raises(bootlog.BootReplayError):
            bootlog.parse(header() + wrong).check(right)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log",
    [
        header([SHA1, SHA384]) + event(0, 8, digests={SHA1: bytes(20), SHA384: bytes(48)}),
        old_event(0, 8, b"firmware 1.0") + old_event(4, 0x80000003, b"loader"),
        old_event(0, 8, b"firmware 1.0") + bytes(100),
        old_event(0, 8, b"firmware 1.0") + old_event(0xFFFFFFFF, NO_ACTION, b"anything"),
        header([SHA1, SHA256]) + event(0, 8, digests={SHA1: bytes(20)}),
    ],
    ids=["other banks", "old format", "old format, padded", "old, of no PCR", "one event without"],
)
def test_a_log_without_sha256_says_so(log: bytes) -> None:
    with pytest.raises(bootlog.NoSha256Error) as caught:
        bootlog.parse(log)
    assert caught.value.code == "bootlog.no-sha256"
    assert caught.value.advice


@pytest.mark.parametrize(
    "log",
    [
        b"",
        b"\0",
        bytes(64),
        b"\xff" * 64,
        b"not a boot event log at all, but long enough",
        GOOD[4:],
        old_event(0, 8, b"a")[:-1],
        old_event(24, 8, b"a"),
    ],
    ids=["empty", "a byte", "zeros", "ones", "text", "shifted", "old, cut", "old, PCR 24"],
)
def test_garbage_is_not_mistaken_for_an_old_log(log: bytes) -> None:
    with pytest.raises(bootlog.BootLogError) as caught:
        bootlog.parse(log)
    assert caught.value.code == "bootlog.format"


@pytest.mark.parametrize(
    "data",
    [
        spec_id(signature=b"Spec ID Event02\0"),
        spec_id([]),
        spec_id([(0x100 + n, 32) for n in range(17)]),
        spec_id(count=2),
        spec_id(count=0xFFFFFFFF),
        spec_id([(SHA256, 20)]),
        spec_id([(SHA256, 32), (SHA256, 32)]),
        spec_id([(SHA256, 32), (0x0999, 65)]),
        spec_id(vendor=b""),
        spec_id(vendor=b"\x02\0"),
        spec_id(vendor=b"\0\0"),
        b"StartupLocality\0\x03",
    ],
    ids=["signature", "no algorithm", "17 algorithms", "one missing", "4 billion", "size", "twice",
         "too wide", "no vendor size", "vendor cut", "trailing", "another event"],
)  # fmt: skip
def test_a_malformed_header_is_refused(data: bytes) -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(old_event(0, NO_ACTION, data) + event(0, 8, b"a"))


def test_a_header_may_carry_vendor_information_and_algorithms_that_we_do_not_know() -> None:
    data = spec_id([(SHA256, 32), (0x0999, 8)], vendor=b"\x03abc")
    digests = {SHA256: sha256(b"a"), 0x0999: bytes(8)}
    log = bootlog.parse(old_event(0, NO_ACTION, data) + event(0, 8, b"a", digests=digests))
    assert log.events[0].digest == sha256(b"a")


@pytest.mark.parametrize(
    "bad",
    [
        event(24, 8, b"a"),
        event(0, 8, digests={}),
        event(0, 8, digests={SHA384: bytes(48)}),
        event(0, 8, digests={SHA256: ZERO, SHA1: bytes(20)}),
        event(0, 8, b"a")[:-1],
        event(0, 8, b"a") + b"\x01",
        struct.pack("<IIIH", 0, 8, 1, SHA256) + ZERO + struct.pack("<I", 0xFFFFFFFF) + b"a",
    ],
    ids=["PCR 24", "no digest", "another bank", "one too many", "cut", "trailing", "4 GiB of data"],
)
def test_a_malformed_event_is_refused(bad: bytes) -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(header() + bad)


def test_an_event_may_not_have_one_banks_digest_twice() -> None:
    body = struct.pack("<III", 0, 8, 2) + (struct.pack("<H", SHA256) + ZERO) * 2
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(header([SHA256, SHA1]) + body + struct.pack("<I", 0))


@pytest.mark.parametrize("padding", [b"\0" * 4096, b"\xff" * 4096], ids=["zeros", "ones"])
def test_the_firmwares_padding_is_no_event(padding: bytes) -> None:
    assert bootlog.parse(GOOD + padding) == bootlog.parse(GOOD)


def test_padding_of_both_kinds_is_refused() -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(GOOD + b"\0" * 64 + b"\xff" * 64)


@pytest.mark.parametrize(
    "log",
    [
        GOOD + bytes(bootlog.MAX_BYTES),
        header() + event(0, 8) * (bootlog.MAX_EVENTS + 1),
        header() + event(0, 8, bytes(bootlog.MAX_EVENT_DATA + 1)),
    ],
    ids=["bytes", "events", "data"],
)
def test_a_log_that_is_too_large_is_refused(log: bytes) -> None:
    with pytest.raises(bootlog.BootLogError):
        bootlog.parse(log)


def test_as_many_events_as_there_may_be_are_accepted() -> None:
    assert len(bootlog.parse(header() + event(0, 8) * bootlog.MAX_EVENTS).events) == 10_000


# -- what is only claimed --------------------------------------------------------------------------


def test_data_counts_as_confirmed_only_where_the_digest_is_over_it() -> None:
    log = bootlog.parse(
        header() + event(4, 5, b"said") + event(4, 5, b"said", digests={SHA256: sha256(b"done")})
    )
    assert [e.digest_matches_data for e in log.events] == [True, False]


def test_events_are_described_by_type_variable_and_action() -> None:
    log = bootlog.parse(
        header() + variable("SecureBoot", b"\x01") + event(5, EFI_ACTION, b"Exit Boot Services\0")
        + event(4, 0x80000003, b"\x01\x02") + event(4, 0x12345678, b"")
    )  # fmt: skip
    assert [e.describe() for e in log.events] == [
        "EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot",
        "EV_EFI_ACTION Exit Boot Services",
        "EV_EFI_BOOT_SERVICES_APPLICATION",
        "0x12345678",
    ]
    assert log.events[0].unauthenticated_variable == (GLOBAL, "SecureBoot", b"\x01")


@pytest.mark.parametrize(
    "made",
    [
        event(5, EFI_ACTION, b"\x1b[2J\r\nverified" + b"\xff" * 5000),
        event(5, ACTION, "‮x".encode()),
        variable("\x1b]0;owned\x07" + "x" * 5000, b""),
        variable("‮\n", b""),
    ],
    ids=["escape", "bidi", "variable", "variable, bidi"],
)
def test_a_description_cannot_write_to_the_terminal_and_is_short(made: bytes) -> None:
    text = bootlog.parse(header() + made).events[0].describe()
    assert text.isprintable()
    assert len(text) < 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(31),
        bytes(16) + struct.pack("<QQ", 1, 0),
        bytes(16) + struct.pack("<QQ", 2**63, 2**64 - 1) + bytes(8),
        bytes(16) + struct.pack("<QQ", 1, 0) + b"\x00\xd8",
        bytes(16) + struct.pack("<QQ", 1, 0) + b"x\0trailing",
    ],
    ids=["empty", "short", "no name", "huge", "lone surrogate", "trailing"],
)
def test_what_is_not_a_variable_is_none_and_no_error(data: bytes) -> None:
    found = bootlog.parse(header() + event(7, VARIABLE, data)).events[0]
    assert found.unauthenticated_variable is None
    assert found.describe() == "EV_EFI_VARIABLE_DRIVER_CONFIG"


ON, OFF = variable("SecureBoot", b"\x01"), variable("SecureBoot", b"\x00")
UNCOVERED = ON[:14] + ZERO + ON[46:]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (ON, True),
        (OFF, False),
        (b"", None),
        (ON + OFF, None),
        (variable("SecureBoot", b"\x02"), None),
        (variable("SecureBoot", b""), None),
        (variable("SecureBoot", b"\x01", vendor=uuid.UUID(int=1)), None),
        (variable("SecureBoot", b"\x01", pcr=1), None),
        (variable("SecureBootEnable", b"\x01"), None),
        (UNCOVERED, None),
        (UNCOVERED + OFF, False),
    ],
    ids=["on", "off", "silent", "both", "2", "no value", "another vendor's", "another PCR",
         "another name", "not covered by its digest", "one covered"],
)  # fmt: skip
def test_secure_boot_is_reported_as_the_log_claims_it(events: bytes, expected: bool | None) -> None:
    assert bootlog.parse(header() + events).claimed_secure_boot is expected


# -- robustness ------------------------------------------------------------------------------------


def test_a_log_cut_anywhere_is_refused_or_does_not_replay() -> None:
    whole = bootlog.parse(GOOD).replay()
    for end in range(len(GOOD)):
        try:
            assert bootlog.parse(GOOD[:end]).replay() != whole
        except bootlog.BootLogError:
            pass


def test_a_changed_digest_pcr_or_locality_never_replays() -> None:
    """Each byte is either one that a replay confirms, or one named unauthenticated."""
    log = bootlog.parse(GOOD)
    right = log.replay()
    confirmed = [(event.pcr, event.digest) for event in log.events]
    for position in range(len(GOOD)):
        for bit in range(8):
            mutant = bytearray(GOOD)
            mutant[position] ^= 1 << bit
            try:
                found = bootlog.parse(bytes(mutant))
            except Error:
                continue
            if found.replay() == right:
                assert [(event.pcr, event.digest) for event in found.events] == confirmed


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=600), well_begun=st.booleans())
def test_random_bytes_never_crash_the_parser(data: bytes, well_begun: bool) -> None:
    _survives(header() + data if well_begun else data)


@settings(max_examples=500, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    cut=st.integers(0, len(GOOD)),
)
def test_mutated_logs_never_crash_the_parser(edits: list[tuple[int, int]], cut: int) -> None:
    mutant = bytearray(GOOD)
    for position, value in edits:
        mutant[position] = value
    _survives(bytes(mutant))
    _survives(bytes(mutant[:cut]))


def _survives(data: bytes) -> None:
    try:
        log = bootlog.parse(data)
    except Error:
        return
    log.replay()
    assert log.claimed_secure_boot in (True, False, None)
    assert all(event.describe().isprintable() for event in log.events)


@pytest.mark.parametrize(
    "log",
    [
        header() + (event(0, 8) * bootlog.MAX_EVENTS)[: bootlog.MAX_BYTES - 200],
        (old_event(0, 8, b"") * (1 << 15))[: bootlog.MAX_BYTES],
        header() + event(0, NO_ACTION) * ((bootlog.MAX_BYTES - 200) // 50),
        bytes(bootlog.MAX_BYTES),
        b"\xff" * bootlog.MAX_BYTES,
    ],
    ids=["events", "old format", "no action", "zeros", "ones"],
)
def test_the_largest_logs_take_no_long_time(log: bytes) -> None:
    start = time.process_time()
    _survives(log)
    assert time.process_time() - start < 5
