"""What an Azure VM attests with: a key that Azure certified, and what a CPU says of the VM.

The virtual TPM of a Trusted Launch or confidential VM holds an attestation key and its certificate.
Nobody needs to certify anything: the chain leads to Azure's own root, which verifiers pin. The
intermediate CAs are not in the TPM; they are carried with this program, or named by the
certificate below (authority information access), and they are renewed every few years.

A confidential VM with AMD's SEV-SNP also holds a report of its CPU, made when it was started, over
a document that names the attestation key; the CPU's own certificate comes from Azure's metadata
service. Nothing here is believed: the verifier checks all of it, and so does this, so that a
machine that cannot attest says so before a training and not after.
"""

import base64
import json
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from aicert import sev, tpm2
from aicert import x509 as chains
from aicert.agent.tpm_errors import NvError
from aicert.certificate import CpuReport
from aicert.errors import Error
from aicert.reader import Reader
from aicert.trust import load_certificates

if TYPE_CHECKING:  # whoever starts machines from outside loads this, and no TPM library
    from aicert.agent.tpm import Ak, Tpm

AK_HANDLE = 0x81000003
AK_CERTIFICATE_INDEX = 0x01C101D0
REPORT_INDEX = 0x01400001

METADATA = "http://169.254.169.254"
"""Azure's metadata service, which every VM reaches at this address and nobody else does."""

_CERTIFICATION = "/metadata/THIM/amd/certification"
_USER_DATA = "/metadata/instance/compute/userData?api-version=2021-01-01&format=text"
SECRET_BYTES = 32

_CARRIED = "azure-vtpm.pem"
_MAX_ANSWER = 64 << 10
_SECONDS = 10.0
CERTIFICATE_SECONDS = 120.0
METADATA_SECONDS = 90.0
_LOOK_SECONDS = 1.0
_MAX_URLS = 4

# The container of the report, as it stands in the NV index: Azure calls it the HCL report.
_HEAD = struct.Struct("<4sIII16x")  # signature, version, size, type of request
_INNER = struct.Struct("<5I")  # size, version, type of report, hash, size of the document
_SNP, _TRUSTED_VM = 2, 3
_SHA256 = 1

Get = Callable[[str, dict[str, str]], bytes]
"""Gets what stands at a URL, with these headers."""


class AzureError(Error):
    """This machine cannot attest as an Azure VM does."""

    code = "azure.attestation"


class NotAzureError(AzureError):
    """The TPM is not one of an Azure VM with Trusted Launch."""

    code = "azure.not-a-trusted-vm"


class IntermediateError(AzureError):
    """An intermediate certificate is missing."""

    code = "azure.intermediate"


class CpuReportError(AzureError):
    """The CPU's report cannot be used, or its certificate cannot be had."""

    code = "azure.cpu-report"


class OwnerError(AzureError):
    """What the machine was given by the one that it was made for cannot be read."""

    code = "azure.owner"


def is_azure(tpm: "Tpm") -> bool:
    """Tell whether the TPM holds what that of an Azure VM holds."""
    return tpm.has_nv(AK_CERTIFICATE_INDEX)


def user_data(secret: bytes) -> str:
    """Return the user data (base64) that gives a VM the secret of the one it is made for."""
    return base64.b64encode(json.dumps({"aicert": {"owner": secret.hex()}}).encode()).decode()


def owner_secret(*, metadata: str = METADATA, get: Get | None = None) -> bytes | None:
    """Return the secret of the one that this VM was made for; None where it was given none.

    It is in the VM's user data, which only the VM, and who may read it in Azure, can see. Nothing
    else in there is heeded.

    Raises:
        OwnerError: the user data cannot be had, or is not ours.
    """
    address = f"{metadata}{_USER_DATA}"
    try:
        text = (get or _get_directly)(address, {"Metadata": "true"})
        if not text.strip():
            return None
        reader = Reader(json.loads(base64.b64decode(text, validate=True)), "user data", OwnerError)
        inner = reader.child("aicert")
        secret = inner.octets("owner", SECRET_BYTES)
        inner.done()
        reader.done()
    except (OSError, ValueError) as error:
        raise OwnerError(
            "the VM's user data does not say whom it was made for",
            got=f"{address}: {type(error).__name__}: {error}",
            advice="let nothing on the VM stand between the agent and that address; give a VM of "
            "your own no user data",
        ) from error
    return secret


