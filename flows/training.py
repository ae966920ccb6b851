"""One run of the flow in this process, with the blocks that a command line describes."""

from pathlib import Path
from typing import Any, Literal

from blocks import FolderStore, FsspecStore, LocalMachine
from flows.certify import certify
from tasks.reporting import listening

__all__ = ["listening", "run"]


def run(
    spec: Path,
    *,
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
    folder = "://" not in store
    return certify(
        spec_file=str(spec.absolute()),
        machine=LocalMachine(state=state, algorithm=algorithm, engine=engine),
        store=FolderStore(folder=Path(store).absolute()) if folder else FsspecStore(url=store),
        publish_weights=weights,
    )
