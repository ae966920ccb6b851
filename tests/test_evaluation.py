"""Evaluations: what binds one to a model, and every way to pass off another for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aicert import card, events, statement
from aicert.cli import main
from aicert.log import GrammarError, Record, parse_run
from aicert.policy import EvaluationMissingError, Policy
from aicert.trust import Pin, TrustStore, fingerprint
from aicert.verify import Assurance, EvaluationError, Verdict, to_json, verify
from aicert.views import cyclonedx
from tests.support.forger import Authority, Forger
from tests.support.linked import BAR, child, linked_events, model_input, moved

MODEL = Forger()
CERTIFICATE = MODEL.certificate()
PIN = Pin("forger", fingerprint(MODEL.authority.root), "simulated", "test")
TRUST = TrustStore.builtin().with_pins([PIN])
GOOD = {"accuracy": 0.95}
BENCHMARK = f"""
  - images: [{"11" * 32}]
    command: {{equals: [python3, /inputs/code/train.py]}}
    environment: {{only: [OMP_NUM_THREADS]}}
    inputs:
      exactly:
        - {{sha256: {"aa" * 32}, target: /inputs/code}}
        - {{root: {"dd" * 32}, target: /inputs/data}}
"""


def check(*evaluations: bytes, policy: str | None = None, **options: Any) -> Verdict:
    text = f"policy: 1\nassurance: simulated\n{policy or ''}"
    rules = Policy.parse(text, "rules.yaml")
    return verify(
        CERTIFICATE.encode(), trust=TRUST, policy=rules, evaluations=evaluations, **options
    )


def evaluated(metrics: dict[str, Any] = GOOD, **options: Any) -> bytes:
    made = child([CERTIFICATE], MODEL, bar=options.pop("bar", BAR), metrics=metrics, **options)
    return made.certificate().encode()


def refused(data: bytes, code: str) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        check(data)
    assert f"[{code}]" in caught.value.message
    return caught.value


# -- what an evaluation says -----------------------------------------------------------------------


def test_an_evaluation_of_the_model_is_verified_and_shown_beside_it() -> None:
    verdict = check(evaluated(), evaluated({"accuracy": 0.5}), evaluated(bar={}))
    assert [one.assurance for one in verdict.evaluations] == [Assurance.SIMULATED] * 3
    said = [line for line in verdict.proved if line.startswith("an evaluation")]
    assert "passed accuracy >= 0.9; accuracy 0.95" in said[0]
    assert "FAILED accuracy >= 0.9; accuracy 0.5" in said[1]
    assert "no bar was set; accuracy 0.95" in said[2]
    shown = to_json(verdict)["evaluations"]
    assert [one["result"] for one in shown] == ["PASSED", "FAILED", "WARNED"]
    assert shown[0]["metrics"] == GOOD
    for text in (card.markdown(CERTIFICATE, verdict), card.verdict_text(verdict)):
        assert "FAILED accuracy" in text
    metrics = cyclonedx.bom(CERTIFICATE, verdict)["metadata"]["component"]["modelCard"]
    slices = [m["slice"] for m in metrics["quantitativeAnalysis"]["performanceMetrics"]]
    assert any(verdict.evaluations[0].certificate_digest in where for where in slices)


def test_the_statement_of_an_evaluation_is_about_the_model_and_its_certificate() -> None:
    run = parse_run(
        tuple(Record.of(e) for e in linked_events([CERTIFICATE], bar=BAR, metrics=GOOD))
    )
    made = statement.build(run)
    assert made["predicateType"].endswith("/test-result/v0.1")
    assert made["predicate"]["result"] == "PASSED"
    root = parse_run(CERTIFICATE.records).outputs.manifest.root
    digests = [subject["digest"]["sha256"] for subject in made["subject"]]
    assert digests == [root, CERTIFICATE.digest]


def test_its_own_certificate_says_that_it_is_an_evaluation() -> None:
    forged = child([CERTIFICATE], MODEL, bar=BAR, metrics=GOOD).certificate()
    verdict = verify(forged.encode(), trust=TRUST, least=Assurance.SIMULATED)
    assert any(line.startswith("it is an evaluation: ") for line in verdict.proved)
    assert any("pass --recursive" in line for line in verdict.not_proved)
    assert "Evaluates" in card.markdown(forged, verdict)


@pytest.mark.parametrize("value", ["0.95", True, None])
def test_a_metric_that_is_no_number_reaches_no_bar(value: Any) -> None:
    assert not events.Bar(0, None).passed(value)
    assert not events.Bar(None, 2).passed(value)


def test_the_bounds_of_a_bar_belong_to_it() -> None:
    bar = events.Bar(0.5, 1)
    assert [bar.passed(x) for x in (0.4999, 0.5, 1, 1.0001)] == [False, True, True, False]
    assert bar.says("f1") == "f1 >= 0.5 and f1 <= 1"


# -- what passes for an evaluation, and must not ---------------------------------------------------


def test_an_evaluation_of_another_model_is_refused() -> None:
    other = Forger(authority=MODEL.authority).certificate(signature=b"")
    forged = child([other], MODEL, bar=BAR, metrics=GOOD)
    error = refused(forged.certificate().encode(), "lineage.link")
    assert error.expected != error.got


def test_other_weights_under_the_certificates_name_are_refused() -> None:
    weights = parse_run(CERTIFICATE.records).outputs.manifest.files[1].sha256
    for changes in (
        {"manifest": "ab" * 32},
        {"manifest": "ab" * 32, "root": "cd" * 32},
        # One file of the model is not the model.
        {"kind": "file", "files": 1, "sha256": weights, "manifest": "ab" * 32},
    ):
        inputs = [model_input("model0", CERTIFICATE, **changes)]
        forged = child([CERTIFICATE], MODEL, bar=BAR, metrics=GOOD, inputs=inputs)
        refused(forged.certificate().encode(), "lineage.link")


def test_a_training_on_the_model_is_no_evaluation_of_it() -> None:
    forged = child([CERTIFICATE], MODEL, metrics=GOOD)
    refused(forged.certificate().encode(), "lineage.link")
    refused(CERTIFICATE.encode(), "lineage.link")


def test_an_evaluation_that_nobody_trusted_vouches_for_is_refused() -> None:
    forged = child(
        [CERTIFICATE], Forger(authority=Authority(name="somebody")), bar=BAR, metrics=GOOD
    )
    refused(forged.certificate().encode(), "chain.unpinned-root")


def test_an_edited_evaluation_is_refused() -> None:
    data = evaluated({"accuracy": 0.5})
    edited = data.replace(b'"accuracy":0.5', b'"accuracy":0.9')
    assert edited != data
    with pytest.raises(EvaluationError):
        check(edited)
    forger = child([CERTIFICATE], MODEL, bar=BAR, metrics={"accuracy": 0.5})
    run = parse_run(forger.certificate().records)
    better = statement.build(run)
    better["predicate"]["result"] = "PASSED"
    payload = json.dumps(better).encode()
    refused(forger.certificate(payload=payload).encode(), "statement.mismatch")


@pytest.mark.parametrize("change", ["unlinked", "another", "silent"])
def test_a_log_that_leaves_open_what_was_evaluated_is_none(change: str) -> None:
    listed = linked_events([CERTIFICATE], bar=BAR, metrics=GOOD)
    spec = listed[0].spec
    if change == "unlinked":
        unlinked = events.SpecInput("model0", "file:model", None, None, "/inputs/model0")
        spec = replace(spec, inputs=(unlinked, *spec.inputs[1:]))
    elif change == "another":
        spec = replace(spec, evaluation=events.Evaluation("data", BAR))
    else:
        listed[6] = replace(listed[6], metrics=None)
        spec = replace(spec, metrics=None)
    listed[0] = replace(listed[0], spec=spec)
    with pytest.raises(GrammarError):
        parse_run(tuple(Record.of(event) for event in listed))


# -- policies --------------------------------------------------------------------------------------


def test_a_policy_can_demand_an_evaluation_with_bounds_of_its_own() -> None:
    rule = f"evaluations:{BENCHMARK}    metrics: {{accuracy: {{atLeast: 0.94}}}}\n"
    assert check(evaluated(), policy=rule).evaluations
    for given in ([], [evaluated({"accuracy": 0.93})], [evaluated({"f1": 1})]):
        with pytest.raises(EvaluationMissingError):
            check(*given, policy=rule)
    # One of several is enough.
    assert check(evaluated({"accuracy": 0.2}), evaluated(), policy=rule)


def test_an_evaluation_that_failed_its_own_bar_counts_for_no_policy() -> None:
    rule = f"evaluations:{BENCHMARK}    metrics: {{accuracy: {{atLeast: 0.1}}}}\n"
    with pytest.raises(EvaluationMissingError) as caught:
        check(evaluated({"accuracy": 0.5}), policy=rule)
    assert "failed" in str(caught.value.got)


def test_another_benchmark_counts_for_no_policy() -> None:
    rule = f"evaluations:{BENCHMARK}".replace("dd" * 32, "de" * 32)
    with pytest.raises(EvaluationMissingError):
        check(evaluated(), policy=rule)
    rule = f"evaluations:{BENCHMARK}".replace("[python3,", "[python4,")
    with pytest.raises(EvaluationMissingError):
        check(evaluated(), policy=rule)


PLACES = {"model0": "/inputs/model0", "code": "/inputs/code", "data": "/inputs/data"}


@pytest.mark.parametrize(
    "places",
    [
        {"model0": "/inputs/code"},  # the model is the benchmark
        {"model0": "/inputs/code", "data": "/inputs/data"},
        {**PLACES, "model0": "/inputs/code", "code": "/inputs/unused"},
        {**PLACES, "model0": "/inputs/data", "data": "/inputs/unused"},
        {"model0": "/inputs/model0", "code": "/inputs/code"},
    ],
)
def test_an_evaluation_whose_inputs_lie_elsewhere_counts_for_no_policy(
    places: dict[str, str],
) -> None:
    """The spec says where inputs lie, and the builder writes the spec."""
    rule = f"evaluations:{BENCHMARK}"
    listed = linked_events([CERTIFICATE], bar=BAR, metrics=GOOD)
    made = Forger(authority=MODEL.authority, events=moved(listed, PLACES))
    assert check(made.certificate().encode(), policy=rule).evaluations
    made = Forger(authority=MODEL.authority, events=moved(listed, places))
    with pytest.raises(EvaluationMissingError) as caught:
        check(made.certificate().encode(), policy=rule)
    assert "not exactly those" in str(caught.value.got)


def test_metrics_from_another_file_count_for_no_policy() -> None:
    """A benchmark may write more than its metrics, such as what the model says of itself."""
    listed = linked_events([CERTIFICATE], bar=BAR, metrics=GOOD)
    listed[0] = replace(listed[0], spec=replace(listed[0].spec, metrics="model-card.json"))
    made = Forger(authority=MODEL.authority, events=listed)
    rule = f"evaluations:{BENCHMARK}"
    with pytest.raises(EvaluationMissingError) as caught:
        check(made.certificate().encode(), policy=rule)
    assert "from model-card.json" in str(caught.value.got)
    rule += "    metricsFile: model-card.json\n"
    assert check(made.certificate().encode(), policy=rule).evaluations


def test_another_model_beside_the_one_that_is_evaluated_counts_for_no_policy() -> None:
    other = Forger(authority=MODEL.authority, events=linked_events([])).certificate()
    listed = linked_events([CERTIFICATE, other], bar=BAR, metrics=GOOD)
    places = {**PLACES, "model0": "/inputs/unused", "model1": "/inputs/model0"}
    made = Forger(authority=MODEL.authority, events=moved(listed, places))
    with pytest.raises(EvaluationMissingError):
        check(made.certificate().encode(), policy=f"evaluations:{BENCHMARK}")


def test_a_variable_that_is_not_listed_counts_for_no_policy() -> None:
    listed = linked_events([CERTIFICATE], bar=BAR, metrics=GOOD)
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "/inputs/model0"}
    spec = replace(listed[0].spec, environment=variables)
    at = next(n for n, e in enumerate(listed) if isinstance(e, events.TrainingStart))
    listed[0] = replace(listed[0], spec=spec)
    listed[at] = replace(listed[at], environment=variables)
    made = Forger(authority=MODEL.authority, events=listed)
    with pytest.raises(EvaluationMissingError):
        check(made.certificate().encode(), policy=f"evaluations:{BENCHMARK}")


# -- the command -----------------------------------------------------------------------------------


def test_the_command_shows_an_evaluation_and_refuses_a_false_one(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(MODEL.authority.root_pem)
    (tmp_path / "model.json").write_bytes(CERTIFICATE.encode())
    (tmp_path / "good.json").write_bytes(evaluated())
    given = ["verify", str(tmp_path / "model.json"), "--root", str(tmp_path / "root.pem"),
             "--allow-simulated", "--evaluation"]  # fmt: skip
    done = CliRunner().invoke(main, [*given, str(tmp_path / "good.json")])
    assert done.exit_code == 0, done.output
    assert "an evaluation of it is certified (simulated)" in done.output
    done = CliRunner().invoke(main, [*given, str(tmp_path / "model.json")])
    assert done.exit_code == 1
    assert "evaluation.refused" in done.output and "lineage.link" in done.output
