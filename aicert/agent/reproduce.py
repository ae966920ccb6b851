"""From a certificate to the spec that trains the same again."""

from pathlib import Path
from typing import Any

from aicert.agent import oci
from aicert.agent.fetch.source import split_revision
from aicert.agent.spec import Spec
from aicert.errors import Error
from aicert.log import Run

_SUFFIX = "-again"
_MAX_NAME = 63
_REVISIONED = ("git+", "hf:")
"""Sources whose revision names content for ever, and may be asked for."""


class OtherImageError(Error):
    """The image's name leads to another image than the one that the certificate names."""

    code = "reproduction.other-image"


class UnknownInputError(Error):
    """An input was given a place, and there is none by that name."""

    code = "reproduction.unknown-input"


def pinned(run: Run, *, places: dict[str, str] | None = None, image: str | None = None) -> Spec:
    """Return the spec of a run, with every input demanded by its digest.

    The name gets a suffix, so that the newest certificate by the old name stays the one that
    somebody made to have a model.

    Args:
        run: the run, of a certificate that was verified.
        places: URIs to have inputs from instead, by the input's name: the content must be the same.
        image: an image reference to use instead: it must lead to the same image.

    Raises:
        UnknownInputError: `places` names an input that there is not.
        SpecError: a place, or the image's reference, is malformed.
    """
    places = places or {}
    if unknown := sorted(places.keys() - {item.name for item in run.inputs}):
        raise UnknownInputError(
            "there is no such input",
            got=", ".join(unknown),
            expected=", ".join(item.name for item in run.inputs) or "no input at all",
        )
    value: dict[str, Any] = run.job.spec.to_json()
    value["name"] = value["name"][: _MAX_NAME - len(_SUFFIX)].rstrip(".") + _SUFFIX
    value["image"] = image or value["image"]
    for wanted, measured in zip(value["inputs"], run.inputs, strict=True):
        wanted["sha256"] = measured.content_digest
        if measured.name in places:
            wanted["uri"], wanted["revision"] = places[measured.name], None
        elif wanted["uri"].startswith(_REVISIONED):
            wanted["uri"] = split_revision(wanted["uri"])[0]
            wanted["revision"] = measured.revision
    return Spec.from_json(value)


def require_image(
    run: Run, spec: Spec, *, base: Path | None, secrets: dict[str, Any] | None
) -> None:
    """Pass where the spec's image is the run's, before anything is trained.

    Raises:
        OtherImageError: it is another one.
        ImageError: there is none.
    """
    found = oci.identify(spec.image, base=base, secrets=secrets)
    if found != run.image.config:
        raise OtherImageError(
            "the image is another one than the certificate's",
            got=f"{spec.image}: {found}",
            expected=run.image.config,
            advice="name the place of the right one (--image)",
        )