def attestation_key(
    tpm: "Tpm", *, intermediates: Path | None = None, get: Get | None = None
) -> tuple["Ak", tuple[bytes, ...]]:
    """Return the VM's attestation key and its certificate chain (DER, leaf to root).

    Args:
        tpm: the VM's TPM.
        intermediates: PEM file with CA certificates besides those that are carried.
        get: asks a CA for its certificate where none is carried; by default over HTTP.

    Raises:
        NotAzureError: the TPM holds no such key or certificate.
        IntermediateError: the chain cannot be completed.
        TpmError: the TPM refused.
    """
    try:
        ak = tpm.open_ak(AK_HANDLE)
        leaf = _certificate(tpm)
    except Error as error:
        raise NotAzureError(
            "the TPM holds no attestation key that Azure certified",
            got=f"{error.message} ({error.got})" if error.got else error.message,
            expected=f"a key at {AK_HANDLE:#x}, its certificate in NV index "
            f"{AK_CERTIFICATE_INDEX:#010x}",
            advice="the VM needs Trusted Launch, or to be confidential, with vTPM enabled",
        ) from error
    chain = complete(leaf, _carried(intermediates), get or _get)
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    certified = x509.load_der_x509_certificate(leaf).public_key().public_bytes(*spki)
    if certified != tpm2.parse_public(ak.public).key.public_bytes(*spki):
        raise NotAzureError(
            "the certificate in the TPM is another key's than the one at its handle",
            got=f"NV index {AK_CERTIFICATE_INDEX:#010x}, handle {AK_HANDLE:#x}",
            advice="somebody has changed the TPM: make a new VM",
        )
    return ak, chain


def _certificate(tpm: "Tpm") -> bytes:
    """Read the key's certificate; for a new VM the firmware asks for it while the system boots."""
    from aicert.agent.tpm import trim_der

    deadline = time.monotonic() + CERTIFICATE_SECONDS
    while True:
        try:
            return trim_der(tpm.read_nv(AK_CERTIFICATE_INDEX))
        except NvError:
            if not tpm.has_nv(AK_CERTIFICATE_INDEX) or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)


def complete(leaf: bytes, carried: tuple[x509.Certificate, ...], get: Get) -> tuple[bytes, ...]:
    """Return the chain from a certificate to a root that signed itself.

    A certificate is put into the chain only if it signed the one before. Whether the root is to be
    trusted is the verifier's to say.

    Raises:
        IntermediateError: an issuer's certificate is neither carried nor to be had.
    """
    chain = [_load(leaf)]
    while chain[-1].issuer != chain[-1].subject:
        child = chain[-1]
        found = next((ca for ca in carried if _issued(child, ca)), None) or _ask(child, get)
        if found is None or len(chain) == chains.MAX_CERTIFICATES:
            raise IntermediateError(
                "the certificate of the attestation key's issuer is missing",
                got=child.issuer.rfc4514_string(),
                expected="one that is carried, or that the certificate says where to find",
                advice="let the VM reach the addresses of Azure's CAs, or give their certificates "
                "(PEM) with --intermediates; Microsoft publishes them with Trusted Launch's FAQ",
            )
        chain.append(found)
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)


