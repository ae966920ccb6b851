"""What can go wrong with a TPM, each with what a person can do about it."""

from typing import ClassVar

from aicert.errors import Error


class TpmError(Error):
    """The TPM refused a command, or cannot do what is asked."""

    code = "tpm.failed"
    ADVICE: ClassVar[str] = "look the response code up in the TPM 2.0 Library, Part 2, 6.6"


class UnreachableError(TpmError):
    """There is no TPM, or it does not answer."""

    code = "tpm.unreachable"
    ADVICE = "start the run again; if it recurs, see whether the machine still has its TPM"


class BusyError(TpmError):
    """The TPM is busy, or others have filled it."""

    code = "tpm.busy"
    ADVICE = (
        "try again; let nothing else use the TPM, and use /dev/tpmrm0 (the kernel's resource "
        "manager), not /dev/tpm0"
    )


class NotStartedError(TpmError):
    """The TPM was not started by the firmware."""

    code = "tpm.not-started"
    ADVICE = "enable the TPM in the firmware's settings, and restart the machine"


class FailureModeError(TpmError):
    """The TPM failed its own tests."""

    code = "tpm.failure-mode"
    ADVICE = "switch the machine off and on; if it recurs, the TPM is broken"


class LockoutError(TpmError):
    """The TPM refuses passwords for a while, because there were too many wrong ones."""

    code = "tpm.lockout"
    ADVICE = (
        "wait, or reset the lockout as the TPM's owner (tpm2_dictionarylockout --clear-lockout)"
    )


class AuthorizationError(TpmError):
    """A hierarchy, key or index has a password."""

    code = "tpm.authorization"
    ADVICE = "the endorsement hierarchy must have no password (tpm2_changeauth -c endorsement)"


class PolicyError(TpmError):
    """The TPM does not accept the policy of a key."""

    code = "tpm.policy"
    ADVICE = "the endorsement key is not one of the TCG's default templates; use another EK"


class CredentialError(TpmError):
    """The challenge was not made for this TPM and this attestation key."""

    code = "tpm.credential"
    ADVICE = "enrol the machine again: the CA's challenge fits one EK and one AK"


class KeyLostError(TpmError):
    """The key is not in the TPM any more."""

    code = "tpm.key-lost"
    ADVICE = "the TPM was reset, or somebody flushed the key: start a new run"


class GeneratedDataError(TpmError):
    """The data begins like a structure of the TPM's own, which a restricted key never signs."""

    code = "tpm.generated-data"
    ADVICE = "data that begins with ff544347 cannot be signed with an attestation key"


class NoEkCertificateError(TpmError):
    """The TPM has no certificate for an endorsement key that can be used."""

    code = "tpm.no-ek-certificate"


class NvError(TpmError):
    """An NV index does not exist, or cannot be read."""

    code = "tpm.nv"
    ADVICE = "nothing was written there yet: wait until the firmware has, and start again"


class BankInactiveError(TpmError):
    """The SHA-256 bank of PCRs is not active."""

    code = "tpm.bank-inactive"


class PcrError(TpmError):
    """The PCR, or the digest, is not one that can be used."""

    code = "tpm.pcr"


class QuoteError(TpmError):
    """The quote is not the one that was asked for."""

    code = "tpm.quote"


class UnfitKeyError(TpmError):
    """The key in the TPM is not an attestation key."""

    code = "tpm.unfit-key"


_FOR_CODES: dict[type[TpmError], str] = {
    BusyError: "RETRY YIELDED TESTING NV_RATE CANCELED NV_UNAVAILABLE CONTEXT_GAP MEMORY"
    " OBJECT_MEMORY OBJECT_HANDLES SESSION_MEMORY SESSION_HANDLES",
    NotStartedError: "INITIALIZE REBOOT UPGRADE",
    FailureModeError: "FAILURE",
    LockoutError: "LOCKOUT",
    AuthorizationError: "AUTH_FAIL BAD_AUTH AUTH_UNAVAILABLE AUTH_MISSING",
    PolicyError: "POLICY POLICY_FAIL POLICY_CC",
    CredentialError: "INTEGRITY ECC_POINT",
    KeyLostError: "REFERENCE_H0 REFERENCE_H1",
    GeneratedDataError: "TICKET",
    NvError: "NV_UNINITIALIZED",
}
CLASSES = {name: kind for kind, names in _FOR_CODES.items() for name in names.split()}
"""The error for a response code, by the code's name without `TPM_RC_`; for others `TpmError`."""
