"""`aicert run` for those who have no server: what it prints, how it ends, what it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pipeline import (
    CERTIFY,
    ROOT,
    assert_gone,
    descendants,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cli")]

PROGRAM = """
import json, sys
from pathlib import Path
from flows.cli import run_spec
spec, state, options = sys.argv[1:]
sys.exit(run_spec(Path(spec), state=Path(state), **json.loads(options)))
"""


def start(spec: Path, state: Path, **options: object) -> subprocess.Popen[str]:
    """Start the command without a Prefect server of the user's."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(spec), str(state), json.dumps(options)],
        cwd=ROOT,
        env={**environment, "PREFECT_PROFILE": "nobody"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """One state folder for all: its Prefect database takes seconds to make."""
    folder = Path(tempfile.mkdtemp(prefix="aicert-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """End what a test started."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_run_prints_where_the_certificate_is(image: str, state: Path, tmp_path: Path) -> None:
    process = start(write_spec(tmp_path, image=image), state)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (digest,) = published(state / "store")
    assert out.startswith("CERTIFIED  tiny  assurance: simulated")
    assert f"  {state}/store/certificates/{digest}/certificate.json" in out
    assert "aicert verify" in out
    steps = [line.split()[1] for line in err.splitlines() if line.startswith("✓")]
    assert steps[0] == "provision" and steps[-1] == "destroy"
    assert "INFO" not in err  # quiet: Prefect's own lines are in its log
    assert mentioning(state) == []


def test_a_program_gets_json(image: str, state: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, image=image)
    store = tmp_path / "elsewhere"
    process = start(spec, state, as_json=True, store=str(store), weights=False)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["verdict"] == "certified"
    assert published(store) == (result["digest"],)
    assert result["weights"] is None


def test_mistakes_in_a_spec_end_it_before_anything_starts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: tiny\nimage: oci:x\ncomand: [a]\n")
    process = start(spec, state)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert f"{spec}:3:1" in err
    assert not state.exists()


def test_a_failed_run_says_why_and_ends_with_status_1(
    image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "echo nan >&2; exit 3", image=image)
    process = start(spec, state, as_json=True, store=str(tmp_path / "store"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert json.loads(out)["error"]["code"] == "training.exit"
    assert published(tmp_path / "store") == ()
    assert machines(state) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_an_interrupt_ends_it_and_its_machine(
    number: int,
    status: int,
    image: str,
    state: Path,
    tmp_path: Path,
    ended: list[subprocess.Popen[str]],
) -> None:
    spec = write_spec(tmp_path, "echo begun; sleep 500", image=image)
    process = start(spec, state, verbose=True)
    ended.append(process)
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == "begun":
            break
    process.send_signal(number)
    assert process.wait(240) == status
    assert machines(state) == []
    assert mentioning(state) == []


def test_killed_it_takes_its_server_and_its_machine_with_it(
    image: str, state: Path, tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 500; {CERTIFY}", image=image)
    process = start(spec, state, verbose=True)
    ended.append(process)
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == "begun":
            break
    family = descendants(process.pid)
    assert any("uvicorn" in member.command for member in family)
    assert any("swtpm" in member.command for member in family)
    process.kill()
    process.wait()
    assert_gone(family)
