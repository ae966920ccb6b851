"""What an earlier attempt of a run has published already: its retry then has nothing to train.

A run that was killed between publishing and its end leaves a certificate that no run names. Which
one that is, the run's own artifact says; it is believed no more than anybody: the certificate must
be in the store, pass the policy, and be one of the same spec.
"""

import re
from contextlib import suppress
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)

from aicert import canonical
from aicert.agent.spec import Spec
from aicert.errors import Error
from aicert.verify import Verdict
from blocks import CertificateStore, VerificationPolicy
from tasks import publish
from tasks.words import key

_NAMED = re.compile(r"/certificates/([0-9a-f]{64})/certificate\.json")


def published(spec: Spec, store: CertificateStore, policy: VerificationPolicy) -> Verdict | None:
    """Return the certificate that an earlier attempt of this run published, if there is one."""
    if (runtime.flow_run.run_count or 1) < 2:
        return None
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(str(runtime.flow_run.id))]),
        key=ArtifactFilterKey(any_=[key(spec.name, publish.STEP)]),
    )
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted)
    for digest in {name for artifact in found for name in _NAMED.findall(str(artifact.data))}:
        with suppress(Error):  # not there, or not good enough: then there is something to do
            verdict = policy.verify(store.open().read(digest))
            if canonical.sha256(verdict.run.job.spec.to_json()) == spec.digest:
                return verdict
    return None
