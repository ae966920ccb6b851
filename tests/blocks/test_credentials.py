"""The credentials block: each input gets its own secrets, and nobody sees them."""

from pathlib import Path

import pytest
from prefect.types import SecretDict

from aicert.agent.fetch import InputRequest, resolve
from aicert.agent.fetch.errors import FetchError
from aicert.agent.spec import Spec
from blocks import InputCredentials

TOKEN = "a-very-secret-token"
SPEC = Spec.model_validate(
    {
        "name": "x",
        "image": "oci:x",
        "command": ["x"],
        "inputs": [{"name": "data", "uri": "file:x"}, {"name": "open", "uri": "file:y"}],
    }
)


def credentials(**secrets: object) -> InputCredentials:
    return InputCredentials(secrets=SecretDict(secrets))


def test_a_spec_gets_the_secrets_of_its_own_inputs_and_its_image() -> None:
    block = credentials(
        data={"token": TOKEN}, other={"token": "x"}, image={"username": "u", "password": "p"}
    )
    assert block.for_spec(SPEC) == {
        "data": {"token": TOKEN},
        "image": {"username": "u", "password": "p"},
    }
    assert credentials().for_spec(SPEC) == {}


def test_secrets_are_in_no_text_of_the_block() -> None:
    block = credentials(data={"token": TOKEN})
    assert TOKEN not in repr(block) + str(block) + repr(block.model_dump())
    assert TOKEN not in f"{block.secrets}"


def test_a_secret_in_the_wrong_place_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="not a mapping") as caught:
        credentials(data=TOKEN)
    assert TOKEN not in str(caught.value) + repr(caught.value)
    assert "data" in str(caught.value)


def test_the_kinds_of_secret_that_are_documented_are_those_that_fetching_takes(
    tmp_path: Path,
) -> None:
    (tmp_path / "x").write_bytes(b"")
    request = InputRequest("data", "file:x")
    for kind in ("token", "headers", "storage_options"):
        assert f"`{kind}`" in (InputCredentials.__doc__ or "")
        resolve(request, base=tmp_path, secrets={kind: {}})
    with pytest.raises(FetchError):
        resolve(request, base=tmp_path, secrets={"tokn": "x"})
