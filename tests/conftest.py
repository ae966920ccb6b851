"""What every test has: a guard against the outside world, and short paths for sockets."""

import ipaddress
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_outside: list[str] = []


def _loopback(host: object) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what would leave this machine: connections and name look-ups."""
    if event == "socket.connect":
        family, address = arguments[0].family, arguments[1]
        if family in (socket.AF_INET, socket.AF_INET6) and not _loopback(address[0]):
            _refuse(f"a connection to {address!r}")
    elif event == "socket.getaddrinfo" and not _loopback(arguments[0]):
        try:
            ipaddress.ip_address(str(arguments[0]))
        except ValueError:
            if str(arguments[0]) != socket.gethostname():
                _refuse(f"a look-up of {arguments[0]!r}")


def _refuse(what: str) -> None:
    _outside.append(what)
    raise ConnectionRefusedError(f"tests may not leave this machine: {what}")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def _stays_on_this_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that tried to leave this machine, even if it swallowed the error."""
    _outside.clear()
    yield
    if _outside and request.node.get_closest_marker("tries_outside") is None:
        pytest.fail(f"the test tried to leave this machine: {'; '.join(_outside)}")


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ac-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the tests that show the guard at work."""
    config.addinivalue_line("markers", "tries_outside: means to be stopped by the guard")
