"""A Prefect server of this test run's own, where a test needs one."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Before Prefect is imported: its settings are read once.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
if "PREFECT_HOME" not in os.environ:
    os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="aicert-prefect-")
    atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Start a server with a database of its own, and yield the address of its API."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        url = PREFECT_API_URL.value()
        assert url is not None and "127.0.0.1" in url
        yield str(url)
