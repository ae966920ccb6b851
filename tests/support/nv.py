"""What only a test makes in a TPM: NV memory, keys at persistent handles, primary keys."""

from typing import Any

from tpm2_pytss import (
    ESYS_TR,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPMS_NV_PUBLIC,
)

from aicert import tpm2
from aicert.agent.tpm import _AK_ATTRIBUTES, _AKS, Ak, Tpm


def define_nv(
    tpm: Tpm, index: int, content: bytes, attributes: Any = None, *, password: str = ""
) -> None:
    """Make an NV index that holds this, and that anybody may read unless `attributes` differ."""
    flags = attributes or TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE
    public = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=0x000B, attributes=flags, dataSize=len(content))
    handle = tpm._esapi.nv_define_space(password, TPM2B_NV_PUBLIC(public))
    _write(tpm, handle, content)
    tpm._esapi.tr_close(handle)  # the library would remember the password


def reserve_nv(tpm: Tpm, index: int, size: int) -> Any:
    """Make an NV index in which nothing was written yet; return what writes it."""
    flags = TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE
    public = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=0x000B, attributes=flags, dataSize=size)
    tpm._esapi.nv_define_space("", TPM2B_NV_PUBLIC(public))
    return lambda content: _write(tpm, tpm._esapi.tr_from_tpmpublic(index), content)


def _write(tpm: Tpm, handle: Any, content: bytes) -> None:
    for start in range(0, len(content), 512):
        part = content[start : start + 512]
        tpm._esapi.nv_write(handle, part, start, auth_handle=ESYS_TR.OWNER)


def make_persistent(tpm: Tpm, handle: int) -> Ak:
    """Make an RSA attestation key and keep it at a persistent handle."""
    ak = tpm.create_ak("rsa")
    tpm._esapi.evict_control(ESYS_TR.OWNER, ESYS_TR(ak.handle), handle)
    return ak


def make_primary(tpm: Tpm) -> Ak:
    """Make an attestation key as a cloud's TPM has it: a primary one of the endorsement hierarchy.

    Made again, also after a restart or TPM2_Clear, it is the same key.
    """
    template = TPM2B_PUBLIC.parse(_AKS["ecc"], objectAttributes=_AK_ATTRIBUTES)
    handle, public, *_ = tpm._esapi.create_primary(
        TPM2B_SENSITIVE_CREATE(), template, primary_handle=ESYS_TR.ENDORSEMENT
    )
    encoded: bytes = public.publicArea.marshal()
    return Ak(handle, encoded, tpm2.parse_public(encoded).name, "rsa2048")
