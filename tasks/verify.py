"""Verify the certificate as it was published: read back from the store, like any other reader."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect import task

from aicert import card
from aicert.certificate import Certificate
from aicert.words import clean
from blocks import CertificateStore, VerificationPolicy
from tasks import reporting
from tasks.reporting import OPTIONS, announced, failing_as
from tasks.words import code, command_block, key, key_values

STEP = "verify"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def verify(
    published: dict[str, Any],
    *,
    name: str,
    store: CertificateStore,
    policy: VerificationPolicy,
    command: str,
) -> dict[str, Any]:
    """Read the certificate back and verify it; record the card with the verdict.

    Weights in a folder are verified too; those in an object store were compared when they were
    written. `command` is what a person runs to check for themselves.
    """
    with announced(STEP), failing_as(STEP):
        data = store.open().read(published["digest"])
        folder = local_folder(published["weights"])
        verdict = policy.verify(data, model=folder)
        markdown = card.markdown(Certificate.parse(data), verdict)
        reporting.show(
            name,
            STEP,
            f"verified as published, assurance {verdict.assurance}",
            "# Verified",
            "",
            key_values(
                [
                    ("Verdict", f"**verified**, assurance `{verdict.assurance}`"),
                    ("Certificate", f"`sha256:{published['digest']}`"),
                    ("Files checked", "all of them" if folder else "none here"),
                ]
            ),
            "",
            "Twelve checks passed on the certificate as published: format, key chain, key, quotes, "
            "signature, one boot and the log's replay, the log's grammar, the statement, the worth "
            "of the root, policy, files.",
            "",
            "Run it yourself:",
            "",
            command_block(command),
        )
        reporting.artifact(
            key(name, "certificate", "card"),
            f"certified, assurance {verdict.assurance}: "
            f"{clean(verdict.run.job.spec.description or name)}",
            "\n".join(
                [
                    markdown,
                    "## Where it is",
                    "",
                    code(published["certificate"]),
                    "",
                    command_block(command),
                ]
            ),
        )
    return {"assurance": str(verdict.assurance), "files": verdict.model is not None}


def local_folder(url: str | None) -> Path | None:
    """Return the folder that a `file:` URL names, or None for anything else."""
    if url is None or urlsplit(url).scheme != "file":
        return None
    return Path(unquote(urlsplit(url).path))
