"""The certificate that a flow starts from, and the files beside it, as the worker can have them."""

from pathlib import Path
from urllib.parse import quote

from aicert import download, links
from aicert.agent import spec as specs
from aicert.agent.spec import Spec
from aicert.certificate import MAX_BYTES
from aicert.errors import Error
from aicert.verify import Verdict


class OriginalError(Error):
    """The certificate to start from, or its weights, cannot be had."""

    code = "original.unreadable"


class OtherModelError(Error):
    """The spec has an input of that name, which is something else."""

    code = "original.other"


def read(certificate: str) -> bytes:
    """Return a certificate, given its path on the worker or its https:// address.

    Raises:
        OriginalError: it cannot be read.
        DownloadError: it cannot be downloaded.
    """
    if certificate.startswith("https://"):
        return download.certificate(certificate)
    try:
        with _local(certificate).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OriginalError(
            "the certificate cannot be read",
            got=f"{certificate}: {error.strerror or error}",
            advice="name a file on the worker, or an https:// address",
        ) from error


def weights(certificate: str, given: str | None, *, why: str) -> Path:
    """Return the folder with a certificate's outputs: the one given, or `weights` beside it.

    Raises:
        OriginalError: there is no such folder; the message starts with `why` it is needed.
    """
    beside = None
    if not certificate.startswith("https://"):
        beside = _local(certificate).absolute().parent / "weights"
    folder = beside if given is None else Path(given).expanduser().absolute()
    if folder is None or not folder.is_dir():
        raise OriginalError(
            f"{why} needs the original's outputs",
            got=folder or "none given",
            expected="a folder on the worker",
            advice="name it (weights): the files that the certificate names, and no others",
        )
    return folder


def add(spec: Spec, base: str | None, name: str, verdict: Verdict, folder: Path) -> Spec:
    """Return a spec with a certified model as one more input, linked to its certificate.

    A spec that has such an input already must link it to the same certificate. Its address is
    measured, so a `folder` below `base`, where the spec's relative paths start from, is named from
    there, as a spec would: then it tells nothing of this host, and can be sent to another.

    Raises:
        OtherModelError: it has that input, and it is something else.
        SpecError: the name cannot be that of an input.
    """
    link = links.name(verdict.certificate)
    for item in spec.inputs:
        if item.name == name:
            if item.certificate == link:
                return spec
            raise OtherModelError(
                f"the spec's input {name} is something else",
                got=item.certificate or "no certificate",
                expected=link,
                advice="leave that input out of the spec: it is added",
            )
    uri = folder.as_uri()
    if base is not None and Path(base) in folder.parents and ".." not in folder.parts:
        uri = f"file:{quote(str(folder.relative_to(base)))}"
    value = spec.to_json()
    value["inputs"].insert(
        0,
        {
            "name": name,
            "uri": uri,
            "sha256": verdict.run.outputs.manifest.root,
            "certificate": link,
        },
    )
    return specs.check(value, source=f"the spec with the input {name}")


def _local(certificate: str) -> Path:
    return Path(certificate.removeprefix("file://")).expanduser()
