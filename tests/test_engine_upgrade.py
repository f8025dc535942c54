"""docs/engine-upgrade.md: what rests on the engine's inside, each with a test that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts import try_engine
from tests.waiting import wait_until

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


def test_what_hangs_is_named() -> None:
    """With what failed before it; what fails and ends is told in pytest's words."""
    said = ["tests/a.py::one FAILED [ 1%]", "tests/a.py::two PASSED [ 2%]", "tests/a.py::three "]
    assert try_engine.verdict(None, said) == ["FAILED tests/a.py::one", "HANGS  tests/a.py::three"]
    assert try_engine.verdict(0, said) == []
    assert try_engine.verdict(1, [*said, "FAILED it - why"]) == ["FAILED it - why"]
    assert try_engine.verdict(4, ["1", "2", "3", "4"]) == ["2", "3", "4"]


@pytest.mark.process
def test_all_that_a_line_started_is_ended(tmp_path: Path) -> None:
    """What has a session of its own, as engines have, is found, too."""
    note = tmp_path / "pid"
    code = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(3600)']\n"
        "child = subprocess.Popen(command, start_new_session=True)\n"
        f"open({str(note)!r} + '~', 'w').write(str(child.pid))\n"
        f"os.replace({str(note)!r} + '~', {str(note)!r})\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_until(note.exists, "the child has not been started")
        try_engine.end_all(parent.pid)
    child = int(note.read_text())
    wait_until(lambda: not psutil.pid_exists(child), "the child is alive")
