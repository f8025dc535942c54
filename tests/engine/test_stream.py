"""Bytes of tokens become text: whole characters, stop strings, whatever the chunking."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from localmoe.engine.worker.vocabulary import TextStream


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_any_chunking_gives_the_text(text: str, at: list[int]) -> None:
    """Characters split over tokens are put together again."""
    data = text.encode("utf-8", errors="replace")
    stream = TextStream(())
    pieces = [stream.feed(chunk) for chunk in cut(data, at)]
    assert "".join(pieces) + stream.flush() == data.decode()


@given(
    st.text("ab<>|x", max_size=40),
    st.lists(st.text("ab<>|x", min_size=1, max_size=6), min_size=1, max_size=3),
    st.lists(st.integers(0, 10_000)),
)
def test_stop_strings_cut_at_the_first_one(text: str, stop: list[str], at: list[int]) -> None:
    """The text ends before the stop string that is completed first, and nothing of it leaks."""
    stream = TextStream(tuple(stop))
    out = ""
    for chunk in cut(text.encode(), at):
        out += stream.feed(chunk)
        if stream.stopped_by is not None:
            break
    else:
        out += stream.flush()
    if stream.stopped_by is None:
        assert out == text
        assert not any(s in text for s in stop)
    else:
        assert stream.stopped_by in stop
        assert text.startswith(out + stream.stopped_by)
        assert not any(s in out for s in stop)


@given(st.binary(max_size=60), st.lists(st.integers(0, 10_000)))
def test_invalid_utf8_becomes_replacement_characters(data: bytes, at: list[int]) -> None:
    """What is no UTF-8 is marked, not dropped and not an error."""
    stream = TextStream(())
    out = "".join(stream.feed(chunk) for chunk in cut(data, at)) + stream.flush()
    assert out == data.decode("utf-8", errors="replace")
