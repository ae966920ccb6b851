"""A store's audit: every entry is looked at, and what is wrong with one is that one's finding."""

import hashlib
import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from aicert import canonical, events
from aicert.agent import audit as module
from aicert.agent.audit import Demands, EmptyStoreError, Finding, audit
from aicert.agent.store import Store, Weight
from aicert.cli import main
from aicert.errors import Error
from aicert.manifest import File, Manifest
from aicert.policy_file import PolicyFileError
from aicert.trust import TrustError
from tests.support.forger import Forger, run_events

FILES = {"metrics.json": b"{}", "model.safetensors": b"weights"}


def make(forger: Forger, number: int) -> bytes:
    """Return a certificate that differs from those of other numbers."""
    forger.events = [
        replace(event, run=str(uuid.UUID(int=number))) if isinstance(event, events.Job) else event
        for event in run_events()
    ]
    return forger.certificate().encode()


def put(store: Path, certificate: bytes, files: dict[str, bytes] | None = None) -> Path:
    """Publish a certificate and its weights; return the entry's folder, which may be written to."""
    weights = [
        Weight(
            path,
            len(content),
            hashlib.sha256(content).hexdigest(),
            partial(lambda c: iter([c]), content),
        )
        for path, content in (FILES if files is None else files).items()
    ]
    tree = Manifest.of(
        [File(path, len(body), hashlib.sha256(body).hexdigest()) for path, body in FILES.items()]
    )
    published = Store(str(store)).publish(
        certificate,
        manifests={"outputs": canonical.dumps(tree.to_json())},
        card=b"# card\n",
        weights=weights,
    )
    entry = store / "certificates" / published.digest
    for path in (entry, *entry.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return entry


@pytest.fixture(scope="module")
def forger() -> Forger:
    return Forger()


@pytest.fixture
def demands(forger: Forger, tmp_path: Path) -> Demands:
    root = tmp_path / "root.pem"
    root.write_bytes(forger.authority.root.public_bytes(Encoding.PEM))
    return Demands(roots=(root,), allow_simulated=True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def one(store: Path, demands: Demands, **options: object) -> Finding:
    (found,) = audit(str(store), None, demands, **options)  # type: ignore[arg-type]
    return found


def code_of(finding: Finding) -> str:
    assert finding.error is not None, finding
    return finding.error.code


def test_a_good_entry_is_told_with_what_it_certifies(
    forger: Forger, demands: Demands, store: Path
) -> None:
    entry = put(store, make(forger, 1))
    found = one(store, demands)
    assert found.error is None
    assert (found.digest, found.name, found.assurance) == (entry.name, "digits", "simulated")
    assert found.weights == 2 and found.finished_on is not None


def test_an_entry_without_weights_is_good_and_says_so(
    forger: Forger, demands: Demands, store: Path
) -> None:
    put(store, make(forger, 1), {})
    found = one(store, demands)
    assert found.error is None and found.weights is None


@pytest.mark.parametrize(
    ("path", "content", "code"),
    [
        ("weights/model.safetensors", b"WEIGHTS", "files.altered"),
        ("weights/model.safetensors", b"weights and more", "store.corrupt"),
        ("weights/model.safetensors", None, "files.missing"),
        ("weights/other.bin", b"", "files.extra"),
        ("manifests/outputs.json", b"{}", "files.altered"),
        ("certificate.json", b"{}", "store.corrupt"),
    ],
)
def test_what_was_changed_in_the_store_is_found(
    forger: Forger, demands: Demands, store: Path, path: str, content: bytes | None, code: str
) -> None:
    entry = put(store, make(forger, 1))
    if content is None:
        (entry / path).unlink()
    else:
        (entry / path).write_bytes(content)
    assert code_of(one(store, demands)) == code


def test_weights_may_be_left_out_and_are_then_not_read(
    forger: Forger, demands: Demands, store: Path
) -> None:
    entry = put(store, make(forger, 1))
    (entry / "weights" / "model.safetensors").write_bytes(b"WEIGHTS")
    assert one(store, demands, weights=False).error is None


def test_a_stranger_s_certificate_and_one_bad_entry_do_not_stop_the_others(
    forger: Forger, demands: Demands, store: Path
) -> None:
    good = put(store, make(forger, 1)).name
    stranger = put(store, make(Forger(), 2)).name
    garbage = put(store, b"{}").name
    found = {item.digest: item for item in audit(str(store), None, demands)}
    assert list(found) == sorted([good, stranger, garbage])
    assert found[good].error is None
    assert code_of(found[stranger]).startswith("chain.")
    assert code_of(found[garbage]).startswith("certificate.")


def test_simulated_certificates_are_refused_unless_they_are_asked_for(
    forger: Forger, demands: Demands, store: Path
) -> None:
    put(store, make(forger, 1))
    assert code_of(one(store, replace(demands, allow_simulated=False))) == "policy.assurance"


def test_a_large_store_is_shared_among_processes_with_one_finding_an_entry(
    forger: Forger, demands: Demands, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ALONE", 3)
    monkeypatch.setattr(module, "_BATCH", 2)
    entries = [put(store, make(forger, number)) for number in range(1, 8)]
    (entries[4] / "weights" / "model.safetensors").write_bytes(b"WEIGHTS")
    told: list[tuple[int, int]] = []
    found = audit(str(store), None, demands, jobs=2, on_progress=lambda *done: told.append(done))
    assert [item.digest for item in found] == sorted(entry.name for entry in entries)
    assert [item.digest for item in found if item.error] == [entries[4].name]
    assert told == [(2, 7), (4, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("made", [True, False])
def test_a_store_of_nothing_does_not_pass_for_a_good_one(
    demands: Demands, store: Path, made: bool
) -> None:
    if made:
        store.mkdir()
    with pytest.raises(EmptyStoreError, match="holds no certificate"):
        audit(str(store), None, demands)


@pytest.fixture
def mistakes(tmp_path: Path) -> Iterator[dict[str, tuple[Demands, type[Error]]]]:
    bad = tmp_path / "bad.yaml"
    bad.write_text("nonsense: 1\n")
    yield {
        "root": (Demands(roots=(tmp_path / "none.pem",)), TrustError),
        "policy": (Demands(policies=(bad,)), PolicyFileError),
    }


@pytest.mark.parametrize("which", ["root", "policy"])
def test_mistakes_in_the_demands_are_the_caller_s(
    mistakes: dict[str, tuple[Demands, type[Error]]], which: str, store: Path
) -> None:
    demands, expected = mistakes[which]
    store.mkdir()
    with pytest.raises(expected):
        audit(str(store), None, demands)


def run(store: Path, demands: Demands, *options: str) -> Result:
    arguments = ["audit", str(store), "--root", str(demands.roots[0]), "--allow-simulated"]
    return CliRunner().invoke(main, [*arguments, *options])


def test_the_command_says_what_it_found_and_fails_where_one_is_refused(
    forger: Forger, demands: Demands, store: Path
) -> None:
    good, bad = put(store, make(forger, 1)), put(store, make(forger, 2))
    done = run(store, demands)
    assert (done.exit_code, done.stdout) == (0, f"VERIFIED  2 of 2 in {store}\n")
    (bad / "weights" / "model.safetensors").write_bytes(b"WEIGHTS")
    done = run(store, demands)
    assert (done.exit_code, done.stdout) == (1, f"REFUSED  1 of 2 in {store}\n")
    assert done.stderr.startswith(f"REFUSED  sha256:{bad.name}\n")
    assert "[files.altered]" in done.stderr and good.name not in done.stderr
    assert run(store, demands, "--no-weights").exit_code == 0
    told = json.loads(run(store, demands, "--json").stdout)
    assert told["verdict"] == "refused"
    codes = {
        item["sha256"]: item["error"] and item["error"]["code"] for item in told["certificates"]
    }
    assert codes == {good.name: None, bad.name: "files.altered"}


def test_the_command_cannot_check_what_is_not_there(demands: Demands, store: Path) -> None:
    done = run(store, demands)
    assert done.exit_code == 3 and "[store.empty]" in done.stderr


def test_a_file_that_vanishes_meanwhile_is_that_entry_s_finding(
    forger: Forger, demands: Demands, store: Path
) -> None:
    entry = put(store, make(forger, 1))
    loaded = demands.load()
    opened = Store(str(store))
    shutil.rmtree(entry)
    assert code_of(module.check(opened, entry.name, loaded)) == "store.not-found"


INTERRUPTED = """
import signal, sys, time
from aicert.agent import audit

def hang(digests):  # as a store does that does not answer
    time.sleep(300)

def stop(*_):
    raise TimeoutError("it is enough")

audit._work, audit._ALONE = hang, 0
if __name__ == "__main__":
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(3)
    audit.audit(sys.argv[1], None, audit.Demands())
"""


def test_an_audit_that_is_interrupted_ends_though_its_store_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(INTERRUPTED)
    Store(str(tmp_path / "store")).publish(b"{}")
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "TimeoutError: it is enough" in done.stderr
