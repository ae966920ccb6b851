"""The attacker: makes evidence byte by byte, with keys that live outside any TPM.

A verifier must accept what a TPM makes and nothing else. To test the second half, this module
speaks the TPM's formats itself and can lie in every field: a restricted key in a real TPM would
refuse to sign most of it. With nothing altered it makes certificates that verify under its own
root, which shows that each refusal in the tests has only the named cause.
"""

import hashlib
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID, ObjectIdentifier

from aicert import dsse, events, log, statement
from aicert.certificate import AttestationKey, Certificate, Quote
from aicert.manifest import File, Manifest

AK_USAGE = ObjectIdentifier("2.23.133.8.3")
EK_USAGE = ObjectIdentifier("2.23.133.8.1")

STARTED = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
FINISHED = STARTED + timedelta(minutes=2)

FIXED_TPM, FIXED_PARENT, SENSITIVE_ORIGIN, USER_AUTH = 1 << 1, 1 << 4, 1 << 5, 1 << 6
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
AK_ATTRIBUTES = FIXED_TPM | FIXED_PARENT | SENSITIVE_ORIGIN | USER_AUTH | RESTRICTED | SIGN

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def tpm2b(data: bytes) -> bytes:
    """A TPM2B: 16-bit size, then the bytes."""
    return struct.pack(">H", len(data)) + data


def new_key(kind: str = "ecc") -> Key:
    """A signing key of the kind that an AK has."""
    if kind == "ecc":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


