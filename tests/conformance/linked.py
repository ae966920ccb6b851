"""The last of the corpus: evidence of a CPU, evaluations of the model, certificates behind it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from aicert import canonical, events, log, statement
from aicert.certificate import Certificate, CpuReport
from tests.conformance import build
from tests.conformance.build import OTHER, case, good
from tests.conformance.demands import BASE, SIMULATED, option
from tests.support import snp
from tests.support.forger import Forger
from tests.support.linked import BAR, child, linked_events, model_input, moved

HERE: Path = build.HERE
REACHED: dict[str, Any] = {"accuracy": 0.95}

# -- the CPU's report ------------------------------------------------------------------------------
#
# Nobody here can sign as AMD. So these are the cases of before its root is looked at, and one where
# all is right but the root.

AMD = cache(snp.Amd)


def reported(name: str, expect: str, why: str, make: Callable[[Forger], CpuReport]) -> None:
    """Register a case with a CPU's report for an RSA attestation key, as Azure's are."""

    def build_case() -> Certificate:
        made = good(kind="rsa")
        return snp.with_report(made.certificate(), make(made))  # type: ignore[no-any-return]

    case(f"sev-{name}", expect, why)(build_case)


def evidence(made: Forger, **changes: Any) -> CpuReport:
    """The report for the forger's key."""
    return AMD().evidence(made.key.public_key(), **changes)


reported(
    "root-not-amds",
    "sev.chain",
    "All of it is right, by a root with AMD's place in the chain that is not AMD's.",
    evidence,
)
reported(
    "of-another-machine",
    "sev.key",
    "The report of another machine: it is for another attestation key.",
    lambda made: AMD().evidence(rsa.generate_private_key(65537, 2048).public_key()),
)
reported(
    "over-another-document",
    "sev.runtime-data",
    "The document names this key, and the report is over another document.",
    lambda made: replace(
        evidence(made), runtime_data=snp.document(made.key.public_key(), **{"user-data": "01"})
    ),
)
reported(
    "two-keys-of-one-name",
    "sev.runtime-data",
    "The document has two keys of the attestation key's name: which of them is meant?",
    lambda made: evidence(made, runtime=_twice(made)),
)
reported(
    "debugging-allowed",
    "sev.policy",
    "Whoever runs the host may debug the machine, and so read and change its memory.",
    lambda made: evidence(made, policy=0x3001F | 1 << 19),
)
reported(
    "migration-allowed",
    "sev.policy",
    "An agent may hand the machine's memory to another one.",
    lambda made: evidence(made, policy=0x3001F | 1 << 18),
)
reported(
    "of-less-privileged-code",
    "sev.policy",
    "The report is of the guest, not of the code that holds the TPM.",
    lambda made: evidence(made, vmpl=2),
)
reported(
    "signed-by-a-loaded-key",
    "sev.report",
    "The report is signed with a key of the cloud's (VLEK), not with the chip's.",
    lambda made: evidence(made, flags=1 << 2),
)
reported(
    "unknown-version",
    "sev.report",
    "The report is of a version that nobody knows.",
    lambda made: evidence(made, version=99),
)
reported(
    "cut",
    "sev.report",
    "The report was cut.",
    lambda made: replace(evidence(made), report=evidence(made).report[:-1]),
)
reported(
    "without-its-chain",
    "sev.chain",
    "The report comes without certificates.",
    lambda made: replace(evidence(made), chain=()),
)


def _twice(made: Forger) -> bytes:
    document = snp.document(made.key.public_key())
    return document.replace(b'"HCLEkPub"', b'"HCLAkPub"')


# -- evaluations -----------------------------------------------------------------------------------


def evaluated(
    name: str,
    expect: str,
    why: str,
    make: Callable[[Forger, Certificate], Certificate],
    *,
    policy: str | None = None,
    answer: Any = None,
) -> None:
    """Register a case of a model with a certificate of an evaluation, of it or not."""

    def build_case() -> tuple[Certificate, dict[str, bytes]]:
        made = good()
        certificate = made.certificate()
        files = {"evaluation.json": make(made, certificate).encode()}
        if policy is not None:
            files["policy.yaml"] = policy.encode()
        return certificate, files

    options = SIMULATED if policy is None else option("policy.yaml")
    case(
        f"evaluation-{name}",
        expect,
        why,
        options=(*options, "--evaluation", "{case}/evaluation.json"),
        extra={} if answer is None else {"answer": answer},
    )(build_case)


