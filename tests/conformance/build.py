"""Build the corpus: `python -m tests.conformance.build`, or `make corpus`.

Each case is a folder in `cases/`: `certificate.json`, `case.json` (what is expected, and the
model's files) and `README.md` (why). The attacker makes most of the evidence with keys outside any
TPM, so that one thing at a time can be wrong and everything else right; where a TPM is needed for
the point, a real swtpm is driven. The keys are made anew at every build: a rebuilt corpus has
other bytes and the same verdicts.
"""

import base64
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from tpm2_pytss import ESYS_TR

from aicert import canonical, dsse, events, log, statement, tpm2
from aicert.agent.ca import DevelopmentCa
from aicert.agent.swtpm import Swtpm, manufacture
from aicert.agent.tpm import Tpm
from aicert.certificate import AttestationKey, Certificate, Quote
from tests.support import forger
from tests.support.forger import (
    STARTED,
    Authority,
    Forger,
    committing,
    run_events,
    selection,
    sign_tpm,
    tpm2b,
)
from tests.support.nv import make_primary

HERE = Path(__file__).parent
CASES = HERE / "cases"
ROOTS = HERE / "roots.pem"

AUTHORITY = Authority(name="conformance")
OTHER = Authority(name="another")
MODEL = {"metrics.json": "{}", "model.safetensors": "weights"}


@dataclass
class Case:
    """One case; `expect` is `verified` or the code of the error; `make` gives its files too."""

    name: str
    why: str
    expect: str
    make: Callable[[], tuple[bytes, dict[str, bytes]]]
    model: dict[str, Any] | None = field(default_factory=lambda: dict(MODEL))
    options: tuple[str, ...] = ("--allow-simulated",)
    extra: dict[str, Any] = field(default_factory=dict)


CASES_LIST: list[Case] = []


