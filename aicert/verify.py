"""The verifier: twelve checks, in their order, in one file.

Read `verify` from top to bottom: each numbered step is one of the checks of the design, raises an
error of its own where it fails, and uses nothing that an earlier step has not authenticated. The
module is a library: no global state, no network, no output, safe to call from many threads.

What an attacker controls: every byte of the certificate and of the model's folder. What is
trusted: the roots and the policy that the caller passes in.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from aicert import (
    canonical,
    evaluation,
    links,
    log,
    manifest,
    reference,
    sev,
    statement,
    timestamp,
    tpm2,
    x509,
)
from aicert.assurance import Assurance as Assurance
from aicert.certificate import Certificate, Quote
from aicert.errors import Error
from aicert.events import format_time
from aicert.policy import Facts, Policy, RuleResult, enforce
from aicert.trust import TrustStore
from aicert.words import count

REQUIRED_PCRS = frozenset(range(16))
"""The PCRs that both quotes must cover: all that cannot be reset while the machine runs."""

_SHOWN = 5


class VerifyError(Error):
    """The certificate does not prove what it says."""

    code = "verify.failed"
    remedy = "do not use this certificate: it does not prove what it says"


class QuoteError(VerifyError):
    """A quote does not cover what it must."""

    code = "quote.invalid"


class PcrMissingError(QuoteError):
    """A quote's selection leaves out a required PCR, or selects another bank."""

    code = "quote.pcr-missing"
    remedy = "do not use this certificate: a register that is not covered could hold anything"


class PcrExtraError(QuoteError):
    """The evidence carries a PCR value that the quote does not cover."""

    code = "quote.pcr-unsigned"
    remedy = "do not use this certificate: a value that no signature covers stands among its PCRs"


class BindingError(QuoteError):
    """The quote is not bound to this statement, or the baseline not to this run."""

    code = "quote.binding"


class SignatureError(VerifyError):
    """The envelope's signature is not the attestation key's."""

    code = "dsse.signature"


class BootError(VerifyError):
    """The two quotes are not of one boot of one TPM."""

    code = "boot.changed"
    remedy = "do not use this certificate: its two quotes are not of one boot"


class ReplayError(VerifyError):
    """The log does not lead from the baseline to the quoted PCRs."""

    code = "log.replay"


class StatementError(VerifyError):
    """The statement is not the one that the log gives."""

    code = "statement.mismatch"


class FilesError(VerifyError):
    """The files are not those that the certificate names."""

    code = "files.invalid"
    remedy = "do not load these files; download the model again"


class MissingFileError(FilesError):
    """A certified file is not there."""

    code = "files.missing"


class ExtraFileError(FilesError):
    """A file is there that the certificate does not name."""

    code = "files.extra"


class AlteredFileError(FilesError):
    """A file's content is not what was certified."""

    code = "files.altered"


