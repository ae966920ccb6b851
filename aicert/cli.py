"""The command line.

Exit status: 0 done or verified; 1 refused: the check failed or the run did; 2 wrong usage;
3 could not check: a file cannot be read or a part is not installed.
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import aicert
from aicert.errors import AbsentError, Error, install

if TYPE_CHECKING:
    from aicert.hub import Snapshot
    from aicert.keys import PrivateKey
    from aicert.lineage import Node
    from aicert.manifest import Manifest
    from aicert.policy import Policy
    from aicert.trust import TrustStore
    from aicert.verify import Verdict

REFUSED = 1
COULD_NOT_CHECK = 3

_Folder = click.Path(path_type=Path, file_okay=False)
_File = click.Path(path_type=Path, dir_okay=False)
# A file, or the address of one.
_Certificate = click.Path(dir_okay=False)


class UnreadableError(AbsentError):
    """A file cannot be read."""

    code = "cli.unreadable"
    remedy = "check the path and its permissions"


class PublishedError(Error):
    """A file is named by its digest, so it cannot be changed where it is."""

    code = "cli.published"
    remedy = "write it to another place (--out) and publish that besides"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(aicert.__version__, prog_name="aicert")
def main() -> None:
    """Make AI traceable: certify what a model was made from, and verify it offline."""
    # The library warns of names over 64 characters, which some vendors' certificates have.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"aicert\.x509")
    for stream in (sys.stdout, sys.stderr):  # a name that a terminal cannot show ends no verdict
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@main.command()
@click.argument("certificate", type=_Certificate)
@click.option("--model", type=_Folder, help="Folder with the model's files; all are checked.")
@click.option("--ignore", multiple=True, metavar="PATH", help="A path in it that may be there too.")
@click.option("--download", "download_to", type=_Folder,
    help="Of hf://: keep the model's files there, in a new folder.",
)  # fmt: skip
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path), help=(
    "A root certificate (file or folder) for software TPMs, such as the demo's. Repeatable."
))  # fmt: skip
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path),
    help="A root that you know to certify only keys in real TPMs. Repeatable.",
)  # fmt: skip
@click.option("--allow-simulated", is_flag=True, help="Accept a software TPM.")
@click.option("--policy", "policies", multiple=True, type=_File,
    help="A policy that must hold too (see `aicert policy check`). Repeatable.",
)  # fmt: skip
@click.option("--reference", "references", multiple=True, type=_File,
    help="Signed reference values of a machine image. Repeatable.",
)  # fmt: skip
@click.option("--timestamp-root", "stamp_roots", multiple=True, type=_File,
    help="Root of a timestamp authority that you believe. Repeatable.",
)  # fmt: skip
@click.option("--evaluation", "evaluations", multiple=True, type=_Certificate,
    help="The certificate of an evaluation of this model: verify and show it too. Repeatable.",
)  # fmt: skip
@click.option("--recursive", is_flag=True,
    help="Verify the certificates of certified inputs too, and of theirs.",
)  # fmt: skip
@click.option("--from", "places", multiple=True, metavar="PLACE",
    help="Where those are besides: a file, a folder, or an address in a store. Repeatable.",
)  # fmt: skip
@click.option("--signature", type=_File, help="The run's model.sig: check it too.")
@click.option("--signature-key", type=_File,
    help="Write there the public key of --signature (PEM), for other tools.",
)  # fmt: skip
@click.option("--vsa", type=_File, help="Write the result there, as an in-toto attestation.")
@click.option("--vsa-key", type=_File, help="Sign the attestation with this private key (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def verify(
    certificate: str,
    model: Path | None,
    ignore: tuple[str, ...],
    download_to: Path | None,
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    references: tuple[Path, ...],
    stamp_roots: tuple[Path, ...],
    evaluations: tuple[str, ...],
    recursive: bool,
    places: tuple[str, ...],
    signature: Path | None,
    signature_key: Path | None,
    vsa: Path | None,
    vsa_key: Path | None,
    as_json: bool,
) -> None:
    """Verify CERTIFICATE, and that the files in --model are the ones it names.

    CERTIFICATE is a file, its https:// address, or a model of the Hugging Face Hub as
    hf://owner/model[@revision], whose files are downloaded and checked unless --model has them.
    Where no policy is given, a hardware TPM at least is asked for. A policy says itself how much
    the certificate must be worth, and --allow-simulated changes nothing beside one.
    """
    from aicert import card, oms
    from aicert import verify as verifier
    from aicert.keys import load_private_key
    from aicert.trust import load_certificates

    snapshot = _on_hub(certificate, as_json)
    if places and not recursive:
        raise click.UsageError("--from needs --recursive")
    if download_to is not None and (snapshot is None or model is not None):
        raise click.UsageError("--download is for hf://, without --model")
    data = _read_certificate(certificate if snapshot is None else snapshot, as_json)
    evaluated = [_read_certificate(source, as_json) for source in evaluations]
    documents = [_read(path, as_json) for path in references]
    if signature_key is not None and signature is None and snapshot is None:
        raise click.UsageError("--signature-key needs --signature")
    signed = None if signature is None else _read(signature, as_json)
    try:
        policy, trust = _demands(roots, hardware_roots, policies, allow_simulated)
        policy.references(documents)
        authorities = [root for path in stamp_roots for root in load_certificates(path)]
        key = None if vsa_key is None else load_private_key(vsa_key)
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)

    def check(folder: Path | None, ignored: frozenset[str]) -> "Verdict":
        return verifier.verify(
            data,
            trust=trust,
            model=folder,
            ignore=ignored,
            policy=policy,
            references=documents,
            timestamp_roots=authorities,
            evaluations=evaluated,
        )

    try:
        if signed is None and snapshot is not None:
            signed = snapshot.signature()
        if snapshot is None or model is not None:
            verdict = check(model, _ignored(ignore, model, Path(certificate), signature))
            signer = None if signed is None else oms.check(signed, verdict)
        else:
            # All that can be known before anything large is asked for.
            verdict = check(None, frozenset())
            signer = None if signed is None else oms.check(signed, verdict)
            certified = verdict.run.outputs.manifest
            snapshot.check_names(certified, ignore)
            with _downloaded(snapshot, certified, download_to) as folder:
                verdict = check(folder, frozenset())
        behind = None
        if recursive:
            from aicert import lineage

            how = {"trust": trust, "references": documents, "timestamp_roots": authorities}
            behind = _lineage(verdict, certificate, places, partial=False, **how)
            verdict = lineage.said_by(verdict, behind)
    except AbsentError as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    except Error as error:
        _summarise(vsa, key, data, policy, None, as_json)
        _fail(error, as_json, REFUSED)
    _summarise(vsa, key, data, policy, verdict, as_json)
    if signature_key is not None and signer is not None:
        _write(signature_key, signer.pem, as_json)
    if as_json:
        source: dict[str, Any] = {} if snapshot is None else {"source": snapshot.uri}
        if behind is not None:
            source["lineage"] = lineage.to_json(behind)
        _print_json(verifier.to_json(verdict) | {"signatureChecked": signer is not None} | source)
    else:
        click.echo(card.verdict_text(verdict))
        if snapshot is not None:
            click.echo(f"From {snapshot.uri}.")
        if download_to is not None:
            click.echo(f"The verified files are in {download_to}.")
        if signer is not None:
            name = signature or oms.NAME
            click.echo(f"Also: {name} was signed by a key in the same TPM, for this model.")


@main.command()
@click.argument("certificate", type=_Certificate)
@click.option("--markdown", is_flag=True, help="Print the card in Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print the statement as JSON.")
def show(certificate: str, markdown: bool, as_json: bool) -> None:
    """Show what CERTIFICATE says: a file, or its https:// address.

    Nothing is verified: use `aicert verify` for that.
    """
    from aicert import canonical, card
    from aicert.certificate import MAX_BYTES, Certificate

    data = _read_certificate(certificate, as_json)
    try:
        parsed = Certificate.parse(data)
        if as_json:
            _print_json(canonical.loads(parsed.payload, max_bytes=MAX_BYTES))
        elif markdown:
            click.echo(card.markdown(parsed))
        else:
            click.echo(card.text(parsed))
            click.echo("\n  Not verified: this is what the certificate says. Run `aicert verify`.")
    except Error as error:
        _fail(error, as_json, REFUSED)


@main.command()
@click.argument("certificate", type=_Certificate)
@click.option("--format", "name", help="Which view; all of them if none is named.")
@click.option("--out", type=click.Path(path_type=Path),
    help="File to write, or folder for all views. A single view goes to standard output without.",
)  # fmt: skip
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--allow-simulated", is_flag=True, help="Accept a software TPM.")
@click.option("--policy", "policies", multiple=True, type=_File)
@click.option("--reference", "references", multiple=True, type=_File,
    help="Signed reference values of a machine image. Repeatable.",
)  # fmt: skip
@click.option("--evaluation", "evaluations", multiple=True, type=_Certificate,
    help="The certificate of an evaluation of this model, to be shown with it. Repeatable.",
)  # fmt: skip
@click.option("--recursive", is_flag=True,
    help="Verify the certificates behind it too, and show the whole lineage.",
)  # fmt: skip
@click.option("--from", "places", multiple=True, metavar="PLACE",
    help="Where those are besides: a file, a folder, or an address in a store. Repeatable.",
)  # fmt: skip
def export(
    certificate: str,
    name: str | None,
    out: Path | None,
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    references: tuple[Path, ...],
    evaluations: tuple[str, ...],
    recursive: bool,
    places: tuple[str, ...],
) -> None:
    """Write what CERTIFICATE says in the forms that other tools read.

    With any option but --format and --out the certificate is verified first, as `aicert verify`
    does it, and views say with what result. Without, they repeat what it says, and say that.
    """
    from aicert import verify as verifier
    from aicert.certificate import Certificate
    from aicert.views import VIEWS

    if name is not None and name not in VIEWS:
        known = "\n".join(f"  {key:<10} {view.about}" for key, view in VIEWS.items())
        raise click.UsageError(f"there is no view {name!r}; there are:\n{known}")
    if name is None and out is None:
        raise click.UsageError("name a view with --format, or a folder for all with --out")
    if places and not recursive:
        raise click.UsageError("--from needs --recursive")
    data = _read_certificate(certificate, False)
    evaluated = [_read_certificate(source, False) for source in evaluations]
    documents = [_read(path, False) for path in references]
    demanded = (roots, hardware_roots, allow_simulated, policies, references, evaluations)
    verdict = behind = None
    try:
        parsed = Certificate.parse(data)
        if recursive or any(demanded):
            policy, trust = _demands(roots, hardware_roots, policies, allow_simulated)
            how: dict[str, Any] = {"trust": trust, "references": documents}
            verdict = verifier.verify(data, policy=policy, evaluations=evaluated, **how)
            if recursive:
                from aicert import lineage

                behind = _lineage(verdict, certificate, places, partial=False, **how)
                verdict = lineage.said_by(verdict, behind)
        made = {
            key: VIEWS[key].make(parsed, verdict, behind) for key in ([name] if name else VIEWS)
        }
    except AbsentError as error:
        _fail(error, False, COULD_NOT_CHECK)
    except Error as error:
        _fail(error, False, REFUSED)
    except ModuleNotFoundError as error:
        _missing(error, "card")
    if name is None:
        assert out is not None
        for key, content in made.items():
            _write(out / VIEWS[key].file, content, False)
    elif out is not None:
        _write(out, made[name], False)
    else:
        sys.stdout.buffer.write(made[name])


@main.command("hash")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def hash_command(folder: Path, as_json: bool) -> None:
    """Print the digest of a file, or the root digest of a FOLDER, as a spec expects it."""
    from aicert import manifest

    try:
        if folder.is_dir() and as_json:
            import shutil
            import tempfile

            with tempfile.TemporaryFile() as kept:  # nothing is printed of a tree that is refused
                manifest.summarise(folder, kept)
                kept.seek(0)
                shutil.copyfileobj(kept, sys.stdout.buffer)
            click.echo()
        elif folder.is_dir():
            click.echo(manifest.summarise(folder).root)
        else:
            click.echo(manifest.hash_file(folder)[1])
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)


@main.command()
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def trust(roots: tuple[Path, ...], hardware_roots: tuple[Path, ...], as_json: bool) -> None:
    """List the roots that may vouch for a TPM: built in, and those given."""
    try:
        pins = _trust(roots, hardware_roots).list()
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    if as_json:
        _print_json([
            {"name": p.name, "sha256": p.fingerprint, "assurance": p.assurance, "source": p.source}
            for p in pins
        ])  # fmt: skip
    else:
        for pin in pins:
            click.echo(f"{pin.assurance:<10} {pin.fingerprint}  {pin.name}  ({pin.source})")


@main.command("timestamp")
@click.argument("certificate", type=_File)
@click.option("--url", required=True, help="Address of the RFC 3161 authority, http or https.")
@click.option("--timestamp-root", "stamp_roots", multiple=True, required=True, type=_File,
    help="Root of the authority, which its answer must chain to. Repeatable.",
)  # fmt: skip
@click.option("--out", type=_File, help="Write the stamped certificate there, as a new file.")
@click.option("--in-place", is_flag=True, help="Write it over CERTIFICATE.")
@click.option("--replace", is_flag=True, help="Replace a timestamp that is there.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=30, show_default=True,
    help="Seconds that the authority may take in all.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def stamp_command(
    certificate: Path,
    url: str,
    stamp_roots: tuple[Path, ...],
    out: Path | None,
    in_place: bool,
    replace: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Have CERTIFICATE stamped by a timestamp authority, before it is published.

    Only a digest is sent. The stamped certificate is another file with another digest, so another
    name: a store's entry is never changed.
    """
    import hashlib

    from aicert import stamping, timestamp
    from aicert.events import format_time
    from aicert.trust import load_certificates

    if (out is None) is not in_place or (str(certificate) == "-" and in_place):
        raise click.UsageError("say where to write it: either --out FILE or --in-place")
    data = _read(certificate, as_json)
    digest = hashlib.sha256(data).hexdigest()
    try:
        roots = [root for path in stamp_roots for root in load_certificates(path)]
        if in_place and certificate.resolve().parent.name == digest:
            raise PublishedError(
                "the certificate is published under its digest, which would no longer be its own",
                got=certificate,
            )
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    try:
        stamped = stamping.stamp(data, url=url, authorities=roots, timeout=timeout, replace=replace)
        found = timestamp.read(stamped, roots)
    except (stamping.UnavailableError, stamping.UrlError, timestamp.TimestampExtraError) as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    except Error as error:
        _fail(error, as_json, REFUSED)
    target = out or certificate.resolve()  # where it is a link, the file is what changes
    try:
        _write_whole(target, stamped, new=out is not None)
    except OSError as error:
        _fail(
            UnreadableError(f"{target} cannot be written: {error.strerror}"),
            as_json,
            COULD_NOT_CHECK,
        )
    after = hashlib.sha256(stamped).hexdigest()
    if as_json:
        _print_json({
            "certificate": {"sha256": after, "before": digest, "path": str(target)},
            "existedBefore": format_time(found.latest),
            "timestampAuthority": found.authority,
        })  # fmt: skip
    else:
        click.echo(
            f"STAMPED  existed before {format_time(found.latest)}, says {found.authority!a}\n"
            f"  {target}\n  sha256:{after}\n"
            f"  before: sha256:{digest}; the same statement under another name"
        )


