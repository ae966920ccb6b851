"""AMD SEV-SNP on Azure: that an attestation key is held in a machine whose memory is encrypted.

On a confidential VM of Azure the TPM is a program beside the guest, in memory that the host cannot
read. At boot that program has the CPU sign a report whose report data is the SHA-256 of a JSON
document, which names the TPM's attestation key. So the way is: the key is in the document, the
document's digest in the report, the report signed by the chip's key (VCEK), and that certified by
AMD (VCEK, ASK, ARK), whose root is pinned here.

Offsets and bits are those of "SEV Secure Nested Paging Firmware ABI Specification" (AMD 56860),
tables 10, 23 and 24; certificates of "Versioned Chip Endorsement Key Certificate and KDS Interface
Specification" (AMD 57230), table 8. Integers are little-endian. Every byte is an attacker's.
"""

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509 as library
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ObjectIdentifier

from aicert import canonical, x509
from aicert.errors import Error
from aicert.trust import fingerprint

REPORT_BYTES = 1184
MAX_RUNTIME_BYTES = 8 << 10

ROOTS = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "Milan",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "Genoa",
}
"""AMD's roots (ARK) by the SHA-256 of their certificates, and the processors each stands for."""

FIRMWARE_SIGNERS = frozenset(
    {
        "0356215882a825279a85b300b0b742931d113bf7e32dde2e50ffde7ec743ca491ecdd7f336dc28a6e0b2bb57af7a44a3",
        "942fd93ebde6ea7a96efadeafc60f1c6b3d10e703b1dafd7555b92f7f3d32d0e006767648cba5b102af3d65756af4177",
    }
)
"""Digests of the keys with which Microsoft signs the firmware that holds the TPM (ID_KEY_DIGEST).

The first is in the documentation of Azure Attestation; the second is on the machines of 2025."""

_SIGNED_BYTES = 0x2A0
_VERSIONS = range(2, 6)
_ECDSA_P384_SHA384 = 1
_POLICY_MIGRATION_AGENT = 1 << 18
_POLICY_DEBUG = 1 << 19
_P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
_AMD = "1.3.6.1.4.1.3704.1"
_PRODUCT = ObjectIdentifier(f"{_AMD}.2")
_CHIP = ObjectIdentifier(f"{_AMD}.4")
# The parts of a TCB_VERSION, byte by byte (56860, table 3): boot loader, TEE, four of none, SNP,
# microcode; and the extension that certifies each.
_TCB = tuple(ObjectIdentifier(f"{_AMD}.3.{part}") for part in (1, 2, 4, 5, 6, 7, 3, 8))
_AK_NAME = "HCLAkPub"


class SevError(Error):
    """The CPU's report does not show what it is there to show."""

    code = "sev.invalid"
    remedy = "do not use this certificate as one of a confidential machine"


class SevReportError(SevError):
    """The report is malformed, or of a kind that is not accepted."""

    code = "sev.report"


class SevPolicyError(SevError):
    """The virtual machine may be debugged, or moved, or the report is of less privileged code."""

    code = "sev.policy"


class SevRuntimeError(SevError):
    """The document that the report is over is malformed, or another one."""

    code = "sev.runtime-data"


class SevKeyError(SevError):
    """The report is for another attestation key."""

    code = "sev.key"


class SevChainError(SevError):
    """AMD's certificates do not lead from the report's signer to a pinned root."""

    code = "sev.chain"


class SevSignatureError(SevError):
    """The chip did not sign the report."""

    code = "sev.signature"


class SevChipError(SevError):
    """The report is of another chip, or of other firmware of it, than its certificate is for."""

    code = "sev.chip"


