"""Somebody else's text in our Markdown: every reader shows it, and none does anything with it."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from aicert.words import code, table, text

HOSTILE = (
    "a\\|<img src=x onerror=alert(1)>",
    "\\\\|`<b>x</b>",
    "`\\`|<i>",
    "[a](https://evil.example)",
    "![a](https://evil.example/x.png)",
    "https://evil.example",
    "www.evil.example",
    "a@evil.example",
    "<!-- x",
    "&lt;b&gt;",
    "# x",
    "- x",
    "1. x",
    "---",
    "===",
    "~~~",
    "```",
    "~~x~~",
    "ends in \\",
    "``|``",
)
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
OURS = re.compile(r"</?(h1|p|table|thead|tbody|tr|th|td|code)>")

TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(alphabet="\\|`<>a[]()!*_~#-=1. w:/@&", max_size=24),
)


def cells(row: str) -> int:
    """Count a row's cells as marked does, which Prefect's pages show Markdown with.

    A bar is a part of a cell where an odd number of backslashes stand before it. cmark-gfm and
    markdown-it, which others use, only look whether there is one.
    """
    bars = [len(found[1]) for found in re.finditer(r"(\\*)\|", row)]
    return sum(count % 2 == 0 for count in bars) - 1


@given(TEXTS)
@example(HOSTILE[0])
@example(HOSTILE[1])
def test_no_text_leaves_its_cell(value: str) -> None:
    for shown in (text(value), code(value)):
        row = table(("a", "b"), [(shown, "x")]).splitlines()[-1]
        assert cells(row) == 2
        assert READER.render(table(("a", "b"), [(shown, "x")])).count("<td>") == 2


@given(TEXTS)
def test_no_text_becomes_anything_but_text(value: str) -> None:
    for shown in (text(value), code(value)):
        page = f"# {shown}\n\n{shown}\n\n{table(('a', 'b'), [(shown, shown)])}\n\nSo: {shown}\n"
        assert "<" not in OURS.sub("", READER.render(page)).replace("&lt;", "")


@pytest.mark.parametrize("value", HOSTILE)
def test_no_text_becomes_a_link_where_links_are_found_in_text(value: str) -> None:
    for shown in (text(value), re.sub(r"(`+).*?\1", "", code(value))):
        assert not re.search(r"(?i)www\.|://|[^\\]@", shown)


def test_what_is_shown_is_what_was_said() -> None:
    for value in HOSTILE:
        for shown in (text(value), code(value)):
            page = READER.render(table(("a", "b"), [(shown, "x")]))
            (cell,) = re.findall(r"<td>(?:<code>)?(.*?)(?:</code>)?</td>\n<td>x", page)
            assert "evil" not in value or "evil" in cell
            assert cell.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == value
