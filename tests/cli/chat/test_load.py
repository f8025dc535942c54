"""A model that comes on a thread: interrupts are heeded at once, whatever the thread is at."""

from __future__ import annotations

import io
import signal
import threading
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
from tests.cli.chat.scripted_model import scripted_model
from tests.waiting import PATIENCE


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
        assert self.go.wait(PATIENCE)
        with scripted_model(self.engine) as model:
            yield model
        self.closed.set()


def wait(load: BackgroundLoad, *, pressed: bool = False) -> LoadedModel:
    """``pressed``: Ctrl-C comes once it waits, in place of the first thing to show."""
    notices = Notices()
    if pressed:
        notices.post(press)
    return waiting.wait(load, LiveLine(make_console(io.StringIO())), notices)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_does_not_wait_for_the_plan() -> None:
    """The prompt is back while the plan is still being made; the next wait goes on with it."""
    slow = SlowPlan()
    load = BackgroundLoad(slow.open_model)
    load.start()
    with pytest.raises(InterruptedLoadError):
        wait(load, pressed=True)
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
        press()
        press()
    assert heard == ["first", "second"]


def test_leaving_does_not_wait_and_leaves_nothing_open() -> None:
    """What is planned after the end is closed by the thread that planned it."""
    slow = SlowPlan()
    load = BackgroundLoad(slow.open_model)
    load.start()
    load.close(0.1)
    assert load.busy
    slow.go.set()
    assert slow.closed.wait(PATIENCE)
    assert slow.engine.loads == 0
