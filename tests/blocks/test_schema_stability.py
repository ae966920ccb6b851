"""Blocks that were saved once can be loaded by every later version."""

import pytest
from prefect.blocks.core import Block

import blocks
from tests.blocks.known import TYPES, current, held


def test_every_block_that_can_be_registered_is_held() -> None:
    exported = [getattr(blocks, name) for name in blocks.__all__]
    concrete = {
        item
        for item in exported
        if isinstance(item, type) and issubclass(item, Block) and not item.__abstractmethods__
    }
    assert concrete == set(TYPES)


def test_no_block_is_lost_and_a_new_one_is_added_to_the_snapshot() -> None:
    assert set(current()) == set(held()), "add the new block: python -m tests.blocks.known"


@pytest.mark.parametrize("slug", sorted(held()))
def test_names_and_fields_stay_and_new_fields_have_defaults(slug: str) -> None:
    old, new = held()[slug], current()[slug]
    assert new["name"] == old["name"]
    for name, field in old["fields"].items():
        assert new["fields"].get(name) == field, f"{slug}.{name} was removed, renamed or changed"
    assert set(new["required"]) == set(old["required"]), "a required field breaks saved blocks"
    assert set(old["secret_fields"]) <= set(new["secret_fields"]), "a secret would be shown"
    assert set(new["fields"]) == set(old["fields"]), (
        "add the new fields: python -m tests.blocks.known"
    )
