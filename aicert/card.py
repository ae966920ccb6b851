"""The AI model ID card: what a certificate says, for people.

A card is a view. It proves nothing by itself, says so, and gives the command that does. All text
in a certificate is somebody else's: it is made harmless before it is shown.
"""

import re
import unicodedata
from collections.abc import Iterable

from aicert.certificate import Certificate
from aicert.events import format_time
from aicert.log import Run, parse_run
from aicert.verify import Assurance, Verdict

_ROWS = 50

_MEANING = {
    Assurance.SIMULATED: "software TPM: shows how it works, proves nothing against its operator",
    Assurance.HARDWARE: "hardware TPM: a pinned vendor or cloud root vouches for the key",
    Assurance.MEASURED: "measured boot: the machine ran a published image",
    Assurance.CONFIDENTIAL: "confidential VM: the TPM is bound to a CPU attestation report",
}


def clean(text: object, limit: int = 300) -> str:
    """Return `text` on one line without control or format characters, cut to `limit`."""
    shown = "".join(
        "�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c
        for c in str(text)[: limit + 1]
    )
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(milliseconds: int) -> str:
    """Return a duration in the largest fitting units."""
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def markdown(certificate: Certificate, verdict: Verdict | None = None) -> str:
    """Return the card in Markdown; `verdict` where the certificate was verified just now."""
    run = parse_run(certificate.records)
    spec = run.job.spec
    lines = [
        f"# {_md(spec.name)}",
        "",
        *([_md(spec.description), ""] if spec.description else []),
        _status(verdict),
        "",
        "## What it is",
        "",
        *_table(
            ("", ""),
            [
                ("Certificate", f"`sha256:{certificate.digest}`"),
                ("Run", f"`{run.job.run}`"),
                ("Trained", f"{_times(run)} (the machine's clock)"),
                ("Training took", duration(run.end.duration_milliseconds)),
                ("Files", f"{len(run.outputs.manifest.files)}, {size(run.outputs.manifest.size)}"),
                ("Root digest", f"`{run.outputs.manifest.root}`"),
            ],
        ),
        "",
        "## What it was made from",
        "",
        *_table(
            ("part", "where it came from", "SHA-256"),
            [
                ("image", _code(run.image.reference), f"`{run.image.config}`"),
                *(
                    (_md(item.name), _code(item.uri), f"`{item.content_digest}`")
                    for item in run.inputs
                ),
            ],
        ),
        "",
        f"Command: {_code(' '.join(spec.command))}",
        "",
        "## Files",
        "",
        *_table(
            ("file", "size", "SHA-256"),
            [
                (_code(file.path), size(file.size), f"`{file.sha256}`")
                for file in run.outputs.manifest.files[:_ROWS]
            ],
        ),
    ]
    if (more := len(run.outputs.manifest.files) - _ROWS) > 0:
        lines += ["", f"… and {more} more."]
    if run.end.metrics is not None:
        lines += [
            "",
            "## Metrics, as reported by the training",
            "",
            *_table(
                ("metric", "value"),
                [(_md(name), _md(value)) for name, value in run.end.metrics.values.items()],
            ),
        ]
    if verdict is not None:
        lines += [
            "",
            "## What this proves",
            "",
            *(f"- {_md(sentence)}" for sentence in verdict.proved),
            "",
            "## What it does not prove",
            "",
            *(f"- {_md(sentence)}" for sentence in verdict.not_proved),
        ]
    lines += [
        "",
        "## Check it yourself",
        "",
        "```",
        "pip install aicert",
        "aicert verify certificate.json --model FOLDER",
        "```",
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
        ("trained", f"{_times(run)}, {duration(run.end.duration_milliseconds)} of training"),
        ("image", f"{clean(run.image.reference)}\n  sha256:{run.image.config}"),
        ("command", clean(" ".join(spec.command))),
        *(
            (f"input {clean(item.name)}", f"{clean(item.uri)}\n  sha256:{item.content_digest}")
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
        lines.append(f"  {'':<{width}}  * as reported by the training")
    return "\n".join(lines)


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict as a few lines for a terminal."""
    return "\n".join(
        [
            f"VERIFIED  {clean(verdict.run.job.spec.name)}  assurance: {verdict.assurance}",
            f"  {_MEANING[verdict.assurance]}",
            "",
            "Proved:",
            *(f"  + {clean(sentence)}" for sentence in verdict.proved),
            "Not proved:",
            *(f"  - {clean(sentence)}" for sentence in verdict.not_proved),
        ]
    )


def _status(verdict: Verdict | None) -> str:
    if verdict is None:
        return "> **Not verified.** This page repeats what the certificate says; check it (below)."
    return f"> **Verified, assurance `{verdict.assurance}`** — {_MEANING[verdict.assurance]}."


def _times(run: Run) -> str:
    return f"{format_time(run.job.started_on)} to {format_time(run.outputs.finished_on)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _md(value: object) -> str:
    """Make text harmless in Markdown: no markup, no HTML, no links, no table breaks."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&@])", r"\\\1", clean(value)).replace("://", ":\\//")


def _code(value: object) -> str:
    """Show text as code, in a fence longer than any run of backticks in it."""
    shown = clean(value).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