def evaluation(made: Forger, of: Certificate, **options: Any) -> Certificate:
    """An evaluation of a certificate's model, by the same authority."""
    options = {"bar": BAR, "metrics": REACHED, **options}
    return child([of], made, **options).certificate()


DEMANDED = (
    BASE
    + f"""evaluations:
  - images: [{"11" * 32}]
    command: {{equals: [python3, /inputs/code/train.py]}}
    environment: {{only: [OMP_NUM_THREADS]}}
    inputs:
      exactly:
        - {{sha256: {"aa" * 32}, target: /inputs/code}}
        - {{root: {"dd" * 32}, target: /inputs/data}}
    metrics: {{accuracy: {{atLeast: 0.9}}}}
"""
)

evaluated("good", "verified", "An evaluation of this very model.", evaluation)
evaluated(
    "required",
    "verified",
    "An evaluation that the policy requires, with the metrics that it wants.",
    evaluation,
    policy=DEMANDED,
)
evaluated(
    "failed",
    "verified",
    "The model did not reach the bar: the evaluation is true, and no policy asks for another.",
    lambda made, of: evaluation(made, of, metrics={"accuracy": 0.5}),
)
evaluated(
    "failed-and-required",
    "policy.evaluations",
    "The model did not reach the bar that the evaluation itself sets, and one is required.",
    lambda made, of: evaluation(made, of, metrics={"accuracy": 0.5}),
    policy=DEMANDED.replace("0.9", "0.1"),
)
evaluated(
    "under-the-policys-bar",
    "policy.evaluations",
    "The evaluation's own bar was reached; the policy's is higher.",
    evaluation,
    policy=DEMANDED.replace("0.9", "0.96"),
)
evaluated(
    "with-other-data",
    "policy.evaluations",
    "A required evaluation was made, on other data than the policy lists.",
    evaluation,
    policy=DEMANDED.replace("dd" * 32, "de" * 32),
)
evaluated(
    "by-the-model-itself",
    "policy.evaluations",
    "A required evaluation whose command and image are right. Where the benchmark should lie, lies "
    "the model, which brings a program of the same name.",
    lambda made, of: _moved(made, of, {"model0": "/inputs/code"}),
    policy=DEMANDED,
)
evaluated(
    "with-the-benchmark-elsewhere",
    "policy.evaluations",
    "The benchmark is among the inputs, and lies elsewhere; the model is where its command looks.",
    lambda made, of: _moved(
        made, of, {"model0": "/inputs/code", "code": "/inputs/unused", "data": "/inputs/data"}
    ),
    policy=DEMANDED,
)
evaluated(
    "of-another-model",
    "evaluation.refused",
    "A true evaluation, of another certificate's model.",
    lambda made, of: evaluation(made, replace(of, signature=b"other")),
)
evaluated(
    "of-other-weights",
    "evaluation.refused",
    "The evaluation names this certificate, and what was evaluated is something else.",
    lambda made, of: evaluation(made, of, inputs=[model_input("model0", of, manifest="ab" * 32)]),
)
evaluated(
    "that-is-a-training",
    "evaluation.refused",
    "A true certificate of a training from this model, which is no evaluation.",
    lambda made, of: child([of], made).certificate(),
)
evaluated(
    "by-an-unknown-root",
    "evaluation.refused",
    "The evaluation's machine is vouched for by a root that nobody pinned.",
    lambda made, of: child([of], Forger(authority=OTHER), bar=BAR, metrics=REACHED).certificate(),
)
evaluated(
    "with-its-signature-flipped",
    "evaluation.refused",
    "One bit of the evaluation's signature is flipped.",
    lambda made, of: _flipped(evaluation(made, of)),
)


evaluated(
    "with-metrics-of-another-file",
    "policy.evaluations",
    "The metrics are those in another file that the benchmark wrote, such as what the model says "
    "of itself: the builder's spec names the file.",
    lambda made, of: _elsewhere(made, of),
    policy=DEMANDED,
)


def _elsewhere(made: Forger, of: Certificate) -> Certificate:
    listed = linked_events([of], bar=BAR, metrics=REACHED)
    listed[0] = replace(listed[0], spec=replace(listed[0].spec, metrics="card.json"))
    return Forger(authority=made.authority, events=listed).certificate()


