"""Blocks are registered, saved and loaded with a real server, and secrets stay secret."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.types import SecretDict

import blocks
from tests.blocks.known import TYPES

pytestmark = pytest.mark.xdist_group("prefect-blocks")

TOKEN = "a-very-secret-token"


def prefect(server: str, *arguments: str) -> str:
    environment = {**os.environ, "PREFECT_API_URL": server, "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd="/",  # not the checkout: the editable install alone must make the package importable
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block_types(server: str) -> dict[str, dict[str, Any]]:
    found = httpx.post(f"{server}/block_types/filter", json={"limit": 200}).json()
    return {item["slug"]: item for item in found}


def test_the_command_that_the_documentation_names_registers_every_block(
    prefect_server: str,
) -> None:
    output = prefect(prefect_server, "block", "register", "-m", "blocks")
    assert "Successfully registered 10 blocks" in output
    found = block_types(prefect_server)
    for block in TYPES:
        slug = block.get_block_type_slug()
        assert found[slug]["description"]
        assert "```python" in found[slug]["code_example"]
    # Again, as after an upgrade: nothing breaks.
    prefect(prefect_server, "block", "register", "-m", "blocks")


def test_a_saved_machine_comes_back_as_it_was(prefect_server: str, tmp_path: Path) -> None:
    machine = blocks.LocalMachine(state=tmp_path, algorithm="rsa", engine="podman")
    machine.save("here", overwrite=True)
    loaded = blocks.LocalMachine.load("here")
    assert isinstance(loaded, blocks.LocalMachine)
    assert loaded.config() == machine.config()


def test_secrets_are_saved_and_nobody_who_lists_blocks_sees_them(prefect_server: str) -> None:
    secrets = SecretDict({"data": {"token": TOKEN}})
    blocks.InputCredentials(secrets=secrets).save("creds", overwrite=True)
    options = SecretDict({"key": "k", "secret": TOKEN})
    blocks.FsspecStore(url="s3://bucket/x", storage_options=options).save("bucket", overwrite=True)
    answer = httpx.post(f"{prefect_server}/block_documents/filter", json={})
    names = {item["name"] for item in answer.json()}
    assert {"creds", "bucket"} <= names
    assert TOKEN not in answer.text
    credentials = blocks.InputCredentials.load("creds")
    assert isinstance(credentials, blocks.InputCredentials)
    assert credentials.secrets.get_secret_value() == {"data": {"token": TOKEN}}
    store = blocks.FsspecStore.load("bucket")
    assert isinstance(store, blocks.FsspecStore)
    assert store.storage_options.get_secret_value()["secret"] == TOKEN
    for block in (credentials, store):
        assert TOKEN not in repr(block) + str(block) + json.dumps(block.model_dump(mode="json"))


def test_a_block_that_was_saved_before_a_field_was_added_still_loads(
    prefect_server: str,
) -> None:
    # As an older version would have saved it: without most of today's fields.
    blocks.LocalMachine(state=Path("/srv/aicert")).save("old", overwrite=True)
    found = httpx.get(
        f"{prefect_server}/block_types/slug/aicert-local-machine/block_documents/name/old"
    ).json()
    changed = httpx.patch(
        f"{prefect_server}/block_documents/{found['id']}",
        json={"data": {"state": "/srv/aicert"}, "merge_existing_data": False},
    )
    assert changed.is_success
    loaded = blocks.LocalMachine.load("old")
    assert isinstance(loaded, blocks.LocalMachine)
    assert loaded.config() == blocks.LocalMachine(state=Path("/srv/aicert")).config()


def test_a_flow_takes_a_block_by_reference(prefect_server: str, tmp_path: Path) -> None:
    from prefect import flow

    store = blocks.FolderStore(folder=tmp_path)
    store.save("folder", overwrite=True)

    @flow
    def where(store: blocks.FolderStore | blocks.FsspecStore) -> str:
        return store.open().url

    reference = {"$ref": {"block_document_id": str(store._block_document_id)}}
    parameters: Any = reference
    assert where(parameters) == tmp_path.as_uri()