class EvaluationError(VerifyError):
    """The certificate of an evaluation does not verify, or is not of this model."""

    code = "evaluation.refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was proved about a certificate. It exists only where every check passed.

    `certificate_digest` is the SHA-256 of the file; `boot` what the boot measurements show,
    `confidential` what the CPU says of the machine, where it says something; `times` what bounds
    the time; `rules` are the outcomes of the policy's rules; `model` is the manifest of
    the folder that was checked, or None where only the certificate was; `facts` are what the rules
    looked at; `evaluations` the verdicts about evaluations of the model that were given.
    """

    certificate: Certificate
    certificate_digest: str
    run: log.Run
    ak: tpm2.Public
    chain: x509.ChainInfo
    pcrs: Mapping[int, bytes]
    assurance: Assurance
    boot: reference.BootResult
    confidential: sev.Confidential | None
    times: timestamp.TimeBounds
    policy: Policy
    rules: tuple[RuleResult, ...]
    model: manifest.Manifest | None
    facts: Facts = field(repr=False)
    evaluations: tuple["Verdict", ...]
    proved: tuple[str, ...] = field(repr=False)
    not_proved: tuple[str, ...] = field(repr=False)


def verify(
    data: bytes,
    *,
    trust: TrustStore,
    model: Path | None = None,
    ignore: Collection[str] = (),
    policy: Policy | None = None,
    least: Assurance | None = None,
    references: Iterable[bytes] = (),
    timestamp_roots: Iterable[timestamp.Authority] = (),
    evaluations: Iterable[bytes] = (),
    now: datetime | None = None,
) -> Verdict:
    """Verify a certificate and, where given, the folder with the files that it names.

    Args:
        data: the certificate file, at most `certificate.MAX_BYTES` bytes.
        trust: the roots that may vouch for a TPM; the policy may bring more.
        model: the folder with the weights; every certified file must be there, and no other.
        ignore: paths in that folder that may be there besides (the certificate itself, a README).
        policy: what is demanded beyond truth; by default `Policy.default()`.
        least: refuse what is worth less, besides the policy; where neither is given a software TPM
            is refused.
        references: signed reference values of machine images, besides the policy's own; a rule of
            the policy must name their signers.
        timestamp_roots: roots of timestamp authorities to believe, besides the policy's own.
        evaluations: certificates of evaluations of this model. Each is verified in the same way, by
            what the policy says of machines, and must be of this very certificate.
        now: the time, with its zone, for rules about age; by default this machine's.

    Returns:
        The verdict; getting one means that every check passed.

    Raises:
        Error: the first check that failed, with its stable code, what was found, what was
            expected, and advice.
        ValueError: the caller named a time without a zone.
    """
    if now is not None and now.utcoffset() is None:
        raise ValueError("`now` needs a time zone")
    if policy is None:
        policy = Policy.default(Assurance.HARDWARE if least is None else least)
    elif least is not None:
        policy = Policy.all_of([policy, Policy.default(least)])
    trust = policy.trust_store(trust)
    references = tuple(references)
    known_references = policy.references(references)

    # 1. Parse strictly. Whatever is not exactly a certificate in canonical form goes no further;
    #    each log record's digest is recomputed from its event.
    certificate = Certificate.parse(data)
    records = certificate.records

    # The time of the run, as the log states it. Until step 6 has replayed the log these are
    # claims; a false claim fails there.
    run = log.parse_run(records)
    times = (run.job.started_on, run.outputs.finished_on)

    # 2. The attestation key's certificate chains to a pinned root, at the time of the run.
    ak = tpm2.parse_public(certificate.attestation_key.public)
    chain = _check_chain(certificate, ak, trust, times)

    # 3. The key is one that signs only what its own TPM made: it cannot sign a forged quote.
    ak.require_ak()

    # 4. Both quotes: made by this TPM and signed by this key, over every required PCR; and the
    #    final one is bound to the signed statement, the baseline to the run's nonce.
    baseline = _check_quote(certificate.baseline_quote, ak, "the baseline quote")
    final = _check_quote(certificate.quote, ak, "the quote")
    _check_binding(
        "the quote is not bound to the statement",
        final.extra_data,
        hashlib.sha256(certificate.signed_bytes).digest(),
    )
    _check_binding(
        "the baseline quote is not bound to the run's nonce",
        baseline.extra_data,
        bytes.fromhex(run.job.nonce),
    )
    _check_binding(
        "the log begins with another baseline quote",
        hashlib.sha256(certificate.baseline_quote.message).digest(),
        bytes.fromhex(run.job.baseline),
    )

    # 5. The same key signed the statement (DSSE).
    _check_signature(certificate, ak)

    # 6. One boot of one TPM, and the log accounts for every change of every PCR in it.
    _check_boot(baseline, final)
    _check_replay(records, certificate.baseline_quote, certificate.quote)

    # 7. The log's grammar was checked when it was parsed into a run (above): every event known,
    #    in order, complete, and in agreement with the spec that opened it.

    # 8. The statement says what the log says, byte for byte, and nothing else.
    if statement.encode(run) != certificate.payload:
        got, expected = canonical.difference(certificate.payload, statement.encode(run))
        raise StatementError(
            "the statement is not the one that the measurement log gives",
            got=got,
            expected=expected,
            advice="do not use this certificate: what it claims was not measured",
        )

    # 9. How much that is worth. The boot log replays to the baseline, and the boot is that of a
    #    published image, or not; a CPU vouches for the machine that holds the TPM, where it says
    #    so; and what bounds the time.
    boot = reference.check_boot(
        certificate.boot_event_log, certificate.baseline_quote.pcrs, known_references
    )
    authorities = policy.timestamp_roots(timestamp_roots)
    bounds = timestamp.bounds(certificate, run, chain, authorities)
    confidential = _check_cpu(certificate, ak, times)
    assurance = _assess(chain, boot, confidential)
    # Nothing on a measured machine clears its TPM.
    unbroken = assurance >= Assurance.MEASURED or not ak.outlives_clear(final.qualified_signer)

    # Evaluations that are given are certificates: verified by themselves, and then as linked to
    # this one.
    how = {"trust": trust, "references": references, "timestamp_roots": authorities, "now": now}
    how["policy"] = policy.of_machines("of an evaluation")
    evaluated = tuple(_check_evaluation(item, certificate, run, how) for item in evaluations)

    # 10. Policy: every rule is tried; the first that fails is raised, and names the others.
    facts = Facts(
        run=run,
        pin=chain.pin,
        assurance=assurance,
        boot=boot,
        times=bounds,
        now=now or datetime.now(UTC),
        evaluations=tuple(one.facts for one in evaluated),
    )
    results = policy.check(facts)
    enforce(results)

    # 11. The files on disk are the certified ones: each is there and equal, and there is no other.
    checked = None if model is None else check_files(run.outputs.manifest, model, ignore)

    # 12. What this proves, and what it does not.
    return Verdict(
        certificate=certificate,
        certificate_digest=hashlib.sha256(data).hexdigest(),
        run=run,
        ak=ak,
        chain=chain,
        pcrs=dict(certificate.quote.pcrs),
        assurance=assurance,
        boot=boot,
        confidential=confidential,
        times=bounds,
        policy=policy,
        rules=results,
        model=checked,
        facts=facts,
        evaluations=evaluated,
        proved=_proved(run, chain, unbroken, boot, confidential, bounds, checked, evaluated),
        not_proved=_not_proved(run, assurance, unbroken, boot, confidential, bounds, checked),
    )


def _check_evaluation(
    data: bytes, certificate: Certificate, run: log.Run, how: dict[str, Any]
) -> Verdict:
    """Verify an evaluation's certificate, and that it is of this certificate's model."""
    try:
        verdict = verify(data, **how)
        links.check_evaluation(verdict.run, certificate, run)
    except Error as error:
        raise EvaluationError(
            f"the evaluation sha256:{hashlib.sha256(data).hexdigest()[:16]}… is refused: "
            f"{error.message} [{error.code}]",
            got=error.got,
            expected=error.expected,
            advice=error.advice,
        ) from error
    return verdict


def _check_chain(
    certificate: Certificate,
    ak: tpm2.Public,
    trust: TrustStore,
    times: tuple[datetime, datetime],
) -> x509.ChainInfo:
    """Check the chain at both ends of the run, and that its leaf certifies this key."""
    return x509.verify_chain(certificate.attestation_key.chain, trust, at=times, key=ak.key)


def _check_quote(quote: Quote, ak: tpm2.Public, name: str) -> tpm2.Attest:
    """Check one quote: signature, selection, and the digest over exactly the values given."""
    attest = tpm2.check_quote(quote.message, quote.signature, ak)
    selected = attest.require_sha256_selection()
    if missing := REQUIRED_PCRS - selected:
        raise PcrMissingError(
            f"{name} does not cover every required PCR",
            got=sorted(selected),
            expected=f"also {sorted(missing)}",
        )
    if selected != quote.pcrs.keys():
        raise PcrExtraError(
            f"the PCR values beside {name} are not those that it covers",
            got=sorted(quote.pcrs),
            expected=sorted(selected),
        )
    attest.check_pcrs(quote.pcrs)
    return attest


def _check_binding(message: str, got: bytes, expected: bytes) -> None:
    if got != expected:
        raise BindingError(
            message,
            got=got,
            expected=expected,
            advice="do not use this certificate: its parts come from different runs",
        )


def _check_signature(certificate: Certificate, ak: tpm2.Public) -> None:
    """Check the DSSE signature: ECDSA in DER, or RSASSA-PKCS1-v1_5, with SHA-256."""
    if certificate.keyid != ak.name.hex():
        raise SignatureError(
            "the envelope names another key", got=certificate.keyid, expected=ak.name
        )
    signature, signed = certificate.signature, certificate.signed_bytes
    key = ak.key
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            # OpenSSL reads some DER that is not DER; two encodings of one signature are one too
            # many.
            if encode_dss_signature(*decode_dss_signature(signature)) != signature:
                raise ValueError("not DER")
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(
            "the statement was not signed by the attestation key",
            got=signature,
            expected=f"a signature by the key {ak.name.hex()}",
            advice="do not use this certificate: the statement is not what was signed",
        ) from error


def _check_boot(baseline: tpm2.Attest, final: tpm2.Attest) -> None:
    """Check that the TPM was neither reset nor restarted between the two quotes.

    Both are signed by one key, which lives in one TPM. A TPM2_Clear, which zeroes resetCount, ends
    a key below an EK, as the agent makes. The key of a cloud's TPM comes back after one, so who may
    clear it could make two boots look like one: `_not_proved` says so.
    """
    for field_name in ("qualified_signer", "firmware_version"):
        first, last = getattr(baseline, field_name), getattr(final, field_name)
        if first != last:
            raise BootError(f"the quotes differ in {field_name}", got=last, expected=first)
    before, after = baseline.clock, final.clock
    if (before.reset_count, before.restart_count) != (after.reset_count, after.restart_count):
        raise BootError(
            "the TPM was reset or restarted during the run",
            got=f"resetCount {after.reset_count}, restartCount {after.restart_count}",
            expected=f"resetCount {before.reset_count}, restartCount {before.restart_count}",
            advice="do not use this certificate: what ran before the reset is not accounted for",
        )
    if after.clock < before.clock:
        raise BootError(
            "the quotes are in the wrong order", got=after.clock, expected=f">= {before.clock}"
        )


def _check_replay(records: tuple[log.Record, ...], baseline: Quote, final: Quote) -> None:
    """Check that the log leads from the baseline to the quote, in every PCR that they cover."""
    if baseline.pcrs.keys() != final.pcrs.keys():
        raise ReplayError(
            "the two quotes cover different PCRs",
            got=sorted(final.pcrs),
            expected=sorted(baseline.pcrs),
        )
    expected = log.replay(records, baseline.pcrs)
    for pcr, value in sorted(final.pcrs.items()):
        if value != expected[pcr]:
            raise ReplayError(
                f"the log does not account for PCR {pcr}",
                got=value,
                expected=expected[pcr],
                advice="do not use this certificate: events were left out, changed or added",
            )


def check_files(
    certified: manifest.Manifest, folder: Path, ignore: Collection[str] = ()
) -> manifest.Manifest:
    """Check that a folder holds the certified files and no other; return what was hashed.

    Names and sizes are compared first, so that a wrong folder is refused before it is hashed.

    Raises:
        MissingFileError, ExtraFileError, AlteredFileError: the folder differs.
        ManifestError: the folder holds links or names that cannot be accepted.
    """
    if not folder.is_dir():
        raise MissingFileError(
            "the model's folder is not there", got=folder, advice="pass the folder, not a file"
        )
    want = {file.path: file for file in certified.files}
    have: dict[str, int] = {}
    extra, some_extra = 0, []
    for path, size in manifest.walk(folder, ignore):
        if path in want:
            have[path] = size
        elif (extra := extra + 1) <= _SHOWN:
            some_extra.append(path)
    if missing := sorted(want.keys() - have.keys()):
        raise MissingFileError(
            f"{count(len(missing), 'certified file')} missing",
            got=f"not there: {', '.join(missing[:_SHOWN])}",
            expected=count(len(want), "file"),
            advice="download the whole model; every certified file must be there",
        )
    if extra:
        raise ExtraFileError(
            f"{count(extra, 'file')} that the certificate does not name",
            got=", ".join(some_extra),
            expected=f"{count(len(want), 'certified file')} and no other",
            advice="move them out of the folder, or name them with --ignore if they are harmless",
        )
    for path, size in have.items():
        if size != want[path].size:
            raise AlteredFileError(
                f"{path} has another size",
                got=f"{size} bytes",
                expected=f"{want[path].size} bytes",
                advice="download the file again; do not load it",
            )
    hashed = manifest.hash_files(folder, list(have.items()))
    for got, expected in zip(hashed.files, certified.files, strict=True):
        if got != expected:
            raise AlteredFileError(
                f"{got.path} is not the certified file",
                got=got.sha256,
                expected=expected.sha256,
                advice="download the file again; do not load it",
            )
    return hashed


def _check_cpu(
    certificate: Certificate, ak: tpm2.Public, times: tuple[datetime, datetime]
) -> sev.Confidential | None:
    """Check the CPU's report, where there is one: it is for this key, or all is refused."""
    found = certificate.cpu_report
    if found is None:
        return None
    return sev.check(found.report, found.runtime_data, found.chain, key=ak.key, at=times)


