"""What an answer writes to the terminal: wrapped, append-only, the same for any chunking."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from localmoe.terminal.answer_writer import AnswerWriter, ReasoningWriter
from localmoe.terminal.inline import Style
from localmoe.terminal.wrap import Wrapper
from localmoe.text import FORBIDDEN
from tests.effort import yards

SGR = re.compile(r"\x1b\[[\d;]*m")


def written(chunks: Sequence[str], columns: int) -> str:
    """The bytes of an answer on a terminal of that width."""
    file = io.StringIO()
    console = Console(  # with a height, which is else that of the terminal the tests run in
        file=file, force_terminal=True, width=columns, height=25, color_system="standard",
        markup=False, emoji=False, highlight=False,
    )  # fmt: skip
    writer = AnswerWriter(console)
    for chunk in chunks:
        writer.feed(chunk)
    writer.finish()
    return file.getvalue()


def screen(raw: str, columns: int, rows: int = 200) -> str:
    """What a terminal shows of it."""
    terminal = pyte.Screen(columns, rows)
    pyte.Stream(terminal).feed(raw.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in terminal.display).rstrip()


def lasting(raw: str) -> str:
    """What stays of it, without its styles; what is taken back must be on the cursor's line."""
    shown, saved = "", 0
    for part in re.split(r"(\x1b7|\x1b8\x1b\[K)", SGR.sub("", raw)):
        if part == "\x1b7":
            saved = len(shown)
        elif part == "\x1b8\x1b[K":
            assert "\n" not in shown[saved:]
            shown = shown[:saved]
        else:
            shown += part
    return shown


def test_prose_is_only_appended() -> None:
    """Plain words in plain chunks: no cursor movement that does anything is left in the text."""
    text = "The quick brown fox jumps over the lazy dog. " * 4
    for size in (1, 3, 50):
        raw = written([text[i : i + size] for i in range(0, len(text), size)], 40)
        assert "\x1b8" not in raw.replace("\x1b8\x1b[K\n", "\n"), raw


SAMPLE = """\
# Title

A **bold word** and `code`, [a link](https://example.org/path), ~~gone~~.

1. first item, long enough to be wrapped at forty columns
   - nested

| a | b |
|---|--:|
| 混合 | 2 |

> quoted text that is long enough to be wrapped as well

```python
def f(x):
    return "x" * 100
```
    done ***now***
"""


@pytest.mark.parametrize("columns", [20, 40, 80, 160])
def test_any_chunking_shows_the_same(columns: int) -> None:
    """Letter by letter, in one piece, and in between."""
    whole = screen(written([SAMPLE], columns), columns)
    for size in (1, 2, 5, 17):
        chunks = [SAMPLE[i : i + size] for i in range(0, len(SAMPLE), size)]
        assert screen(written(chunks, columns), columns) == whole


FRAGMENTS = st.sampled_from(
    ["word", " ", "long" * 12, "\n", "\n\n", "**", "*", "`", "```\n", "- ", "1. ", "| a |\n",
     "|-|\n", "> ", "# ", "[t](u)", "漢字", "👩\u200d🔬", "e\u0301", "\x1b[2J", "\x1b]0;t\x07",
     "\t", "\u202e"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=30), st.sampled_from([12, 40, 80]), st.data())
def test_any_text_is_safe_and_never_repainted(
    fragments: list[str], columns: int, data: st.DataObject
) -> None:
    """Any text, cut anywhere: the same screen; and no sequence but our own few.

    Those are styles, and saving, restoring and erasing behind the cursor on its line.
    """
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = lasting(written([text], columns))
    assert lasting(written(chunks, columns)) == whole
    assert not FORBIDDEN.search(whole)


def test_a_table_is_as_wide_as_the_window_at_most() -> None:
    """Long cells are folded."""
    text = "| name | what it is |\n|---|---|\n| x | " + "many words in a cell " * 5 + "|\n"
    shown = screen(written([text], 40), 40)
    assert all(cell_len(line) <= 40 for line in shown.splitlines())
    assert shown.count("many") == 5


def test_a_table_too_narrow_for_its_columns_becomes_a_list() -> None:
    """Many columns in a small window: every cell beside its title, no word broken."""
    titles = ["model", "size", "experts", "context", "speed", "licence"]
    text = f"| {' | '.join(titles)} |\n{'|---' * 6}|\n"
    for name in ("first", "second"):
        text += f"| {name} | 17 GiB | 128 | 40,960 | fast enough | Apache |\n"
    shown = screen(written([text], 40), 40)
    for title, cell in zip(
        titles, ("first", "17 GiB", "128", "40,960", "fast enough"), strict=False
    ):
        assert re.search(rf"^{title} +{cell}$", shown, re.MULTILINE), shown
    assert shown.count("Apache") == shown.count("licence") == 2
    wide = screen(written([text], 80), 80)
    assert re.search(r"^model +size +experts +context +speed +licence$", wide, re.MULTILINE)


def test_breaks_in_cells_are_lines() -> None:
    """The HTML that models write where markdown has nothing of its own."""
    shown = screen(written(["| a | b |\n|---|---|\n| one<br>two | x<br/> y |\n"], 40), 40)
    assert re.search(r"one +x\ntwo +y", shown)


