"""``Engine``: one loaded model, as an event stream. The interface everything above talks to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

from localmoe import storage
from localmoe.engine import protocol
from localmoe.engine.events import (
    Finished,
    Loaded,
    LoadProgress,
    PrefillProgress,
    Request,
    Text,
)
from localmoe.engine.process import WorkerProcess
from localmoe.facts.model import Model
from localmoe.planning.memory import CPU, EngineSettings, MemoryReport


class Engine:
    """A worker process with one model in it.

    ``planned`` is the memory a plan foresees; while this engine lives, other localmoe processes
    plan around it. A crash of the worker is an ``EngineCrashError`` from the call under way;
    ``load`` then starts a new worker.
    """

    def __init__(
        self, model: Model, settings: EngineSettings, planned: MemoryReport | None = None
    ) -> None:
        self._paths = [str(path) for path in model.paths]
        self._settings = settings
        self._cleanup = ExitStack()
        if planned is not None:
            ram = planned.on(CPU).total
            others = {d.device: d.total for d in planned.devices if d.device != CPU}
            self._cleanup.enter_context(storage.promise(ram, others))
        self._worker = WorkerProcess()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._worker.pid

    @property
    def alive(self) -> bool:
        """False when the worker has died; ``load`` brings a new one."""
        return self._worker.alive

    def load(self) -> Iterator[LoadProgress | Loaded]:
        """Load the model; the last event is ``Loaded``.

        Raises ModelFileError, EngineError (code ``interrupted`` after ``cancel``) or
        EngineCrashError.
        """
        if not self._worker.alive:
            self._worker.close()
            self._worker = WorkerProcess()
        settings = dataclasses.asdict(self._settings)
        for message in self._worker.request("load", paths=self._paths, settings=settings):
            event = protocol.message_to_event(message)
            assert isinstance(event, LoadProgress | Loaded)
            yield event

    def generate(self, request: Request) -> Iterator[PrefillProgress | Text | Finished]:
        """Answer one request; the last event is ``Finished``. Dropping the iterator cancels.

        Raises ContextOverflowError when the prompt is longer than the context, EngineError, or
        EngineCrashError.
        """
        for message in self._worker.request("generate", request=dataclasses.asdict(request)):
            event = protocol.message_to_event(message)
            assert isinstance(event, PrefillProgress | Text | Finished)
            yield event

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` in the loaded model's vocabulary, without a beginning token."""
        return int(self._worker.ask("count", text=text)["tokens"])

    def cancel(self) -> None:
        """Interrupt the load or answer under way, from any thread or signal handler.

        The iterator then ends: ``load`` with an error, ``generate`` with ``Finished`` and the
        reason ``interrupted``.
        """
        self._worker.cancel()

    def close(self) -> None:
        """End the worker and give back the promised memory."""
        self._worker.close()
        self._cleanup.close()