def case(
    name: str, expect: str, why: str, **options: Any
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a case.

    The function returns a certificate, or its bytes; or these and the other files of the case.
    """

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        def encoded() -> tuple[bytes, dict[str, bytes]]:
            made = make()
            certificate, files = made if isinstance(made, tuple) else (made, {})
            if not isinstance(certificate, bytes):
                certificate = bytes(certificate.encode())
            return certificate, files

        CASES_LIST.append(Case(name, why, expect, encoded, **options))
        return make

    return register


def good(**options: Any) -> Forger:
    """A forger whose certificates verify under the corpus's root."""
    return Forger(authority=AUTHORITY, **options)


def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A good certificate with its JSON changed, in canonical form again."""
    value = good().certificate().to_json()
    change(value)
    return canonical.dumps(value)


def simple(name: str, expect: str, why: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Register a case that changes the JSON of a good certificate."""
    case(name, expect, why)(lambda: edited(change))


def raw(name: str, expect: str, why: str, change: Callable[[bytes], bytes]) -> None:
    """Register a case that changes the bytes of a good certificate."""
    case(name, expect, why)(lambda: change(good().certificate().encode()))


def at(value: Any, *path: Any) -> Any:
    """Walk into nested JSON."""
    for step in path:
        value = value[step]
    return value


# -- good ones -------------------------------------------------------------------------------------

case("good-ecc", "verified", "A complete certificate with an ECC P-256 attestation key.")(
    lambda: good().certificate()
)
case("good-rsa", "verified", "A complete certificate with an RSA-2048 attestation key.")(
    lambda: good(kind="rsa").certificate()
)
case("good-without-files", "verified", "The certificate alone, without a model.", model=None)(
    lambda: good().certificate()
)
case(
    "good-with-all-24-pcrs",
    "verified",
    "Both quotes cover more PCRs than they must; all are accounted for.",
)(lambda: good(pcrs=tuple(range(24))).certificate())
case(
    "good-start-not-zero",
    "verified",
    "PCRs 8 and 14 were not zero when the run began: the baseline says so.",
)(lambda: good(start={pcr: bytes([pcr + 1]) * 32 for pcr in range(24)}).certificate())


@case(
    "good-chain-expired-since",
    "verified",
    "The AK's certificate was valid at the time of the run and has expired since. A certificate "
    "outlives the key that signed it (Azure's intermediate expired in November 2025).",
)
def _() -> Certificate:
    made = good()
    made.chain = AUTHORITY.chain(made.key.public_key(), not_after=STARTED + timedelta(days=2))
    return made.certificate()


# -- form ------------------------------------------------------------------------------------------

raw("form-empty", "json.invalid", "An empty file.", lambda data: b"")
raw("form-not-json", "json.invalid", "Not JSON.", lambda data: b"certificate")
raw("form-cut", "json.invalid", "The file was cut.", lambda data: data[: len(data) // 2])
raw("form-bom", "json.invalid", "A byte order mark.", lambda data: b"\xef\xbb\xbf" + data)
raw(
    "form-trailing-newline",
    "json.not-canonical",
    "A newline at the end: the same value in other bytes, so another digest.",
    lambda data: data + b"\n",
)
raw(
    "form-indented",
    "json.not-canonical",
    "The same value, indented.",
    lambda data: json.dumps(json.loads(data), indent=1, ensure_ascii=False).encode(),
)
raw(
    "form-keys-reordered",
    "json.not-canonical",
    "The same value, its keys in another order.",
    lambda data: json.dumps(
        dict(reversed(json.loads(data).items())), separators=(",", ":")
    ).encode(),
)
raw(
    "form-escaped",
    "json.not-canonical",
    "The same value, a character escaped.",
    lambda data: data.replace(b'"mediaType"', b'"media\\u0054ype"'),
)
raw(
    "form-duplicate-key",
    "json.duplicate-key",
    "A key stands twice: two parsers may read two certificates.",
    lambda data: data.replace(b'{"dsseEnvelope"', b'{"dsseEnvelope":{},"dsseEnvelope"', 1),
)
raw(
    "form-duplicate-key-escaped",
    "json.duplicate-key",
    "A key stands twice, once with an escape.",
    lambda data: data.replace(b'{"dsseEnvelope"', b'{"dsse\\u0045nvelope":{},"dsseEnvelope"', 1),
)
raw(
    "form-deep-nesting",
    "json.too-large",
    "A thousand arrays in each other.",
    lambda data: b"[" * 1000 + b"]" * 1000,
)
raw(
    "form-nan",
    "json.invalid",
    "NaN, which JSON does not have.",
    lambda data: data.replace(b'"durationMilliseconds":1234', b'"durationMilliseconds":NaN'),
)
raw(
    "form-huge-integer",
    "json.invalid",
    "An integer that parsers round differently.",
    lambda data: data.replace(
        b'"durationMilliseconds":1234', b'"durationMilliseconds":9007199254740993'
    ),
)
raw(
    "form-number-too-large",
    "json.invalid",
    "A number that no double holds: some parsers make it infinite.",
    lambda data: data.replace(b'"loss":0.25', b'"loss":1e400'),
)
raw(
    "form-negative-zero",
    "json.not-canonical",
    "A zero with a sign, which is the same number.",
    lambda data: data.replace(b'"exitCode":0', b'"exitCode":-0'),
)
raw(
    "form-integer-with-a-fraction",
    "json.not-canonical",
    "An integer written as a fraction, which is the same number.",
    lambda data: data.replace(b'"exitCode":0', b'"exitCode":0.0'),
)
raw(
    "form-lone-surrogate",
    "json.invalid",
    "A lone surrogate, which has no UTF-8 form.",
    lambda data: data.replace(b'"name":"digits"', b'"name":"\\ud800"', 1),
)
raw(
    "form-not-utf8",
    "json.invalid",
    "Bytes that are not UTF-8.",
    lambda data: data.replace(b'"name":"digits"', b'"name":"\xff\xfe"', 1),
)
case(
    "form-oversize",
    "json.too-large",
    "A file of more than 16 MiB.",
    extra={"repeat": ["[", 17 << 20]},
)(lambda: b"")
simple(
    "form-unknown-field",
    "certificate.format",
    "A field that nobody knows, and that nothing would check.",
    lambda value: value.update(comment="trust me"),
)
simple(
    "form-unknown-evidence",
    "certificate.format",
    "A field within the evidence that nobody knows.",
    lambda value: value["evidence"].update(simulation=False),
)
simple(
    "form-missing-field",
    "certificate.format",
    "A field is missing: no default may stand in for it.",
    lambda value: value["evidence"].pop("baselineQuote"),
)
simple(
    "form-null-quote",
    "certificate.format",
    "The quote is null.",
    lambda value: value["evidence"].update(quote=None),
)
simple(
    "form-older-version",
    "certificate.format",
    "An older schema: a verifier must not fall back to weaker rules.",
    lambda value: value.update(mediaType="application/vnd.aicert.certificate.v0+json"),
)
simple(
    "form-newer-version",
    "certificate.format",
    "A newer schema, whose rules are not known.",
    lambda value: value.update(mediaType="application/vnd.aicert.certificate.v2+json"),
)
simple(
    "form-two-signatures",
    "certificate.format",
    "Two signatures: which one counts?",
    lambda value: at(value, "dsseEnvelope", "signatures").append(
        at(value, "dsseEnvelope", "signatures", 0)
    ),
)
simple(
    "form-no-signature",
    "certificate.format",
    "No signature at all.",
    lambda value: at(value, "dsseEnvelope").update(signatures=[]),
)
simple(
    "form-payload-type",
    "certificate.format",
    "Another payload type: the signature covers it, the verifier must too.",
    lambda value: at(value, "dsseEnvelope").update(payloadType="text/plain"),
)
simple(
    "form-base64-not-canonical",
    "certificate.format",
    "Base64 whose last bits are not zero: other text, the same bytes.",
    lambda value: at(value, "evidence", "quote").update(
        message=_spoil_base64(at(value, "evidence", "quote", "message"))
    ),
)
simple(
    "form-base64-url",
    "certificate.format",
    "Base64 in the URL alphabet.",
    lambda value: at(value, "evidence", "quote").update(
        message=at(value, "evidence", "quote", "message").replace("/", "_").replace("+", "-")
    ),
)
simple(
    "form-hex-upper-case",
    "certificate.format",
    "Hex in upper case: other text, the same bytes.",
    lambda value: at(value, "evidence", "quote", "pcrs", "sha256").update({"14": "AB" * 32}),
)
simple(
    "form-pcr-24",
    "certificate.format",
    "A PCR that does not exist.",
    lambda value: at(value, "evidence", "quote", "pcrs", "sha256").update({"24": "00" * 32}),
)
simple(
    "form-sha1-bank",
    "certificate.format",
    "PCR values of the SHA-1 bank.",
    lambda value: at(value, "evidence", "quote", "pcrs").update(sha1={"0": "00" * 20}),
)


def _spoil_base64(text: str) -> str:
    """Another text for the same bytes; a byte is added where there is no padding to play with."""
    if not text.endswith("="):
        data = base64.b64decode(text)
        text = base64.b64encode(data + b"\0" * (1 if len(data) % 3 == 0 else 0)).decode()
    body = text.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return body[:-1] + alphabet[alphabet.index(body[-1]) ^ 1] + "=" * (len(text) - len(body))


# -- chain -----------------------------------------------------------------------------------------


def chained(name: str, expect: str, why: str, make: Callable[[Forger], tuple[bytes, ...]]) -> None:
    """Register a case with another certificate chain."""

    def build() -> Certificate:
        made = good()
        made.chain = make(made)
        return made.certificate()

    case(name, expect, why)(build)


def issue(
    made: Forger, *, leaf: dict[str, Any] | None = None, intermediate: dict[str, Any] | None = None
) -> tuple[bytes, ...]:
    """A chain whose leaf or intermediate is issued with other options."""
    middle = {
        "key": AUTHORITY.intermediate_key.public_key(),
        "subject": "conformance intermediate",
        "issuer": "conformance root",
        "by": AUTHORITY.root_key,
        "ca": True,
        "path_length": 0,
        **(intermediate or {}),
    }
    last = {
        "key": made.key.public_key(),
        "subject": "conformance AK",
        "issuer": "conformance intermediate",
        "by": AUTHORITY.intermediate_key,
        "ca": False,
        **(leaf or {}),
    }
    return tuple(
        item.public_bytes(serialization.Encoding.DER)
        for item in (
            AUTHORITY.certify(last.pop("key"), **last),
            AUTHORITY.certify(middle.pop("key"), **middle),
            AUTHORITY.root,
        )
    )


chained(
    "chain-self-signed-ak",
    "chain.unpinned-root",
    "The attestation key certifies itself. The ancestor of this system accepted it.",
    lambda made: (
        AUTHORITY.certify(
            made.key.public_key(), subject="AK", issuer="AK", by=made.key, ca=False
        ).public_bytes(serialization.Encoding.DER),
    ),
)
chained(
    "chain-unpinned-root",
    "chain.unpinned-root",
    "A complete chain to a root that nobody pinned.",
    lambda made: OTHER.chain(made.key.public_key()),
)
chained(
    "chain-root-with-a-pinned-name",
    "chain.unpinned-root",
    "A root with the name of the pinned one, and another key: names prove nothing.",
    lambda made: Authority(name="conformance").chain(made.key.public_key()),
)
chained("chain-empty", "chain.length", "No certificate at all.", lambda made: ())
chained(
    "chain-missing-intermediate",
    "chain.issuer",
    "The intermediate is left out.",
    lambda made: (made.chain[0], made.chain[2]),
)
chained(
    "chain-without-root",
    "chain.incomplete",
    "The chain stops before its root.",
    lambda made: made.chain[:2],
)
chained(
    "chain-leaf-only",
    "chain.incomplete",
    "The leaf alone.",
    lambda made: made.chain[:1],
)
chained(
    "chain-loop",
    "chain.loop",
    "A certificate stands twice.",
    lambda made: (made.chain[0], made.chain[1], made.chain[1], made.chain[2]),
)
chained(
    "chain-too-long",
    "certificate.format",
    "More certificates than a chain may have.",
    lambda made: (*made.chain[:1], *made.chain[1:2] * 8, *made.chain[2:]),
)
chained(
    "chain-reversed",
    "chain.leaf-key",
    "Root first.",
    lambda made: tuple(reversed(made.chain)),
)
chained(
    "chain-leaf-not-yet-valid",
    "chain.not-yet-valid",
    "The AK's certificate was issued after the run.",
    lambda made: AUTHORITY.chain(made.key.public_key(), not_before=STARTED + timedelta(days=1)),
)
chained(
    "chain-leaf-expired",
    "chain.expired",
    "The AK's certificate had expired before the run.",
    lambda made: AUTHORITY.chain(made.key.public_key(), not_after=STARTED - timedelta(days=1)),
)
chained(
    "chain-leaf-expires-during-the-run",
    "chain.expired",
    "The AK's certificate expired while the run went on.",
    lambda made: AUTHORITY.chain(made.key.public_key(), not_after=STARTED + timedelta(seconds=30)),
)
chained(
    "chain-intermediate-expired",
    "chain.expired",
    "The intermediate had expired before the run; the leaf had not.",
    lambda made: issue(made, intermediate={"not_after": STARTED - timedelta(days=1)}),
)
chained(
    "chain-intermediate-not-a-ca",
    "chain.not-a-ca",
    "An ordinary certificate issues the leaf: any AK could certify any other.",
    lambda made: issue(made, intermediate={"ca": False, "path_length": None, "usage": None}),
)
chained(
    "chain-leaf-is-a-ca",
    "chain.leaf-usage",
    "The attestation key's certificate is a CA's.",
    lambda made: issue(made, leaf={"ca": True}),
)
chained(
    "chain-leaf-for-tls",
    "chain.leaf-usage",
    "The leaf is a TLS server's certificate.",
    lambda made: issue(made, leaf={"usage": ExtendedKeyUsageOID.SERVER_AUTH}),
)
chained(
    "chain-leaf-of-another-key",
    "chain.leaf-key",
    "The chain certifies another key than the one that signed.",
    lambda made: AUTHORITY.chain(ec.generate_private_key(ec.SECP256R1()).public_key()),
)
chained(
    "chain-leaf-signed-by-another",
    "chain.signature",
    "The leaf names the right issuer and was signed by somebody else.",
    lambda made: issue(made, leaf={"by": OTHER.intermediate_key}),
)
chained(
    "chain-leaf-of-another-issuer",
    "chain.issuer",
    "The leaf names another issuer than the next certificate.",
    lambda made: issue(made, leaf={"issuer": "somebody"}),
)
chained(
    "chain-rsa-1024",
    "chain.weak",
    "An intermediate with an RSA key of 1024 bits.",
    lambda made: _weak_chain(made, rsa.generate_private_key(65537, 1024)),
)
chained(
    "chain-rsa-exponent-3",
    "chain.weak",
    "An intermediate with an RSA key of the exponent 3.",
    lambda made: _weak_chain(made, rsa.generate_private_key(3, 2048)),
)
chained(
    "chain-curve-k1",
    "chain.weak",
    "An intermediate on the curve secp256k1.",
    lambda made: _other_curve_chain(made),
)
chained(
    "chain-trailing-bytes",
    "chain.parse",
    "Bytes follow a certificate.",
    lambda made: (made.chain[0] + b"\0", *made.chain[1:]),
)
chained(
    "chain-garbage",
    "chain.parse",
    "A certificate that is none.",
    lambda made: (b"\x30\x82\x01\x00" + b"\0" * 256, *made.chain[1:]),
)
chained(
    "chain-polyglot",
    "chain.parse",
    "PEM where DER belongs, with DER inside: two readers see two certificates.",
    lambda made: (
        b"-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(made.chain[0])
        + b"-----END CERTIFICATE-----\n",
        *made.chain[1:],
    ),
)
chained(
    "chain-signature-flipped",
    "chain.signature",
    "One bit of the leaf's signature is flipped.",
    lambda made: (made.chain[0][:-1] + bytes([made.chain[0][-1] ^ 1]), *made.chain[1:]),
)
chained(
    "chain-path-length",
    "chain.path-length",
    "The intermediate may issue no CA, and did.",
    lambda made: _deep_chain(made),
)
chained(
    "chain-unknown-critical-extension",
    "chain.extension",
    "A critical extension that a verifier does not know must not be ignored.",
    lambda made: _extended_chain(
        made,
        x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"),
        critical=True,
    ),
)
chained(
    "chain-name-constraints",
    "chain.extension",
    "Name constraints, which this verifier does not apply, must not be ignored.",
    lambda made: _extended_chain(
        made, x509.NameConstraints([x509.DNSName("example.invalid")], None), critical=False
    ),
)


chained(
    "chain-leaf-is-an-ek",
    "chain.leaf-usage",
    "The leaf is an endorsement key's certificate, for encryption, under a root that is trusted.",
    lambda made: _ek_chain(made),
)
case(
    "chain-pinned-intermediate",
    "trust.root",
    "The verifier names an intermediate as a root: nothing above it would be checked.",
    options=("--allow-simulated", "--root", "{case}/intermediate.pem"),
    extra={"status": 3},
)(lambda: _with_intermediate(good()))


def _with_intermediate(made: Forger) -> tuple[Certificate, dict[str, bytes]]:
    intermediate = x509.load_der_x509_certificate(made.chain[1])
    pem = intermediate.public_bytes(serialization.Encoding.PEM)
    return made.certificate(), {"intermediate.pem": pem}


def _ek_chain(made: Forger) -> tuple[bytes, ...]:
    old = x509.load_der_x509_certificate(made.chain[0])
    usage = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_cert_sign", "crl_sign", "encipher_only",
         "decipher_only", "key_encipherment"), False,
    )  # fmt: skip
    new = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(made.key.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_agreement=True, **usage), True)
        .add_extension(x509.ExtendedKeyUsage([forger.EK_USAGE]), False)
        .sign(AUTHORITY.intermediate_key, hashes.SHA256())
    )
    return (new.public_bytes(serialization.Encoding.DER), *made.chain[1:])