def _assess(
    chain: x509.ChainInfo, boot: reference.BootResult, confidential: sev.Confidential | None
) -> Assurance:
    """Say how much the evidence is worth, as far as it was really checked.

    A measured boot says nothing where the TPM is software: whoever runs it makes up the PCRs. A
    confidential machine says nothing of what was booted on it, nor, with firmware of somebody's
    own, of its TPM.
    """
    worth = Assurance[chain.pin.assurance.upper()]
    if worth is not Assurance.HARDWARE or not boot.measured:
        return worth
    known = confidential is not None and confidential.firmware_known
    return Assurance.CONFIDENTIAL if known else Assurance.MEASURED


def _proved(
    run: log.Run,
    chain: x509.ChainInfo,
    unbroken: bool,
    boot: reference.BootResult,
    confidential: sev.Confidential | None,
    times: timestamp.TimeBounds,
    model: manifest.Manifest | None,
    evaluated: tuple[Verdict, ...],
) -> tuple[str, ...]:
    """Say what was proved, each in a sentence for a person."""
    files = len(run.outputs.manifest.files)
    checked = (
        f"what was checked is the {count(files, 'output file')} of this run, and no other file"
        if model is not None
        else f"the run had {count(files, 'output file')}; none was checked (pass --model FOLDER)"
    )
    image = f"the machine booted {boot.matches[0]}" if boot.matches else ""
    cpu = (
        f"an AMD CPU ({confidential.processor}) vouched that the key is held in a virtual machine "
        f"whose memory it encrypts (SEV-SNP)"
        if confidential is not None
        else ""
    )
    records = (
        f"of {item.name}, {count(item.records.count, 'record')} are committed to, by "
        f"{item.records.method}: `aicert data check` shows whether one is there"
        for item in run.inputs
        if item.records is not None
    )
    return (
        f"a TPM vouched for by {chain.pin.name!r} signed this record "
        f"{'in one unbroken boot' if unbroken else 'and counted no restart in it'}",
        *filter(None, [image, cpu]),
        f"{count(len(run.inputs), 'input')}, the container image and the command are as named",
        *records,
        *([f"it is an evaluation: {own}"] if (own := evaluation.says(run)) else []),
        *times.proved(),
        checked,
        *(
            f"an evaluation of it is certified ({one.assurance}): {evaluation.says(one.run)}"
            for one in evaluated
        ),
    )


