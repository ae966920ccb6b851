"""Forged certificates that name one another: a model, what it was made from, evaluations of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from aicert import events, links, log
from aicert.certificate import Certificate
from aicert.manifest import Manifest
from tests.support.forger import Forger, run_events

BAR = {"accuracy": events.Bar(0.9, None)}


def model_input(name: str, parent: Certificate, **changes: Any) -> events.Input:
    """The input event of a model: by default, all of what the parent's run made."""
    made = log.parse_run(parent.records).outputs.manifest
    fields: dict[str, Any] = {
        "uri": "file:model", "requested": "file:model", "revision": None, "kind": "tree",
        "files": len(made.files), "size": made.size, "root": made.root, "manifest": made.digest,
        "sha256": None, "git_commit": None, "expected": None,
    }  # fmt: skip
    return events.Input(name=name, **{**fields, **changes})


def linked_events(
    parents: Iterable[Certificate],
    *,
    bar: dict[str, events.Bar] | None = None,
    metrics: dict[str, Any] | None = None,
    files: Any = None,
    name: str = "digits",
    inputs: Iterable[events.Input] | None = None,
    certificates: Iterable[str] | None = None,
) -> list[Any]:
    """The forger's run with an input for each parent; with a `bar`, an evaluation of the first.

    `inputs` replaces what was fetched, and `certificates` what the spec names.
    """
    job, code, data, image, start, end, outputs = run_events(files)
    parents = tuple(parents)
    names = [f"model{number}" for number in range(len(parents))]
    fetched = tuple(inputs or map(model_input, names, parents))
    named = tuple(certificates or map(links.name, parents))
    asked = tuple(
        events.SpecInput(n, "file:model", None, None, f"/inputs/{n}", certificate=digest)
        for n, digest in zip(names, named, strict=True)
    )
    spec = replace(
        job.spec,
        name=name,
        inputs=(*asked, *job.spec.inputs),
        evaluation=None if bar is None else events.Evaluation("model0", bar),
    )
    mounts = tuple(events.Mount(item.target, item.name, writable=False) for item in spec.inputs)
    start = replace(start, mounts=(*mounts, events.Mount("/outputs", None, writable=True)))
    if metrics is not None:
        digest = hashlib.sha256(json.dumps(metrics).encode()).hexdigest()
        end = replace(end, metrics=replace(end.metrics, sha256=digest, values=metrics))
        kept = [
            replace(file, sha256=digest) if file.path == "metrics.json" else file
            for file in outputs.manifest.files
        ]
        outputs = replace(outputs, manifest=Manifest.of(kept))
    return [replace(job, spec=spec), *fetched, code, data, image, start, end, outputs]


def moved(listed: list[Any], targets: dict[str, str]) -> list[Any]:
    """The events of a run whose inputs lie elsewhere; one that is not named is left out."""
    job = listed[0]
    asked = tuple(
        replace(item, target=targets[item.name]) for item in job.spec.inputs if item.name in targets
    )
    mounts = tuple(events.Mount(item.target, item.name, writable=False) for item in asked)
    outputs = events.Mount("/outputs", None, writable=True)
    made: list[Any] = [replace(job, spec=replace(job.spec, inputs=asked))]
    for event in listed[1:]:
        if isinstance(event, events.TrainingStart):
            made.append(replace(event, mounts=(*mounts, outputs)))
        elif not isinstance(event, events.Input) or event.name in targets:
            made.append(event)
    return made


def child(parents: Iterable[Certificate], forger: Forger | None = None, **options: Any) -> Forger:
    """A forger of a run that is linked to the parents; same authority, if a forger is given."""
    made = Forger(authority=forger.authority) if forger else Forger()
    made.events = linked_events(parents, **options)
    return made