@main.group()
def policy() -> None:
    """Work with policies."""


@policy.command("check")
@click.argument("file", type=_File)
@click.option("--json", "as_json", is_flag=True, help="Print the policy as JSON.")
def policy_check(file: Path, as_json: bool) -> None:
    """Check a policy, name every mistake in it, and say what it demands."""
    from aicert.policy import Policy

    try:
        checked = Policy.load(file)
    except Error as error:
        _fail(error, as_json, REFUSED)
    if as_json:
        _print_json(checked.to_json())
    else:
        click.echo(checked.explain())


@main.group("data")
def data_group() -> None:
    """Show that one record is in the data of a training, or is not."""


@data_group.command("root")
@click.argument("kind", type=click.Choice(["lines", "jsonl", "parquet", "files"]))
@click.argument("files", type=click.Path(path_type=Path, exists=True))
@click.option("--scratch", type=_Folder, help="Folder for about 64 bytes for each record.")
def data_root(kind: str, files: Path, scratch: Path | None) -> None:
    """Print the commitment to the records of FILES, a file or a folder, as a run measures it.

    Before a run it tells whether FILES can be taken apart; after one, whether they are the same.
    """
    import tempfile

    from aicert import records

    try:
        folder, tree = records.listing(files)
        with tempfile.TemporaryDirectory(dir=scratch) as place, _reading(tree.size) as bar:
            held = records.commit(folder, tree, kind, scratch=Path(place), progress=bar.update)
    except Error as error:
        _fail(error, False, COULD_NOT_CHECK)
    _print_json(held.to_json())


