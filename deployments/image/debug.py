"""Boot the debug image, and give the shell on its console to this terminal.

    python -m deployments.image.debug [--internet]

It is the released image with a shell besides, and is measured as another. `Ctrl-]`, or the end of
what is typed, ends the machine.
"""

import argparse
import os
import select
import socket
import sys
import tempfile
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aicert.agent import qemu, swtpm
from aicert.agent.ca import DevelopmentCa
from deployments.image import build

LEAVE = b"\x1d"


def main() -> None:
    """Boot, and pass on what is typed and what is said."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--internet", action="store_true", help="let it reach the internet")
    options = parser.parse_args()
    image = qemu.Image.load(build.build(debug=True))
    with tempfile.TemporaryDirectory(prefix="aicert-") as name:
        folder = Path(name)
        swtpm.manufacture(folder / "tpm", DevelopmentCa.open_or_create(folder / "ca"))
        machine = qemu.Machine(
            folder,
            image.disk,
            accelerator=qemu.accelerator(),
            shape=qemu.Shape(),
            internet=options.internet,
            terminal=True,
        )
        port = machine.start(folder / "tpm")
        print(f"{image.name} boots; its agent will be at 127.0.0.1:{port}. Ctrl-] ends it.")
        try:
            with socket.socket(socket.AF_UNIX) as console, _raw(sys.stdin.fileno()):
                console.connect(str(folder / qemu.TERMINAL))
                _pass_on(console)
        finally:
            machine.stop()


def _pass_on(console: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([console, sys.stdin], [], [])
        if console in ready:
            said = console.recv(65536)
            if not said:
                return
            os.write(sys.stdout.fileno(), said)
        if sys.stdin in ready:
            typed = os.read(sys.stdin.fileno(), 4096)
            if not typed or LEAVE in typed:
                return
            console.sendall(typed)


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Take every key from the terminal as it is typed, where it is one."""
    if not os.isatty(terminal):
        yield
        return
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


if __name__ == "__main__":
    main()