def cpu_report(
    tpm: "Tpm", ak: "Ak", *, metadata: str = METADATA, get: Get | None = None
) -> CpuReport | None:
    """Return the CPU's report with its certificates; None where the VM is not a confidential one.

    Raises:
        CpuReportError: there is a report that cannot be used: another kind of CPU, or its
            certificate cannot be had, or a verifier would refuse it.
    """
    if not tpm.has_nv(REPORT_INDEX):
        return None
    wrapped = unwrap(tpm.read_nv(REPORT_INDEX))
    if wrapped is None:
        return None
    report, document = wrapped
    address = f"{metadata}{_CERTIFICATION}"
    try:
        answer: Any = json.loads((get or _get_directly)(address, {"Metadata": "true"}))
        pem = f"{answer['vcekCert']}\n{answer['certificateChain']}".encode()
        chain = tuple(
            certificate.public_bytes(Encoding.DER)
            for certificate in x509.load_pem_x509_certificates(pem)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CpuReportError(
            "the CPU's certificate cannot be had from Azure's metadata service",
            got=f"{address}: {type(error).__name__}: {error}",
            advice="let nothing on the VM stand between the agent and that address",
        ) from error
    key = tpm2.parse_public(ak.public).key
    try:
        sev.check(report, document, chain, key=key, at=[datetime.now(UTC)])
    except Error as error:
        raise CpuReportError(
            "the CPU's report is one that verifiers would refuse",
            got=f"{error.code}: {error.message}; got {error.got}",
            advice="make a new VM; if it recurs, use one with Trusted Launch alone",
        ) from error
    return CpuReport(report, document, chain)


def unwrap(data: bytes) -> tuple[bytes, bytes] | None:
    """Take AMD's report, and the document that it is over, out of what the NV index holds.

    Nothing authenticates the wrapping, so it is left behind. None where no CPU reports: the
    document of a VM with Trusted Launch alone.

    Raises:
        CpuReportError: it is malformed, or of another kind of CPU.
    """
    try:
        signature, version, _, _ = _HEAD.unpack_from(data)
        start = _HEAD.size + sev.REPORT_BYTES
        _, _, kind, digest, size = _INNER.unpack_from(data, start)
    except struct.error as error:
        raise CpuReportError("the CPU's report ends too soon", got=f"{len(data)} bytes") from error
    start += _INNER.size
    if signature != b"HCLA" or version not in (1, 2) or size > len(data) - start:
        raise CpuReportError(
            "the CPU's report is malformed",
            got=f"{signature!r}, version {version}, {size} bytes of {len(data) - start}",
        )
    if kind == _TRUSTED_VM:
        return None
    if kind != _SNP or digest != _SHA256:
        raise CpuReportError(
            "the report is of a kind of CPU that is not supported",
            got=f"type {kind}, hash {digest}",
            expected="type 2 (AMD SEV-SNP), hash 1 (SHA-256)",
            advice="use a confidential VM with an AMD CPU (the DCas and ECas series), or one with "
            "Trusted Launch",
        )
    return data[_HEAD.size :][: sev.REPORT_BYTES], data[start:][:size]


def _carried(more: Path | None) -> tuple[x509.Certificate, ...]:
    pem = files("aicert.agent").joinpath(_CARRIED).read_bytes()
    given = () if more is None else load_certificates(more)
    return (*given, *x509.load_pem_x509_certificates(pem))


def _load(der: bytes) -> x509.Certificate:
    try:
        return chains.parse(der, 0)
    except Error as error:
        raise NotAzureError("a certificate cannot be read", got=error.message) from error


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)  # names and signature
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _ask(child: x509.Certificate, get: Get) -> x509.Certificate | None:
    """Ask for the issuer's certificate where the certificate says (RFC 5280, 4.2.2.1)."""
    try:
        access = child.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return None
    urls = [
        item.access_location.value
        for item in access
        if item.access_method == AuthorityInformationAccessOID.CA_ISSUERS
        and isinstance(item.access_location, x509.UniformResourceIdentifier)
    ]
    for url in [url for url in urls if url.startswith(("http://", "https://"))][:_MAX_URLS]:
        try:
            found = _load(get(url, {}))
        except (OSError, ValueError, Error):
            continue
        if _issued(child, found):
            return found
    return None


def _get(url: str, headers: dict[str, str], *, direct: bool = False) -> bytes:
    handlers = [urllib.request.ProxyHandler({})] if direct else []
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (http and https alone)
    with urllib.request.build_opener(*handlers).open(request, timeout=_SECONDS) as response:
        data = bytes(response.read(_MAX_ANSWER + 1))
    if len(data) > _MAX_ANSWER:
        raise ValueError("a larger answer than any certificate")
    return data


def _get_directly(url: str, headers: dict[str, str]) -> bytes:
    """Ask past every proxy: the metadata service answers the VM alone.

    While the system boots it may not be ready, and says so in several ways: it is asked again.
    """
    deadline = time.monotonic() + METADATA_SECONDS
    while True:
        try:
            return _get(url, headers, direct=True)
        except OSError as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else None
            passing = status is None or status in (404, 410, 429) or status >= 500
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)
