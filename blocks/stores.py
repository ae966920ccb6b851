"""Stores: where certificates are published, each name written once. See `aicert.agent.store`."""

from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from prefect.types import SecretDict
from pydantic import Field, SecretStr, field_validator, model_validator

from aicert.agent import blobs, store
from aicert.agent.store import Store
from aicert.errors import Error
from blocks.base import AicertBlock
from blocks.checks import Check


class CertificateStore(AicertBlock, ABC):
    """Where certificates are published. An entry is named by the SHA-256 of its certificate."""

    @abstractmethod
    def source(self) -> tuple[str, dict[str, Any]]:
        """Return where the store is, and what opens it: the arguments of `Store`."""

    def open(self) -> Store:
        """Return the store.

        Raises:
            StoreError: its driver is not installed, or its options make no sense.
        """
        return Store(*self.source())

    def check(self) -> list[Check]:
        """Look whether the store is there; nothing is written."""
        try:
            found = self.open()
            found.check()
            retention = found.retention()
        except Error as error:
            return [Check.failed("store", error)]
        once = "by the store itself" if found.write_once == "enforced" else "by reading back"
        kept = f"; kept by: {retention}" if retention else ""
        return [Check("store", True, f"{found.url}; write-once is seen to {once}{kept}")]


class FolderStore(CertificateStore):
    """A folder of certificates, on the worker's host or mounted there.

    Attributes:
        folder: The folder; it is made when something is published.

    Example:
        List what is published:
        ```python
        from blocks import FolderStore

        store = FolderStore.load("BLOCK_NAME")
        for digest in store.open().digests():
            print(digest)
        ```
    """

    _block_type_name = "aicert Folder Store"
    _block_type_slug = "aicert-folder-store"

    folder: Path = Field(
        title="Folder",
        description="The folder, as the worker sees it. It is made when something is published.",
        examples=["/srv/certificates"],
    )

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.open().url

    def source(self) -> tuple[str, dict[str, Any]]:
        """Return the folder; nothing else is needed to open it."""
        return str(self.folder), {}


class FsspecStore(CertificateStore):
    """A bucket of certificates: Amazon S3, Azure Blob Storage, Google Cloud Storage, and others.

    Attributes:
        url: Where the store is, without secrets.
        storage_options: What opens it: keys, tokens, an endpoint.

    Example:
        Read a certificate:
        ```python
        from blocks import FsspecStore

        store = FsspecStore.load("BLOCK_NAME")
        certificate = store.open().read(digest)
        ```
    """

    _block_type_name = "aicert Fsspec Store"
    _block_type_slug = "aicert-fsspec-store"

    url: str = Field(
        title="URL",
        description="A URL that fsspec knows. No secrets: they go into the storage options.",
        examples=["s3://bucket/models", "abfss://container@account.dfs.core.windows.net/models"],
    )
    storage_options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Storage options",
        description="What fsspec's driver asks for, as JSON: keys, tokens, an endpoint. "
        "Kept as a secret; empty where the worker's own identity opens the store.",
    )

    @field_validator("storage_options", mode="before")
    @classmethod
    def _none_at_all(cls, options: Any) -> Any:
        # Prefect's form sends an empty field as null.
        return {} if options is None else options

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        url = url.strip()
        try:
            store.check_url(url)
        except Error as error:
            raise ValueError(f"{error.message}: {error.advice or error.expected}") from None
        return url

    def source(self) -> tuple[str, dict[str, Any]]:
        """Return the URL and the options; these are secret."""
        return self.url, dict(self.storage_options.get_secret_value())


class AzureBlobStore(CertificateStore):
    """A container of Azure Blob Storage: each name written once by the service, weights in blocks.

    Attributes:
        url: The container, and a folder in it if you like. Links to what is published begin so.
        identity: The client id of a managed identity, where the worker has several.
        account_key: The account's key. Better leave it out, and give the identity a role.
        sas_token: A shared access signature. Better leave it out, too.
        anonymous: Read a container that everybody may read.

    Example:
        Give a machine an hour to publish what it made, and no more:
        ```python
        from blocks import AzureBlobStore

        store = AzureBlobStore.load("BLOCK_NAME")
        url, options = store.access_for_machine(minutes=60)
        ```
    """

    _block_type_name = "aicert Azure Blob Store"
    _block_type_slug = "aicert-azure-blob-store"

    url: str = Field(
        title="URL",
        description="The container, with a folder in it if you like. No secrets.",
        examples=["https://ACCOUNT.blob.core.windows.net/certificates"],
    )
    identity: str | None = Field(
        default=None,
        title="Identity",
        description="The client id of the worker's managed identity, where it has several. Without "
        "this, a key or a signature, the worker's own identity is used: workload identity, managed "
        "identity, or Azure CLI. It needs the role Storage Blob Data Contributor.",
    )
    account_key: SecretStr | None = Field(
        default=None,
        title="Account key",
        description="The account's key, kept as a secret. It can do everything: better leave this "
        "empty, and give the worker's identity a role.",
    )
    sas_token: SecretStr | None = Field(
        default=None,
        title="Shared access signature",
        description="A signature that opens the container, kept as a secret.",
    )
    anonymous: bool = Field(
        default=False,
        title="Anonymous",
        description="Read a container that everybody may read. Nothing can be published so.",
    )

    @field_validator("url")
    @classmethod
    def _a_container(cls, url: str) -> str:
        url = url.strip()
        try:
            store.check_url(url)
            blobs.locate(url)
        except Error as error:
            raise ValueError(f"{error.message}: {error.advice or error.expected}") from None
        return url

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        try:
            blobs.check_options(self.source()[1])
        except Error as error:
            raise ValueError(f"{error.message}: {error.got}") from None
        return self

    def source(self) -> tuple[str, dict[str, Any]]:
        """Return the URL and the options; these are secret."""
        key, token = self.account_key, self.sas_token
        options = {
            "identity": self.identity,
            "account_key": key and key.get_secret_value(),
            "sas_token": token and token.get_secret_value(),
            "anonymous": self.anonymous,
        }
        return self.url, {name: value for name, value in options.items() if value}

    def access_for_machine(self, minutes: int = 60) -> tuple[str, dict[str, Any]]:
        """Return what opens the store for a machine, for so long: it may create and read.

        Nothing can be written over, deleted or listed with it.

        Raises:
            StoreError: this store's own access cannot make one, or it would last too long.
        """
        token = blobs.Blobs(*self.source()).create_only(timedelta(minutes=minutes))
        return self.url, {"sas_token": token}
