"""How a router turns its logits into experts and weights: a NumPy reference of every way in use.

After llama.cpp's ``build_moe_ffn`` (src/llama-graph.cpp) and the graphs in src/models, which fix
for each architecture what a file's metadata does not say. ``tests/routing/test_gating.py`` holds it
against the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from localmoe.facts.model import Model, Value

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS = 1, 2, 3, 4  # llama_expert_gating_func_type
_SMALLEST_SUM = 6.103515625e-5  # the engine divides by no less

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gating:
    """How one layer's router turns logits into chosen experts and weights."""

    function: int = SOFTMAX  # logits → scores; one of the constants above
    bias: bool = False  # a learnt bias is added to the scores for the choice, not for the weights
    groups: int = 1  # experts form so many groups
    kept: int = 1  # experts are chosen from the groups with the highest sum of two best scores
    normalized: bool = False  # the chosen weights are divided by their sum
    scale: float = 1.0  # the weights are multiplied by it at the end
    by_logits: bool = False  # experts are chosen by the raw logits, whatever the function
    before: bool = False  # weights multiply the experts' input instead of their output
    by_token: bool = False  # a table of token ids names the experts; only weights are computed

    def describe(self) -> str:
        """In words, for people and for the header of a trace."""
        name = {
            SOFTMAX: "softmax, then top-k",
            SIGMOID: "sigmoid, then top-k",
            SOFTMAX_OF_CHOSEN: "top-k, then softmax of the chosen",
            SQRT_SOFTPLUS: "square root of softplus, then top-k",
        }[self.function]
        if self.by_logits:
            name = "top-k of the logits, then " + name.split(",")[0]
        if self.by_token:
            name = "experts by token id, weights by " + name.split(",")[0]
        facts = [name]
        facts += ["selection bias"] if self.bias else []
        facts += [f"within {self.kept} of {self.groups} groups"] if self.groups > 1 else []
        facts += ["renormalized"] if self.normalized else []
        facts += [f"times {self.scale:g}"] if self.scale != 1 else []
        facts += ["applied before the experts"] if self.before else []
        return ", ".join(facts)


_FROM_METADATA = {  # architecture: function where the file has no expert_gating_func
    "afmoe": SIGMOID,
    "bailingmoe2": SIGMOID,
    "deepseek2": SOFTMAX,
    "deepseek32": SIGMOID,
    "deepseek4": SQRT_SOFTPLUS,
    "dots1": SOFTMAX,
    "exaone-moe": SIGMOID,
    "glm-dsa": SIGMOID,
    "glm4moe": SIGMOID,
}
"""Architectures whose metadata has function, normalization and scale."""

_FIXED = {
    "deepseek": Gating(),
    "ernie4_5-moe": Gating(normalized=True),
    "gemma4": Gating(normalized=True),
    "gpt-oss": Gating(SOFTMAX_OF_CHOSEN),
    "granitehybrid": Gating(normalized=True),
    "granitemoe": Gating(normalized=True),
    "lfm2moe": Gating(SIGMOID, normalized=True),
    "llama": Gating(normalized=True),
    "llama4": Gating(SIGMOID, by_logits=True, before=True),
    "minimax-m2": Gating(SIGMOID, normalized=True),
    "nemotron_h_moe": Gating(SIGMOID),
    "olmoe": Gating(),
    "phimoe": Gating(normalized=True),
    "qwen2moe": Gating(),
    "qwen35moe": Gating(normalized=True),
    "qwen3moe": Gating(normalized=True),
    "qwen3next": Gating(normalized=True),
    "qwen3vlmoe": Gating(normalized=True),
}
_FUNCTION_IN_FILE = ("lfm2moe", "minimax-m2")  # of ``_FIXED``: the metadata has the function
_SCALE_IN_FILE = ("deepseek", "nemotron_h_moe")  # … the scale
_NORM_IN_FILE = ("nemotron_h_moe",)  # … whether weights are normalized


