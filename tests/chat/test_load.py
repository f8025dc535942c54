"""A model that comes on a thread: interrupts are heeded at once, whatever the thread is at."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from localmoe.app.background_load import BackgroundLoad
from localmoe.app.model import LoadedModel
from localmoe.cli.chat import waiting
from localmoe.errors import InterruptedLoadError
from localmoe.terminal.console import make_console
from localmoe.terminal.interrupts import PressedTwice, interrupts
from localmoe.terminal.line_sources import Notices
from localmoe.terminal.live_line import LiveLine
from tests.chat.scripted import ScriptedEngine
from tests.chat.scripted_model import scripted_model


class SlowPlan:
    """A model whose plan takes until ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.opened = 0
        self.closed = threading.Event()
        self.engine = ScriptedEngine([])

    @contextmanager
    def open_model(self) -> Iterator[LoadedModel]:
        self.opened += 1
        assert self.go.wait(20)
        with scripted_model(self.engine) as model:
            yield model
        self.closed.set()


def wait(load: BackgroundLoad) -> LoadedModel:
    return waiting.wait(load, LiveLine(make_console(io.StringIO())), Notices())


def press(after: float) -> None:
    """Ctrl-C, from a thread."""
    threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


def test_ctrl_c_does_not_wait_for_the_plan() -> None:
    """The prompt is back at once; the next wait goes on with what was planned meanwhile."""
    slow = SlowPlan()
    load = BackgroundLoad(slow.open_model)
    load.start()
    began = time.monotonic()
    press(0.1)
    with pytest.raises(InterruptedLoadError):
        wait(load)
    assert time.monotonic() - began < 0.1 + 0.3
    assert load.busy and load.state == "stopping"
    slow.go.set()
    assert wait(load).loaded is not None
    assert (slow.opened, slow.engine.loads) == (1, 1)
    load.close()
    assert slow.closed.is_set()


def test_twice_is_told_apart() -> None:
    """The second Ctrl-C raises another exception: who presses twice wants to leave."""
    heard: list[str] = []
    with (
        pytest.raises(PressedTwice),
        interrupts(lambda: heard.append("first"), lambda: heard.append("second")),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert heard == ["first", "second"]


def test_leaving_does_not_wait_and_leaves_nothing_open() -> None:
    """What is planned after the end is closed by the thread that planned it."""
    slow = SlowPlan()
    load = BackgroundLoad(slow.open_model)
    load.start()
    began = time.monotonic()
    load.close(0.1)
    assert time.monotonic() - began < 0.3
    slow.go.set()
    assert slow.closed.wait(5)
    assert slow.engine.loads == 0
