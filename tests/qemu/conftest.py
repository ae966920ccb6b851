"""One image, one machine that booted it, and its reference values, for all tests of this folder."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from aicert import reference
from aicert.agent import qemu
from deployments.image import build
from deployments.image.reference import document
from tests.support import vm


@pytest.fixture(scope="session")
def image() -> qemu.Image:
    return qemu.Image.load(build.build())


@pytest.fixture(scope="session")
def debug() -> qemu.Image:
    return qemu.Image.load(build.build(debug=True))


@pytest.fixture(scope="session")
def booted(image: qemu.Image) -> Iterator[vm.Booted]:
    with vm.booting(image.disk) as machine:
        yield vm.Booted(machine, machine.attest())


@pytest.fixture(scope="session")
def signed(image: qemu.Image, booted: vm.Booted) -> bytes:
    """Reference values of the image, as its publisher signs them."""
    version = build.version_of(image.folder)
    values = document(image, version, {"test": booted.start}, datetime(2026, 1, 1, tzinfo=UTC))
    return reference.sign(values, ec.generate_private_key(ec.SECP256R1()))
