"""The statement: an in-toto v1 statement, with the SLSA provenance v1 predicate for a training.

That of an evaluation has the test-result v0.1 predicate, and is about the model: its files and its
certificate are the subjects.

It is a pure function of the measurement log. The agent builds it from its log and nothing else;
the verifier builds it again and demands equal bytes; so nothing can be claimed that was not
measured.
"""

from typing import Any

from aicert import canonical, evaluation, events
from aicert.log import Run

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE = "urn:aicert:build:training:v1"
"""What the parameters below mean; defined in docs/certificate.md."""
BUILDER_ID = "urn:aicert:agent:v1"

MANIFEST_MEDIA_TYPE = "application/vnd.aicert.manifest.v1+json"


def build(run: Run) -> dict[str, Any]:
    """Return the statement about a complete run."""
    result = evaluation.result(run)
    return _provenance(run) if result is None else _test_result(run, result)


def _provenance(run: Run) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": file.path, "digest": {"sha256": file.sha256}}
            for file in run.outputs.manifest.files
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"spec": run.job.spec.to_json()},
                "internalParameters": {
                    "nonce": run.job.nonce,
                    "baseline": {"sha256": run.job.baseline},
                    "container": _container(run.start),
                },
                "resolvedDependencies": [_image(run.image), *map(_input, run.inputs)],
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": {"aicert": run.job.agent_version}},
                "metadata": {
                    "invocationId": run.job.run,
                    "startedOn": events.format_time(run.job.started_on),
                    "finishedOn": events.format_time(run.outputs.finished_on),
                },
                "byproducts": _byproducts(run),
            },
        },
    }


def _test_result(run: Run, result: evaluation.Result) -> dict[str, Any]:
    asked, model = evaluation.model(run)
    # A test result has no place for how it came about but what configured the test.
    described = {
        "name": "run",
        "digest": {"sha256": canonical.sha256(run.job.spec.to_json())},
        "annotations": {
            "spec": run.job.spec.to_json(),
            "container": _container(run.start),
            "nonce": run.job.nonce,
            "baseline": {"sha256": run.job.baseline},
            "builder": {"id": BUILDER_ID, "version": {"aicert": run.job.agent_version}},
            "invocationId": run.job.run,
            "startedOn": events.format_time(run.job.started_on),
            "finishedOn": events.format_time(run.outputs.finished_on),
        },
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": model.name, "digest": {"sha256": model.content_digest}},
            {"name": f"{model.name}/certificate", "digest": {"sha256": asked.certificate}},
        ],
        "predicateType": TEST_RESULT_TYPE,
        "predicate": {
            "result": result.word,
            "configuration": [
                described,
                _image(run.image),
                *map(_input, run.inputs),
                *_byproducts(run),
            ],
            "passedTests": list(result.passed),
            "failedTests": list(result.failed),
        },
    }


def encode(run: Run) -> bytes:
    """Return the statement's bytes, as the envelope carries them: canonical JSON."""
    return canonical.dumps(build(run))


def _container(start: events.TrainingStart) -> dict[str, Any]:
    """How the container ran, without what the spec says already."""
    described = start.to_json()
    return {
        name: described[name] for name in ("user", "network", "mounts", "environment", "devices")
    } | {"engine": described["engine"]}


def _image(image: events.Image) -> dict[str, Any]:
    return {
        "name": "image",
        "uri": image.reference,
        "digest": {"sha256": image.config},
        "annotations": {
            "manifest": {"sha256": image.manifest},
            "layers": [{"sha256": layer} for layer in image.layers],
            "platform": {"os": "linux", "architecture": image.architecture},
        },
    }


def _input(item: events.Input) -> dict[str, Any]:
    digest = {"sha256": item.content_digest}
    if item.git_commit is not None:
        digest["gitCommit"] = item.git_commit
    return {
        "name": item.name,
        "uri": item.uri,
        "digest": digest,
        "annotations": {
            "kind": item.kind,
            "requested": item.requested,
            "revision": item.revision,
            "files": item.files,
            "size": item.size,
            "root": item.root,
            "manifest": {"sha256": item.manifest},
            **({} if item.records is None else {"records": item.records.to_json()}),
        },
    }


def _byproducts(run: Run) -> list[dict[str, Any]]:
    """The log, the metrics and the manifests: kept beside the model, not part of it."""
    end = run.end
    products: list[dict[str, Any]] = [
        {
            "name": "log",
            "digest": {"sha256": end.log_sha256},
            "annotations": {
                "size": end.log_size,
                "durationMilliseconds": end.duration_milliseconds,
            },
        }
    ]
    if end.metrics is not None:
        products.append(
            {
                "name": "metrics",
                "digest": {"sha256": end.metrics.sha256},
                "annotations": {"reportedByTheTraining": dict(end.metrics.values)},
            }
        )
    products += [
        {
            "name": f"manifests/{item.name}",
            "digest": {"sha256": item.manifest},
            "mediaType": MANIFEST_MEDIA_TYPE,
        }
        for item in run.inputs
    ]
    products.append(
        {
            "name": "outputs",
            "digest": {"sha256": run.outputs.manifest.digest},
            "mediaType": MANIFEST_MEDIA_TYPE,
            "annotations": {"root": run.outputs.manifest.root},
        }
    )
    return products