def public_area(key: Key, attributes: int = AK_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of a signing key (TPM 2.0 Part 2, 12.2.4)."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        numbers = key.public_key().public_numbers()
        head = struct.pack(">HHI", 0x0023, 0x000B, attributes) + tpm2b(b"")
        scheme = struct.pack(">HHHHH", 0x0010, 0x0018, 0x000B, 0x0003, 0x0010)
        point = tpm2b(numbers.x.to_bytes(32, "big")) + tpm2b(numbers.y.to_bytes(32, "big"))
        return head + scheme + point
    modulus = key.public_key().public_numbers().n
    head = struct.pack(">HHI", 0x0001, 0x000B, attributes) + tpm2b(b"")
    scheme = struct.pack(">HHHHI", 0x0010, 0x0014, 0x000B, key.key_size, 0)
    return head + scheme + tpm2b(modulus.to_bytes(key.key_size // 8, "big"))


def sign_tpm(key: Key, data: bytes) -> bytes:
    """TPMT_SIGNATURE with SHA-256 (TPM 2.0 Part 2, 11.3.4)."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return (
            struct.pack(">HH", 0x0018, 0x000B)
            + tpm2b(r.to_bytes(32, "big"))
            + tpm2b(s.to_bytes(32, "big"))
        )
    signature = key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return struct.pack(">HH", 0x0014, 0x000B) + tpm2b(signature)


def sign_dsse(key: Key, data: bytes) -> bytes:
    """The signature as an envelope carries it."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


@dataclass(frozen=True)
class Attest:
    """The fields of a TPMS_ATTEST for a quote, each free to lie."""

    extra_data: bytes
    pcr_digest: bytes
    selection: bytes
    magic: int = 0xFF544347
    type: int = 0x8018
    qualified_signer: bytes = b"\x00\x0b" + b"\x11" * 32
    clock: int = 1000
    reset_count: int = 3
    restart_count: int = 0
    safe: int = 1
    firmware: int = 0x2026_0000_0000_0001
    trailing: bytes = b""

    def encode(self) -> bytes:
        """TPMS_ATTEST (TPM 2.0 Part 2, 10.12.8)."""
        return (
            struct.pack(">IH", self.magic, self.type)
            + tpm2b(self.qualified_signer)
            + tpm2b(self.extra_data)
            + struct.pack(">QIIB", self.clock, self.reset_count, self.restart_count, self.safe)
            + struct.pack(">Q", self.firmware)
            + self.selection
            + tpm2b(self.pcr_digest)
            + self.trailing
        )


def selection(pcrs: Iterable[int], algorithm: int = 0x000B) -> bytes:
    """TPML_PCR_SELECTION with one bank."""
    bits = sum(1 << pcr for pcr in pcrs)
    return struct.pack(">IHB", 1, algorithm, 3) + bits.to_bytes(3, "little")


@dataclass
class Authority:
    """A root and an intermediate that certify attestation keys."""

    not_before: datetime = STARTED - timedelta(days=365)
    not_after: datetime = STARTED + timedelta(days=3650)
    name: str = "forger"
    root_key: Key = field(default_factory=new_key)
    intermediate_key: Key = field(default_factory=new_key)

    def certify(
        self, key: Any, *, subject: str, issuer: str, by: Key, ca: bool, **options: Any
    ) -> x509.Certificate:
        """Issue one certificate; `options` may set not_before, not_after, usage."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(options.get("not_before", self.not_before))
            .not_valid_after(options.get("not_after", self.not_after))
            .add_extension(
                x509.BasicConstraints(ca=ca, path_length=options.get("path_length")), True
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca, key_cert_sign=ca, crl_sign=ca,
                    content_commitment=False, key_encipherment=False, data_encipherment=False,
                    key_agreement=False, encipher_only=False, decipher_only=False,
                ),
                True,
            )
        )  # fmt: skip
        usage = options.get("usage", None if ca else AK_USAGE)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        return builder.sign(by, options.get("hash", hashes.SHA256()))

    @property
    def root(self) -> x509.Certificate:
        """The self-signed root; always the same certificate."""
        if not hasattr(self, "_root"):
            self._root = self.certify(
                self.root_key.public_key(),
                subject=f"{self.name} root",
                issuer=f"{self.name} root",
                by=self.root_key,
                ca=True,
            )
        return self._root

    @property
    def root_pem(self) -> bytes:
        """The root, as PEM."""
        return self.root.public_bytes(serialization.Encoding.PEM)

    def chain(self, key: Any, **options: Any) -> tuple[bytes, ...]:
        """Certify an attestation key: leaf, intermediate, root, as DER."""
        intermediate = self.certify(
            self.intermediate_key.public_key(),
            subject=f"{self.name} intermediate",
            issuer=f"{self.name} root",
            by=self.root_key,
            ca=True,
            path_length=0,
        )
        leaf = self.certify(
            key,
            subject=f"{self.name} AK",
            issuer=f"{self.name} intermediate",
            by=self.intermediate_key,
            ca=False,
            **options,
        )
        return tuple(
            item.public_bytes(serialization.Encoding.DER)
            for item in (leaf, intermediate, self.root)
        )


def run_events(files: Iterable[File] | None = None, nonce: bytes = b"\x01" * 32) -> list[Any]:
    """The events of a plausible run; the job's baseline is filled in by the forger."""
    limits = {
        "memory": 1 << 30, "cpus": 1, "gpus": 0, "pids": 64, "time": 60, "tmp": 1 << 20,
        "shm": 1 << 20,
    }  # fmt: skip
    spec = {
        "name": "digits",
        "description": "",
        "image": "oci:image",
        "command": ["python3", "/inputs/code/train.py"],
        "environment": {"OMP_NUM_THREADS": "1"},
        "inputs": [
            {"name": "code", "uri": "file:train.py", "revision": None, "sha256": "aa" * 32,
             "target": "/inputs/code"},
            {"name": "data", "uri": "file:data", "revision": None, "sha256": None,
             "target": "/inputs/data"},
        ],
        "outputs": ["**"],
        "metrics": "metrics.json",
        "limits": limits,
        "seed": 0,
    }  # fmt: skip
    tree = Manifest.of(
        list(files)
        if files is not None
        else [
            File("metrics.json", 2, hashlib.sha256(b"{}").hexdigest()),
            File("model.safetensors", 7, hashlib.sha256(b"weights").hexdigest()),
        ]
    )
    contents: list[dict[str, Any]] = [
        {"type": "job", "version": 1, "run": str(uuid.UUID(int=1)), "nonce": nonce.hex(),
         "baseline": {"sha256": "00" * 32}, "agent": {"name": "aicert", "version": "0.1.0"},
         "startedOn": events.format_time(STARTED), "spec": spec},
        {"type": "input", "name": "code", "uri": "file:train.py", "requested": "file:train.py",
         "revision": None, "kind": "file", "files": 1, "size": 10, "root": "bb" * 32,
         "manifest": {"sha256": "cc" * 32}, "sha256": "aa" * 32, "gitCommit": None,
         "expected": "aa" * 32},
        {"type": "input", "name": "data", "uri": "file:data", "requested": "file:data",
         "revision": None, "kind": "tree", "files": 2, "size": 20, "root": "dd" * 32,
         "manifest": {"sha256": "ee" * 32}, "sha256": None, "gitCommit": None, "expected": None},
        {"type": "image", "reference": "oci:image", "config": {"sha256": "11" * 32},
         "manifest": {"sha256": "22" * 32}, "layers": [{"sha256": "33" * 32}],
         "platform": {"os": "linux", "architecture": "amd64"}},
        {"type": "trainingStart", "command": spec["command"],
         "environment": {"OMP_NUM_THREADS": "1", "HOME": "/tmp"}, "user": "65534:65534",
         "network": "none",
         "mounts": [{"target": "/inputs/code", "input": "code", "mode": "ro"},
                    {"target": "/inputs/data", "input": "data", "mode": "ro"},
                    {"target": "/outputs", "mode": "rw"}],
         "limits": limits, "devices": [], "engine": {"name": "podman", "version": "4.3.1"}},
        {"type": "trainingEnd", "exitCode": 0, "durationMilliseconds": 1234,
         "log": {"sha256": "44" * 32, "size": 99},
         "metrics": {"sha256": hashlib.sha256(b"{}").hexdigest(), "values": {"loss": 0.25}}},
        {"type": "outputs", "finishedOn": events.format_time(FINISHED), "root": tree.root,
         "files": [file.to_json() for file in tree.files], "manifest": {"sha256": tree.digest}},
    ]  # fmt: skip
    return [events.read_event(content) for content in contents]


RECORDS = events.Records("lines/1", "99" * 32, 10, 9)


def committing(listed: list[Any], asked: str | None, held: events.Records | None) -> list[Any]:
    """The events of a run whose spec asks for records of its data, and what was measured."""
    code, data = listed[0].spec.inputs
    spec = replace(listed[0].spec, inputs=(code, replace(data, records=asked)))
    first = replace(listed[0], spec=spec)
    return [first, listed[1], replace(listed[2], records=held), *listed[3:]]


@dataclass
class Forger:
    """Makes certificates. Every part can be replaced before `certificate` puts them together."""

    kind: str = "ecc"
    authority: Authority = field(default_factory=Authority)
    attributes: int = AK_ATTRIBUTES
    pcrs: tuple[int, ...] = tuple(range(16))
    start: dict[int, bytes] = field(
        default_factory=lambda: {
            pcr: bytes([pcr]) * 32 if pcr < 8 else bytes(32) for pcr in range(24)
        }
    )
    events: list[Any] = field(default_factory=run_events)

    def __post_init__(self) -> None:
        """Make the attestation key and its certificate."""
        self.key = new_key(self.kind)
        self.public = public_area(self.key, self.attributes)
        self.name = b"\x00\x0b" + hashlib.sha256(self.public).digest()
        self.chain = self.authority.chain(self.key.public_key())

    def attest(self, extra: bytes, values: dict[int, bytes], /, **changes: Any) -> Attest:
        """A quote's structure over the values of `self.pcrs`."""
        digest = hashlib.sha256(b"".join(values[pcr] for pcr in self.pcrs)).digest()
        return replace(Attest(extra, digest, selection(self.pcrs)), **changes)

    def quote(self, attest: Attest, values: dict[int, bytes]) -> Quote:
        """Sign a quote's structure."""
        message = attest.encode()
        return Quote(message, sign_tpm(self.key, message), {p: values[p] for p in self.pcrs})

    def certificate(
        self,
        *,
        baseline: dict[str, Any] | None = None,
        final: dict[str, Any] | None = None,
        payload: bytes | None = None,
        **changes: Any,
    ) -> Certificate:
        """Put a certificate together.

        `baseline` and `final` change fields of the two quotes, `payload` replaces the statement,
        and `changes` replaces fields of the certificate.
        """
        job = next(e for e in self.events if isinstance(e, events.Job))
        first = self.quote(
            self.attest(bytes.fromhex(job.nonce), self.start, **(baseline or {})), self.start
        )
        digest = hashlib.sha256(first.message).hexdigest()
        done = [
            replace(e, baseline=digest) if isinstance(e, events.Job) else e for e in self.events
        ]
        records = tuple(log.Record.of(event) for event in done)
        values = log.replay(records, self.start)
        if payload is None:
            payload = statement.encode(log.parse_run(records))
        signed = dsse.pae(payload)
        last = {"clock": 2000, **(final or {})}
        fields: dict[str, Any] = {
            "payload": payload,
            "keyid": self.name.hex(),
            "signature": sign_dsse(self.key, signed),
            "attestation_key": AttestationKey(self.public, self.chain),
            "baseline_quote": first,
            "quote": self.quote(
                self.attest(hashlib.sha256(signed).digest(), values, **last), values
            ),
            "records": records,
        }
        return Certificate(**{**fields, **changes})
