"""Pictures of terminals: what is on the screen, in its colours and columns; no more."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from scripts.terminal_svg import CELL, COLOURS, GROUND, screen_of, svg, text_of, typed

SVG = "{http://www.w3.org/2000/svg}"


def texts(raw: str, columns: int = 40) -> list[ET.Element]:
    return list(ET.fromstring(svg(screen_of(raw, columns, 20), columns, "t")).iter(f"{SVG}text"))


def test_the_picture_is_the_screen() -> None:
    """What was overwritten is gone, blank lines at the end are left out, text is escaped."""
    lines = screen_of("one\r\nold\rnew <b>&\r\n\r\n", 40, 20)
    assert [text_of(line) for line in lines] == ["one", "new <b>&"]
    assert [element.text for element in texts("one\r\nold\rnew <b>&\r\n")] == ["one", "new <b>&"]


def test_styles_are_runs_of_their_own() -> None:
    """Colour, bold, dimmed as grey, reversed with a ground; each where its column is."""
    red, dim = texts("ab \x1b[31;1mred\x1b[0m \x1b[2mdim\x1b[0m")[1:]
    assert (red.text, red.get("fill"), red.get("font-weight")) == ("red", COLOURS["red"], "bold")
    assert (dim.text, dim.get("fill")) == ("dim", COLOURS["brightblack"])
    assert round(float(dim.get("x", 0)) - float(red.get("x", 0)), 1) == round(4 * CELL, 1)
    (reverse,) = texts("\x1b[7mx\x1b[0m")
    assert reverse.get("fill") == GROUND


def test_wide_characters_take_two_cells() -> None:
    (text,) = texts("漢字")
    assert float(text.get("textLength", 0)) == 4 * CELL


def test_a_command_line_is_wrapped_like_any_other() -> None:
    lines = [text_of(line) for line in typed("localmoe fit big.gguf", 12)]
    assert lines == ["$ localmoe f", "it big.gguf"]
