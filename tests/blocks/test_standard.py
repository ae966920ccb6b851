"""Every block passes Prefect's own suite for blocks, but for links that lead out of the house."""

import inspect
from pathlib import Path

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

import blocks
from flows.certify import certify
from tests.blocks.known import TYPES


@pytest.mark.parametrize("block", TYPES)
class TestBlocks(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        found: type[Block] = request.param
        return found

    def test_has_a_documentation_url(self, block: type[Block]) -> None:
        assert block._documentation_url is None, "the documentation is in the repository"

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        assert block._logo_url is None, "Prefect's UI would load it from elsewhere"

    def test_names_begin_alike_and_slugs_follow_them(self, block: type[Block]) -> None:
        name = block.get_block_type_name()
        assert name.startswith("aicert ")
        assert block.get_block_type_slug() == name.lower().replace(" ", "-")

    def test_the_ui_breaks_the_description_at_paragraphs_alone(self, block: type[Block]) -> None:
        description = block.get_description() or ""
        assert description and all(
            "\n" not in part and part[0].isupper() and part.endswith((".", "`.", ":"))
            for part in description.split("\n\n")
        )

    def test_the_code_example_is_python(self, block: type[Block]) -> None:
        example = block.get_code_example() or ""
        code = example.partition("```python\n")[2].partition("```")[0]
        compile(code, "example", "exec")
        assert f"from blocks import {block.__name__}" in code


def test_the_builder_s_page_names_every_parameter_and_every_block() -> None:
    page = (Path(__file__).parents[2] / "docs" / "prefect.md").read_text()
    for parameter in inspect.signature(certify).parameters:
        assert f"| `{parameter}`" in page or f", or `{parameter}`" in page, parameter
    for block in TYPES:
        assert f"`{block.get_block_type_name()}`" in page, block


def test_the_interfaces_cannot_be_registered_nor_made() -> None:
    from prefect.blocks.core import InvalidBlockRegistration

    for interface in (blocks.Machine, blocks.CertificateStore):
        with pytest.raises(InvalidBlockRegistration):
            interface.register_type_and_schema()
        with pytest.raises(TypeError):
            interface()  # type: ignore[abstract]
