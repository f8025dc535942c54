"""Memory for experts is given back while the machine is short of it, and taken again after that.

The system calls the page cache free, and most of it may be the weights that every token needs:
they would be pushed out before the cache gives anything back. So what was in memory of them is
counted as needed, and what was swapped out too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from localmoe.facts.hardware import free_memory, own_memory
from localmoe.facts.model import Model
from localmoe.planning.cache import budget_under_pressure, left_over
from localmoe.planning.memory import EngineSettings
from localmoe.planning.prefill import least_budget

if TYPE_CHECKING:
    from localmoe.engine.worker.expert_cache import ExpertCache

LOOK = 0.5  # seconds between two looks at the machine's free memory


class MemoryWatch:
    """Looks at the machine's memory on a thread of its own, until ``close``.

    ``budget``: the bytes that the experts may take now. ``unfilled``: bytes that something else in
    this process will take. ``mapped``: of the model's files, bytes that every token reads; to be
    made before the first token, since what is not in memory yet must not look left over.
    """

    def __init__(
        self,
        cache: ExpertCache,
        model: Model,
        settings: EngineSettings,
        unfilled: Callable[[], int] = lambda: 0,
        mapped: int = 0,
    ) -> None:
        self.budget = settings.cache_bytes
        self._cache = cache
        self._unfilled = unfilled
        self._most = max(settings.cache_bytes, settings.cache_most)
        self._mapped_most = own_memory().mapped + mapped
        self._least = least_budget(model, range(len(model.layers)), settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """To be called before the cache is closed."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK):
            own = own_memory()
            self._mapped_most = max(self._mapped_most, own.mapped)
            free, low = free_memory(mapped=own.mapped)
            unfilled = max(0, self.budget - self._cache.counters().resident_bytes)
            unfilled += self._unfilled()
            left = left_over(free, unfilled, self._mapped_most, own.mapped, own.swapped)
            budget = budget_under_pressure(self.budget, self._most, left, low, self._least)
            if budget != self.budget:
                self.budget = budget
                self._cache.resize(budget)
