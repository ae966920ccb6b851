"""Stores: where certificates are published, each name written once. See `aicert.agent.store`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, field_validator

from aicert.agent import store
from aicert.agent.store import Store
from aicert.errors import Error
from blocks.checks import Check


class CertificateStore(Block, ABC):
    """Where certificates are published. An entry is named by the SHA-256 of its certificate."""

    model_config = ConfigDict(hide_input_in_errors=True)

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
        except Error as error:
            return [Check.failed("store", error)]
        once = "by the store itself" if found.write_once == "enforced" else "by reading back"
        return [Check("store", True, f"{found.url}; write-once is seen to {once}")]


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
