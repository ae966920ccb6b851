"""Links between certificates: an input that is itself certified, and the model of an evaluation.

A link names a certificate by the digest that it had when its run ended, that is, without a
timestamp: one that is added later makes another file, and breaks no link. That the input is what
the certificate certified follows from digests that were measured; nobody's word is taken for it.
"""

from dataclasses import dataclass, replace

from aicert import evaluation, events
from aicert.certificate import Certificate
from aicert.errors import Error
from aicert.log import Run


class LinkError(Error):
    """A certificate names another as that of an input, and it certifies something else."""

    code = "lineage.link"
    remedy = "do not believe where that input is from"


@dataclass(frozen=True, slots=True)
class Link:
    """An input with a certificate: the digest that names it, and what was fetched and measured."""

    certificate: str
    input: events.Input


def name(certificate: Certificate) -> str:
    """Return what links to a certificate call it: the digest (hex) of the file before a stamp."""
    return replace(certificate, timestamp=None).digest


def links(run: Run) -> tuple[Link, ...]:
    """Return the inputs that have certificates, in the order of the spec."""
    pairs = zip(run.job.spec.inputs, run.inputs, strict=True)
    return tuple(Link(asked.certificate, got) for asked, got in pairs if asked.certificate)


def unchecked(run: Run) -> str | None:
    """Return what is not proved as long as nobody has followed a run's links."""
    linked = [link.input.name for link in links(run)]
    if not linked:
        return None
    return (
        f"what is said of the certified inputs ({', '.join(linked)}): their certificates were "
        "not checked here (pass --recursive)"
    )


def check(link: Link, certificate: Certificate, run: Run, *, whole: bool = False) -> None:
    """Check that a link leads to this certificate, and that the input is what it certifies.

    The input must be all the files that the certified run made, under their names; or, unless it
    must be `whole`, a single one of them. `run` is the certificate's own.

    Raises:
        LinkError: it is another certificate, or the input is something else.
    """
    if link.certificate != (got := name(certificate)):
        raise LinkError(
            f"the input {link.input.name} is linked to another certificate",
            got=got,
            expected=link.certificate,
            advice="give the certificate that the link names; it may be the one before a timestamp",
        )
    made = run.outputs.manifest
    if link.input.manifest == made.digest:
        return
    if whole or link.input.sha256 not in {file.sha256 for file in made.files}:
        raise LinkError(
            f"the input {link.input.name} is not what its certificate certifies",
            got=f"{link.input.files} files, manifest sha256:{link.input.manifest}",
            expected=f"{len(made.files)} files, manifest sha256:{made.digest}",
            advice="do not believe the lineage: the input is something else, or only a part",
        )


def check_evaluation(evaluated: Run, certificate: Certificate, run: Run) -> None:
    """Check that a run is an evaluation of this certificate's model, and of all of it.

    Raises:
        LinkError: it is a training, or evaluates something else.
    """
    if evaluated.job.spec.evaluation is None:
        raise LinkError(
            "the certificate is of a training, not of an evaluation",
            got=evaluated.job.spec.name,
            advice="give certificates of evaluations (`aicert evaluate` makes them)",
        )
    asked, got = evaluation.model(evaluated)
    assert asked.certificate is not None  # the log's grammar
    check(Link(asked.certificate, got), certificate, run, whole=True)