@data_group.command("prove")
@click.argument("certificate", type=_Certificate)
@click.argument("files", type=click.Path(path_type=Path, exists=True))
@click.argument("record", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--input", "name", help="Which input FILES are, where several have records.")
@click.option("--out", type=_File, help="Write the proof there; else to standard output.")
@click.option("--scratch", type=_Folder, help="Folder for about 100 bytes for each record.")
def data_prove(
    certificate: str,
    files: Path,
    record: Path,
    name: str | None,
    out: Path | None,
    scratch: Path | None,
) -> None:
    """Prove that the record in the file RECORD is among FILES, or is not.

    FILES is an input of CERTIFICATE as it was fetched: its folder, or its file. The proof holds
    digests alone. All of FILES is read; `aicert data check` then takes no time.
    """
    from aicert import proof
    from aicert.certificate import Certificate
    from aicert.log import parse_run

    data = _read_certificate(certificate, False)
    try:
        run = parse_run(Certificate.parse(data).records)
        item = proof.committed(run, name)
        assert item.records is not None
        with _reading(item.size) as bar:
            digest = proof.digest_of(record, item.records.kind)
            made = proof.prove(item, files, digest, scratch=scratch, progress=bar.update)
        proof.check(made, run, digest)
    except Error as error:
        _fail(error, False, COULD_NOT_CHECK)
    if out is None:
        sys.stdout.buffer.write(made.encode())
    else:
        _write(out, made.encode(), False)
    click.echo(f"{out or 'the proof'}: {proof.proved(made)}", err=True)


@data_group.command("check")
@click.argument("proof", type=_File)
@click.argument("certificate", type=_Certificate)
@click.argument("record", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=False,
)  # fmt: skip
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--allow-simulated", is_flag=True, help="Accept a software TPM.")
@click.option("--policy", "policies", multiple=True, type=_File)
@click.option("--reference", "references", multiple=True, type=_File,
    help="Signed reference values of a machine image. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def data_check(
    proof: Path,
    certificate: str,
    record: Path | None,
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    references: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check that PROOF shows what it says of CERTIFICATE, and of the record in the file RECORD.

    The certificate is verified first, as `aicert verify` does it. The status is 0 where the proof
    holds, whether it shows that the record is there or that it is not: read what it says.
    """
    from aicert import proof as proofs
    from aicert import verify as verifier

    data, given = _read_certificate(certificate, as_json), _read(proof, as_json)
    documents = [_read(path, as_json) for path in references]
    try:
        policy, trust = _demands(roots, hardware_roots, policies, allow_simulated)
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    try:
        verdict = verifier.verify(data, trust=trust, policy=policy, references=documents)
        parsed = proofs.Proof.parse(given)
        digest = None
        if record is not None:
            digest = proofs.digest_of(record, parsed.records.kind)
        proofs.check(parsed, verdict.run, digest)
    except Error as error:
        _fail(error, as_json, REFUSED)
    if as_json:
        _print_json(proofs.to_json(parsed, verdict, named=record is not None))
    else:
        click.echo(proofs.text(parsed, verdict, named=record is not None))


@main.group()
def spec() -> None:
    """Work with training specs."""


@spec.command("check")
@click.argument("file", type=_File)
@click.option("--json", "as_json", is_flag=True, help="Print the normalised spec as JSON.")
def spec_check(file: Path, as_json: bool) -> None:
    """Check a training spec and name every mistake in it."""
    from aicert.words import count

    agent_spec = _extra("aicert.agent.spec", "agent")
    try:
        checked = agent_spec.load(file)
    except Error as error:
        _fail(error, as_json, REFUSED)
    if as_json:
        _print_json(checked.to_json())
    else:
        click.echo(f"{file}: good; {count(len(checked.inputs), 'input')}, sha256:{checked.digest}")


@main.command()
@click.argument("spec", type=_File)
@click.option("--certified", multiple=True, metavar="NAME=CERTIFICATE",
    help="Add a certified model to the inputs: its certificate's path, with `weights` beside it. "
    "Repeatable.",
)  # fmt: skip
@click.option("--store", help="Folder or URL to publish to.")
@click.option("--no-weights", is_flag=True, help="Publish no weights, only what describes them.")
@click.option("--algorithm", type=click.Choice(["ecc", "rsa"]), default="ecc", show_default=True,
    help="Of the attestation key.",
)  # fmt: skip
@click.option("--engine", type=click.Choice(["auto", "podman", "docker"]), default="auto",
    show_default=True, help="Container engine.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="Show the training's lines too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(
    spec: Path,
    certified: tuple[str, ...],
    store: str | None,
    no_weights: bool,
    algorithm: str,
    engine: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Certify the training that the file SPEC describes, on this machine (as root)."""
    status = _extra("flows.cli", "pipeline").run_spec(
        spec,
        certified=_pairs("--certified", "NAME=CERTIFICATE", certified),
        store=store,
        weights=not no_weights,
        algorithm=algorithm,
        engine=engine,
        verbose=verbose,
        as_json=as_json,
    )
    sys.exit(status)


@main.command("lineage")
@click.argument("certificate", type=_Certificate)
@click.option("--from", "places", multiple=True, metavar="PLACE",
    help="Where the certificates of inputs are, besides the store of CERTIFICATE: a file, a "
    "folder, or an address in a store. Repeatable.",
)  # fmt: skip
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--allow-simulated", is_flag=True, help="Accept software TPMs.")
@click.option("--policy", "policies", multiple=True, type=_File)
@click.option("--reference", "references", multiple=True, type=_File)
@click.option("--evaluation", "evaluations", multiple=True, type=_Certificate,
    help="The certificate of an evaluation of this model. Repeatable.",
)  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "mermaid", "json"]), default="text",
    show_default=True,
)  # fmt: skip
def draw_lineage(
    certificate: str,
    places: tuple[str, ...],
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    references: tuple[Path, ...],
    evaluations: tuple[str, ...],
    form: str,
) -> None:
    """Verify CERTIFICATE and the certificates behind it, and draw what came from what.

    The status is 1 where one is refused, or is not found.
    """
    from aicert import lineage
    from aicert import verify as verifier
    from aicert.words import count

    as_json = form == "json"
    data = _read_certificate(certificate, as_json)
    evaluated = [_read_certificate(source, as_json) for source in evaluations]
    documents = [_read(path, as_json) for path in references]
    try:
        policy, trust = _demands(roots, hardware_roots, policies, allow_simulated)
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    try:
        how: dict[str, Any] = {"trust": trust, "references": documents}
        verdict = verifier.verify(data, policy=policy, evaluations=evaluated, **how)
        found = _lineage(verdict, certificate, places, partial=True, **how)
    except AbsentError as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    except Error as error:
        _fail(error, as_json, REFUSED)
    if as_json:
        _print_json(lineage.to_json(found))
    else:
        click.echo(lineage.mermaid(found) if form == "mermaid" else lineage.tree(found))
    missing = found.missing()
    if missing and not as_json:
        click.echo(
            f"{count(len(missing), 'certificate')} not found: name where with --from", err=True
        )
    sys.exit(REFUSED if missing else 0)


