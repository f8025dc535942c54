"""Bytes of tokens become text: whole characters, whatever the chunking."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from localmoe.engine.worker.vocabulary import Utf8


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_any_chunking_gives_the_text(text: str, at: list[int]) -> None:
    """Characters split over tokens are put together again."""
    data = text.encode("utf-8", errors="replace")
    stream = Utf8()
    pieces = [stream.feed(chunk) for chunk in cut(data, at)]
    assert "".join(pieces) + stream.flush() == data.decode()


@given(st.binary(max_size=60), st.lists(st.integers(0, 10_000)))
def test_invalid_utf8_becomes_replacement_characters(data: bytes, at: list[int]) -> None:
    """What is no UTF-8 is marked, not dropped and not an error."""
    stream = Utf8()
    out = "".join(stream.feed(chunk) for chunk in cut(data, at)) + stream.flush()
    assert out == data.decode("utf-8", errors="replace")
