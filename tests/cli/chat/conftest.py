"""Chats in terminals, ended with their test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.chat.terminal import Terminal

Spawn = Callable[..., Terminal]
Start = Callable[..., Terminal]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """``spawn("-m", "localmoe", …)`` → Python in a terminal, at the chat's first prompt."""
    terminals: list[Terminal] = []

    def begin(*args: str, columns: int = 80, rows: int = 40, **env: str) -> Terminal:
        terminal = Terminal(tmp_path, *args, columns=columns, rows=rows, **env)
        terminals.append(terminal)
        terminal.prompt()
        return terminal

    yield begin
    for terminal in terminals:
        terminal.child.close(force=True)


@pytest.fixture
def start(spawn: Spawn) -> Start:
    """``start(["chunk", …], …)`` → the chat over a scripted engine, at its first prompt.

    The model's card is on the screen by then. ``options`` are those of ``localmoe chat``.
    """

    def begin(
        *replies: list[str],
        delay: float = 0,
        options: tuple[str, ...] = (),
        columns: int = 80,
        rows: int = 40,
        **env: str,
    ) -> Terminal:
        script = ("-m", "tests.cli.chat.scripted_chat", json.dumps(replies), str(delay), *options)
        terminal = spawn(*script, columns=columns, rows=rows, **env)
        terminal.wait("tiny ·")
        terminal.prompt()
        return terminal

    return begin
