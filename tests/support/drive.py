"""Run the flow and print what it does as JSON lines: `python -m tests.support.drive`."""

import json
import sys
from pathlib import Path
from typing import Any

from blocks import FolderStore, LocalMachine
from flows.certify import certify
from tasks.reporting import listening


class Printer:
    """Prints what a run says."""

    def step(self, name: str, state: str, detail: str = "") -> None:
        self._print({"step": name, "state": state, "detail": detail})

    def message(self, step: str, message: dict[str, Any]) -> None:
        self._print({"step": step, **message})

    def _print(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)


def main() -> None:
    spec, state, store = (Path(argument) for argument in sys.argv[1:])
    with listening(Printer()):
        certify(
            spec_file=str(spec),
            machine=LocalMachine(state=state),
            store=FolderStore(folder=store),
            publish_weights=True,
        )


if __name__ == "__main__":
    main()
