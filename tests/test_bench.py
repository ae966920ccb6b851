"""The benchmarks' own promises: fair turns, medians, and pages that can be read back."""

import os
import re
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import harness
from benchmarks.harness import Figure, Result, cold, python, ratio, take_turns
from benchmarks.plot import plot


def test_everybody_runs_once_a_turn_and_not_always_in_the_same_place() -> None:
    order: list[str] = []
    contestants = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    found = take_turns(contestants, 3)
    assert order[:2] != order[2:4] and sorted(order) == ["a"] * 4 + ["b"] * 4
    assert [len(values) for values in found.values()] == [3, 3]


def test_a_ratio_is_taken_within_each_turn() -> None:
    figure = ratio("x", [1.0, 20.0, 3.0], [1.0, 10.0, 2.0], most=1.5)
    assert figure.values == (1.0, 2.0, 1.5)
    assert (figure.median, figure.verdict) == (1.5, "met")


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("x", (2.0,), "s", most=1.9), "MISSED"),
        (Figure("x", (2.0,), "s", least=2.0), "met"),
        (Figure("x", (2.0,), "s"), ""),
    ],
)
def test_a_missed_target_is_called_missed(figure: Figure, verdict: str) -> None:
    assert figure.verdict == verdict


def test_a_failing_program_is_no_measurement() -> None:
    with pytest.raises(SystemExit, match="it broke"):
        cold(python("import sys; sys.exit('it broke')"))
    assert cold([sys.executable, "-c", "raise SystemExit(3)"], status=3).wall > 0


def test_the_memory_of_a_program_is_its_own_and_not_that_of_who_measures_it() -> None:
    held = bytearray(os.urandom(1)) * (200 << 20)
    small, large = cold(python("pass")), cold(python("x = bytearray(b'x') * (100 << 20)"))
    assert held[-1] == held[0]
    assert small.memory < 50 and 100 < large.memory < 150


def test_what_our_own_programs_take_is_not_called_others_work() -> None:
    cold(python("pass"))
    before = harness._own()
    burnt = cold(python("import time\nwhile time.process_time() < 0.5: pass")).processor
    assert abs(harness._own() - before - burnt) < 0.1


def test_a_result_can_be_read_back_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    figure = Figure("ours <of> theirs", (0.5, 0.6), "×", most=0.7)
    result = Result("T", "about", (figure,), "quiet", ("a note",))
    result.save("t")
    assert Result.load("t") == result
    assert Result.load("other") is None
    assert "| ours <of> theirs | 0.55 (0.5 to 0.6) × | ≤ 0.7 × | met |" in result.markdown()
    assert "ours &lt;of&gt; theirs" in plot([figure])


def test_a_suite_that_fails_costs_no_other_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, _: object) -> Result:
        if name == "hashing":
            raise SystemExit("it broke")
        return Result(name, "about", (Figure("it", (1.0,), "s"),))

    for module in (harness, program):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(program, "_measured", measure)
    monkeypatch.setattr(program, "as_installed", lambda: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "hashing", "tpm"])
    assert program.main() == 1
    assert "it broke" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} >= {"tpm.md", "tpm.json"}


def test_every_suite_is_described_and_every_page_that_is_linked_to_is_there() -> None:
    told = (harness.ROOT / "benchmarks" / "README.md").read_text()
    assert all(f"| `{name}` |" in told for name in program.SUITES)
    parts = ("benchmarks", "deployments", "docs", "examples", "tests")
    pages = [page for part in parts for page in (harness.ROOT / part).rglob("*.md")]
    for page in [harness.ROOT / "README.md", *pages]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page} links to {link}"
