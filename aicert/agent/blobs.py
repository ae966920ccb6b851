"""Azure Blob Storage as a store, over the vendor's own library.

A name is written once by `If-None-Match: *` on the request that makes the blob, never by looking
first. A large file goes up in blocks, several at a time, each with its MD5 for the service to
check, and is committed only once all of it has been read and is what was announced: nothing is
spooled, and what breaks off leaves only blocks that the service forgets after a week.

Options, of which one is a secret's kind: `account_key`; `sas_token`; `anonymous: true`; or none of
them, and the worker's own identity is used (workload identity, managed identity, Azure CLI, as
azure-identity finds them), where `identity` may name the client id of a managed identity.
"""

import hashlib
import ipaddress
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from aicert.agent import azure_identity
from aicert.agent.fetch.errors import secret_values
from aicert.agent.store import (
    CERTIFICATE,
    Backend,
    Content,
    DeniedError,
    MissingDriverError,
    StoreError,
    StoreUrlError,
    is_digest,
    not_published,
    reported,
)
from aicert.errors import install

T = TypeVar("T")

LONGEST_ACCESS = timedelta(hours=24)
"""How long an access for a machine may last at most."""

BLOCK = 8 << 20
"""The size of a block in bytes, larger only where a blob would have too many."""

_AT_ONCE = 4
_MAX_BLOCKS = 50_000  # of one blob
# An access that may only create could put no blocks before version 2026-04-06 of the service; so it
# puts blobs whole while they fit into memory.
_WHOLE = 256 << 20
_ACCOUNT = re.compile(r"([a-z0-9]{3,24})(?:\.z\d+)?\.blob\.[a-z0-9.-]+")
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*")
_OPTIONS = frozenset({"account_key", "sas_token", "anonymous", "identity"})
# Short: whoever publishes tries again, and for longer.
_RETRY = {"initial_backoff": 1, "increment_base": 2, "retry_total": 3}


class Place(NamedTuple):
    """Where a URL points: the account, its URL, the container, and the folder in it."""

    account: str
    account_url: str
    container: str
    folder: str


