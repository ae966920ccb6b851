"""`aicert run`: one certified training from a terminal or a script, with no server to set up.

Exit status: 0 certified; 1 the spec is wrong, or the run failed; 130 interrupted. What a program
wants goes to standard output, what a person watches to standard error.
"""

import gc
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from aicert.agent import spec as specs
from aicert.agent.places import default_state
from aicert.errors import Error, InternalError
from aicert.words import clean, duration, size
from flows import ephemeral

CERTIFIED = 0
FAILED = 1
INTERRUPTED = 130


def run_spec(
    spec: Path,
    *,
    certified: dict[str, str] | None = None,
    store: str | None = None,
    state: Path | None = None,
    weights: bool = True,
    algorithm: Literal["ecc", "rsa"] = "ecc",
    engine: Literal["auto", "podman", "docker"] = "auto",
    verbose: bool = False,
    as_json: bool = False,
) -> int:
    """Certify the training that the file `spec` describes, on this machine; return an exit status.

    Where `PREFECT_API_URL` names a server the run shows there; else one is started for as long as
    this process lives, with its history kept in `state`.

    Args:
        spec: the training spec.
        certified: certified models to add to the inputs: names, and their certificates' paths.
        store: the folder or URL to publish to; by default the folder `store` in `state`.
        state: the folder for the operator's CA, the machines and the server's history.
        weights: publish the weights beside the certificate; else they end with the machine.
        algorithm: of the attestation key.
        engine: the container engine.
        verbose: show the training's lines too.
        as_json: print the result, or the error, as JSON on standard output.
    """
    state = default_state() if state is None else state.expanduser().absolute()
    return _ended(
        state,
        lambda training: training.run(
            spec,
            certified={
                name: str(Path(path).absolute()) for name, path in (certified or {}).items()
            },
            store=str(state / "store") if store is None else store,
            state=state,
            weights=weights,
            algorithm=algorithm,
            engine=engine,
        ),
        # Every mistake in it, before anything is started.
        before=lambda: specs.load(spec).require_model(),
        verdict="certified",
        summary=_summary,
        verbose=verbose,
        as_json=as_json,
    )


def reproduce(
    certificate: str,
    *,
    store: str | None = None,
    state: Path | None = None,
    engine: Literal["auto", "podman", "docker"] = "auto",
    demands: dict[str, Any] | None = None,
    verbose: bool = False,
    as_json: bool = False,
    **parameters: Any,
) -> int:
    """Train again what a certificate describes, and compare; return an exit status.

    Args:
        certificate: a path or an https:// address.
        store: the folder or URL to publish the second certificate to.
        state: as for `run_spec`.
        engine: the container engine.
        demands: what the original must pass: fields of the block `VerificationPolicy`. By
            default, that your own CA vouches for it.
        verbose: show the training's lines too.
        as_json: print the result, or the error, as JSON on standard output.
        parameters: the other parameters of the flow `reproduce`.
    """
    state = default_state() if state is None else state.expanduser().absolute()

    def begin(training: Any) -> dict[str, Any]:
        from blocks import VerificationPolicy

        return training.again(  # type: ignore[no-any-return]
            certificate,
            store=str(state / "store") if store is None else store,
            state=state,
            engine=engine,
            policy=VerificationPolicy(**demands) if demands else None,
            **parameters,
        )

    return _ended(
        state,
        begin,
        before=lambda: None,
        verdict="reproduced",
        summary=lambda result: f"{result['comparison']}\n  statement {result['statement']}",
        verbose=verbose,
        as_json=as_json,
    )


