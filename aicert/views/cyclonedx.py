"""The bill of materials in CycloneDX 1.6 (ECMA-424): the model, what it was made from, and how.

Every digest in it was measured. `hashes` holds digests of files; a tree has a root digest, which is
no file's, and so is a property. The certificate is the evidence: it is named by its digest.
"""

from collections.abc import Iterator
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
            "component": _model(run, inputs, digest, verdict),
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
        "components": [_image(run), *map(_input, inputs)],
        "dependencies": [
            {"ref": "model", "dependsOn": ["image", *(f"input:{p.input.name}" for p in inputs)]}
        ],
        "formulation": [_formula(run, inputs)],
        "declarations": _declarations(run, digest),
    }


def _metrics(run: Run, verdict: Verdict | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if run.end.metrics is not None:
        yield f"the {kind(run)}", run.end.metrics.values
    for one in () if verdict is None else verdict.evaluations:
        assert one.run.end.metrics is not None  # the log's grammar
        name = f"{one.run.job.spec.name}, certified by sha256:{one.certificate_digest}"
        yield f"the evaluation {name}", one.run.end.metrics.values


def _model(run: Run, inputs: list[Part], digest: str, verdict: Verdict | None) -> dict[str, Any]:
    spec, outputs = run.job.spec, run.outputs.manifest
    card: dict[str, Any] = {
        "modelParameters": {
            "datasets": [{"ref": f"input:{p.input.name}"} for p in inputs if p.role == "data"]
        }
    }
    metrics = [
        {"type": name, "value": str(value), "slice": f"as reported by {whose}"}
        for whose, reported in _metrics(run, verdict)
        for name, value in reported.items()
    ]
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if verdict is not None:
        card["considerations"] = {
            "technicalLimitations": [f"not proved: {limit}" for limit in verdict.not_proved]
        }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": spec.name,
        "version": run.job.run,
        **({"description": spec.description} if spec.description else {}),
        "modelCard": card,
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
        "externalReferences": [
            {
                "type": "attestation",
                "url": certificate_uri(digest),
                "comment": "the AI certificate (application/vnd.aicert.certificate.v1+json)",
                "hashes": _hashes(digest),
            }
        ],
        "properties": _properties({"aicert:root": outputs.root, "aicert:manifest": outputs.digest}),
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


def _input(part: Part) -> dict[str, Any]:
    item = part.input
    kind = "source-code" if part.role == "code" else "dataset"
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
    return {
        "type": "data",
        "bom-ref": f"input:{item.name}",
        "name": item.name,
        "version": item.revision or f"sha256:{item.content_digest}",
        **({} if item.sha256 is None else {"hashes": _hashes(item.sha256)}),
        "data": [{"type": kind, "name": item.name, "contents": {"url": uri(item.uri)}}],
        "externalReferences": [{"type": "source-distribution", "url": uri(item.uri)}],
        "properties": _properties(known),
    }


def _formula(run: Run, inputs: list[Part]) -> dict[str, Any]:
    """How it was made: one workflow, the run, with one task, the container."""
    start = run.start
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
                "name": "training",
                "taskTypes": ["build"],
                "timeStart": format_time(run.job.started_on),
                "timeEnd": format_time(run.outputs.finished_on),
                "tasks": [
                    {
                        "bom-ref": "task",
                        "uid": f"{run.job.run}/train",
                        "name": "train",
                        "taskTypes": ["build"],
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
                        "outputs": [{"type": "artifact", "resource": {"ref": "model"}}],
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
                "target": "model",
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
