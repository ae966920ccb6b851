"""The card as a page: one HTML file that loads nothing, for a phone, a desk and paper.

It holds the certificate, and a program that checks it, and dropped files, in the browser. The
content security policy allows that program and the style sheet by their digests, and nothing else:
no request, no other script, no frame. Every text of a certificate goes through `_text` and nothing
else; the file's only other content is ours.

An element with `data-is` shows what the program reads from the log under that name, and is held
against it.
"""

import base64
import hashlib
import html
from importlib.resources import files
from typing import TYPE_CHECKING

from aicert import evaluation, links
from aicert.assurance import Assurance
from aicert.card import CHECK, LIMITS, kind, started, vouches
from aicert.certificate import Certificate
from aicert.events import format_time
from aicert.log import Run, parse_run
from aicert.verify import Verdict
from aicert.views.parts import parts
from aicert.words import clean, count, duration, size

if TYPE_CHECKING:
    from aicert.lineage import Node

_ROWS = 200
_BOXES = 6
_SHOWN = 4

_SEALS = {
    None: ("warn", "Not verified yet", "This page repeats what the certificate says."),
    Assurance.SIMULATED: (
        "warn",
        "Verified, but only a software TPM vouches",
        "It shows how everything is bound together and proves nothing against whoever ran it.",
    ),
    Assurance.HARDWARE: (
        "good",
        "Verified: a hardware TPM vouches",
        "Nobody but an administrator of that machine could have made it say anything else.",
    ),
    Assurance.MEASURED: (
        "good",
        "Verified: a hardware TPM and a published machine image vouch",
        "Not even an administrator of that machine could have made it say anything else.",
    ),
    Assurance.CONFIDENTIAL: (
        "good",
        "Verified: a confidential machine vouches",
        "The TPM itself is bound to the processor.",
    ),
}
_WORTH = {
    Assurance.SIMULATED: "a program, which proves nothing against who ran it",
    Assurance.HARDWARE: "a TPM that a known maker or cloud vouches for",
    Assurance.MEASURED: "and it booted a published system",
    Assurance.CONFIDENTIAL: "and the processor vouches for the TPM",
}
_MARKS = {
    "good": '<path d="M16 2l11 4v8c0 8-5 13-11 16C10 27 5 22 5 14V6z" fill="currentColor"/>'
    '<path d="M10 16l4.5 4.5L23 12" fill="none" stroke="#fff" stroke-width="3"/>',
    "warn": '<path d="M16 3l14 25H2z" fill="currentColor"/>'
    '<path d="M16 12v8M16 23v2" stroke="#fff" stroke-width="3"/>',
}


