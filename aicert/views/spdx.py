"""The bill of materials in SPDX 3.0.1 (JSON-LD), with the AI, dataset and build profiles.

Every hash in it was measured. The profiles ask for things that no certificate holds, such as when a
dataset was released: there stands that nothing is asserted, or, where only a time will do, the time
of the run with a comment that says so.
"""

from typing import Any

from aicert import __version__, statement
from aicert.certificate import Certificate
from aicert.events import Input, format_time
from aicert.log import Run, parse_run
from aicert.verify import Verdict
from aicert.views.parts import DECLARED, MEASURED, Part, certificate_uri, parts, uri
from aicert.words import count

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
NO_ASSERTION = "https://spdx.org/rdf/3.0.1/terms/Core/NoAssertionElement"
_INFO = "_:creation"


def document(certificate: Certificate, verdict: Verdict | None = None) -> dict[str, Any]:
    """Return the document; `verdict` where the certificate was verified just now."""
    run = parse_run(certificate.records)
    build = _Graph(certificate_uri(certificate.digest), run)
    build.add_all(certificate.digest, verdict)
    return {"@context": CONTEXT, "@graph": build.elements}


class _Graph:
    """Collects the elements; each has the certificate's URI and a fragment for a name."""

    def __init__(self, base: str, run: Run) -> None:
        self._base = base
        self._run = run
        self._time = format_time(run.outputs.finished_on)
        self.elements: list[dict[str, Any]] = []

    def add(self, kind: str, fragment: str, **fields: Any) -> str:
        name = f"{self._base}#{fragment}"
        self.elements.append({"type": kind, "spdxId": name, "creationInfo": _INFO, **fields})
        return name

    def relate(self, kind: str, fragment: str, source: str, to: list[str]) -> None:
        if to:
            self.add(
                "Relationship",
                f"relation-{fragment}",
                **{"from": source, "to": to, "relationshipType": kind},
            )

    def add_all(self, digest: str, verdict: Verdict | None) -> None:
        run = self._run
        self.elements.append(
            {
                "type": "CreationInfo",
                "@id": _INFO,
                "specVersion": "3.0.1",
                "created": self._time,
                "createdBy": [f"{self._base}#agent"],
                "comment": f"Measured: {MEASURED}. Not measured: {DECLARED}.",
            }
        )
        self.add("SoftwareAgent", "agent", name=f"aicert {__version__}")
        evidence = self.add(
            "software_File",
            "certificate",
            name="certificate.json",
            software_primaryPurpose="evidence",
            contentType="application/vnd.aicert.certificate.v1+json",
            verifiedUsing=_hashes(digest),
        )
        trained = run.job.spec.evaluation is None
        made = self._model(verdict) if trained else self._results()
        files = [
            self.add(
                "software_File",
                f"output-{number}",
                name=file.path,
                software_primaryPurpose="model" if trained else "test",
                verifiedUsing=_hashes(file.sha256),
            )
            for number, file in enumerate(run.outputs.manifest.files)
        ]
        image = self.add(
            "software_Package",
            "image",
            name=run.image.reference,
            software_primaryPurpose="container",
            software_packageVersion=f"sha256:{run.image.config}",
            verifiedUsing=_hashes(run.image.config),
            comment="The hash is that of the OCI image config, which names every layer.",
        )
        inputs = parts(run)
        added = [(part, self._input(part)) for part in inputs]
        models = {part.input.name: name for part, name in added if part.role == "model"}
        data = [name for part, name in added if part.role == "data"]
        build = self._build()
        self.relate("hasEvidence", "evidence", made, [evidence])
        self.relate("contains", "files", made, files)
        if run.job.spec.evaluation is None:
            self.relate("trainedOn", "data", made, data)
            self.relate("descendantOf", "models", made, [*models.values()])
        else:
            self.relate("testedOn", "data", models[run.job.spec.evaluation.model], data)
        self.relate("hasInput", "inputs", build, [image, *(name for _, name in added)])
        self.relate("hasOutput", "outputs", build, [made])
        everything = [item["spdxId"] for item in self.elements if "spdxId" in item]
        bom = self.add(
            "software_Sbom",
            "bom",
            software_sbomType=["build"],
            rootElement=[made],
            element=everything,
        )
        self.add(
            "SpdxDocument",
            "document",
            name=f"{run.job.spec.name}: bill of materials",
            profileConformance=["core", "software", "ai", "dataset", "build"],
            rootElement=[bom],
            element=everything,
        )

    def _model(self, verdict: Verdict | None) -> str:
        run = self._run
        metrics = {} if run.end.metrics is None else run.end.metrics.values
        fields: dict[str, Any] = {}
        if run.job.spec.description:
            fields["description"] = run.job.spec.description
        reported = _entries(metrics)
        for one in () if verdict is None else verdict.evaluations:
            assert one.run.end.metrics is not None  # the log's grammar
            whose = f"evaluation {one.run.job.spec.name}, sha256:{one.certificate_digest}"
            values = one.run.end.metrics.values
            reported += _entries({f"{name} ({whose})": got for name, got in values.items()})
        if reported:
            fields["ai_metric"] = reported
        if verdict is not None:
            fields["ai_limitation"] = "; ".join(
                f"not proved: {limit}" for limit in verdict.not_proved
            )
        return self.add(
            "ai_AIPackage",
            "model",
            name=run.job.spec.name,
            software_packageVersion=run.job.run,
            software_primaryPurpose="model",
            software_downloadLocation=self._base,
            releaseTime=self._time,
            suppliedBy=NO_ASSERTION,
            ai_informationAboutTraining=(
                f"{' '.join(run.start.command)} (seed {run.job.spec.seed}, network "
                f"{run.start.network})"
            ),
            comment=f"Root digest of the files (OpenSSF Model Signing v1): "
            f"sha256:{run.outputs.manifest.root}. Metrics are what the training reported, or the "
            "evaluation that they name.",
            **fields,
        )

    def _results(self) -> str:
        """What an evaluation made: no model, but what is known of one."""
        run = self._run
        about = {"description": run.job.spec.description} if run.job.spec.description else {}
        return self.add(
            "software_Package",
            "results",
            name=run.job.spec.name,
            software_packageVersion=run.job.run,
            software_primaryPurpose="test",
            software_downloadLocation=self._base,
            comment="The results of an evaluation. Root digest of the files (OpenSSF Model "
            f"Signing v1): sha256:{run.outputs.manifest.root}.",
            **about,
        )

    def _input(self, part: Part) -> str:
        item = part.input
        common: dict[str, Any] = {
            "name": item.name,
            "software_packageVersion": item.revision or f"sha256:{item.content_digest}",
            "software_downloadLocation": uri(item.uri),
            "software_sourceInfo": f"asked for as {item.requested}, mounted at {part.target}",
            "comment": _about(item),
        }
        if item.sha256 is not None:
            common["verifiedUsing"] = _hashes(item.sha256)
        name = f"input-{item.name}"
        fetched = format_time(self._run.job.started_on)
        if part.role == "code":
            self.add("software_Package", name, software_primaryPurpose="source", **common)
        elif part.role == "model":
            common["comment"] += " releaseTime is not known; the time of the run stands for it."
            evaluated = self._run.job.spec.evaluation
            if evaluated is not None and item.name == evaluated.model and self._run.end.metrics:
                common["ai_metric"] = _entries(self._run.end.metrics.values)
            self.add(
                "ai_AIPackage",
                name,
                software_primaryPurpose="model",
                releaseTime=fetched,
                suppliedBy=NO_ASSERTION,
                **common,
            )
        else:
            common["comment"] += (
                " builtTime and releaseTime are not known; the time of the run stands for them."
            )
            self.add(
                "dataset_DatasetPackage",
                name,
                software_primaryPurpose="data",
                dataset_datasetType=["noAssertion"],
                dataset_datasetSize=item.size,
                builtTime=fetched,
                releaseTime=fetched,
                originatedBy=[NO_ASSERTION],
                **common,
            )
        added = f"{self._base}#{name}"
        if part.certificate is not None:
            certificate = self.add(
                "software_File",
                f"certificate-{item.name}",
                name=f"certificate of {item.name}",
                software_primaryPurpose="evidence",
                contentType="application/vnd.aicert.certificate.v1+json",
                verifiedUsing=_hashes(part.certificate),
            )
            self.relate("hasEvidence", f"evidence-{item.name}", added, [certificate])
        return added

    def _build(self) -> str:
        run = self._run
        return self.add(
            "build_Build",
            "build",
            build_buildType=statement.BUILD_TYPE,
            build_buildId=run.job.run,
            build_buildStartTime=format_time(run.job.started_on),
            build_buildEndTime=self._time,
            build_environment=_entries(run.start.environment),
            build_parameter=_entries(
                {
                    "command": " ".join(run.start.command),
                    "seed": run.job.spec.seed,
                    "user": run.start.user,
                    "network": run.start.network,
                    **{f"limits.{k}": v for k, v in run.start.limits.to_json().items()},
                }
            ),
        )


def _about(item: Input) -> str:
    what = f"{count(item.files, 'file')}, {item.size} bytes, root digest sha256:{item.root}"
    commit = "" if item.git_commit is None else f", git commit {item.git_commit}"
    held = item.records
    records = (
        ""
        if held is None
        else f" Its {count(held.count, 'record')} ({held.method}, {held.distinct} distinct) are "
        f"committed to by the root sha256:{held.root}."
    )
    return f"A {item.kind}: {what}, manifest sha256:{item.manifest}{commit}.{records}"


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"type": "Hash", "algorithm": "sha256", "hashValue": sha256}]


def _entries(values: Any) -> list[dict[str, str]]:
    return [
        {"type": "DictionaryEntry", "key": name, "value": str(value)}
        for name, value in values.items()
    ]