def _weak_chain(made: Forger, weak: rsa.RSAPrivateKey) -> tuple[bytes, ...]:
    return issue(made, leaf={"by": weak}, intermediate={"key": weak.public_key()})


def _other_curve_chain(made: Forger) -> tuple[bytes, ...]:
    key = ec.generate_private_key(ec.SECP256K1())
    return issue(made, leaf={"by": key}, intermediate={"key": key.public_key()})


def _deep_chain(made: Forger) -> tuple[bytes, ...]:
    """root -> intermediate (path length 0) -> another CA -> leaf."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = serialization.Encoding.DER
    below = AUTHORITY.certify(
        key.public_key(),
        subject="another CA",
        issuer="conformance intermediate",
        by=AUTHORITY.intermediate_key,
        ca=True,
    )
    leaf = AUTHORITY.certify(
        made.key.public_key(), subject="AK", issuer="another CA", by=key, ca=False
    )
    return (leaf.public_bytes(der), below.public_bytes(der), *made.chain[1:])


def _extended_chain(
    made: Forger, extension: x509.ExtensionType, *, critical: bool
) -> tuple[bytes, ...]:
    """An intermediate with one extension more."""
    old = x509.load_der_x509_certificate(made.chain[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(AUTHORITY.intermediate_key.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(extension, critical)
    )
    new = builder.sign(AUTHORITY.root_key, hashes.SHA256())
    return (made.chain[0], new.public_bytes(serialization.Encoding.DER), made.chain[2])


# -- the attestation key ---------------------------------------------------------------------------


def keyed(name: str, expect: str, why: str, make: Callable[[Forger], None]) -> None:
    """Register a case with another public area; its Name stands in `keyid`, as it should."""

    def build() -> Certificate:
        made = good()
        make(made)
        made.name = b"\x00\x0b" + hashlib.sha256(made.public).digest()
        return made.certificate()

    case(name, expect, why)(build)


def _attributes(value: int) -> Callable[[Forger], None]:
    def change(made: Forger) -> None:
        made.public = forger.public_area(made.key, value)

    return change


for _name, _value, _why in (
    ("not-restricted", forger.AK_ATTRIBUTES & ~forger.RESTRICTED,
     "An unrestricted key signs anything, forged quotes too."),
    ("not-fixed-tpm", forger.AK_ATTRIBUTES & ~forger.FIXED_TPM,
     "A key that can be duplicated may live outside the TPM."),
    ("not-fixed-parent", forger.AK_ATTRIBUTES & ~forger.FIXED_PARENT,
     "A key that can be moved may live outside the TPM."),
    ("imported", forger.AK_ATTRIBUTES & ~forger.SENSITIVE_ORIGIN,
     "The key was made elsewhere and brought in."),
    ("decrypt", forger.AK_ATTRIBUTES | forger.DECRYPT, "The key also decrypts."),
    ("not-sign", forger.AK_ATTRIBUTES & ~forger.SIGN | forger.DECRYPT, "A storage key."),
):  # fmt: skip
    keyed(f"ak-{_name}", "ak.attributes", _why, _attributes(_value))


def _spoil(offset: int, data: bytes) -> Callable[[Forger], None]:
    def change(made: Forger) -> None:
        area = bytearray(made.public)
        area[offset : offset + len(data)] = data
        made.public = bytes(area)

    return change


keyed(
    "ak-trailing-bytes",
    "tpm.trailing-bytes",
    "Bytes follow the public area.",
    lambda made: setattr(made, "public", made.public + b"\0"),
)
keyed(
    "ak-cut",
    "tpm.structure",
    "The public area was cut.",
    lambda made: setattr(made, "public", made.public[:-1]),
)
keyed("ak-name-sha1", "tpm.algorithm", "The key's Name uses SHA-1.", _spoil(2, b"\x00\x04"))
keyed("ak-unknown-type", "tpm.algorithm", "A key of an unknown type.", _spoil(0, b"\x00\x08"))
keyed("ak-scheme-sha1", "tpm.algorithm", "The key signs with SHA-1.", _spoil(14, b"\x00\x04"))
keyed("ak-unknown-curve", "ak.key-size", "A curve that is not accepted.", _spoil(16, b"\x00\x10"))
keyed(
    "ak-point-off-curve",
    "ak.key-size",
    "The public point does not lie on the curve.",
    _spoil(22, b"\x01" * 32),
)


keyed(
    "ak-reserved-attribute",
    "tpm.structure",
    "An attribute that no TPM knows is set.",
    _attributes(forger.AK_ATTRIBUTES | 1),
)
keyed("ak-name-sha384", "ak.key", "The key's Name uses SHA-384.", _spoil(2, b"\x00\x0c"))
keyed("ak-scheme-sha384", "ak.key", "The key signs with SHA-384.", _spoil(14, b"\x00\x0c"))
keyed(
    "ak-symmetric",
    "ak.key",
    "The key has a symmetric algorithm, as only storage keys have: no TPM made it.",
    lambda made: setattr(
        made, "public", made.public[:10] + b"\x00\x06\x00\x80\x00\x43" + made.public[12:]
    ),
)


@case("ak-rsa-exponent-3", "ak.key-size", "An RSA key with the exponent 3.")
def _() -> Certificate:
    made = good(kind="rsa")
    made.public = made.public[:18] + b"\x00\x00\x00\x03" + made.public[22:]
    made.name = b"\x00\x0b" + hashlib.sha256(made.public).digest()
    return made.certificate()


@case("ak-rsa-1024", "ak.key-size", "An attestation key of 1024 bits.")
def _() -> Certificate:
    made = good(kind="rsa")
    made.key = rsa.generate_private_key(65537, 1024)
    made.public = forger.public_area(made.key)
    made.name = b"\x00\x0b" + hashlib.sha256(made.public).digest()
    made.chain = AUTHORITY.chain(made.key.public_key())
    return made.certificate()


# -- quotes ----------------------------------------------------------------------------------------


def quoted(name: str, expect: str, why: str, *, both: bool = False, **changes: Any) -> None:
    """Register a case whose final quote lies in some fields, and is signed all the same."""
    case(f"quote-{name}", expect, why)(lambda: good().certificate(final=changes))
    if both:
        case(f"baseline-{name}", expect, f"The baseline quote: {why}")(
            lambda: good().certificate(baseline=changes)
        )


quoted("bad-magic", "quote.magic", "Not made by a TPM.", both=True, magic=0x544347FF)
quoted("certify", "quote.type", "TPM2_Certify, not TPM2_Quote.", both=True, type=0x8017)
quoted("time", "quote.type", "TPM2_GetTime, not TPM2_Quote.", type=0x8019)
quoted("trailing-bytes", "tpm.trailing-bytes", "Bytes follow the quote.", both=True, trailing=b"\0")
quoted("safe-not-boolean", "tpm.structure", "TPMI_YES_NO is neither.", safe=2)
quoted(
    "selection-sha1",
    "quote.selection",
    "The selection is relabelled to the SHA-1 bank (CVE-2024-29039 and its kin).",
    both=True,
    selection=selection(range(16), 0x0004),
)
quoted(
    "selection-sha384",
    "quote.selection",
    "The selection is of the SHA-384 bank.",
    selection=selection(range(16), 0x000C),
)
quoted(
    "selection-relabelled",
    "quote.pcr-unsigned",
    "The selection names other PCRs than those whose values stand beside it (CVE-2024-29039).",
    selection=selection([*range(16), 23]),
)
quoted(
    "selection-empty",
    "quote.selection",
    "The selection is empty, as for a bank that is not active.",
    selection=selection([]),
)
quoted(
    "two-banks",
    "quote.selection",
    "Two banks are selected.",
    selection=b"\0\0\0\2" + selection(range(16))[4:] + selection(range(16), 0x0004)[4:],
)
quoted(
    "one-bank-twice",
    "quote.selection",
    "One bank is selected twice.",
    selection=b"\0\0\0\2" + selection(range(16))[4:] * 2,
)
quoted(
    "no-bank",
    "quote.selection",
    "No bank is selected.",
    selection=b"\0\0\0\0",
)
quoted(
    "wide-selection",
    "quote.selection",
    "A selection of four bytes, which PC Client TPMs do not make.",
    selection=b"\0\0\0\1\0\x0b\x04\xff\xff\0\0",
)
quoted("other-pcr-digest", "quote.pcr-digest", "The digest is of other values.",
       both=True, pcr_digest=b"\x07" * 32)  # fmt: skip
quoted("other-extra-data", "quote.binding", "The quote is bound to another statement.",
       extra_data=b"\x07" * 32)  # fmt: skip
quoted("no-extra-data", "quote.binding", "The quote is bound to nothing.", extra_data=b"")
case(
    "baseline-other-nonce",
    "quote.binding",
    "The baseline is not bound to the run's nonce: an old baseline is replayed.",
)(lambda: good().certificate(baseline={"extra_data": b"\x07" * 32}))

for _missing in (0, 7, 8, 14, 15):
    case(
        f"quote-without-pcr-{_missing}",
        "quote.pcr-missing",
        f"Neither quote covers PCR {_missing}, which could then hold anything.",
    )(
        lambda missing=_missing: good(  # type: ignore[misc]
            pcrs=tuple(pcr for pcr in range(16) if pcr != missing)
        ).certificate()
    )


def requoted(name: str, expect: str, why: str, change: Callable[[Quote], Quote]) -> None:
    """Register a case whose final quote is changed after it was signed."""

    def build() -> Certificate:
        certificate = good().certificate()
        return replace(certificate, quote=change(certificate.quote))

    case(f"quote-{name}", expect, why)(build)


requoted(
    "signature-flipped",
    "quote.signature",
    "One bit of the quote's signature is flipped.",
    lambda q: replace(q, signature=q.signature[:-1] + bytes([q.signature[-1] ^ 1])),
)
requoted(
    "by-another-key",
    "quote.signature",
    "The quote is signed by another key.",
    lambda q: replace(q, signature=sign_tpm(forger.new_key(), q.message)),
)
requoted(
    "signature-of-rsa",
    "quote.signature",
    "An RSA signature beside an ECC key.",
    lambda q: replace(q, signature=sign_tpm(forger.new_key("rsa"), q.message)),
)


@case("quote-signature-pss", "quote.signature", "An RSA key's signature by a scheme not its own.")
def _() -> Certificate:
    made = good(kind="rsa")
    certificate = made.certificate()
    quote = certificate.quote
    signature = struct.pack(">HH", tpm2.ALG_RSAPSS, 0x000B) + tpm2b(_pss(made.key, quote.message))
    return replace(certificate, quote=replace(quote, signature=signature))


@case("dsse-pss", "dsse.signature", "The envelope's signature by another scheme than the key's.")
def _() -> Certificate:
    made = good(kind="rsa")
    certificate = made.certificate()
    return replace(certificate, signature=_pss(made.key, certificate.signed_bytes))


def _pss(key: Any, data: bytes) -> bytes:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    return bytes(key.sign(data, pss, hashes.SHA256()))


requoted(
    "signature-sha1",
    "tpm.algorithm",
    "The signature says SHA-1.",
    lambda q: replace(q, signature=q.signature[:2] + b"\x00\x04" + q.signature[4:]),
)
requoted(
    "signature-hmac",
    "tpm.algorithm",
    "The signature is an HMAC.",
    lambda q: replace(q, signature=b"\x00\x05" + q.signature[2:]),
)
requoted(
    "signature-trailing-bytes",
    "tpm.trailing-bytes",
    "Bytes follow the signature.",
    lambda q: replace(q, signature=q.signature + b"\0"),
)
requoted(
    "signature-empty",
    "tpm.structure",
    "No signature.",
    lambda q: replace(q, signature=b""),
)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""That of P-256's group."""


