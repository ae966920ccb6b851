"""Object stores on loopback: moto for S3, Azurite for Azure, gcp-storage-emulator for Google."""

import importlib
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest


class Store(ABC):
    """A bucket of its own in one of the stores."""

    scheme: str
    secrets: dict[str, object]
    home: str
    """What the resolved URI of the bucket looks like."""
    query: str
    """What follows it."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    def uri(self, key: str) -> str:
        return f"{self.scheme}://{self.bucket}/{key}"

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object."""


class S3(Store):
    """A bucket of moto's S3."""

    scheme = "s3"

    def __init__(self, endpoint: str, bucket: str) -> None:
        super().__init__(bucket)
        session: Any = importlib.import_module("botocore.session")
        self.client: Any = session.Session().create_client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="AKIDEXAMPLE",
            aws_secret_access_key="secret-key-of-s3",
        )
        self.client.create_bucket(Bucket=bucket)
        self.secrets = {
            "storage_options": {
                "key": "AKIDEXAMPLE",
                "secret": "secret-key-of-s3",
                "endpoint_url": endpoint,
            }
        }
        self.home, self.query = f"s3://{bucket}/", f"?endpoint={endpoint}"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def keep_versions(self) -> None:
        self.client.put_bucket_versioning(
            Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"}
        )


class Azure(Store):
    """A container of Azurite."""

    scheme = "az"
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, endpoint: str, bucket: str) -> None:
        from azure.storage.blob import BlobServiceClient

        super().__init__(bucket)
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={endpoint}/{self.account};"
        )
        service: Any = BlobServiceClient.from_connection_string(connection)
        self.client = service.create_container(bucket)
        self.secrets = {"storage_options": {"connection_string": connection}}
        self.home, self.query = f"az://{bucket}/", f"?endpoint={endpoint}/{self.account}"

    def put(self, key: str, data: bytes) -> None:
        self.client.upload_blob(key, data, overwrite=True)


class Google(Store):
    """A bucket of the emulator."""

    scheme = "gs"

    def __init__(self, endpoint: str, bucket: str) -> None:
        import gcsfs.core

        super().__init__(bucket)
        self.fs: Any = gcsfs.core.GCSFileSystem(
            endpoint_url=endpoint, token="anon", project="p", skip_instance_cache=True
        )
        self.fs.mkdir(bucket)
        self.secrets = {"storage_options": {"anon": True, "endpoint_url": endpoint}}
        self.home, self.query = f"gs://{bucket}/", f"?endpoint={endpoint}"

    def put(self, key: str, data: bytes) -> None:
        self.fs.pipe_file(f"{self.bucket}/{key}", data)


@contextmanager
def moto() -> Iterator[str]:
    """Run moto's server in this process and give its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def azurite(*options: str) -> Iterator[str]:
    """Run Azurite on a free port, with these options besides, and give its address."""
    program = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists() or shutil.which("node") is None:
        pytest.skip("Azurite is not installed: make setup-test, which needs npm")
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := re.search(r"https?://127\.0\.0\.1:\d+", line):
                    yield match[0]
                    return
            pytest.fail("Azurite did not start")
        finally:
            process.kill()


@contextmanager
def google() -> Iterator[str]:
    """Run the emulator in this process and give its address."""
    server_module = pytest.importorskip(
        "gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed"
    )
    server = server_module.create_server("127.0.0.1", 0, in_memory=True)
    # It answers one after the other, and turned away whoever was more than the sixth.
    with patch.object(HTTPServer, "request_queue_size", 256):
        server.start()
    try:
        yield f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
    finally:
        server.stop()
