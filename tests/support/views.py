"""Certificates for tests of views: plausible ones, and ones whose every text is hostile."""

import json
from typing import Any

from aicert import events
from aicert.certificate import Certificate
from aicert.manifest import File
from tests.support.forger import Forger, run_events

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"`]]>&amp;|\\{{7*7}}${x}"
"""What a text looks like that wants to be more than a text, in any of our outputs."""


def made(**options: Any) -> Certificate:
    """A certificate that verifies under its own root."""
    return Forger(**options).certificate()


def hostile() -> Certificate:
    """A certificate of a run in which every text that a builder chooses is hostile."""
    return made(events=[_spoiled(event) for event in run_events(FILES)])


FILES = [
    File("a<b>&'\"`|$(x).bin", 3, "99" * 32),
    File("http://evil.example/".replace("//", "/") + "x", 4, "98" * 32),
    File("model.safetensors", 7, "97" * 32),
]


def _spoiled(event: events.Event) -> events.Event:
    content = json.loads(json.dumps(event.to_json()))
    for part in (content, content.get("spec", {})):
        for name in ("description", "reference", "image", "uri", "requested", "revision"):
            if isinstance(part.get(name), str) or (name == "revision" and name in part):
                part[name] = HOSTILE if name != "uri" else f"https://x/{HOSTILE}"
        if "command" in part:
            part["command"] = [HOSTILE, "/inputs/code/x.py"]
        for item in part.get("inputs", []):
            item["uri"] = HOSTILE
        if isinstance(part.get("metrics"), dict):
            part["metrics"]["values"] = {HOSTILE[:100]: HOSTILE, "loss": 0.5}
        if "environment" in part:
            part["environment"] = {HOSTILE: HOSTILE}
    return events.read_event(content)


def leaf(value: Any) -> list[str]:
    """Return every text in a JSON value."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in leaf(item)]
    if isinstance(value, list):
        return [text for item in value for text in leaf(item)]
    return [value] if isinstance(value, str) else []


def digests(certificate: Certificate) -> set[str]:
    """Return every SHA-256 that the certificate's log measured, and the certificate's own."""
    found = {certificate.digest}
    for record in certificate.records:
        found |= {text for text in leaf(record.event.to_json()) if _is_digest(text)}
    return found


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
