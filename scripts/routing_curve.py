"""How cacheable a model's routing is: LRU hit rates by room, beside those of a recorded trace.

    python scripts/routing_curve.py standin.gguf --trace qwen3-30b-a3b.route.csv.gz

The model reads some tokens and then writes, sampled at temperature 1; lookups of the written ones
count, from a cold cache with the same share of every layer's experts.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.facts.model import read_model
from localmoe.routing.capacity import even_capacities, lru_curves
from localmoe.routing.records import Ids
from localmoe.routing.stats import reuse_at_lag
from localmoe.routing.trace import DECODE, PREFILL, Trace, TraceHeader, read_trace
from scripts.watch_graph import Tensor, rows_of, watched

SHARES = (0.1, 0.25, 0.4, 0.5)
CHOSEN = b"ffn_moe_topk-"


def natural_trace(path: Path, prompt: int, steps: int, seed: int, used: int | None = None) -> Trace:
    """What the model's own router chooses; ``used``: only its first choices."""
    rng = np.random.default_rng(seed)
    header = TraceHeader.of_model(read_model(path), weights=False)
    found: dict[int, list[Ids]] = defaultdict(list)

    def is_choice(node: Tensor) -> bool:
        return bool(node.name.startswith(CHOSEN))

    def keep(node: Tensor) -> None:
        layer = int(node.name.decode().rpartition("-")[2])
        found[layer].append(rows_of(node, np.int32)[:, :used].astype(np.int16))

    with watched(path, is_choice, keep) as model:
        model.decode(rng.integers(0, model.vocabulary, prompt).tolist(), every=True)
        for _ in range(steps):
            logits = model.logits()
            model.decode([int(np.argmax(logits + rng.gumbel(size=len(logits))))])
    layers = tuple(
        dataclasses.replace(layer, used=found[layer.index][0].shape[1])
        for layer in header.layers
        if layer.index in found
    )
    count = prompt + steps
    return Trace(
        header=dataclasses.replace(header, layers=layers),
        phase=np.array([PREFILL] * prompt + [DECODE] * steps, np.uint8),
        batch=np.array([0] * prompt + list(range(1, steps + 1)), np.int32),
        tokens=np.full(count, -1, np.int32),
        segment=np.zeros(count, np.int32),
        labels=("",),
        layer_ids=tuple(np.concatenate(found[layer.index]) for layer in layers),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--trace", type=Path, help="to compare with")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("-n", "--tokens", type=int, default=128)
    parser.add_argument("--used", type=int, help="count only a token's first N experts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print("room", *(f"{share:>5.0%}" for share in SHARES), " kept by the next token")
    traces = [
        (
            path.name,
            natural_trace(path, options.prompt_tokens, options.tokens, options.seed, options.used),
        )
        for path in options.model
    ]
    if options.trace:
        traces.append((options.trace.name, read_trace(options.trace)))
    for name, trace in traces:
        curves = lru_curves(trace)
        rates = (curves.hit_rate(even_capacities(trace, share)) for share in SHARES)
        shown = "  ".join(f"{rate:.3f}".removeprefix("0") for rate in rates)
        shape = f"{len(trace.layers)} layers, {trace.header.layers[0].used} of "
        shape += str(trace.header.layers[0].experts)
        print(f"     {shown}  {reuse_at_lag(trace, 1):.2f}  {name} ({shape})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
