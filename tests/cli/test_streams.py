"""What ``fit`` and ``show`` write, to a terminal of any width, to a pipe, and to nowhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte
import pytest

from tests.cli.command import Localmoe, environment
from tests.waiting import PATIENCE

ArchFile = Callable[..., Path]


def in_terminal(home: Path, *args: str | Path, columns: int, **env: str) -> tuple[str, list[str]]:
    """Everything a command writes to a terminal of that width, and the screen at its end."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "localmoe", *map(str, args)],
        env=environment(home, TERM="xterm-256color", **env),
        cwd=str(home),
        dimensions=(60, columns),
        encoding="utf-8",
        timeout=PATIENCE,
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    text = str(child.before)
    screen = pyte.Screen(columns, 60)
    pyte.Stream(screen).feed(text)
    return text, [line.rstrip() for line in screen.display]


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_fit_in_a_terminal(localmoe: Localmoe, arch_file: ArchFile, columns: int) -> None:
    """Coloured, and every figure readable at any width: no number is cut by a line's end."""
    text, screen = in_terminal(
        localmoe.home, "fit", arch_file("qwen3moe"), "--ram", "4", columns=columns
    )
    assert "\x1b[" in text
    for label in ("dense weights", "expert weights", "KV cache", "compute", "total"):
        assert any(re.search(rf"^ *{label} +[\d.]+ [KMG]iB", line) for line in screen), screen


def test_no_color(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """``NO_COLOR`` drops every escape code, bold and dim included."""
    path = arch_file("qwen3moe")
    text, _ = in_terminal(localmoe.home, "fit", path, columns=80, NO_COLOR="1")
    assert "\x1b" not in text


@pytest.mark.parametrize("command", ["fit", "show", "plan"])
def test_pipes_that_close_and_disks_that_are_full(
    localmoe: Localmoe, arch_file: ArchFile, command: str
) -> None:
    """One line or none, never a traceback, and the exit code says that nothing arrived."""
    path = arch_file("qwen3moe")
    gone = localmoe.shell(f"localmoe {command} {path} | true")
    assert (gone.returncode, gone.stderr) == (1, "")
    first = localmoe.shell(f"localmoe {command} {path} | head -1")
    assert first.stdout.startswith("qwen3moe") and first.stderr == ""
    for form in ("", "--json"):
        full = localmoe.shell(f"localmoe {command} {path} {form} > /dev/full")
        assert full.returncode == 1
        assert full.stderr == "error: could not write the output: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_do_not_matter(localmoe: Localmoe, arch_file: ArchFile, closed: str) -> None:
    """The worker process starts and answers without stdin and stderr."""
    done = localmoe.shell(f"localmoe fit {arch_file('qwen3moe')} --ram 4 {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fits in RAM" in done.stdout
