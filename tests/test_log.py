"""Events, the log and the statement: what is measured is all that can be said."""

import copy
import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aicert import canonical, events, log, statement
from aicert.errors import Error
from aicert.events import EventError, read_event
from aicert.log import GrammarError, LogError, Record
from tests.support.forger import run_events

EVENTS = run_events()
RECORDS = tuple(Record.of(event) for event in EVENTS)
JSON = log.to_json(RECORDS)


def test_a_log_survives_its_json_form() -> None:
    assert log.read(JSON) == RECORDS


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_survives_its_json_form(event: Any) -> None:
    assert read_event(event.to_json()) == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_every_field_of_an_event_is_needed_and_no_other_is_taken(event: Any) -> None:
    content = event.to_json()
    for name in content:
        with pytest.raises(Error):
            read_event({key: value for key, value in content.items() if key != name})
    with pytest.raises(EventError, match="not known"):
        read_event({**content, "more": 1})


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_no_field_may_have_another_type(event: Any) -> None:
    content = event.to_json()
    for name, value in content.items():
        others: tuple[Any, ...] = (7.5, True, [[]], {"x": []})
        for other in others:
            if type(other) is not type(value):
                with pytest.raises(Error):
                    read_event({**content, name: other})


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(EventError, match="not known"):
        read_event({"type": "anything"})


@given(st.integers(0, len(EVENTS) - 1), st.binary(min_size=32, max_size=32))
def test_replay_follows_the_tpm(start: int, first: bytes) -> None:
    baseline = {8: first, 14: bytes(32), 15: bytes(32), 3: b"\x03" * 32}
    expected = dict(baseline)
    for record in RECORDS[start:]:
        pcr = record.event.pcr
        expected[pcr] = hashlib.sha256(expected[pcr] + record.digest).digest()
    assert log.replay(RECORDS[start:], baseline) == expected


@given(st.permutations(range(len(RECORDS))))
def test_another_order_never_replays_to_the_same_pcrs(order: list[int]) -> None:
    baseline = {8: bytes(32), 14: bytes(32)}
    shuffled = tuple(RECORDS[i] for i in order)
    # The outputs stand in a PCR of their own, so only the grammar fixes their place.
    same = [i for i in order if RECORDS[i].event.pcr == 14] == sorted(
        i for i in order if RECORDS[i].event.pcr == 14
    )
    assert (log.replay(shuffled, baseline) == log.replay(RECORDS, baseline)) == same
    if shuffled != RECORDS:
        with pytest.raises(GrammarError):
            log.parse_run(shuffled)


@pytest.mark.parametrize("index", range(len(RECORDS)))
def test_a_dropped_or_doubled_event_is_refused(index: int) -> None:
    dropped = RECORDS[:index] + RECORDS[index + 1 :]
    doubled = RECORDS[: index + 1] + RECORDS[index:]
    for records in (dropped, doubled):
        with pytest.raises(GrammarError):
            log.parse_run(records)


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(GrammarError, match="missing"):
        log.parse_run(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(recnum=r["recnum"] + 1), "recnum"),
        (lambda r: r.update(pcr=16), "pcr"),
        (lambda r: r.update(content_type="cel"), "content_type"),
        (lambda r: r.update(digests=[]), "digests"),
        (lambda r: r["digests"].append(r["digests"][0]), "digests"),
        (lambda r: r["digests"][0].update(hashAlg="sha1"), "hashAlg"),
        (lambda r: r["digests"][0].update(digest="00" * 32), "digest"),
        (lambda r: r["digests"][0].update(more=1), "not known"),
        (lambda r: r.update(more=1), "not known"),
        (lambda r: r.pop("content"), "content"),
    ],
)
@pytest.mark.parametrize("index", range(len(RECORDS)))
def test_nothing_in_a_record_is_free(index: int, change: Any, message: str) -> None:
    items = copy.deepcopy(JSON)
    change(items[index])
    with pytest.raises(LogError, match=message):
        log.read(items)


def _with(index: int, **changes: Any) -> tuple[Record, ...]:
    changed = replace(EVENTS[index], **changes)
    return tuple(Record.of(changed if i == index else e) for i, e in enumerate(EVENTS))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (_with(1, expected=None), "expected digest"),
        (_with(1, sha256="ff" * 32), "content of input"),
        (_with(1, requested="file:other.py"), "URI of input"),
        (_with(2, name="other"), "name of an input"),
        (_with(3, reference="oci:other"), "image"),
        (_with(4, command=("sh",)), "command"),
        (_with(4, mounts=()), "mounts"),
        (_with(4, environment={"OMP_NUM_THREADS": "2"}), "OMP_NUM_THREADS"),
        (_with(4, limits=replace(EVENTS[4].limits, pids=1)), "limits"),
        (_with(5, exit_code=1), "exit status"),
        (_with(6, finished_on=EVENTS[0].started_on - timedelta(seconds=1)), "before it started"),
    ],
)
def test_events_that_contradict_the_spec_are_refused(
    records: tuple[Record, ...], message: str
) -> None:
    with pytest.raises(GrammarError, match=message):
        log.parse_run(records)


def test_the_statement_is_a_function_of_the_log_and_of_nothing_else() -> None:
    first = statement.encode(log.parse_run(RECORDS))
    second = statement.encode(log.parse_run(log.read(copy.deepcopy(JSON))))
    assert first == second == canonical.dumps(canonical.loads(first, max_bytes=1 << 20))


@pytest.mark.parametrize("index", range(len(RECORDS)))
def test_every_event_shows_in_the_statement(index: int) -> None:
    """Change each event where it may change: the statement changes with it."""
    changes: dict[int, dict[str, Any]] = {
        0: {"nonce": "77" * 32},
        1: {"uri": "file:///elsewhere"},
        2: {"manifest": "77" * 32},
        3: {"config": "77" * 32},
        4: {"user": "0:0"},
        5: {"log_sha256": "77" * 32},
        6: {"finished_on": EVENTS[6].finished_on + timedelta(seconds=1)},
    }
    before = statement.encode(log.parse_run(RECORDS))
    assert statement.encode(log.parse_run(_with(index, **changes[index]))) != before


def test_the_subjects_are_the_output_files() -> None:
    built = statement.build(log.parse_run(RECORDS))
    outputs = next(e for e in EVENTS if isinstance(e, events.Outputs))
    assert [(s["name"], s["digest"]["sha256"]) for s in built["subject"]] == [
        (f.path, f.sha256) for f in outputs.manifest.files
    ]
