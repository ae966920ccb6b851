"""The store: each name written once, a certificate last, and nothing half-published."""

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from aicert.agent import store as module
from aicert.agent.store import (
    ConflictError,
    CorruptError,
    FullError,
    MissingDriverError,
    NotPublishedError,
    SourceError,
    Store,
    StoreUrlError,
    UnreachableError,
    Weight,
)
from aicert.errors import Error
from tests.agent.fetch import stores as services
from tests.support.ports import free_port

# One worker runs them all, so that each service is started once.
pytestmark = pytest.mark.xdist_group("stores")

CERTIFICATE = b'{"a":"certificate"}'
DIGEST = hashlib.sha256(CERTIFICATE).hexdigest()
MANIFESTS = {"code": b'{"files":[]}', "outputs": b"{}"}
CARD = b"# A card\n"


def weight(path: str, data: bytes) -> Weight:
    return Weight(path, len(data), hashlib.sha256(data).hexdigest(), lambda: iter([data]))


WEIGHTS = [weight("model/a.bin", b"weights" * 1000), weight("empty", b"")]


def publish(store: Store, **changes: Any) -> module.Published:
    arguments: dict[str, Any] = {"manifests": MANIFESTS, "card": CARD, "weights": WEIGHTS}
    return store.publish(CERTIFICATE, **{**arguments, **changes})


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=["folder", "memory", "s3", "azure", "blobs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield Store(str(tmp_path / "deep" / "store"))
    elif request.param == "memory":
        yield Store(f"memory://{tmp_path.name}-{os.getpid()}")
        fsspec.filesystem("memory").store.clear()
    else:
        yield request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with services.moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def azure_endpoint() -> Iterator[str]:
    with services.azurite() as endpoint:
        yield endpoint


@pytest.fixture
def azure(azure_endpoint: str) -> Store:
    box = services.Azure(azure_endpoint, f"box-{uuid.uuid4()}")
    options: Any = box.secrets["storage_options"]
    return Store(f"az://{box.bucket}/models", options)


@pytest.fixture
def blobs(azure_endpoint: str) -> Store:
    box = services.Azure(azure_endpoint, f"box-{uuid.uuid4()}")
    return Store(f"{azure_endpoint}/{box.account}/{box.bucket}/models", {"account_key": box.key})


S3_OPTIONS = {"key": "AKIATESTKEYTESTKEY12", "secret": "very-secret-secret"}


@pytest.fixture
def s3(s3_endpoint: str) -> Store:
    options = {**S3_OPTIONS, "endpoint_url": s3_endpoint}
    bucket = f"bucket-{uuid.uuid4()}"
    fsspec.filesystem("s3", **options).mkdir(bucket)
    return Store(f"s3://{bucket}/models", options)


# -- publishing ----------------------------------------------------------------------------------


def test_an_entry_holds_what_was_published_under_the_digest_of_its_certificate(
    store: Store,
) -> None:
    store.check()
    assert store.digests() == ()
    published = publish(store, views={"bom.json": b"{}"})
    assert published == module.Published(
        url=f"{store.url}/certificates/{DIGEST}", digest=DIGEST, write_once="enforced", new=True
    )
    assert store.digests() == (DIGEST,)
    assert store.read(DIGEST) == CERTIFICATE
    assert store.files(DIGEST) == (
        "bom.json",
        "card.md",
        "certificate.json",
        "manifests/code.json",
        "manifests/outputs.json",
        "weights/empty",
        "weights/model/a.bin",
    )
    assert store.read_file(DIGEST, "card.md") == CARD
    assert store.read_file(DIGEST, "manifests/code.json") == MANIFESTS["code"]
    assert store.read_file(DIGEST, "weights/model/a.bin") == b"weights" * 1000
    assert store.read_file(DIGEST, "weights/empty") == b""
    store.check()


def test_publishing_the_same_again_changes_nothing(store: Store) -> None:
    publish(store)
    again = publish(store)
    assert (again.new, again.digest) == (False, DIGEST)
    assert store.digests() == (DIGEST,)


def test_publishing_again_adds_what_was_left_out(store: Store) -> None:
    publish(store, weights=[])
    assert not publish(store).new
    assert store.read_file(DIGEST, "weights/model/a.bin") == b"weights" * 1000


@pytest.mark.parametrize(
    "change",
    [
        {"card": b"# Another\n"},
        {"manifests": {"code": b"[]"}},
        {"weights": [weight("model/a.bin", b"other")]},
        {"weights": [weight("model/a.bin", b"WEIGHTS" * 1000)]},
    ],
    ids=["card", "manifest", "weights", "weights-of-the-same-size"],
)
def test_different_content_under_a_published_name_is_a_conflict(
    store: Store, change: dict[str, Any]
) -> None:
    publish(store)
    with pytest.raises(ConflictError) as caught:
        publish(store, **change)
    assert caught.value.code == "store.conflict"
    assert caught.value.advice
    assert store.read_file(DIGEST, "card.md") == CARD
    assert store.read_file(DIGEST, "weights/model/a.bin") == b"weights" * 1000


def test_two_certificates_stand_side_by_side(store: Store) -> None:
    publish(store)
    other = store.publish(b"{}")
    assert set(store.digests()) == {DIGEST, other.digest}
    assert store.files(other.digest) == ("certificate.json",)


def test_the_certificate_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    create = type(store._backend).create

    def watched(self: Any, path: str, content: Any, progress: Any) -> None:
        names.append(path.split("/", 2)[2])
        assert not self.exists(f"certificates/{DIGEST}/certificate.json")
        create(self, path, content, progress)

    monkeypatch.setattr(type(store._backend), "create", watched)
    publish(store)
    assert len(names) == 6
    assert names[-1] == "certificate.json"


def test_progress_is_told_in_bytes(store: Store) -> None:
    events: list[dict[str, object]] = []
    publish(store, on_event=events.append)
    total = len(CARD) + sum(map(len, MANIFESTS.values())) + 7000
    assert events[-1] == {
        "type": "progress",
        "what": "publish",
        "done": total,
        "total": total,
        "unit": "bytes",
    }


def test_what_a_weight_yields_must_be_what_was_announced(store: Store) -> None:
    good = weight("w", b"abc")
    for bad in (
        good._replace(size=2),
        good._replace(size=4),
        good._replace(sha256="0" * 64),
        good._replace(open=lambda: iter([b"abc", b"d" * 100])),
    ):
        with pytest.raises(SourceError) as caught:
            publish(store, weights=[bad])
        assert caught.value.code == "store.source"
        assert store.digests() == ()
    publish(store, weights=[good])
    assert store.read_file(DIGEST, "weights/w") == b"abc"


def test_an_error_of_a_source_is_told_as_it_is(store: Store) -> None:
    class AgentGoneError(Error):
        code = "agent.lost"

    def gone() -> Iterator[bytes]:
        yield b"a"
        raise AgentGoneError("the agent is gone")

    def broken() -> Iterator[bytes]:
        yield b"a"
        raise OSError("disk")

    with pytest.raises(AgentGoneError):
        publish(store, weights=[Weight("w", 3, "0" * 64, gone)])
    with pytest.raises(SourceError):
        publish(store, weights=[Weight("w", 3, "0" * 64, broken)])
    assert store.digests() == ()
    assert publish(store).new


@pytest.mark.parametrize(
    "arguments",
    [
        {"manifests": {"../x": b""}},
        {"views": {"/etc/x": b""}},
        {"views": {"certificate.json": b""}},
        {"views": {"weights/x": b""}},
        {"views": {"Card.md": b""}},
        {"weights": [weight("../../x", b"")]},
        {"weights": [weight("a", b""), weight("A", b"")]},
        {"weights": [weight("a", b""), weight("a/b", b"")]},
    ],
    ids=["up", "absolute", "certificate", "weights", "case", "up-weight", "two-cases", "nested"],
)
def test_a_name_that_is_taken_or_leads_elsewhere_is_refused(
    store: Store, arguments: dict[str, Any]
) -> None:
    with pytest.raises(SourceError):
        publish(store, **arguments)
    assert store.digests() == ()


# -- reading -------------------------------------------------------------------------------------


def test_what_is_not_published_is_not_found(store: Store) -> None:
    for action in (
        lambda: store.read(DIGEST),
        lambda: store.files(DIGEST),
        lambda: store.read_file(DIGEST, "card.md"),
        lambda: store.read("../x"),
        lambda: store.read(DIGEST.upper()),
    ):
        with pytest.raises(NotPublishedError) as caught:
            action()
        assert caught.value.code == "store.not-found"
    publish(store)
    with pytest.raises(NotPublishedError):
        store.read_file(DIGEST, "none")
    with pytest.raises(Error):
        store.read_file(DIGEST, "../../x")


def test_a_file_that_is_larger_than_asked_for_is_refused(store: Store) -> None:
    publish(store)
    with pytest.raises(CorruptError, match="too large"):
        store.read_file(DIGEST, "weights/model/a.bin", max_bytes=6999)
    assert len(store.read_file(DIGEST, "weights/model/a.bin", max_bytes=7000)) == 7000


def test_an_altered_certificate_is_found_when_it_is_read_and_when_it_is_published_again(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    publish(store)
    path = tmp_path / "certificates" / DIGEST / "certificate.json"
    path.chmod(0o644)
    path.write_bytes(b"{}")
    for action in (lambda: store.read(DIGEST), lambda: publish(store)):
        with pytest.raises(CorruptError) as caught:
            action()
        assert caught.value.code == "store.corrupt"
    assert path.read_bytes() == b"{}"


def test_an_entry_without_a_certificate_does_not_look_published(store: Store) -> None:
    def crash() -> Iterator[bytes]:
        raise KeyboardInterrupt
        yield b""

    with pytest.raises(KeyboardInterrupt):
        publish(store, weights=[*WEIGHTS, Weight("z", 1, "0" * 64, crash)])
    assert store.digests() == ()
    with pytest.raises(NotPublishedError):
        store.read_file(DIGEST, "card.md")
    # The next attempt takes over, also with another card: nobody has seen the first one.
    assert publish(store, card=b"# Other\n").new
    assert store.read_file(DIGEST, "card.md") == b"# Other\n"


# -- a folder ------------------------------------------------------------------------------------


def test_published_files_cannot_be_written_to_by_accident(tmp_path: Path) -> None:
    publish(Store(str(tmp_path)))
    for path in (tmp_path / "certificates" / DIGEST).rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0


def test_leftovers_of_a_killed_publisher_are_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.publish(b"first")
    staging = tmp_path / ".staging"
    for name in (f"{DIGEST}.0", f"{DIGEST}.lock", f"{'0' * 64}.0", f"{'0' * 64}.lock", "junk"):
        (staging / name).write_bytes(b"left")
    entry = tmp_path / "certificates" / DIGEST
    (entry / "weights").mkdir(parents=True)
    (entry / "weights" / "old").write_bytes(b"left")
    (entry / "card.md").write_bytes(b"left")
    publish(store)
    assert list(staging.iterdir()) == []
    assert "weights/old" not in store.files(DIGEST)
    assert store.read_file(DIGEST, "card.md") == CARD


def test_a_link_in_the_store_is_never_followed_nor_replaced(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(CARD)
    root = tmp_path / "store"
    store = Store(str(root))
    publish(store, card=None)
    (root / "certificates" / DIGEST / "card.md").symlink_to(outside)
    with pytest.raises(ConflictError):
        publish(store)
    with pytest.raises(UnreachableError):
        store.read_file(DIGEST, "card.md")
    assert outside.read_bytes() == CARD


def test_a_file_system_without_links_is_used_and_said_to_be_only_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    assert publish(store).write_once == "checked"
    assert not publish(store).new
    with pytest.raises(ConflictError):
        publish(store, card=b"other")


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FullError) as caught:
        publish(Store(str(tmp_path)))
    assert caught.value.code == "store.full"


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for action in (Store.check, publish):
        with pytest.raises(UnreachableError) as caught:
            action(Store(str(tmp_path / "file")))
        assert "not a folder" in (caught.value.got or "")
        assert caught.value.advice


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process without root's rights")
def test_a_place_that_may_not_be_written_to_is_denied(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from aicert.agent import store\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = store.Store(sys.argv[1])\n"
        "for action in (s.check, lambda: s.publish(b'{}')):\n"
        "    try: action()\n"
        "    except store.DeniedError as error: print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "/place-of-root"],
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.split() == ["store.denied"] * 2


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


# -- many at once, and kills ---------------------------------------------------------------------

PUBLISHER = """
import hashlib, json, random, sys, time
from aicert.agent.store import Store, Weight

url, options, seed, count, delay = json.loads(sys.argv[1])

def slow(data):
    for start in range(0, len(data), 1000):
        time.sleep(delay)
        yield data[start:start + 1000]

weights = []
for number in range(count):
    data = random.Random(number).randbytes(5000)
    weights.append(Weight(f"w{number}.bin", len(data), hashlib.sha256(data).hexdigest(),
                          lambda data=data: slow(data)))
store = Store(url, options)
print("ready", flush=True)
sys.stdin.readline()
published = store.publish(b"the certificate %d" % seed, manifests={"a": b"manifest"},
                          card=b"card", weights=weights)
print(json.dumps([published.digest, published.new]), flush=True)
"""


def start(url: str, options: dict[str, Any], *, count: int, delay: float = 0) -> Any:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, json.dumps([url, options, 0, count, delay])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def race(url: str, options: dict[str, Any], processes: int) -> list[tuple[str, bool]]:
    children = [start(url, options, count=5) for _ in range(processes)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    results = []
    for child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        results.append(tuple(json.loads(output)))
    return results


def test_twenty_processes_that_publish_one_entry_all_succeed_with_one_result(
    tmp_path: Path,
) -> None:
    results = race(str(tmp_path / "store"), {}, 20)
    assert len({digest for digest, _ in results}) == 1
    assert sum(new for _, new in results) == 1
    store = Store(str(tmp_path / "store"))
    (digest,) = store.digests()
    assert len(store.files(digest)) == 8
    assert list((tmp_path / "store" / ".staging").iterdir()) == []


def test_processes_that_publish_one_entry_to_an_object_store_all_succeed(
    s3: Store, s3_endpoint: str
) -> None:
    results = race(s3.url, {**S3_OPTIONS, "endpoint_url": s3_endpoint}, 6)
    assert {digest for digest, _ in results} == set(s3.digests())
    assert any(new for _, new in results)


def _complete(store: Store) -> None:
    """Assert that whatever looks published is whole."""
    for digest in store.digests():
        assert hashlib.sha256(store.read(digest)).hexdigest() == digest
        assert len(store.files(digest)) == 3 + 10
        assert store.read_file(digest, "card.md") == b"card"
        for number in range(10):
            expected = random.Random(number).randbytes(5000)
            assert store.read_file(digest, f"weights/w{number}.bin") == expected


def test_a_publisher_that_is_killed_leaves_nothing_half_published(tmp_path: Path) -> None:
    attempts, kills = 0, 0
    chance = random.Random(7)
    # On a busy machine some are done before they can be killed: others are then.
    while attempts < 12 or kills < 6:
        assert attempts < 60, "the publishers were too quick to be killed: this tests nothing"
        attempts += 1
        root = tmp_path / str(attempts)
        store = Store(str(root))
        for _ in range(2):
            child = start(str(root), {}, count=10, delay=0.001)
            assert child.stdout.readline() == "ready\n"
            child.stdin.write("go\n")
            child.stdin.flush()
            deadline = time.monotonic() + chance.uniform(0, 0.12)
            while time.monotonic() < deadline:
                _complete(store)
            child.send_signal(signal.SIGKILL)
            output, _ = child.communicate()
            kills += not output
            _complete(store)
        child = start(str(root), {}, count=10)
        output, _ = child.communicate("go\n", timeout=300)
        assert child.returncode == 0
        _complete(store)
        assert len(store.digests()) == 1
        assert list((root / ".staging").iterdir()) == []
        assert {stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*.bin")} == {0o444}


def test_a_publisher_waits_for_another_one_of_the_same_entry(tmp_path: Path) -> None:
    first = start(str(tmp_path), {}, count=10, delay=0.02)
    second = start(str(tmp_path), {}, count=10)
    for process in (first, second):
        assert process.stdout.readline() == "ready\n"
    first.stdin.write("go\n")
    first.stdin.flush()
    # The lock's file is there a moment before the lock is: what is staged beside it lies under it.
    while {p.suffix for p in tmp_path.glob(".staging/*")} <= {".lock"} and first.poll() is None:
        time.sleep(0.001)
    output, _ = second.communicate("go\n", timeout=300)
    assert json.loads(output)[1] is False
    assert json.loads(first.communicate()[0])[1] is True


# -- object stores -------------------------------------------------------------------------------


def test_an_object_store_refuses_to_create_a_name_twice(s3: Store) -> None:
    backend = s3._backend
    content = module.Content.of(b"one")
    backend.create("certificates/x/card.md", content, lambda _: None)
    backend.create("certificates/x/card.md", module.Content.of(b"two"), lambda _: None)
    assert backend.holds("certificates/x/card.md", content) is True


def test_a_rival_who_wins_the_race_for_a_view_is_reported(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = type(s3._backend).create

    def overtaken(self: Any, path: str, content: Any, progress: Any) -> None:
        if path.endswith("card.md"):
            create(self, path, module.Content.of(b"# Rival\n"), lambda _: None)
        create(self, path, content, progress)

    monkeypatch.setattr(type(s3._backend), "create", overtaken)
    with pytest.raises(ConflictError):
        publish(s3)
    assert s3.digests() == ()


def test_a_store_that_returns_other_bytes_is_found_out(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3._backend._fs, "cat_file", lambda *a, **k: b"x" * 9)  # type: ignore[attr-defined]
    with pytest.raises(ConflictError):
        publish(s3, weights=[], manifests={})
    assert s3.digests() == ()


def test_a_store_that_loses_what_was_written_is_found_out(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3._backend._fs, "put_file", lambda *a, **k: None)  # type: ignore[attr-defined]
    with pytest.raises(CorruptError):
        publish(s3)


def test_a_bucket_that_is_not_there_is_named_and_not_made(s3_endpoint: str) -> None:
    options = {**S3_OPTIONS, "endpoint_url": s3_endpoint}
    store = Store("s3://no-such-bucket/x", options)
    for action in (store.check, lambda: publish(store)):
        with pytest.raises(UnreachableError) as caught:
            action()
        assert caught.value.code == "store.unreachable"
    assert not fsspec.filesystem("s3", **options).exists("no-such-bucket")


def test_an_object_store_that_nobody_serves_is_unreachable_and_secrets_stay_secret() -> None:
    options = {
        **S3_OPTIONS,
        "endpoint_url": f"http://127.0.0.1:{free_port()}",
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1},
    }
    store = Store("s3://bucket/x", options)
    with pytest.raises(UnreachableError) as caught:
        store.check()
    text = caught.value.diagnostics() + repr(caught.value) + repr(store) + repr(vars(caught.value))
    assert S3_OPTIONS["secret"] not in text
    assert S3_OPTIONS["key"] not in text
    assert caught.value.__cause__ is None


def test_a_driver_without_conditional_writes_is_said_to_be_only_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONDITIONAL", frozenset())
    store = Store(f"memory://{tmp_path.name}-checked")
    assert publish(store).write_once == store.write_once == "checked"
    assert not publish(store).new
    with pytest.raises(ConflictError):
        publish(store, card=b"other")


# -- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "s3://user@bucket/x",
        "abfss://box:pw@account.example/x",
        "az://box/x?sig=abcdef",
        "s3://bucket/x?token=a",
        "s3://bucket/x#y",
        "simplecache::s3://bucket/x",
        "",
        "s3://",
        "nosuchscheme://x",
    ],
)
def test_a_url_with_a_secret_or_without_sense_is_refused(url: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        Store(url)
    assert "secret" not in caught.value.diagnostics().replace("secrets", "")
    assert "abcdef" not in caught.value.diagnostics()


def test_a_missing_driver_is_named_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise ImportError("no module named s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingDriverError) as caught:
        Store("s3://bucket/x")
    assert "'.[s3]'" in (caught.value.advice or "")


def test_a_store_is_the_same_by_path_and_by_url(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    one = Store(str(folder))
    two = Store(one.url)
    assert one.url == two.url == folder.as_uri()
    publish(one)
    assert two.digests() == (DIGEST,)
    assert repr(one) == f"Store({one.url!r})"


def test_what_was_not_there_is_seen_once_it_is_published(store: Store) -> None:
    assert store.digests() == ()
    with pytest.raises(NotPublishedError):
        store.read(DIGEST)
    publish(store)
    assert store.digests() == (DIGEST,)
    assert store.read(DIGEST) == CERTIFICATE
