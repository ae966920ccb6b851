"""Inputs from object stores, through fsspec: `s3://`, `gs://`, `az://`, `abfs://`, `abfss://`.

One object or all objects below a prefix. fsspec signs requests, lists, and keeps the connections;
reads go through the client that it holds, because fsspec's own reading does not ask the store to
refuse once the object has changed.

The resolved URI is measured, so it must be true whatever the builder's options say: options are a
closed list (nothing that turns off TLS or sends requests elsewhere), and an endpoint that is not
the cloud's own is written into the URI, as the client in use states it.
"""

import asyncio
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlencode

from aicert import canonical
from aicert.agent.fetch.errors import (
    DeniedError,
    FetchError,
    NetworkError,
    NotFoundError,
    TooLargeError,
    TransientError,
    UnresolvableError,
    changed,
    from_status,
)
from aicert.agent.fetch.source import (
    VERSION_NAMES,
    InputRequest,
    Kind,
    RemoteFile,
    Resolved,
    Retry,
    Source,
    need,
    pick_revision,
    refuse_credentials,
    secret,
    split,
)

T = TypeVar("T")


class Place(NamedTuple):
    """Where a URI points: bucket (or container), key or prefix, version, host (Azure)."""

    bucket: str
    key: str
    version: str | None
    host: str