def test_after_a_change_of_the_window_nothing_is_taken_back() -> None:
    """Where the old tail is then, nobody knows: it stays, and the text goes on."""
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=60, height=20, color_system="standard",
        markup=False, emoji=False, highlight=False,
    )  # fmt: skip
    writer = AnswerWriter(console)
    for chunk in ("one two th", "r"):
        writer.feed(chunk)
    before = len(file.getvalue())
    console.size = (30, 10)
    for chunk in ("ee fo", "ur **bo", "ld**\n", "end"):
        writer.feed(chunk)
    writer.finish()
    after = file.getvalue()[before:]
    assert lasting(file.getvalue()) == "one two three four bold\nend\n"
    assert not after.split("ee")[0].count("\x1b8")


@pytest.mark.parametrize(
    "text",
    [
        "x" * 40_000,
        "**" * 12_000,
        "[a](" * 8_000,
        "`" * 20_000,
        "| " * 16_000 + "\n",
        "a\u0301" * 12_000,
        "e" + "\u0301" * 20_000,
        "- " * 12_000,
        "> " * 12_000,
        "\x1b]52;c;" + "A" * 36_000,
        "```\n" + "y" * 36_000,
        " " * 36_000 + "z",
        "1. " * 12_000,
        "#" * 20_000 + " " * 16_000,
        "-" * 36_000,
        "[ " * 16_000,
        "_a" * 16_000,
        "\\" * 36_000,
        "|" + "-" * 36_000 + "\n" + "|" + "-|" * 16_000,
    ],
    ids=["word", "marks", "links", "ticks", "bars", "accents", "accent", "items", "quotes", "osc",
         "code", "blanks", "numbers", "heading", "rule", "brackets", "underscores", "backslashes",
         "delimiters"],
)  # fmt: skip
def test_very_long_lines_are_no_burden(text: str) -> None:
    """Forty thousand characters without a line's end, in pieces, in two seconds of work at most."""
    began = time.thread_time()
    raw = written([text[i : i + 500] for i in range(0, len(text), 500)], 80)
    assert yards(time.thread_time() - began) < 60
    assert not FORBIDDEN.search(lasting(raw))


def test_what_is_under_way_is_shown_on_the_cursors_line() -> None:
    """Half a line of code, half a word, the rows of a table: visible before they are final."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, color_system="standard")
    writer = AnswerWriter(console)
    for chunk, shown in (
        ("Some wor", "Some wor"),
        ("ds\n\n```py\nx = ", "x ="),
        ("1\n```\n| a |\n|---|\n| 1", "table · 3 rows"),
    ):
        writer.feed(chunk)
        assert screen(file.getvalue(), 60).splitlines()[-1].startswith(shown)
    writer.finish()
    assert "table ·" not in screen(file.getvalue(), 60)


def test_reasoning_is_cleaned_and_wrapped() -> None:
    """Behind a bar on every line, without the control characters."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=20, color_system="standard")
    writer = ReasoningWriter(console)
    for chunk in ("one two three four five", " six\x1b]0;", "t\x07\nseven"):
        writer.feed(chunk)
    writer.finish()
    assert screen(file.getvalue(), 20) == "│ one two three\n│ four five six\n│ seven"
    assert "\x1b]" not in file.getvalue()


class TestWrapper:
    def wrapped(self, chunks: Sequence[str], width: int, lead: str = "", rest: str = "") -> str:
        wrapper = Wrapper(lambda: width)
        out = wrapper.start(lead, rest) + "".join(wrapper.add(chunk) for chunk in chunks)
        return SGR.sub("", out + wrapper.end())

    def test_words(self) -> None:
        """Whole words go to the next line, below the text of the first."""
        assert self.wrapped(["one two three four"], 9, "• ", "  ") == "• one two\n  three\n  four\n"

    def test_a_word_longer_than_the_line(self) -> None:
        """It starts on a line of its own and is broken at the margin."""
        assert self.wrapped(["see abcdefghijkl now"], 8) == "see\nabcdefgh\nijkl now\n"

    def test_scripts_without_spaces(self) -> None:
        """Wide characters may be broken anywhere, and take two cells."""
        assert self.wrapped(["ab 漢字漢字 c"], 7) == "ab 漢字\n漢字 c\n"

    def test_the_first_word_is_written_letter_by_letter(self) -> None:
        """It need not wait for its end; a word in the middle must."""
        wrapper = Wrapper(lambda: 20)
        wrapper.start()
        assert wrapper.add("He") == "He"
        assert wrapper.add("llo wor") == "llo"
        assert wrapper.word == " wor"
        assert wrapper.add("ld ") == " world"

    def test_styles(self) -> None:
        """One escape sequence for each run of a style."""
        wrapper = Wrapper(lambda: 20)
        assert wrapper.start() + wrapper.add("bold", Style.BOLD) == "".join(
            f"\x1b[1m{letter}\x1b[0m" for letter in ["bold"]
        )

    @settings(deadline=None)
    @given(
        st.lists(st.sampled_from(["a", "bcd ", " ", "漢", "x" * 25, "e\u0301", "-"]), max_size=25),
        st.sampled_from([5, 10, 39]),
        st.sampled_from([("", ""), ("• ", "  "), ("▌ ", "▌ ")]),
        st.data(),
    )
    def test_any_chunking_wraps_the_same(
        self, parts: list[str], width: int, leads: tuple[str, str], data: st.DataObject
    ) -> None:
        """No line is too wide, nothing is lost, the chunks cannot be told."""
        text = "".join(parts)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        whole = self.wrapped([text], width, *leads)
        assert self.wrapped(chunks, width, *leads) == whole
        assert all(cell_len(line) <= width for line in whole.splitlines())
        assert re.sub(r"[\s•▌]", "", whole) == re.sub(r"\s", "", text)
