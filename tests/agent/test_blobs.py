"""Azure Blob Storage over the vendor's library, kept against Azurite with TLS and identities."""

import base64
import hashlib
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import (
    BlobServiceClient,
    ContainerSasPermissions,
    generate_container_sas,
)
from click.testing import CliRunner

from aicert.agent import blobs
from aicert.agent.audit import Demands, audit
from aicert.agent.blobs import Blobs
from aicert.agent.store import (
    ConflictError,
    Content,
    DeniedError,
    SourceError,
    Store,
    StoreError,
    StoreUrlError,
    UnreachableError,
    Weight,
)
from aicert.cli import main
from blocks import AzureBlobStore
from tests.agent.fetch import stores as services
from tests.support import tls

pytestmark = pytest.mark.xdist_group("blobs")

CASES = Path(__file__).parents[1] / "conformance"
CERTIFICATE = (CASES / "cases" / "good-ecc" / "certificate.json").read_bytes()
DIGEST = hashlib.sha256(CERTIFICATE).hexdigest()
DATA = random.Random(5).randbytes((9 << 20) + 12345)


class Box(NamedTuple):
    """A container of its own, and Azurite's own view of it."""

    url: str
    key: str
    client: Any

    def store(self, **options: Any) -> Store:
        return Store(self.url, options or {"account_key": self.key})


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    made = tls.loopback(tmp_path_factory.mktemp("tls"))
    trust = {"REQUESTS_CA_BUNDLE": str(made.certificate), "SSL_CERT_FILE": str(made.certificate)}
    with (
        pytest.MonkeyPatch.context() as patch,
        services.azurite(
            "--cert", str(made.certificate), "--key", str(made.key), "--oauth", "basic"
        ) as address,
    ):
        for name, value in trust.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture
def box(endpoint: str) -> Box:
    account, key = services.Azure.account, services.Azure.key
    service = BlobServiceClient(f"{endpoint}/{account}", key)
    client = service.create_container(f"box-{uuid.uuid4()}")
    return Box(f"{endpoint}/{account}/{client.container_name}/models", key, client)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BLOCK", 1 << 20)


class Identity:
    """What azure-identity would find: a token for the service, with a made-up signature."""

    asked: list[str]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.asked = []

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.asked += scopes
        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
            "iat": now,
            "nbf": now - 60,
            "exp": now + 3600,
            "oid": str(uuid.uuid4()),
            "tid": "ab1f708d-50f6-404c-a006-d71b2ac7a606",
        }
        parts = [json.dumps({"alg": "none"}).encode(), json.dumps(claims).encode(), b"x"]
        token = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        return AccessToken(token.decode(), now + 3600)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> list[Identity]:
    made: list[Identity] = []

    def make(**options: Any) -> Identity:
        made.append(Identity(**options))
        return made[-1]

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", make)
    return made


def weight(path: str, data: bytes) -> Weight:
    cut = [data[start : start + 300_001] for start in range(0, len(data), 300_001)]
    return Weight(path, len(data), hashlib.sha256(data).hexdigest(), lambda: iter(cut))


# -- blocks ----------------------------------------------------------------------------------------


