"""The AI model ID card: what a certificate says, for people.

A card is a view. It proves nothing by itself, says so, and gives the command that does. All text
in a certificate is somebody else's: it is made harmless before it is shown. The card as a page is
in `aicert.views.page`.
"""

import json
import re
from typing import TYPE_CHECKING

from cryptography import x509

from aicert import evaluation, layers, links
from aicert.assurance import MEANING
from aicert.certificate import Certificate
from aicert.events import Records, format_time
from aicert.log import Run, parse_run
from aicert.trust import name_of
from aicert.verify import Verdict
from aicert.words import block, clean, code, count, duration, key_values, size, table
from aicert.words import text as escaped

if TYPE_CHECKING:
    from aicert.lineage import Node

_ROWS = 50

CHECK = "aicert verify certificate.json --model FOLDER"
"""The command that checks a model, where nothing more is known of the place where it is."""

LIMITS = (
    "who vouches, and that anything here is true: nothing was verified for this card",
    "that the data is lawful or unbiased, the code harmless, or the model good",
    "that the metrics are true: they are what the training reported",
    "that any file you hold is the certified one",
)
"""What a card does not prove where nobody has verified its certificate."""


def vouches(certificate: Certificate, verdict: Verdict | None) -> str:
    """Return the name of the root that vouches for the TPM, or is said to."""
    if verdict is not None:
        return verdict.chain.pin.name
    try:
        return name_of(x509.load_der_x509_certificate(certificate.attestation_key.chain[-1]))
    except ValueError:
        return "a root without a readable name"


def readme(
    certificate: Certificate,
    verdict: Verdict | None = None,
    behind: "Node | None" = None,
    *,
    command: str = CHECK,
) -> str:
    """Return the card as a model repository's README: with front matter in YAML.

    The arguments are those of `markdown`. The front matter's values are written as JSON, which YAML
    includes, so that no text can leave its place.
    """
    run = parse_run(certificate.records)
    fields: dict[str, object] = {
        "model_name": clean(run.job.spec.name),
        "tags": ["aicert", "certified-training"],
    }
    datasets, models = _hub(run)
    if datasets:
        fields["datasets"] = datasets
    if models:
        fields["base_model"] = models
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    lines.append(f"aicert_certificate: {json.dumps('sha256:' + certificate.digest)}")
    return "\n".join(
        ["---", *lines, "---", "", markdown(certificate, verdict, behind, command=command)]
    )


def _hub(run: Run) -> tuple[list[str], list[str]]:
    """Return the data sets and models of the Hugging Face Hub among the inputs."""
    datasets: list[str] = []
    models: list[str] = []
    for item in run.inputs:
        match = re.match(r"hf://(datasets/)?([\w.-]+/[\w.-]+)(?:[@/]|$)", item.uri, re.ASCII)
        if match:
            (datasets if match[1] else models).append(match[2])
    return sorted(set(datasets)), sorted(set(models))


def markdown(
    certificate: Certificate,
    verdict: Verdict | None = None,
    behind: "Node | None" = None,
    *,
    command: str = CHECK,
) -> str:
    """Return the card in Markdown.

    Args:
        certificate: what it is about.
        verdict: of that certificate, where it was verified just now.
        behind: its lineage, where that was followed.
        command: what the card tells its reader to check the model with.
    """
    run = parse_run(certificate.records)
    spec = run.job.spec
    outputs = run.outputs.manifest
    lines = [
        f"# {escaped(spec.name)}",
        "",
        *([escaped(spec.description), ""] if spec.description else []),
        _status(verdict),
        "",
        key_values(
            [
                ("What it is", f"{count(len(outputs.files), 'file')}, {size(outputs.size)}"),
                (
                    "Made from",
                    f"{count(len(run.inputs), 'input')}, one container image, one command",
                ),
                *((name, escaped(value)) for name, value in _evaluated(run)),
                (started(run), f"{_times(run)} (the machine's clock)"),
                ("It took", duration(run.end.duration_milliseconds)),
                (
                    "Who is said to vouch" if verdict is None else "Who vouches",
                    escaped(vouches(certificate, verdict)),
                ),
                ("Certificate", f"`sha256:{certificate.digest}`"),
                ("Run", f"`{run.job.run}`"),
                ("Root digest", f"`{outputs.root}`"),
            ]
        ),
        "",
        "## What it was made from",
        "",
        block(_tree(certificate, run) if behind is None else _drawn(behind)),
        "",
        table(
            ("part", "where it came from", "SHA-256"),
            [
                ("image", code(run.image.reference), f"`{run.image.config}`"),
                *(
                    (escaped(item.name), code(item.uri), f"`{item.content_digest}`")
                    for item in run.inputs
                ),
                ("command", code(" ".join(spec.command)), f"seed {spec.seed}"),
            ],
        ),
        "",
        *(
            f"Of {escaped(item.name)} {_records(item.records)}.\n"
            for item in run.inputs
            if item.records
        ),
        "## Files",
        "",
        table(
            ("file", "size", "SHA-256"),
            [
                (code(file.path), size(file.size), f"`{file.sha256}`")
                for file in outputs.files[:_ROWS]
            ],
        ),
    ]
    if (more := len(outputs.files) - _ROWS) > 0:
        lines += ["", f"… and {more} more."]
    if run.end.metrics is not None:
        lines += [
            "",
            f"## Metrics, as reported by the {kind(run)}",
            "",
            table(
                ("metric", "value"),
                [(escaped(name), escaped(value)) for name, value in run.end.metrics.values.items()],
            ),
        ]
    if verdict is not None and verdict.evaluations:
        lines += [
            "",
            "## Certified evaluations",
            "",
            table(
                ("evaluation", "assurance", "certificate (SHA-256)"),
                [
                    (
                        escaped(evaluation.says(one.run)),
                        f"`{one.assurance}`",
                        f"`{one.certificate_digest}`",
                    )
                    for one in verdict.evaluations
                ],
            ),
        ]
    if verdict is not None:
        proved = (f"- {escaped(sentence)}" for sentence in verdict.proved)
        lines += ["", "## What this proves", "", *proved]
    limits = LIMITS if verdict is None else verdict.not_proved
    lines += [
        "",
        "## What it does not prove",
        "",
        *(f"- {escaped(sentence)}" for sentence in limits),
        "",
        "## Check it yourself",
        "",
        "With `aicert` from its own source, not from whoever gave you this model:",
        "",
        block(command),
        "",
    ]
    return "\n".join(lines)


