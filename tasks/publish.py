"""Publish the certificate with its manifests and card, and the weights where asked: write-once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from prefect import task

from aicert import oms
from aicert.agent import machine
from aicert.agent.client import AgentClient
from aicert.agent.machine import MachineHandle
from aicert.agent.store import Published, Weight
from aicert.certificate import Certificate
from aicert.errors import Error
from aicert.log import Run
from aicert.views import VIEWS
from blocks import CertificateStore, VerificationPolicy
from tasks import reporting
from tasks.reporting import OPTIONS, Live, announced, failing_as
from tasks.words import code, count, key_values

STEP = "publish"

_VIEWS = ("html", "cyclonedx", "spdx")
"""What stands beside the certificate for others; none says that anything was verified, for whoever
reads it is who has to."""

DELAYS = [2.0, 10.0, 30.0, 60.0, 120.0, 240.0, 480.0]
"""Seconds before each new attempt. The training is done, and its outputs end with the machine: it
is worth a quarter of an hour to wait for a store that is away."""

PATIENT = {**OPTIONS, "retries": len(DELAYS), "retry_delay_seconds": DELAYS}


class WrongCertificateError(Error):
    """The agent returned another certificate than the one of this run."""

    code = "publish.wrong-certificate"


@task(name=STEP, task_run_name=STEP, **PATIENT)
def publish(
    handle: dict[str, Any],
    run: str,
    *,
    name: str,
    digest: str,
    store: CertificateStore,
    policy: VerificationPolicy,
    weights: bool,
) -> dict[str, Any]:
    """Verify the certificate, then publish it; return where it is.

    What does not verify is not published. Publishing the same again changes nothing, so a store
    that could not be reached may be tried again.
    """
    with announced(STEP), failing_as(STEP):
        live = Live(name, STEP)
        with machine.attach(MachineHandle.from_json(handle)) as client:
            data = client.certificate(run)
            verdict = policy.verify(data)
            if verdict.certificate_digest != digest or verdict.run.job.run != run:
                raise WrongCertificateError(
                    "this is not the certificate of this run",
                    got=f"{verdict.certificate_digest}, run {verdict.run.job.run}",
                    expected=f"{digest}, run {run}",
                    advice="do not use this machine; start a new run",
                )
            signature = b"".join(client.open_file(run, "signatures", oms.NAME))
            oms.check(signature, verdict)
            certificate = Certificate.parse(data)
            opened = store.open()
            published = opened.publish(
                data,
                manifests=_manifests(client, run, verdict.run),
                card=VIEWS["card"].make(certificate, None),
                views={
                    oms.NAME: signature,
                    **{VIEWS[name].file: VIEWS[name].make(certificate, None) for name in _VIEWS},
                },
                weights=_weights(client, run, verdict.run) if weights else (),
                on_event=live,
            )
        result = {
            "digest": published.digest,
            "url": published.url,
            "certificate": f"{published.url}/certificate.json",
            "weights": f"{published.url}/weights" if weights else None,
            "new": published.new,
        }
        _record(name, published, verdict.run, weights, opened.retention())
    return result


def _manifests(client: AgentClient, run: str, log: Run) -> dict[str, bytes]:
    names = [*(item.name for item in log.inputs), "outputs"]
    return {name: b"".join(client.open_file(run, "manifests", name)) for name in names}


def _weights(client: AgentClient, run: str, log: Run) -> Iterator[Weight]:
    for file in log.outputs.manifest.files:
        read: Callable[[], Iterator[bytes]] = partial(client.open_file, run, "outputs", file.path)
        yield Weight(file.path, file.size, file.sha256, read)


def _record(
    name: str, published: Published, log: Run, weights: bool, retention: str | None
) -> None:
    manifests = len(log.inputs) + 1
    reporting.show(
        name,
        STEP,
        f"sha256:{published.digest[:16]}… in {published.url.rpartition('/certificates/')[0]}",
        "# Published",
        "",
        code(f"{published.url}/certificate.json"),
        "",
        key_values(
            [
                ("Certificate", f"`sha256:{published.digest}`"),
                (
                    "With",
                    "the cards, bills of materials, the model's signature, "
                    + count(manifests, "manifest")
                    + (", the weights" if weights else ""),
                ),
                (
                    "Write-once",
                    "enforced by the store"
                    if published.write_once == "enforced"
                    else "checked by reading back; this store cannot enforce it",
                ),
                *([("Kept by", retention)] if retention else []),
                ("New", "yes" if published.new else "no: it was published already"),
            ]
        ),
        *(
            ()
            if weights
            else (
                "",
                "**The weights were not published** (`publish_weights` was off): they end with "
                "the machine.",
            )
        ),
    )
