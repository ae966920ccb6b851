"""One run of a flow in this process, with the blocks that a command line describes."""

from pathlib import Path
from typing import Any, Literal

from blocks import FolderStore, FsspecStore, LocalMachine, VerificationPolicy
from flows.certify import certify
from flows.evaluate import evaluate
from flows.reproduce import reproduce
from tasks.reporting import listening

__all__ = ["again", "evaluated", "listening", "run"]


def run(
    spec: Path,
    *,
    certified: dict[str, str],
    store: str,
    state: Path,
    weights: bool,
    algorithm: Literal["ecc", "rsa"],
    engine: Literal["auto", "podman", "docker"],
) -> dict[str, Any]:
    """Run the flow `certify` and return its result.

    Raises:
        StepError: a step failed.
    """
    return certify(
        spec_file=str(spec.absolute()),
        certified=certified,
        machine=LocalMachine(state=state, algorithm=algorithm, engine=engine),
        store=_store(store),
        publish_weights=weights,
    )


def again(
    certificate: str,
    *,
    store: str,
    state: Path,
    engine: Literal["auto", "podman", "docker"],
    policy: VerificationPolicy | None,
    **parameters: Any,
) -> dict[str, Any]:
    """Run the flow `reproduce` and return its result; `policy` is what the original must pass.

    Raises:
        StepError: a step failed, or the outputs differ.
    """
    found: dict[str, Any] = reproduce(
        certificate,
        machine=LocalMachine(state=state, engine=engine),
        store=_store(store),
        original_policy=policy,
        **parameters,
    )
    return found


def evaluated(
    certificate: str,
    spec: Path,
    *,
    store: str,
    state: Path,
    engine: Literal["auto", "podman", "docker"],
    policy: VerificationPolicy | None,
    weights: str | None,
) -> dict[str, Any]:
    """Run the flow `evaluate` and return its result; `policy` is what the model's must pass.

    Raises:
        StepError: a step failed, or the model does not reach what is demanded.
    """
    found: dict[str, Any] = evaluate(
        certificate,
        spec_file=str(spec.absolute()),
        weights=weights,
        machine=LocalMachine(state=state, engine=engine),
        store=_store(store),
        original_policy=policy,
    )
    return found


def _store(store: str) -> FolderStore | FsspecStore:
    if "://" in store:
        return FsspecStore(url=store)
    return FolderStore(folder=Path(store).absolute())