def gating_of(model: Model, layer: int) -> Gating | None:
    """The gating of one MoE layer; None for an architecture that is not known here."""
    arch = model.architecture
    metadata = _Metadata(model.metadata, arch)
    if arch in _FROM_METADATA:
        gating = Gating(
            metadata.integer("expert_gating_func") or _FROM_METADATA[arch],
            normalized=metadata.flag("expert_weights_norm"),
            scale=metadata.scale(),
        )
    elif arch in _FIXED:
        gating = _FIXED[arch]
        if arch in _FUNCTION_IN_FILE:
            gating = replace(gating, function=metadata.integer("expert_gating_func") or SOFTMAX)
        if arch in _SCALE_IN_FILE:
            gating = replace(gating, scale=metadata.scale())
        if arch in _NORM_IN_FILE:
            gating = replace(gating, normalized=metadata.flag("expert_weights_norm"))
    else:
        return None
    if gating.function not in (SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS):
        return None
    groups = metadata.integer("expert_group_count")
    if groups > 1:
        gating = replace(gating, groups=groups, kept=metadata.integer("expert_group_used_count"))
    by_token = arch == "deepseek4" and layer < metadata.integer("hash_layer_count")
    biased = any(
        t.layer == layer and t.name.startswith(f"blk.{layer}.exp_probs_b.") for t in model.tensors
    )
    return replace(gating, by_token=by_token, bias=biased and not by_token)


def describe(model: Model) -> str:
    """The gating of a model in words; layers that differ are told apart. "" if unknown."""
    layers = [layer.index for layer in model.layers if layer.expert_count and layer.loaded]
    ways = {layer: gating_of(model, layer) for layer in layers}
    words: dict[str, list[int]] = {}
    for layer, way in ways.items():
        if way is None:
            return ""
        words.setdefault(way.describe(), []).append(layer)
    if len(words) == 1:
        return next(iter(words))
    return "; ".join(f"layers {at[0]}–{at[-1]}: {text}" for text, at in words.items())


def scores(logits: Floats, gating: Gating) -> Floats:
    """The scores of the logits, f64[n, experts], from which the weights are taken."""
    if gating.function == SOFTMAX:
        e = np.exp(logits - logits.max(axis=-1, keepdims=True))
        result: Floats = e / e.sum(axis=-1, keepdims=True)
    elif gating.function == SIGMOID:
        result = 1 / (1 + np.exp(-logits))
    elif gating.function == SQRT_SOFTPLUS:
        result = np.sqrt(np.logaddexp(0, logits))
    else:
        result = logits
    return result


def selection(logits: Floats, gating: Gating, bias: Floats | None = None) -> Floats:
    """f64[n, experts] whose k highest are chosen; -inf for experts outside the kept groups."""
    chosen_by = logits if gating.by_logits else scores(logits, gating)
    if gating.bias and bias is not None:
        chosen_by = chosen_by + bias
    if gating.groups <= 1:
        return chosen_by
    n, experts = chosen_by.shape
    grouped = chosen_by.reshape(n, gating.groups, experts // gating.groups)
    best_two = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    kept = np.argsort(-best_two, axis=1, kind="stable")[:, : gating.kept]
    mask = np.zeros((n, gating.groups), bool)
    np.put_along_axis(mask, kept, True, axis=1)
    return np.where(mask[:, :, None], grouped, -np.inf).reshape(n, experts)


def weights_of(logits: Floats, ids: Ids, gating: Gating) -> Floats:
    """The weights f64[n, k] of given experts i64[n, k]."""
    weights = np.take_along_axis(scores(logits, gating), ids, axis=1)
    if gating.function == SOFTMAX_OF_CHOSEN:
        e = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights = e / e.sum(axis=1, keepdims=True)
    if gating.normalized:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), _SMALLEST_SUM)
    return weights * gating.scale


def route(
    logits: NDArray[np.floating],
    k: int,
    gating: Gating,
    *,
    bias: NDArray[np.floating] | None = None,
    chosen: Ids | None = None,
) -> tuple[Ids, Floats]:
    """Experts i64[n, k], the best first, and their weights f64[n, k], from logits f[n, experts].

    ``bias`` f[experts]: the selection bias. ``chosen`` i64[n, k]: what the table of token ids says,
    where ``gating.by_token``.
    """
    values = logits.astype(np.float64)
    if gating.by_token:
        if chosen is None:
            raise ValueError("a layer routed by token id needs what its table says")
        return chosen, weights_of(values, chosen, gating)
    by = selection(values, gating, None if bias is None else bias.astype(np.float64))
    ids = np.argsort(-by, axis=1, kind="stable")[:, :k]
    return ids, weights_of(values, ids, gating)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Values of the metadata under the architecture's prefix."""

    metadata: Mapping[str, Value]
    architecture: str

    def integer(self, key: str) -> int:
        value = self.metadata.get(f"{self.architecture}.{key}", 0)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    def flag(self, key: str) -> bool:
        return self.metadata.get(f"{self.architecture}.{key}") is True

    def scale(self) -> float:
        """0 means none, as in the engine."""
        value = self.metadata.get(f"{self.architecture}.expert_weights_scale", 0.0)
        return float(value) or 1.0 if isinstance(value, (int, float)) else 1.0
