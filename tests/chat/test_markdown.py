"""The markdown stream: blocks are final, complete and independent of the chunking."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.markdown import Block, Kind, MarkdownStream


def blocks_of(chunks: Sequence[str]) -> list[Block]:
    stream = MarkdownStream()
    return [block for chunk in chunks for block in stream.feed(chunk)] + stream.finish()


def texts(text: str) -> list[str]:
    return [block.text for block in blocks_of([text])]


def test_paragraphs_end_at_blank_lines() -> None:
    """A paragraph is final when a blank line comes."""
    assert texts("a\nb\n\nc") == ["a\nb\n\n", "c"]


def test_a_heading_ends_with_its_line() -> None:
    """What follows a heading is another block."""
    assert texts("# a\nb\n## c\n") == ["# a\n", "b\n", "## c\n"]


def test_code_comes_line_by_line() -> None:
    """Code is shown as it arrives; blank lines and marks inside it are code."""
    blocks = blocks_of(["x\n```py\na = 1\n\n# b\n- c\n```\ny"])
    assert [(b.kind, b.text, b.language) for b in blocks] == [
        (Kind.TEXT, "x\n", ""),
        (Kind.FENCE, "```py\n", "py"),
        (Kind.CODE, "a = 1\n", "py"),
        (Kind.CODE, "\n", "py"),
        (Kind.CODE, "# b\n", "py"),
        (Kind.CODE, "- c\n", "py"),
        (Kind.FENCE, "```\n", "py"),
        (Kind.TEXT, "y", ""),
    ]


def test_a_fence_closes_with_its_own_mark_only() -> None:
    """Shorter or other marks inside a fence are code."""
    blocks = blocks_of(["````\n```\n~~~\n````\n"])
    assert [b.kind for b in blocks] == [Kind.FENCE, Kind.CODE, Kind.CODE, Kind.FENCE]


def test_inline_code_with_three_marks_is_no_fence() -> None:
    """The info string of a backtick fence has no backticks."""
    assert texts("```a``` b\n\nc") == ["```a``` b\n\n", "c"]


def test_list_items_are_blocks_with_all_that_belongs_to_them() -> None:
    """Nested items, continued lines, indented paragraphs and code stay with their item."""
    first = "1. a\n   - b\n\n   c\n   ```\n2. no item\n   ```\n"
    assert texts(first + "2. d\nlazy\n\ntext") == [first, "2. d\nlazy\n\n", "text"]


def test_a_number_in_a_sentence_is_no_list() -> None:
    """Only "1." may interrupt a paragraph."""
    assert texts("born in\n1986. Then\n") == ["born in\n1986. Then\n"]
    assert texts("so:\n1. a\n") == ["so:\n", "1. a\n"]


def test_tables_are_whole() -> None:
    """All rows of a table are in one block."""
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert texts(table + "\nx") == [table + "\n", "x"]


def test_pending_is_what_is_not_shown_yet() -> None:
    """A finished block is not pending, the rest is."""
    stream = MarkdownStream()
    assert len(stream.feed("a\n\nb\nc")) == 1
    assert stream.pending == "b\nc"


LINES = st.sampled_from(
    ["a", "1. ", "2) x", "- b", "  c", "    d", "```", "```py", "~~~", "   ```", "# h", "| x |", "",
     " ", "> q", "* *", "-", "`"]
)  # fmt: skip


@given(st.lists(LINES, max_size=14), st.booleans(), st.data())
def test_any_chunking_gives_the_same_blocks_and_loses_nothing(
    lines: list[str], newline: bool, data: st.DataObject
) -> None:
    """Blocks joined are the text; where it was cut cannot be told from them."""
    text = "\n".join(lines) + ("\n" if newline else "")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = blocks_of([text])
    assert "".join(block.text for block in whole) == text
    assert blocks_of(chunks) == whole
