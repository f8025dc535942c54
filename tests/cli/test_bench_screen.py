"""The screen of ``bench``, from invented runs."""

from __future__ import annotations

from rich.text import Text

from localmoe.bench.measurement import Schedule
from localmoe.bench.records import RESIDENT, Job
from localmoe.cli.bench.screen import screen
from localmoe.planning.plan import Wishes
from tests.bench.test_figures import steady
from tests.planning.invented import moe_model


def test_memory_may_be_a_workers() -> None:
    """With everything resident it is in memory: with ``--remote`` not all of that is RAM here."""
    job = Job("m", 1000, RESIDENT, None, 0, prompt_tokens=4, steps=8)
    wanted = Schedule(moe_model(), (job,), Wishes(), None, 0.0, None)
    lines = [
        part.plain for part in screen(wanted, [steady(job, 0.25, 0)], []) if isinstance(part, Text)
    ]
    assert "computing alone: 4.00 tok/s (all in memory)" in lines
