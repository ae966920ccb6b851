"""Policies: what a certificate is held against when it is verified in a flow."""

from collections.abc import Collection
from pathlib import Path

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field

from aicert import verify
from aicert.errors import Error
from aicert.trust import TrustStore
from aicert.verify import Assurance, Verdict
from blocks.checks import Check


class VerificationPolicy(Block):
    """Which roots may vouch for a certificate, and how much it must be worth.

    The vendors' roots that aicert pins are always among them. A software TPM is refused unless it
    is allowed here.

    Attributes:
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

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name = "aicert Verification Policy"
    _block_type_slug = "aicert-verification-policy"

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

    @property
    def least(self) -> Assurance:
        """The least assurance that is accepted."""
        return Assurance.SIMULATED if self.allow_simulated else Assurance.HARDWARE

    def trust(self) -> TrustStore:
        """Return the roots: the built-in ones, and those given here.

        Raises:
            TrustError: one of them cannot be read.
        """
        pins = TrustStore.builtin()
        if self.roots is not None:
            pins = pins.with_roots(self.roots.expanduser(), assurance="simulated")
        if self.hardware_roots is not None:
            pins = pins.with_roots(self.hardware_roots.expanduser(), assurance="hardware")
        return pins

    def verify(
        self, certificate: bytes, *, model: Path | None = None, ignore: Collection[str] = ()
    ) -> Verdict:
        """Verify a certificate and, where given, the folder with the files that it names.

        Raises:
            Error: the first check that failed, as `aicert.verify.verify` raises it.
        """
        return verify.verify(
            certificate, trust=self.trust(), model=model, ignore=ignore, least=self.least
        )

    def check(self) -> list[Check]:
        """Look whether the roots can be read."""
        try:
            pins = self.trust().list()
        except Error as error:
            return [Check.failed("roots", error)]
        return [Check("roots", True, f"{len(pins)} roots; at least assurance {self.least}")]
