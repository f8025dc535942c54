"""JSON bodies: parsed within bounds, whatever is sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.server import limits
from localmoe.server.json_body import parse
from localmoe.server.problems import Problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_object_is_a_400(body: bytes) -> None:
    """A body that is no JSON object of bounded depth gets through, or breaks the parser."""
    with pytest.raises(Problem) as caught:
        parse(body)
    assert caught.value.status == 400


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    """Text that cannot be encoded reaches the engine, or is a server's error."""
    assert parse(b'{"a": "x\\ud83d", "\\udc00": "\\ud83d\\ude00"}') == {"a": "x?", "?": "😀"}


def test_depth_is_counted_from_the_outside() -> None:
    """A body at the limit is refused."""
    inner = b"[" * (limits.DEPTH - 1) + b"]" * (limits.DEPTH - 1)
    assert "a" in parse(b'{"a": ' + inner + b"}")


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
@settings(max_examples=30)
def test_json_is_read_as_it_is(value: dict[str, object]) -> None:
    """Something else is read than was sent, escaped or not."""
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    """Some bytes are another error than a Problem."""
    try:
        parse(data)
    except Problem as problem:
        assert problem.status == 400
