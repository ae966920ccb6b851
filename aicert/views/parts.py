"""What the bills of materials have in common: the parts of a run, and what is known of each."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from aicert.events import Input
from aicert.log import Run

Role = Literal["code", "data", "model"]

_IPV6 = re.compile(r"[a-z][a-z0-9+.-]*://\[[0-9a-fA-F:.]+\]")
_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")
_CODE = re.compile(r"^git\+|\.(?:py|ipynb|sh|jl|[rR]|lua|js|ts|c|cc|cpp|cu|go|rs|java)(?:[@?#]|$)")
_MODEL = re.compile(r"^hf://(?!datasets/)")


@dataclass(frozen=True, slots=True)
class Part:
    """An input, its role, and the digest of its certificate (hex), where it is linked to one."""

    input: Input
    target: str
    role: Role
    certificate: str | None


def parts(run: Run) -> list[Part]:
    """Return the inputs with their roles, which are told from what was measured, and guessed.

    A model is what is evaluated, what is certified, and what comes from a model repository. Code is
    what comes from git or has a program's name, and the input with the first path that the command
    names. Data is all else.
    """
    asked = run.job.spec.inputs
    evaluated = run.job.spec.evaluation and run.job.spec.evaluation.model
    named = (
        item.name
        for word in run.start.command
        for item in asked
        if word == item.target or word.startswith(f"{item.target}/")
    )
    first = next(named, None)
    found = []
    for item, got in zip(asked, run.inputs, strict=True):
        role: Role = "data"
        if item.certificate or item.name == evaluated or _MODEL.match(got.uri):
            role = "model"
        elif item.name == first or _CODE.search(got.uri):
            role = "code"
        found.append(Part(got, item.target, role, item.certificate))
    return found


def certificate_uri(digest: str) -> str:
    """Return the name of a certificate as a URI; `digest` in hex."""
    return f"urn:aicert:certificate:sha256:{digest}"


def uri(text: str) -> str:
    """Return somebody else's URI with everything encoded that no URI may hold (RFC 3986, 2)."""
    host = _IPV6.match(text)
    head = host[0] if host else ""
    rest = quote(text[len(head) :], safe=":/?#@!$&'()*+,;=-._~%")
    first, *others = rest.split("#")
    return head + _PERCENT.sub("%25", "#".join([first, "%23".join(others)] if others else [first]))


DECLARED = (
    "the name and description, and which inputs were chosen, are the builder's words; metrics are "
    "what the training reported; times are the machine's clock; whether an input is code, data or "
    "a model is inferred from its address, the command and its certificate"
)
"""What a bill of materials holds that nobody measured."""

MEASURED = (
    "every digest, size and path: the TPM signed them; verify the certificate to know which TPM, "
    "and what that is worth"
)
"""What was measured."""
