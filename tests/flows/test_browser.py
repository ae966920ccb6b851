"""As a builder does it who has only the UI: fill the form, watch the run, read the card."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from aicert.agent.machine import MachineConfig
from tests.support.browser import Browser, browser
from tests.support.installation import BIN, Installation
from tests.support.pipeline import (
    CERTIFY,
    assert_gone,
    await_true,
    machines,
    mentioning,
    published,
    write_spec,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("system")]

SAVE = """
import sys
from blocks import FolderStore, LocalMachine
name, state, store = sys.argv[1:]
LocalMachine(state=state).save(name)
FolderStore(folder=store).save(name)
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of this module."""
    with browser(tmp_path_factory.mktemp("profile")) as held:
        yield held


def field(name: str) -> str:
    """Return where the form has a parameter."""
    label = f"label[starts-with(normalize-space(), '{name} ')]"
    head = f"div[contains(@class, 'p-label__header')]//{label}"
    return f"//div[contains(@class, 'schema-form-property')][{head}]"


def choose(window: Browser, name: str, kind: str, block: str) -> None:
    """Choose a block in the form."""
    window.click(f"{field(name)}//button[normalize-space(.)='{kind}']")
    window.select(f"{field(name)}//select", block)


def submit(
    installation: Installation, window: Browser, spec: Path, state: Path, store: Path
) -> str:
    """Fill in the form of the deployment and submit it; return the run's id."""
    name = uuid.uuid4().hex
    installation.command(sys.executable, "-c", SAVE, name, str(state), str(store))
    deployment = installation.api("deployments/name/certify/certify")["id"]
    window.open(f"{installation.url}/deployments/deployment/{deployment}/run")
    window.await_text("spec_file", "Where to train", "Submit")
    window.click(f"{field('spec_file')}//button[normalize-space(.)='str']")
    window.fill(f"{field('spec_file')}//textarea", str(spec))
    choose(window, "machine", "LocalMachine", name)
    choose(window, "store", "FolderStore", name)
    before = runs_of(installation, deployment)

    def submitted() -> bool:
        # With SQLite the server may be too busy to answer; people press the button again, too.
        if "Submit" in window.text():
            window.click("//button[normalize-space(.)='Submit']")
        return window.soon(lambda: runs_of(installation, deployment) > before)

    window.await_(submitted, "a run is made")
    (run,) = runs_of(installation, deployment) - before
    return run


def runs_of(installation: Installation, deployment: str) -> set[str]:
    """Return the ids of the runs of a deployment."""
    wanted = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}
    return {found["id"] for found in installation.api("flow_runs/filter", wanted)}


def test_the_form_starts_a_run_that_ends_with_the_card(
    installation: Installation, window: Browser, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, image=image)
    run = submit(installation, window, spec, state, tmp_path / "s")
    assert installation.await_state(run, "COMPLETED", "FAILED")["type"] == "COMPLETED"
    (digest,) = published(tmp_path / "s")
    window.open(f"{installation.url}/runs/flow-run/{run}")
    steps = ("provision", "job", "fetch", "image", "train", "outputs", "quote", "publish", "verify")
    window.await_text("Completed", *steps)
    wanted = {
        "key": {"any_": ["aicert-tiny-certificate-card"]},
        "flow_run_id": {"any_": [run]},
    }
    (card,) = installation.api("artifacts/filter", {"artifacts": wanted})
    window.open(f"{installation.url}/artifacts/artifact/{card['id']}")
    window.await_text("What this proves", digest)
    # And the certificate is what it says, to a stranger.
    root = MachineConfig(kind="local", state=state).ca / "authority" / "root.pem"
    certificate = tmp_path / "s" / "certificates" / digest
    done = installation.command(
        *(BIN / "aicert", "verify", str(certificate / "certificate.json")),
        *("--model", str(certificate / "weights"), "--root", str(root), "--allow-simulated"),
    )
    assert done.returncode == 0, done


def test_the_run_s_cancel_button_ends_container_and_machine_within_ten_seconds(
    installation: Installation, window: Browser, image: str, state: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, f"echo begun; sleep 500; {CERTIFY}", image=image)
    run = submit(installation, window, spec, state, tmp_path / "s")
    installation.await_line(run, "begun")
    window.open(f"{installation.url}/runs/flow-run/{run}")
    window.await_text("begun", "Running")
    family = installation.family()
    assert any("swtpm" in member.command for member in family)
    window.click("//button[normalize-space(.)='Cancel']")
    window.click("//button[normalize-space(.)='Confirm']")
    assert_gone(family)
    await_true(lambda: not mentioning(state), 240, "the machine ends")
    assert installation.since(run, "CANCELLING") < 10
    installation.await_state(run, "CANCELLED")
    await_true(lambda: machines(state) == [], 240, "the machine is gone")
    assert published(tmp_path / "s") == ()
