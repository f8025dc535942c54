"""The command lines that the documentation prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from localmoe.cli.arguments import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines(text: str) -> list[str]:
    """What stands after ``localmoe``, in blocks and in sentences; a line may go on below."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    typed = [
        line.removeprefix("$ ")
        for block in blocks
        for line in block.replace("\\\n", " ").split("\n")
    ]
    typed += re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = (" ".join(line.split()) for line in typed)
    return [line.removeprefix("localmoe ") for line in lines if line.startswith("localmoe ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_as_the_program_takes_them(page: Path) -> None:
    """Every command and option of every line exists, and goes together."""
    for line in command_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(re.split(r" [<>|&] ?|;", line)[0], comments=True)
        if words and "…" not in words[0] and not words[0].isupper():
            parse(words)


def test_there_are_lines_to_look_at() -> None:
    assert sum(len(command_lines(page.read_text(encoding="utf-8"))) for page in PAGES) > 40
