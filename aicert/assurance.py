"""Assurance: how much the root of trust behind a certificate is worth."""

from enum import IntEnum


class Assurance(IntEnum):
    """How much the root of trust is worth; each level includes the ones before it."""

    SIMULATED = 1
    HARDWARE = 2
    MEASURED = 3
    CONFIDENTIAL = 4

    def __str__(self) -> str:
        """Return the word that certificates and policies use."""
        return self.name.lower()


MEANING = {
    Assurance.SIMULATED: "a software TPM, which proves nothing against whoever ran it",
    Assurance.HARDWARE: "a TPM that a pinned vendor or cloud root vouches for",
    Assurance.MEASURED: "the boot measurements match a published image",
    Assurance.CONFIDENTIAL: "the TPM itself is bound to a CPU attestation report",
}
"""Each level in a few words, for people."""
