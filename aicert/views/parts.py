"""What the bills of materials have in common: the parts of a run, and what is known of each."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from aicert.events import Input
from aicert.log import Run

Role = Literal["code", "data"]

_IPV6 = re.compile(r"[a-z][a-z0-9+.-]*://\[[0-9a-fA-F:.]+\]")
_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Part:
    """An input and its role, which follows from the command."""

    input: Input
    target: str
    role: Role


def parts(run: Run) -> list[Part]:
    """Return the inputs with their roles: code where the command names a path in it, else data.

    The command was measured, so the role is not what somebody declared; but a program may load
    code from anywhere, so it is not what anybody measured either.
    """
    found = []
    for asked, got in zip(run.job.spec.inputs, run.inputs, strict=True):
        named = any(
            word == asked.target or word.startswith(f"{asked.target}/")
            for word in run.start.command
        )
        found.append(Part(got, asked.target, "code" if named else "data"))
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
    "what the training reported; times are the machine's clock; whether an input is code or data "
    "is inferred from the command"
)
"""What a bill of materials holds that nobody measured."""

MEASURED = (
    "every digest, size and path: the TPM signed them; verify the certificate to know which TPM, "
    "and what that is worth"
)
"""What was measured."""
