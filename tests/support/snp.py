"""A made-up AMD: roots, chips, reports, and the document that a confidential VM has signed.

Every part can be replaced, so that a test can say each lie alone.
"""

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID, ObjectIdentifier

from aicert import sev
from aicert.certificate import CpuReport
from tests.support.forger import STARTED

TCB = bytes([4, 0, 0, 0, 0, 0, 0x18, 0xDB])
CHIP = bytes(range(64))
SIGNER = bytes.fromhex(min(sev.FIRMWARE_SIGNERS))


def number(value: int) -> str:
    """A number as JSON Web Keys have it."""
    data = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def document(key: Any, **changes: Any) -> bytes:
    """The JSON document (runtime data) that names an attestation key."""
    numbers = key.public_numbers()
    jwk = {
        "kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA",
        "e": number(numbers.e), "n": number(numbers.n),
    }  # fmt: skip
    fields = {
        "keys": [jwk, {**jwk, "kid": "HCLEkPub"}],
        "vm-configuration": {"secure-boot": True, "tpm-enabled": True},
        "user-data": "00" * 64,
    }
    return json.dumps({**fields, **changes}, separators=(",", ":")).encode()


@dataclass
class Amd:
    """AMD's certificates for one chip. `processor` is the one that the root is pinned for."""

    processor: str = "Milan"
    product: bytes = b"\x16\x08Milan-B0"
    chip: bytes = CHIP
    tcb: tuple[int, ...] = tuple(TCB)
    ark_key: Any = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    ask_key: Any = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    vcek_key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))

    def pins(self) -> dict[str, str]:
        """What `aicert.sev.ROOTS` must hold."""
        return {hashlib.sha256(self.chain()[2]).hexdigest(): self.processor}

    def chain(self) -> tuple[bytes, ...]:
        """VCEK, ASK, ARK; always the same certificates."""
        if not hasattr(self, "_chain"):
            ark = self._certify("ARK", "ARK", self.ark_key.public_key(), self.ark_key, ca=True)
            ask = self._certify("ASK", "ARK", self.ask_key.public_key(), self.ark_key, ca=True)
            vcek = self._certify("VCEK", "ASK", self.vcek_key.public_key(), self.ask_key, ca=False)
            self._chain = tuple(
                item.public_bytes(serialization.Encoding.DER) for item in (vcek, ask, ark)
            )
        return self._chain

    def _certify(self, subject: str, issuer: str, key: Any, by: Any, *, ca: bool) -> Any:
        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        builder = (
            x509.CertificateBuilder(name(issuer), name(subject), key, x509.random_serial_number())
            .not_valid_before(STARTED - timedelta(days=365))
            .not_valid_after(STARTED + timedelta(days=3650))
        )
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        else:
            parts = dict(zip((1, 2, 4, 5, 6, 7, 3, 8), self.tcb, strict=True))
            values = {"2": self.product, "4": self.chip}
            values |= {f"3.{part}": integer(value) for part, value in parts.items()}
            for oid, value in values.items():
                extension = x509.UnrecognizedExtension(
                    ObjectIdentifier(f"1.3.6.1.4.1.3704.1.{oid}"), value
                )
                builder = builder.add_extension(extension, False)
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        return builder.sign(by, hashes.SHA384(), rsa_padding=pss)

    def evidence(self, key: Any, runtime: bytes | None = None, **changes: Any) -> CpuReport:
        """What a confidential VM's certificate carries, for an attestation key (its public key)."""
        runtime = document(key) if runtime is None else runtime
        return CpuReport(Report(runtime, **changes).encode(self.vcek_key), runtime, self.chain())


def integer(value: int) -> bytes:
    """A DER INTEGER."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    return bytes([2, len(data)]) + data


@dataclass(frozen=True)
class Report:
    """The fields of an ATTESTATION_REPORT, each free to lie."""

    runtime: bytes
    version: int = 3
    policy: int = 0x3001F
    vmpl: int = 0
    algorithm: int = 1
    flags: int = 0
    tail: bytes = bytes(32)
    id_key_digest: bytes = SIGNER
    tcb: bytes = TCB
    chip: bytes = CHIP

    def encode(self, key: Any) -> bytes:
        """The 1184 bytes, signed."""
        data = bytearray(sev.REPORT_BYTES)
        struct.pack_into("<IIQ", data, 0, self.version, 10, self.policy)
        struct.pack_into("<II", data, 0x30, self.vmpl, self.algorithm)
        struct.pack_into("<I", data, 0x48, self.flags)
        data[0x50:0x90] = hashlib.sha256(self.runtime).digest() + self.tail
        data[0x90:0xC0] = b"\x6a" * 48
        data[0xE0:0x110] = self.id_key_digest
        data[0x180:0x188] = self.tcb
        data[0x1A0:0x1E0] = self.chip
        return signed(data, key)


def signed(data: bytearray, key: Any) -> bytes:
    """A report with the signature of a chip's key."""
    signature = key.sign(bytes(data[:0x2A0]), ec.ECDSA(hashes.SHA384()))
    for place, value in zip((0x2A0, 0x2E8), decode_dss_signature(signature), strict=True):
        data[place : place + 72] = value.to_bytes(72, "little")
    return bytes(data)


def hcl(evidence: CpuReport, *, kind: int = 2, hash_type: int = 1, size: int = 2600) -> bytes:
    """What the NV index of a confidential VM holds: the report and the document, wrapped."""
    runtime = evidence.runtime_data
    head = struct.pack("<4sIII4I", b"HCLA", 1, 0x4C0 + 20 + len(runtime), 2, 0, 0, 0, 0)
    inner = struct.pack("<5I", 20 + len(runtime), 1, kind, hash_type, len(runtime))
    return (head + evidence.report + inner + runtime).ljust(size, b"\0")


def with_report(certificate: Any, evidence: CpuReport) -> Any:
    """A certificate with a CPU's report."""
    return replace(certificate, cpu_report=evidence)