class ObjectSource(Source):
    """One object, or the objects below a prefix."""

    extra: ClassVar[str]
    """The extra that brings the libraries."""
    package: ClassVar[str]
    options: ClassVar[frozenset[str]]
    """The `storage_options` that may be given."""
    patient: ClassVar[bool] = False
    """Whether the library itself tries again and again, so that we need not."""

    # The library's own thread brings a batch at once: for each to be handed over took longer.
    batch = 32
    crowd = 1

    def __init__(
        self, request: InputRequest, secrets: Mapping[str, object], retry: Retry, max_files: int
    ) -> None:
        """Find the object or list the prefix.

        Without `storage_options` the store is asked anonymously: the identity of this machine is
        used only where the options say so (`anon: false`).

        Raises:
            FetchError: it cannot be resolved or listed.
        """
        need(self.package, self.extra)
        retry = replace(retry, attempts=1) if self.patient else retry
        self._asyn = need("fsspec.asyn", self.extra)
        self._place = self._locate(request)
        options = secret(secrets, "storage_options") or {"anon": True}
        if unknown := sorted(options.keys() - self.options):
            raise UnresolvableError(
                "storage options that are not supported",
                got=", ".join(unknown),
                expected=", ".join(sorted(self.options)),
            )
        quiet = {"skip_instance_cache": True, "use_listings_cache": False}
        self._fs = _ask("the store", lambda: self._connect({**options, **quiet}))
        home, endpoint = self._home()
        parameters = {} if endpoint is None else {"endpoint": endpoint}

        entry = retry(lambda: _ask("the object", self._object))
        kind: Kind = "file" if entry else "tree"
        self._version: str | None = None
        if entry:
            files = [self._file(self._place.key.rpartition("/")[2], entry)]
            self._version = self._version_of(entry)
            key, revision = self._place.key, self._version or files[0].etag
            if self._version:
                parameters[self._version_name] = self._version
        else:
            files = retry(lambda: _ask("the listing", lambda: self._list(max_files)))
            key = self._prefix()
            listing = [[file.path, file.size, file.etag] for file in files]
            revision = f"sha256:{canonical.sha256(listing)}"
        query = f"?{urlencode(parameters, safe=':/')}" if parameters else ""
        scheme = home.partition(":")[0]
        self.resolved = Resolved(
            scheme, f"{home}{key}{query}", request.uri, revision, None, kind, tuple(files)
        )

    def read(self, file: RemoteFile, start: int, end: int | None) -> Iterator[bytes]:
        """Yield bytes of an object, which the store refuses to send once it has changed."""
        stop = file.size if end is None else end
        assert stop is not None
        try:
            yield _ask(file.path, lambda: self._run(lambda: self._range(file, start, stop)))
        except NotFoundError as error:
            # It was there when it was listed.
            raise changed(file.path, got=error.got) from error

    def together(self, files: Sequence[RemoteFile]) -> dict[str, bytes]:
        """Return what came of small files; whoever failed is asked for by itself, and says why."""

        async def ask() -> list[bytes | BaseException]:
            asked = (self._range(file, 0, file.size or 0) for file in files)
            return await asyncio.gather(*asked, return_exceptions=True)

        came: list[bytes | BaseException] = _ask("the objects", lambda: self._run(ask))
        return {
            file.path: data
            for file, data in zip(files, came, strict=True)
            if isinstance(data, bytes)
        }

    def close(self) -> None:
        """Drop the client; its connections close with it."""
        del self._fs

    def _locate(self, request: InputRequest) -> Place:
        parts = split(request.uri)
        bucket, _, host = parts.netloc.rpartition("@") if self.extra == "azure" else ("",) * 3
        bucket, host = (bucket, host) if bucket else (parts.netloc, "")
        refuse_credentials(parts, users=(bucket,))
        query = {name.lower(): value[0] for name, value in parse_qs(parts.query).items()}
        self._version_name = VERSION_NAMES[parts.scheme]
        version = query.pop(self._version_name.lower(), None)
        if query or parts.fragment or not bucket:
            raise UnresolvableError(
                "this is not the URI of an object or a prefix",
                got=request.uri,
                expected=f"{parts.scheme}://bucket/key, and at most ?{self._version_name}=",
            )
        return Place(bucket, parts.path.removeprefix("/"), pick_revision(request, version), host)

    def _prefix(self) -> str:
        key = self._place.key.rstrip("/")
        return f"{key}/" if key else ""

    def _object(self) -> Mapping[str, Any] | None:
        """Return what the store says of the one object, or None if the URI names no object."""
        if self._place.key.endswith("/") or not self._place.key:
            return None
        entry: Mapping[str, Any] = self._info(f"{self._place.bucket}/{self._place.key}")
        return entry if entry["type"] == "file" else None

    def _list(self, max_files: int) -> list[RemoteFile]:
        root = f"{self._place.bucket}/{self._prefix()}"
        # Without the last slash, as some implementations make two of it.
        found = self._fs.find(root.rstrip("/"), detail=True)
        files = [
            self._file(path.removeprefix(root), entry)
            for path, entry in sorted(found.items())
            # Empty objects whose key ends with '/' are how consoles show folders.
            if path.startswith(root)
            and entry["type"] == "file"
            and (entry["size"] or not path.endswith("/"))
        ]
        if len(files) > max_files:
            raise TooLargeError(
                "too many objects below the prefix", got=len(files), expected=max_files
            )
        if not files:
            raise NotFoundError(
                "the store has no such object, and none below it as a prefix",
                advice="check bucket and key, and that the credentials may list them",
            )
        return files

    def _file(self, path: str, entry: Mapping[str, Any]) -> RemoteFile:
        key = str(entry["name"]).partition("/")[2]
        return RemoteFile(path, int(entry["size"]), self._tag(entry), key=key)

    def _run(self, function: Callable[[], Any]) -> Any:
        return self._asyn.sync(self._fs.loop, function)

    @abstractmethod
    def _connect(self, options: dict[str, object]) -> Any:
        """Return fsspec's file system."""

    @abstractmethod
    def _home(self) -> tuple[str, str | None]:
        """Return the URI of the bucket, and the endpoint if it is not the cloud's own."""

    @abstractmethod
    def _info(self, path: str) -> Mapping[str, Any]:
        """Return what the store says of an object, at the version that is asked for."""

    @abstractmethod
    def _tag(self, entry: Mapping[str, Any]) -> str:
        """Return what differs once an object is written anew."""

    @abstractmethod
    def _version_of(self, entry: Mapping[str, Any]) -> str | None:
        """Return the version by which the object can be named, if the store keeps versions."""

    @abstractmethod
    async def _range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Read a range, of the resolved version or under the condition of the entity tag."""


class S3Source(ObjectSource):
    """Amazon S3 and what speaks its protocol."""

    extra = "s3"
    package = "s3fs"
    options = frozenset(
        {"anon", "key", "secret", "token", "endpoint_url", "region_name", "requester_pays"}
    )

    def _connect(self, options: dict[str, object]) -> Any:
        region = options.pop("region_name", None)
        store = need("s3fs", self.extra).S3FileSystem(
            version_aware=self._place.version is not None,
            client_kwargs={"region_name": region} if region else {},
            # We try again ourselves, and can be stopped meanwhile.
            config_kwargs={"retries": {"total_max_attempts": 1}},
            **options,
        )
        store.retries = 1
        return store

    def _home(self) -> tuple[str, str | None]:
        client = _ask("the store", self._fs.connect)
        endpoint = str(client.meta.endpoint_url)
        own = re.fullmatch(r"https://s3[a-z0-9.-]*\.amazonaws\.com(\.cn)?", endpoint)
        return f"s3://{self._place.bucket}/", None if own else endpoint

    def _info(self, path: str) -> Mapping[str, Any]:
        info: Mapping[str, Any] = self._fs.info(path, version_id=self._place.version)
        return info

    def _tag(self, entry: Mapping[str, Any]) -> str:
        return str(entry["ETag"])

    def _version_of(self, entry: Mapping[str, Any]) -> str | None:
        version = entry.get("VersionId")
        return None if version in (None, "null") else str(version)

    async def _range(self, file: RemoteFile, start: int, end: int) -> bytes:
        version = {"VersionId": self._version} if self._version else {}
        response = await self._fs._call_s3(
            "get_object",
            Bucket=self._place.bucket,
            Key=file.key,
            Range=f"bytes={start}-{end - 1}",
            IfMatch=file.etag,
            **version,
        )
        return bytes(await response["Body"].read())


class AzureSource(ObjectSource):
    """Azure Blob Storage."""

    extra = "azure"
    package = "adlfs"
    patient = True
    options = frozenset(
        {"anon", "account_name", "account_key", "sas_token", "connection_string"}
        | {"tenant_id", "client_id", "client_secret"}
    )

    def _connect(self, options: dict[str, object]) -> Any:
        account, _, domain = self._place.host.partition(".")
        if account:
            options["account_name"] = account
        if domain and domain != "dfs.core.windows.net":
            options["account_host"] = f"{account}.{re.sub('^dfs[.]', 'blob.', domain)}"
        if not {"account_name", "connection_string"} & options.keys():
            raise UnresolvableError(
                "the URI does not say which storage account",
                advice="write abfss://container@account.dfs.core.windows.net/path",
            )
        return need("adlfs", self.extra).AzureBlobFileSystem(version_aware=True, **options)

    def _home(self) -> tuple[str, str | None]:
        bucket, _, _, host = self._place
        endpoint = str(self._fs.service_client.url).partition("?")[0].rstrip("/")
        own = re.fullmatch(r"https://([a-z0-9]+)\.blob\.([a-z0-9.-]+)", endpoint)
        found = f"{own[1]}.dfs.{own[2]}" if own else endpoint
        if host and host.replace(".blob.", ".dfs.") != found:
            raise UnresolvableError(
                "the storage options lead to another account than the URI", got=found, expected=host
            )
        return (f"abfss://{bucket}@{found}/", None) if own else (f"az://{bucket}/", endpoint)

    def _info(self, path: str) -> Mapping[str, Any]:
        info: Mapping[str, Any] = self._fs.info(path, version_id=self._place.version)
        return info

    def _tag(self, entry: Mapping[str, Any]) -> str:
        return str(entry["etag"])

    def _version_of(self, entry: Mapping[str, Any]) -> str | None:
        version = entry.get("version_id")
        return str(version) if version else None

    async def _range(self, file: RemoteFile, start: int, end: int) -> bytes:
        unchanged = need("azure.core", self.extra).MatchConditions.IfNotModified
        blob = self._fs.service_client.get_blob_client(self._place.bucket, file.key)
        stream = await blob.download_blob(
            offset=start,
            length=end - start,
            version_id=self._version,
            etag=file.etag,
            match_condition=unchanged,
            decompress=False,
            retry_total=0,
        )
        return bytes(await stream.readall())


class GoogleSource(ObjectSource):
    """Google Cloud Storage, where each write of an object is a generation of it."""

    extra = "gcs"
    package = "gcsfs"
    patient = True
    options = frozenset({"anon", "token", "project", "endpoint_url", "requester_pays"})

    def _connect(self, options: dict[str, object]) -> Any:
        # The class of the JSON API: the package's own default first asks by gRPC, elsewhere, for
        # the kind of the bucket, and waits a minute for an answer.
        if options.pop("anon", False):
            options["token"] = "anon"  # noqa: S105
        return need("gcsfs.core", self.extra).GCSFileSystem(version_aware=True, **options)

    def _home(self) -> tuple[str, str | None]:
        endpoint = str(self._fs._location)
        own = endpoint == "https://storage.googleapis.com"
        return f"gs://{self._place.bucket}/", None if own else endpoint

    def _info(self, path: str) -> Mapping[str, Any]:
        info: Mapping[str, Any] = self._fs.info(path, generation=self._place.version)
        return info

    def _tag(self, entry: Mapping[str, Any]) -> str:
        return str(entry["generation"])

    def _version_of(self, entry: Mapping[str, Any]) -> str | None:
        return self._tag(entry)

    async def _range(self, file: RemoteFile, start: int, end: int) -> bytes:
        path = f"{self._place.bucket}/{file.key}"
        return bytes(await self._fs._cat_file(path, start=start, end=end, generation=file.etag))


def _ask(what: str, action: Callable[[], T]) -> T:
    """Call a store's library and turn its errors, which may show signed requests, into ours."""
    try:
        return action()
    except FetchError:
        raise
    except Exception as error:  # each library has its own classes; the status is what counts
        problem = _problem(what, error)
    raise problem


