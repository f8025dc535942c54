"""When a turn does not fit: how many turns are in the way, found with few questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.attachments import Attachment
from localmoe.chat.builtin import attached
from localmoe.chat.context import (
    LEAST_ANSWER,
    MOST_ANSWER,
    Meter,
    Shortage,
    answer_room,
    bar,
    find_shortage,
    surely_fits,
)
from localmoe.chat.events import Timings, TurnDone, Usage
from localmoe.chat.overflow import too_long_alone


def counter(turns: list[int], fixed: int):  # type: ignore[no-untyped-def]
    """``count(skip)`` for turns of that many tokens beside ``fixed`` others."""
    return lambda skip: fixed + sum(turns[skip:])


def test_what_fits_is_no_shortage() -> None:
    """Up to the last token."""
    assert find_shortage(counter([10, 10], 70), 0, 2, 100, 10) is None
    assert find_shortage(counter([10, 10], 71), 0, 2, 100, 10) is not None


def test_half_of_the_context_becomes_free() -> None:
    """More goes than must, so that the next turns fit too."""
    shortage = find_shortage(counter([20, 20, 20, 20], 15), 0, 4, 100, 10)
    assert shortage is not None
    assert (shortage.drop, shortage.after, shortage.needed) == (3, 35, 95)


def test_a_long_question_takes_what_it_needs() -> None:
    """Where half cannot be freed, just enough turns go."""
    shortage = find_shortage(counter([10, 10, 10], 65), 0, 3, 100, 10)
    assert shortage is not None
    assert (shortage.drop, shortage.after) == (1, 85)


def test_too_long_by_itself() -> None:
    """Then nothing is dropped at all, and the counts are told."""
    shortage = find_shortage(counter([10], 95), 0, 1, 100, 10)
    assert shortage is not None
    assert shortage.drop is None
    assert "105 tokens and 10 for the answer, the context has 100" in shortage.message


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 200), st.integers(0, 12))
def test_the_choice_is_right(turns: list[int], fixed: int, skipped: int) -> None:
    """What is dropped makes room; one turn less would not have freed what was aimed at."""
    skipped = min(skipped, len(turns))
    count = counter(turns, fixed)
    shortage = find_shortage(count, skipped, len(turns), 200, 20)
    if count(skipped) + 20 <= 200:
        assert shortage is None
        return
    assert shortage is not None
    if shortage.drop is None:
        assert count(len(turns)) + 20 > 200
        return
    aim = 100 if count(len(turns)) <= 100 else 180
    assert count(shortage.drop) <= aim
    assert shortage.drop == skipped or count(shortage.drop - 1) > aim


@given(st.integers(1, 200_000), st.none() | st.integers(1, 5000))
def test_room_for_the_answer(context: int, max_tokens: int | None) -> None:
    """Within bounds, and never more than the answer may have."""
    room = answer_room(context, max_tokens)
    assert 1 <= room <= MOST_ANSWER
    assert room >= min(LEAST_ANSWER, max_tokens or LEAST_ANSWER)


def test_no_counting_where_it_is_certain() -> None:
    """Bytes are a bound on tokens; close to the border it is counted."""
    assert surely_fits(100, 1000, 8192, 512)
    assert not surely_fits(7000, 1000, 8192, 512)


def test_meter() -> None:
    """Used, of, percent; the bar shows the least use and no more than all."""
    assert str(Meter(6120, 8192)) == "6,120/8,192 (75 %)"
    assert bar(Meter(1, 8192), 4) == "━╌╌╌"
    assert bar(Meter(0, 8192), 4) == "╌╌╌╌"
    assert bar(Meter(9000, 8192), 4) == "━━━━"


@pytest.mark.parametrize(
    ("context", "trained", "more"),
    [(4096, 8192, True), (8192, 8192, False), (16384, 8192, False), (4096, 0, True)],
)
def test_no_hint_goes_past_what_a_model_was_trained_for(
    context: int, trained: int, more: bool
) -> None:
    """More context is the way out only where the model knows what to do with it."""
    done = TurnDone("length", "x", "", Usage(context - 1, 1), Timings(0, None, None))
    told = (
        str(done.why_it_ended(context, trained)),
        too_long_alone(Shortage(2 * context, 32, context, None), trained),
        attached([Attachment("a.txt", "text")], lambda _: context, context, trained),
    )
    for text in told:
        assert ("--ctx" in text) == more, text
