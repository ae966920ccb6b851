"""The certificate: one canonical JSON file that holds a statement, its signature, the evidence.

This module gives the file a type and refuses whatever is not exactly of its form. It decides
nothing about truth: that is `aicert.verify`.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from aicert import canonical, dsse, log, sev
from aicert.errors import Error
from aicert.reader import Reader

MEDIA_TYPE = "application/vnd.aicert.certificate.v1+json"

MAX_BYTES = 16 << 20
"""The largest certificate accepted, in bytes."""

MAX_CHAIN = 8
MAX_X509_BYTES = 16 << 10
MAX_TPM_BYTES = 4096
MAX_BOOT_LOG_BYTES = 1 << 20
MAX_TIMESTAMP_BYTES = 64 << 10
PCR_COUNT = 24
_SEV_CHAIN = 3  # VCEK, ASK, ARK


class CertificateError(Error):
    """The file is not a certificate of a version that we know."""

    code = "certificate.format"
    remedy = (
        "check that this is the certificate, whole and unchanged, and that your aicert is not "
        "older than it"
    )


@dataclass(frozen=True, slots=True)
class AttestationKey:
    """The AK: its public area (TPMT_PUBLIC) and its certificate chain (DER, leaf to root)."""

    public: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote as it travels: TPMS_ATTEST, TPMT_SIGNATURE, and PCR values of the SHA-256 bank.

    The PCR values are an attacker's until the quote's digest over its selection confirms them.
    """

    message: bytes
    signature: bytes
    pcrs: dict[int, bytes]

    @classmethod
    def read(cls, reader: Reader) -> "Quote":
        """Read the JSON form."""
        return cls(
            message=reader.octets64("message", max_bytes=MAX_TPM_BYTES),
            signature=reader.octets64("signature", max_bytes=MAX_TPM_BYTES),
            pcrs=reader.read("pcrs", _read_banks),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "message": _base64(self.message),
            "signature": _base64(self.signature),
            "pcrs": {"sha256": {str(pcr): self.pcrs[pcr].hex() for pcr in sorted(self.pcrs)}},
        }


@dataclass(frozen=True, slots=True)
class CpuReport:
    """A CPU's report on the machine that holds the TPM, what it is over, and who certifies the CPU.

    `report` is AMD's ATTESTATION_REPORT, `runtime_data` the JSON document that its report data is
    the digest of, `chain` the DER certificates VCEK, ASK and ARK. See `aicert.sev`.
    """

    report: bytes
    runtime_data: bytes
    chain: tuple[bytes, ...]

    TYPE: ClassVar[str] = "azure-sev-snp"

    @classmethod
    def read(cls, reader: Reader) -> "CpuReport":
        """Read the JSON form."""
        reader.const("type", cls.TYPE)
        return cls(
            report=reader.octets64("report", max_bytes=sev.REPORT_BYTES),
            runtime_data=reader.octets64("runtimeData", max_bytes=sev.MAX_RUNTIME_BYTES),
            chain=reader.octets64_list(
                "certificateChain", max_items=_SEV_CHAIN, max_bytes=MAX_X509_BYTES
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": self.TYPE,
            "report": _base64(self.report),
            "runtimeData": _base64(self.runtime_data),
            "certificateChain": [_base64(der) for der in self.chain],
        }


@dataclass(frozen=True, slots=True)
class Certificate:
    """A parsed certificate. `Certificate.parse(c.encode()) == c`.

    `digest` names it: the SHA-256, in hex, of the file.
    """

    payload: bytes
    keyid: str
    signature: bytes
    attestation_key: AttestationKey
    baseline_quote: Quote
    quote: Quote
    records: tuple[log.Record, ...]
    boot_event_log: bytes | None = None
    timestamp: bytes | None = None
    cpu_report: CpuReport | None = None

    @classmethod
    def parse(cls, data: bytes) -> "Certificate":
        """Parse a certificate file.

        Raises:
            Error: (CertificateError, CanonicalError, LogError, EventError, ManifestError) the
                bytes are not exactly a version 1 certificate in canonical form.
        """
        top = Reader(
            canonical.loads_canonical(data, max_bytes=MAX_BYTES), "certificate", CertificateError
        )
        top.const("mediaType", MEDIA_TYPE)
        envelope = top.child("dsseEnvelope")
        envelope.const("payloadType", dsse.PAYLOAD_TYPE)
        payload = envelope.octets64("payload", max_bytes=MAX_BYTES)
        (signature,) = envelope.children("signatures", min_items=1, max_items=1)
        evidence = top.child("evidence")
        key = evidence.child("attestationKey")
        certificate = cls(
            payload=payload,
            keyid=signature.text("keyid", max_length=200),
            signature=signature.octets64("sig", max_bytes=MAX_TPM_BYTES),
            attestation_key=AttestationKey(
                public=key.octets64("public", max_bytes=MAX_TPM_BYTES),
                chain=key.octets64_list(
                    "certificateChain", max_items=MAX_CHAIN, max_bytes=MAX_X509_BYTES
                ),
            ),
            baseline_quote=evidence.read("baselineQuote", Quote.read),
            quote=evidence.read("quote", Quote.read),
            records=log.read(evidence.array("measurementLog", max_items=log.MAX_RECORDS)),
            boot_event_log=None
            if evidence.null("bootEventLog")
            else evidence.octets64("bootEventLog", max_bytes=MAX_BOOT_LOG_BYTES),
            timestamp=None
            if top.null("timestamp")
            else top.octets64("timestamp", max_bytes=MAX_TIMESTAMP_BYTES),
            # The one field that need not be there: only confidential machines have it.
            cpu_report=evidence.read("cpuReport", CpuReport.read)
            if evidence.has("cpuReport")
            else None,
        )
        for reader in (key, evidence, signature, envelope, top):
            reader.done()
        return certificate

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        boot = self.boot_event_log
        return {
            "mediaType": MEDIA_TYPE,
            "dsseEnvelope": {
                "payloadType": dsse.PAYLOAD_TYPE,
                "payload": _base64(self.payload),
                "signatures": [{"keyid": self.keyid, "sig": _base64(self.signature)}],
            },
            "evidence": {
                "attestationKey": {
                    "public": _base64(self.attestation_key.public),
                    "certificateChain": [_base64(der) for der in self.attestation_key.chain],
                },
                "baselineQuote": self.baseline_quote.to_json(),
                "quote": self.quote.to_json(),
                "measurementLog": log.to_json(self.records),
                "bootEventLog": None if boot is None else _base64(boot),
                **({} if self.cpu_report is None else {"cpuReport": self.cpu_report.to_json()}),
            },
            "timestamp": None if self.timestamp is None else _base64(self.timestamp),
        }

    def encode(self) -> bytes:
        """Return the certificate file: canonical JSON, no newline at the end."""
        return canonical.dumps(self.to_json())

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def signed_bytes(self) -> bytes:
        """The bytes that the AK signs and the quote is bound to (the DSSE encoding)."""
        return dsse.pae(self.payload)


def _read_banks(reader: Reader) -> dict[int, bytes]:
    bank = reader.child("sha256")
    pcrs = {pcr: bank.octets(str(pcr), 32) for pcr in range(PCR_COUNT) if bank.has(str(pcr))}
    bank.done()
    return pcrs


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
