"""The software TPM: how it is made, how it starts, and that it never outlives its owner."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from aicert import tpm2
from aicert.agent import swtpm as module
from aicert.agent.ca import DevelopmentCa
from aicert.agent.endorsement import EkCertificateError, check_ek_certificate
from aicert.agent.swtpm import Swtpm, manufacture
from aicert.agent.tpm import EkKind, Tpm
from aicert.agent.tpm_errors import UnreachableError
from tests.support.tpm import Factory, relay, run_tool

KINDS: tuple[EkKind, ...] = ("rsa2048", "ecc384")


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("tpms"))


@pytest.fixture
def state(factory: Factory) -> Path:
    return factory.make()


@pytest.fixture
def swtpm(state: Path) -> Iterator[Swtpm]:
    with Swtpm(state) as running:
        yield running


def await_end(pidfd: int, seconds: float = 10) -> bool:
    """Wait until the process of a pidfd has ended; tell whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


# -- manufacture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_ca_vouches_for_the_ek_certificates(
    swtpm: Swtpm, factory: Factory, kind: EkKind, tmp_path: Path
) -> None:
    with Tpm(swtpm.tcti) as tpm:
        der = tpm.ek_certificate(kind)
    assert der is not None
    certificate = check_ek_certificate(der, factory.ca.ek_roots)
    assert certificate.serial_number.bit_length() > 32
    (tmp_path / "ek.der").write_bytes(der)
    (tmp_path / "roots.pem").write_bytes(factory.ca.ek_roots)
    command = ("openssl", "verify", "-x509_strict", "-CAfile", "roots.pem", "ek.der")
    assert "ek.der: OK" in run_tool(*command, cwd=tmp_path)


def test_a_platform_certificate_is_no_ek_certificate(swtpm: Swtpm, factory: Factory) -> None:
    """The CA signs it too, over the EK's own public key."""
    with Tpm(swtpm.tcti) as tpm:
        der = tpm.read_nv(0x01C08000)
    with pytest.raises(EkCertificateError):
        check_ek_certificate(der, factory.ca.ek_roots)


def test_only_the_sha256_bank_is_active(swtpm: Swtpm) -> None:
    with relay(swtpm) as tcti:
        banks = run_tool("tpm2_getcap", "-T", tcti, "pcrs").splitlines()
    active = [bank for bank in banks[1:] if "[ ]" not in bank]
    assert len(active) == 1
    assert "sha256" in active[0]


def test_many_can_be_made_at_once(tmp_path: Path) -> None:
    ca = DevelopmentCa.open_or_create(tmp_path / "ca")
    folders = [tmp_path / str(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda folder: manufacture(folder, ca), folders))
    serials, keys = set(), set()
    for folder in folders:
        with Swtpm(folder) as swtpm, Tpm(swtpm.tcti) as tpm:
            for kind in KINDS:
                der = tpm.ek_certificate(kind)
                serials.add(check_ek_certificate(der, ca.ek_roots).serial_number)
                keys.add(tpm.ek_public(kind))
    assert len(serials) == len(keys) == 8


def test_names_that_shells_and_tools_would_trip_over_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "a, b=c; $HOME 'é\" %d"
    base.mkdir()
    monkeypatch.chdir(tmp_path)
    relative = base.relative_to(tmp_path)
    ca = DevelopmentCa.open_or_create(relative / "ca")
    manufacture(relative / "tpm", ca)
    with Swtpm(relative / "tpm") as swtpm, Tpm(swtpm.tcti) as tpm:
        assert check_ek_certificate(tpm.ek_certificate("rsa2048"), ca.ek_roots)


def test_the_state_is_for_its_owner_alone(swtpm: Swtpm, state: Path, tmp_path: Path) -> None:
    ca = DevelopmentCa.open_or_create(tmp_path / "ca")
    manufacture(tmp_path / "new", ca)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "new").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert "tpm2-00.permall" in modes


def test_a_tpm_is_never_overwritten(factory: Factory, state: Path) -> None:
    before = (state / "tpm2-00.permall").read_bytes()
    with pytest.raises(module.StateError):
        manufacture(state, factory.ca)
    assert (state / "tpm2-00.permall").read_bytes() == before