def evaluate(
    certificate: str,
    spec: Path,
    *,
    weights: str | None = None,
    store: str | None = None,
    state: Path | None = None,
    engine: Literal["auto", "podman", "docker"] = "auto",
    demands: dict[str, Any] | None = None,
    verbose: bool = False,
    as_json: bool = False,
) -> int:
    """Evaluate a certified model; return an exit status.

    Args:
        certificate: the model's: a path or an https:// address.
        spec: the evaluation's spec.
        weights: the folder with the model; by default `weights` beside the certificate.
        store: the folder or URL to publish the evaluation's certificate to.
        state: as for `run_spec`.
        engine: the container engine.
        demands: what the model's certificate must pass: fields of the block `VerificationPolicy`.
            By default, that your own CA vouches for it.
        verbose: show the evaluation's lines too.
        as_json: print the result, or the error, as JSON on standard output.
    """
    state = default_state() if state is None else state.expanduser().absolute()

    def begin(training: Any) -> dict[str, Any]:
        from blocks import VerificationPolicy

        return training.evaluated(  # type: ignore[no-any-return]
            certificate,
            spec,
            store=str(state / "store") if store is None else store,
            state=state,
            engine=engine,
            policy=VerificationPolicy(**demands) if demands else None,
            weights=weights,
        )

    def summary(result: dict[str, Any]) -> str:
        # The address by which `aicert verify` takes it.
        made = shlex.split(result["verify"])[2]
        return "\n".join([
            f"EVALUATED  {clean(result['summary'], 2000)}",
            f"  certificate  {made}",
            f"  sha256       {result['digest']}",
            f"  of           sha256:{result['original']}",
            "",
            "See both together: `aicert verify` on the model's certificate, with",
            f"  {shlex.join(['--evaluation', made])}",
        ])  # fmt: skip

    return _ended(
        state,
        begin,
        before=lambda: specs.load(spec),
        verdict="evaluated",
        summary=summary,
        verbose=verbose,
        as_json=as_json,
    )


def _ended(
    state: Path,
    begin: Callable[[Any], dict[str, Any]],
    *,
    before: Callable[[], object],
    verdict: str,
    summary: Callable[[dict[str, Any]], str],
    verbose: bool,
    as_json: bool,
) -> int:
    """Run a flow, with a server where there is none; print what became of it."""
    result: dict[str, Any] | None = None
    error: Error | None = None
    try:
        before()
        # What takes longest; all else is loaded meanwhile.
        server = ephemeral.start(state / "prefect")
        gc.disable()  # loading allocates much and frees nothing
        from flows.terminal import Terminal

        with Terminal(verbose=verbose) as terminal:
            terminal.waiting("start")
            # What a person should see is on the terminal already; the server keeps the rest.
            os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
            from flows import training

            gc.freeze()
            gc.enable()
            if server is not None:
                server.wait()
            with training.listening(terminal):
                result = begin(training)
    except KeyboardInterrupt:
        print("interrupted: nothing was published, and the machine is gone", file=sys.stderr)
        return INTERRUPTED
    except Error as caught:
        error = caught
    if error is not None or result is None:
        error = error or InternalError("the run ended without a result")
        if as_json:
            print(json.dumps({"verdict": "failed", "error": error.to_json()}, indent=2))
        else:
            print(f"FAILED  {error.diagnostics()}", file=sys.stderr)
        return FAILED
    if as_json:
        print(json.dumps({"verdict": verdict, **result}, indent=2, ensure_ascii=False))
    else:
        print(summary(result))
    return CERTIFIED


def _summary(result: dict[str, Any]) -> str:
    """Return what a person wants to know at the end: where it is, and how to check it."""
    made = result["outputs"]
    lines = [
        f"CERTIFIED  {result['name']}  assurance: {result['assurance']}",
        # As the command names it: a path, where it is one.
        f"  certificate  {shlex.split(result['verify'])[2]}",
        f"  sha256       {result['digest']}",
        f"  files        {made['count']}, {size(made['size'])}, root {made['root']}",
        f"  took         {duration(result['totalMilliseconds'])}, "
        f"of which training {duration(result['trainingMilliseconds'])}",
    ]
    lines += [
        f"  {clean(name, 40):<12} {clean(value, 60)}  (as reported by the training)"
        for name, value in (result["metrics"] or {}).items()
    ]
    if result["weights"] is None:
        lines.append("  The weights were not published: they ended with the machine.")
    return "\n".join([*lines, "", "Check it yourself:", f"  {result['verify']}"])
