"""The bill of materials in CycloneDX 1.6 (ECMA-424): the model, what it was made from, and how.

Every digest in it was measured. `hashes` holds digests of files; a tree has a root digest, which is
no file's, and so is a property. The certificate is the evidence: it is named by its digest.
"""

from typing import Any

from aicert import __version__
from aicert.card import kind
from aicert.certificate import Certificate
from aicert.events import format_time
from aicert.log import Run, parse_run
from aicert.verify import Verdict
from aicert.views.parts import DECLARED, MEASURED, Part, certificate_uri, parts, uri


def bom(certificate: Certificate, verdict: Verdict | None = None) -> dict[str, Any]:
    """Return the BOM; `verdict` where the certificate was verified just now."""
    run = parse_run(certificate.records)
    inputs = parts(run)
    digest = certificate.digest
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{run.job.run}",
        "version": 1,
        "metadata": {
            "timestamp": format_time(run.outputs.finished_on),
            "lifecycles": [{"phase": "post-build"}],
            "tools": {
                "components": [{"type": "application", "name": "aicert", "version": __version__}]
            },
            "component": _made(run, inputs, digest, verdict),
            "properties": _properties(
                {
                    "aicert:measured": MEASURED,
                    "aicert:declared": DECLARED,
                    "aicert:assurance": "not verified"
                    if verdict is None
                    else f"{verdict.assurance}, by the verifier's own roots and policy",
                }
            ),
        },
        "components": [_image(run), *(_input(part, run) for part in inputs)],
        "dependencies": [
            {"ref": _ref(run), "dependsOn": ["image", *(f"input:{p.input.name}" for p in inputs)]}
        ],
        "formulation": [_formula(run, inputs)],
        "declarations": _declarations(run, digest),
    }


def _ref(run: Run) -> str:
    """Return what the run made, as the document calls it."""
    return "model" if run.job.spec.evaluation is None else "evaluation"


def _metrics(run: Run, verdict: Verdict | None) -> list[dict[str, str]]:
    """Return what was reported of the model, and by whom."""
    reported = [] if run.end.metrics is None else [(f"the {kind(run)}", run.end.metrics.values)]
    for one in () if verdict is None else verdict.evaluations:
        assert one.run.end.metrics is not None  # the log's grammar
        name = f"{one.run.job.spec.name}, certified by sha256:{one.certificate_digest}"
        reported.append((f"the evaluation {name}", one.run.end.metrics.values))
    return [
        {"type": name, "value": str(value), "slice": f"as reported by {whose}"}
        for whose, values in reported
        for name, value in values.items()
    ]


def _made(run: Run, inputs: list[Part], digest: str, verdict: Verdict | None) -> dict[str, Any]:
    """What the run made: a model; or, of an evaluation, its results."""
    spec, outputs = run.job.spec, run.outputs.manifest
    made: dict[str, Any] = {
        "bom-ref": _ref(run),
        "name": spec.name,
        "version": run.job.run,
        **({"description": spec.description} if spec.description else {}),
        "components": [
            {
                "type": "file",
                "bom-ref": f"output:{file.path}",
                "name": file.path,
                "hashes": _hashes(file.sha256),
                "properties": _properties({"aicert:size": file.size}),
            }
            for file in outputs.files
        ],
        "externalReferences": [_attestation(digest)],
        "properties": _properties({"aicert:root": outputs.root, "aicert:manifest": outputs.digest}),
    }
    if spec.evaluation is not None:
        about = {"type": "other", "name": "the results of an evaluation"}
        return {"type": "data", **made, "data": [about]}
    card: dict[str, Any] = {
        "modelParameters": {
            "datasets": [{"ref": f"input:{p.input.name}"} for p in inputs if p.role == "data"]
        }
    }
    if metrics := _metrics(run, verdict):
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if verdict is not None:
        card["considerations"] = {
            "technicalLimitations": [f"not proved: {limit}" for limit in verdict.not_proved]
        }
    ancestors = [_named(part) for part in inputs if part.role == "model"]
    pedigree = {"pedigree": {"ancestors": ancestors}} if ancestors else {}
    return {"type": "machine-learning-model", **made, "modelCard": card, **pedigree}


def _attestation(digest: str) -> dict[str, Any]:
    return {
        "type": "attestation",
        "url": certificate_uri(digest),
        "comment": "the AI certificate (application/vnd.aicert.certificate.v1+json)",
        "hashes": _hashes(digest),
    }


