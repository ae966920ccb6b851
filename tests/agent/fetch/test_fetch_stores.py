"""Promises about inputs from object stores, kept against moto, Azurite and a Google emulator."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aicert.agent.fetch import InputRequest, errors, resolve
from tests.agent.fetch import stores
from tests.agent.fetch.conftest import QUICK, Bring, content, noise
from tests.agent.fetch.stores import S3, Azure, Google, Store
from tests.agent.fetch.web import Handler, Page, Web

DATA = noise(400_000)
_number = itertools.count()

KINDS = {
    "s3": (S3, stores.moto),
    "azure": (Azure, stores.azurite),
    "google": (Google, stores.google),
}

pytestmark = [
    pytest.mark.usefixtures("small_blocks"),
    # One worker runs them all, so that each service is started once.
    pytest.mark.xdist_group("stores"),
]


@pytest.fixture(scope="module")
def endpoints() -> Iterator[Callable[[str], str]]:
    """Start a service when it is first needed."""
    from contextlib import ExitStack

    running: dict[str, str] = {}
    with ExitStack() as stack:

        def endpoint(kind: str) -> str:
            if kind not in running:
                running[kind] = stack.enter_context(KINDS[kind][1]())
            return running[kind]

        yield endpoint


Make = Callable[[str], Any]


@pytest.fixture
def make(endpoints: Callable[[str], str]) -> Make:
    def call(kind: str) -> Store:
        return KINDS[kind][0](endpoints(kind), f"bucket-{os.getpid()}-{next(_number)}")

    return call


@pytest.fixture(params=list(KINDS))
def store(request: pytest.FixtureRequest, make: Make) -> Store:
    got: Store = make(request.param)
    return got


def test_one_object_comes_as_a_file(store: Store, bring: Bring) -> None:
    store.put("dir/data.bin", DATA)
    got = bring(store.uri("dir/data.bin"), secrets=store.secrets)
    assert content(got.path) == {"data.bin": DATA}
    assert got.sha256 == hashlib.sha256(DATA).hexdigest()
    assert got.resolved.kind == "file" and got.resolved.revision
    assert got.resolved.uri.startswith(f"{store.home}dir/data.bin{store.query}")
    assert got.resolved.requested == store.uri("dir/data.bin")


@pytest.mark.parametrize("prefix", ["dir", "dir/"])
def test_a_prefix_comes_as_a_tree_and_its_neighbours_do_not(
    store: Store, bring: Bring, prefix: str
) -> None:
    files = {"a.bin": DATA, "deep/b": b"b", "deep/er/c": b"", "d é+%20.txt": b"d"}
    for name, data in files.items():
        store.put(f"dir/{name}", data)
    store.put("dir2/x", b"x")
    store.put("dirx", b"x")
    got = bring(store.uri(prefix), secrets=store.secrets)
    assert content(got.path) == files
    assert got.resolved.uri == f"{store.home}dir/{store.query}"
    assert got.resolved.kind == "tree"
    assert {file.path for file in got.resolved.files} == files.keys()
    assert all(file.etag for file in got.resolved.files)


def test_a_whole_bucket_can_be_named(store: Store, bring: Bring) -> None:
    store.put("a", b"a")
    store.put("b/c", b"c")
    assert content(bring(store.uri(""), secrets=store.secrets).path) == {"a": b"a", "b/c": b"c"}


def test_the_revision_of_a_listing_moves_with_any_object(store: Store, tmp_path: Path) -> None:
    def revision() -> str | None:
        request = InputRequest("it", store.uri("d/"))
        return resolve(request, base=None, secrets=store.secrets, retry=QUICK).revision

    store.put("d/a", b"a")
    store.put("d/b", b"b")
    first = revision()
    assert first is not None and first.startswith("sha256:")
    assert revision() == first
    store.put("d/b", b"c")
    assert revision() != first


def test_an_object_that_is_not_there_says_so(store: Store, bring: Bring) -> None:
    store.put("a", b"a")
    for key in ("nothing", "nothing/"):
        with pytest.raises(errors.NotFoundError):
            bring(store.uri(key), secrets=store.secrets)


def test_a_bucket_that_is_not_there_says_so(store: Store, bring: Bring) -> None:
    with pytest.raises(errors.FetchError) as caught:
        bring(f"{store.scheme}://no-such-bucket-at-all/x", secrets=store.secrets)
    assert caught.value.code in ("fetch.not-found", "fetch.denied")


def test_the_folder_marks_of_consoles_are_no_files(store: Store, bring: Bring) -> None:
    store.put("dir/a", b"a")
    store.put("dir/", b"")
    assert content(bring(store.uri("dir/"), secrets=store.secrets).path) == {"a": b"a"}


def test_a_key_that_leads_elsewhere_is_refused(make: Make, bring: Bring, tmp_path: Path) -> None:
    store = make("s3")
    store.put("dir/a\\..\\..\\evil", b"x")
    with pytest.raises(errors.PathError):
        bring(store.uri("dir/"), secrets=store.secrets)
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_an_object_that_is_written_anew_midway_is_refused(
    make: Make, bring: Bring, kind: str, tmp_path: Path
) -> None:
    store = make(kind)
    store.put("a", DATA)
    store.put("b", b"b")

    def overwrite(event: dict[str, object]) -> None:
        store.put("d", b"")  # the emulators' tags have a grain in time
        store.put("a", noise(len(DATA), 2))

    with pytest.raises(errors.ChangedError):
        bring(store.uri(""), secrets=store.secrets, on_event=_once(overwrite), jobs=1)
    assert not (tmp_path / "into").exists()


def _many(store: Store) -> dict[str, bytes]:
    files = {f"{number:03}": f"content {number}".encode() for number in range(100)}
    for name, data in files.items():
        store.put(f"dir/{name}", data)
    return files


def test_many_small_objects_come_whole(store: Store, bring: Bring) -> None:
    files = _many(store)
    assert content(bring(store.uri("dir/"), secrets=store.secrets).path) == files


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_one_of_many_small_objects_that_is_written_anew_is_refused(
    make: Make, bring: Bring, kind: str, tmp_path: Path
) -> None:
    store = make(kind)
    _many(store)

    def overwrite(event: dict[str, object]) -> None:
        store.put("other", b"")  # the emulators' tags have a grain in time
        store.put("dir/099", b"content ??")  # not asked for before the first have come

    with pytest.raises(errors.ChangedError):
        bring(store.uri("dir/"), secrets=store.secrets, on_event=_once(overwrite), jobs=1)
    assert not (tmp_path / "into").exists()


def test_an_object_that_vanishes_midway_is_said_to_have_changed(make: Make, bring: Bring) -> None:
    store = make("s3")
    store.put("a", DATA)

    def remove(event: dict[str, object]) -> None:
        store.client.delete_object(Bucket=store.bucket, Key="a")

    with pytest.raises(errors.ChangedError):
        bring(store.uri("a"), secrets=store.secrets, on_event=_once(remove), jobs=1)


def _once(action: Callable[[dict[str, object]], None]) -> Callable[[dict[str, object]], None]:
    done: list[bool] = []

    def call(event: dict[str, object]) -> None:
        if not done:
            done.append(True)
            action(event)

    return call


def test_with_versions_the_one_of_the_start_comes_whatever_happens(
    make: Make, bring: Bring
) -> None:
    store = make("s3")
    store.keep_versions()
    store.put("a", DATA)
    version = store.client.head_object(Bucket=store.bucket, Key="a")["VersionId"]
    overwrite = _once(lambda event: store.put("a", b"other"))
    got = bring(store.uri("a"), secrets=store.secrets, on_event=overwrite, jobs=1)
    assert content(got.path) == {"a": DATA}
    assert got.resolved.revision == version
    assert got.resolved.uri == f"{store.home}a{store.query}&versionId={version}"


@pytest.mark.parametrize("in_uri", [True, False])
def test_an_old_version_can_be_named(make: Make, bring: Bring, in_uri: bool) -> None:
    store = make("s3")
    store.keep_versions()
    store.put("a", b"old")
    version = store.client.head_object(Bucket=store.bucket, Key="a")["VersionId"]
    store.put("a", b"new")
    uri = store.uri("a") + (f"?versionId={version}" if in_uri else "")
    got = bring(uri, secrets=store.secrets, revision=None if in_uri else version)
    assert content(got.path) == {"a": b"old"}


def test_a_version_that_is_not_there_says_so(make: Make, bring: Bring) -> None:
    store = make("s3")
    store.keep_versions()
    store.put("a", b"old")
    with pytest.raises(errors.FetchError) as caught:
        bring(store.uri("a?versionId=none"), secrets=store.secrets)
    assert caught.value.code in ("fetch.not-found", "fetch.network")


def test_a_google_generation_that_is_no_longer_current_is_said_to_have_changed(
    bring: Bring,
) -> None:
    """The emulator ignores generations, so this store is made by hand, after Google's API."""
    with Web() as web:
        item = {
            "name": "a", "bucket": "b", "size": str(len(DATA)), "generation": "1",
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        current = ["1"]

        def json_of(value: object) -> Page:
            import json

            return Page(json.dumps(value).encode(), {"Content-Type": "application/json"})

        def download(handler: Handler) -> bool:
            if f"generation={current[0]}" not in handler.path:
                handler.status(404)
                return True
            return False

        web.pages["/storage/v1/b/b/o/a"] = json_of(item)
        web.pages["/storage/v1/b/b/o"] = json_of({"items": [item]})
        web.pages["/download/storage/v1/b/b/o/a"] = page = Page(DATA, {})
        page.always = download
        secrets = {"storage_options": {"anon": True, "endpoint_url": web.url}}
        got = bring("gs://b/a", secrets=secrets)
        assert got.resolved.revision == "1"
        assert got.resolved.uri == f"gs://b/a?endpoint={web.url}&generation=1"

        overwrite = _once(lambda event: current.__setitem__(0, "2"))
        page.data = noise(len(DATA), 2)
        item["generation"] = "2"
        current[0] = "2"
        web.pages["/storage/v1/b/b/o/a"] = json_of(item)
        web.pages["/storage/v1/b/b/o"] = json_of({"items": [item]})
        overwrite = _once(lambda event: current.__setitem__(0, "3"))
        with pytest.raises(errors.ChangedError):
            bring("gs://b/a", secrets=secrets, on_event=overwrite, jobs=1)


def test_wrong_credentials_are_denied_and_not_shown(make: Make, bring: Bring) -> None:
    store = make("azure")
    store.put("a", b"a")
    connection = store.secrets["storage_options"]["connection_string"]
    wrong = "d3JvbmctYWNjb3VudC1rZXktb2Ytbm9ib2R5"
    options = {"connection_string": connection.replace(store.key, wrong)}
    with pytest.raises(errors.DeniedError) as caught:
        bring(store.uri("a"), secrets={"storage_options": options})
    assert wrong not in repr(caught.value.to_json()) and wrong not in str(caught.value)


def test_a_shared_access_signature_of_azure_works_and_ends(make: Make, bring: Bring) -> None:
    from azure.storage.blob import generate_container_sas

    store = make("azure")
    store.put("a", DATA)

    def options(hours: int) -> dict[str, object]:
        signature = generate_container_sas(
            store.account,
            store.bucket,
            account_key=store.key,
            permission="rl",
            expiry=datetime.now(UTC) + timedelta(hours=hours),
        )
        endpoint = store.secrets["storage_options"]["connection_string"].partition("BlobEndpoint=")
        connection = f"BlobEndpoint={endpoint[2].rstrip(';')};SharedAccessSignature={signature}"
        return {"storage_options": {"connection_string": connection}}

    assert content(bring(store.uri("a"), secrets=options(1)).path) == {"a": DATA}
    with pytest.raises(errors.DeniedError) as caught:
        bring(store.uri("a"), secrets=options(-1))
    assert "sig=" not in caught.value.diagnostics().replace("sig=***", "")


def test_azure_compressed_blobs_come_as_they_are_stored(make: Make, bring: Bring) -> None:
    import gzip

    from azure.storage.blob import ContentSettings

    store = make("azure")
    packed = gzip.compress(b"hello" * 1000)
    settings = ContentSettings(content_encoding="gzip")
    store.client.upload_blob("a.gz", packed, content_settings=settings)
    assert content(bring(store.uri("a.gz"), secrets=store.secrets).path) == {"a.gz": packed}


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("az://container/key", errors.UnresolvableError),
        ("az://c/k?sv=2024&sig=s1gnature", errors.CredentialsError),
        ("s3://AKID:s3cret@bucket/key", errors.CredentialsError),
        ("s3://bucket/key?X-Amz-Signature=s1gnature", errors.CredentialsError),
        ("s3://bucket/key?download=1", errors.UnresolvableError),
        ("s3:///key", errors.UnresolvableError),
    ],
)
def test_a_uri_that_does_not_name_an_object_is_refused(
    bring: Bring, uri: str, error: type[errors.FetchError]
) -> None:
    with pytest.raises(error) as caught:
        bring(uri)
    assert "s1gnature" not in caught.value.diagnostics()
    assert "s3cret" not in caught.value.diagnostics()


