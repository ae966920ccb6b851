"""Nothing in a test's process may leave this machine: neither connections nor look-ups of names.

Programs that tests start are held only where they are started under this one, as agents are: some
of the others (those that build images) have to fetch packages.

`python guard.py FILE MODULE ARGUMENT…` runs a module under the guard, in a process of its own, and
writes to FILE what it tried.
"""

import ipaddress
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def install(tell: Callable[[str], object]) -> None:
    """Refuse, from now on and in this process, what would leave this machine, and tell of it."""

    def refuse(what: str) -> None:
        tell(what)
        raise ConnectionRefusedError(f"tests may not leave this machine: {what}")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            family, address = arguments[0].family, arguments[1]
            if family in (socket.AF_INET, socket.AF_INET6) and not _loopback(address[0]):
                refuse(f"a connection to {address!r}")
        elif event == "socket.getaddrinfo" and not _loopback(arguments[0]):
            try:
                ipaddress.ip_address(str(arguments[0]))
            except ValueError:
                if str(arguments[0]) != socket.gethostname():
                    refuse(f"a look-up of {arguments[0]!r}")

    sys.addaudithook(audit)


def _loopback(host: object) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def main() -> None:
    """Run a module under the guard."""
    report, module, *arguments = sys.argv[1:]

    def tell(what: str) -> None:
        with Path(report).open("a") as file:
            file.write(f"{what}\n")

    install(tell)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
