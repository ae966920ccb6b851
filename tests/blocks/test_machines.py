"""Machine blocks: what they configure, start, end, and find when they look."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blocks
from aicert.agent import machine
from aicert.agent.client import LostAgentError
from aicert.agent.machine import MachineConfig, MachineHandle
from blocks import Check, HostMachine, LocalMachine, checks

ROOT = Path(__file__).parents[2]


def by_name(found: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_a_local_machine_is_configured_as_its_fields_say(tmp_path: Path) -> None:
    block = LocalMachine(state=tmp_path, algorithm="rsa", engine="docker", keep_failed=True)
    assert block.config() == MachineConfig(
        kind="local", state=tmp_path, algorithm="rsa", engine="docker", keep=True
    )


def test_the_defaults_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert LocalMachine().config() == MachineConfig()
    assert LocalMachine().config().state == Path("/state/aicert")


def test_a_host_machine_needs_the_roots_of_its_tpm(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ek_roots"):
        HostMachine()  # type: ignore[call-arg]
    block = HostMachine(ek_roots=tmp_path / "roots.pem", state=tmp_path)
    assert block.config() == MachineConfig(
        kind="host", state=tmp_path, tcti="device:/dev/tpmrm0", ek_roots=tmp_path / "roots.pem"
    )


@pytest.mark.parametrize("field", [{"algorithm": "dsa"}, {"engine": "lxc"}])
def test_a_choice_that_there_is_not_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        LocalMachine(**field)


class Started:
    """Stands in for `aicert.agent.machine`: what was started and how it was ended."""

    def __init__(self, directory: Path) -> None:
        self.handle = MachineHandle("id", "local", "run", os.getpid(), directory)
        self.calls: list[Any] = []

    def start(self, config: MachineConfig, run: str) -> MachineHandle:
        self.calls.append(("start", config, run))
        return self.handle

    def destroy(self, handle: MachineHandle, *, keep: bool = False) -> None:
        assert handle == self.handle
        self.calls.append(("destroy", keep))


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    found = Started(tmp_path)
    monkeypatch.setattr(machine, "start", found.start)
    monkeypatch.setattr(machine, "destroy", found.destroy)
    return found


def test_a_provisioned_machine_is_destroyed_when_the_run_ends(
    started: Started, tmp_path: Path
) -> None:
    block = LocalMachine(state=tmp_path, keep_failed=True)
    with block.provision("run") as handle:
        assert handle == started.handle
        assert started.calls == [("start", block.config(), "run")]
    assert started.calls[1:] == [("destroy", False)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("keep", [False, True])
def test_a_provisioned_machine_is_destroyed_when_the_run_fails(
    started: Started, tmp_path: Path, error: type[BaseException], keep: bool
) -> None:
    with pytest.raises(error), LocalMachine(state=tmp_path, keep_failed=keep).provision("run"):
        raise error
    assert started.calls[1:] == [("destroy", keep)]


def test_a_machine_can_be_attached_to_and_destroyed_from_its_handle(
    started: Started, tmp_path: Path
) -> None:
    block = LocalMachine(state=tmp_path)
    handle = MachineHandle.from_json(started.handle.to_json())
    with block.attach(handle) as client:
        assert client
    block.destroy(handle)
    assert started.calls == [("destroy", False)]


def test_a_look_at_this_host_says_what_is_there_and_changes_nothing(tmp_path: Path) -> None:
    found = LocalMachine(state=tmp_path / "state").check()
    assert {check.name for check in found} == {
        "rights",
        "namespaces",
        "tpm2_pytss",
        "container engine",
        "state folder",
        "swtpm",
        "swtpm_setup",
    }
    for check in found:
        assert check.ok == (check.advice is None), check
        assert check.found, check
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = by_name(LocalMachine(state=tmp_path, engine="podman").check())
    for name in ("rights", "namespaces", "container engine", "swtpm", "swtpm_setup"):
        assert not found[name].ok, name
        assert found[name].advice, name
        assert str(found[name]).startswith("BAD ")
    assert "swtpm-tools" in (found["swtpm_setup"].advice or "")


def test_a_state_folder_that_cannot_be_used_is_found(short: Path) -> None:
    (short / "file").write_bytes(b"")
    assert not checks.state(short / "file" / "x").ok
    long = short / ("x" * 100)
    assert "too long" in checks.state(long).found
    assert not long.exists()
    assert checks.state(short / "new" / "folder").ok


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process without root's rights")
def test_a_user_without_rights_is_told_so() -> None:
    program = (
        "import os\n"
        "from pathlib import Path\n"
        "from blocks import checks\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "for check in (checks.root(), checks.namespaces(), checks.state(Path('/place/of/root'))):\n"
        "    print(check.name, check.ok, bool(check.advice))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/tmp"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "rights False True",
        "namespaces False True",
        "state folder False True",
    ], done.stderr


def test_a_host_machine_looks_for_its_tpm_and_its_roots(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    block = HostMachine(ek_roots=roots, tcti=f"device:{tmp_path}/tpmrm0", state=tmp_path)
    found = by_name(block.check())
    assert not found["TPM device"].ok
    assert "firmware" in (found["TPM device"].advice or "")
    assert not found["roots of the TPM's maker"].ok
    (tmp_path / "tpmrm0").write_bytes(b"")
    roots.write_bytes((ROOT / "tests" / "blocks" / "root.pem").read_bytes())
    found = by_name(block.check())
    assert found["TPM device"].ok
    assert found["roots of the TPM's maker"].ok


def test_a_tpm_that_is_no_device_is_not_looked_for(tmp_path: Path) -> None:
    block = HostMachine(ek_roots=tmp_path, tcti="swtpm:path=/x", state=tmp_path)
    assert "TPM device" not in by_name(block.check())


@pytest.fixture
def short() -> Iterator[Path]:
    """Yield a folder with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ac-", dir="/tmp") as folder:
        yield Path(folder)


real = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("swtpm_setup") is None, reason="needs root and swtpm"
)


@real
def test_a_real_machine_answers_and_is_gone_afterwards(short: Path) -> None:
    block = LocalMachine(state=short)
    with block.provision("run") as handle:
        with block.attach(handle) as agent:
            assert agent.health()["enrolled"]
        assert handle.directory.is_dir()
    assert list((short / "machines").iterdir()) == []
    with pytest.raises(LostAgentError), block.attach(handle) as agent:
        agent.health()


@real
def test_a_failed_machine_is_kept_where_asked_but_never_runs_on(short: Path) -> None:
    block = LocalMachine(state=short, keep_failed=True)
    with pytest.raises(RuntimeError), block.provision("run") as handle:
        raise RuntimeError
    assert (handle.directory / "agent.log").is_file()
    assert not Path("/proc", str(handle.pid)).exists()
    block.destroy(handle)
    assert not handle.directory.exists()


def test_the_package_exports_what_it_says() -> None:
    for name in blocks.__all__:
        assert getattr(blocks, name)
