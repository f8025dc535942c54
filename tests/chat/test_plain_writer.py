"""An answer as plain text: cleaned, complete, ended by one newline."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from localmoe.terminal.console import make_console
from localmoe.terminal.plain_writer import PlainWriter
from localmoe.text import clean

CHUNKS = st.lists(st.text(st.sampled_from("ab \n\x1b[]1m;é"), max_size=6), max_size=8)


@given(CHUNKS)
def test_chunks_make_no_difference(chunks: list[str]) -> None:
    """However it is cut, the text arrives cleaned, and with a newline at its end."""
    stream = io.StringIO()
    writer = PlainWriter(make_console(stream))
    for chunk in chunks:
        writer.feed(chunk)
    writer.finish()
    text = clean("".join(chunks))
    assert stream.getvalue() == (text if not text or text.endswith("\n") else f"{text}\n")
    writer.finish()
    assert stream.getvalue().count("\n") == text.count("\n") + bool(text and text[-1] != "\n")
