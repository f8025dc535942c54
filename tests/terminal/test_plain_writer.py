"""An answer as plain text: complete, safe for a terminal, ended by one newline."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from localmoe.terminal.console import make_console
from localmoe.terminal.plain_writer import PlainWriter, WrappedWriter
from localmoe.text import clean

CHUNKS = st.lists(st.text(st.sampled_from("ab \n\x1b[]1m;é"), max_size=6), max_size=8)


class Terminal(io.StringIO):
    """Where control characters would act."""

    def isatty(self) -> bool:
        return True


@given(CHUNKS, st.booleans())
def test_chunks_make_no_difference(chunks: list[str], terminal: bool) -> None:
    """However it is cut, the text arrives, cleaned for a terminal, with a newline at its end."""
    stream = Terminal() if terminal else io.StringIO()
    writer = PlainWriter(make_console(stream))
    for chunk in chunks:
        writer.feed(chunk)
    writer.finish()
    text = clean("".join(chunks)) if terminal else "".join(chunks)
    assert stream.getvalue() == (text if not text or text.endswith("\n") else f"{text}\n")
    writer.finish()
    assert stream.getvalue().count("\n") == text.count("\n") + bool(text and text[-1] != "\n")


def wrapped(chunks: list[str], width: int) -> str:
    stream = io.StringIO()
    writer = WrappedWriter(Console(file=stream, width=width))
    for chunk in chunks:
        writer.feed(chunk)
    writer.finish()
    writer.finish()
    return stream.getvalue()


@given(st.lists(st.text(st.sampled_from("ab `\n\t-"), max_size=6), max_size=9))
def test_chunks_make_no_difference_to_wrapped_text(chunks: list[str]) -> None:
    """However it is cut; and no visible character is lost."""
    text = "".join(chunks)
    shown = wrapped(chunks, 16)
    assert shown == wrapped([text], 16)
    assert "".join(shown.split()) == "".join(text.split())


def test_words_are_kept_whole() -> None:
    """Lines end between words, go on below their indentation, and code is left as it is."""
    code = "```python\nprint('a line of code that is longer than the window')\n```"
    text = f"One two three four five six.\n\n  - an item that is long\n{code}\nand after it all"
    assert wrapped([text], 21) == (
        f"One two three four\nfive six.\n\n  - an item that is\n  long\n{code}\nand after it all\n"
    )
