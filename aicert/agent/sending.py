"""What a spec needs of this host's files, for a machine that does not see them.

Relative paths start from the spec's folder, here as there: what they name is sent under the same
name, before the job. What lies elsewhere has to have an address that the machine can fetch from.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aicert.agent.client import AgentClient
from aicert.agent.oci import split_tag
from aicert.agent.spec import Spec
from aicert.errors import Error
from aicert.manifest import check_path

_IMAGES = ("oci", "oci-archive", "docker-archive")


class NotSentError(Error):
    """The spec names something of this host that cannot be sent to the machine."""

    code = "send.refused"


def files(spec: Spec, base: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield what is to be sent: the name on the machine, and where it is here.

    Raises:
        NotSentError: something lies outside the spec's folder, or is neither file nor folder.
    """
    seen = set()
    for what, name in _named(spec):
        for sent, path in _below(what, name, base):
            if sent not in seen:
                seen.add(sent)
                yield sent, path


def send(
    client: AgentClient,
    spec: Spec,
    base: Path | None,
    on_event: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Send the files of a spec to the machine's agent.

    Raises:
        NotSentError: something cannot be sent; nothing was.
    """
    wanted = list(files(spec, base))
    total, done = sum(path.stat().st_size for _, path in wanted), 0
    for name, path in wanted:
        client.send(name, path)
        done += path.stat().st_size
        on_event(
            {"type": "progress", "what": "send", "done": done, "total": total, "unit": "bytes"}
        )


def _named(spec: Spec) -> Iterator[tuple[str, str]]:
    scheme, _, rest = spec.image.partition(":")
    if scheme in _IMAGES:
        yield f"the image {spec.image}", split_tag(rest)[0]
    elif scheme in ("containers-storage", "docker-daemon"):
        raise _refused(f"the image {spec.image}", "it is in this host's container engine")
    for item in spec.inputs:
        scheme, _, rest = item.uri.partition(":")
        if scheme == "file":
            yield f"the input {item.name}", unquote(rest)
        elif scheme == "git+file":
            raise _refused(f"the input {item.name}", "it is a repository on this host")


def _below(what: str, name: str, base: Path | None) -> Iterator[tuple[str, Path]]:
    name = os.path.normpath(name)
    if base is None or name.startswith(("/", "~", "..")):
        raise _refused(what, f"{name} is not in the spec's folder")
    top = base / name
    if not top.is_dir():
        yield _sendable(what, name, top)
        return
    for folder, folders, names in os.walk(top):
        folders.sort()
        for entry in sorted(names + [f for f in folders if (Path(folder) / f).is_symlink()]):
            path = Path(folder) / entry
            yield _sendable(what, str(path.relative_to(base)), path)


def _sendable(what: str, name: str, path: Path) -> tuple[str, Path]:
    if path.is_symlink() or not path.is_file():
        there = "is a link or a special file" if os.path.lexists(path) else "is not there"
        raise _refused(what, f"{name} {there}")
    try:
        return check_path(name), path
    except Error as error:
        raise _refused(what, error.message) from error


def _refused(what: str, problem: str) -> NotSentError:
    return NotSentError(
        f"{what} cannot be sent to the machine",
        got=problem,
        advice="put it into the folder of the spec, or where the machine can fetch it: https, hf, "
        "git, az, s3, docker://",
    )