def page(
    certificate: Certificate, verdict: Verdict | None = None, behind: "Node | None" = None
) -> str:
    """Return the page.

    Args:
        certificate: what it is about.
        verdict: of that certificate, where it was verified just now.
        behind: its lineage, where that was followed.

    Raises:
        ModuleNotFoundError: `segno`, which draws the QR code, is not installed.
    """
    run = parse_run(certificate.records)
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    spec = run.job.spec
    held = base64.b64encode(certificate.encode()).decode()
    title = f"AI {'model' if spec.evaluation is None else 'evaluation'} ID card"
    about = f'<p class="about" data-is="description">{_text(spec.description)}</p>'
    sections = [
        _facts(certificate, run, verdict),
        _evaluations(verdict),
        _section("What it was made from", _diagram(run, behind) + _behind(run, behind)),
        _section("How much that is worth", _worth(verdict)),
        _section("What this does not prove", _limits(verdict)),
        _section("Check it yourself", _CHECK),
        _details(run, certificate, verdict),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{_text(spec.name)} · {title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<div><p class="kind">{title}</p><h1 data-is="name">{_text(spec.name)}</h1>
{about if spec.description else ""}</div>
<div class="qr">{_qr(certificate.digest)}</div>
</header>
{_seal(verdict)}
{"".join(sections)}
<footer>Certificate <span class="hex">sha256:<span id="digest">{certificate.digest}</span></span>
<br>Made by aicert. A card proves nothing by itself; the certificate does.</footer>
</main>
<script type="text/plain" id="certificate">{held}</script>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return (files("aicert.views") / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return the source expression that allows this inline text (CSP Level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: object) -> str:
    return html.escape(clean(value), quote=True)


def _qr(digest: str) -> str:
    import segno

    code = segno.make(f"sha256:{digest}", error="m", micro=False)
    drawn: str = code.svg_inline(border=2, omitsize=True, svgclass=None, lineclass=None)
    label = 'role="img" aria-label="QR code of the certificate\'s digest"'
    return drawn.replace("<svg", f"<svg {label}", 1)


def _seal(verdict: Verdict | None) -> str:
    kind, title, about = _SEALS[None if verdict is None else verdict.assurance]
    return (
        f'<div class="seal {kind}"><svg viewBox="0 0 32 32" aria-hidden="true">{_MARKS[kind]}</svg>'
        f"<p><strong>{title}</strong><span>{about}</span></p></div>"
    )


def _section(title: str, content: str, kind: str = "") -> str:
    return f"<section{kind}><h2>{title}</h2>{content}</section>\n"


def _facts(certificate: Certificate, run: Run, verdict: Verdict | None) -> str:
    outputs = run.outputs.manifest
    made = f"{count(len(outputs.files), 'file')}, {size(outputs.size)}"
    rows = [
        ("What it is", made),
        ("Made from", f"{count(len(run.inputs), 'input')}, one image, one command"),
        (started(run), f"{run.outputs.finished_on:%d %B %Y}".lstrip("0")),
        ("It took", duration(run.end.duration_milliseconds)),
    ]
    wide = []
    if run.job.spec.evaluation is not None:
        asked, _ = evaluation.model(run)
        rows[0] = ("What it is", "an evaluation of a model")
        of = f'<span class="hex">sha256:<span data-is="evaluates">{asked.certificate}</span></span>'
        wide += [("Evaluates the model of certificate", of), ("Result", _result(run))]
    elif run.end.metrics is not None and run.end.metrics.values:
        wide.append(("The training reports", _metrics(run)))
    name = "Who vouches" if verdict else "Who is said to vouch"
    wide.append((name, _text(vouches(certificate, verdict))))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    cells += "".join(
        f'<div class="wide"><dt>{name}</dt><dd>{value}</dd></div>' for name, value in wide
    )
    return f"<section><dl>{cells}</dl></section>\n"


def _metrics(run: Run) -> str:
    values = {} if run.end.metrics is None else run.end.metrics.values
    shown = [
        f"{_text(name)} {_text(evaluation.shown(got))}"
        for name, got in list(values.items())[:_SHOWN]
    ]
    more = [f"{len(values) - _SHOWN} more"] if len(values) > _SHOWN else []
    return " · ".join([*shown, *more])


def _result(run: Run) -> str:
    """Return what an evaluation came to: a badge, the bar, the metrics."""
    found = evaluation.result(run)
    assert found is not None
    kind = {"PASSED": "good", "FAILED": "bad", "WARNED": "warn"}[found.word]
    word = {"PASSED": "passed", "FAILED": "failed", "WARNED": "no bar was set"}[found.word]
    bars = ", ".join(_text(bar) for bar in found.failed or found.passed)
    return f'<span class="badge {kind}">{word}</span> {bars}<br><small>{_metrics(run)}</small>'


def _evaluations(verdict: Verdict | None) -> str:
    """Return the evaluations that were verified beside the certificate."""
    if verdict is None or not verdict.evaluations:
        return ""
    items = "".join(
        f"<li><strong>{_text(one.run.job.spec.name)}</strong> {_chip(one)}<br>{_result(one.run)}"
        f'<br><span class="hex">sha256:{one.certificate_digest}</span></li>'
        for one in verdict.evaluations
    )
    return _section("Certified evaluations", f'<ul class="list">{items}</ul>')


def _chip(verdict: Verdict) -> str:
    return f'<span class="chip">{verdict.assurance}</span>'


# -- lineage ---------------------------------------------------------------------------------------


def _diagram(run: Run, behind: "Node | None") -> str:
    """Return the diagram: inputs above, the run in the middle, what it made below."""
    parents = {} if behind is None else {edge.name: edge.node for edge in behind.edges}
    linked = {link.input.name for link in links.links(run)}
    shown = []
    for item in parts(run):
        name, about = item.input.name, f"{item.role}, {size(item.input.size)}"
        if name in linked:
            parent = parents.get(name)
            about = "certified" if parent is None else f"← {parent.verdict.run.job.spec.name}"
        shown.append(("parent" if name in linked else "input", name, about))
    shown.sort(key=lambda item: item[0] == "input")
    if (more := len(shown) - _BOXES) > 0:
        shown = [*shown[: _BOXES - 1], ("input", f"{more + 1} more inputs", "listed below")]
    columns = 2 if len(shown) == 4 else min(len(shown), 3) or 1
    width = (360 - 8 * (columns - 1)) / columns
    start = -(-len(shown) // columns) * 56 + 16 if shown else 0
    drawn = []
    for number, (style, name, about) in enumerate(shown):
        x, y = (number % columns) * (width + 8), number // columns * 56
        drawn.append(_box(style, x, y, width, 46, [("name", name), ("small", about)]))
        middle = x + width / 2
        if number + columns >= len(shown):  # there is no box below it
            drawn.append(_arrow(middle, y + 46, start))
        else:
            drawn.append(f'<path d="M{middle:g} {y + 46:g}v10"/>')
    command = " ".join(run.start.command)
    lines = [("name", kind(run)), ("small", command), ("small", f"in {run.image.reference}")]
    drawn.append(_box("run", 0, start, 360, 62, lines))
    drawn.append(_arrow(180, start + 62, start + 88))
    outputs = run.outputs.manifest
    made = f"{count(len(outputs.files), 'file')}, {size(outputs.size)}"
    lines = [("name", run.job.spec.name), ("small", made)]
    drawn.append(_box("made", 60, start + 88, 240, 46, lines))
    return (
        f'<svg class="lineage" viewBox="-1 -1 362 {start + 136:g}" role="img" '
        f'aria-label="Inputs, {kind(run)}, outputs">{"".join(drawn)}</svg>'
    )


def _box(
    style: str, x: float, y: float, width: float, height: float, lines: list[tuple[str, str]]
) -> str:
    # A letter is about 6.4 units wide; what does not fit is cut, and whole in the title.
    room = int((width - 16) / 6.4)
    middle = x + width / 2
    texts = "".join(
        f'<text class="{kind_of}" x="{middle:g}" y="{y + 20 + 16 * number:g}" text-anchor="middle">'
        f"{_text(clean(text, room))}</text>"
        for number, (kind_of, text) in enumerate(lines)
    )
    whole = _text(" · ".join(text for _, text in lines))
    return (
        f'<g class="{style}"><title>{whole}</title><rect x="{x:g}" y="{y:g}" width="{width:g}" '
        f'height="{height:g}" rx="7"/>{texts}</g>'
    )


def _arrow(x: float, top: float, bottom: float) -> str:
    line = f'<path d="M{x:g} {top:g}V{bottom - 6:g}"/>'
    return f'{line}<path class="head" d="M{x - 5:g} {bottom - 8:g}h10l-5 8z"/>'


def _behind(run: Run, behind: "Node | None") -> str:
    """Return the certificates behind the inputs: those that were followed, or their digests."""
    linked = links.links(run)
    if not linked:
        return ""
    if behind is None:
        items = "".join(
            f"<li><strong>{_text(link.input.name)}</strong> is certified<br>"
            f'<span class="hex">sha256:<span data-is="linked {number}">{link.certificate}</span>'
            "</span></li>"
            for number, link in enumerate(linked)
        )
        return (
            f'<ul class="list tree">{items}</ul><p class="note">These certificates were not looked '
            "at here: <code>aicert verify --recursive</code> does.</p>"
        )
    drawn: set[str] = set()

    def branch(node: "Node") -> str:
        parents = {edge.name: edge for edge in node.edges}
        items = []
        for item in node.verdict.run.inputs:
            edge = parents.get(item.name)
            if edge is None:
                items.append(f"<li>{_text(item.name)} <code>{_text(item.uri)}</code></li>")
            elif edge.node is None:
                items.append(
                    f'<li><strong>{_text(item.name)}</strong> <span class="badge bad">not found'
                    f'</span><br><span class="hex">sha256:{edge.certificate}</span></li>'
                )
            else:
                items.append(leaf(item.name, edge.node))
        return f'<ul class="list tree">{"".join(items)}</ul>'

    def leaf(name: str, node: "Node") -> str:
        again = node.name in drawn
        drawn.add(node.name)
        title = f"<strong>{_text(name)}</strong> ← {_text(node.verdict.run.job.spec.name)}"
        below = "<br><small>as above</small>" if again else branch(node)
        hexed = f'<br><span class="hex">sha256:{node.name}</span>'
        return f"<li>{title} {_chip(node.verdict)}{hexed}{below}</li>"

    title = f"{_text(run.job.spec.name)} {_chip(behind.verdict)}"
    return f'<p class="word top"><strong>{title}</strong></p>{branch(behind)}'


# -- what it is worth ------------------------------------------------------------------------------


def _worth(verdict: Verdict | None) -> str:
    reached = None if verdict is None else verdict.assurance
    steps = []
    for level in Assurance:
        style = "here" if level is reached else "on" if reached and level < reached else ""
        words = f"<strong>{level}</strong> <span>{_WORTH[level]}</span>"
        steps.append(f'<li class="{style}">{words}</li>' if style else f"<li>{words}</li>")
    open_question = (
        ""
        if verdict
        else '<p class="word">Which of these it is depends on who vouches for the '
        "machine's TPM. <code>aicert verify</code> says.</p>"
    )
    return f'<ol class="scale">{"".join(steps)}</ol>{open_question}'


def _limits(verdict: Verdict | None) -> str:
    limits = LIMITS if verdict is None else verdict.not_proved
    return f'<ul class="limits">{"".join(f"<li>{_text(limit)}</li>" for limit in limits)}</ul>'


_CHECK = f"""<p>With the certificate, the files, and <code>aicert</code> from its own source, not
from whoever gave you this model; on any computer, trusting neither this page nor a server:</p>
<pre>{CHECK}</pre>
<div id="self" class="result" role="status"></div>
<div id="drop"><p>Drop the model's files or its folder here to compare them with the certificate.
Nothing leaves your computer.</p>
<input type="file" id="pick" multiple><label class="pick" for="pick">Choose files</label>
<input type="file" id="pick-folder" webkitdirectory><label class="pick" for="pick-folder">Choose
a folder</label>
<div id="files" class="result" role="status"></div></div>"""


# -- details ---------------------------------------------------------------------------------------


def _details(run: Run, certificate: Certificate, verdict: Verdict | None) -> str:
    outputs = run.outputs.manifest
    image = _is(
        "image", f"<strong>image</strong> {_code(run.image.reference)}{_hex(run.image.config)}"
    )
    made_from = [(image, "")]
    for number, item in enumerate(run.inputs):
        what = f"<strong>{_text(item.name)}</strong> {_code(item.uri)}{_hex(item.content_digest)}"
        held = item.records
        records = (
            ""
            if held is None
            else _is(
                f"records {number}",
                f"{count(held.count, 'record')}, {held.method}: each can be proved "
                "to be there, and others not",
            )
        )
        made_from.append((_is(f"input {number}", what) + records, size(item.size)))
    content = _table(("made from", "size"), made_from)
    content += _table(
        (f"file of the {'model' if run.job.spec.evaluation is None else 'results'}", "size"),
        [
            (_is(f"file {number}", f"{_code(file.path)}{_hex(file.sha256)}"), size(file.size))
            for number, file in enumerate(outputs.files[:_ROWS])
        ],
    )
    if (more := len(outputs.files) - _ROWS) > 0:
        content += f'<p class="note">… and {more} more; the page checks them too.</p>'
    if run.end.metrics is not None and run.end.metrics.values:
        # In the order of canonical JSON, which is that of the program.
        values = sorted(
            run.end.metrics.values.items(), key=lambda item: item[0].encode("utf-16-be")
        )
        content += _table(
            (f"metric, as reported by the {kind(run)}", "value"),
            [
                (
                    _is(f"metric {number}", _text(name)),
                    _is(f"value {number}", _text(evaluation.shown(got))),
                )
                for number, (name, got) in enumerate(values)
            ],
            ' class="pairs"',
        )
    rows = [
        ("Command", _is("command", _text(" ".join(run.start.command)), "code")),
        ("Seed", _is("seed", str(run.job.spec.seed))),
        (f"Network during the {kind(run)}", _is("network", _text(run.start.network))),
        ("Started", _is("started", format_time(run.job.started_on))),
        ("Finished", _is("finished", format_time(run.outputs.finished_on))),
        ("Run", _is("run", run.job.run, 'span class="hex"')),
        ("Root digest (OpenSSF Model Signing)", _is("root", outputs.root, 'span class="hex"')),
        ("Attestation key", _is("key", _text(certificate.keyid), 'span class="hex"')),
    ]
    content += _table(("the run", ""), rows, ' class="pairs"')
    if verdict is not None:
        proved = "".join(f"<li>{_text(sentence)}</li>" for sentence in verdict.proved)
        content = f'<ul class="proofs">{proved}</ul>{content}'
    return _section("Details", content, ' class="long"')


def _is(name: str, content: str, tag: str = "div") -> str:
    """Return what the page's program looks up in the log under this name, and compares."""
    return f'<{tag} data-is="{name}">{content}</{tag.split()[0]}>'


def _code(value: str) -> str:
    return f"<code>{_text(value)}</code>"


def _hex(digest: str) -> str:
    return f'<span class="hex">{digest}</span>'


def _table(head: tuple[str, str], rows: list[tuple[str, str]], kind: str = "") -> str:
    cells = "".join(f'<tr><td>{a}</td><td class="size">{b}</td></tr>' for a, b in rows)
    names = f"<thead><tr><th>{head[0]}</th><th>{head[1]}</th></tr></thead>"
    return f"<table{kind}>{names}{cells}</table>"