def locate(url: str) -> Place:
    """Take a URL apart: `https://ACCOUNT.blob.core.windows.net/CONTAINER[/FOLDER]`.

    An emulator on loopback has the account as the first part of the path, and may do without TLS.

    Raises:
        StoreUrlError: it is not such a URL.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    names = [unquote(name) for name in parts.path.strip("/").split("/")]
    base = f"{parts.scheme}://{parts.netloc}"
    account = None
    if _is_loopback(host):
        account = names.pop(0)
        base += f"/{account}"
    elif parts.scheme == "https" and (match := _ACCOUNT.fullmatch(host)):
        account = match[1]
    if not account or not names or not _CONTAINER.fullmatch(names[0]):
        raise StoreUrlError(
            "this is not the URL of a container of Azure Blob Storage",
            got=url,
            expected="https://ACCOUNT.blob.core.windows.net/CONTAINER, and a folder if you like",
        )
    return Place(account, base, names[0], "/".join(names[1:]))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Blobs(Backend):
    """A container, or a folder in one."""

    exclusive = False

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        """Open the container at `url`; nothing is sent yet.

        Raises:
            StoreUrlError: the URL or the options make no sense.
            MissingDriverError: azure-storage-blob is not installed.
        """
        self.place = locate(url)
        self.url = url.rstrip("/")
        self.write_once = "enforced"
        self._secrets = tuple(secret_values(options))
        self._options = check_options(options)
        with self._reported():
            from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
            from azure.storage.blob import BlobServiceClient, ExponentialRetry

            credential: Any = None
            if key := options.get("account_key"):
                credential = AzureNamedKeyCredential(self.place.account, key)
            elif token := options.get("sas_token"):
                credential = AzureSasCredential(token.lstrip("?"))
            elif not options.get("anonymous"):
                credential = azure_identity.find(options.get("identity"))
            self._service: Any = BlobServiceClient(
                self.place.account_url,
                credential,
                retry_policy=ExponentialRetry(**_RETRY),
                max_single_put_size=_WHOLE,
            )
            self._container: Any = self._service.get_container_client(self.place.container)
        permissions = parse_qs(str(options.get("sas_token") or "").lstrip("?")).get("sp", ["w"])[0]
        self._may_stage = "w" in permissions

    @contextmanager
    def _reported(self) -> Iterator[None]:
        with reported(self.url, self._secrets):
            try:
                yield
            except ImportError as error:
                raise MissingDriverError(
                    "the library for Azure Blob Storage is not installed",
                    got=error,
                    advice=install("azure"),
                ) from error
            except Exception as error:
                if azure_identity.is_absent(error):
                    raise DeniedError(
                        "there is no identity to open the store with",
                        got=f"{self.url}: {str(error).splitlines()[0]}",
                        advice=azure_identity.ADVICE,
                    ) from error
                raise

    def _name(self, path: str) -> str:
        return f"{self.place.folder}/{path}" if self.place.folder else path

    def check(self) -> None:
        """Find out whether the container is there, may be listed, and may be written to.

        An access for a machine may not list it. Nothing is written: what is asked for is to replace
        a blob that is not there, of which the service speaks only to whom it lets write.
        """
        with self._reported():
            if self._options.get("sas_token") and not self._may_stage:
                # It may not list. Where the container is not there, this says so.
                self._size("certificates")
            else:
                next(iter(self._container.list_blob_names(results_per_page=1).by_page()), None)
            self._may_write()

    def _may_write(self) -> None:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError

        blob = self._container.get_blob_client(self._name(f"certificates/{uuid4().hex}"))
        none = {"etag": "0x0", "match_condition": MatchConditions.IfNotModified}
        with suppress(ResourceModifiedError):  # 412: it would have
            blob.upload_blob(b"", overwrite=True, **none)

    def retention(self) -> str | None:
        """Say what the service itself keeps from being changed or deleted, as it says.

        It does not say whether a policy is locked; one that is not can be taken away again.
        """
        try:
            with self._reported():
                found = self._container.get_container_properties()
        except DeniedError:
            return "not known: this access may not read it"
        kinds = {
            "an immutability policy (locked or not)": found.has_immutability_policy,
            "a legal hold": found.has_legal_hold,
            "immutable versions": found.immutable_storage_with_versioning_enabled,
        }
        held = " and ".join(kind for kind, there in kinds.items() if there)
        return (
            f"{held} on the container"
            if held
            else "nothing: who administers the account may delete it"
        )

    @contextmanager
    def locked(self, digest: str) -> Iterator[None]:
        """Keep nobody out: names are written once by the service."""
        del digest
        yield

    def holds(self, path: str, content: Content) -> bool | None:
        """Read what stands there and compare; see `Backend.holds`."""
        size = self._size(path)
        if size is None or size != content.size:
            return None if size is None else False
        digest = hashlib.sha256()
        try:
            for chunk in self.chunks(path):
                digest.update(chunk)
        except StoreError as error:
            if error.code == "store.not-found":
                return None
            raise
        return digest.hexdigest() == content.sha256

    def exists(self, path: str) -> bool:
        """Tell whether anything stands there."""
        return self._size(path) is not None

    def _size(self, path: str) -> int | None:
        found = self._properties(path)
        return None if found is None else int(found.size)

    def _properties(self, path: str) -> Any | None:
        from azure.core.exceptions import ResourceNotFoundError

        with self._reported():
            try:
                return self._container.get_blob_client(self._name(path)).get_blob_properties()
            except ResourceNotFoundError as error:
                if error.error_code == "ContainerNotFound":
                    raise
                return None

    def create(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        """Write a name that is free; do nothing where it has been taken meanwhile."""
        from azure.core import MatchConditions

        self._write(path, content, progress, match_condition=MatchConditions.IfMissing)

    def replace(self, path: str, content: Content, progress: Callable[[int], None]) -> None:
        """Write a name that holds a leftover, if that is still the same one."""
        from azure.core import MatchConditions

        found = self._properties(path)
        if found is None:
            return self.create(path, content, progress)
        unchanged = {"etag": found.etag, "match_condition": MatchConditions.IfNotModified}
        return self._write(path, content, progress, **unchanged)

    def _write(
        self, path: str, content: Content, progress: Callable[[int], None], **condition: Any
    ) -> None:
        from azure.core.exceptions import HttpResponseError

        blob = self._container.get_blob_client(self._name(path))
        chunks = content.read(path, progress)
        with self._reported():
            try:
                if content.size <= (BLOCK if self._may_stage else _WHOLE):
                    data = b"".join(chunks)
                    blob.upload_blob(data, overwrite=True, **_kind(path), **condition)
                else:
                    self._put_blocks(blob, path, content.size, chunks, condition)
            except HttpResponseError:
                # The service says in many ways that the name is taken meanwhile: the caller looks
                # at what stands there. Nothing was written over it.
                if self._size(path) is None:
                    raise

    def _put_blocks(
        self, blob: Any, path: str, size: int, chunks: Iterable[bytes], condition: Mapping[str, Any]
    ) -> None:
        from azure.storage.blob import BlobBlock

        # Names of our own: blocks of two uploads to one name must not mix.
        upload = uuid4().hex
        names = []

        def blocks() -> Iterator[Callable[[], Any]]:
            for number, data in enumerate(_cut(chunks, _block_size(size))):
                names.append(f"{upload}-{number:05}")
                yield partial(blob.stage_block, names[-1], data, len(data), validate_content=True)

        for _ in _in_order(blocks()):
            pass
        blob.commit_block_list([BlobBlock(name) for name in names], **_kind(path), **condition)

    def tidy(self, folder: str, *, keep: frozenset[str]) -> None:
        """Leave everything: another publisher may be writing it this moment."""

    def digests(self) -> list[str]:
        """List the published entries."""
        return [
            digest
            for digest, _, name in (path.partition("/") for path in self.files("certificates"))
            if name == CERTIFICATE and is_digest(digest)
        ]

    def files(self, folder: str) -> list[str]:
        """List the files of an entry."""
        prefix = self._name(folder) + "/"
        with self._reported():
            return [
                name[len(prefix) :]
                for name in self._container.list_blob_names(name_starts_with=prefix)
            ]

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the bytes that stand there, several ranges read at a time, of one version."""
        from azure.core import MatchConditions

        found = self._properties(path)
        if found is None:
            raise not_published(path)
        blob = self._container.get_blob_client(self._name(path))
        same = {"etag": found.etag, "match_condition": MatchConditions.IfNotModified}

        def read(start: int, length: int) -> bytes:
            return bytes(blob.download_blob(start, length, **same).readall())

        def parts() -> Iterator[Callable[[], bytes]]:
            for start in range(0, found.size, BLOCK):
                yield partial(read, start, min(BLOCK, found.size - start))

        with self._reported():
            yield from _in_order(parts())

    def create_only(self, lifetime: timedelta) -> str:
        """Return a shared access signature that may create blobs and read them, and nothing else.

        Nothing can be written over, deleted or listed with it. It is made from the account's key,
        or, where the worker's identity opens the store, from a delegation key.

        Raises:
            StoreError: this access cannot make one, or the lifetime is too long.
        """
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        if not timedelta(0) < lifetime <= LONGEST_ACCESS:
            raise StoreError(
                "an access for a machine is short-lived",
                got=lifetime,
                expected=f"at most {LONGEST_ACCESS}",
            )
        start = datetime.now(UTC) - timedelta(minutes=5)  # clocks differ
        end = datetime.now(UTC) + lifetime
        signer: dict[str, Any]
        if key := self._options.get("account_key"):
            signer = {"account_key": key}
        elif self._options.get("sas_token") or self._options.get("anonymous"):
            raise StoreError(
                "an access cannot be made from one that is itself a signature, or none",
                advice="open the store with an identity (role Storage Blob Data Contributor) or "
                "the account's key",
            )
        else:
            with self._reported():
                signer = {"user_delegation_key": self._service.get_user_delegation_key(start, end)}
        with self._reported():
            return str(
                generate_container_sas(
                    self.place.account,
                    self.place.container,
                    permission=ContainerSasPermissions(create=True, read=True),
                    start=start,
                    expiry=end,
                    protocol="https" if self.url.startswith("https:") else "https,http",
                    **signer,
                )
            )


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given.

    Raises:
        StoreUrlError: one is not known, or they exclude each other.
    """
    given = {name: value for name, value in options.items() if value}
    kinds = given.keys() - {"identity"}
    if unknown := sorted(given.keys() - _OPTIONS):
        problem = f"an option that is not known: {', '.join(unknown)}"
    elif len(kinds) > 1 or (kinds and "identity" in given):
        problem = f"options that exclude each other: {', '.join(sorted(given))}"
    else:
        return given
    raise StoreUrlError(
        "the options of the store make no sense",
        got=problem,
        expected=f"one of {', '.join(sorted(_OPTIONS))}, or none for the worker's own identity",
    )


def _kind(path: str) -> dict[str, Any]:
    """Say what a blob holds, so that a browser shows it; never a page that runs in one."""
    from azure.storage.blob import ContentSettings

    types = {"json": "application/json", "md": "text/plain; charset=utf-8"}
    kind = types.get(path.rpartition(".")[2], "application/octet-stream")
    return {"content_settings": ContentSettings(content_type=kind)}


def _block_size(size: int) -> int:
    """Return the size of the blocks of a blob, in whole MiB above the usual one."""
    return max(BLOCK, -(-size // (_MAX_BLOCKS << 20)) << 20)


def _cut(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the same bytes in pieces of `size`, the last one shorter."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


def _in_order(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Make calls, a few at a time, and yield their results in order."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, "aicert-blobs") as pool:
        try:
            for call in calls:
                if len(pending) == _AT_ONCE:
                    yield pending.popleft().result()
                pending.append(pool.submit(call))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
