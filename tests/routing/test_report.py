"""The report page: readable on dark and narrow screens, long tables folded, values on pointing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from localmoe.routing.report import FOLDED_FROM, Section, Table, page
from localmoe.routing.svg import Line, Plot, heat_map, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(ys: list[float], *, y_top: float | None = 1.0, percent: bool = False) -> str:
    xs = [float(x) for x in range(len(ys))]
    return line_plot("t", "layer", "entropy", xs, [Line("e", ys)], y_top=y_top, percent=percent)


def heights(svg: str) -> list[float]:
    """Of the points of the first line, in the plot's units, downwards."""
    points = re.search(r'<polyline points="([^"]+)"', svg)
    assert points
    return [float(point.split(",")[1]) for point in points[1].split()]


@pytest.mark.parametrize(("low", "begins"), [(0.97, 0.95), (0.63, 0.6), (0.51, 0.5), (0.3, 0.0)])
def test_an_axis_shows_what_differs_and_says_where_it_begins(low: float, begins: float) -> None:
    """Values near the top fill the plot; the axis then says that it does not begin at 0."""
    svg = drawn([low, 1.0])
    below, above = heights(svg)
    expected = (1.0 - low) / (1.0 - begins) * (320 - 40 - 46)
    assert below - above == pytest.approx(expected, abs=0.2)
    assert (f"entropy, from {begins:g}" in svg) == (begins > 0)


def test_an_axis_of_its_own_height_begins_at_zero() -> None:
    """Where no top is given the largest value is the top, and nothing is cut off below."""
    assert ", from" not in drawn([0.9, 1.0], y_top=None)


def test_points_and_rows_tell_their_values() -> None:
    """Whoever points at a value reads it, without a script; the text is escaped."""
    told = [e.text for e in ElementTree.fromstring(drawn([0.25, 0.5])).iter(f"{SVG}title")]
    assert told[1:] == ["e, layer 0: 0.25", "e, layer 1: 0.5"]
    rows = ElementTree.fromstring(heat_map("t", "expert", "layer", [("3<", [0.0, 4.1, 0.5])]))
    said = [e.text for e in rows.iter(f"{SVG}title")]
    assert said[1:] == ["layer 3<: at most 4.1 times the mean (1), 1 never used"]


def whole(rows: int, sections: int = 1) -> str:
    table = Table(["a", "b"], [[str(n), "x"] for n in range(rows)])
    plot = Plot("p", "p", "caption", drawn([0.5, 0.6]))
    return page(
        "t", "f", [Section(f"Part {n}", plots=[plot], table=table) for n in range(sections)]
    )


def test_a_long_table_is_folded() -> None:
    """What follows a table of 94 rows is not pages away; a short one is simply there."""
    assert f"<summary>All {FOLDED_FROM} rows</summary>" in whole(FOLDED_FROM)
    assert "<details>" not in whole(FOLDED_FROM - 1)


def test_contents_lead_to_the_sections() -> None:
    """Each link has its target; one section needs no list."""
    text = whole(1, sections=3)
    targets = re.findall(r'<h2 id="([^"]+)"', text)
    assert re.findall(r'<a href="#([^"]+)"', text) == targets and len(targets) == 3
    assert "<nav>" not in whole(1)


def test_dark_and_narrow_screens_are_provided_for() -> None:
    """Every colour of a plot that dark would hide has a rule of the page; plots keep their size."""
    text = whole(1)
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text
    classes = set(re.findall(r'class="(ground|title|tick|axis|rule)"', text))
    for name in classes:
        assert f"svg .{name} {{" in text
    assert classes == {"ground", "title", "tick", "axis", "rule"}
    assert re.search(r"figure svg \{[^}]*min-width: 6\d\dpx", text)
    assert "<script" not in text
