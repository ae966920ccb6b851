"""The verifier as a library: pure, silent, without network, safe in threads, and light to load."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import aicert.trust
import aicert.verify
from aicert.errors import Error
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify

CASES = Path(__file__).parent / "conformance" / "cases"
ROOTS = Path(__file__).parent / "conformance" / "roots.pem"
NAMES = ("good-ecc", "good-rsa", "real-good", "quote-bad-magic", "dsse-signature-flipped",
         "chain-self-signed-ak", "boot-reset", "form-bom", "ak-not-restricted")  # fmt: skip


@pytest.fixture(scope="module")
def trust() -> TrustStore:
    return TrustStore.builtin().with_roots(ROOTS)


def read(name: str) -> bytes:
    return (CASES / name / "certificate.json").read_bytes()


def outcome(data: bytes, trust: TrustStore) -> tuple[str, str]:
    """What the verifier says, in full."""
    try:
        verdict = verify(data, trust=trust, least=Assurance.SIMULATED)
    except Error as error:
        return error.code, json.dumps(error.to_json(), sort_keys=True)
    return "verified", json.dumps(aicert.verify.to_json(verdict), sort_keys=True)


def test_many_threads_get_the_same_results_as_one(trust: TrustStore) -> None:
    certificates = [read(name) for name in NAMES]
    alone = [outcome(data, trust) for data in certificates]
    assert {code for code, _ in alone} >= {"verified", "quote.magic", "dsse.signature"}
    together = threading.Barrier(8)

    def work(thread: int) -> list[tuple[int, tuple[str, str]]]:
        together.wait()
        order = [(index + thread) % len(certificates) for index in range(3 * len(certificates))]
        return [(index, outcome(certificates[index], trust)) for index in order]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for index, got in results:
                assert got == alone[index], NAMES[index]


def test_a_refusal_leaves_nothing_behind_for_the_next_call(trust: TrustStore) -> None:
    good = read("real-good")
    first = outcome(good, trust)
    for case in sorted(CASES.iterdir()):
        path = case / "certificate.json"
        if path.exists():
            outcome(path.read_bytes(), trust)
    assert outcome(good, trust) == first


def test_one_call_trusts_nothing_that_another_was_given(trust: TrustStore) -> None:
    data = read("real-good")
    assert outcome(data, trust)[0] == "verified"
    assert outcome(data, TrustStore.builtin())[0] == "chain.unpinned-root"
    with pytest.raises(Error) as refusal:
        verify(data, trust=trust)
    assert refusal.value.code == "policy.assurance"


@contextmanager
def audited() -> Iterator[list[tuple[str, Any]]]:
    """The audit events of this thread: files opened, sockets, programs."""
    seen: list[tuple[str, Any]] = []
    on, thread = [True], threading.get_ident()
    watched = ("open", "socket.", "subprocess.", "os.", "shutil.", "urllib.", "tempfile.", "import")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if on[0] and threading.get_ident() == thread and event.startswith(watched):
            seen.append((event, arguments[0] if arguments else None))

    sys.addaudithook(hook)  # it cannot be taken away again: it is switched off
    try:
        yield seen
    finally:
        on[0] = False


@pytest.mark.parametrize("name", NAMES)
def test_verifying_opens_no_file_and_no_socket(name: str, trust: TrustStore) -> None:
    data = read(name)
    outcome(data, trust)  # whatever is imported late is imported now
    with audited() as seen:
        outcome(data, trust)
    assert seen == []


def test_the_audit_would_have_seen_it(tmp_path: Path) -> None:
    with audited() as seen:
        with pytest.raises(FileNotFoundError):
            (tmp_path / "x").read_bytes()
    assert seen


def test_only_the_model_is_read(tmp_path: Path, trust: TrustStore) -> None:
    for path, content in {"metrics.json": "{}", "model.safetensors": "weights"}.items():
        (tmp_path / path).write_text(content)
    data = read("real-good")
    verify(data, trust=trust, model=tmp_path, least=Assurance.SIMULATED)
    # Files are hashed in threads, so the hook listens to all of them, in a process of its own.
    done = _python(
        f"""
import sys
from pathlib import Path
from aicert.trust import TrustStore
from aicert.verify import Assurance, verify
trust = TrustStore.builtin().with_roots(Path({str(ROOTS)!r}))
data, model = sys.stdin.buffer.read(), Path({str(tmp_path)!r})
def check(): verify(data, trust=trust, model=model, least=Assurance.SIMULATED)
check()
seen, on = [], True
def hook(event, arguments):
    if on and event.startswith(("open", "socket.", "subprocess.", "os.scandir", "os.remove")):
        seen.append((event, str(arguments[0])))
sys.addaudithook(hook)
check()
on = False
print(sorted(set(seen)))
""",
        data,
    )
    seen = eval(done.stdout)  # the list that the lines above printed
    paths = {path for event, path in seen if not path.isdigit()}
    assert paths == {str(tmp_path), "metrics.json", "model.safetensors"}  # below its descriptor
    assert {event for event, _ in seen} <= {"open", "os.scandir"}


@pytest.mark.parametrize("name", NAMES)
def test_verifying_prints_nothing(
    name: str, trust: TrustStore, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome(read(name), trust)
    assert capfd.readouterr() == ("", "")


def test_a_verdict_cannot_be_changed(trust: TrustStore) -> None:
    verdict = verify(read("real-good"), trust=trust, least=Assurance.SIMULATED)
    with pytest.raises(AttributeError):
        verdict.assurance = Assurance.HARDWARE  # type: ignore[misc]


def test_the_modules_of_the_verifier_hold_no_state() -> None:
    """Nothing at the top of the modules that check is mutable, apart from tables of constants."""
    for module in (aicert.verify, aicert.trust, aicert.tpm2, aicert.x509, aicert.log):
        for name, value in vars(module).items():
            if not name.startswith("__") and isinstance(value, list | set | bytearray):
                pytest.fail(f"{module.__name__}.{name} is a {type(value).__name__}")


HEAVY = ("prefect", "pydantic", "fsspec", "tpm2_pytss", "yaml", "rfc3161_client", "httpx",
         "asyncio", "aicert.agent", "blocks", "tasks", "flows")  # fmt: skip


def test_verifying_on_the_command_line_loads_only_the_verifier() -> None:
    certificate = CASES / "real-good" / "certificate.json"
    done = _python(f"""
import sys
from aicert.cli import main
try:
    main(["verify", {str(certificate)!r}, "--root", {str(ROOTS)!r}, "--allow-simulated"])
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
""")
    assert done.stderr.strip() == b"[]"
    assert b"VERIFIED" in done.stdout


def _python(code: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=data,
        capture_output=True,
        check=False,
        cwd=Path(__file__).parent.parent,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done
