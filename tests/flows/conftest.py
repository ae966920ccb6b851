"""A tiny image and a short state folder for the flows' tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.images import tiny


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
