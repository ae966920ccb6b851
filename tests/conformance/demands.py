"""The rest of the corpus: boot logs, reference values, timestamps, policies, downgrades.

The cases of `build.py` break one certificate. These give the verifier files of its own besides: a
policy, reference values, roots. They stand in the case's folder; `{case}` in an option is its path.
"""

import base64
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from aicert import bootlog, canonical, dsse, keys, reference, timestamp
from aicert.certificate import Certificate
from tests.conformance import build
from tests.conformance.build import AUTHORITY, at, case, good, issue, relogged, simple, stated
from tests.support import boot, forger
from tests.support.forger import STARTED, Authority, Forger, run_events, selection
from tests.support.linked import moved
from tests.support.tsa import Tsa

HARDWARE = Authority(name="conformance hardware")
"""A root that the verifier is told to take for one of real TPMs."""

FUTURE = STARTED.replace(year=2090)
"""When runs took place that are in the future, for as long as the corpus is."""

LATER = Authority(
    name="conformance later", not_before=STARTED, not_after=FUTURE + timedelta(days=365)
)

HERE: Path = build.HERE
PUBLISHER = ec.generate_private_key(ec.SECP256R1())
SIMULATED = ("--allow-simulated",)
DER = serialization.Encoding.DER


def option(*names: str) -> tuple[str, ...]:
    """The options that name the case's files: `policy.yaml` gives `--policy {case}/policy.yaml`."""
    kinds = {
        "policy": "--policy",
        "reference": "--reference",
        "hardware": "--hardware-root",
        "later": "--root",
        "authority": "--timestamp-root",
    }
    found: list[str] = []
    for name in names:
        found += [kinds[name.partition(".")[0].partition("-")[0]], f"{{case}}/{name}"]
    return tuple(found)


# -- policies --------------------------------------------------------------------------------------


