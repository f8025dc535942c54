"""What the expert cache takes and gives back, where the machine's figures are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from localmoe.engine.worker import memory_watch
from localmoe.engine.worker.memory_watch import MemoryWatch
from localmoe.facts.hardware import OwnMemory
from localmoe.planning.memory import EngineSettings
from tests.planning.invented import moe_model
from tests.waiting import wait_until

MIB = 1 << 20
LOW = 45 * MIB  # bytes that mean that memory is short


@dataclass
class Full:
    """A cache that has filled its budget, on a machine with so much free memory."""

    free: int
    budget: int = 1200 * MIB
    looks: int = 0
    resident_bytes: int = field(init=False)

    def counters(self) -> Full:
        self.resident_bytes = self.budget
        return self

    def resize(self, budget: int) -> None:
        self.free -= budget - self.budget
        self.budget = budget

    def free_memory(self, mapped: int) -> tuple[int, int]:
        self.looks += 1
        return self.free, LOW


@pytest.mark.parametrize(("mapped", "grown"), [(0, 420), (500, 0), (700, -190)])
def test_weights_that_were_not_read_yet_are_not_left_over(
    mapped: int, grown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first token 600 MiB are free, but what every token reads will take ``mapped``."""
    cache = Full(600 * MIB)
    monkeypatch.setattr(memory_watch, "LOOK", 0.001)
    monkeypatch.setattr(memory_watch, "free_memory", cache.free_memory)
    monkeypatch.setattr(memory_watch, "own_memory", lambda: OwnMemory(50 * MIB, 0))
    settings = EngineSettings(context=512, cache_bytes=cache.budget, cache_most=9000 * MIB)
    watch = MemoryWatch(cast(Any, cache), moe_model(layers=2), settings, mapped=mapped * MIB)
    wait_until(lambda: cache.looks > 40)
    watch.close()
    assert (watch.budget - 1200 * MIB) // MIB == pytest.approx(grown, abs=1)