def _not_proved(
    run: log.Run,
    assurance: Assurance,
    unbroken: bool,
    boot: reference.BootResult,
    confidential: sev.Confidential | None,
    times: timestamp.TimeBounds,
    model: manifest.Manifest | None,
) -> tuple[str, ...]:
    """Say what remains open, each in a sentence for a person."""
    limits = []
    if assurance is Assurance.SIMULATED:
        limits.append(
            "that the run took place: the TPM is software, and whoever ran it can make it say "
            "anything"
        )
    if assurance < Assurance.MEASURED:
        limits.append(
            "that an honest agent made the measurements: the operating system was not checked "
            "against a published image"
        )
    elif loose := [result.pcr for result in boot.pcrs if result.kind in ("log", "open")]:
        limits.append(f"what PCRs {loose} stand for: the reference values leave them open")
    if not unbroken:
        limits.append(
            "that it was one boot: a key of this kind comes back after TPM2_Clear, by which an "
            "administrator of the machine can set the TPM's count of restarts back"
        )
    if assurance > Assurance.SIMULATED:
        limits.append(
            "that no certificate of the key's chain was revoked: no list of such is looked at"
        )
    if boot.log is not None:
        limits.append(str(boot.log))
    if confidential is not None:
        if not confidential.firmware_known:
            limits.append("that the firmware which holds the TPM is Microsoft's")
        limits.append("that the CPU's firmware has no known holes: its version is not judged")
    limits += times.not_proved()
    limits += filter(None, [links.unchecked(run)])
    limits.append("that the data is lawful or unbiased, the code harmless, or the model good")
    if run.job.spec.evaluation is not None:
        limits.append(
            "that the benchmark is a good one: the metrics are what the measured code reported"
        )
    elif run.end.metrics is not None:
        limits.append("that the metrics are true: they are what the training reported")
    if model is None:
        limits.append("that any file you hold is the certified one")
    return tuple(limits)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON, for programs."""
    run = verdict.run
    return {
        "verdict": "verified",
        "certificate": {"sha256": verdict.certificate_digest},
        "assurance": str(verdict.assurance),
        "root": {
            "name": verdict.chain.pin.name,
            "sha256": verdict.chain.pin.fingerprint,
        },
        "policy": {
            "name": verdict.policy.name,
            "sha256": verdict.policy.digest,
            "rules": [{"rule": rule.rule, "demand": rule.demand} for rule in verdict.rules],
        },
        "boot": {
            "measured": verdict.boot.measured,
            "image": str(verdict.boot.matches[0]) if verdict.boot.matches else None,
            "log": None
            if verdict.boot.log is None
            else {
                "events": verdict.boot.log.events,
                "dataNotAuthenticated": verdict.boot.log.data_not_authenticated,
            },
            "pcrs": {str(pcr.pcr): [pcr.kind, pcr.text] for pcr in verdict.boot.pcrs},
        },
        "confidential": None
        if verdict.confidential is None
        else {
            "processor": verdict.confidential.processor,
            "measurement": verdict.confidential.measurement,
            "idKeyDigest": verdict.confidential.id_key_digest,
            "firmwareKnown": verdict.confidential.firmware_known,
            "tcb": verdict.confidential.tcb,
        },
        "time": verdict.times.to_json(),
        "run": run.job.run,
        "name": run.job.spec.name,
        "startedOn": format_time(run.job.started_on),
        "finishedOn": format_time(run.outputs.finished_on),
        "image": {"sha256": run.image.config},
        "inputs": [
            {
                "name": item.name,
                "uri": item.uri,
                "kind": item.kind,
                "sha256": item.content_digest,
                "manifest": item.manifest,
            }
            | ({} if item.records is None else {"records": item.records.to_json()})
            for item in run.inputs
        ],
        "outputs": {
            "root": run.outputs.manifest.root,
            "files": [file.to_json() for file in run.outputs.manifest.files],
        },
        "filesChecked": verdict.model is not None,
        "evaluation": evaluation.to_json(run),
        "evaluations": [
            {
                "certificate": {"sha256": one.certificate_digest},
                "name": one.run.job.spec.name,
                "assurance": str(one.assurance),
                **(evaluation.to_json(one.run) or {}),
            }
            for one in verdict.evaluations
        ],
        "proved": list(verdict.proved),
        "notProved": list(verdict.not_proved),
    }


def failure_to_json(error: Error) -> dict[str, Any]:
    """Return a failed verification as JSON, for programs."""
    return {"verdict": "refused", "error": error.to_json()}
