"""docs/sweep.md: three published models over invented machines with more and more memory.

    python scripts/sweep_table.py > docs/sweep.md

The figures are forecasts by headers alone: one invented processor, disk and GPU, so that rows
differ in memory and in nothing else. ``tests/planning/test_laws.py`` states what more of anything
never does.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.app import speeds
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Wishes
from localmoe.planning.speed import forecast, tuned
from localmoe.text import format_bytes, format_size
from tests.planning.catalog import adding_engine, published
from tests.planning.test_laws import Box

MODELS = ("qwen3-30b-a3b", "gpt-oss-120b", "mixtral-8x7b")
RAMS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 19, 20, 24, 28, 32, 48, 56, 60, 64, 96, 128)  # GiB
VRAMS = (0, 12)  # GiB
PC = Box(  # 8 cores with dual-channel DDR5, an NVMe disk, a GPU eight times as fast
    ram=0, cores=8, vram=0, memory=60, kernel=8, batch=60, node=1, disk=3, gpu=8, context=None
)

COLUMNS = ("RAM", "runs from", "disk", "context", "largest", "tok/s", "first token", "cold")
HEAD = """\
# The forecast over machines with more and more memory

Written by `scripts/sweep_table.py`: forecasts from headers alone, for an invented PC (8 cores, 60
GB/s of memory, a disk of 3 GB/s) with and without a GPU of 12 GiB. A row holds up to the next one.
What more memory must never do (lower the speed or the largest context, lengthen the wait of a
loaded model) is tested over random machines, with two GPUs too: `tests/planning/test_laws.py`, and
for longer `tests/soak/test_laws.py`. From a cold start there may be more to load.
"""


def main() -> None:
    print(HEAD)
    for name in MODELS:
        print(f"## {name}, {format_size(published(name).size)}\n")
        for vram in VRAMS:
            print(f"{'Without a GPU' if not vram else f'With a GPU of {vram} GiB'}:\n")
            print(
                "| RAM from | runs from | disk | context | largest | tok/s | first token | cold |"
            )
            print("|--:|---|--:|--:|--:|--:|--:|--:|")
            print("\n".join(rows(name, vram)) + "\n")


def rows(name: str, vram: float) -> Iterator[str]:
    """One row per size of RAM."""
    model, before = published(name), [""]
    for ram in RAMS:
        box = dataclasses.replace(PC, ram=ram, vram=vram)
        plan = make_plan(model, box.machine(), Wishes(), adding_engine(model))
        cells = [f"{ram} GiB", "does not fit", *["–"] * 6]
        if plan.verdict.fits:
            rates = box.rates()
            told = forecast(model, tuned(model, plan, rates), rates)
            cells[1:] = [
                plan.verdict.value.replace("+", " + "),
                format_bytes(plan.tiers.disk) if plan.tiers.disk else "–",
                f"{plan.settings.context:,}",
                f"{plan.max_context:,}",
                speeds.number(told.decode.expected),
                f"{told.loaded_first_token.expected:.1f} s",
                f"{told.first_token.expected:.1f} s",
            ]
        if cells[1:] != before:
            yield f"| {' | '.join(cells)} |"
        before = cells[1:]


if __name__ == "__main__":
    main()
