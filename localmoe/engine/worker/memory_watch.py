"""Memory for experts is given back while the machine is short of it, and taken again after that."""

from __future__ import annotations

import threading

from localmoe.engine.worker.expert_cache import ExpertCache
from localmoe.facts.hardware import free_memory
from localmoe.facts.model import Model
from localmoe.planning.cache import budget_under_pressure, needed_budget
from localmoe.planning.memory import EngineSettings

LOOK = 0.5  # seconds between two looks at the machine's free memory


class MemoryWatch:
    """Looks at the machine's memory on a thread of its own, until ``close``.

    ``budget``: the bytes that the experts may take now.
    """

    def __init__(self, cache: ExpertCache, model: Model, settings: EngineSettings) -> None:
        self.budget = settings.cache_bytes
        self._cache = cache
        self._most = settings.cache_bytes
        layers = range(len(model.layers))
        self._least = needed_budget(model, layers, settings.ubatch, settings.experts_used)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """To be called before the cache is closed."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK):
            free, low = free_memory()
            budget = budget_under_pressure(self.budget, self._most, free, low, self._least)
            if budget != self.budget:
                self.budget = budget
                self._cache.resize(budget)
