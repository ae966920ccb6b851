"""What a caller asks of a step, read strictly before anything is done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aicert.errors import Error
from aicert.events import UUID
from aicert.reader import Reader

NONCE_BYTES = 32


class RequestError(Error):
    """The request is not one that the API has."""

    code = "api.request"


@dataclass(frozen=True, slots=True)
class Asked:
    """The body of a request for a step; each step has a part of the fields.

    `spec` is the spec as it was sent; `base` the folder that its relative paths start from, which
    must be absolute; `nonce` is for the baseline quote; `secrets` are those of inputs and image.
    """

    spec: Any = None
    base: Path | None = None
    nonce: bytes | None = None
    secrets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, step: str, body: Any) -> "Asked":
        """Read the body of a request for a step.

        Raises:
            RequestError: it is not one for this step.
        """
        reader = Reader(body, "body", RequestError)
        asked = cls()
        if step == "job":
            base = reader.text("base") if reader.has("base") else None
            if base is not None and (not base.startswith("/") or "\0" in base):
                raise RequestError("body.base: is not an absolute path", got=base)
            asked = cls(
                spec=reader.raw("spec"),
                base=None if base is None else Path(base),
                nonce=reader.octets("nonce", NONCE_BYTES) if reader.has("nonce") else None,
            )
        elif step in ("fetch", "image") and reader.has("secrets"):
            asked = cls(secrets=_secrets(reader.raw("secrets")))
        reader.done()
        return asked


def check_run(run: str) -> str:
    """Return the id of a run, which is a UUID in lower case.

    Raises:
        RequestError: it is not.
    """
    if not UUID.fullmatch(run):
        raise RequestError("the id of the run is no UUID", got=run[:80])
    return run


def _secrets(value: Any) -> Mapping[str, Mapping[str, Any]]:
    # Only types are told of: an error shows no secret.
    if type(value) is not dict or any(type(item) is not dict for item in value.values()):
        raise RequestError("body.secrets: is not an object of objects, one for each input")
    return value