@main.command()
@click.argument("certificate", type=_Certificate)
@click.option("--base", type=_Folder, help="Folder that relative paths of the spec start from.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=URI",
    help="Have an input from there instead; its content must be the same. Repeatable.",
)  # fmt: skip
@click.option("--image", help="Have the image from there instead; it must be the same.")
@click.option("--weights", type=_Folder,
    help="The original's outputs, for a tolerance; by default `weights` beside CERTIFICATE.",
)  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(min=0),
    help="How far values of tensors may be apart; without, every bit counts.",
)  # fmt: skip
@click.option("--relative", type=click.FloatRange(min=0), help="The same, as a part of the value.")
@click.option("--ignore", multiple=True, metavar="PATH", help="An output that does not count.")
@click.option("--statement-key", type=_File,
    help="Sign the comparison with this private key (PEM), too.",
)  # fmt: skip
@click.option("--root", type=click.Path(path_type=Path),
    help="A root for software TPMs that CERTIFICATE may have; by default your own CA's.",
)  # fmt: skip
@click.option("--hardware-root", type=click.Path(path_type=Path), help="The same, for real TPMs.")
@click.option("--allow-simulated", is_flag=True, help="Accept a software TPM for CERTIFICATE.")
@click.option("--policy", type=_File, help="A policy that CERTIFICATE must pass.")
@click.option("--store", help="Folder or URL to publish to.")
@click.option("--engine", type=click.Choice(["auto", "podman", "docker"]), default="auto",
    show_default=True, help="Container engine.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="Show the training's lines too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def reproduce(
    certificate: str,
    base: Path | None,
    inputs: tuple[str, ...],
    image: str | None,
    weights: Path | None,
    tolerance: float | None,
    relative: float | None,
    ignore: tuple[str, ...],
    statement_key: Path | None,
    root: Path | None,
    hardware_root: Path | None,
    allow_simulated: bool,
    policy: Path | None,
    store: str | None,
    engine: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Train again what CERTIFICATE describes, on this machine (as root), and compare.

    CERTIFICATE is a file, or its https:// address. Every input is demanded by its digest, and the
    image by its own. The second run is certified and published, with the comparison beside it.
    """
    places = _pairs("--input", "NAME=URI", inputs)
    demands = {
        "policy": policy,
        "roots": root,
        "hardware_roots": hardware_root,
        "allow_simulated": allow_simulated,
    }
    status = _extra("flows.cli", "pipeline").reproduce(
        certificate,
        store=store,
        engine=engine,
        demands=demands if any(demands.values()) else None,
        verbose=verbose,
        as_json=as_json,
        base=str((base or Path()).absolute()),
        inputs=places,
        image=image,
        weights=None if weights is None else str(weights),
        absolute_tolerance=tolerance,
        relative_tolerance=relative,
        ignore=list(ignore),
        statement_key=None if statement_key is None else str(statement_key.absolute()),
    )
    sys.exit(status)


@main.command()
@click.argument("certificate", type=_Certificate)
@click.argument("spec", type=_File)
@click.option("--weights", type=_Folder,
    help="The model's files; by default `weights` beside CERTIFICATE.",
)  # fmt: skip
@click.option("--root", type=click.Path(path_type=Path),
    help="A root for software TPMs that CERTIFICATE may have; by default your own CA's.",
)  # fmt: skip
@click.option("--hardware-root", type=click.Path(path_type=Path), help="The same, for real TPMs.")
@click.option("--allow-simulated", is_flag=True, help="Accept a software TPM for CERTIFICATE.")
@click.option("--policy", type=_File, help="A policy that CERTIFICATE must pass.")
@click.option("--store", help="Folder or URL to publish to.")
@click.option("--engine", type=click.Choice(["auto", "podman", "docker"]), default="auto",
    show_default=True, help="Container engine.",
)  # fmt: skip
@click.option("--verbose", is_flag=True, help="Show the evaluation's lines too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    certificate: str,
    spec: Path,
    weights: Path | None,
    root: Path | None,
    hardware_root: Path | None,
    allow_simulated: bool,
    policy: Path | None,
    store: str | None,
    engine: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run the evaluation SPEC on the model of CERTIFICATE, on this machine (as root).

    It is measured and certified like a training; its own certificate is about the model, and bound
    to CERTIFICATE. The status is 1 where the model does not reach what SPEC demands.
    """
    demands = {
        "policy": policy,
        "roots": root,
        "hardware_roots": hardware_root,
        "allow_simulated": allow_simulated,
    }
    status = _extra("flows.cli", "pipeline").evaluate(
        certificate,
        spec,
        weights=None if weights is None else str(weights),
        store=store,
        engine=engine,
        demands=demands if any(demands.values()) else None,
        verbose=verbose,
        as_json=as_json,
    )
    sys.exit(status)


@main.command()
@click.argument("original", type=_Certificate)
@click.argument("again", type=_Certificate)
@click.option("--model", type=_Folder, help="The outputs of ORIGINAL, for a tolerance.")
@click.option("--model-again", type=_Folder, help="The outputs of AGAIN, for a tolerance.")
@click.option("--tolerance", type=click.FloatRange(min=0),
    help="How far values of tensors may be apart; without, every bit counts.",
)  # fmt: skip
@click.option("--relative", type=click.FloatRange(min=0), help="The same, as a part of the value.")
@click.option("--ignore", multiple=True, metavar="PATH", help="An output that does not count.")
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--allow-simulated", is_flag=True, help="Accept software TPMs.")
@click.option("--policy", "policies", multiple=True, type=_File)
@click.option("--reference", "references", multiple=True, type=_File,
    help="Signed reference values of a machine image. Repeatable.",
)  # fmt: skip
@click.option("--statement", type=_File, help="Write the result there, as an in-toto statement.")
@click.option("--statement-key", type=_File, help="Sign that with this private key (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print the statement.")
def compare(
    original: str,
    again: str,
    model: Path | None,
    model_again: Path | None,
    tolerance: float | None,
    relative: float | None,
    ignore: tuple[str, ...],
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    references: tuple[Path, ...],
    statement: Path | None,
    statement_key: Path | None,
    as_json: bool,
) -> None:
    """Verify two certificates, and that the second run reproduced the first.

    Both must be of one training: the same image, command, inputs, limits and seed. Bit by bit that
    takes the certificates alone; with a tolerance, the outputs of both runs too.
    """
    from aicert import reproduction, vsa
    from aicert import verify as verifier
    from aicert.keys import load_private_key
    from aicert.tensors import Tolerance

    bounds = None
    if tolerance is not None or relative is not None:
        if model is None or model_again is None:
            raise click.UsageError("a tolerance needs the outputs: --model and --model-again")
        try:
            bounds = Tolerance(tolerance or 0.0, relative or 0.0)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    if statement_key is not None and statement is None:
        raise click.UsageError("--statement-key needs --statement")
    files = [_read_certificate(name, as_json) for name in (original, again)]
    documents = [_read(path, as_json) for path in references]
    try:
        policy, trust = _demands(roots, hardware_roots, policies, allow_simulated)
        key = None if statement_key is None else load_private_key(statement_key)
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    try:
        first, second = (
            verifier.verify(data, trust=trust, policy=policy, references=documents, model=folder)
            for data, folder in zip(files, (model, model_again), strict=True)
        )
        folders = None if model is None or model_again is None else (model, model_again)
        found = reproduction.compare(
            first, second, tolerance=bounds, folders=folders, ignore=ignore
        )
    except Error as error:
        _fail(error, as_json, REFUSED)
    made = reproduction.statement(found)
    if statement is not None:
        _write(statement, vsa.encode(made) if key is None else vsa.sign(made, key), as_json)
    if as_json:
        _print_json(made)
    else:
        click.echo(reproduction.text(found))
    sys.exit(REFUSED if found.result == "FAILED" else 0)


@main.command()
@click.argument("store")
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path), help=(
    "A root certificate (file or folder) for software TPMs, such as the demo's. Repeatable."
))  # fmt: skip
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path),
    help="A root that you know to certify only keys in real TPMs. Repeatable.",
)  # fmt: skip
@click.option("--allow-simulated", is_flag=True, help="Accept software TPMs.")
@click.option("--policy", "policies", multiple=True, type=_File,
    help="A policy that must hold too (see `aicert policy check`). Repeatable.",
)  # fmt: skip
@click.option("--no-weights", is_flag=True, help="Do not read the published weights.")
@click.option("--jobs", type=click.IntRange(1, 256), default=min(os.cpu_count() or 1, 32),
    show_default="one a core", help="Certificates to verify at a time.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def audit(
    store: str,
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    no_weights: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Verify every certificate in STORE (a folder or a URL), and the files beside it.

    All are looked at; the status is 1 if any of them is refused.
    """
    library = _extra("aicert.agent.audit", "agent")
    demands = library.Demands(roots, hardware_roots, policies, allow_simulated)
    shown: dict[str, Any] = {"file": sys.stderr, "hidden": not sys.stderr.isatty()}
    try:
        with click.progressbar(length=1, label="verifying", **shown) as bar:

            def progress(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            found = library.audit(
                store, None, demands, weights=not no_weights, jobs=jobs, on_progress=progress
            )
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    refused = [item for item in found if item.error is not None]
    if as_json:
        _print_json({
            "verdict": "refused" if refused else "verified",
            "certificates": [_finding(item) for item in found],
        })  # fmt: skip
    else:
        for item in refused:
            click.echo(f"REFUSED  sha256:{item.digest}\n  {item.error.diagnostics()}", err=True)
        click.echo(
            f"{'REFUSED' if refused else 'VERIFIED'}  "
            f"{len(found) - len(refused)} of {len(found)} in {store}"
        )
    sys.exit(REFUSED if refused else 0)


@main.group("hub")
def hub_group() -> None:
    """Work with the Hugging Face Hub."""


@hub_group.command("push")
@click.argument("certificate", type=_File)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--model", type=_Folder,
    help="Folder with the model's files; by default `weights` beside the certificate.",
)  # fmt: skip
@click.option("--signature", type=_File,
    help="The run's signature; by default `model.sig` beside the certificate.",
)  # fmt: skip
@click.option("--root", "roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--hardware-root", "hardware_roots", multiple=True, type=click.Path(path_type=Path))
@click.option("--allow-simulated", is_flag=True, help="Push what a software TPM vouches for.")
@click.option("--policy", "policies", multiple=True, type=_File)
@click.option("--private", is_flag=True, help="Into a private repository, and no other.")
@click.option("--replace", is_flag=True, help="Remove its files that are none of the model's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def hub_push(
    certificate: Path,
    repository: str,
    model: Path | None,
    signature: Path | None,
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    allow_simulated: bool,
    policies: tuple[Path, ...],
    private: bool,
    replace: bool,
    as_json: bool,
) -> None:
    """Push a model with its CERTIFICATE to the repository OWNER/NAME of the Hub, in one commit.

    It is verified first, as `aicert verify` does it, and not pushed if it is refused. The token is
    that of HF_TOKEN, or of `hf auth login`.
    """
    from aicert import oms
    from aicert.hub import HubError

    _extra("huggingface_hub", "hf")
    library = _extra("aicert.agent.hub", "agent")
    audits = _extra("aicert.agent.audit", "agent")
    data = _read(certificate, as_json)
    signed = _read(signature or certificate.with_name(oms.NAME), as_json)
    folder = model or certificate.with_name("weights")
    try:
        demands = audits.Demands(roots, hardware_roots, policies, allow_simulated).load()
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    try:
        ignored = _ignored((), folder, certificate, signature)
        verdict = demands.verify(data, model=folder, ignore=ignored)
        pushed = library.push(
            repository, data, verdict, folder, signed, private=private, replace=replace
        )
    except HubError as error:
        _fail(error, as_json, COULD_NOT_CHECK)
    except Error as error:
        _fail(error, as_json, REFUSED)
    if as_json:
        _print_json({"repository": pushed.repository, "commit": pushed.commit, "uri": pushed.uri,
                     "url": pushed.url, "new": pushed.new})  # fmt: skip
    else:
        click.echo(f"{'PUSHED' if pushed.new else 'THERE ALREADY'}  {pushed.url}")
        click.echo(f"  aicert verify {pushed.uri}")


def _reading(size: int) -> Any:
    """Return a bar for so many bytes, which nobody but a terminal sees."""
    shown: dict[str, Any] = {"file": sys.stderr, "hidden": not sys.stderr.isatty()}
    return click.progressbar(length=size, label="reading", **shown)


def _finding(item: Any) -> dict[str, Any]:
    """Return what an audit found of one certificate, as JSON."""
    return {
        "sha256": item.digest,
        "name": item.name,
        "finishedOn": None if item.finished_on is None else item.finished_on.isoformat(),
        "assurance": item.assurance,
        "weights": item.weights,
        "error": None if item.error is None else item.error.to_json(),
    }


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent(arguments: tuple[str, ...]) -> None:
    """Start the measured program that owns the TPM (see `aicert agent --help`)."""
    sys.exit(_extra("aicert.agent.__main__", "agent").main(list(arguments)))


def _pairs(option: str, form: str, given: tuple[str, ...]) -> dict[str, str]:
    """Return what stands before and after the first `=` of each."""
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise click.UsageError(f"{option} is {form}, not {item!r}")
        found[name] = value
    return found


_CHECKOUT = ("flows", "tasks", "blocks", "deployments")
"""The parts that no wheel holds."""


def _extra(module: str, extra: str) -> Any:
    """Import a part that verifiers do not install."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        _missing(error, extra)


def _missing(error: ModuleNotFoundError, extra: str) -> NoReturn:
    if str(error.name).partition(".")[0] in _CHECKOUT:
        click.echo(
            "this command runs from a checkout of aicert, after `make setup`: "
            "what verifiers install has no pipeline",
            err=True,
        )
    else:
        click.echo(
            f"this command needs a part that is not installed ({error.name}): {install(extra)}",
            err=True,
        )
    sys.exit(COULD_NOT_CHECK)


def _lineage(
    verdict: "Verdict", certificate: str, places: tuple[str, ...], *, partial: bool, **how: Any
) -> "Node":
    """Follow the links of a certificate, under what its policy says of machines."""
    from aicert import lineage
    from aicert.verify import verify as check

    policy = verdict.policy.of_machines("of an input")
    try:
        known = lineage.Places(places) + lineage.Places.beside(certificate)
    except OSError as error:
        raise UnreadableError(
            f"{error.filename} cannot be read: {error.strerror}", advice="see --from"
        ) from error
    return lineage.trace(
        verdict, known.find, lambda data: check(data, policy=policy, **how), partial=partial
    )


def _trust(roots: tuple[Path, ...], hardware_roots: tuple[Path, ...]) -> "TrustStore":
    from aicert.trust import TrustStore

    store = TrustStore.builtin()
    for path in roots:
        store = store.with_roots(path, assurance="simulated")
    for path in hardware_roots:
        store = store.with_roots(path, assurance="hardware")
    return store


def _demands(
    roots: tuple[Path, ...],
    hardware_roots: tuple[Path, ...],
    policies: tuple[Path, ...],
    allow_simulated: bool,
) -> "tuple[Policy, TrustStore]":
    """Return what a certificate must pass, and the roots that may vouch for its machine."""
    from aicert.assurance import Assurance
    from aicert.policy import Policy

    if policies:
        policy = Policy.all_of([Policy.load(path) for path in policies])
    else:
        policy = Policy.default(Assurance.SIMULATED if allow_simulated else Assurance.HARDWARE)
    return policy, policy.trust_store(_trust(roots, hardware_roots))


def _summarise(
    path: Path | None,
    key: "PrivateKey | None",
    data: bytes,
    policy: "Policy",
    verdict: "Verdict | None",
    as_json: bool,
) -> None:
    """Write a verification summary, where one is asked for."""
    if path is None:
        return
    import hashlib
    from datetime import UTC, datetime

    from aicert import vsa

    now = datetime.now(UTC)
    if verdict is None:
        made = vsa.failed(hashlib.sha256(data).hexdigest(), policy, verified_on=now)
    else:
        made = vsa.passed(verdict, policy, verified_on=now)
    _write(path, vsa.encode(made) if key is None else vsa.sign(made, key), as_json)


def _write(path: Path, data: bytes, as_json: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        _fail(
            UnreadableError(f"{path} cannot be written: {error.strerror}"),
            as_json,
            COULD_NOT_CHECK,
        )


def _write_whole(path: Path, data: bytes, *, new: bool) -> None:
    """Write a file whole or not at all; `new`: only where there is none."""
    import os
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644 if new else path.stat().st_mode & 0o777)
        if new:
            os.link(name, path)  # fails where something is there
        else:
            Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _ignored(given: tuple[str, ...], model: Path | None, *own: Path | None) -> frozenset[str]:
    """Return the paths that may be in the model's folder besides: `own` files, if they are."""
    ignored = set(given)
    for path in own:
        if model is not None and path is not None:
            with suppress(ValueError):
                ignored.add(path.resolve().relative_to(model.resolve()).as_posix())
    return frozenset(ignored)


def _on_hub(source: str, as_json: bool) -> "Snapshot | None":
    """Find the model that `hf://` names on the Hub; None: the source is no such name."""
    if not source.startswith("hf://"):
        return None
    from aicert import hub

    try:
        return hub.find(source, token=os.environ.get("HF_TOKEN") or None)
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)


