"""What every test has: a guard against the outside world, short paths for sockets, one server."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import guard

# Before Prefect is imported: its settings are read once.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
if "PREFECT_HOME" not in os.environ:
    os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="aicert-prefect-")
    atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)

_outside: list[str] = []
guard.install(_outside.append)


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


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Start a server with a database of its own, and yield the address of its API.

    One a process: Prefect's worker for events keeps the server that it met first.
    """
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        url = PREFECT_API_URL.value()
        assert url is not None and "127.0.0.1" in url
        yield str(url)


# Groups of tests that run in one process each, those that take longest first.
GROUPS = (
    "qemu",
    "recovery",
    "system",
    "azure-flow",
    "certify",
    "kill-0",
    "kill-1",
    "care",
    "evaluate",
    "reproduce",
    "cli",
    "stores",
    "blobs",
    "podman",
    "docker",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the groups that take longest, so that the processes have done at the same time."""

    def place(item: pytest.Item) -> int:
        mark = item.get_closest_marker("xdist_group")
        if mark is None:
            return len(GROUPS) + 1
        return GROUPS.index(mark.args[0]) if mark.args[0] in GROUPS else len(GROUPS)

    items.sort(key=place)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of the tests that show the guard at work."""
    config.addinivalue_line("markers", "tries_outside: means to be stopped by the guard")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Note whether every test was run and some failed: then .ci/run tries these once more."""
    config = session.config
    if not hasattr(config, "workerinput") and getattr(config, "cache", None) is not None:
        config.cache.set("aicert/some-failed", exitstatus == pytest.ExitCode.TESTS_FAILED)
