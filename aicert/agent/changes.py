"""What would be different if a spec were run again: its text, its image, its inputs.

A certificate says what a run was made from. Where the same names still lead to the same content,
running it again proves nothing new.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aicert import canonical, events
from aicert.agent import oci
from aicert.agent.fetch import InputRequest, resolve, survey
from aicert.agent.spec import Spec
from aicert.agent.store import Store
from aicert.certificate import Certificate
from aicert.errors import Error
from aicert.log import Run, parse_run
from aicert.verify import Verdict

_PARALLEL = 8


def newest(store: Store, name: str, verify: Callable[[bytes], Verdict]) -> Verdict | None:
    """Return the verdict on the newest certificate of a spec by this name, or None.

    Every certificate in the store is read, and those of this name are verified from the newest
    on; what `verify` refuses counts as not there, for anybody may have put it there.

    Raises:
        StoreError: the store cannot be read.
    """

    def look(digest: str) -> tuple[Run, bytes] | None:
        data = store.read(digest)
        try:
            run = parse_run(Certificate.parse(data).records)
        except Error:
            return None
        return (run, data) if run.job.spec.name == name else None

    with ThreadPoolExecutor(_PARALLEL) as pool:
        found = [item for item in pool.map(look, store.digests()) if item is not None]
    for _, data in sorted(found, key=lambda item: item[0].outputs.finished_on, reverse=True):
        try:
            return verify(data)
        except Error:
            continue
    return None


def changes(
    spec: Spec,
    last: Run,
    *,
    base: Path | None,
    secrets: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Say what has changed since a run, in one line each; nothing where a new run would repeat it.

    Inputs are resolved as a run would; one whose source names no revision is read through and
    compared by its content. `secrets` has, by input, what its source asks for.

    Raises:
        FetchError, ImageError: what the spec names cannot be found now.
    """
    secrets = secrets or {}
    if canonical.sha256(spec.to_json()) != canonical.sha256(last.job.spec.to_json()):
        return ["the spec"]
    found = []
    image = oci.identify(spec.image, base=base, secrets=secrets.get("image"))
    if image != last.image.config:
        found.append(f"the image: {last.image.config[:16]}… is now {image[:16]}…")

    def look(measured: events.Input) -> str | None:
        wanted = next(item for item in last.job.spec.inputs if item.name == measured.name)
        return _change(wanted, measured, base, secrets.get(measured.name))

    with ThreadPoolExecutor(_PARALLEL) as pool:
        found += [change for change in pool.map(look, last.inputs) if change is not None]
    return found


def _change(
    wanted: events.SpecInput,
    measured: events.Input,
    base: Path | None,
    secrets: Mapping[str, Any] | None,
) -> str | None:
    request = InputRequest(wanted.name, wanted.uri, wanted.revision, wanted.sha256)
    resolved = resolve(request, base=base, secrets=secrets)
    if resolved.revision is not None or measured.revision is not None:
        if (resolved.uri, resolved.revision) == (measured.uri, measured.revision):
            return None
        then, now = measured.revision or "no revision", resolved.revision or "no revision"
        return f"input {wanted.name}: {then} is now {now}"
    now = survey(request, base=base, secrets=secrets).manifest.digest
    return None if now == measured.manifest else f"input {wanted.name}: its content"