@contextmanager
def _downloaded(snapshot: "Snapshot", certified: "Manifest", folder: Path | None) -> Iterator[Path]:
    """Yield a folder with the files of a model, which is kept if it is named and all goes well."""
    import shutil
    import tempfile

    with ExitStack() as stack:
        try:
            if folder is None:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aicert-")))
            else:
                folder.mkdir(parents=True)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                place = folder
            with _reading(certified.size) as bar:
                snapshot.save(certified, place, bar.update)
        except OSError as error:
            raise UnreadableError(
                f"the model cannot be written: {error.strerror}",
                got=folder or tempfile.gettempdir(),
                advice="name a folder that does not exist yet with --download",
            ) from error
        yield place
        if folder is not None:
            stack.pop_all()


def _read_certificate(source: "str | Snapshot", as_json: bool) -> bytes:
    """Read a certificate from a file, from `-`, from the web or from a model on the Hub."""
    if isinstance(source, str):
        found = _on_hub(source, as_json)
        if found is None and not source.startswith("https://"):
            return _read(Path(source), as_json)
    else:
        found = source
    from aicert import download

    try:
        return download.certificate(str(source)) if found is None else found.certificate()
    except download.RenamedError as error:
        _fail(error, as_json, REFUSED)
    except Error as error:
        _fail(error, as_json, COULD_NOT_CHECK)


def _read(path: Path, as_json: bool) -> bytes:
    """Read a bounded file, or `-` for standard input."""
    from aicert.certificate import MAX_BYTES

    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        _fail(UnreadableError(f"{path} cannot be read: {error.strerror}"), as_json, COULD_NOT_CHECK)


def _fail(error: Error, as_json: bool, status: int) -> NoReturn:
    if as_json:
        _print_json({"verdict": "refused" if status == REFUSED else "error",
                     "error": error.to_json()})  # fmt: skip
    else:
        click.echo(
            f"{'REFUSED' if status == REFUSED else 'ERROR'}  {error.diagnostics()}", err=True
        )
    sys.exit(status)


def _print_json(value: Any) -> None:
    # In ASCII: a terminal obeys some characters that JSON lets stand, and these are a stranger's.
    click.echo(json.dumps(value, indent=2))
