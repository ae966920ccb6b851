"""What is fuzzed: each parser that takes an attacker's bytes, with seeds and an oracle.

A target is called with bytes. It may raise `aicert.errors.Error` and nothing else; what it accepts
must hold what the oracle says (a round trip, or being one of the seeds). Keys are fixed, so that an
input that was kept means the same tomorrow.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from aicert import (
    bootlog,
    canonical,
    card,
    certificate,
    dsse,
    events,
    log,
    manifest,
    merkle,
    oms,
    parquet,
    policy_file,
    proof,
    records,
    reference,
    sev,
    statement,
    tensors,
    timestamp,
    tpm2,
    uri_pattern,
)
from aicert import verify as verifier
from aicert import x509 as chains
from aicert.errors import Error
from aicert.trust import Pin, TrustStore
from tests.fuzz import mutate
from tests.fuzz.mutate import frame, tlv, unframe
from tests.support import forger, snp
from tests.support.forger import Authority, Forger

HERE = Path(__file__).parent
CASES = HERE.parent / "conformance" / "cases"
ROOTS = HERE.parent / "conformance" / "roots.pem"


@dataclass(frozen=True)
class Target:
    """One parser. `stress` are large inputs, each tried as it is."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[Random, bytes], bytes]
    stress: Callable[[], list[bytes]] = field(default=list)

    def kept(self) -> list[tuple[str, bytes]]:
        """Inputs that once found a bug."""
        return [(p.name, p.read_bytes()) for p in sorted((HERE / "seeds" / self.name).glob("*"))]


TARGETS: dict[str, Target] = {}


def target(name: str, *args: Any, **options: Any) -> None:
    """Register a target."""
    TARGETS[name] = Target(name, *args, **options)