def text(certificate: Certificate) -> str:
    """Return the card as plain text for a terminal."""
    run = parse_run(certificate.records)
    spec = run.job.spec
    files = run.outputs.manifest.files
    rows = [
        ("model", clean(spec.name)),
        *([("about", clean(spec.description))] if spec.description else []),
        ("certificate", f"sha256:{certificate.digest}"),
        *((name.lower(), value) for name, value in _evaluated(run)),
        (started(run).lower(), f"{_times(run)}, it took {duration(run.end.duration_milliseconds)}"),
        ("image", f"{clean(run.image.reference)}\n  sha256:{run.image.config}"),
        ("command", clean(" ".join(spec.command))),
        *(
            (
                f"input {clean(item.name)}",
                f"{clean(item.uri)}\n  sha256:{item.content_digest}"
                + (f"\n  {_records(item.records)}" if item.records else ""),
            )
            for item in run.inputs
        ),
        *((clean(f.path), f"{size(f.size)}\n  sha256:{f.sha256}") for f in files[:_ROWS]),
    ]
    if (more := len(files) - _ROWS) > 0:
        rows.append(("", f"… and {more} more files"))
    if run.end.metrics is not None:
        rows += [
            (f"{clean(name, 40)} *", clean(value)) for name, value in run.end.metrics.values.items()
        ]
    width = min(24, max(len(name) for name, _ in rows))
    lines = []
    for name, value in rows:
        first, *others = value.split("\n")
        lines.append(f"  {name:<{width}}  {first}")
        lines += [f"  {'':<{width}}{other}" for other in others]
    if run.end.metrics is not None:
        lines.append(f"  {'':<{width}}  * as reported by the {kind(run)}")
    return "\n".join(lines)


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as a few lines for a terminal."""
    return "\n".join(
        [
            f"VERIFIED  {clean(verdict.run.job.spec.name)}  assurance: {verdict.assurance}",
            f"  {MEANING[verdict.assurance]}",
            "",
            "Proved:",
            *(f"  + {clean(sentence)}" for sentence in verdict.proved),
            "Not proved:",
            *(f"  - {clean(sentence)}" for sentence in verdict.not_proved),
            *(["Layer by layer:", layers.text(verdict)] if verdict.boot.measured else []),
        ]
    )


def kind(run: Run) -> str:
    """Return what a run is, in a word."""
    return "training" if run.job.spec.evaluation is None else "evaluation"


def started(run: Run) -> str:
    """Return what was done in a run, in a word."""
    return "Trained" if run.job.spec.evaluation is None else "Evaluated"


def _evaluated(run: Run) -> list[tuple[str, str]]:
    if run.job.spec.evaluation is None:
        return []
    asked, _ = evaluation.model(run)
    return [
        ("Evaluates", f"the model of sha256:{asked.certificate}"),
        ("Result", clean(evaluation.says(run), 2000)),
    ]


def _tree(certificate: Certificate, run: Run) -> str:
    """Draw what a run was made from, as far as its certificate alone tells."""
    linked = {link.input.name: link.certificate for link in links.links(run)}
    parts = [f"image  {clean(run.image.reference, 80)}  sha256:{run.image.config[:16]}…"]
    parts += [
        f"{clean(item.name)} ← certificate sha256:{linked[item.name]}"
        if item.name in linked
        else f"{clean(item.name)}  {clean(item.uri, 80)}  sha256:{item.content_digest[:16]}…"
        for item in run.inputs
    ]
    lines = [f"{clean(run.job.spec.name)}  certificate sha256:{certificate.digest[:16]}…"]
    lines += [f"├─ {part}" for part in parts[:-1]]
    return "\n".join([*lines, f"└─ {parts[-1]}"])


def _drawn(behind: "Node") -> str:
    from aicert import lineage

    return lineage.tree(behind)


def _status(verdict: Verdict | None) -> str:
    if verdict is None:
        return "> **Not verified.** This page repeats what the certificate says; check it (below)."
    return f"> **Verified, assurance `{verdict.assurance}`** — {MEANING[verdict.assurance]}."


def _records(held: Records) -> str:
    return f"{count(held.count, 'record')} ({held.method}) can be proved to be there, or others not"


def _times(run: Run) -> str:
    return f"{format_time(run.job.started_on)} to {format_time(run.outputs.finished_on)}"