def _halves(signature: bytes, r: int | None, s: int | None) -> bytes:
    """A TPMT_SIGNATURE with other numbers."""
    old = int.from_bytes(signature[6:38], "big"), int.from_bytes(signature[40:72], "big")
    new = [one if other is None else other for one, other in zip(old, (r, s), strict=True)]
    return signature[:4] + b"".join(forger.tpm2b(n.to_bytes(32, "big")) for n in new)


requoted(
    "signature-of-zero",
    "tpm.structure",
    "Both numbers of the signature are zero.",
    lambda q: replace(q, signature=_halves(q.signature, 0, 0)),
)
requoted(
    "signature-beyond-the-order",
    "tpm.structure",
    "A number of the signature is the order of the curve, which stands for zero.",
    lambda q: replace(q, signature=_halves(q.signature, ORDER, None)),
)


@case(
    "good-signature-other-half",
    "verified",
    "The quote's signature has n - s for s, which is as good: a signature's bytes are no identity.",
)
def _() -> Certificate:
    certificate = good().certificate()
    s = int.from_bytes(certificate.quote.signature[40:72], "big")
    signature = _halves(certificate.quote.signature, None, ORDER - s)
    return replace(certificate, quote=replace(certificate.quote, signature=signature))


requoted(
    "message-cut",
    "tpm.structure",
    "The quote was cut.",
    lambda q: replace(q, message=q.message[:-1]),
)
requoted(
    "message-flipped",
    "quote.signature",
    "One bit of the quote's clock is flipped after it was signed.",
    lambda q: replace(q, message=q.message[:80] + bytes([q.message[80] ^ 1]) + q.message[81:]),
)
requoted(
    "unsigned-extra-pcr",
    "quote.pcr-unsigned",
    "The value of a PCR that the quote does not cover: an attacker's bytes.",
    lambda q: replace(q, pcrs={**q.pcrs, 23: bytes(32)}),
)
requoted(
    "pcr-left-out",
    "quote.pcr-unsigned",
    "The value of a quoted PCR is left out.",
    lambda q: replace(q, pcrs={pcr: value for pcr, value in q.pcrs.items() if pcr != 3}),
)
requoted(
    "pcr-changed",
    "quote.pcr-digest",
    "The value of a quoted PCR is changed.",
    lambda q: replace(q, pcrs={**q.pcrs, 14: b"\x07" * 32}),
)
requoted(
    "pcrs-swapped",
    "quote.pcr-digest",
    "The values of two PCRs are exchanged.",
    lambda q: replace(q, pcrs={**q.pcrs, 8: q.pcrs[14], 14: q.pcrs[8]}),
)