def _problem(what: str, error: Exception) -> FetchError:
    got = f"{type(error).__name__}: {error}"[:300]
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and len(chain) < 10:
        chain.append(inner)
    status = next((found for link in chain if (found := _status(link))), None)
    if status is not None and status != 404:
        return from_status(status, what)
    if status == 404 or any(isinstance(link, FileNotFoundError) for link in chain):
        return NotFoundError(
            f"{what}: the store has no such object, version or bucket",
            advice="check bucket, key and version; some stores say this where access is missing",
        )
    if any(isinstance(link, PermissionError) or "Forbidden" in str(link) for link in chain):
        return DeniedError(
            f"{what}: the store refuses access",
            advice="give credentials as the secret storage_options of this input",
        )
    if isinstance(error, ValueError | TypeError | KeyError):
        return UnresolvableError(
            f"{what}: the store's library refuses this", got=got, advice="check the options"
        )
    if type(error).__name__ in ("NoCredentialsError", "ClientAuthenticationError"):
        return DeniedError(f"{what}: no usable credentials", got=got)
    if isinstance(error, OSError | TimeoutError) or "Connection" in type(error).__name__:
        return TransientError(f"{what}: the connection to the store failed", got=got)
    return NetworkError(f"{what}: the store cannot be read", got=got)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of one of the libraries carries."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    for value in (
        metadata.get("HTTPStatusCode"),
        getattr(error, "status_code", None),
        getattr(error, "code", None),
    ):
        if str(value).isdigit() and 400 <= int(str(value)) < 600:
            return int(str(value))
    return None
