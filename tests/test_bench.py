"""The benchmarks' own promises: fair turns, medians, and pages that can be read back."""

import sys
from pathlib import Path

import pytest

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