@pytest.mark.parametrize("option", ["client_kwargs", "verify", "config_kwargs", "session"])
def test_options_that_could_forge_where_an_object_came_from_are_refused(
    bring: Bring, option: str
) -> None:
    with pytest.raises(errors.UnresolvableError) as caught:
        bring("s3://bucket/key", secrets={"storage_options": {option: {"verify": False}}})
    assert caught.value.got == option


def test_the_account_in_the_uri_must_be_the_one_that_is_asked(make: Make, bring: Bring) -> None:
    store = make("azure")
    with pytest.raises(errors.UnresolvableError) as caught:
        bring(f"abfss://{store.bucket}@famous.dfs.core.windows.net/a", secrets=store.secrets)
    assert "another account" in caught.value.message


def test_azures_own_endpoint_gives_the_uri_with_the_account(monkeypatch: Any) -> None:
    from aicert.agent.fetch.objectstore import AzureSource

    entry = {"type": "file", "name": "box/a", "size": 1, "etag": '"t"', "version_id": "v 1"}
    monkeypatch.setattr(AzureSource, "_info", lambda self, path: entry)
    for uri in ("az://box/a", "abfs://box@mine.dfs.core.windows.net/a"):
        secrets = {"storage_options": {"account_name": "mine", "account_key": "a2V5"}}
        got = resolve(InputRequest("it", uri), base=None, secrets=secrets)
        assert got.uri == "abfss://box@mine.dfs.core.windows.net/a?versionid=v+1"


def test_a_store_that_does_not_answer_is_said_so(bring: Bring) -> None:
    options = {"anon": True, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(errors.NetworkError):
        bring("s3://bucket/key", secrets={"storage_options": options})
