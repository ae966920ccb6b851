"""Hash a large input before any run, shared out by a task runner: what its spec may expect.

What comes out is a claim, as workers are trusted by nobody: it goes into a spec, and the agent of
each run refuses an input that is another.
"""

from typing import Annotated, Any

from prefect import flow, unmapped
from prefect.futures import PrefectFutureList
from prefect.states import Completed
from pydantic import Field

from aicert.agent.fetch import InputRequest, Surveyed
from aicert.words import size
from blocks import InputCredentials
from flows.certify import ended
from tasks.reporting import artifact, failing_as, logger
from tasks.survey import STEP, survey_part
from tasks.words import code, count, key, key_values


@flow(name="survey", log_prints=False, persist_result=False)
def survey(
    uri: str,
    revision: str | None = None,
    name: str = "data",
    base: str | None = None,
    credentials: InputCredentials | None = None,
    parts: Annotated[int, Field(ge=1, le=1000)] = 4,
    jobs: Annotated[int, Field(ge=1, le=64)] = 1,
) -> dict[str, Any]:
    """Hash an input in parts, and say what a spec may expect of it; nothing is kept or certified.

    Args:
        uri: Where the input lies, as a spec names it.
        revision: Its branch, tag, commit or version, where the source has them.
        name: Its name in the spec; its credentials go by it.
        base: The folder on the worker that a relative file: address starts from.
        credentials: What its source asks for.
        parts: How many tasks share its files. A file is not divided.
        jobs: How many files each task reads at a time.
    """

    def work() -> Any:
        secrets = credentials.for_input(name) if credentials else {}
        futures: PrefectFutureList[Surveyed] = survey_part.map(
            list(range(parts)),
            unmapped(parts),
            unmapped(InputRequest(name, uri, revision)),
            base=unmapped(base),
            secrets=unmapped(secrets),
            jobs=unmapped(jobs),
        )
        with failing_as(STEP):
            found = Surveyed.merged(futures.result())
        return _told(name, found)

    return ended(work)  # type: ignore[no-any-return]


def _told(name: str, found: Surveyed) -> Any:
    manifest = found.manifest
    expected = f"sha256: {found.sha256}"
    held = f"{count(len(manifest.files), 'file')}, {size(manifest.size)}"
    logger().info("%s holds %s; a spec may expect %s", found.uri, held, expected)
    rows = [
        ("Address", code(found.uri)),
        ("Revision", code(found.revision) if found.revision else "the source has none"),
        ("Holds", held),
        ("For the spec", f"`{expected}`"),
        ("Manifest", f"`{manifest.digest}`"),
    ]
    lines = [
        "# What the input holds",
        "",
        key_values(rows),
        "",
        "Nothing vouches for this: it is what the workers read. A run whose spec expects it "
        "refuses an input that is another.",
    ]
    artifact(key(name, STEP), expected, "\n".join(lines))
    data = {
        "uri": found.uri,
        "revision": found.revision,
        "files": len(manifest.files),
        "size": manifest.size,
        "sha256": found.sha256,
        "manifest": manifest.digest,
    }
    return Completed(message=f"{expected} ({held})", data=data)
