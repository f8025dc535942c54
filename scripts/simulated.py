"""Simulated beside measured, for the same budgets and the same routing: for docs/routing.md.

    localmoe bench MODEL --replay TRACE --experts K --log LOG …
    python scripts/simulated.py LOG TRACE MODEL

Takes the runs of the log in which our cache served the experts. The replay gets nothing of them but
the budget; speed follows from its misses, the disk as it was around the run, and the log's run with
everything in RAM. Prints Markdown: medians over the runs of each memory limit.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.bench.bounds import imposed_part
from localmoe.bench.records import RESIDENT, Run, read_runs
from localmoe.facts.catalog import resolve
from localmoe.facts.model import read_model
from localmoe.routing.capacity import even_capacities
from localmoe.routing.outlook import SHIPPED, expert_total
from localmoe.routing.policies import POLICIES
from localmoe.routing.simulate import Outcome, simulate, tokens_per_second
from localmoe.routing.trace import Trace, TraceHeader, read_trace


def main(log: Path, path: Path, model: str) -> None:
    runs = list(read_runs(log))
    resident = statistics.median(r.decode_tps for r in runs if r.job.regime == RESIDENT)
    served: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        if run.job.regime == "auto" and run.regime == "private" and run.hits and not run.error:
            served[run.cache_bytes].append(run)
    header = TraceHeader.of_model(read_model(resolve(model)))
    print("| memory for experts | hits simulated | measured | tok/s simulated | measured |")
    print("|---|---|---|---|---|")
    for budget, found in sorted(served.items()):
        job = found[0].job
        trace = of_model(imposed_part(read_trace(path), job.prompt_tokens, job.steps), header)
        share = budget / expert_total(trace)
        expected = simulate(trace, even_capacities(trace, share), POLICIES[SHIPPED], SHIPPED)
        print(row(budget, share, expected, found, resident))


def row(budget: int, share: float, expected: Outcome, found: list[Run], resident: float) -> str:
    hits = statistics.median((r.hits or 0) / ((r.hits or 0) + (r.misses or 0)) for r in found)
    disk = statistics.median(r.disk for r in found)
    # an imposed routing is not predicted, so next to nothing is read ahead
    speed = tokens_per_second(1 / resident, expected.bytes_per_token, disk, hidden=0)
    measured = sorted(r.decode_tps for r in found)
    return (
        f"| {budget / 1e9:.2f} GB ({share:.0%}) | {100 * expected.hit_rate:.1f} % "
        f"| {100 * hits:.1f} % | {speed:.1f} | {statistics.median(measured):.1f} "
        f"({measured[0]:.1f}–{measured[-1]:.1f}) |"
    )


def of_model(trace: Trace, header: TraceHeader) -> Trace:
    """The trace as the model with these layers replayed it: its layers, its bytes per expert."""
    at = [trace.layers.index(layer.index) for layer in header.layers]
    layers = tuple(
        replace(layer, used=trace.header.layers[i].used)
        for layer, i in zip(header.layers, at, strict=True)
    )
    return replace(
        trace,
        header=replace(header, layers=layers, weights=False),
        layer_ids=tuple(trace.layer_ids[i] for i in at),
        layer_weights=None,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
