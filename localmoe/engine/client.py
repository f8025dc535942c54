"""``Engine``: one loaded model, as an event stream. The interface everything above talks to."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from localmoe import ledger, storage
from localmoe.engine import kv_store, protocol, rpc
from localmoe.engine.events import (
    Loaded,
    LoadProgress,
)
from localmoe.engine.process import WorkerProcess
from localmoe.engine.text_client import TextClient
from localmoe.errors import EngineMemoryError
from localmoe.facts.model import Model
from localmoe.planning.memory import EngineSettings

Replan = Callable[[EngineMemoryError], tuple[EngineSettings, int]]
"""What to load instead, and the RAM that it will take, when memory was taken since the plan."""


class Engine(TextClient):
    """A worker process with one model in it.

    ``promised_ram``: bytes of RAM that a plan foresees; from ``promise`` until ``close``, whoever
    plans another model, in this process too, plans around them. A crash of the worker is an
    ``EngineCrashError`` from the call under way; ``load`` then starts a new worker. ``remember``:
    the experts in use are noted for a faster next start.
    """

    def __init__(
        self,
        model: Model,
        settings: EngineSettings,
        promised_ram: int = 0,
        *,
        remember: bool = True,
        replan: Replan | None = None,
    ) -> None:
        self._paths = [str(path) for path in model.paths]
        self._settings = settings
        self._promised_ram = promised_ram
        self._remember = remember
        self._replan = replan
        self._promise: ExitStack | None = None
        self._worker: WorkerProcess = WorkerProcess()
        self._limits = rpc.limits(settings.remotes, rpc.WORK_LIMIT)

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

    def promise(self) -> None:
        """Tell whoever plans of the RAM that the model will take; ``load`` does, if need be."""
        if self._promised_ram and self._promise is None:
            self._promise = ExitStack()
            self._promise.enter_context(ledger.promise(self._promised_ram, self._worker.pid))

    def load(self) -> Iterator[LoadProgress | Loaded]:
        """Load the model; the last event is ``Loaded``.

        Where memory that was planned is not to be had, ``replan`` is asked once for other settings.
        Raises ModelFileError, EngineError (code ``interrupted`` after ``cancel``) or
        EngineCrashError.
        """
        try:
            yield from self._load()
        except EngineMemoryError as error:
            if self._replan is None:
                raise
            self.close()  # what it has got already would be missing in the next plan
            self._settings, self._promised_ram = self._replan(error)
            yield from self._load()

    def _load(self) -> Iterator[LoadProgress | Loaded]:
        if not self._worker.alive:
            self.close()
            self._worker = WorkerProcess()
        self.promise()
        settings = dataclasses.asdict(self._settings)
        hot = str(hot_set_path(Path(self._paths[0]))) if self._remember else ""
        self._limits = limits = rpc.limits(self._settings.remotes, rpc.WORK_LIMIT)
        fields = {"paths": self._paths, "settings": settings, "hot": hot}
        for message in self._worker.request("load", **limits, **fields):
            event = protocol.message_to_event(message)
            assert isinstance(event, LoadProgress | Loaded)
            yield event

    def keep(self, slot: str) -> int:
        """Keep on disk what the model has read in the conversation ``slot``; return the bytes.

        0: nothing worth it, or no room. ``cancel`` stops it. Raises StorageError, EngineError.
        """
        path = kv_store.path_of(slot, Path(self._paths[0]))
        return int(self._worker.ask("keep", path=str(path))["bytes"])

    def resume(self, slot: str) -> int:
        """Take up what ``keep`` kept, if nothing has changed; return the tokens, 0 if none.

        Raises EngineError.
        """
        path = kv_store.path_of(slot, Path(self._paths[0]))
        if not path.exists():
            return 0
        return int(self._worker.ask("resume", path=str(path))["tokens"])

    def close(self) -> None:
        """End the worker and give back the promised memory."""
        self._worker.close()
        if self._promise is not None:
            self._promise.close()
            self._promise = None


def hot_set_path(path: Path) -> Path:
    """Where the experts in use of the model at ``path`` are noted: their numbers, no texts."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:20]
    return storage.cache_dir() / "experts" / f"{digest}.json"
