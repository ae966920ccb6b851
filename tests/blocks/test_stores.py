"""Store blocks: they open the store that their fields name, and say what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
from prefect.types import SecretDict

from aicert.agent.store import StoreUrlError
from blocks import FolderStore, FsspecStore

SECRET = "a-very-secret-value"


def options(**values: object) -> SecretDict:
    return SecretDict(dict(values))


def test_a_folder_store_publishes_into_its_folder(tmp_path: Path) -> None:
    block = FolderStore(folder=tmp_path / "store")
    published = block.open().publish(b"{}")
    assert published.url.startswith(block.url)
    assert block.open().digests() == (published.digest,)
    assert (tmp_path / "store" / "certificates" / published.digest / "certificate.json").is_file()


def test_an_fsspec_store_opens_with_its_options(tmp_path: Path) -> None:
    block = FsspecStore(url=f"memory://{tmp_path.name}", storage_options=options(anything=1))
    published = block.open().publish(b"{}")
    assert block.open().read(published.digest) == b"{}"


def test_options_are_not_needed(tmp_path: Path) -> None:
    block = FsspecStore(url=tmp_path.as_uri())
    assert block.open().url == tmp_path.as_uri()
    # As Prefect's form may send it.
    empty: Any = {"url": f"{tmp_path.as_uri()}\n", "storage_options": None}
    assert FsspecStore.model_validate(empty).open().url == tmp_path.as_uri()


def test_a_secret_in_the_url_is_refused_and_not_shown() -> None:
    for url in (f"s3://key:{SECRET}@bucket", f"az://box/x?sig={SECRET}", ""):
        with pytest.raises(ValueError) as caught:
            FsspecStore(url=url)
        assert SECRET not in str(caught.value)
        assert "url" in str(caught.value)


def test_secrets_are_in_no_text_of_the_block() -> None:
    block = FsspecStore(url="s3://bucket/x", storage_options=options(secret=SECRET))
    assert SECRET not in repr(block) + str(block) + repr(block.model_dump())


def test_a_look_says_where_the_store_is_and_how_a_name_is_written_once(tmp_path: Path) -> None:
    (check,) = FolderStore(folder=tmp_path).check()
    assert check.ok
    assert tmp_path.as_uri() in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_a_store_that_cannot_be_used_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (check,) = FolderStore(folder=tmp_path / "file").check()
    assert not check.ok
    assert check.advice
    (check,) = FsspecStore(url="nosuchscheme://x").check()
    assert not check.ok
    with pytest.raises(StoreUrlError):
        FsspecStore(url="nosuchscheme://x").open()
