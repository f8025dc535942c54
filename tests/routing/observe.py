"""What the engine's routers did, seen through its evaluation callback: an independent witness.

As a program (the engine may abort): ``python -m tests.routing.observe MODEL OUT.npz TOKEN…``
decodes the tokens, the last four one by one, and writes for every layer L and step S the arrays
``logits-L-S`` and ``probs-L-S`` [n, experts], ``ids-L-S`` and ``weights-L-S`` [n, k], and
``tokens-S`` [n].
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.watch_graph import Tensor, rows_of, watched

ROOT = Path(__file__).parents[2]
SINGLE = 4  # tokens that are decoded one by one
_NODE = re.compile(
    rb"ffn_moe_(?:(probs|topk)|(logits|weights)(?:_biased|_softmax|_norm|_scaled)?)-(\d+)"
)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One layer in one engine step."""

    tokens: NDArray[np.int64]  # [n], the last ones if the layer computed fewer
    logits: NDArray[np.float32]  # [n, experts], with the router's own bias if it has one
    ids: NDArray[np.int64]  # [n, k]
    weights: NDArray[np.float32]  # [n, k]


def observe(
    model: Path, tokens: list[int], out: Path, *, own: bool = False
) -> dict[int, list[Step]]:
    """The steps of every MoE layer, in a child process. Raises RuntimeError with its words.

    ``own``: scores are the logits themselves (gpt-oss); the engine then names the biased logits
    "probs", and nothing else has them.
    """
    child = subprocess.run(
        [sys.executable, "-m", "tests.routing.observe", str(model), str(out), *map(str, tokens)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if child.returncode:
        raise RuntimeError(child.stderr[-2000:])
    data = np.load(out)
    found: dict[int, list[Step]] = {}
    keys = sorted((k.split("-")[1:] for k in data if k.startswith("ids-")), key=lambda k: int(k[1]))
    for layer, step in keys:
        ids = data[f"ids-{layer}-{step}"].astype(np.int64)
        found.setdefault(int(layer), []).append(
            Step(
                data[f"tokens-{step}"][-len(ids) :],
                data[f"{'probs' if own else 'logits'}-{layer}-{step}"],
                ids,
                data[f"weights-{layer}-{step}"],
            )
        )
    return found


def _flat(node: Tensor) -> NDArray[np.float32]:
    """All values of a contiguous float tensor."""
    count = node.ne[0] * node.ne[1] * node.ne[2] * node.ne[3]
    return np.array((ctypes.c_float * count).from_address(node.data), np.float32)


def _run(model: Path, out: Path, tokens: list[int]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    step = 0

    def wanted(node: Tensor) -> bool:
        return _NODE.fullmatch(node.name) is not None

    def seen(node: Tensor) -> None:
        match = _NODE.fullmatch(node.name)
        assert match is not None
        what, layer = (match[1] or match[2]).decode(), int(match[3])
        if what == "topk":
            arrays[f"ids-{layer}-{step}"] = rows_of(node, np.int32)
        else:  # later nodes of a kind replace earlier ones: the last weights are the applied ones
            arrays[f"{what}-{layer}-{step}"] = _flat(node)

    with watched(model, wanted, seen, context=256, batch=256, threads=1) as engine:
        batches = [tokens[:-SINGLE], *([token] for token in tokens[-SINGLE:])]
        for step, batch in enumerate(batches):
            arrays[f"tokens-{step}"] = np.array(batch)
            engine.decode(batch)
    for key, ids in list(arrays.items()):
        if key.startswith("ids-"):
            rest = key.removeprefix("ids-")
            for kind in ("logits", "probs", "weights"):
                if f"{kind}-{rest}" in arrays:
                    arrays[f"{kind}-{rest}"] = arrays[f"{kind}-{rest}"].reshape(len(ids), -1)
    np.savez(out, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    _run(Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])
