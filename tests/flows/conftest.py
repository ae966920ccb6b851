"""A tiny image, a short state folder and an installation for the flows' tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.images import tiny
from tests.support.installation import Installation, installed


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the tiny image; return its reference."""
    folder = tmp_path_factory.mktemp("image")
    tiny.build(folder)
    return f"oci:{folder}"


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="aicert-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """A server and a worker for all tests of the group "system", none of which may harm them."""
    with installed() as held:
        yield held