def test_nothing_that_manufacturing_starts_is_left_for_process_1_to_reap(
    tmp_path: Path, factory: Factory
) -> None:
    # As a subreaper's child, what is orphaned comes to this test instead of to process 1.
    script = (
        "import ctypes, os, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"
        "subprocess.run(sys.argv[1:], check=True);"
        "os.waitpid(-1, os.WNOHANG)"
    )
    code = (
        "import sys; from pathlib import Path; from aicert.agent.ca import DevelopmentCa;"
        "from aicert.agent.swtpm import manufacture;"
        "manufacture(Path(sys.argv[1]), DevelopmentCa.open_or_create(Path(sys.argv[2])))"
    )
    ca = factory.ca.ek_certificate_file.parent
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-c", code, tmp_path / "tpm", ca],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ChildProcessError" in done.stderr, done.stderr
    assert (tmp_path / "tpm" / "tpm2-00.permall").exists()


def test_a_failed_manufacture_says_what_the_tool_said(tmp_path: Path) -> None:
    ca = DevelopmentCa.open_or_create(tmp_path / "ca")
    key = ca.ek_key_file.read_bytes()
    ca.ek_key_file.write_text("not a key")
    with pytest.raises(module.ManufactureError) as caught:
        manufacture(tmp_path / "tpm", ca)
    assert caught.value.code == "swtpm.manufacture"
    assert "swtpm_localca" in str(caught.value.got)
    ca.ek_key_file.write_bytes(key)
    manufacture(tmp_path / "tpm", ca)  # nothing of the failure is in the way