def policy(
    name: str,
    expect: str,
    why: str,
    text: str,
    make: Callable[[], Certificate] = lambda: good().certificate(),
    *,
    more: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Register a case with a policy; `more` are further files, the names of policies among them."""
    texts = {"policy.yaml": text, **(more or {})}
    named = [n for n in texts if n.startswith("policy")]
    options.setdefault("options", option(*named))

    def build_case() -> tuple[Certificate, dict[str, bytes]]:
        return make(), {n: content.encode() for n, content in texts.items()}

    case(f"policy-{name}", expect, why, **options)(build_case)


BASE = "policy: 1\nassurance: simulated\n"
ROOT = hashlib.sha256(AUTHORITY.root.public_bytes(DER)).hexdigest()
CODE, DATA = "aa" * 32, "dd" * 32  # the content of the two inputs (`run_events`)
IMAGE = "11" * 32


def started(**changes: Any) -> Callable[[], Certificate]:
    """A good certificate whose training was started in another way."""
    return lambda: _with(4, **changes)


def asked(**changes: Any) -> Callable[[], Certificate]:
    """A good certificate whose spec asked for a training that was started in another way."""

    def make() -> Certificate:
        listed = run_events()
        listed[0] = replace(listed[0], spec=replace(listed[0].spec, **changes))
        listed[4] = replace(listed[4], **changes)
        return good(events=listed).certificate()

    return make


def _with(index: int, **changes: Any) -> Certificate:
    listed = run_events()
    listed[index] = replace(listed[index], **changes)
    return good(events=listed).certificate()


case(
    "policy-simulated-refused",
    "policy.assurance",
    "A software TPM, and a verifier that was asked for nothing.",
    options=(),
)(lambda: good().certificate())
policy(
    "simulated-refused-where-it-says-nothing",
    "policy.assurance",
    "A policy that does not speak of assurance asks for hardware.",
    "policy: 1\nnetwork: none\n",
)
policy(
    "simulated-refused-beside-the-option",
    "policy.assurance",
    "`--allow-simulated` loosens no policy that is named beside it.",
    "policy: 1\nassurance: hardware\n",
    options=(*SIMULATED, *option("policy.yaml")),
)
policy("simulated-allowed", "verified", "The policy asks for a software TPM at least.", BASE)
policy(
    "least-hardware",
    "verified",
    "The policy asks for hardware, and the root is one that the verifier takes for it.",
    "policy: 1\nassurance: hardware\n",
    lambda: Forger(authority=HARDWARE).certificate(),
    more={"hardware.pem": HARDWARE.root_pem.decode()},
    options=option("policy.yaml", "hardware.pem"),
    extra={"answer": {"assurance": "hardware"}},
)
policy(
    "least-measured",
    "policy.assurance",
    "The policy asks for a measured boot; nothing says what the boot should have been.",
    "policy: 1\nassurance: measured\n",
    lambda: Forger(authority=HARDWARE).certificate(),
    more={"hardware.pem": HARDWARE.root_pem.decode()},
    options=option("policy.yaml", "hardware.pem"),
)
policy(
    "least-confidential",
    "policy.assurance",
    "The policy asks for what no certificate reaches yet.",
    "policy: 1\nassurance: confidential\n",
)
policy(
    "brings-its-root",
    "verified",
    "The policy itself says that the root vouches for real TPMs.",
    "policy: 1\nassurance: hardware\ntrust:\n  - {file: hardware.pem, assurance: hardware}\n",
    lambda: Forger(authority=HARDWARE).certificate(),
    more={"hardware.pem": HARDWARE.root_pem.decode()},
    extra={"answer": {"assurance": "hardware"}},
)
policy(
    "root-allowed",
    "verified",
    "The root's fingerprint is one of the policy's.",
    BASE + f"roots: [sha256:{ROOT}]\n",
)
policy(
    "root-not-allowed",
    "policy.roots",
    "The root is trusted, and not one that the policy allows.",
    BASE + f"roots: [Google EK/AK CA Root, sha256:{'77' * 32}]\n",
)
policy(
    "image-allowed", "verified", "The image is the second of two.",
    BASE + f"images: [sha256:{'77' * 32}, {IMAGE}]\n",
)  # fmt: skip
policy(
    "image-not-allowed",
    "policy.images",
    "The image's manifest digest is listed, which is not its identity.",
    BASE + f"images: [sha256:{'22' * 32}]\n",
)
policy(
    "input-required-by-digest",
    "verified",
    "A file by its digest, a tree by its root.",
    BASE + f"inputs:\n  require:\n    - {{sha256: {CODE}}}\n    - {{root: sha256:{DATA}}}\n",
)
LISTING = hashlib.sha256(b"images").digest() + hashlib.sha256(b"labels").digest()
policy(
    "input-a-file-that-lists-a-tree",
    "policy.inputs.require",
    "A tree of two files is required by its root. What was used is a file of 64 bytes, the two "
    "files' digests: its SHA-256 is the tree's root.",
    BASE + f"inputs:\n  require: [{{root: {hashlib.sha256(LISTING).hexdigest()}}}]\n",
    lambda: _with(
        2,
        kind="file",
        files=1,
        size=len(LISTING),
        sha256=hashlib.sha256(LISTING).hexdigest(),
        root=hashlib.sha256(hashlib.sha256(LISTING).digest()).hexdigest(),
    ),
)
policy(
    "inputs-exactly",
    "verified",
    "The inputs are those that are listed, each in its place, and no other.",
    BASE + f"inputs:\n  exactly:\n    - {{sha256: {CODE}, target: /inputs/code}}\n"
    f"    - {{root: {DATA}, target: /inputs/data}}\n",
)
policy(
    "inputs-exactly-in-other-places",
    "policy.inputs.exactly",
    "The inputs are those that are listed, each in the other's place: another program runs.",
    BASE + f"inputs:\n  exactly:\n    - {{sha256: {CODE}, target: /inputs/data}}\n"
    f"    - {{root: {DATA}, target: /inputs/code}}\n",
)
policy(
    "inputs-exactly-one-more",
    "policy.inputs.exactly",
    "One input more was used than those that are listed.",
    BASE + f"inputs:\n  exactly: [{{sha256: {CODE}, target: /inputs/code}}]\n",
)
policy(
    "input-required-in-another-place",
    "policy.inputs.require",
    "The code that is required was used, and lay where its command does not find it.",
    BASE + f"command: {{equals: [python3, /inputs/code/train.py]}}\n"
    f"inputs:\n  require: [{{sha256: {CODE}, target: /inputs/code}}]\n",
    lambda: _swapped(),
)
policy(
    "input-required-tree-by-the-word-for-a-file",
    "policy.inputs.require",
    "A tree is required by the word for a file's digest: which is meant must be said.",
    BASE + f"inputs:\n  require: [{{sha256: {DATA}}}]\n",
)
policy(
    "input-required-and-missing",
    "policy.inputs.require",
    "The required digest is that of an output, not of an input.",
    BASE + f"inputs:\n  require: [{{sha256: {hashlib.sha256(b'weights').hexdigest()}}}]\n",
)
policy(
    "input-required-parts-of-two",
    "policy.inputs.require",
    "One input has the URI and another the digest: no input has both.",
    BASE + f'inputs:\n  require:\n    - {{uri: "file:data", sha256: {CODE}}}\n',
)
policy(
    "input-required-by-a-uri-with-dots",
    "policy.inputs.require",
    "The URI matches as it is written and leaves the allowed place when it is resolved.",
    BASE + 'inputs:\n  require: [{uri: "https://data.example/ours/**"}]\n',
    lambda: _with(1, uri="https://data.example/ours/../theirs/x"),
)
policy(
    "input-required-by-a-uri-encoded-twice",
    "policy.inputs.require",
    "The URI leaves the allowed place on a server that decodes it twice.",
    BASE + 'inputs:\n  require: [{uri: "https://data.example/ours/**"}]\n',
    lambda: _with(1, uri="https://data.example/ours/%252e%252e%2ftheirs/x"),
)
policy(
    "input-forbidden-by-uri-with-a-user",
    "policy.inputs.forbid",
    "An input came from a place that is forbidden, with a user's name before the host, a dot and a "
    "port behind it.",
    BASE + 'inputs:\n  forbid: [{uri: "https://bad.example/**"}]\n',
    lambda: _with(1, uri="https://somebody@bad.example.:0443?x"),
)
policy(
    "input-forbidden-by-uri-in-ascii",
    "policy.inputs.forbid",
    "An input came from a place that is forbidden; its host's name is written as it is asked for.",
    BASE + 'inputs:\n  forbid: [{uri: "https://bücher.example/**"}]\n',
    lambda: _with(1, uri="https://xn--bcher-kva.example/x"),
)
policy(
    "input-forbidden-by-digest",
    "policy.inputs.forbid",
    "An input with this root was used.",
    BASE + f"inputs:\n  forbid: [{{sha256: {DATA}}}]\n",
)
policy(
    "input-forbidden-by-uri",
    "policy.inputs.forbid",
    "An input came from a place that is forbidden, whose name is written in another way.",
    BASE + 'inputs:\n  forbid: [{uri: "https://bad.example/**"}]\n',
    lambda: _with(1, uri="https://BAD.example:443/%78"),
)
policy(
    "input-forbidden-and-absent",
    "verified",
    "No input is like what is forbidden.",
    BASE + f'inputs:\n  forbid: [{{uri: "https://bad.example/**"}}, {{sha256: {"77" * 32}}}]\n',
)
policy(
    "input-not-listed",
    "policy.inputs.only",
    "One of the two inputs is not on the list.",
    BASE + f"inputs:\n  only: [{{sha256: {CODE}}}]\n",
)
policy(
    "inputs-listed",
    "verified",
    "Each input is like an entry of the list.",
    BASE + f'inputs:\n  only: [{{sha256: {CODE}}}, {{uri: "file:*"}}]\n',
)
policy(
    "command-equal",
    "verified",
    "The command is the second of two.",
    BASE
    + "command:\n  - equals: [sh]\n  - equals: [python3, /inputs/code/train.py]\nnetwork: none\n",
)
policy(
    "command-longer",
    "policy.command",
    "The command equals the policy's but for a word at its end.",
    BASE + "command: {equals: [python3]}\n",
)
policy(
    "command-starts",
    "verified",
    "The command starts with the policy's words.",
    BASE + "command: {starts: [python3]}\n",
)
policy(
    "command-starts-within-a-word",
    "policy.command",
    "The command's text starts like the policy's, and its words do not.",
    BASE + "command: {starts: [python3, /inputs/code]}\n",
)
policy(
    "network",
    "policy.network",
    "The training had a network; everything else is right.",
    BASE + "network: none\n",
    started(network="host"),
)
case(
    "policy-network-by-default",
    "policy.network",
    "The training had a network, and the verifier named no policy.",
)(started(network="bridge"))
policy(
    "network-left-open",
    "verified",
    "The training had a network, and the policy does not speak of it.",
    BASE,
    started(network="host"),
)
policy(
    "variable-not-listed",
    "policy.environment",
    "A variable changes what the command does.",
    BASE + "environment: {only: [OMP_NUM_THREADS]}\n",
    asked(environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": "/inputs/data"}),
)
policy(
    "variable-of-another-value",
    "policy.environment",
    "A required variable has another value; `1.0` is not `1`.",
    BASE + "environment: {require: {OMP_NUM_THREADS: 1.0}}\n",
)
policy(
    "too-old",
    "policy.maximum-age",
    "The run ended longer ago than the policy allows.",
    BASE + "maximumAge: 24h\n",
)
policy(
    "young-enough",
    "verified",
    "The run ended within the age that the policy allows.",
    BASE + "maximumAge: 36500d\n",
)


def later() -> Certificate:
    """A certificate of a run in the future, under a root that is valid then."""
    listed = run_events()
    listed[0] = replace(listed[0], started_on=FUTURE)
    listed[-1] = replace(listed[-1], finished_on=FUTURE + timedelta(minutes=2))
    return Forger(authority=LATER, events=listed).certificate()


policy(
    "in-the-future",
    "policy.maximum-age",
    "The run says that it ended in the future: nothing is younger.",
    BASE + "maximumAge: 24h\n",
    later,
    more={"later.pem": LATER.root_pem.decode()},
    options=option("policy.yaml", "later.pem"),
)
policy(
    "agent-version",
    "policy.agent-versions",
    "The agent's version begins with the same digits, and is another one.",
    BASE + "agentVersions: [0.1, 0.1.0.*]\n",
)
policy(
    "two-policies",
    "policy.images",
    "Two policies are named: the first passes, the second does not.",
    BASE + f"images: [{IMAGE}]\n",
    more={"policy-2.yaml": BASE + f"images: [{'77' * 32}]\n"},
)
policy(
    "two-policies-tighten",
    "policy.assurance",
    "Two policies are named, and one of them does not accept a software TPM: none loosens another.",
    BASE,
    more={"policy-2.yaml": "policy: 1\nnetwork: none\n"},
)
policy(
    "extends",
    "policy.inputs.forbid",
    "The policy passes, and the one that it extends does not.",
    BASE + "extends: [company.yaml]\n",
    more={"company.yaml": BASE + f"inputs:\n  forbid: [{{sha256: {DATA}}}]\n"},
)
policy(
    "two-policies-hold",
    "verified",
    "Two policies and the one that both extend, all of which pass.",
    BASE + f"extends: [company.yaml]\nimages: [{IMAGE}]\n",
    more={
        "policy-2.yaml": BASE + "extends: [company.yaml]\nnetwork: none\n",
        "company.yaml": BASE + f"inputs:\n  require: [{{root: {DATA}}}]\n",
    },
)


def unusable(name: str, why: str, text: str, *, code: str = "policy.file", **options: Any) -> None:
    """Register a case whose policy cannot be used: nothing is checked, and so nothing verifies."""
    policy(name, code, why, text, extra={"status": 3}, **options)


unusable(
    "malformed",
    "Unknown field, wrong word, short digest: a policy with a mistake demands who knows what.",
    BASE + "netwrok: none\nimages: [sha256:77]\nmaximumAge: soon\n",
)
unusable("empty", "An empty file: it would demand nothing.", "")
unusable(
    "field-twice",
    "A field stands twice: two parsers may demand two things.",
    BASE + f"images: [{IMAGE}]\nassurance: hardware\n",
)
unusable("of-version-2", "A newer policy, whose rules are not known.", "policy: 2\n")
unusable(
    "without-its-file",
    "The policy extends one that is not there: it would demand less.",
    BASE + "extends: [company.yaml]\n",
)
unusable(
    "in-a-circle",
    "The policy extends itself.",
    BASE + "extends: [policy.yaml]\n",
)
unusable(
    "with-any-evaluation",
    "The policy demands an evaluation and leaves open which: the builder would choose the metrics.",
    BASE + "evaluations:\n- metrics: {accuracy: {atLeast: 0.9}}\n",
)


def _swapped() -> Certificate:
    """A run of two inputs, each in the other's place."""
    places = {"code": "/inputs/data", "data": "/inputs/code"}
    return good(events=moved(run_events(), places)).certificate()


# -- boot logs and reference values ----------------------------------------------------------------


def values(
    machine: boot.Boot, *, by_events: Iterable[int] = (), **changes: Any
) -> reference.ReferenceValues:
    """What the publisher of an image says of a machine that booted it."""
    pcrs, listed = machine.pcrs, set(by_events)
    fields: dict[str, Any] = {
        "image": "conformance image",
        "version": "1.0.0",
        "issued_on": STARTED,
        "pcrs": {pcr: pcrs[pcr] for pcr in (4, 9, 11) if pcr not in listed},
        "events": {
            pcr: reference.Events(frozenset(d for number, d in machine.events if number == pcr))
            for pcr in listed
        },
        "zero": frozenset({10, 12, 13}),
        "shapes": (
            reference.Shape(
                "a machine",
                {pcr: pcrs[pcr] for pcr in (0, 2, 3, 6, 7) if pcr not in listed},
                {},
                frozenset({1, 5} - listed),
            ),
        ),
    }
    return reference.ReferenceValues(**{**fields, **changes})


MACHINE = boot.Boot()
SIGNER = keys.fingerprint(PUBLISHER)
MEASURED = f"policy: 1\nassurance: measured\nreference:\n  signers: [sha256:{SIGNER}]\n"
MATCH = MEASURED.replace("measured", "hardware")
BOOTED = ("policy.yaml", "hardware.pem", "reference.json")


def booted(
    machine: boot.Boot = MACHINE,
    log: bytes | None = MACHINE.log,
    *,
    authority: Authority = HARDWARE,
    start: Mapping[int, bytes] | None = None,
) -> Certificate:
    """A certificate of a run on a machine that booted so; `start` sets PCRs besides."""
    pcrs = {**machine.pcrs, **(start or {})}
    return Forger(authority=authority, start=pcrs).certificate(boot_event_log=log)


def bootlogged(
    name: str,
    expect: str,
    why: str,
    make: Callable[[], Certificate],
    *,
    policy: str = MEASURED,
    document: Callable[[], bytes] | None = lambda: reference.sign(values(MACHINE), PUBLISHER),
    authority: Authority = HARDWARE,
    status: int | None = None,
    answer: Any = None,
) -> None:
    """Register a case with a boot log, a policy about the boot, and reference values."""

    def build_case() -> tuple[Certificate, dict[str, bytes]]:
        files = {"policy.yaml": policy.encode(), "hardware.pem": authority.root_pem}
        return make(), files if document is None else {**files, "reference.json": document()}

    extra: dict[str, Any] = {} if status is None else {"status": status}
    case(
        name,
        expect,
        why,
        options=option(*(BOOTED if document is not None else BOOTED[:2])),
        extra={**extra, **({} if answer is None else {"answer": answer})},
    )(build_case)


ANSWER = {
    "assurance": "measured",
    "boot": {"measured": True, "image": "conformance image 1.0.0 on a machine"},
}
HARDWARE_ONLY = "policy: 1\nassurance: hardware\n"
bootlogged(
    "bootlog-good",
    "verified",
    "The log replays to the quoted PCRs, and these are the published image's.",
    booted,
    answer=ANSWER,
)
bootlogged(
    "bootlog-good-by-events",
    "verified",
    "The reference values list the events of PCRs 5 and 7; their order and number are free.",
    booted,
    document=lambda: reference.sign(values(MACHINE, by_events=(5, 7)), PUBLISHER),
    answer=ANSWER,
)
bootlogged(
    "bootlog-good-other-banks",
    "verified",
    "The log has SHA-1 and SHA-384 digests besides; the SHA-256 ones count.",
    lambda: booted(log=_banks(MACHINE.events)),
    answer=ANSWER,
)
bootlogged(
    "bootlog-good-inactive-banks",
    "verified",
    "The log's header lists three banks, of which SHA-384 is not active: no event has its digest.",
    lambda: booted(log=_banks(MACHINE.events, active=(0x0004, 0x000B))),
    answer=ANSWER,
)
bootlogged(
    "bootlog-event-without-sha256",
    "bootlog.no-sha256",
    "The events have SHA-1 digests alone, though the log's header lists SHA-256.",
    lambda: booted(log=_banks(MACHINE.events, active=(0x0004,))),
)
bootlogged(
    "bootlog-good-without-references",
    "verified",
    "The log replays, and nobody says what it should hold: the boot is explained, not measured.",
    booted,
    policy=HARDWARE_ONLY,
    document=None,
    answer={"assurance": "hardware", "boot": {"measured": False, "image": None}},
)
bootlogged(
    "bootlog-good-without-a-log",
    "verified",
    "No log, and reference values that give every PCR: the quote alone decides.",
    lambda: booted(log=None),
    document=lambda: reference.sign(_by_values(), PUBLISHER),
    answer=ANSWER,
)


bootlogged(
    "bootlog-good-left-open-without-a-log",
    "verified",
    "No log, and reference values that leave PCRs 1 and 6 open: they may be anything.",
    lambda: booted(log=None),
    document=lambda: reference.sign(_open_to_the_machine(), PUBLISHER),
    answer=ANSWER,
)


def _open_to_the_machine() -> reference.ReferenceValues:
    (shape,) = _by_values().shapes
    left = {1, 6}
    kept = {pcr: value for pcr, value in shape.pcrs.items() if pcr not in left}
    return values(MACHINE, shapes=(replace(shape, pcrs=kept, unconstrained=frozenset(left)),))


def _by_values() -> reference.ReferenceValues:
    pcrs = MACHINE.pcrs
    shape = reference.Shape("a machine", {p: pcrs[p] for p in (0, 1, 2, 3, 5, 6, 7)}, {},
                            frozenset())  # fmt: skip
    return values(MACHINE, shapes=(shape,))


def _banks(
    events: Iterable[tuple[int, bytes]], active: Iterable[int] = (0x0004, 0x000B, 0x000C)
) -> bytes:
    """The log with three banks, SHA-1, SHA-256, SHA-384, and digests for those that are active."""
    active = tuple(active)
    sizes = {0x0004: 20, 0x000B: 32, 0x000C: 48}
    banks = b"".join(a.to_bytes(2, "little") + n.to_bytes(2, "little") for a, n in sizes.items())
    head = b"Spec ID Event03\x00" + bytes([0, 0, 0, 0, 0, 2, 0, 2])
    head += len(sizes).to_bytes(4, "little") + banks + b"\x00"
    parts = [bytes(4), (3).to_bytes(4, "little"), bytes(20), len(head).to_bytes(4, "little"), head]
    for pcr, digest in events:
        parts += [pcr.to_bytes(4, "little"), (0x80000003).to_bytes(4, "little")]
        parts.append(len(active).to_bytes(4, "little"))
        for algorithm in active:
            size = sizes[algorithm]
            value = digest if size == 32 else b"\x5a" * size
            parts += [algorithm.to_bytes(2, "little"), value]
        parts += [(1).to_bytes(4, "little"), b"?"]
    return b"".join(parts)


def _edited_log(change: Callable[[list[tuple[int, bytes]]], Any]) -> bytes:
    events = list(MACHINE.events)
    change(events)
    return boot.log(events)


def _flip(events: list[tuple[int, bytes]]) -> None:
    pcr, digest = events[0]
    events[0] = (pcr, digest[:-1] + bytes([digest[-1] ^ 1]))


bootlogged(
    "bootlog-digest-tampered",
    "bootlog.replay",
    "One bit of an event's digest is flipped: the log does not lead to the quoted PCR.",
    lambda: booted(log=_edited_log(_flip)),
)
bootlogged(
    "bootlog-digest-tampered-no-policy-about-it",
    "bootlog.replay",
    "The same, and the policy does not ask about the boot: evidence that contradicts itself is "
    "refused all the same.",
    lambda: booted(log=_edited_log(_flip)),
    policy=HARDWARE_ONLY,
    document=None,
)
bootlogged(
    "bootlog-event-dropped",
    "bootlog.replay",
    "An event is left out of the log.",
    lambda: booted(log=_edited_log(lambda events: events.pop(2))),
)
bootlogged(
    "bootlog-event-added",
    "bootlog.replay",
    "An event is in the log that was never extended, in a PCR that is otherwise zero.",
    lambda: booted(log=_edited_log(lambda events: events.append((2, boot.digest("option ROM"))))),
)
bootlogged(
    "bootlog-events-exchanged",
    "bootlog.replay",
    "Two events of one PCR change places.",
    lambda: booted(log=_edited_log(lambda events: events.insert(0, events.pop(3)))),
)
bootlogged(
    "bootlog-of-another-boot",
    "bootlog.replay",
    "A good log, of another machine.",
    lambda: booted(log=boot.log([(pcr, boot.digest(f"other {pcr}")) for pcr in range(8)])),
)
bootlogged(
    "bootlog-empty-events",
    "bootlog.replay",
    "A log without events, where the firmware's PCRs are not zero.",
    lambda: booted(log=boot.log([])),
)
bootlogged(
    "bootlog-locality",
    "bootlog.replay",
    "The log says that the TPM was started from locality 3, and PCR 0 began at zero.",
    lambda: booted(log=_localised()),
)


def _localised() -> bytes:
    data = boot.log(MACHINE.events)
    first = bootlog.parse(data).events[0].digest
    start = data.index(first) - 14
    text = b"StartupLocality\x00\x03"
    event = bytes(4) + (3).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\x0b\x00"
    event += bytes(32) + len(text).to_bytes(4, "little") + text
    return data[:start] + event + data[start:]


bootlogged(
    "bootlog-truncated",
    "bootlog.format",
    "The log ends within its last event.",
    lambda: booted(log=MACHINE.log[:-3]),
)
bootlogged(
    "bootlog-size-beyond-the-end",
    "bootlog.format",
    "An event's data is said to be larger than the log.",
    lambda: booted(log=MACHINE.log[:-5] + b"\xff\xff\x00\x00" + MACHINE.log[-1:]),
)
bootlogged(
    "bootlog-garbage",
    "bootlog.format",
    "Bytes that are no log at all.",
    lambda: booted(log=b"not a log" * 20),
)
bootlogged(
    "bootlog-sha1-only",
    "bootlog.no-sha256",
    "A log in the old format, with SHA-1 digests alone.",
    lambda: booted(log=bytes(4) + b"\x08\0\0\0" + b"\x5a" * 20 + b"\x01\0\0\0x"),
)
bootlogged(
    "bootlog-missing",
    "policy.reference",
    "The reference values judge a PCR by its events, and the certificate carries no log.",
    lambda: booted(log=None),
    policy=MATCH,
    document=lambda: reference.sign(values(MACHINE, by_events=(7,)), PUBLISHER),
)
bootlogged(
    "bootlog-missing-least-measured",
    "policy.assurance",
    "The same, and the policy asks for a measured boot.",
    lambda: booted(log=None),
    document=lambda: reference.sign(values(MACHINE, by_events=(7,)), PUBLISHER),
)


def _told(data: bytes, kind: int = 0x80000003) -> bytes:
    return boot.log(MACHINE.events, kind=kind, data=data)


_SECURE_BOOT = "SecureBoot".encode("utf-16-le")
_CLAIM = (
    bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
    + (10).to_bytes(8, "little")
    + (1).to_bytes(8, "little")
    + _SECURE_BOOT
    + b"\x01"
)
bootlogged(
    "bootlog-data-altered",
    "verified",
    "What the log tells of its events was altered while their digests hold: each says that the "
    "firmware measured `SecureBoot = 1`. Nothing authenticates that; the answer says so for every "
    "event, and the digests alone decide.",
    lambda: booted(log=_told(_CLAIM, 0x80000001)),
    answer={
        **ANSWER,
        "boot": {
            "measured": True,
            "log": {
                "events": len(MACHINE.events),
                "dataNotAuthenticated": len(MACHINE.events),
            },
        },
    },
)
bootlogged(
    "bootlog-data-tells-of-another-image",
    "policy.reference",
    "The log's data holds the reference image's digests and names; its own digests are another's.",
    lambda: _impostor(),
    policy=MATCH,
)


def _impostor() -> Certificate:
    events = [
        (pcr, boot.digest("evil kernel") if digest == boot.digest("kernel") else digest)
        for pcr, digest in MACHINE.events
    ]
    machine = boot.Boot(events)
    return booted(machine, boot.log(events, data=boot.digest("kernel")))


def _other_boot(pcrs: Mapping[int, bytes]) -> Callable[[], Certificate]:
    return lambda: booted(start=pcrs)


for _name, _pcrs, _why in (
    ("other-command-line", {9: b"\x77" * 32}, "PCR 9, command line and initrd, is another."),
    ("command-line-from-outside", {12: b"\x77" * 32},
     "PCR 12 is not zero: a command line was handed in from outside."),
    ("other-sections", {11: b"\x77" * 32}, "PCR 11, the kernel image's sections, is another."),
    ("run-before", {14: b"\x77" * 32},
     "PCR 14 was not zero when the run began: something ran before it in this boot."),
    ("ima", {10: b"\x77" * 32}, "PCR 10, which the image leaves at zero, is not."),
):  # fmt: skip
    bootlogged(f"reference-{_name}", "policy.reference", _why, _other_boot(_pcrs), policy=MATCH)
bootlogged(
    "reference-simulated-root",
    "policy.assurance",
    "The boot matches, and the TPM is software: whoever runs it makes up its PCRs.",
    lambda: booted(authority=AUTHORITY),
)
bootlogged(
    "reference-event-not-allowed",
    "policy.reference",
    "An event of PCR 7 is not one of the image's.",
    booted,
    policy=MATCH,
    document=lambda: reference.sign(_without_an_event(), PUBLISHER),
)
bootlogged(
    "reference-event-missing",
    "policy.reference",
    "An event that PCR 7 must hold is not there.",
    booted,
    policy=MATCH,
    document=lambda: reference.sign(_with_a_required_event(), PUBLISHER),
)


def _without_an_event() -> reference.ReferenceValues:
    made = values(MACHINE, by_events=(7,))
    return replace(made, events={7: reference.Events(frozenset({boot.SEPARATOR}))})


def _with_a_required_event() -> reference.ReferenceValues:
    made = values(MACHINE, by_events=(7,))
    needed = frozenset({boot.digest("the key database")})
    return replace(made, events={7: reference.Events(made.events[7].allowed | needed, needed)})


bootlogged(
    "reference-not-given",
    "policy.reference",
    "The policy wants a match, and no reference values were given.",
    booted,
    policy=MATCH,
    document=None,
)
bootlogged(
    "reference-of-another-document",
    "policy.reference",
    "The publisher's document matches, and is not the one that the policy names.",
    booted,
    policy=f"{MATCH}  documents: [{{sha256: {'77' * 32}}}]\n",
)
bootlogged(
    "reference-by-another-signer",
    "reference.signer",
    "The values fit, and were signed by a key that the policy does not name.",
    booted,
    document=lambda: reference.sign(values(MACHINE), ec.generate_private_key(ec.SECP256R1())),
    status=3,
)
bootlogged(
    "reference-signature-flipped",
    "reference.signature",
    "The document was changed after it was signed.",
    booted,
    document=lambda: _resigned(),
    status=3,
)
bootlogged(
    "reference-leaves-the-image-open",
    "reference.format",
    "A document that leaves PCR 9 open: any command line would pass for the image's.",
    booted,
    document=lambda: _open_document(),
    status=3,
)


def _resigned() -> bytes:
    value = canonical.loads(reference.sign(values(MACHINE), PUBLISHER), max_bytes=1 << 20)
    payload = values(MACHINE, version="2.0.0").encode()
    value["dsseEnvelope"]["payload"] = _base64(payload)
    return canonical.dumps(value)


def _open_document() -> bytes:
    payload = canonical.loads(values(MACHINE).encode(), max_bytes=1 << 20)
    del payload["pcrs"]["9"]
    payload["shapes"][0]["unconstrained"] = [1, 5, 9]
    return canonical.dumps(
        {
            "mediaType": reference.MEDIA_TYPE,
            "dsseEnvelope": keys.envelope(
                canonical.dumps(payload), reference.PAYLOAD_TYPE, PUBLISHER
            ),
            "publicKey": _base64(keys.spki_of(PUBLISHER)),
        }
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# -- timestamps ------------------------------------------------------------------------------------

STAMPED = (*SIMULATED, *option("authority.pem"))


def stamped(
    name: str,
    expect: str,
    why: str,
    *,
    make: Callable[[], Certificate] = lambda: good().certificate(),
    authority: Callable[[Path], Tsa] = lambda folder: Tsa(folder, name="conformance"),
    change: Callable[[bytes], bytes] = lambda token: token,
    over: Callable[[Certificate], bytes] = timestamp.message,
    imprint: str = "-sha256",
    files: Mapping[str, bytes] | None = None,
    named: Callable[[Path], Tsa] | None = None,
    options: tuple[str, ...] = STAMPED,
    answer: Any = None,
) -> None:
    """Register a case with a timestamp by an authority made for it.

    `named` is the authority whose root the verifier gets, where that is another one.
    """

    def build_case() -> tuple[Certificate, dict[str, bytes]]:
        certificate = make()
        with tempfile.TemporaryDirectory() as folder:
            tsa = authority(Path(folder) / "tsa")
            response = tsa.stamp(over(certificate), imprint)
            token = change(timestamp._sorted(timestamp._token(response)))
            root = tsa.root_file.read_bytes()
            if named is not None:
                root = named(Path(folder) / "named").root_file.read_bytes()
        return replace(certificate, timestamp=token), {"authority.pem": root, **(files or {})}

    extra = {} if answer is None else {"answer": answer}
    case(f"timestamp-{name}", expect, why, options=options, extra=extra)(build_case)


def rsa_authority(folder: Path, **options: Any) -> Tsa:
    """An authority that signs with RSA."""
    size = options.pop("bits", 2048)
    key = rsa.generate_private_key(65537, size)
    return Tsa(folder, name="conformance", key=key, **options)


GOOD_STAMP = {"time": {"timestamp": "good"}}
REQUIRED = BASE + "timestamp: {authorities: [authority.pem]}\n"
stamped(
    "good",
    "verified",
    "A timestamp over the envelope by an authority that the verifier names.",
    answer=GOOD_STAMP,
)
stamped(
    "good-rsa-sha512",
    "verified",
    "The same with RSA, SHA-512 and an intermediate CA.",
    authority=lambda folder: rsa_authority(folder, digest="sha512", intermediate=True),
    imprint="-sha512",
    answer=GOOD_STAMP,
)
stamped(
    "good-required",
    "verified",
    "The policy requires a timestamp by this authority.",
    files={"policy.yaml": REQUIRED.encode()},
    options=option("policy.yaml"),
    answer=GOOD_STAMP,
)
stamped(
    "unchecked",
    "verified",
    "The verifier names no authority: the timestamp bounds nothing, and the answer says so.",
    options=SIMULATED,
    answer={"time": {"timestamp": "unchecked", "existedBefore": None}},
)
stamped(
    "unchecked-and-required",
    "policy.timestamp",
    "The policy requires a timestamp and names no authority: none counts.",
    files={"policy.yaml": f"{BASE}timestamp: {{require: true}}\n".encode()},
    options=option("policy.yaml"),
)
stamped(
    "over-something-else",
    "timestamp.subject",
    "A good token, over other bytes.",
    over=lambda certificate: b"something else",
)
stamped(
    "over-the-payload",
    "timestamp.subject",
    "The token is over the statement without its signature.",
    over=lambda certificate: certificate.payload,
)
stamped(
    "of-another-certificate",
    "timestamp.subject",
    "The token is over the envelope of another certificate.",
    over=lambda certificate: timestamp.message(good().certificate()),
)
stamped(
    "authority-not-named",
    "timestamp.authority",
    "The authority is another than the one that the verifier names.",
    named=lambda folder: Tsa(folder, name="another"),
)
stamped(
    "authority-of-the-same-name",
    "timestamp.authority",
    "An authority with the same names as the verifier's, and other keys.",
    named=lambda folder: Tsa(folder, name="conformance"),
)
stamped(
    "authority-expired",
    "timestamp.authority",
    "The authority's certificate had expired when it signed.",
    authority=lambda folder: Tsa(folder, name="conformance", ends=-timedelta(days=1)),
)
stamped(
    "by-the-policys-other-authority",
    "policy.timestamp",
    "The verifier believes the authority, and the policy wants another one.",
    files={
        "policy.yaml": f"{BASE}timestamp: {{authorities: [wanted.pem]}}\n".encode(),
        "wanted.pem": Authority(name="wanted").root_pem,
    },
    options=option("policy.yaml", "authority.pem"),
)
stamped(
    "signature-flipped",
    "timestamp.authority",
    "One bit of the token's signature is flipped.",
    change=lambda token: token[:-1] + bytes([token[-1] ^ 1]),
)
stamped("trailing-bytes", "timestamp.format", "A byte follows the token.",
        change=lambda token: token + b"\0")  # fmt: skip
stamped("cut", "timestamp.format", "The token was cut.", change=lambda token: token[:-1])
stamped(
    "not-a-token",
    "timestamp.format",
    "Bytes that are no token, beside a verifier that names no authority: their form counts still.",
    change=lambda token: b"\x30\x03\x02\x01\x00",
    options=SIMULATED,
)
stamped(
    "earlier-than-the-run",
    "timestamp.contradiction",
    "The run says that it ended after its statement was stamped.",
    make=later,
    files={"later.pem": LATER.root_pem},
    options=(*STAMPED, *option("later.pem")),
)


def expired_since() -> Certificate:
    """A certificate whose chain ended two days after the run."""
    made = good()
    made.chain = AUTHORITY.chain(made.key.public_key(), not_after=STARTED + timedelta(days=2))
    return made.certificate()


stamped(
    "after-the-chain-ended",
    "policy.timestamp",
    "Stamped after the key's chain had expired: somebody may have set the machine's clock back. "
    "Where a timestamp is required, one that shows this little does not count.",
    make=expired_since,
    files={"policy.yaml": REQUIRED.encode()},
    options=option("policy.yaml"),
)
stamped(
    "after-the-chain-ended-not-required",
    "verified",
    "The same, where no timestamp is required: it is good, and bounds the time by its own.",
    make=expired_since,
    answer=GOOD_STAMP,
)
case(
    "timestamp-required-and-absent",
    "policy.timestamp",
    "The policy requires a timestamp, and there is none.",
    options=option("policy.yaml"),
)(
    lambda: (
        good().certificate(),
        {"policy.yaml": REQUIRED.encode(), "authority.pem": Authority(name="some").root_pem},
    )
)

# -- downgrades ------------------------------------------------------------------------------------

relogged(
    "job-version-0",
    "log.event",
    "The first event is of an older version.",
    lambda items: _again(items, version=0),
    group="downgrade",
)
relogged(
    "job-version-2",
    "log.event",
    "The first event is of a newer version.",
    lambda items: _again(items, version=2),
    group="downgrade",
)


def _again(items: list[Any], **fields: Any) -> None:
    """Change the first event, and its digest with it."""
    items[0]["content"].update(fields)
    items[0]["digests"][0]["digest"] = canonical.sha256(items[0]["content"])


stated(
    "statement-version-0.1",
    "The statement is of in-toto's version 0.1.",
    lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    group="downgrade",
)
stated(
    "predicate-version-0.2",
    "The statement's predicate is SLSA's of version 0.2.",
    lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"),
    group="downgrade",
)
stated(
    "build-type-v0",
    "The statement is of an older build type, whose parameters meant something else.",
    lambda s: at(s, "predicate", "buildDefinition").update(
        buildType="urn:aicert:build:training:v0"
    ),
    group="downgrade",
)
simple(
    "downgrade-media-type-without-version",
    "certificate.format",
    "The media type names no version.",
    lambda value: value.update(mediaType="application/vnd.aicert.certificate+json"),
)
simple(
    "downgrade-no-baseline",
    "certificate.format",
    "The baseline quote is null, as if the form had never had one.",
    lambda value: value["evidence"].update(baselineQuote=None),
)
simple(
    "downgrade-no-log",
    "certificate.format",
    "The log is null.",
    lambda value: value["evidence"].update(measurementLog=None),
)
simple(
    "downgrade-payload-type-v0.1",
    "certificate.format",
    "An older payload type.",
    lambda value: value["dsseEnvelope"].update(payloadType="application/vnd.in-toto.v0.1+json"),
)
relogged(
    "log-unknown-hash",
    "log.format",
    "A record names a hash that nobody knows.",
    lambda items: items[2]["digests"][0].update(hashAlg="sha257"),
    group="downgrade",
)
relogged(
    "log-sha1-beside",
    "log.format",
    "A record has a SHA-1 digest beside the SHA-256 one.",
    lambda items: items[2]["digests"].append({"hashAlg": "sha1", "digest": "00" * 20}),
    group="downgrade",
)


def quoted(
    name: str, expect: str, why: str, change: Callable[[Forger, Certificate], Certificate]
) -> None:
    """Register a case whose quotes are remade with the same key."""

    def build_case() -> Certificate:
        made = good()
        return change(made, made.certificate())

    case(f"downgrade-{name}", expect, why)(build_case)


def _requote(made: Forger, certificate: Certificate, **changes: Any) -> Certificate:
    signed = hashlib.sha256(certificate.signed_bytes).digest()
    values = dict(certificate.quote.pcrs)
    fields = {"clock": 2000, **changes}
    extra = fields.pop("extra", signed)
    return replace(certificate, quote=made.quote(made.attest(extra, values, **fields), values))


def _sha1(data: bytes) -> bytes:
    return hashlib.sha1(data).digest()


quoted(
    "quote-bound-by-sha1",
    "quote.binding",
    "The quote's extra data is the SHA-1 of the signed statement.",
    lambda made, c: _requote(made, c, extra=_sha1(c.signed_bytes)),
)
quoted(
    "quote-digest-sha1",
    "quote.pcr-digest",
    "The quote's digest over the PCRs is a SHA-1.",
    lambda made, c: _requote(
        made, c, pcr_digest=_sha1(b"".join(c.quote.pcrs[pcr] for pcr in sorted(c.quote.pcrs)))
    ),
)
for _name, _algorithm in (("sha1", 0x0004), ("sm3", 0x0012), ("sha3", 0x0027), ("unknown", 0x7FFF)):
    quoted(
        f"bank-{_name}",
        "quote.selection",
        f"The quote covers the bank {_name} ({_algorithm:#06x}), and the values beside it are said "
        "to be of SHA-256.",
        lambda made, c, algorithm=_algorithm: _requote(  # type: ignore[misc]
            made, c, selection=selection(range(16), algorithm)
        ),
    )
for _name, _head in (("ecdaa", b"\x00\x1a"), ("sm2", b"\x00\x1b"), ("null", b"\x00\x10")):
    quoted(
        f"signature-{_name}",
        "tpm.algorithm",
        f"The quote's signature is said to be of the scheme {_name}.",
        lambda made, c, head=_head: replace(  # type: ignore[misc]
            c, quote=replace(c.quote, signature=head + c.quote.signature[2:])
        ),
    )


def _sha1_signed(made: Forger, data: bytes) -> bytes:
    if isinstance(made.key, rsa.RSAPrivateKey):
        return made.key.sign(data, padding.PKCS1v15(), hashes.SHA1())
    return made.key.sign(data, ec.ECDSA(hashes.SHA1()))


def weakly_signed(name: str, why: str, kind: str, sign: Callable[[Forger, bytes], bytes]) -> None:
    """Register a case whose envelope the attestation key signed in a weaker way."""

    def build_case() -> Certificate:
        made = good(kind=kind)
        certificate = made.certificate()
        return replace(certificate, signature=sign(made, certificate.signed_bytes))

    case(f"downgrade-dsse-{name}", "dsse.signature", why)(build_case)


weakly_signed("sha1-ecdsa", "The envelope is signed with ECDSA over SHA-1.", "ecc", _sha1_signed)
weakly_signed("sha1-rsa", "The envelope is signed with RSA over SHA-1.", "rsa", _sha1_signed)
weakly_signed(
    "without-a-hash-name",
    "The RSA signature is over the digest without the name of its hash.",
    "rsa",
    lambda made, data: _unnamed(made, data),
)
weakly_signed(
    "of-the-older-encoding",
    "The envelope is signed over the payload without its type (DSSE's PAE of version 0).",
    "ecc",
    lambda made, data: forger.sign_dsse(made.key, b"DSSEv0" + data[6:]),
)


def _unnamed(made: Forger, data: bytes) -> bytes:
    """PKCS #1 v1.5 padding around a bare SHA-256, without the DigestInfo."""
    assert isinstance(made.key, rsa.RSAPrivateKey)
    digest = hashlib.sha256(data).digest()
    block = b"\x00\x01" + b"\xff" * (256 - 3 - len(digest)) + b"\x00" + digest
    numbers = made.key.private_numbers()
    n = numbers.public_numbers.n
    return pow(int.from_bytes(block, "big"), numbers.d, n).to_bytes(256, "big")


_RSA_HASHES: dict[str, tuple[int, hashes.HashAlgorithm]] = {
    "sha1": (5, hashes.SHA1()),
    "md5": (4, hashes.MD5()),
}


def _weak_leaf(made: Forger, name: str) -> tuple[bytes, ...]:
    """A chain whose leaf was signed with RSA over a weak hash: the number in the OID says which."""
    key = rsa.generate_private_key(65537, 2048)
    chain = issue(made, leaf={"by": key}, intermediate={"key": key.public_key()})
    number, algorithm = _RSA_HASHES[name]
    leaf = x509.load_der_x509_certificate(chain[0])
    strong, weak = (bytes.fromhex("06092a864886f70d0101") + bytes([n]) for n in (11, number))
    body = leaf.tbs_certificate_bytes.replace(strong, weak, 1)
    signature = key.sign(body, padding.PKCS1v15(), algorithm)
    old = leaf.tbs_certificate_bytes, leaf.signature
    der = chain[0].replace(old[0], body).replace(old[1], signature).replace(strong, weak)
    return (der, *chain[1:])


for _name in _RSA_HASHES:
    build.chained(
        f"downgrade-chain-{_name}",
        "chain.weak",
        f"The leaf was signed with RSA over {_name}.",
        lambda made, name=_name: _weak_leaf(made, name),  # type: ignore[misc]
    )
build.chained(
    "downgrade-chain-ed25519",
    "chain.weak",
    "An intermediate with a key of a kind that no TPM's maker uses and this format does not have.",
    lambda made: _other_kind(made),
)


def _other_kind(made: Forger) -> tuple[bytes, ...]:
    key = ed25519.Ed25519PrivateKey.generate()
    return issue(made, leaf={"by": key, "hash": None}, intermediate={"key": key.public_key()})


stamped(
    "sha1-imprint",
    "timestamp.format",
    "The timestamp is over the envelope's SHA-1.",
    imprint="-sha1",
)
stamped(
    "sha1-signature",
    "timestamp.format",
    "The authority signed with SHA-1.",
    authority=lambda folder: rsa_authority(folder, digest="sha1"),
)
stamped(
    "rsa-1024",
    "timestamp.format",
    "The authority's key is RSA with 1024 bits.",
    authority=lambda folder: rsa_authority(folder, bits=1024),
)
bootlogged(
    "downgrade-reference-curve",
    "key.invalid",
    "Reference values signed on a curve that is not accepted.",
    booted,
    document=lambda: _other_curve(),
    status=3,
)


def _other_curve() -> bytes:
    key = ec.generate_private_key(ec.SECP256K1())
    spki = key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    payload = values(MACHINE).encode()
    signature = key.sign(dsse.pae(payload, reference.PAYLOAD_TYPE), ec.ECDSA(hashes.SHA256()))
    return canonical.dumps(
        {
            "mediaType": reference.MEDIA_TYPE,
            "dsseEnvelope": {
                "payloadType": reference.PAYLOAD_TYPE,
                "payload": _base64(payload),
                "signatures": [
                    {"keyid": hashlib.sha256(spki).hexdigest(), "sig": _base64(signature)}
                ],
            },
            "publicKey": _base64(spki),
        }
    )