def _moved(made: Forger, of: Certificate, targets: dict[str, str]) -> Certificate:
    listed = moved(linked_events([of], bar=BAR, metrics=REACHED), targets)
    return Forger(authority=made.authority, events=listed).certificate()


def _flipped(certificate: Certificate) -> Certificate:
    signature = certificate.signature
    return replace(certificate, signature=signature[:-1] + bytes([signature[-1] ^ 1]))


case(
    "evaluation-required-and-absent",
    "policy.evaluations",
    "The policy requires an evaluation, and none is given.",
    options=option("policy.yaml"),
)(lambda: (good().certificate(), {"policy.yaml": DEMANDED.encode()}))


def own(name: str, expect: str, why: str, make: Callable[[Forger, Certificate], Any]) -> None:
    """Register a case whose certificate is itself one of an evaluation."""
    case(f"evaluation-{name}", expect, why, model=None)(
        lambda: make(made := good(), Forger(authority=made.authority).certificate())
    )


own(
    "itself",
    "verified",
    "The certificate of an evaluation is one like any other; its statement is about the model.",
    evaluation,
)
own(
    "claims-to-pass",
    "statement.mismatch",
    "The metrics do not reach the bar, and the statement says that they do.",
    lambda made, of: _claimed(made, of),
)
own(
    "without-metrics",
    "log.grammar",
    "An evaluation that reported no metrics.",
    lambda made, of: _unmeasured(made, of, metrics=None),
)
own(
    "of-an-input-without-a-certificate",
    "log.grammar",
    "What is evaluated is an input that no certificate is named for.",
    lambda made, of: _unmeasured(made, of, model="data"),
)


def _claimed(made: Forger, of: Certificate) -> Certificate:
    """An evaluation that failed, with the statement of one that passed."""
    listed = linked_events([of], bar=BAR, metrics={"accuracy": 0.5})
    failed = replace(made, events=listed)
    records = failed.certificate().records
    run = log.parse_run(records)
    assert run.end.metrics is not None
    better = replace(run.end, metrics=replace(run.end.metrics, values=REACHED))
    claimed = statement.build(replace(run, end=better))
    honest = statement.build(run)
    for field in ("result", "passedTests", "failedTests"):
        honest["predicate"][field] = claimed["predicate"][field]
    return failed.certificate(payload=canonical.dumps(honest))


def _unmeasured(
    made: Forger, of: Certificate, *, model: str = "model0", **changes: Any
) -> Certificate:
    """An evaluation with a log that no agent writes; its statement is that of a good one."""
    listed = linked_events([of], bar=BAR, metrics=REACHED)
    payload = statement.encode(log.parse_run([log.Record.of(event) for event in listed]))
    spec = replace(listed[0].spec, evaluation=events.Evaluation(model, BAR))
    listed[0] = replace(listed[0], spec=spec)
    at = next(n for n, e in enumerate(listed) if isinstance(e, events.TrainingEnd))
    listed[at] = replace(listed[at], **changes)
    return replace(made, events=listed).certificate(payload=payload)


# -- certificates behind a certificate -------------------------------------------------------------


def traced(
    name: str,
    expect: str,
    why: str,
    *,
    parent: Callable[[], Forger] = good,
    given: bool = True,
    inputs: Callable[[Certificate], Any] = lambda parent: None,
    status: int | None = None,
) -> None:
    """Register a case of a model that was made from another, whose certificate may be beside it."""

    def build_case() -> tuple[Certificate, dict[str, bytes]]:
        behind = parent().certificate()
        made = child([behind], good(), inputs=inputs(behind)).certificate()
        return made, {"behind.json": behind.encode()} if given else {}

    case(
        f"lineage-{name}",
        expect,
        why,
        options=(*SIMULATED, "--recursive", "--from", "{case}"),
        extra={} if status is None else {"status": status},
    )(build_case)


traced("good", "verified", "The certificate behind this one verifies; its files were the input.")
traced(
    "parent-missing",
    "lineage.missing",
    "The certificate behind this one is not to be had: nothing is said of that input.",
    given=False,
    status=3,
)
traced(
    "parent-by-an-unknown-root",
    "lineage.refused",
    "The certificate behind this one does not verify.",
    parent=lambda: Forger(authority=OTHER),
)
traced(
    "input-that-the-parent-did-not-make",
    "lineage.link",
    "The input is said to be certified, and is not what that certificate's run made.",
    inputs=lambda parent: [model_input("model0", parent, root="ab" * 32, manifest="cd" * 32)],
)