def test_what_a_failed_manufacture_made_is_not_taken_for_a_tpm(
    tmp_path: Path, factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_end(command: list[str], work: Path, log: Path) -> int:
        (work / "state" / "tpm2-00.permall").write_bytes(b"half")
        return 1

    monkeypatch.setattr(module, "_run", fail_at_the_end)
    with pytest.raises(module.ManufactureError):
        manufacture(tmp_path, factory.ca)
    with pytest.raises(module.StateError):
        Swtpm(tmp_path).start()


@pytest.mark.parametrize(
    ("missing", "package"), [("swtpm_setup", "swtpm-tools"), ("swtpm", "swtpm")]
)
def test_a_missing_program_is_named_with_its_package(
    factory: Factory, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    missing: str, package: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(module.MissingError) as caught:
        if missing == "swtpm":
            Swtpm(state).start()
        else:
            manufacture(tmp_path / "tpm", factory.ca)
    assert caught.value.code == "swtpm.missing"
    assert missing in caught.value.message
    assert f"apt install {package})" in str(caught.value.advice)


# -- a boot ----------------------------------------------------------------------------------------


def test_a_power_cycle_is_a_new_boot(swtpm: Swtpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        before, certificate = tpm.clock_info(), tpm.ek_certificate("ecc384")
        tpm.extend(0, b"d" * 32)
        first = swtpm.pid
        swtpm.power_cycle()
        assert swtpm.pid != first
        after = tpm.clock_info()
        assert (after.reset_count, after.restart_count) == (before.reset_count + 1, 0)
        assert tpm.read_pcrs([0]) == {0: bytes(32)}
        assert tpm.ek_certificate("ecc384") == certificate


def test_start_and_stop_may_be_called_twice(state: Path) -> None:
    swtpm = Swtpm(state)
    swtpm.start()
    pid = swtpm.pid
    swtpm.start()
    assert swtpm.pid == pid
    swtpm.stop()
    swtpm.stop()
    with pytest.raises(module.LostError):
        _ = swtpm.pid


def test_a_stop_is_orderly(state: Path) -> None:
    for _ in range(2):
        with Swtpm(state) as swtpm, Tpm(swtpm.tcti) as tpm:
            assert tpm.clock_info().safe


def test_a_folder_without_a_tpm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(module.StateError):
        Swtpm(tmp_path).start()


def test_damaged_state_is_reported_in_swtpms_words(state: Path) -> None:
    (state / "tpm2-00.permall").write_bytes(b"damaged")
    with pytest.raises(module.StartError) as caught:
        Swtpm(state).start()
    assert caught.value.code == "swtpm.start"
    assert caught.value.got
    assert "swtpm.log" in str(caught.value.advice)


def test_a_state_in_use_is_refused_and_unharmed(swtpm: Swtpm, state: Path) -> None:
    with pytest.raises(module.StartError):
        Swtpm(state).start()
    with Tpm(swtpm.tcti) as tpm:
        tpm.extend(0, b"d" * 32)


def test_several_connections_share_one_tpm(swtpm: Swtpm) -> None:
    with Tpm(swtpm.tcti) as one, Tpm(swtpm.tcti) as two:

        def extend(tpm: Tpm) -> None:
            for _ in range(50):
                tpm.extend(0, b"d" * 32)
                tpm.read_pcrs(range(8))  # one command: a longer read would race with the other

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(extend, (one, two)))
        alone = one.read_pcrs([0])
        assert alone == two.read_pcrs([0])


# -- the end ---------------------------------------------------------------------------------------


def test_a_killed_tpm_is_unreachable_and_boots_anew(swtpm: Swtpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        pidfd = os.pidfd_open(swtpm.pid)
        os.kill(swtpm.pid, signal.SIGKILL)
        assert await_end(pidfd)
        os.close(pidfd)
        with pytest.raises(UnreachableError) as caught:
            tpm.extend(0, b"d" * 32)
        assert caught.value.code == "tpm.unreachable"
        swtpm.power_cycle()
    with Tpm(swtpm.tcti) as tpm:
        tpm.extend(0, b"d" * 32)


def test_a_tpm_that_does_not_answer_is_given_up(swtpm: Swtpm) -> None:
    assert swtpm._socket is not None
    swtpm._socket.settimeout(0.2)
    with Tpm(swtpm.tcti) as tpm:
        os.kill(swtpm.pid, signal.SIGSTOP)
        with pytest.raises(UnreachableError):
            tpm.clock_info()
        os.kill(swtpm.pid, signal.SIGCONT)
        with pytest.raises(UnreachableError):
            tpm.clock_info()
    with pytest.raises(module.LostError):  # the late answer must not pass for the next one
        swtpm.exchange(bytes.fromhex("80010000000c0000017b0008"))
    swtpm.power_cycle()
    with Tpm(swtpm.tcti) as tpm:
        tpm.clock_info()


OWNER = """
import os, signal, subprocess, sys
from pathlib import Path
from aicert.agent.swtpm import Swtpm
from aicert.agent.tpm import Tpm
swtpm = Swtpm(Path(sys.argv[1]))
swtpm.start()
tpm = Tpm(swtpm.tcti)
tpm.create_ak()
child = subprocess.Popen(["sleep", "60"], close_fds=False)
print(swtpm.pid, child.pid, flush=True)
sys.stdin.readline()
END
"""


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os._exit(0)",
        "raise RuntimeError",
        "sys.exit()",
        "import threading; threading.Timer(0, os._exit, [1]).start(); tpm.create_ak('rsa')",
    ],
)
def test_it_never_outlives_its_owner(state: Path, end: str) -> None:
    """Nor does a child of the owner, which lives on, keep it."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.replace("END", end), str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    swtpm, child = map(int, owner.stdout.readline().split())
    pidfd = os.pidfd_open(swtpm)
    try:
        assert not await_end(pidfd, 0)
        owner.stdin.write(b"\n")
        owner.stdin.close()
        assert await_end(pidfd)
        owner.wait(120)
    finally:
        os.close(pidfd)
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()
        owner.wait(120)
    # The next boot finds the TPM in good order.
    with Swtpm(state) as again, Tpm(again.tcti) as tpm:
        tpm2.parse_public(tpm.create_ak().public).require_ak()


def test_a_ctrl_c_at_its_owners_terminal_does_not_end_it(swtpm: Swtpm) -> None:
    assert os.getpgid(swtpm.pid) != os.getpgid(0)


def test_nobody_else_can_connect_to_it(swtpm: Swtpm, state: Path) -> None:
    assert not [path for path in state.iterdir() if path.is_socket()]
    arguments = Path(f"/proc/{swtpm.pid}/cmdline").read_bytes().split(b"\0")
    assert not {b"--ctrl", b"--server", b"--port"} & set(arguments)
    sockets = {fd.resolve().name for fd in Path(f"/proc/{swtpm.pid}/fd").iterdir()}
    assert len([name for name in sockets if name.startswith("socket:")]) == 1


def test_ek_certificates_name_the_tpm_as_software(swtpm: Swtpm) -> None:
    with Tpm(swtpm.tcti) as tpm:
        der = tpm.ek_certificate("ecc384")
    assert der is not None
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "swtpm" in str(names.value.get_values_for_type(x509.DirectoryName))
