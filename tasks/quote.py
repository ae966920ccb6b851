"""Have the TPM sign: the statement, and a quote over the PCRs that is bound to it."""

from typing import Any

from prefect import task

from tasks.reporting import OPTIONS, announced, show
from tasks.steps import perform
from tasks.words import key_values, measured

STEP = "quote"


@task(name=STEP, task_run_name=STEP, **OPTIONS)
def quote(handle: dict[str, Any], run: str, *, name: str) -> dict[str, Any]:
    """Have the agent build the statement from its log, sign it, and make the certificate."""
    with announced(STEP):
        record = perform(handle, run, STEP, name=name)
        show(
            name,
            STEP,
            f"certificate sha256:{record['summary']['certificate'][:16]}…, signed by the TPM",
            "# The quote",
            "",
            key_values([("Certificate", f"`sha256:{record['summary']['certificate']}`")]),
            "",
            "The statement was made from the log alone. The attestation key signed it and a quote "
            "over PCRs 0 to 15, bound to it, in the same boot as the baseline.",
            "",
            measured(record),
        )
    return record
