"""What a routing profile gains in placement, by replay: experts read per token, as Markdown.

    python scripts/placement_gain.py NAME=TRACE … >> docs/placement.md

Pure replay of the shipped policy: no engine, no model. The first half of the decoded tokens is the
profile and fills the cache; the second half is judged.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.planning.cache_shares import (
    LayerUse,
    by_gain,
    chosen_shares,
    even_shares,
    planned_shares,
)
from localmoe.routing.capacity import counts_of
from localmoe.routing.policies import lfu
from localmoe.routing.profile import Profile
from localmoe.routing.records import Mask, Trace
from localmoe.routing.simulate import simulate
from localmoe.routing.trace import read_trace

SHIPPED = partial(lfu, half_life=32)
RAM = (0.1, 0.15, 0.2, 0.25, 0.4, 0.5)  # of the experts of all layers
GPU = 4  # a quarter of the layers


def main(arguments: Sequence[str]) -> None:
    if not arguments or any("=" not in word for word in arguments):
        raise SystemExit(__doc__)
    for word in arguments:
        name, _, path = word.partition("=")
        trace = read_trace(path)
        print("\n".join(section(name, trace.select(trace.decode))))


def section(name: str, trace: Trace) -> Iterator[str]:
    """One trace: a table over the RAM that is left for experts."""
    layers = trace.header.layers
    later = np.arange(len(trace)) >= len(trace) // 2
    uses = layer_uses(trace, first_half(trace, ~later))
    size = sum(use.nbytes for use in uses)
    many = len(layers) // GPU
    last = [use.index for use in uses[-many:]]
    yield f"### {name}\n"
    yield (
        f"{len(layers)} layers, {layers[0].used} of {layers[0].experts} experts per token; profile "
        f"of {int((~later).sum())} tokens, judged on {int(later.sum())}.\n"
    )
    yield (
        "| RAM for experts | even | by use | change | GPU: last layers, even | last, by use "
        "| by gain, by use | change |"
    )
    yield "|---" * 8 + "|"
    for share in RAM:
        room = int(share * size)
        cells = [read(trace, later, even_shares(uses, room))]
        cells.append(read(trace, later, planned_shares(uses, room)))
        left = [use for use in uses if use.index not in last]
        cells.append(read(trace, later, even_shares(left, room), last))
        cells.append(read(trace, later, planned_shares(left, room), last))
        best = by_gain(uses, dict.fromkeys((use.index for use in uses), share))[-many:]
        left = [use for use in uses if use.index not in best]
        cells.append(read(trace, later, planned_shares(left, room), best))
        even, use, gpu_even, gpu_use, gpu_gain = (f"{cell:.1f}" for cell in cells)
        changes = [f"{100 * (b / a - 1):+.0f} %" for a, b in (cells[:2], cells[2:5:2])]
        yield (
            f"| {share:.0%} | {even} | {use} | {changes[0]} | {gpu_even} | {gpu_use} | {gpu_gain} "
            f"| {changes[1]} |"
        )
    yield ""


def first_half(trace: Trace, tokens: Mask) -> Profile:
    counts = counts_of(trace, tokens)
    rows = zip(trace.header.layers, counts.tolist(), strict=True)
    uses = {layer.index: tuple(row[: layer.experts]) for layer, row in rows}
    return Profile(trace.header.model, uses, float(tokens.sum()))


def layer_uses(trace: Trace, profile: Profile) -> list[LayerUse]:
    """The layers as the planner sees them; an expert counts one byte where sizes are unknown."""
    return [
        LayerUse(
            layer.index,
            layer.experts * max(1, layer.expert_bytes),
            layer.used,
            chosen_shares(layer.experts, layer.index, profile),
        )
        for layer in trace.header.layers
    ]


def read(
    trace: Trace, counted: Mask, kept: Mapping[int, float], on_gpu: Collection[int] = ()
) -> float:
    """Experts per counted token that are read from the disk."""
    layers = trace.header.layers
    wanted = np.array([kept.get(layer.index, 1.0) * layer.experts for layer in layers])
    room = np.floor(wanted + 1e-6).astype(np.int64)
    spare = round(float((wanted - room).sum()))  # whole experts, to those who lack most
    room[np.argsort(room - wanted, kind="stable")[:spare]] += 1
    rates = simulate(trace, room, SHIPPED, "", counted=counted).layer_hit_rates
    return sum(
        layer.used * (1 - rate)
        for layer, rate in zip(layers, rates, strict=True)
        if layer.index not in on_gpu
    )


if __name__ == "__main__":
    main(sys.argv[1:])
