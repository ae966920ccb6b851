"""The card as a page: one HTML file that loads nothing, for a phone, a desk and paper.

It holds the certificate, and a program that checks it, and dropped files, in the browser. The
content security policy allows that program and the style sheet by their digests, and nothing else:
no request, no other script, no frame. Every text of a certificate goes through `_text` and nothing
else; the file's only other content is ours.
"""

import base64
import hashlib
import html
from importlib.resources import files

from aicert.assurance import MEANING, Assurance
from aicert.card import LIMITS, kind, started, vouches
from aicert.certificate import Certificate
from aicert.events import format_time
from aicert.log import Run, parse_run
from aicert.verify import Verdict
from aicert.views.parts import parts
from aicert.words import clean, count, duration, size

_ROWS = 200
_BOXES = 6

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
_MARKS = {
    "good": '<path d="M16 2l11 4v8c0 8-5 13-11 16C10 27 5 22 5 14V6z" fill="#11703f"/>'
    '<path d="M10 16l4.5 4.5L23 12" fill="none" stroke="#fff" stroke-width="3"/>',
    "warn": '<path d="M16 3l14 25H2z" fill="#c98500"/>'
    '<path d="M16 12v8M16 23v2" stroke="#fff" stroke-width="3"/>',
}


def page(certificate: Certificate, verdict: Verdict | None = None) -> str:
    """Return the page; `verdict` where the certificate was verified just now.

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
    about = f'<p class="about" data-measured>{_text(spec.description)}</p>'
    sections = [
        _facts(certificate, run, verdict),
        _section("What it was made from", _lineage(run)),
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
<title>{_text(spec.name)} · AI model ID card</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<div><p class="kind">AI model ID card</p><h1 data-measured>{_text(spec.name)}</h1>
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
    root = _text(vouches(certificate, verdict))
    rows = [
        ("What it is", f"{count(len(outputs.files), 'file')}, {size(outputs.size)}"),
        ("Made from", f"{count(len(run.inputs), 'input')}, one image, one command"),
        (started(run), f"{run.outputs.finished_on:%d %B %Y}".lstrip("0")),
        ("It took", duration(run.end.duration_milliseconds)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    name = "Who vouches" if verdict else "Who is said to vouch"
    cells += f'<div class="wide"><dt>{name}</dt><dd>{root}</dd></div>'
    return f"<section><dl>{cells}</dl></section>\n"


def _lineage(run: Run) -> str:
    """Return the diagram: inputs above, the run in the middle, the model below."""
    shown = [(item.input.name, _about(item.role, item.input.size)) for item in parts(run)]
    if (more := len(shown) - _BOXES) > 0:
        shown = [*shown[: _BOXES - 1], (f"{more + 1} more inputs", "listed below")]
    columns = min(len(shown), 3) or 1
    width = (360 - 8 * (columns - 1)) / columns
    boxes, arrows, y = [], [], 0.0
    for number, (name, about) in enumerate(shown):
        x, y = (number % columns) * (width + 8), (number // columns) * 56.0
        boxes.append(_box("input", x, y, width, 46, [("name", name), ("small", about)]))
    start = y + 46 if shown else 0
    if shown:
        arrows.append(_arrow(start))
        start += 26
    image = run.image.reference
    command = " ".join(run.start.command)
    training = [("name", kind(run)), ("small", command), ("small", f"in {image}")]
    boxes.append(_box("run", 0, start, 360, 62, training))
    arrows.append(_arrow(start + 62))
    outputs = run.outputs.manifest
    made = f"{count(len(outputs.files), 'file')}, {size(outputs.size)}"
    boxes.append(
        _box("made", 60, start + 88, 240, 46, [("name", run.job.spec.name), ("small", made)])
    )
    return (
        f'<svg class="lineage" viewBox="-1 -1 362 {start + 136:g}" role="img" '
        f'aria-label="Inputs, training, model">{"".join(arrows)}{"".join(boxes)}</svg>'
    )


def _about(role: str, octets: int) -> str:
    return f"{role}, {size(octets)}"


def _box(
    kind: str, x: float, y: float, width: float, height: float, lines: list[tuple[str, str]]
) -> str:
    # A letter is about 6.4 units wide; what does not fit is cut, and whole in the title.
    room = int((width - 16) / 6.4)
    middle = x + width / 2
    texts = "".join(
        f'<text class="{style}" x="{middle:g}" y="{y + 20 + 16 * number:g}" text-anchor="middle">'
        f"{_text(clean(text, room))}</text>"
        for number, (style, text) in enumerate(lines)
    )
    whole = _text(" · ".join(text for _, text in lines))
    return (
        f'<g class="{kind}"><title>{whole}</title><rect x="{x:g}" y="{y:g}" width="{width:g}" '
        f'height="{height:g}" rx="7"/>{texts}</g>'
    )


def _arrow(y: float) -> str:
    return f'<path d="M180 {y:g}v20"/><path class="head" d="M175 {y + 18:g}h10l-5 8z"/>'


def _worth(verdict: Verdict | None) -> str:
    reached = None if verdict is None else verdict.assurance
    steps = []
    for level in Assurance:
        kind = "here" if level is reached else "on" if reached and level < reached else ""
        steps.append(f'<li class="{kind}">{level}</li>' if kind else f"<li>{level}</li>")
    words = (
        "That depends on who vouches for the machine's TPM. <code>aicert verify</code> says."
        if reached is None
        else f"<strong>{reached}</strong>: {MEANING[reached]}."
    )
    return f'<ol class="scale">{"".join(steps)}</ol><p>{words}</p>'.replace(
        "<p>", '<p class="word">'
    )


def _limits(verdict: Verdict | None) -> str:
    limits = LIMITS if verdict is None else verdict.not_proved
    return f'<ul class="limits">{"".join(f"<li>{_text(limit)}</li>" for limit in limits)}</ul>'


_CHECK = """<p>With the certificate, the files, and <code>aicert</code> from its own source, not
from whoever gave you this model; on any computer, trusting neither this page nor a server:</p>
<pre>aicert verify certificate.json --model FOLDER</pre>
<div id="self" class="result" role="status"></div>
<div id="drop"><p>Drop the model's files or its folder here to compare them with the certificate.
Nothing leaves your computer.</p>
<input type="file" id="pick" multiple><label class="pick" for="pick">Choose files</label>
<input type="file" id="pick-folder" webkitdirectory><label class="pick" for="pick-folder">Choose
a folder</label>
<div id="files" class="result" role="status"></div></div>"""


def _details(run: Run, certificate: Certificate, verdict: Verdict | None) -> str:
    outputs = run.outputs.manifest
    made_from = [("image", run.image.reference, run.image.config, "")]
    made_from += [
        (part.input.name, part.input.uri, part.input.content_digest, size(part.input.size))
        for part in parts(run)
    ]
    content = _table(
        ("made from", "size"),
        [
            (f"<strong>{_text(name)}</strong> {_measured(uri)}{_hex(digest)}", amount)
            for name, uri, digest, amount in made_from
        ],
    )
    content += _table(
        ("file of the model", "size"),
        [
            (f"{_measured(file.path)}{_hex(file.sha256)}", size(file.size))
            for file in outputs.files[:_ROWS]
        ],
    )
    if (more := len(outputs.files) - _ROWS) > 0:
        content += f'<p class="note">… and {more} more; the page checks them too.</p>'
    if run.end.metrics is not None and run.end.metrics.values:
        content += _table(
            (f"metric, as reported by the {kind(run)}", "value"),
            [(_text(name), _text(value)) for name, value in run.end.metrics.values.items()],
            ' class="pairs"',
        )
    command = clean(" ".join(run.start.command))
    rows = [
        ("Command", f"<code data-measured>{html.escape(command)}</code>"),
        ("Seed", str(run.job.spec.seed)),
        ("Network during the training", _text(run.start.network)),
        ("Started", format_time(run.job.started_on)),
        ("Finished", format_time(run.outputs.finished_on)),
        ("Run", f'<span class="hex">{run.job.run}</span>'),
        ("Root digest (OpenSSF Model Signing)", f'<span class="hex">{outputs.root}</span>'),
        ("Attestation key", f'<span class="hex">{_text(certificate.keyid)}</span>'),
    ]
    content += _table(("the run", ""), rows, ' class="pairs"')
    if verdict is not None:
        proved = "".join(f"<li>{_text(sentence)}</li>" for sentence in verdict.proved)
        content = f'<ul class="proofs">{proved}</ul>{content}'
    return _section("Details", content, ' class="long"')


def _measured(value: str) -> str:
    return f"<code data-measured>{_text(value)}</code>"


def _hex(digest: str) -> str:
    return f'<span class="hex" data-measured>{digest}</span>'


def _table(head: tuple[str, str], rows: list[tuple[str, str]], kind: str = "") -> str:
    cells = "".join(f'<tr><td>{a}</td><td class="size">{b}</td></tr>' for a, b in rows)
    names = f"<thead><tr><th>{head[0]}</th><th>{head[1]}</th></tr></thead>"
    return f"<table{kind}>{names}{cells}</table>"