@dataclass(frozen=True, slots=True)
class Report:
    """An ATTESTATION_REPORT, as far as it is used (56860, table 23). Nothing in it is checked."""

    policy: int
    vmpl: int
    flags: int
    report_data: bytes
    measurement: bytes
    id_key_digest: bytes
    tcb: bytes
    chip: bytes
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Report":
        """Read a report.

        Raises:
            SevReportError: it has another size, version or algorithm, or bytes where none may be.
        """
        if len(data) != REPORT_BYTES:
            raise SevReportError(
                "the CPU's report has another size", got=len(data), expected=REPORT_BYTES
            )
        version, _, policy = struct.unpack_from("<IIQ", data, 0)
        vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
        (flags,) = struct.unpack_from("<I", data, 0x48)
        if version not in _VERSIONS or algorithm != _ECDSA_P384_SHA384:
            raise SevReportError(
                "the CPU's report is of a kind that is not accepted",
                got=f"version {version}, signature algorithm {algorithm}",
                expected=f"version {_VERSIONS.start} to {_VERSIONS.stop - 1}, algorithm 1",
                advice="a newer aicert may know it",
            )
        # 57 bytes more than a number needs, twice, and the rest of the field (56860, table 139).
        r, s = data[_SIGNED_BYTES:][:72], data[_SIGNED_BYTES + 72 :][:72]
        if any(r[48:]) or any(s[48:]) or any(data[_SIGNED_BYTES + 144 :]):
            raise SevReportError("bytes stand where the report's signature has none")
        numbers = [int.from_bytes(number, "little") for number in (r, s)]
        if not all(0 < number < _P384_ORDER for number in numbers):
            raise SevReportError("the report's signature is not one of P-384")
        return cls(
            policy=policy,
            vmpl=vmpl,
            flags=flags,
            report_data=data[0x50:0x90],
            measurement=data[0x90:0xC0],
            id_key_digest=data[0xE0:0x110],
            tcb=data[0x180:0x188],
            chip=data[0x1A0:0x1E0],
            signed=data[:_SIGNED_BYTES],
            signature=encode_dss_signature(*numbers),
        )


@dataclass(frozen=True, slots=True)
class Confidential:
    """What a report showed, every part of it checked.

    `processor` is AMD's name for the kind; `measurement` the launch digest of the firmware that
    holds the TPM, and `firmware_known` whether one of Microsoft's keys signed that; `tcb` the
    version of the chip's own firmware. All digests are hex.
    """

    processor: str
    measurement: str
    id_key_digest: str
    firmware_known: bool
    tcb: str


