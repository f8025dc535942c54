"""Ask the engine what a model will cost before loading it.

The engine itself is the oracle: a worker builds model and context without data (``no_alloc``) and
reports bytes per device. It reads metadata only, so a header extended by a hole will do, and it is
a process of its own, because llama.cpp may abort on a file that no one has proven good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from localmoe.engine import protocol
from localmoe.engine.process import WorkerProcess
from localmoe.planning.memory import EngineSettings, MemoryReport


class Oracle:
    """Callable as ``planning.memory.Measure`` for one model. Answers are remembered."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [str(path) for path in paths]
        self._worker = WorkerProcess()
        self._answers: dict[EngineSettings, MemoryReport] = {}

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.close()

    def __call__(self, settings: EngineSettings) -> MemoryReport:
        """Bytes per device. Raises ModelFileError, EngineError or EngineCrashError."""
        known = self._answers.get(settings)
        if known is None:
            answer = self._worker.ask(
                "measure", paths=self._paths, settings=dataclasses.asdict(settings)
            )
            known = self._answers[settings] = protocol.report_from_json(answer["memory"])
        return known