# -- what is needed to make good evidence ----------------------------------------------------------


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """A fixed RSA key; it protects nothing."""
    key = load_der_private_key(base64.b64decode((HERE / "rsa.key").read_text()), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def ecc_key(secret: int) -> ec.EllipticCurvePrivateKey:
    """A fixed P-256 key."""
    return ec.derive_private_key(secret, ec.SECP256R1())


@cache
def forgers() -> tuple[Forger, ...]:
    """A forger for each kind of key, always with the same keys."""
    made = []
    for kind, key in (("ecc", ecc_key(3)), ("rsa", rsa_key())):
        one = Forger(authority=Authority(root_key=ecc_key(1), intermediate_key=ecc_key(2)))
        one.kind, one.key = kind, key
        one.public = forger.public_area(key)
        one.name = b"\x00\x0b" + hashlib.sha256(one.public).digest()
        one.chain = one.authority.chain(key.public_key())
        made.append(one)
    return tuple(made)


@cache
def good() -> tuple[certificate.Certificate, ...]:
    """A good certificate of each forger."""
    return tuple(one.certificate() for one in forgers())


@cache
def trust() -> TrustStore:
    """The corpus's roots."""
    return TrustStore.builtin().with_roots(ROOTS)


@cache
def corpus() -> dict[str, bytes]:
    """The certificates of the conformance corpus, by name."""
    found = {}
    for case in sorted(CASES.iterdir()):
        path = case / "certificate.json"
        if path.exists() and path.stat().st_size < 1 << 17:
            found[case.name] = path.read_bytes()
    return found


# -- JSON ------------------------------------------------------------------------------------------


def run_canonical(data: bytes) -> None:
    loose = True
    try:
        value = canonical.loads(data, max_bytes=1 << 24)
    except Error:
        loose = False
    try:
        strict = canonical.loads_canonical(data, max_bytes=1 << 24)
    except Error:
        if not loose:
            raise
        if len(data) >= 1 << 20:
            return
        dumped = canonical.dumps(value)
        assert canonical.loads_canonical(dumped, max_bytes=1 << 26) == value
        return
    assert loose
    if len(data) < 1 << 20:
        # The standard parser agrees, but for integers that RFC 8785 writes for large doubles.
        assert strict == value == json.loads(data, parse_int=_number)


def _number(text: str) -> int | float:
    return int(text) if abs(int(text)) <= canonical.MAX_SAFE_INT else float(text)


JSON_SEEDS = [
    b'{"a":[1,-2,0.5,1e-7,1e+21,1000000000000000000,true,false,null,"\\u001f\xc3\xa9"],"b":{"":{}}}',
    b"[[[[[[[[[[]]]]]]]]]]", b'"\\ud83d\\ude00"', b'{"a":1,"a":2}', b"-0", b"1E400", b"NaN",
    b'{"\xe2\x82\xac":"x","\xf0\x9f\x98\x80":"y"}',
]  # fmt: skip


def json_stress() -> list[bytes]:
    """Files of the largest size that stand for many small things."""
    size = certificate.MAX_BYTES
    return [
        b"[" + b"[]," * (size // 3 - 2) + b"[]]",
        b"[" + b"1e-7," * (size // 5 - 2) + b"0]",
        b"[" + b"1e-7," * 99_990 + b"0]",
        b"[" + b"100000000000000000000," * 99_990 + b"0]",
        b'["' + b"\\n" * (size // 2 - 8) + b'"]',
        b'{"a":"' + b"a" * (size - 16) + b'"}',
        ('{"a":"' + "€" * (size // 3 - 16) + '\U0001f600"}').encode(),
        b"[" * size,
        b'{"a":' * (size // 5),
        b"9" * size,
        b"0." + b"1" * (size - 2),
        b'"' * (size - 1),
        b"{" + b",".join(b'"%x":0' % n for n in range(99_000)) + b"}",
    ]


target("canonical", run_canonical, lambda: [*JSON_SEEDS, good()[0].encode()],
       mutate.document, json_stress)  # fmt: skip


def run_certificate(data: bytes) -> None:
    parsed = certificate.Certificate.parse(data)
    assert parsed.encode() == data
    if len(data) < 1 << 20:
        assert certificate.Certificate.parse(parsed.encode()) == parsed


def many_files(path: str = "{}/file{:06}.bin", count: int = 10_000) -> bytes:
    """A good certificate with as many files as there may be."""
    files = [manifest.File(path.format(n // 100, n), n, "ab" * 32) for n in range(count)]
    made = replace(forgers()[0], events=forger.run_events(files))
    made.key, made.public, made.name, made.chain = (
        forgers()[0].key, forgers()[0].public, forgers()[0].name, forgers()[0].chain
    )  # fmt: skip
    return made.certificate().encode()


def long_paths() -> list[bytes]:
    """Certificates with paths that are long, deep, or grow when they are folded."""
    return [
        many_files("x" * 500 + "{}/{:06}", 8_000),
        many_files("/".join(["d"] * 60) + "{}/{:06}"),
        many_files("{}/{:06}" + "\ue000\u0378" * 60),
        many_files("{}/{:06}" + "\u00e9\u0345" * 60),
    ]


target("certificate", run_certificate, lambda: list(corpus().values()), mutate.document,
       lambda: [*json_stress(), many_files(), *long_paths()])  # fmt: skip


def run_log(data: bytes) -> None:
    value = canonical.loads(data, max_bytes=1 << 22)
    if not isinstance(value, list):
        return
    records = log.read(value)
    assert log.to_json(records) == value
    log.replay(records, dict.fromkeys(range(24), bytes(32)))
    run = log.parse_run(records)
    assert canonical.loads_canonical(statement.encode(run), max_bytes=1 << 24)


def log_mutant(random: Random, data: bytes) -> bytes:
    """Change events; mostly mend the digests and numbers after it, as an attacker would."""
    return _mend_log(mutate.document(random, data)) if random.random() < 0.9 else mutate.document(
        random, data
    )  # fmt: skip


def _mend_log(data: bytes) -> bytes:
    try:
        value = json.loads(data)
        for number, record in enumerate(value):
            record["recnum"] = number
            record["digests"][0]["digest"] = canonical.sha256(record["content"])
        return canonical.dumps(value)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, Error):
        return data


target("log", run_log, lambda: [canonical.dumps(log.to_json(good()[0].records)),
       *(canonical.dumps(json.loads(corpus()[n])["evidence"]["measurementLog"])
         for n in ("real-good", "good-ecc"))], log_mutant)  # fmt: skip


def run_paths(data: bytes) -> None:
    paths = [part.decode("utf-8", "surrogatepass") for part in data.split(b"\n")]
    for path in paths:
        assert manifest.check_path(path) == path
        assert os.path.normpath(path) == path and not path.startswith("/")
        path.encode()
    manifest.check_collisions(paths)


def paths_mutant(random: Random, data: bytes) -> bytes:
    """Change text; never a byte that is not UTF-8, which the JSON parser refuses before."""
    return mutate.text(random, data)


PATHS = ["model.safetensors", "a/b/c.bin\na/b/d.bin", "Straße\nstrasse", "ﬁle\nfile", "CON\ncon",
         "a\na/b", "é\ne\u0301", "../x", "C:x", "x.", "İ\ni", "/".join("a" * 60)]  # fmt: skip
target("paths", run_paths, lambda: [p.encode() for p in PATHS], paths_mutant,
       lambda: [b"a/" * 500_000, "\ufdfa".encode() * 300_000, "e\u0301".encode() * 300_000,
                b"\n".join(b"f%d" % n for n in range(100_000))])  # fmt: skip


def run_manifest(data: bytes) -> None:
    value = canonical.loads(data, max_bytes=1 << 24)
    made = manifest.Manifest.from_json(value)
    assert manifest.Manifest.from_json(made.to_json()) == made
    assert len(made.root) == len(made.digest) == 64


MANIFEST = {"version": 1, "files": [
    {"path": path, "size": number, "sha256": "ab" * 32}
    for number, path in enumerate(("a", "b/c", "b/d/e", "b.c", "é"))
]}  # fmt: skip
target("manifest", run_manifest, lambda: [canonical.dumps(MANIFEST)], mutate.document,
       lambda: [canonical.dumps({"version": 1, "files": [
           {"path": "/".join(["d"] * 60) + f"/{n:06}", "size": n, "sha256": "ab" * 32}
           for n in range(10_000)]})])  # fmt: skip

# -- TPM -------------------------------------------------------------------------------------------


def run_attest(data: bytes) -> None:
    attest = tpm2.parse_attest(data)
    assert attest.selection and data[:4] == b"\xffTCG"
    attest.check_pcrs(good()[0].quote.pcrs)


target("attest", run_attest, lambda: [c.quote.message for c in good()], mutate.octets,
       lambda: [bytes(1 << 20)])  # fmt: skip


def run_signature(data: bytes) -> None:
    signature = tpm2.parse_signature(data)
    public = tpm2.parse_public(good()[0 if data[:2] == b"\x00\x18" else 1].attestation_key.public)
    known = {c.quote.signature for c in good()}
    accepted = any(signature.verify(public, c.quote.message) for c in good())
    assert accepted <= (data in known or signature.scheme == tpm2.ALG_ECDSA)


target("signature", run_signature, lambda: [c.quote.signature for c in good()], mutate.octets)


def run_public(data: bytes) -> None:
    public = tpm2.parse_public(data)
    assert public.encoded == data and len(public.name) in (34, 50)
    public.require_ak()


target("public", run_public, lambda: [c.attestation_key.public for c in good()], mutate.octets,
       lambda: [bytes(1 << 20)])  # fmt: skip


def run_quote(data: bytes) -> None:
    parts = unframe(data)
    if len(parts) != 4:
        return
    message, signature, public, values = parts
    key = tpm2.parse_public(public)
    attest = tpm2.check_quote(message, signature, key)
    # Nobody but the holders of the fixed keys can sign: the message is one of the seeds'.
    if public in {c.attestation_key.public for c in good()}:
        assert message in {c.quote.message for c in good()}
    attest.check_pcrs({n: values[32 * n : 32 * n + 32] for n in range(16)})
    assert hashlib.sha256(values[: 32 * 16]).digest() == attest.pcr_digest


target("quote", run_quote, lambda: [
    frame([c.quote.message, c.quote.signature, c.attestation_key.public,
           b"".join(c.quote.pcrs[n] for n in range(16))]) for c in good()
], mutate.framed(mutate.octets))  # fmt: skip

# -- certificates of the attestation key -----------------------------------------------------------

TIMES = (forger.STARTED, forger.FINISHED)


@cache
def _fixed_trust() -> TrustStore:
    root = hashlib.sha256(forgers()[0].chain[-1]).hexdigest()
    return TrustStore.builtin().with_pins([Pin("fixed", root, "simulated", "fuzzing")])


def run_chain(data: bytes) -> None:
    parts = unframe(data)
    refused: Error | None = None
    for one in forgers():
        key = one.key.public_key()
        try:
            chains.verify_chain(parts, _fixed_trust(), at=TIMES, key=key)
        except Error as error:
            refused = refused if refused and error.code == "chain.leaf-key" else error
            continue
        # ECDSA signatures come in pairs, so only what is signed must be the seed's.
        assert [_tbs(der) for der in parts] == [_tbs(der) for der in one.chain]
        return
    if refused:
        raise refused


def _tbs(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


target("chain", run_chain, lambda: [frame(one.chain) for one in forgers()],
       mutate.framed(mutate.der),
       lambda: [frame([bytes(1 << 20)]), frame([tlv(0x30, b"\x30\x80" * 8000)] * 8)])  # fmt: skip

_ECDSA = tlv(0x30, tlv(0x06, bytes.fromhex("2a8648ce3d040302")))


def run_chain_signed(data: bytes) -> None:
    """What is to be signed comes from the attacker, and the CA signs it: nothing may crash."""
    parts = unframe(data)
    if not 1 <= len(parts) <= 8:
        return
    keys = [ecc_key(2)] + [ecc_key(1)] * (len(parts) - 1)
    chain = []
    for part, key in zip(parts, keys, strict=True):
        signed = key.sign(part, ec.ECDSA(hashes.SHA256()))
        chain.append(tlv(0x30, part + _ECDSA + tlv(0x03, b"\x00" + signed)))
    pin = Pin("fixed", hashlib.sha256(chain[-1]).hexdigest(), "simulated", "fuzzing")
    public = ecc_key(3).public_key()
    info = chains.verify_chain(chain, TrustStore().with_pins([pin]), at=TIMES, key=public)
    assert info.not_before <= TIMES[0] <= TIMES[1] <= info.not_after


target("chain-signed", run_chain_signed,
       lambda: [frame([_tbs(der) for der in forgers()[0].chain])],
       mutate.framed(mutate.der))  # fmt: skip

# -- the firmware's log ----------------------------------------------------------------------------


def boot_header(algorithms: tuple[tuple[int, int], ...] = ((0x0B, 32),)) -> bytes:
    """The Spec ID event."""
    spec = b"Spec ID Event03\x00" + bytes(4) + bytes((0, 2, 0, 2))
    spec += struct.pack("<I", len(algorithms))
    spec += b"".join(struct.pack("<HH", *one) for one in algorithms) + b"\x00"
    return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(spec)) + spec


def boot_event(pcr: int, kind: int, data: bytes) -> bytes:
    """An event with a SHA-256 digest over its data."""
    digest = hashlib.sha256(data).digest()
    return struct.pack("<IIIH", pcr, kind, 1, 0x0B) + digest + struct.pack("<I", len(data)) + data


def boot_log() -> bytes:
    """A small good log."""
    events = [boot_event(0, 3, b"StartupLocality\x00\x03"), boot_event(0, 8, b"v1")]
    events += [boot_event(pcr, 4, bytes(4)) for pcr in range(8)]
    events += [boot_event(7, 0x800000E0, b"db"), boot_event(4, 0x80000003, b"shim")]
    return boot_header() + b"".join(events)


def run_bootlog(data: bytes) -> None:
    parsed = bootlog.parse(data)
    values = parsed.replay()
    parsed.check(values)
    for event in parsed.events:
        assert event.unauthenticated_type_name and event.digest_matches_data in (True, False)
        assert len(event.digest) == 32 and 0 <= event.pcr < 24


def boot_stress() -> list[bytes]:
    """Logs of the largest size."""
    size = bootlog.MAX_BYTES
    locality = boot_event(0, 3, b"StartupLocality\x00\x03")
    return [
        (boot_header() + boot_event(0, 4, b"") * 9_999 + bytes(size))[: size - 7],
        (boot_header() + boot_event(0, 4, b"") * 9_999 + b"\xff" * size)[:size],
        (boot_header() + boot_event(1, 1, b"") * 9_000 + locality * 40_000)[:size],
        (boot_header() + boot_event(0, 3, b"") * 40_000)[:size],
        (boot_header() + boot_event(1, 1, b"") * 40_000)[:size],
        boot_header() + bytes(size // 2) + b"\x01",
    ]


target("bootlog", run_bootlog, lambda: [boot_log(), boot_log() + bytes(64), boot_header()
       + boot_event(0, 4, b""), boot_header(((4, 20), (0x0B, 32), (0x0C, 48)))],
       mutate.octets, boot_stress)  # fmt: skip

# -- a CPU's report --------------------------------------------------------------------------------


@cache
def amd() -> snp.Amd:
    """AMD, as far as the fuzzer goes."""
    chip = ec.derive_private_key(7, ec.SECP384R1())
    return snp.Amd(ark_key=rsa_key(), ask_key=rsa_key(), vcek_key=chip)


def run_sev(data: bytes) -> None:
    parts = unframe(data)
    if len(parts) < 3:
        return
    report, document, *chain = parts
    root = hashlib.sha256(chain[-1]).hexdigest()
    before = dict(sev.ROOTS)
    sev.ROOTS.setdefault(root, "Milan")
    try:
        found = sev.check(report, document, chain, key=rsa_key().public_key(), at=TIMES)
    finally:
        sev.ROOTS.clear()
        sev.ROOTS.update(before)
    assert report[0x50:0x90] == hashlib.sha256(document).digest() + bytes(32)
    assert report[0x30:0x34] == bytes(4) and not report[0x0A] & 0x0C  # VMPL 0; policy bits 18, 19
    assert b"HCLAkPub" in document and found.measurement == report[0x90:0xC0].hex()


def sev_mutant(random: Random, data: bytes) -> bytes:
    """Change a part; or the report or the document, and have the chip sign what came of it."""
    parts = unframe(data)
    if len(parts) < 3 or random.random() < 0.4:
        return mutate.framed(mutate.der if random.random() < 0.5 else mutate.octets)(random, data)
    report, document, *chain = parts
    if random.random() < 0.5:
        document = mutate.document(random, document)
    else:
        report = mutate.octets(random, report)
    changed = bytearray(report[: sev.REPORT_BYTES].ljust(sev.REPORT_BYTES, b"\0"))
    changed[0x50:0x90] = hashlib.sha256(document).digest() + bytes(32)
    return frame([snp.signed(changed, amd().vcek_key), document, *chain])


def sev_seeds() -> list[bytes]:
    """What a confidential machine brings."""
    made = amd().evidence(rsa_key().public_key())
    return [frame([made.report, made.runtime_data, *made.chain])]


target("sev", run_sev, sev_seeds, sev_mutant, lambda: [
    frame([bytes(sev.REPORT_BYTES), b"[" * 8192, *amd().chain()]),
    frame([bytes(1 << 20), bytes(1 << 20), bytes(1 << 20)]),
])  # fmt: skip

# -- weights ---------------------------------------------------------------------------------------


def run_tensors(data: bytes) -> None:
    found, metadata = tensors.read_header(io.BytesIO(data))
    at = 8 + int.from_bytes(data[:8], "little")
    for tensor in found.values():
        assert tensor.begin == at <= tensor.end <= len(data)
        at = tensor.end
    assert at == len(data) and all(isinstance(text, str) for text in metadata.values())


def safetensors(header: bytes, content: bytes = b"") -> bytes:
    """A file of the format."""
    return len(header).to_bytes(8, "little") + header + content


TENSORS = canonical.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    }
)


def tensors_mutant(random: Random, data: bytes) -> bytes:
    """Change the file, or its header with the length before it."""
    if random.random() < 0.2:
        return mutate.octets(random, data)
    length = int.from_bytes(data[:8], "little")
    return safetensors(mutate.document(random, data[8 : 8 + length]), data[8 + length :])


target("tensors", run_tensors, lambda: [safetensors(TENSORS, bytes(26)), safetensors(b"{}")],
       tensors_mutant, lambda: [
           safetensors(b'{"a":[' + b"[]," * 330_000 + b"0]}"), safetensors(b"[" * (1 << 20)),
           safetensors(b'{"a":"' + bytes(60 << 20) + b'"}'), b"\xff" * 16,
       ])  # fmt: skip

# -- the whole -------------------------------------------------------------------------------------


def run_verify(data: bytes) -> None:
    verdict = verifier.verify(data, trust=trust(), least=verifier.Assurance.SIMULATED)
    verifier.to_json(verdict)
    made = verdict.certificate
    # Whoever cannot sign cannot say anything new: what is accepted says what a seed says.
    assert (made.payload, made.records, made.quote.message) in _accepted()


@cache
def _accepted() -> list[tuple[Any, ...]]:
    found = []
    for name, data in corpus().items():
        expect = json.loads((CASES / name / "case.json").read_text())["expect"]
        demands = ("policy.", "timestamp.", "evaluation.", "lineage.", "trust.")
        if expect == "verified" or expect.startswith(demands):
            # True, and refused for what that case's verifier demands and this one does not.
            made = certificate.Certificate.parse(data)
            found.append((made.payload, made.records, made.quote.message))
    return found


def verify_stress() -> list[bytes]:
    """Large certificates: many files, a full boot log."""
    value = json.loads(corpus()["real-good"])
    made = []
    for boot in boot_stress():
        value["evidence"]["bootEventLog"] = base64.b64encode(boot).decode()
        made.append(canonical.dumps(value))
    return [many_files(), *long_paths(), *made, *json_stress()[:4]]


target("verify", run_verify, lambda: list(corpus().values()), mutate.document, verify_stress)


def run_verify_signed(data: bytes) -> None:
    """The attacker holds the key: everything that can be signed anew is. Nothing may crash."""
    value = json.loads(data)
    one = forgers()[0]
    try:
        evidence = value["evidence"]
        records = json.loads(_mend_log(json.dumps(evidence["measurementLog"]).encode()))
        evidence["measurementLog"] = records
        job = next(r["content"] for r in records if r["content"]["type"] == "job")
        first = evidence["baselineQuote"]
        job["baseline"]["sha256"] = hashlib.sha256(base64.b64decode(first["message"])).hexdigest()
        records = json.loads(_mend_log(json.dumps(records).encode()))
        evidence["measurementLog"] = records
        payload = statement.encode(log.parse_run(log.read(records)))
        signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
        value["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        value["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(
            forger.sign_dsse(one.key, signed)
        ).decode()
        values = {int(k): bytes.fromhex(v) for k, v in first["pcrs"]["sha256"].items()}
        final = {k: v.hex() for k, v in log.replay(log.read(records), values).items()}
        last = evidence["quote"]
        last["pcrs"]["sha256"] = {str(k): v for k, v in final.items()}
        message = base64.b64decode(last["message"])
        old = good()[0].quote.message
        digest = hashlib.sha256(b"".join(bytes.fromhex(final[k]) for k in sorted(final))).digest()
        message = message.replace(old[44:76], hashlib.sha256(signed).digest())
        message = message.replace(old[-32:], digest)
        last["message"] = base64.b64encode(message).decode()
        for quote in (first, last):
            raw = base64.b64decode(quote["message"])
            quote["signature"] = base64.b64encode(forger.sign_tpm(one.key, raw)).decode()
        data = canonical.dumps(value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, Error):
        pass
    verdict = verifier.verify(data, trust=_fixed_trust(), least=verifier.Assurance.SIMULATED)
    verifier.to_json(verdict)
    assert certificate.Certificate.parse(data).encode() == data
    plain(card.verdict_text(verdict))
    plain(card.markdown(verdict.certificate, verdict))


def signed_mutant(random: Random, data: bytes) -> bytes:
    """Change JSON and keep it JSON."""
    for _ in range(8):
        changed = mutate.document(random, data)
        try:
            if isinstance(json.loads(changed), dict):
                return changed
        except (ValueError, RecursionError):
            continue
    return data


def plain(shown: str) -> None:
    """Text for a terminal or a page holds no control characters but line ends."""
    assert all(c == "\n" or (c >= " " and c != "\x7f") for c in shown), ascii(shown)


target("verify-signed", run_verify_signed, lambda: [good()[0].encode()], signed_mutant)


@cache
def model_signature() -> tuple[verifier.Verdict, oms.SigningKey, bytes]:
    """A verdict, the key that signs for it, and the model.sig."""
    made = forgers()[0]
    data = good()[0].encode()
    verdict = verifier.verify(data, trust=_fixed_trust(), least=verifier.Assurance.SIMULATED)
    attributes = forger.AK_ATTRIBUTES & ~forger.RESTRICTED
    public = forger.public_area(ecc_key(4), attributes)
    name = tpm2.parse_public(public).name
    attest = forger.Attest(hashlib.sha256(data).digest(), b"", b"", type=0x8017).encode()[:-2]
    message = attest + forger.tpm2b(name) + forger.tpm2b(name)
    key = oms.SigningKey(public, message, forger.sign_tpm(made.key, message))
    statement_ = oms.payload(hashlib.sha256(data).hexdigest(), verdict.run, key)
    return verdict, key, _model_signed(statement_)


def _model_signed(payload: bytes) -> bytes:
    key = oms.SigningKey(forger.public_area(ecc_key(4), forger.SIGN | 0x32), b"", b"")
    return oms.bundle(payload, key, forger.sign_dsse(ecc_key(4), dsse.pae(payload)))


def run_model_signature(data: bytes) -> None:
    verdict, _, known = model_signature()
    oms.check(data, verdict)
    payloads = [json.loads(item)["dsseEnvelope"]["payload"] for item in (data, known)]
    assert payloads[0] == payloads[1]  # the signature's numbers differ from one to the next


def model_signature_mutant(random: Random, data: bytes) -> bytes:
    """Change the bundle, or the statement in it and sign that anew."""
    if random.random() < 0.4:
        return mutate.document(random, data)
    try:
        payload = base64.b64decode(json.loads(data)["dsseEnvelope"]["payload"])
    except (ValueError, KeyError, TypeError):
        return mutate.document(random, data)
    return _model_signed(mutate.document(random, payload))


target("oms", run_model_signature, lambda: [model_signature()[2]], model_signature_mutant)


def run_card(data: bytes) -> None:
    made = certificate.Certificate.parse(data)
    plain(card.text(made))
    plain(card.markdown(made))


def card_mutant(random: Random, data: bytes) -> bytes:
    """Change events and mend the log, so that the card has something to show."""
    try:
        value = json.loads(data)
        records = canonical.dumps(value["evidence"]["measurementLog"])
        value["evidence"]["measurementLog"] = json.loads(log_mutant(random, records))
        return canonical.dumps(value)
    except (ValueError, KeyError, TypeError, RecursionError, Error):
        return mutate.document(random, data)


target("card", run_card, lambda: [good()[0].encode(), corpus()["real-good"]], card_mutant)

# -- what a verifier is given besides --------------------------------------------------------------


def run_policy(data: bytes) -> None:
    policy_file.parse(data.decode("utf-8", "surrogatepass"))


def policy_seeds() -> list[bytes]:
    """Policies of the kinds that people write."""
    here = Path(policy_file.__file__).parent / "policies"
    more = b"""policy: 1
name: strict
assurance: measured
roots: ["E6C5"]
images:
  - sha256:%b
inputs:
  require:
    - {uri: "https://example.com/**", sha256: %b}
  forbid: [{uri: "http://*/**"}]
maximum-age: 90d
network: none
""" % (b"ab" * 32, b"cd" * 32)
    simple = b'{"policy": 1, "name": "x", "assurance": "simulated"}'
    return [p.read_bytes() for p in sorted(here.glob("*.y*ml"))] + [more, simple]


target("policy", run_policy, policy_seeds, mutate.text, lambda: [
    b"policy: 1\n" + b"- " * 100_000, b"[" * 200_000, b"{" * 200_000, b"a: &a [*a]\n" * 10_000,
    b"policy: 1\nroots: [" + b"a, " * 80_000 + b"]", b"? " * 100_000,
    b"x" * (1 << 18) + b":", b"\n" * (1 << 18), b'"' + b"\\u0041" * 40_000 + b'"',
])  # fmt: skip


def run_pattern(data: bytes) -> None:
    text, _, uri = data.decode("utf-8", "surrogatepass").partition("\n")
    try:
        pattern = uri_pattern.parse(text)
    except ValueError:  # as it says; policy files turn it into a mistake with its place
        return
    pattern.allows(uri)
    pattern.forbids(uri)


target("pattern", run_pattern, lambda: [
    b"https://*/a/**\nhttps://example.com/a/b/c", b"s3://bucket/*.bin\ns3://bucket/../x.bin",
    b"git+https://h/**\ngit+https://h/%2e%2e/x?y#z",
], mutate.text, lambda: [
    b"https://h/" + b"*a" * 200 + b"\nhttps://h/" + b"a" * 4000,
    b"https://h/" + b"**/" * 200 + b"\nhttps://h/" + b"a/" * 2000 + b"!",
])  # fmt: skip


def run_reference(data: bytes) -> None:
    if b'"dsseEnvelope"' in data:
        reference.parse(data)
        return
    values = reference.ReferenceValues.parse(data)
    assert reference.ReferenceValues.parse(values.encode()) == values


def reference_seeds() -> list[bytes]:
    """A document, and the same signed."""
    event = reference.Events(frozenset({bytes(32), b"\x01" * 32}), frozenset({bytes(32)}))
    values = reference.ReferenceValues(
        image="image", version="1", issued_on=forger.STARTED,
        pcrs={4: b"\x04" * 32, 9: b"\x09" * 32}, events={11: event},
        zero=frozenset({10, 12, 13}),
        shapes=(reference.Shape("a", {0: b"\x05" * 32}, {7: event}, frozenset({1, 2, 3, 5, 6})),),
    )  # fmt: skip
    return [values.encode(), reference.sign(values, ecc_key(5))]


target("reference", run_reference, reference_seeds, mutate.document)


@cache
def stamped() -> tuple[timestamp.Stamp, list[x509.Certificate]]:
    """What the real token says, and the root that it chains to."""
    root = x509.load_der_x509_certificate((HERE / "timestamp" / "root.der").read_bytes())
    token = (HERE / "timestamp" / "token.der").read_bytes()
    return timestamp.verify(token, b"stamped", [root]), [root]


def run_timestamp(data: bytes) -> None:
    known, roots = stamped()
    # What may change is a certificate beside the signer's, such as the copy of the root.
    assert timestamp.verify(data, b"stamped", roots) == known


def timestamp_seeds() -> list[bytes]:
    """A real token, by `openssl ts`; and the skeleton of one."""
    sha256 = tlv(0x30, tlv(0x06, bytes.fromhex("608648016503040201")) + tlv(0x05, b""))
    info = tlv(0x30, tlv(2, b"\1") + tlv(6, b"\x2a\3") + tlv(0x30, sha256 + tlv(4, bytes(32)))
               + tlv(2, b"\1") + tlv(0x18, b"20260501120000Z"))  # fmt: skip
    inner = tlv(0x30, tlv(6, bytes.fromhex("2a864886f70d0109100104")) + tlv(0xA0, tlv(4, info)))
    signer = tlv(0x30, tlv(2, b"\1") + tlv(0x30, tlv(0x30, b"") + tlv(2, b"\1")) + sha256
                 + tlv(0xA0, b"") + sha256 + tlv(4, bytes(64)))  # fmt: skip
    signed = tlv(0x30, tlv(2, b"\3") + tlv(0x31, sha256) + inner
                 + tlv(0xA0, forgers()[0].chain[0]) + tlv(0x31, signer))  # fmt: skip
    return [
        (HERE / "timestamp" / "token.der").read_bytes(),
        tlv(0x30, tlv(6, bytes.fromhex("2a864886f70d010702")) + tlv(0xA0, signed)),
    ]


target("timestamp", run_timestamp, timestamp_seeds, mutate.der,
       lambda: [tlv(0x30, b"\x30\x80" * 30_000), b"\x30\x83\xff\xff\xff" * 12_000])  # fmt: skip


# -- records ---------------------------------------------------------------------------------------

LINES = sorted(hashlib.sha256(b"%d" % number).digest() for number in range(21))


@cache
def recorded() -> log.Run:
    """A run that commits to 21 records."""
    tree = merkle.Tree()
    tree.extend(LINES)
    held = events.Records("lines/1", tree.root.hex(), 30, len(LINES))
    run = log.parse_run(good()[0].records)
    return replace(run, inputs=tuple(replace(item, records=held) for item in run.inputs))


def run_proof(data: bytes) -> None:
    parsed = proof.Proof.parse(data)
    assert parsed.encode() == data
    proof.check(parsed, recorded())
    # Whatever is accepted is true.
    assert parsed.found is (parsed.record in LINES)


def proof_seeds() -> list[bytes]:
    """Proofs of what is there, of what is not, and of what lies beyond the ends."""
    held = recorded().inputs[0].records
    assert held is not None
    made = []
    for record, places in (
        (LINES[7], [7]), (LINES[20], [20]), (bytes(32), [0]), (b"\xff" * 32, [20]),
        (LINES[9][:-1] + b"\xff", [9, 10]), (LINES[15][:-1] + b"\xff", [15, 16]),
    ):  # fmt: skip
        leaves = tuple(proof.Leaf(n, LINES[n], tuple(merkle.paths(LINES, [n])[0])) for n in places)
        made.append(proof.Proof("data", held, record, record in LINES, leaves).encode())
    return made


target("proof", run_proof, proof_seeds, mutate.document,
       lambda: [b"[" * 20_000, b'{"leaves":[' + b'{"path":[]},' * 1200 + b"0]}"])  # fmt: skip


def run_records(data: bytes) -> None:
    """A file of an input is an attacker's: however it is taken apart, it makes one commitment."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        place = Path(folder) / "input"
        place.mkdir()
        (place / "a").write_bytes(data)
        listed = manifest.scan(place, jobs=1)
        held = records.commit(place, listed, "jsonl", scratch=Path(folder))
        assert held.distinct <= held.count <= records.commit(
            place, listed, "lines", scratch=Path(folder)
        ).count  # fmt: skip
        assert [path.name for path in Path(folder).iterdir()] == ["input"]


def run_parquet(data: bytes) -> None:
    """A row has a form in JSON, or it is refused as one that has none."""
    with tempfile.TemporaryFile(dir=_memory()) as file:
        file.write(data)
        file.flush()
        for row in islice(parquet.rows(file.fileno()), 2000):
            canonical.dumps(row)


def parquet_seeds() -> list[bytes]:
    """Files of several programs: flat and nested, pages of both versions, packed and not."""
    names = ("arrow-required", "arrow-nested-pages-2", "arrow-gzip-pages-2", "duckdb", "polars")
    return [(HERE.parent / "parquet" / f"{name}.parquet").read_bytes() for name in names]


def parquet_stress() -> list[bytes]:
    """Footers of as many small things as there is room for."""
    footers = [
        b"\x29\xfc" + b"\xff\xff\xff\x03" + bytes(parquet.MAX_FOOTER - 6),  # structures
        b"\xf9\xf1" + b"\xff\xff\xff\x03" + bytes(parquet.MAX_FOOTER - 6),  # truth values
        b"\xfc" + b"\x1c" * (parquet.MAX_FOOTER - 1),  # one in the other
        b"\x15" * parquet.MAX_FOOTER,  # fields
    ]
    return [b"PAR1" + text + len(text).to_bytes(4, "little") + b"PAR1" for text in footers]


target("parquet", run_parquet, parquet_seeds, mutate.octets, parquet_stress)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


RECORDS = b'\xef\xbb\xbf{"b": 1.0, "a": "\\u00e9"}\r\n\n [1e2, null]\n"text"\n7'
target("records", run_records,
       lambda: [RECORDS, gzip.compress(RECORDS, mtime=0),
                gzip.compress(RECORDS, mtime=0) + gzip.compress(b"\n8\n", mtime=0)],
       mutate.octets,
       lambda: [b"[" * (1 << 20), b"\n" * (1 << 20), b"1\n" * 100_000, bytes(20 << 20),
                b"9" * (1 << 20), b"[" + b"1," * 400_000 + b"1]",
                gzip.compress(bytes(64 << 20), mtime=0),
                gzip.compress(b"\n" * (1 << 20), mtime=0)])  # fmt: skip
