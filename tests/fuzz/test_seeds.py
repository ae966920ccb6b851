"""The fuzz targets in the ordinary test run: kept inputs, large inputs, and some mutants each."""

import warnings

import pytest

from tests.fuzz import engine
from tests.fuzz.targets import TARGETS, json_stress

RUNS = {"verify": 60, "verify-signed": 80, "card": 120, "certificate": 60, "log": 250,
        "chain": 500, "chain-signed": 400, "oms": 400, "records": 600,
        "parquet": 600}  # fmt: skip
# The parser has one code for every mistake.
ONE_CODE = {"parquet", "policy", "pattern", "tensors"}

LARGE = [
    name for name, one in TARGETS.items() if name not in ("verify", "certificate", "canonical")
]
"""`make fuzz` has the other three, whose large inputs take long."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(5))
def test_a_small_file_cannot_stand_for_much_json(number: int) -> None:
    target = TARGETS["certificate"]
    large = json_stress()[number]
    fuzzer = engine.Fuzzer(target)
    fuzzer.attempt(large)
    report_of(fuzzer)


def report_of(fuzzer: engine.Fuzzer) -> engine.Report:
    report = fuzzer.report
    assert not report.findings, "\n".join(engine.show(fuzzer.target.name, report))
    return report


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_crashes_a_parser(name: str) -> None:
    fuzzer = engine.Fuzzer(TARGETS[name])
    fuzzer.seeds()
    # Fixed seeds for the random numbers: a test run is repeatable; `make fuzz` is not.
    fuzzer.mutants(RUNS.get(name, 1500), seed=20261123)
    report = report_of(fuzzer)
    assert name in ONE_CODE or len(report.outcomes) >= 3, (
        "the mutants do not get past the first check"
    )
    assert report.outcomes["accepted"], "no seed is accepted: the target is broken"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LARGE)
def test_no_large_input_takes_long_or_much_memory(name: str) -> None:
    """These were findings: small files that stood for large objects, and quadratic searches."""
    fuzzer = engine.Fuzzer(TARGETS[name])
    fuzzer.stress()
    report_of(fuzzer)


def test_an_exception_that_is_not_ours_is_a_finding() -> None:
    def broken(data: bytes) -> None:
        raise IndexError("beyond the end")

    target = TARGETS["attest"]
    fuzzer = engine.Fuzzer(type(target)("broken", broken, target.seeds, target.mutate))
    with warnings.catch_warnings():
        fuzzer.seeds()
    assert fuzzer.report.findings
