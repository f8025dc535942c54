"""Streaming markdown: pieces are final, complete, and independent of where the text was cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localmoe.terminal.inline import LIMIT, InlineStream, Span, Style
from localmoe.terminal.markdown import (
    Blank,
    CodeEnd,
    CodeLine,
    CodeStart,
    LineEnd,
    LineStart,
    MarkdownStream,
    Piece,
    Rule,
    Table,
)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring spans of one style as one."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, Span) and isinstance(last, Span) and last.style == piece.style:
            result[-1] = Span(last.text + piece.text, piece.style)
        elif not isinstance(piece, Span) or piece.text:
            result.append(piece)
    return result


def pieces_of(chunks: Sequence[str]) -> list[Piece]:
    stream = MarkdownStream()
    return joined([p for chunk in chunks for p in stream.feed(chunk)] + stream.finish())


def line(text: str) -> list[Span]:
    stream = InlineStream()
    spans = joined([*stream.feed(text), *stream.finish()])
    return [span for span in spans if isinstance(span, Span)]


B, I, C, S = Style.BOLD, Style.ITALIC, Style.CODE, Style.STRIKE  # noqa: E741
INLINE = {
    "plain": [Span("plain")],
    "a **b** c": [Span("a "), Span("b", B), Span(" c")],
    "*a* _b_": [Span("a", I), Span(" "), Span("b", I)],
    "***x***": [Span("x", B | I)],
    "**a *b* c**": [Span("a ", B), Span("b", B | I), Span(" c", B)],
    "**a `b**` c**": [Span("a ", B), Span("b**", B | C), Span(" c", B)],
    "`a ** b`": [Span("a ** b", C)],
    "``a`b``": [Span("a`b", C)],
    "`` ` ``": [Span("`", C)],
    "~~x~~ ~y~": [Span("x", S), Span(" ~y~")],
    "snake_case_name": [Span("snake_case_name")],
    "2*3*4 and 2 * 3": [Span("2*3*4 and 2 * 3")],
    "**kwargs are kept": [Span("**kwargs are kept")],
    r"\*not\* \a": [Span(r"*not* \a")],
    "是**重点**内容": [Span("是"), Span("重点", B), Span("内容")],
    "[t](u) x": [Span("t", Style.LINK), Span(" (u)", Style.ADDRESS), Span(" x")],
    "[u](u)": [Span("u", Style.LINK)],
    "[a](x(y))": [Span("a", Style.LINK), Span(" (x(y))", Style.ADDRESS)],
    '[a](u "title")': [Span("a", Style.LINK), Span(" (u)", Style.ADDRESS)],
    "![alt](u)": [Span("alt", Style.LINK), Span(" (u)", Style.ADDRESS)],
    "[1] and [x](": [Span("[1] and [x](")],
    "wow!": [Span("wow!")],
}


@pytest.mark.parametrize("text", INLINE)
def test_inline(text: str) -> None:
    """Marks with a partner are styles, marks without one are text."""
    assert line(text) == INLINE[text]


def test_a_mark_waits_for_its_partner_only_so_long() -> None:
    """An opening mark that is never closed holds back a bounded piece of text."""
    stream = InlineStream()
    stream.feed("**" + "a" * LIMIT)
    assert len(stream.held) > LIMIT
    assert stream.feed("b" * 10)
    assert stream.held == ""


def kinds(text: str) -> list[Piece]:
    """The pieces but for the text itself."""
    return [p for p in pieces_of([text]) if not isinstance(p, Span | LineEnd)]


def test_kinds_of_lines() -> None:
    """Each by its first characters."""
    assert kinds("# a\n") == [LineStart(heading=1)]
    assert kinds("#a\n") == [LineStart()]
    assert kinds("- a\n  * b\n    + c\n") == [
        LineStart("•", 0),
        LineStart("◦", 2),
        LineStart("▪", 4),
    ]
    assert kinds("10. a\n2) b\n") == [LineStart("10."), LineStart("2)")]
    assert kinds("- [ ] a\n- [x] b\n") == [LineStart("☐"), LineStart("☑")]
    assert kinds("> a\n>> b\n") == [LineStart(quotes=1), LineStart(quotes=2)]
    assert kinds("---\n* * *\n___\n") == [Rule(), Rule(), Rule()]
    assert kinds("-5 or 1986.\n") == [LineStart()]
    assert kinds("a\n\n\n \nb\n") == [LineStart(), Blank(), LineStart()]
    assert kinds("   indented\n") == [LineStart(indent=3)]


def test_code_is_untouched_and_comes_by_lines() -> None:
    """Blank lines and marks inside it are code; an open block is closed at the end."""
    text = "```py\na = 1\n\n# b\n- c **d**\n```\ny"
    assert kinds(text) == [
        CodeStart("py"),
        CodeLine("a = 1"),
        CodeLine(""),
        CodeLine("# b"),
        CodeLine("- c **d**"),
        CodeEnd(),
        LineStart(),
    ]
    assert kinds("~~~\n```\n") == [CodeStart(""), CodeLine("```"), CodeEnd()]


def test_code_in_a_list_keeps_its_own_indentation() -> None:
    """What the list adds is taken off."""
    assert kinds("   ```c\n   if\n     x\n  y\n   ```\n") == [
        CodeStart("c", 3),
        CodeLine("if"),
        CodeLine("  x"),
        CodeLine("y"),
        CodeEnd(),
    ]


def test_a_fence_within_a_sentence_is_no_fence() -> None:
    """The info string of a backtick fence has no backticks."""
    assert kinds("```a``` b\n") == [LineStart()]


def test_tables() -> None:
    """Whole, with alignment; short rows are filled; bars alone are no table."""
    table = "| a | b |\n|:-:|--:|\n| 1 |\n| x\\|y | **2** | 3 |\n"
    assert kinds(table + "\nx") == [
        Table((("a", "b"), ("1", ""), ("x|y", "**2**")), ("center", "right")),
        Blank(),
        LineStart(),
    ]
    assert kinds("| no table\n| at all\n") == [LineStart(), LineStart()]


def test_words_do_not_wait_for_their_line() -> None:
    """What a line is, is clear after a few characters, and its words come at once."""
    stream = MarkdownStream()
    assert stream.feed("1") == stream.feed(".") == []
    assert stream.feed(" A") == [LineStart("1."), Span("A")]
    assert stream.feed("nd") == [Span("nd")]


def test_how_far_a_table_is() -> None:
    """For a line that says that something is going on."""
    stream = MarkdownStream()
    stream.feed("| a |\n|---|\n| 1")
    assert stream.table_rows == 3


FRAGMENTS = st.sampled_from(
    ["a", "b ", "word", " ", "  ", "    ", "\n", "\n\n", "\t", "*", "**", "***", "_", "__", "`",
     "``", "```", "~~", "~~~", "- ", "1. ", "2) ", "# ", "> ", "|", "|-|", "---", "[", "](", ")",
     "[t](u)", "!", "\\", "[ ] ", "é", "漢", "x1", "(", "\"", "." * 299]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=24), st.data())
@example(["**a `b** c` d**"], None)
def test_any_chunking_gives_the_same_pieces(
    fragments: list[str], data: st.DataObject | None
) -> None:
    """Where the text was cut cannot be told from what is shown."""
    text = "".join(fragments)
    sizes = data.draw(st.lists(st.integers(0, len(text)), max_size=8)) if data else [3, 7, 11]
    cuts = sorted(min(size, len(text)) for size in sizes)
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = pieces_of([text])
    assert pieces_of(chunks) == whole
    assert pieces_of(list(text)) == whole


@given(st.text(alphabet="ab 漢*_`~[]()!\\", max_size=60))
def test_no_letter_is_lost(text: str) -> None:
    """Marks may go, words may not."""
    shown = "".join(span.text for span in line(text))
    assert [c for c in shown if c.isalpha()] == [c for c in text if c.isalpha()]
