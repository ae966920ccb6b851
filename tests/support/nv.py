"""What only a test writes into a TPM: NV memory, and keys at persistent handles."""

from typing import Any

from tpm2_pytss import ESYS_TR, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

from aicert.agent.tpm import Ak, Tpm


def define_nv(tpm: Tpm, index: int, content: bytes, attributes: Any = None) -> None:
    """Make an NV index that holds this, and that anybody may read unless `attributes` differ."""
    flags = attributes or TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE
    public = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=0x000B, attributes=flags, dataSize=len(content))
    handle = tpm._esapi.nv_define_space("", TPM2B_NV_PUBLIC(public))
    for start in range(0, len(content), 512):
        part = content[start : start + 512]
        tpm._esapi.nv_write(handle, part, start, auth_handle=ESYS_TR.OWNER)


def make_persistent(tpm: Tpm, handle: int) -> Ak:
    """Make an RSA attestation key and keep it at a persistent handle."""
    ak = tpm.create_ak("rsa")
    tpm._esapi.evict_control(ESYS_TR.OWNER, ESYS_TR(ak.handle), handle)
    return ak