@case("quotes-swapped", "quote.binding", "Baseline and quote are exchanged.")
def _() -> Certificate:
    certificate = good().certificate()
    return replace(certificate, quote=certificate.baseline_quote, baseline_quote=certificate.quote)


@case(
    "baseline-of-another-run",
    "quote.binding",
    "A good baseline by the same key and with the same nonce, and not the one in the first event.",
)
def _() -> Certificate:
    made = good()
    certificate = made.certificate()
    nonce = bytes.fromhex(log.parse_run(certificate.records).job.nonce)
    other = made.quote(made.attest(nonce, made.start, clock=999), made.start)
    return replace(certificate, baseline_quote=other)


# -- one boot --------------------------------------------------------------------------------------

for _name, _changes, _why in (
    ("reset", {"reset_count": 4}, "The TPM was reset between the quotes."),
    ("restart", {"restart_count": 1}, "The TPM was restarted or resumed between the quotes."),
    ("reset-count-zeroed", {"reset_count": 0}, "The TPM was cleared, which zeroes resetCount."),
    ("clock-went-back", {"clock": 1}, "The final quote is older than the baseline."),
    ("other-firmware", {"firmware": 1}, "The firmware changed between the quotes."),
    ("other-signer", {"qualified_signer": b"\x00\x0b" + b"\x22" * 32},
     "The key hangs on another parent in the second quote: another hierarchy or TPM."),
):  # fmt: skip
    case(f"boot-{_name}", "boot.changed", _why)(
        lambda changes=_changes: good().certificate(final=changes)  # type: ignore[misc]
    )


class RealRun:
    """A run on a real software TPM, up to where the attacker wants something else."""

    def __init__(self, stack: ExitStack, *, cloud: bool = False) -> None:
        """Start the TPM; `cloud`: its key is one that comes back after a restart or a clear."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corpus-")))
        manufacture(folder / "tpm", DevelopmentCa.open_or_create(folder / "ca"))
        self.device = stack.enter_context(Swtpm(folder / "tpm"))
        self.stack = stack
        self.tpm = stack.enter_context(Tpm(self.device.tcti))
        self.ak = make_primary(self.tpm) if cloud else self.tpm.create_ak("ecc")
        self.key = AttestationKey(self.ak.public, AUTHORITY.chain(self._public()))

    def restart(self) -> None:
        """Switch the machine off and on, and make its key again."""
        self.tpm.close()
        self.device.power_cycle()
        self.tpm = self.stack.enter_context(Tpm(self.device.tcti))
        self.ak = make_primary(self.tpm)

    def clear(self) -> None:
        """Clear the TPM, and make its key again."""
        self.tpm._esapi.clear(ESYS_TR.LOCKOUT)
        self.ak = make_primary(self.tpm)

    def _public(self) -> Any:
        from aicert import tpm2

        return tpm2.parse_public(self.ak.public).key

    def quote(self, extra: bytes) -> Quote:
        made = self.tpm.quote(self.ak, extra, range(16))
        return Quote(made.message, made.signature, dict(made.pcrs))

    def begin(self, nonce: bytes) -> tuple[Quote, tuple[log.Record, ...]]:
        """Quote the baseline, and return it with the run's records."""
        baseline = self.quote(nonce)
        digest = hashlib.sha256(baseline.message).hexdigest()
        made = [
            replace(e, baseline=digest) if isinstance(e, events.Job) else e
            for e in run_events(nonce=nonce)
        ]
        return baseline, tuple(log.Record.of(event) for event in made)

    def extend(self, records: tuple[log.Record, ...]) -> None:
        for record in records:
            self.tpm.extend(record.event.pcr, record.digest)

    def finish(self, baseline: Quote, records: tuple[log.Record, ...]) -> Certificate:
        payload = statement.encode(log.parse_run(records))
        from aicert import tpm2

        signed = dsse.pae(payload)
        signature = tpm2.parse_signature(self.tpm.sign(self.ak, signed)).encoded
        return Certificate(
            payload=payload,
            keyid=self.ak.name.hex(),
            signature=signature,
            attestation_key=self.key,
            baseline_quote=baseline,
            quote=self.quote(hashlib.sha256(signed).digest()),
            records=records,
        )


@case("real-good", "verified", "A run whose every part came from a real software TPM.")
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack)
        baseline, records = run.begin(b"\x01" * 32)
        run.extend(records)
        return run.finish(baseline, records)


