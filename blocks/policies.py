"""Policies: what a certificate is held against when it is verified in a flow."""

from collections.abc import Collection
from pathlib import Path

from pydantic import Field

from aicert.agent.audit import Demands
from aicert.errors import Error
from aicert.verify import Verdict
from blocks.base import AicertBlock
from blocks.checks import Check


class VerificationPolicy(AicertBlock):
    """Which roots may vouch for a certificate, and how much it must be worth.

    The vendors' roots that aicert pins are always among them. A software TPM is refused unless it
    is allowed here.

    Attributes:
        policy: A policy file; it says itself how much a certificate must be worth.
        allow_simulated: Accept a software TPM, for instance for the demo.
        roots: Roots for software TPMs: your own CA.
        hardware_roots: Roots that you know to certify only keys in real TPMs.

    Example:
        Verify a certificate and the model's files:
        ```python
        from blocks import VerificationPolicy

        policy = VerificationPolicy.load("BLOCK_NAME")
        verdict = policy.verify(certificate, model=folder)
        print(verdict.assurance)
        ```
    """

    _block_type_name = "aicert Verification Policy"
    _block_type_slug = "aicert-verification-policy"

    policy: Path | None = Field(
        default=None,
        title="Policy file",
        description="A policy in YAML on the worker, which `aicert policy check` accepts. It says "
        "itself how much a certificate must be worth; allowing software TPMs below changes nothing "
        "beside one.",
    )
    allow_simulated: bool = Field(
        default=False,
        title="Allow software TPMs",
        description="Accept a software TPM, which proves nothing against its operator. "
        "For trying things out.",
    )
    roots: Path | None = Field(
        default=None,
        title="Roots of software TPMs",
        description="File or folder on the worker with root certificates for software TPMs, such "
        "as that of your own CA.",
    )
    hardware_roots: Path | None = Field(
        default=None,
        title="Roots of hardware TPMs",
        description="File or folder on the worker with root certificates that you know to certify "
        "only keys in real TPMs.",
    )

    def demands(self) -> Demands:
        """Return what is demanded, by the files that say so."""
        return Demands(
            roots=_given(self.roots),
            hardware_roots=_given(self.hardware_roots),
            policies=_given(self.policy),
            allow_simulated=self.allow_simulated,
        )

    def verify(
        self, certificate: bytes, *, model: Path | None = None, ignore: Collection[str] = ()
    ) -> Verdict:
        """Verify a certificate and, where given, the folder with the files that it names.

        Raises:
            Error: the first check that failed, as `aicert.verify.verify` raises it.
        """
        return self.demands().load().verify(certificate, model=model, ignore=ignore)

    def check(self) -> list[Check]:
        """Look whether the roots and the policy can be read."""
        try:
            loaded = self.demands().load()
            trust = loaded.policy.trust_store(loaded.trust)
        except Error as error:
            return [Check.failed("policy", error)]
        found = f"{loaded.policy.name}; {len(trust.list())} roots"
        return [Check("policy", True, found)]


def _given(path: Path | None) -> tuple[Path, ...]:
    return () if path is None else (path.expanduser(),)
