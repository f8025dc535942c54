"""A model on its way, while its chat takes input already: planned and loaded on a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from localmoe.engine.events import Loaded
from localmoe.errors import EngineError, InterruptedLoadError
from localmoe.facts.model import Model
from localmoe.terminal.interrupts import interrupts
from localmoe.terminal.line_sources import Notices
from localmoe.terminal.live_line import LiveLine
from localmoe.terminal.tty import hushed

if TYPE_CHECKING:  # the input line need not wait for what it imports
    from localmoe.cli.talk import Talk

PATIENCE = 5.0  # seconds that a thread may take to end while the chat goes on

Signature = tuple[tuple[int, int, int], ...]


class ModelLoad:
    """One model: ``open_room`` plans it; then it is loaded, again after a crash if need be.

    The other three are called on the loading thread: ``news`` whenever ``state`` says something
    new, ``planned`` and ``loaded`` when that is done.
    """

    def __init__(
        self,
        open_room: Callable[[], AbstractContextManager[Talk]],
        news: Callable[[], None] = lambda: None,
        planned: Callable[[Talk], None] = lambda room: None,
        loaded: Callable[[Talk], None] = lambda room: None,
    ) -> None:
        self._open_room = open_room
        self._news = news
        self._planned = planned
        self._loaded = loaded
        self._stack = ExitStack()
        self._done = threading.Event()
        self._done.set()
        self._fraction: float | None = None
        self._since = 0.0
        self._cancelled = False
        self._closed = False
        self._signature: Signature = ()
        self.room: Talk | None = None  # once it is planned
        self.error: BaseException | None = None  # of the last try

    @property
    def busy(self) -> bool:
        return not self._done.is_set()

    @property
    def ready(self) -> bool:
        """Loaded, and the engine lives."""
        room = self.room
        return not self.busy and room is not None and room.loaded is not None and room.engine.alive

    @property
    def state(self) -> str:
        """``loading · 43 %``, or "" when there is nothing under way."""
        if not self.busy:
            return ""
        if self._cancelled:
            return "stopping"
        if self.room is None:
            return "planning"
        if self._fraction is None:
            return "loading"
        took = time.monotonic() - self._since
        left = took * (1 - self._fraction) / self._fraction if self._fraction > 0.02 else 0.0
        rest = f" · {left:.0f} s left" if took > 2 and left >= 1 else ""
        return f"loading · {100 * self._fraction:.0f} %{rest}"

    def start(self) -> None:
        """Begin, or begin again; returns at once."""
        if self.busy:
            return
        self.error = None
        self._cancelled = False
        self._fraction = None
        self._since = time.monotonic()
        self._done.clear()
        threading.Thread(target=self._run, daemon=True).start()

    def changed(self) -> bool:
        """Whether the model's files are others than those that were planned for."""
        return self.room is not None and _signature(self.room.model) != self._signature

    def forget(self) -> None:
        """Give the room up: ``start`` plans anew."""
        self._stack.close()
        self._stack = ExitStack()
        self.room = None

    def wait(self, line: LiveLine, notices: Notices) -> Talk:
        """Until it is loaded; Ctrl-C ends the loading.

        Raises ``InterruptedLoadError``, and what planning and loading raise.
        """
        if self._cancelled and not self.ready:  # what was interrupted before has not ended yet
            self._wait(line, notices, lambda: False)
            self.start()
        self._wait(line, notices, lambda: False)
        room = self._planned_room()
        if room.loaded is None:
            raise EngineError("the engine ended loading without a word")
        return room

    def wait_for_plan(self, line: LiveLine, notices: Notices) -> Talk:
        """Until it is planned. Raises like ``wait``."""
        self._wait(line, notices, lambda: self.room is not None)
        return self._planned_room()

    def _planned_room(self) -> Talk:
        if self.error is not None:
            raise self.error
        assert self.room is not None
        return self.room

    def _wait(self, line: LiveLine, notices: Notices, enough: Callable[[], bool]) -> None:
        with hushed(), interrupts(self.cancel, self.cancel) as pressed, line:
            while self.busy and not enough():
                if pressed.count:  # it may end later: nobody waits for that
                    raise InterruptedLoadError("loading was interrupted")
                if notices.waiting:
                    line.clear()
                    notices.show()
                line.show(self.state)
                self._done.wait(0.05)
        notices.show()

    def cancel(self) -> None:
        """End what is under way. From any thread or signal handler."""
        self._cancelled = True
        room = self.room
        if room is not None:
            room.engine.cancel()

    def close(self, patience: float = PATIENCE) -> None:
        """End everything; a thread that does not end in time tidies up when it does."""
        self._closed = True
        if self.busy:
            self._cancelled = True
            if self.room is not None:
                self.room.engine.close()
            if not self._done.wait(patience):
                return
        self._stack.close()

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:
            self.error = error
        finally:
            if self._closed:
                self._stack.close()
            self._done.set()
            self._news()

    def _load(self) -> None:
        if self.room is None:
            room = self._stack.enter_context(self._open_room())
            self._signature = _signature(room.model)
            self.room = room
            self._planned(room)
            self._news()
        room = self.room
        room.loaded = None
        if self._cancelled:
            raise InterruptedLoadError("loading was interrupted")
        for event in room.engine.load():
            if isinstance(event, Loaded):
                if self._cancelled:
                    raise InterruptedLoadError("loading was interrupted")
                room.loaded = event
                self._loaded(room)
                return
            self._fraction = event.fraction
            self._news()
        raise EngineError("the engine ended loading without a word")


def _signature(model: Model) -> Signature:
    """What changes when a file is replaced."""
    found = []
    for path in model.paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
