"""The example, as the demo runs it: real data, PyTorch in its image, equal weights every time."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aicert import log, proof
from aicert.agent import machine, spec
from aicert.agent.machine import MachineConfig
from aicert.agent.run import Run
from aicert.certificate import Certificate
from aicert.records import record_digest
from examples.images import build

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "examples" / "digits" / "spec.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="machines need root: run the tests as root"),
]


@pytest.fixture(scope="module")
def image() -> Path:
    """The example's image: found in the cache, or built from Debian's packages."""
    return build.build()


def train(image: Path, state: Path, **changes: Any) -> Certificate:
    wanted = {**spec.load(SPEC).to_json(), "image": f"oci:{image}", **changes}
    handle = machine.start(MachineConfig(state=state), "digits")
    try:
        with machine.attach(handle) as client:
            run = str(uuid.uuid4())
            body = {"spec": wanted, "base": str(SPEC.parent)}
            for step in Run.STEPS:
                client.step(run, step, body if step == "job" else {})
            return Certificate.parse(client.certificate(run))
    finally:
        machine.destroy(handle)


@pytest.fixture(scope="module")
def one(image: Path) -> Iterator[log.Run]:
    """A run of the example."""
    state = Path(tempfile.mkdtemp(prefix="ac-"))
    yield log.parse_run(train(image, state).records)
    shutil.rmtree(state, ignore_errors=True)


def test_the_example_learns_and_learns_the_same_every_time(
    image: Path, one: log.Run, short_tmp: Path
) -> None:
    two = log.parse_run(train(image, short_tmp).records)
    assert one.end.metrics is not None
    accuracy = one.end.metrics.values["accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy >= 0.95
    assert one.outputs.manifest == two.outputs.manifest
    assert {file.path for file in one.outputs.manifest.files} == {
        "metrics.json",
        "model.safetensors",
    }


def test_each_digit_is_provably_in_the_data_and_a_changed_one_is_not(one: log.Run) -> None:
    item = proof.committed(one, None)
    assert item.name == "data"
    assert item.records is not None
    assert item.records.count == 1797
    data = SPEC.parent / "data" / "digits.csv.gz"
    digit = gzip.decompress(data.read_bytes()).splitlines()[41]
    for line, found in ((digit, True), (digit.replace(b"16", b"15", 1), False)):
        made = proof.prove(item, data, record_digest(line, "lines"))
        assert made.found is found
        proof.check(made, one)


def test_the_image_is_the_one_that_its_lock_names_or_says_why_not(image: Path) -> None:
    built = json.loads((image / "packages.json").read_text())
    lock = json.loads(build.LOCK.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "examples.images.build", "--locked"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if built["config"] == lock["config"]:
        assert done.returncode == 0
        assert lock["config"] in done.stdout
    else:  # Debian's archive has moved on since: the same packages give the same bytes
        assert built["packages"] != lock["packages"], done.stderr
        assert done.returncode == 1
        assert lock["config"] in done.stderr
        assert "Refused" in done.stderr