def _image(run: Run) -> dict[str, Any]:
    image = run.image
    return {
        "type": "container",
        "bom-ref": "image",
        "name": image.reference,
        "version": f"sha256:{image.config}",
        "hashes": _hashes(image.config),
        "properties": _properties(
            {
                "aicert:digest-of": "the OCI image config, which names every layer",
                "aicert:manifest": image.manifest,
                "aicert:platform": f"linux/{image.architecture}",
            }
        ),
    }


def _named(part: Part) -> dict[str, Any]:
    """Name an input, and what vouches for it."""
    item = part.input
    outside = [{"type": "source-distribution", "url": uri(item.uri)}]
    if part.certificate is not None:
        outside.append(_attestation(part.certificate))
    return {
        "type": "machine-learning-model" if part.role == "model" else "data",
        "name": item.name,
        "version": item.revision or f"sha256:{item.content_digest}",
        **({} if item.sha256 is None else {"hashes": _hashes(item.sha256)}),
        "externalReferences": outside,
    }


def _input(part: Part, run: Run) -> dict[str, Any]:
    item = part.input
    known = {
        "aicert:kind": item.kind,
        "aicert:files": item.files,
        "aicert:size": item.size,
        "aicert:root": item.root,
        "aicert:manifest": item.manifest,
        "aicert:mounted": part.target,
        "aicert:requested": item.requested,
        "aicert:revision": item.revision,
        "aicert:git-commit": item.git_commit,
        **(
            {}
            if item.records is None
            else {f"aicert:records-{name}": value for name, value in item.records.to_json().items()}
        ),
    }
    described = {
        **_named(part),
        "bom-ref": f"input:{item.name}",
        "properties": _properties(known),
    }
    evaluated = run.job.spec.evaluation and run.job.spec.evaluation.model
    if item.name == evaluated and (metrics := _metrics(run, None)):
        described["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": metrics}}
    elif part.role != "model":
        what = "source-code" if part.role == "code" else "dataset"
        contents = {"url": uri(item.uri)}
        described["data"] = [{"type": what, "name": item.name, "contents": contents}]
    return described


def _formula(run: Run, inputs: list[Part]) -> dict[str, Any]:
    """How it was made: one workflow, the run, with one task, the container."""
    start = run.start
    task = "build" if run.job.spec.evaluation is None else "test"
    used = [{"resource": {"ref": f"input:{part.input.name}"}} for part in inputs]
    parameters: list[dict[str, Any]] = [
        {"name": "seed", "value": str(run.job.spec.seed)},
        *({"name": f"limits.{k}", "value": str(v)} for k, v in start.limits.to_json().items()),
    ]
    return {
        "bom-ref": "formula",
        "workflows": [
            {
                "bom-ref": "workflow",
                "uid": run.job.run,
                "name": kind(run),
                "taskTypes": [task],
                "timeStart": format_time(run.job.started_on),
                "timeEnd": format_time(run.outputs.finished_on),
                "tasks": [
                    {
                        "bom-ref": "task",
                        "uid": f"{run.job.run}/train",
                        "name": "train",
                        "taskTypes": [task],
                        "steps": [{"commands": [{"executed": _command(start.command)}]}],
                        "inputs": [
                            {"resource": {"ref": "image"}},
                            *used,
                            {"parameters": parameters},
                            {
                                "environmentVars": [
                                    {"name": name, "value": value}
                                    for name, value in start.environment.items()
                                ]
                            },
                        ],
                        "outputs": [{"type": "artifact", "resource": {"ref": _ref(run)}}],
                        "properties": _properties(
                            {"aicert:user": start.user, "aicert:network": start.network}
                        ),
                    }
                ],
            }
        ],
    }


def _declarations(run: Run, digest: str) -> dict[str, Any]:
    return {
        "claims": [
            {
                "bom-ref": "claim",
                "target": _ref(run),
                "predicate": "These files are the outputs of a run of this command, in this image, "
                "on these inputs.",
                "reasoning": "A TPM measured each step and signed the record. The certificate "
                "holds the record, the signature and the key's chain: aicert verify checks them.",
                "evidence": ["evidence"],
            }
        ],
        "evidence": [
            {
                "bom-ref": "evidence",
                "description": "The AI certificate, named by the SHA-256 of its file.",
                "created": format_time(run.outputs.finished_on),
                "data": [
                    {"name": "certificate.json", "contents": {"url": certificate_uri(digest)}}
                ],
            }
        ],
        "targets": {"components": []},
    }


def _command(words: tuple[str, ...]) -> str:
    import shlex

    return shlex.join(words)


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(values: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": name, "value": str(value)} for name, value in values.items() if value is not None
    ]
