"""A model that is planned and loaded on a thread, while its front end does something else."""

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

if TYPE_CHECKING:  # imported late: the caller need not wait for what it imports
    from localmoe.app.model import LoadedModel

PATIENCE = 5.0  # seconds that ``close`` waits for the loading thread

Signature = tuple[tuple[int, int, int], ...]
"""Inode, bytes and time of change (ns) of each of a model's files."""


class BackgroundLoad:
    """One model: ``open_model`` plans it, then it is loaded; ``start`` loads it anew after a crash.

    The other three arguments are called on the loading thread: ``news`` whenever ``state`` has
    changed, ``planned`` and ``loaded`` after that step.
    """

    def __init__(
        self,
        open_model: Callable[[], AbstractContextManager[LoadedModel]],
        news: Callable[[], None] = lambda: None,
        planned: Callable[[LoadedModel], None] = lambda model: None,
        loaded: Callable[[LoadedModel], None] = lambda model: None,
    ) -> None:
        self._open_model = open_model
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
        self.model: LoadedModel | None = None  # None until it is planned
        self.error: BaseException | None = None  # that ended the last attempt

    @property
    def busy(self) -> bool:
        """Whether the loading thread is running."""
        return not self._done.is_set()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and its engine runs."""
        model = self.model
        return (
            not self.busy and model is not None and model.loaded is not None and model.engine.alive
        )

    @property
    def interrupted(self) -> bool:
        """Whether loading was cancelled before it was done."""
        return self._cancelled and not self.ready

    @property
    def state(self) -> str:
        """``planning``, ``loading · 43 % · 7 s left`` or ``stopping``; "" when the thread rests."""
        if not self.busy:
            return ""
        if self._cancelled:
            return "stopping"
        if self.model is None:
            return "planning"
        if self._fraction is None:
            return "loading"
        took = time.monotonic() - self._since
        left = took * (1 - self._fraction) / self._fraction if self._fraction > 0.02 else 0.0
        rest = f" · {left:.0f} s left" if took > 2 and left >= 1 else ""
        return f"loading · {100 * self._fraction:.0f} %{rest}"

    def start(self) -> None:
        """Plan and load on a new thread, unless one is running; returns at once."""
        if self.busy:
            return
        self.error = None
        self._cancelled = False
        self._fraction = None
        self._since = time.monotonic()
        self._done.clear()
        threading.Thread(target=self._run, daemon=True).start()

    def changed(self) -> bool:
        """Whether the model's files were replaced since it was planned."""
        return self.model is not None and _signature(self.model.facts) != self._signature

    def forget(self) -> None:
        """Close the model; the next ``start`` plans anew."""
        self._stack.close()
        self._stack = ExitStack()
        self.model = None

    def result(self) -> LoadedModel:
        """The loaded model; call it when not ``busy``. Raises what planning and loading raised."""
        model = self.planned_model()
        if model.loaded is None:
            raise EngineError("the engine ended loading without a word")
        return model

    def planned_model(self) -> LoadedModel:
        """The planned model; call it when there is one. Raises what planning and loading raised."""
        if self.error is not None:
            raise self.error
        assert self.model is not None
        return self.model

    def pause(self, seconds: float) -> None:
        """Wait that long, or until the thread ends."""
        self._done.wait(seconds)

    def cancel(self) -> None:
        """Stop planning or loading. May be called from any thread or signal handler."""
        self._cancelled = True
        if self.model is not None:
            self.model.engine.cancel()

    def close(self, patience: float = PATIENCE) -> None:
        """Close the model. A thread still running after ``patience`` s closes it when it ends."""
        self._closed = True
        if self.busy:
            self._cancelled = True
            if self.model is not None:
                self.model.engine.close()
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
        if self.model is None:
            model = self._stack.enter_context(self._open_model())
            self._signature = _signature(model.facts)
            self.model = model
            self._planned(model)
            self._news()
        model = self.model
        model.loaded = None
        if self._cancelled:
            raise InterruptedLoadError("loading was interrupted")
        for event in model.engine.load():
            if isinstance(event, Loaded):
                if self._cancelled:
                    raise InterruptedLoadError("loading was interrupted")
                model.loaded = event
                self._loaded(model)
                return
            self._fraction = event.fraction
            self._news()
        raise EngineError("the engine ended loading without a word")


def _signature(model: Model) -> Signature:
    """Identity of the model's files: it changes when one of them is replaced."""
    found = []
    for path in model.paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
