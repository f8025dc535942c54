"""docs/engine-upgrade.md: what rests on the engine's inside, each with a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import try_engine

ROOT = Path(__file__).parents[1]
LINES = list(try_engine.lines(try_engine.PAGE.read_text("utf-8")))
# What marks a place in the source that rests on the inside: mangled names, and nodes of a graph.
INSIDE = re.compile(r"\"_Z\w{8}|\"ffn_moe_\w+-?\"|#include \"ggml_layout.h\"")


def test_every_line_has_tests_that_there_are() -> None:
    """A test that was renamed guards nothing."""
    rows = [row for row in try_engine.PAGE.read_text("utf-8").splitlines() if row.startswith("| ")]
    assert len(LINES) == len(rows) - 1 >= 20  # less the head
    for line in LINES:
        for test in line.tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text("utf-8")
            assert not name or f"def {name}(" in text, test


def test_every_place_in_the_source_is_on_the_page() -> None:
    """Mangled names, names of nodes and the layouts: the files that have them are named."""
    page = try_engine.PAGE.read_text("utf-8")
    files = [*(ROOT / "localmoe").rglob("*.py"), *(ROOT / "localmoe").rglob("*.cpp")]
    found = {file for file in files if INSIDE.search(file.read_text("utf-8"))}
    assert len(found) >= 5
    names = {str(file.relative_to(ROOT)) for file in found}
    assert {name for name in names if name not in page} == set()


def test_the_environment_gets_another_engine_and_all_else() -> None:
    """The pinned engine is not asked for, or pip would put it back."""
    needed = try_engine.requirements()
    assert not any("llama" in need for need in needed)
    assert any(need.startswith("pytest") for need in needed)
