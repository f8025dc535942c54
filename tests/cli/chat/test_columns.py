"""What fits into a window: columns, the card, the lines after a turn. Nothing is left out."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from localmoe.chat.builtin import add_builtin
from localmoe.chat.columns import flow, flowed, two_columns
from localmoe.chat.commands import KEYS, Registry
from localmoe.chat.context import Meter
from localmoe.chat.events import Timings, TurnDone, Usage
from localmoe.cli.chat.status import card, status_lines
from localmoe.engine.events import CacheStats, Finished
from localmoe.planning.plan import Tiers
from tests.cli.chat.scripted_model import MODEL, plan

WORDS = st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=8).map(" ".join)
ON_DISK = plan(*["gpu"] * 8, *["ram"] * 16, *["disk"] * 24)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5), st.integers(12, 120))
def test_columns_keep_every_word_and_the_width(rows: list[tuple[str, str]], width: int) -> None:
    """Whatever the width: each row's words in order, no line wider than the window."""
    text = two_columns(rows, width)
    assert all(len(line) <= width for line in text.splitlines())
    # Side by side the lines mix two columns; taken by themselves they do not.
    assert sorted(text.split()) == sorted(
        word for row in rows for cell in row for word in cell.split()
    )


def test_columns_side_by_side_or_below() -> None:
    """The right column hangs beside the left one, or goes below it where it is too narrow."""
    rows = [("/one X", "what it does with it"), ("/two", "more")]
    assert two_columns(rows, 80) == "/one X  what it does with it\n/two    more"
    assert two_columns(rows, 30) == "/one X\n  what it does with it\n/two\n  more"
    long = [("a", "one two three four five six seven")]
    assert two_columns(long, 29) == "a  one two three four five\n   six seven"


def test_parts_flow_onto_lines() -> None:
    """As many as fit, in order; the width counts what stands between them."""
    assert flow(["aaa", "bbb", "c"], len, 9) == [["aaa", "bbb"], ["c"]]
    assert flow(["aaa", "bbb", "c"], len, 8) == [["aaa"], ["bbb", "c"]]
    assert flow(["a" * 20, "b"], len, 5) == [["a" * 20], ["b"]]
    assert flowed(["one", "two"], 80) == "one · two"


@pytest.mark.parametrize("width", [20, 40, 80, 160])
def test_help_has_room_in_any_window(width: int) -> None:
    """Commands and keys: no line is wider than the window."""
    registry = Registry()
    add_builtin(registry)
    text = f"{registry.help('', width)}\n{flowed(KEYS, width)}"
    assert all(len(line) <= width for line in text.splitlines())
    for command in registry.commands.values():
        assert f"/{command.name}" in text
        assert all(word in text for word in command.summary.split())
    assert "$EDITOR" in text


def turn(tps: float | None, ttft: float, hits: tuple[int, int] | None, used: int) -> TurnDone:
    usage = Usage(used - 10, 10)
    finished = Finished("stop", used - 10, 0, 10, ttft, 50.0, tps)
    if hits is not None:
        stats = CacheStats("private", *hits, 0, 0.0, 0, 0)
        finished = dataclasses.replace(finished, cache=stats)
    return TurnDone("stop", "", "", usage, Timings(ttft, 50.0, tps), finished)


@given(
    st.floats(0.1, 999),
    st.floats(0.01, 59),
    st.integers(0, 100),
    st.integers(10, 131_072),
    st.integers(39, 200),
)
def test_no_figure_is_left_out(tps: float, ttft: float, hits: int, used: int, width: int) -> None:
    """Speed, first token, context, cache and homes of experts, on at most two lines."""
    done = turn(tps, ttft, (hits, 100 - hits), used)
    lines = [line.plain for line in status_lines(done, Meter(used, 131_072), ON_DISK, width)]
    assert len(lines) <= 2
    assert all(cell_len(line) <= width for line in lines)
    text = " ".join(lines)
    facts = ("tok/s", "TTFT ", "context ", f"cache {hits} %", "GPU 8", "RAM 16", "disk 24")
    assert all(fact in text for fact in facts), text


def test_one_line_where_it_fits() -> None:
    """Eighty columns have room for all of an ordinary turn; a wide window for a meter too."""
    done = turn(10.2, 0.35, None, 65)
    (line,) = status_lines(done, Meter(65, 2048), plan("ram"), 79)
    assert line.plain == (
        "10.2 tok/s · 10 tokens · TTFT 0.35 s · context 65/2,048 (3 %) · experts in RAM"
    )
    (wide,) = status_lines(done, Meter(65, 2048), plan("ram"), 159)
    assert "context ━╌╌╌╌╌╌╌╌╌ 65/2,048 (3 %)" in wide.plain
    narrow = [line.plain for line in status_lines(done, Meter(65, 2048), plan("ram"), 39)]
    assert narrow == [
        "10.2 tok/s · 10 tokens · TTFT 0.35 s",
        "context 65/2,048 (3 %) · experts in RAM",
    ]


def test_the_card_breaks_between_its_facts() -> None:
    """Model, home, context and speed; in a narrow window on more lines."""
    shown = dataclasses.replace(ON_DISK, tiers=Tiers(8 << 30, 16 << 30, 24 << 30))
    wide = [line.plain for line in card(MODEL, shown, 8192, 100, "11 tok/s (7–16)")]
    assert wide == [
        "tiny · Q8_0 · 0 B",
        "GPU 8.0 GiB (0 layers) · RAM 16.0 GiB · disk 24.0 GiB · context 8,192 · 11 tok/s (7–16)",
    ]
    narrow = [line.plain for line in card(MODEL, shown, 8192, 40, "11 tok/s (7–16)")]
    assert all(cell_len(line) <= 40 for line in narrow)
    assert " · ".join(narrow) == " · ".join(wide)