@case(
    "real-extended-before-the-log",
    "log.replay",
    "A real TPM in which something was extended after the baseline and before the job.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack)
        baseline, records = run.begin(b"\x01" * 32)
        run.tpm.extend(14, b"\x07" * 32)
        run.extend(records)
        return run.finish(baseline, records)


@case(
    "real-extended-after-the-log",
    "log.replay",
    "A real TPM in which something was extended into PCR 14 after the last event.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack)
        baseline, records = run.begin(b"\x01" * 32)
        run.extend(records)
        run.tpm.extend(14, b"\x07" * 32)
        return run.finish(baseline, records)


@case(
    "real-extended-elsewhere",
    "log.replay",
    "A real TPM in which PCR 4 changed during the run: the boot is not the one that was quoted.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack)
        baseline, records = run.begin(b"\x01" * 32)
        run.extend(records)
        run.tpm.extend(4, b"\x07" * 32)
        return run.finish(baseline, records)


@case(
    "real-two-runs-spliced",
    "log.replay",
    "The baseline and log of a second run on one TPM, with the PCRs of both.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack)
        first, records = run.begin(b"\x01" * 32)
        run.extend(records)
        _, again = run.begin(b"\x02" * 32)
        run.extend(again)
        return run.finish(first, records)


@case(
    "real-restarted-between-the-quotes",
    "boot.changed",
    "A real TPM was restarted after the baseline. Its key and its PCRs came back as they were.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack, cloud=True)
        baseline, records = run.begin(b"\x01" * 32)
        run.restart()
        run.extend(records)
        return run.finish(baseline, records)


@case(
    "real-cleared-between-the-quotes",
    "boot.changed",
    "A real TPM was cleared after the baseline. Its key came back, its count of resets did not.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack, cloud=True)
        run.restart()
        baseline, records = run.begin(b"\x01" * 32)
        run.clear()
        run.extend(records)
        return run.finish(baseline, records)


@case(
    "real-second-run-in-one-boot",
    "verified",
    "A second run in one boot: PCRs 8 and 14 hold the first, and the baseline says so.",
)
def _() -> Certificate:
    with ExitStack() as stack:
        run = RealRun(stack)
        _, records = run.begin(b"\x01" * 32)
        run.extend(records)
        baseline, again = run.begin(b"\x02" * 32)
        run.extend(again)
        return run.finish(baseline, again)


# -- log -------------------------------------------------------------------------------------------


def replaced(name: str, expect: str, why: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Register a case whose log is changed before it is extended: the TPM agrees with it."""

    def build() -> Certificate:
        made = good(events=change(run_events()))
        return made.certificate(payload=statement.encode(log.parse_run(_records(run_events()))))

    case(f"log-{name}", expect, why)(build)


def _records(listed: list[Any]) -> tuple[log.Record, ...]:
    return tuple(log.Record.of(event) for event in listed)


for _index, _kind in enumerate(
    ("job", "first-input", "second-input", "image", "training-start", "training-end", "outputs")
):
    if _kind != "job":  # without it there is no baseline to begin with
        replaced(
            f"without-{_kind}",
            "log.grammar",
            f"The event {_kind} was left out; everything else, the TPM included, agrees.",
            lambda listed, index=_index: listed[:index] + listed[index + 1 :],  # type: ignore[misc]
        )
    replaced(
        f"{_kind}-twice",
        "log.grammar",
        f"The event {_kind} stands twice; everything else, the TPM included, agrees.",
        lambda listed, index=_index: listed[: index + 1] + listed[index:],  # type: ignore[misc]
    )
replaced(
    "inputs-swapped",
    "log.grammar",
    "The inputs were measured in another order than the spec's.",
    lambda listed: [listed[0], listed[2], listed[1], *listed[3:]],
)
replaced(
    "input-after-training",
    "log.grammar",
    "An input was measured after the training had ended.",
    lambda listed: [*listed[:2], *listed[3:6], listed[2], listed[6]],
)
replaced(
    "outputs-before-training",
    "log.grammar",
    "The outputs were measured before the training began. They have a PCR of their own, so only "
    "the grammar tells.",
    lambda listed: [*listed[:4], listed[6], *listed[4:6]],
)
replaced(
    "training-failed",
    "log.grammar",
    "The training ended with an error.",
    lambda listed: [*listed[:5], replace(listed[5], exit_code=1), listed[6]],
)
replaced(
    "input-not-as-expected",
    "log.grammar",
    "The input's content is not the one that the spec demands.",
    lambda listed: [listed[0], replace(listed[1], sha256="77" * 32), *listed[2:]],
)
replaced(
    "finished-before-it-started",
    "log.grammar",
    "The run ended before it began.",
    lambda listed: [*listed[:6], replace(listed[6], finished_on=STARTED - timedelta(seconds=1))],
)
replaced(
    "other-command",
    "log.grammar",
    "Another command ran than the one in the spec.",
    lambda listed: [*listed[:4], replace(listed[4], command=("sh",)), *listed[5:]],
)
replaced(
    "other-image",
    "log.grammar",
    "Another image was used than the one in the spec.",
    lambda listed: [*listed[:3], replace(listed[3], reference="oci:other"), *listed[4:]],
)
replaced(
    "writable-input",
    "log.grammar",
    "An input was mounted so that the training could write it.",
    lambda listed: [
        *listed[:4],
        replace(
            listed[4],
            mounts=(replace(listed[4].mounts[0], writable=True), *listed[4].mounts[1:]),
        ),
        *listed[5:],
    ],
)


RECORDS = forger.RECORDS

case(
    "good-with-records",
    "verified",
    "The spec asks for the records of an input to be committed to, and they are.",
)(lambda: good(events=committing(run_events(), "lines", RECORDS)).certificate())
replaced(
    "records-not-asked-for",
    "log.grammar",
    "An input commits to records, and the spec does not ask for them.",
    lambda listed: committing(listed, None, RECORDS),
)
replaced(
    "records-left-out",
    "log.grammar",
    "The spec asks for the records of an input, and it commits to none.",
    lambda listed: committing(listed, "lines", None),
)
replaced(
    "records-of-another-kind",
    "log.grammar",
    "The spec asks for records of another kind than the input commits to.",
    lambda listed: committing(listed, "jsonl", RECORDS),
)


PARQUET = replace(RECORDS, method="parquet/1")
case(
    "good-with-records-of-parquet",
    "verified",
    "The spec asks for the rows of an input's Parquet files, and the input commits to them.",
    extra={
        "answer": {
            "inputs": [
                {"name": "code", "uri": "file:train.py", "kind": "file", "sha256": "aa" * 32,
                 "manifest": "cc" * 32},
                {"name": "data", "uri": "file:data", "kind": "tree", "sha256": "dd" * 32,
                 "manifest": "ee" * 32, "records": PARQUET.to_json()},
            ]
        }
    },
)(lambda: good(events=committing(run_events(), "parquet", PARQUET)).certificate())  # fmt: skip
replaced(
    "records-of-parquet-as-files",
    "log.grammar",
    "The spec asks for the rows of Parquet files, and the input commits to whole files.",
    lambda listed: committing(listed, "parquet", replace(RECORDS, method="files/1")),
)
replaced(
    "records-of-parquet-not-asked-for",
    "log.grammar",
    "The input commits to rows of Parquet files, and the spec asks for lines of JSON.",
    lambda listed: committing(listed, "jsonl", PARQUET),
)


@case(
    "statement-records-by-another-method",
    "statement.mismatch",
    "The statement says that rows of Parquet files are lines of JSON; their root is the same.",
)
def _() -> Certificate:
    made = good(events=committing(run_events(), "parquet", PARQUET))
    value = canonical.loads(made.certificate().payload, max_bytes=1 << 20)
    dependencies = at(value, "predicate", "buildDefinition", "resolvedDependencies")
    dependencies[2]["annotations"]["records"]["method"] = "jsonl/1"
    return made.certificate(payload=canonical.dumps(value))


@case(
    "statement-without-records",
    "statement.mismatch",
    "The statement leaves out the records that the log commits to; all else agrees with it.",
)
def _() -> Certificate:
    made = good(events=committing(run_events(), "lines", RECORDS))
    value = canonical.loads(made.certificate().payload, max_bytes=1 << 20)
    dependencies = at(value, "predicate", "buildDefinition", "resolvedDependencies")
    del dependencies[2]["annotations"]["records"]
    return made.certificate(payload=canonical.dumps(value))


def relogged(
    name: str, expect: str, why: str, change: Callable[[list[Any]], Any], *, group: str = "log"
) -> None:
    """Register a case whose log's JSON is changed after the fact."""

    def edit(value: dict[str, Any]) -> None:
        items = value["evidence"]["measurementLog"]
        result = change(items)
        if isinstance(result, list):
            value["evidence"]["measurementLog"] = result

    simple(f"{group}-{name}", expect, why, edit)


def _renumber(items: list[Any]) -> list[Any]:
    return [{**item, "recnum": number} for number, item in enumerate(items)]


relogged("empty", "log.grammar", "An empty log: nothing was measured.", lambda items: [])
relogged(
    "dropped",
    "log.grammar",
    "An event is dropped from the file.",
    lambda items: _renumber(items[:2] + items[3:]),
)
relogged(
    "reordered",
    "log.grammar",
    "Two events are exchanged in the file.",
    lambda items: _renumber([items[0], items[2], items[1], *items[3:]]),
)
relogged(
    "appended",
    "log.grammar",
    "An event is added after the last.",
    lambda items: _renumber([*items, items[-1]]),
)
relogged(
    "too-long",
    "certificate.format",
    "More records than a log may have.",
    lambda items: _renumber([items[1]] * 300),
)
relogged(
    "unknown-event",
    "log.event",
    "An event of a type that is not known.",
    lambda items: items[2]["content"].update(type="note"),
)
relogged(
    "unknown-field",
    "log.event",
    "A field in an event that is not known.",
    lambda items: items[2]["content"].update(note="x"),
)
relogged(
    "content-changed",
    "log.digest",
    "An event was changed, its digest was not.",
    lambda items: items[2]["content"].update(uri="file:other"),
)
relogged(
    "digest-changed",
    "log.digest",
    "A digest was changed, its event was not.",
    lambda items: items[2]["digests"][0].update(digest="77" * 32),
)


for _name, _why, _change in (
    ("unknown-method", "an unknown method", {"method": "lines/2"}),
    ("of-parquet-2", "a method of Parquet that is not known", {"method": "parquet/2"}),
    ("method-without-version", "a method without its version", {"method": "lines"}),
    ("more-distinct", "more distinct records than there are", {"distinct": 11}),
    ("none", "no record", {"count": 0, "distinct": 0}),
    ("salted", "a field that is not known", {"salt": "99" * 32}),
):
    relogged(
        f"records-{_name}",
        "log.event",
        f"An input commits to its records with {_why}.",
        lambda items, change=_change: items[2]["content"].update(  # type: ignore[misc]
            records={**RECORDS.to_json(), **change}
        ),
    )


def _recount(items: list[Any]) -> None:
    items[2]["content"]["uri"] = "file:other"
    items[2]["digests"][0]["digest"] = canonical.sha256(items[2]["content"])


relogged(
    "event-and-digest-changed",
    "log.replay",
    "An event and its digest were changed: the PCR was not.",
    _recount,
)
relogged("wrong-pcr", "log.format", "A record names another PCR.", lambda i: i[2].update(pcr=8))
relogged(
    "resettable-pcr",
    "log.format",
    "A record names PCR 16, which anybody can reset. The ancestor used it.",
    lambda items: items[2].update(pcr=16),
)
relogged("wrong-number", "log.format", "Records skip a number.", lambda i: i[2].update(recnum=9))
relogged(
    "sha1-digest",
    "log.format",
    "A record has a SHA-1 digest.",
    lambda items: items[2]["digests"][0].update(hashAlg="sha1"),
)
relogged(
    "two-digests",
    "log.format",
    "A record has two digests.",
    lambda items: items[2]["digests"].append(items[2]["digests"][0]),
)
relogged(
    "other-content-type",
    "log.format",
    "A record of another kind.",
    lambda items: items[2].update(content_type="pcclient_std"),
)


def _path(path: str, index: int = 0) -> Callable[[list[Any]], None]:
    def change(items: list[Any]) -> None:
        items[6]["content"]["files"][index]["path"] = path

    return change


relogged("output-escapes", "manifest.path", "An output named `../x`.", _path("../x"))
relogged("output-absolute", "manifest.path", "An output named `/etc/x`.", _path("/etc/passwd"))
relogged("output-backslash", "manifest.path", "A backslash in a name.", _path("a\\b"))
relogged("output-bidi", "manifest.path", "A name that reads backwards.", _path("a\u202etxt.exe"))
relogged("output-not-nfc", "manifest.path", "A name not in NFC.", _path("e\u0301"))
relogged(
    "output-case-collision",
    "manifest.collision",
    "Two outputs whose names differ in case alone.",
    _path("MODEL.safetensors"),
)
relogged(
    "output-unicode-collision",
    "manifest.collision",
    "Two outputs whose names are one after compatibility folding.",
    _path("metrics.j\u017fon", index=1),
)
relogged(
    "time-in-other-digits",
    "log.event",
    "A time in Arabic-Indic digits, which Python reads as the time that was measured: one run "
    "would have two certificates.",
    lambda i: i[0]["content"].update(startedOn="\u0662" + i[0]["content"]["startedOn"][1:]),
)


# Runs that were measured so, spec and all, as no agent does.


def _given(variables: dict[str, str]) -> Callable[[list[Any]], list[Any]]:
    def change(listed: list[Any]) -> list[Any]:
        spec = replace(listed[0].spec, environment=variables)
        listed[0] = replace(listed[0], spec=spec)
        listed[4] = replace(listed[4], environment=dict(variables))
        return listed

    return change


def _mounted(*places: tuple[str, str]) -> Callable[[list[Any]], list[Any]]:
    """Give the inputs these names and targets."""

    def change(listed: list[Any]) -> list[Any]:
        spec = listed[0].spec
        asked = [
            replace(item, name=name, target=target)
            for item, (name, target) in zip(spec.inputs, places, strict=True)
        ]
        listed[0] = replace(listed[0], spec=replace(spec, inputs=tuple(asked)))
        for index, (name, _) in enumerate(places, start=1):
            listed[index] = replace(listed[index], name=name)
        mounts = [events.Mount(item.target, item.name, writable=False) for item in asked]
        listed[4] = replace(listed[4], mounts=(*mounts, listed[4].mounts[-1]))
        return listed

    return change


replaced(
    "home-among-the-inputs",
    "log.grammar",
    "The spec moves HOME into an input, from where Python would load code that no command shows.",
    _given({"HOME": "/inputs/data"}),
)
replaced(
    "seed-of-another-value",
    "log.grammar",
    "The variable that tells the training its seed says another than the spec.",
    _given({"AICERT_SEED": "7"}),
)
replaced(
    "variable-with-an-escape",
    "log.grammar",
    "A variable whose name, shown in the message of its refusal, would write on the terminal.",
    _given({"HOME": "/", "A\x1b[2J\nVERIFIED": "1"}),
)
replaced(
    "input-over-the-image",
    "log.grammar",
    "An input is mounted over a folder of the image, whose digest then says nothing of it.",
    _mounted(("code", "/inputs/code"), ("data", "/usr/lib/python3")),
)
replaced(
    "input-target-with-dots",
    "log.grammar",
    "An input is mounted over a folder of the image, in other words.",
    _mounted(("code", "/inputs/code"), ("data", "/inputs/../usr/lib/python3")),
)
replaced(
    "input-within-another",
    "log.grammar",
    "An input is mounted within another one, and hides a part of it.",
    _mounted(("code", "/inputs/code"), ("data", "/inputs/code/lib")),
)
replaced(
    "inputs-in-one-place",
    "log.grammar",
    "Two inputs are mounted in one place: the second hides the first.",
    _mounted(("code", "/inputs/code"), ("data", "/inputs/code")),
)
replaced(
    "inputs-of-one-name",
    "log.grammar",
    "Two inputs have one name.",
    _mounted(("code", "/inputs/code"), ("code", "/inputs/data")),
)


# -- statement and envelope ------------------------------------------------------------------------


def stated(
    name: str, why: str, change: Callable[[dict[str, Any]], Any], *, group: str = "statement"
) -> None:
    """Register a case whose statement says something else, signed and quoted all the same."""

    def build() -> Certificate:
        made = good()
        built = statement.build(log.parse_run(made.certificate().records))
        payload = change(built)
        return made.certificate(
            payload=payload if isinstance(payload, bytes) else canonical.dumps(built)
        )

    case(f"{group}-{name}", "statement.mismatch", why)(build)


stated(
    "subject-added",
    "A file is claimed that was not measured.",
    lambda s: s["subject"].append({"name": "other.bin", "digest": {"sha256": "77" * 32}}),
)
stated("subject-dropped", "A measured file is not named.", lambda s: s["subject"].pop())
stated(
    "subject-changed",
    "A file is claimed with another digest.",
    lambda s: s["subject"][0]["digest"].update(sha256="77" * 32),
)
stated(
    "input-claimed",
    "An input is claimed that was not measured.",
    lambda s: at(s, "predicate", "buildDefinition", "resolvedDependencies", 1)["digest"].update(
        sha256="77" * 32
    ),
)
stated(
    "inputs-and-outputs-swapped",
    "Subjects and inputs change places.",
    lambda s: s["subject"][0]["digest"].update(sha256="aa" * 32),
)
stated(
    "metrics-claimed",
    "Better metrics are claimed than were reported.",
    lambda s: at(s, "predicate", "runDetails", "byproducts", 1, "annotations")[
        "reportedByTheTraining"
    ].update(loss=0),
)
stated(
    "other-build-type",
    "Another build type gives the parameters another meaning.",
    lambda s: at(s, "predicate", "buildDefinition").update(buildType="urn:other"),
)
stated(
    "not-canonical",
    "The right statement, in other bytes.",
    lambda s: json.dumps(s, indent=1).encode(),
)
stated("empty", "An empty statement.", lambda s: b"{}")
stated("not-json", "A payload that is not JSON.", lambda s: b"anything")


@case(
    "statement-of-another-run",
    "quote.binding",
    "The envelope of another run by the same key: signed, but not what was quoted.",
)
def _() -> Certificate:
    made = good()
    other = replace(made, events=run_events(nonce=b"\x02" * 32))
    other.key, other.public, other.name = made.key, made.public, made.name
    theirs = other.certificate()
    return replace(made.certificate(), payload=theirs.payload, signature=theirs.signature)


def resigned(name: str, why: str, change: Callable[[Certificate], Certificate]) -> None:
    """Register a case whose envelope is changed after it was signed."""
    case(f"dsse-{name}", "dsse.signature", why)(lambda: change(good().certificate()))


resigned(
    "signature-flipped",
    "One bit of the envelope's signature is flipped.",
    lambda c: replace(c, signature=c.signature[:-1] + bytes([c.signature[-1] ^ 1])),
)
resigned(
    "by-another-key",
    "The envelope is signed by another key.",
    lambda c: replace(c, signature=forger.sign_dsse(forger.new_key(), c.signed_bytes)),
)
resigned(
    "over-the-payload-alone",
    "The signature is over the payload without the envelope's encoding.",
    lambda c: replace(c, signature=forger.sign_dsse(forger.new_key(), c.payload)),
)
resigned(
    "other-keyid",
    "The envelope names another key.",
    lambda c: replace(c, keyid="000b" + "77" * 32),
)
resigned("empty", "The signature is empty.", lambda c: replace(c, signature=b""))
resigned(
    "not-der",
    "The signature's DER has a needless zero: other bytes, the same numbers.",
    lambda c: replace(c, signature=_loose_der(c.signature)),
)
resigned(
    "trailing-bytes",
    "A byte follows the signature.",
    lambda c: replace(c, signature=c.signature + b"\0"),
)


def _loose_der(signature: bytes) -> bytes:
    """The same ECDSA signature with one integer encoded longer than it must be."""
    length = signature[3]
    r = b"\x00" + signature[4 : 4 + length]
    body = bytes([2, len(r)]) + r + signature[4 + length :]
    return bytes([0x30, len(body)]) + body


# -- files -----------------------------------------------------------------------------------------


def filed(name: str, expect: str, why: str, model: dict[str, Any], *options: str) -> None:
    """Register a case with other files beside a good certificate."""
    case(f"files-{name}", expect, why, model=model, options=("--allow-simulated", *options))(
        lambda: good().certificate()
    )


filed("missing", "files.missing", "A certified file is not there.", {"metrics.json": "{}"})
filed("none", "files.missing", "The folder is empty.", {})
filed("extra", "files.extra", "A file more than was certified.", {**MODEL, "extra.py": "import os"})
filed(
    "extra-ignored",
    "verified",
    "A file more, which the verifier was told to ignore.",
    {**MODEL, "README.md": "hello"},
    "--ignore",
    "README.md",
)
filed("extra-hidden", "files.extra", "A hidden file more.", {**MODEL, ".config": "x"})
filed("extra-below", "files.extra", "A file more in a folder.", {**MODEL, "code/model.py": "x"})
filed(
    "altered",
    "files.altered",
    "Other content of the same size.",
    {**MODEL, "model.safetensors": "Weights"},
)
filed(
    "altered-size",
    "files.altered",
    "Content of another size.",
    {**MODEL, "model.safetensors": "weights, more of them"},
)
filed(
    "swapped",
    "files.altered",
    "Two certified files under each other's names.",
    {"metrics.json": "weights", "model.safetensors": "{}"},
)
filed(
    "link",
    "manifest.link",
    "A link to a file outside: what is read may change after the check.",
    {**MODEL, "model.safetensors": {"link": "../outside", "content": "weights"}},
)
filed(
    "collision",
    "manifest.collision",
    "A file whose name is that of a certified one on systems that do not tell case apart.",
    {**MODEL, "Metrics.json": "{}"},
)
filed(
    "not-nfc",
    "manifest.path",
    "A name in another Unicode form than the certificate's, which looks the same.",
    {**MODEL, "re\u0301sume\u0301": ""},
)
filed(
    "certified-ignored",
    "files.missing",
    "A certified file that the verifier was told to ignore: it is not checked, so it is not there.",
    MODEL,
    "--ignore",
    "model.safetensors",
)
filed(
    "folder-for-a-file",
    "files.missing",
    "A folder that has a certified file's name.",
    {"metrics.json": "{}", "model.safetensors/x": "weights"},
)
filed("control-character", "manifest.path", "A name that breaks a line.", {**MODEL, "a\nb": ""})
filed("fifo", "manifest.link", "A pipe, which would hang a reader.", {**MODEL, "x": {"fifo": True}})
filed(
    "renamed",
    "files.missing",
    "The right content under another name.",
    {"metrics.json": "{}", "Model.safetensors": "weights"},
)


# -- writing ---------------------------------------------------------------------------------------


def write(target: Path) -> None:
    """Write every case anew."""
    names = [item.name for item in CASES_LIST]
    assert len(set(names)) == len(names), "two cases have one name"
    shutil.rmtree(target / "cases", ignore_errors=True)
    (target / "roots.pem").write_bytes(AUTHORITY.root_pem)
    for item in CASES_LIST:
        folder = target / "cases" / item.name
        folder.mkdir(parents=True)
        certificate, files = item.make()
        for name, content in {"certificate.json": certificate, **files}.items():
            (folder / name).write_bytes(content)
        described = {
            "expect": item.expect,
            "options": list(item.options),
            "model": item.model,
            **item.extra,
        }
        (folder / "case.json").write_text(json.dumps(described, indent=1) + "\n")
        verdict = "It verifies." if item.expect == "verified" else f"Refused: `{item.expect}`."
        if item.extra.get("status") == 3:
            verdict = f"Not checked at all: `{item.expect}`."
        (folder / "README.md").write_text(f"# {item.name}\n\n{item.why}\n\n{verdict}\n")


if __name__ == "__main__":
    # Its cases register with the module `build`, which is another than this script.
    from tests.conformance import build, linked

    build.write(linked.HERE)
    print(f"{len(build.CASES_LIST)} cases in {CASES}")