def check(
    report: bytes,
    runtime_data: bytes,
    chain: Sequence[bytes],
    *,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    at: Iterable[datetime],
) -> Confidential:
    """Check that a CPU vouches for the virtual machine that holds an attestation key.

    Args:
        report: the CPU's report, as it comes from the firmware.
        runtime_data: the JSON document that the report is over.
        chain: DER certificates: VCEK, ASK, ARK.
        key: the attestation key.
        at: the times at which the certificates must be valid.

    Raises:
        SevError: (a subclass) the first check that failed.
    """
    parsed = Report.parse(report)
    # 1. The report is of the most privileged code (which holds the TPM) in a virtual machine that
    #    nobody may debug or hand to another host, and is signed by the chip's own key.
    if parsed.policy & (_POLICY_DEBUG | _POLICY_MIGRATION_AGENT) or parsed.vmpl != 0:
        raise SevPolicyError(
            "the virtual machine's policy lets others look into it",
            got=f"policy {parsed.policy:#x}, VMPL {parsed.vmpl}",
            expected="no debugging, no migration agent, VMPL 0",
            advice="do not use this certificate as one of a confidential machine",
        )
    if parsed.flags & ~1:
        raise SevReportError(
            "the report is not signed by the chip's own key (VCEK)",
            got=f"flags {parsed.flags:#x}",
            expected="SIGNING_KEY 0, MASK_CHIP_KEY 0",
        )
    # 2. The document is the one that the report is over, and names the attestation key.
    digest = hashlib.sha256(runtime_data).digest()
    if parsed.report_data != digest + bytes(32):
        raise SevRuntimeError(
            "the CPU's report is over another document",
            got=digest,
            expected=parsed.report_data,
            advice="do not use this certificate: its parts come from different machines",
        )
    if (reported := _attestation_key(runtime_data)) != (own := _numbers(key)):
        raise SevKeyError(
            "the CPU's report is for another attestation key",
            got=f"RSA, modulus {reported[0]:#x}",
            expected="an ECC key" if own is None else f"RSA, modulus {own[0]:#x}",
            advice="do not use this certificate: its parts come from different machines",
        )
    # 3. AMD vouches for the chip, and the chip signed the report.
    vcek, processor = _check_chain(chain, tuple(at))
    public = vcek.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp384r1":
        raise SevChainError("the chip's key is not on P-384")
    try:
        public.verify(parsed.signature, parsed.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise SevSignatureError(
            "the chip did not sign this report", advice="do not use this certificate"
        ) from error
    # 4. It is the chip, and the version of its firmware, that the certificate is for.
    _check_chip(vcek, parsed, processor)
    signer = parsed.id_key_digest.hex()
    return Confidential(
        processor=processor,
        measurement=parsed.measurement.hex(),
        id_key_digest=signer,
        firmware_known=signer in FIRMWARE_SIGNERS,
        tcb=parsed.tcb.hex(),
    )


def _attestation_key(runtime_data: bytes) -> tuple[int, int]:
    """Return modulus and exponent of the one attestation key in the document (RFC 7517)."""
    try:
        document = canonical.loads(runtime_data, max_bytes=MAX_RUNTIME_BYTES)
        (found,) = [key for key in document["keys"] if key["kid"] == _AK_NAME]
        if found["kty"] != "RSA":
            raise ValueError("not an RSA key")
        return _base64url(found["n"]), _base64url(found["e"])
    except (Error, KeyError, TypeError, ValueError) as error:
        raise SevRuntimeError(
            "the document under the CPU's report does not name one attestation key",
            got=f"{type(error).__name__}: {error}",
            expected=f"keys: one with kid {_AK_NAME!r}, an RSA key",
        ) from error


def _base64url(text: object) -> int:
    """Read a number (RFC 7518, 2: Base64urlUInt)."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]{2,1024}", text):
        raise ValueError("not base64url")
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _numbers(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> tuple[int, int] | None:
    if not isinstance(key, rsa.RSAPublicKey):
        return None
    numbers = key.public_numbers()
    return numbers.n, numbers.e


def _check_chain(
    chain: Sequence[bytes], times: tuple[datetime, ...]
) -> tuple[library.Certificate, str]:
    """Check VCEK, ASK, ARK; return the first, and the kind of processor."""
    if len(chain) != 3:
        raise SevChainError("AMD's chain", got=len(chain), expected="VCEK, ASK, ARK")
    try:
        certificates = [x509.parse(der, index) for index, der in enumerate(chain)]
        processor = ROOTS.get(fingerprint(certificates[-1]))
        if processor is None:
            raise SevChainError(
                "AMD's chain ends in a root that is not pinned",
                got=fingerprint(certificates[-1]),
                expected=", ".join(f"{name}: {digest}" for digest, name in ROOTS.items()),
            )
        x509.check_links(certificates, times)
    except x509.ChainError as error:
        raise SevChainError(
            "AMD's certificates do not vouch for the chip",
            got=f"{error.code}: {error.message}",
            expected=error.expected,
        ) from error
    return certificates[0], processor


def _check_chip(vcek: library.Certificate, report: Report, processor: str) -> None:
    product = _extension(vcek, _PRODUCT)
    # An IA5String: the kind alone ("Genoa"), or with the stepping ("Milan-B0").
    tag, name = product[:1], product[2:]
    kind = processor.encode()
    if tag != b"\x16" or (name != kind and not name.startswith(kind + b"-")):
        raise SevChipError("the chip is of another kind", got=product, expected=processor)
    if _extension(vcek, _CHIP) != report.chip:
        raise SevChipError(
            "the report is of another chip", got=report.chip, expected=_extension(vcek, _CHIP)
        )
    certified = bytes(_small_integer(_extension(vcek, oid)) for oid in _TCB)
    if certified != report.tcb:
        raise SevChipError(
            "the report is of another version of the chip's firmware",
            got=report.tcb,
            expected=certified,
            advice="the machine must bring the certificate for the version that it reports",
        )


def _extension(certificate: library.Certificate, oid: ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except library.ExtensionNotFound as error:
        raise SevChipError(
            "the chip's certificate lacks an extension", expected=oid.dotted_string
        ) from error
    assert isinstance(value, library.UnrecognizedExtension)
    return value.value


def _small_integer(der: bytes) -> int:
    """Read a DER INTEGER from 0 to 255."""
    if len(der) >= 3 and der[0] == 2 and der[1] == len(der) - 2:
        value = int.from_bytes(der[2:], "big", signed=True)
        minimal = value.bit_length() // 8 + 1
        if 0 <= value <= 255 and len(der) - 2 == minimal:
            return value
    raise SevChipError("the chip's certificate has a version that is none", got=der[:16])