def test_large_weights_go_up_in_blocks_several_at_a_time_and_come_back_whole(
    box: Box, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import BlobClient

    lock, meet = threading.Lock(), threading.Barrier(2, timeout=240)
    sent: list[tuple[str, int]] = []
    stage = BlobClient.stage_block

    def watched(self: Any, name: str, data: bytes, length: int, **options: Any) -> Any:
        with lock:
            sent.append((name, length))
            number = len(sent)
        if number <= 2:
            meet.wait()  # the second must begin before the first has ended
        assert options["validate_content"] is True
        return stage(self, name, data, length, **options)

    monkeypatch.setattr(BlobClient, "stage_block", watched)
    events: list[dict[str, object]] = []
    store = box.store()
    store.publish(CERTIFICATE, weights=[weight("a.bin", DATA)], on_event=events.append)
    assert [length for _, length in sorted(sent)] == [1 << 20] * 9 + [12345]
    assert store.read_file(DIGEST, "weights/a.bin") == DATA
    done = [event["done"] for event in events]
    assert done == sorted(done, key=int) and len(done) > 9  # type: ignore[arg-type]
    assert done[-1] == len(DATA)


def test_a_blob_of_any_size_fits_into_the_blocks_that_one_may_have() -> None:
    for size in (1, 8 << 20, 50_000 * (8 << 20), 50_000 * (8 << 20) + 1, 190 << 40):
        block = blobs._block_size(size)
        assert block % (1 << 20) == 0 and -(-size // block) <= 50_000


def test_weights_that_are_not_what_was_announced_are_never_committed(
    box: Box, small_blocks: None
) -> None:
    good = weight("a.bin", DATA)
    for bad in (good._replace(sha256="0" * 64), good._replace(size=len(DATA) - 1)):
        with pytest.raises(SourceError):
            box.store().publish(CERTIFICATE, weights=[bad])
    assert list(box.client.list_blob_names()) == []


def test_blocks_of_two_uploads_to_one_name_do_not_mix(box: Box, small_blocks: None) -> None:
    one, two = (Blobs(box.url, {"account_key": box.key}) for _ in range(2))
    other = bytes(len(DATA))
    content = Content.of(DATA)

    def interrupted() -> Iterator[bytes]:
        yield DATA[: 5 << 20]
        two.create("x", Content.of(other), lambda _: None)
        yield DATA[5 << 20 :]

    one.create("x", Content(content.size, content.sha256, interrupted), lambda _: None)
    assert b"".join(one.chunks("x")) == other  # the first to commit stays, and is whole


def test_a_name_is_taken_by_the_first_alone_however_many_try(box: Box) -> None:
    contents = [Content.of(bytes([number]) * 100) for number in range(16)]
    start = threading.Barrier(len(contents), timeout=240)

    def work(content: Content) -> None:
        backend = Blobs(box.url, {"account_key": box.key})
        start.wait()
        backend.create("x", content, lambda _: None)

    threads = [threading.Thread(target=work, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend = Blobs(box.url, {"account_key": box.key})
    first = b"".join(backend.chunks("x"))
    assert sum(backend.holds("x", content) is True for content in contents) == 1
    backend.create("x", contents[0], lambda _: None)
    assert b"".join(backend.chunks("x")) == first


def test_a_leftover_that_has_changed_meanwhile_is_not_written_over(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Blobs(box.url, {"account_key": box.key})
    backend.create("x", Content.of(b"left"), lambda _: None)
    look = backend._properties

    def overtaken(path: str) -> Any:
        found = look(path)
        box.client.upload_blob("models/x", b"rival", overwrite=True)
        return found

    monkeypatch.setattr(backend, "_properties", overtaken)
    backend.replace("x", Content.of(b"mine"), lambda _: None)
    assert box.client.download_blob("models/x").readall() == b"rival"


def test_a_blob_that_changes_while_it_is_read_is_not_taken_for_one_version(
    box: Box, small_blocks: None
) -> None:
    backend = Blobs(box.url, {"account_key": box.key})
    backend.create("x", Content.of(DATA), lambda _: None)
    chunks = backend.chunks("x")
    next(chunks)
    box.client.upload_blob("models/x", DATA[::-1], overwrite=True)
    with pytest.raises(StoreError):
        list(chunks)


# -- who may ---------------------------------------------------------------------------------------


def test_the_workers_identity_opens_the_store(box: Box, identity: list[Identity]) -> None:
    block = AzureBlobStore(url=box.url, identity="0b1f6471-1bf0-4dda-aec3-111122223333")
    published = block.open().publish(CERTIFICATE)
    assert block.open().digests() == (published.digest,)
    assert identity[0].options == {
        "managed_identity_client_id": "0b1f6471-1bf0-4dda-aec3-111122223333"
    }
    assert identity[0].asked[0] == "https://storage.azure.com/.default"


def test_an_identity_gives_a_machine_an_access_that_the_service_itself_signs_for(
    box: Box, identity: list[Identity]
) -> None:
    # Azurite gives the key, but does not know the form that this version of the library signs.
    _, access = AzureBlobStore(url=box.url).access_for_machine(minutes=30)
    fields = {name: values[0] for name, values in parse_qs(access["sas_token"]).items()}
    assert (fields["sp"], fields["sr"], fields["spr"]) == ("rc", "c", "https")
    assert fields["skoid"] and fields["skv"]
    assert fields["ske"] == fields["se"]
    assert fields["sv"] >= "2026-04-06"  # from here on it may put blocks, too


def test_a_machine_may_create_and_read_for_a_while_and_nothing_else(
    box: Box, small_blocks: None
) -> None:
    block = AzureBlobStore(url=box.url, account_key=box.key)  # type: ignore[arg-type]
    url, access = block.access_for_machine(minutes=5)
    machine = Store(url, access)
    machine.check()
    # More than a block: it goes up whole, for an access that may only create may put no blocks.
    weights = [weight("a.bin", DATA[: 3 << 20])]
    assert machine.publish(CERTIFICATE, weights=weights).new
    assert not machine.publish(CERTIFICATE, weights=weights).new
    with pytest.raises(ConflictError):
        machine.publish(CERTIFICATE, weights=[weight("a.bin", b"x" * (3 << 20))])
    token = access["sas_token"]
    service = BlobServiceClient(box.url.rpartition("/box-")[0], token)
    blob = service.get_blob_client(box.client.container_name, f"models/certificates/{DIGEST}/x")
    name = f"models/certificates/{DIGEST}/certificate.json"
    held = service.get_blob_client(box.client.container_name, name)
    for action in (held.delete_blob, lambda: held.set_blob_metadata({"a": "b"})):
        with pytest.raises(Exception, match="AuthorizationPermissionMismatch"):
            action()
    with pytest.raises(Exception, match="AuthorizationPermissionMismatch"):
        blob.stage_block("0", b"x")
    for refused in (machine.digests, lambda: machine.files(DIGEST)):
        with pytest.raises(DeniedError) as caught:
            refused()
        assert token not in caught.value.diagnostics()
    assert machine.retention() == "not known: this access may not read it"
    assert box.store().read_file(DIGEST, "weights/a.bin") == DATA[: 3 << 20]


def test_an_access_that_has_ended_is_refused(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Blobs(box.url, {"account_key": box.key})
    for lifetime in (timedelta(0), timedelta(hours=25)):
        with pytest.raises(StoreError, match="short-lived"):
            opened.create_only(lifetime)
    token = opened.create_only(timedelta(milliseconds=1))
    time.sleep(1.1)  # the signature's end has whole seconds
    with pytest.raises(DeniedError):
        Store(box.url, {"sas_token": token}).publish(CERTIFICATE)
    with pytest.raises(StoreError, match="cannot be made"):
        Blobs(box.url, {"sas_token": token}).create_only(timedelta(minutes=1))


def test_a_wrong_key_is_denied_and_no_key_is_shown(box: Box) -> None:
    key = base64.b64encode(b"another key").decode()
    for options in ({"account_key": key}, {"anonymous": True}):
        for action in (Store.check, lambda store: store.publish(CERTIFICATE)):
            with pytest.raises(StoreError) as caught:
                action(box.store(**options))
            assert key not in caught.value.diagnostics()
            assert "\n<" not in caught.value.diagnostics()


def test_a_check_finds_an_access_that_may_only_read_before_a_training_and_writes_nothing(
    box: Box,
) -> None:
    def token(**may: bool) -> str:
        return str(
            generate_container_sas(
                services.Azure.account,
                box.client.container_name,
                account_key=box.key,
                permission=ContainerSasPermissions(**may),
                expiry=datetime.now(UTC) + timedelta(minutes=5),
            )
        )

    with pytest.raises(DeniedError):
        Store(box.url, {"sas_token": token(read=True, list=True)}).check()
    for may in ({"read": True, "create": True}, {"read": True, "write": True, "list": True}):
        Store(box.url, {"sas_token": token(**may)}).check()
    box.store().check()
    assert list(box.client.list_blob_names()) == []


def test_where_there_is_no_identity_the_error_says_what_to_do(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nobody:
        def get_token(self, *_: str, **__: Any) -> Any:
            raise ClientAuthenticationError("none was found\nof any kind")

    monkeypatch.setattr("azure.identity.DefaultAzureCredential", Nobody)
    with pytest.raises(DeniedError) as caught:
        Store(box.url).check()
    assert "az login" in (caught.value.advice or "")
    assert caught.value.got == f"{box.url}: none was found"


def test_a_container_that_is_not_there_is_named_and_not_made(box: Box) -> None:
    url = box.url.replace("/box-", "/none-")
    for action in (Store.check, lambda store: store.publish(CERTIFICATE)):
        with pytest.raises(UnreachableError) as caught:
            action(Store(url, {"account_key": box.key}))
        assert "ContainerNotFound" in (caught.value.got or "")
    access = Blobs(url, {"account_key": box.key}).create_only(timedelta(minutes=5))
    with pytest.raises(UnreachableError):
        Store(url, {"sas_token": access}).check()


# -- what the service keeps ------------------------------------------------------------------------


def test_what_the_container_says_of_its_immutability_is_reported(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = AzureBlobStore(url=box.url, account_key=box.key)  # type: ignore[arg-type]
    (check,) = block.check()
    assert check.ok and check.found.endswith("kept by: nothing: who administers the account may "
                                             "delete it")  # fmt: skip
    # Azurite has no such policies: what the service would send is put in its answer.
    store = block.open()
    backend: Any = store._backend
    policies = backend._service._config.logging_policy

    def answer(headers: dict[str, str]) -> str | None:
        send = policies.on_response

        def changed(request: Any, response: Any) -> None:
            response.http_response.headers.update(headers)
            send(request, response)

        with monkeypatch.context() as patch:
            patch.setattr(policies, "on_response", changed)
            return store.retention()

    policy, hold = "x-ms-has-immutability-policy", "x-ms-has-legal-hold"
    assert answer({policy: "true"}) == "an immutability policy (locked or not) on the container"
    assert answer({policy: "true", hold: "true"}) == (
        "an immutability policy (locked or not) and a legal hold on the container"
    )


# -- links -----------------------------------------------------------------------------------------


def verify(url: str, *arguments: str) -> Any:
    roots = ("--root", str(CASES / "roots.pem"), "--allow-simulated")
    return CliRunner().invoke(main, ["verify", url, *roots, *arguments])


def test_a_link_to_a_published_certificate_can_be_verified_as_it_is(box: Box) -> None:
    published = box.store().publish(CERTIFICATE)
    link = f"{published.url}/certificate.json"
    closed = verify(link)
    assert closed.exit_code == 3 and "HTTP status" in closed.stderr
    token = Blobs(box.url, {"account_key": box.key}).create_only(timedelta(minutes=5))
    signed = verify(f"{link}?{token}")
    assert signed.exit_code == 0, signed.stderr
    box.client.set_container_access_policy({}, public_access="blob")
    done = verify(link)
    assert done.exit_code == 0 and done.stdout.startswith("VERIFIED")
    # What a browser is told.
    name = f"models/certificates/{DIGEST}/certificate.json"
    kind = box.client.get_blob_client(name).get_blob_properties().content_settings
    assert kind.content_type == "application/json"


def test_a_store_that_returns_another_certificate_is_refused(box: Box) -> None:
    published = box.store().publish(CERTIFICATE)
    box.client.set_container_access_policy({}, public_access="blob")
    other = (CASES / "cases" / "good-rsa" / "certificate.json").read_bytes()
    box.client.upload_blob(f"models/certificates/{DIGEST}/certificate.json", other, overwrite=True)
    done = verify(f"{published.url}/certificate.json")
    assert done.exit_code == 1
    assert "another certificate than the address names" in done.stderr


# -- the audit -------------------------------------------------------------------------------------


def test_an_audit_reads_the_container_and_finds_what_was_altered(box: Box) -> None:
    box.store().publish(CERTIFICATE, manifests={"outputs": b"{}"})
    rsa = (CASES / "cases" / "good-rsa" / "certificate.json").read_bytes()
    good = box.store().publish(rsa).digest
    demands = Demands(roots=(CASES / "roots.pem",), allow_simulated=True)
    url, options = AzureBlobStore(url=box.url, account_key=box.key).source()  # type: ignore[arg-type]
    found = {item.digest: item.error for item in audit(url, options, demands)}
    assert found.keys() == {DIGEST, good}
    assert found[good] is None
    assert "certified" in str(found[DIGEST])


# -- URLs and options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/certificates",
        "https://account.blob.core.windows.net",
        "https://account.blob.core.windows.net/",
        "https://account.blob.core.windows.net/Upper",
        "https://account.blob.core.windows.net/a--b",
        "https://account.blob.example.org@evil/abc",
        "http://account.blob.core.windows.net/abc",
        "https://account.queue.core.windows.net/abc",
        "https://account.blob.core.windows.net:x/abc",
        "http://127.0.0.1:1/account",
        "https://account.blob.core.windows.net/abc?sig=abcdefgh",
    ],
)
def test_what_is_no_container_is_refused(url: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        Store(url)
    assert "abcdefgh" not in caught.value.diagnostics()
    with pytest.raises(ValueError, match="url"):
        AzureBlobStore(url=url)


def test_a_url_names_account_container_and_folder() -> None:
    place = blobs.locate("https://acc0unt.blob.core.windows.net/certs/team/a%20b/")
    assert place == ("acc0unt", "https://acc0unt.blob.core.windows.net", "certs", "team/a b")
    zone = blobs.locate("https://acc0unt.z12.blob.storage.azure.net/certs")
    assert zone[2:] == ("certs", "") and zone.account == "acc0unt"


@pytest.mark.parametrize(
    "options",
    [
        {"account_key": "a", "sas_token": "b"},
        {"account_key": "a", "identity": "b"},
        {"anonymous": True, "sas_token": "b"},
        {"connection_string": "a"},
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any]) -> None:
    url = "https://account.blob.core.windows.net/abc"
    with pytest.raises(StoreUrlError):
        Store(url, options)
    if "connection_string" not in options:
        with pytest.raises(ValueError, match="exclude each other"):
            AzureBlobStore(url=url, **options)


def test_a_service_that_nobody_serves_is_unreachable(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blobs._RETRY, "retry_total", 0)
    port = os.environ.get("AICERT_NO_PORT", "1")  # nobody serves a privileged port here
    with pytest.raises(UnreachableError) as caught:
        Store(f"http://127.0.0.1:{port}/acc/abc", {"account_key": box.key}).check()
    assert box.key not in caught.value.diagnostics()
