"""The work of one token: bytes of weights to read, multiplications, KV cache to attend to. Pure.

Counted from the tensor table alone, so it holds for architectures that have no code of their own
here. What is not a matrix (norms, biases, activations) is counted as an operation of fixed cost.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from localmoe.facts.model import Layer, Model, Role, Tensor
from localmoe.planning.layout import home_of, layer_homes
from localmoe.planning.memory import EngineSettings

MATRIX = 32  # elements; a tensor with shorter rows is a convolution or a scale, not a matrix
SMALL = 4 << 10  # bytes; a smaller tensor is a norm or a bias, not a matrix
LAYER_NODES = 9  # operations of a layer beside those on its tensors: rotations, cache, attention
MOE_NODES = 9  # operations of a router, beside one sum per expert used
RECURRENT_NODES = 20  # further operations of a recurrent layer
NODES_PER_TENSOR = 1.3  # operations: a matrix takes one, a norm two

_ATTENDS = (".attn_q.", ".attn_q_b.", ".attn_qkv.", ".attn_k.")
_RECURRENT = (".ssm_", ".time_mix_")
_CONVOLVES = (".ssm_conv1d.weight", ".shortconv.conv.weight")
_DELTA = (".ssm_ba.", ".ssm_beta.")  # tensors that only gated delta nets have
# Architectures whose last layer computes all tokens of a prompt, for heads that predict further
# ones: the graph narrows there if ``embeddings_nextn_masked`` only, or never. Source: llama.cpp's
# src/models.
_WHOLE = frozenset(
    (
        "bailingmoe3",
        "cohere2moe",
        "deepseek4",
        "gemma4",
        "glm5-next",
        "gpt-oss",
        "hy_v3",
        "hy_v4",
        "kimi-k3",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "step35",
    )
)


@dataclass(frozen=True, slots=True)
class Matrices:
    """Matrices of one type on one device that a token uses in the same way; figures are sums."""

    home: str  # the engine's device name
    kind: str  # storage type, "Q4_K"
    nbytes: int
    weights: int
    experts: int = 0  # routed experts in each tensor; 0: every token uses the whole matrix
    used: int = 0  # of those, experts per token (top-k)
    last_only: bool = False  # used for a prompt's last token only: output, FFN of ``_narrowed``
    count: int = 1  # number of tensors

    @property
    def share(self) -> float:
        """Share of the bytes that one token reads."""
        return self.used / self.experts if self.experts else 1.0

    def touched(self, tokens: float) -> float:
        """Share of the bytes that ``tokens`` tokens read together, if they choose independently."""
        tokens = min(1.0, tokens) if self.last_only else tokens
        left: float = (1 - self.share) ** tokens
        return 1 - left


@dataclass(frozen=True, slots=True)
class Attending:
    """The attention of one layer, per token."""

    home: str
    heads: int
    widths: int  # elements of one head's key and value together
    cached: int  # rows per token in its KV cache (KV heads), for keys and as many for values
    window: int  # sliding window: tokens that it looks back on at most; 0: all

    def sees(self, context: float, tile: int = 0) -> float:
        """How many of ``context`` cached tokens it looks at. ``tile``: what a kernel computes at
        once, of queries and of cached tokens; it goes on to the edges of both.
        """
        seen = context + tile / 2
        return min(seen, self.window + tile) if self.window else seen


@dataclass(frozen=True, slots=True)
class Work:
    """All that one token takes; ``home`` is the engine's name of a device."""

    matrices: tuple[Matrices, ...]
    attending: tuple[Attending, ...]
    state: Mapping[str, int]  # home → elements of recurrent state (Mamba)
    delta: Mapping[str, int]  # home → elements of recurrent state (gated delta nets)
    nodes: Mapping[str, int]  # home → operations of the graph
    weighed: Mapping[str, int]  # home → values of experts' outputs that are weighed
    sorting: Mapping[str, float]  # home → steps of sorting experts by their probability
    convolved: Mapping[str, int]  # home → channels of short convolutions
    crossings: int  # times that a token's values go from one device to another
    width: int  # values of a token between two layers (embedding length)
    vocabulary: int  # tokens

    def cached_bytes(self, home: str, context: float) -> float:
        """Bytes of the KV cache (f16) that one token reads after ``context`` others."""
        layers = [layer for layer in self.attending if layer.home == home]
        return sum(2 * x.cached * x.widths * x.sees(context) for x in layers)

    def attention(self, home: str, context: float, tile: int = 0) -> tuple[float, float]:
        """Of one token after ``context`` others: (multiplications, rows of KV cache read)."""
        layers = [(x, x.sees(context, tile)) for x in self.attending if x.home == home]
        return (
            sum(layer.heads * layer.widths * seen for layer, seen in layers),
            sum(layer.cached * seen for layer, seen in layers),
        )

    def far_rows(self, home: str, context: float, near: int) -> float:
        """Keys and values that the heads of a tile of queries read from memory, of ``context``
        tokens each: the processor's caches hold ``near`` bytes of a layer's (f16).
        """
        found = 0.0
        for x in self.attending:
            seen = x.sees(context)
            size = 2 * x.cached * x.widths * seen
            if x.home == home and size > near:
                found += 2 * x.heads * seen * (1 - near / size)
        return found


def work_of(model: Model, settings: EngineSettings) -> Work:
    """The work of one token of ``model`` under ``settings``."""
    homes = layer_homes(model, settings)
    by_layer: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in model.tensors:
        if tensor.loaded and tensor.layer is not None:
            by_layer[tensor.layer].append(tensor)
    attending, nodes = [], dict.fromkeys(homes, 0)
    state, delta, convolved = (dict.fromkeys(homes, 0) for _ in range(3))
    sorting = dict.fromkeys(homes, 0.0)
    for layer in model.layers:
        tensors, home = by_layer[layer.index], homes[layer.index]
        recurrent = _has_part(tensors, _RECURRENT)
        convolved[home] += sum(t.shape[1] for t in tensors if t.name.endswith(_CONVOLVES))
        sorting[home] += layer.expert_count * math.log2(max(1, layer.expert_count))
        nodes[home] += _nodes(layer, tensors, recurrent, settings)
        if recurrent:
            (delta if _has_part(tensors, _DELTA) else state)[home] += _state(model)
        elif _has_part(tensors, _ATTENDS):
            attending.append(_attention(model, layer.index, home))
    matrices = tuple(_matrices(model, settings, homes))
    words = next(
        (t for t in model.tensors if t.name == "token_embd.weight" and len(t.shape) == 2), None
    )
    return Work(
        matrices,
        tuple(attending),
        state,
        delta,
        nodes,
        _weighed(model, settings, homes),
        sorting,
        convolved,
        _crossings(model, settings, homes),
        width=words.shape[0] if words else 0,
        vocabulary=words.shape[-1] if words else 0,
    )


def _narrowed(model: Model) -> int:
    """The layer that goes on with the tokens whose output is wanted only (``inp_out_ids`` of
    llama.cpp), which is the last one of a prompt; -1 where none does.
    """
    layers = (t.layer for t in model.tensors if t.loaded and t.layer is not None)
    return -1 if model.architecture in _WHOLE else max(layers, default=-1)


def _weighed(model: Model, settings: EngineSettings, homes: tuple[str, ...]) -> dict[str, int]:
    """``Work.weighed``; a layer that goes on with one token does not count."""
    found, narrowed = dict.fromkeys(homes, 0), _narrowed(model)
    for tensor in model.tensors:
        routed = tensor.role is Role.ROUTED_EXPERT and len(tensor.shape) > 2
        if (
            routed
            and "_down_" in tensor.name
            and tensor.loaded
            and tensor.layer is not None
            and tensor.layer != narrowed
        ):
            used = settings.experts_used or model.layers[tensor.layer].expert_used
            home = home_of(tensor, settings, homes)
            found[home] = found.get(home, 0) + used * tensor.shape[1]
    return found


def _matrices(model: Model, settings: EngineSettings, homes: tuple[str, ...]) -> Iterator[Matrices]:
    narrowed = _narrowed(model)
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    sums: dict[tuple[str, str, int, int, bool], list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in model.tensors:
        if not tensor.loaded or tensor.nbytes < SMALL or tensor.shape[0] < MATRIX:
            continue
        home, output = home_of(tensor, settings, homes), tensor.name == "output.weight"
        if tensor.name == "token_embd.weight" and tied:
            home, output = homes[-1], True
        elif "token_embd." in tensor.name:
            continue  # of the embedding only one row is read
        output |= tensor.layer == narrowed and ".ffn_" in tensor.name
        experts = used = 0
        if tensor.role is Role.ROUTED_EXPERT and tensor.layer is not None:
            experts = min(tensor.shape[-1], model.layers[tensor.layer].expert_count)
            used = min(settings.experts_used or model.layers[tensor.layer].expert_used, experts)
        entry = sums[home, tensor.type_name, experts, used, output]
        entry[0] += tensor.nbytes
        entry[1] += tensor.elements
        entry[2] += 1
    for (home, kind, experts, used, output), (nbytes, weights, count) in sums.items():
        yield Matrices(home, kind, nbytes, weights, experts, used, output, count)


def _nodes(layer: Layer, tensors: list[Tensor], recurrent: bool, settings: EngineSettings) -> int:
    count = LAYER_NODES + int(NODES_PER_TENSOR * len(tensors))
    if layer.expert_count:
        count += MOE_NODES + (settings.experts_used or layer.expert_used)
    return count + RECURRENT_NODES * recurrent


def _attention(model: Model, layer: int, home: str) -> Attending:
    heads = _number(model, "attention.head_count", layer)
    width = _number(model, "embedding_length", layer) // max(1, heads)
    window = _window(model, layer)
    suffix = "_swa" if window and _has(model, "attention.key_length_swa") else ""
    key = _number(model, f"attention.key_length{suffix}", layer) or width
    value = _number(model, f"attention.value_length{suffix}", layer) or width
    groups = _number(model, "attention.head_count_kv", layer) or heads
    return Attending(home, heads, key + value, groups, window)


def _window(model: Model, layer: int) -> int:
    """Tokens of this layer's sliding window, 0 for full attention.

    Where the header has no pattern, every second layer has the window, as in gpt-oss.
    """
    window = _number(model, "attention.sliding_window", layer)
    pattern = model.metadata.get(f"{model.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return window if layer < len(pattern) and pattern[layer] else 0
    if isinstance(pattern, int) and pattern > 1:
        return window if (layer + 1) % pattern else 0
    return 0 if layer % 2 else window


def _state(model: Model) -> int:
    """Elements of one recurrent layer's state: inner size × state size, as the header has them."""
    return _number(model, "ssm.inner_size", 0) * _number(model, "ssm.state_size", 0)


def _crossings(model: Model, settings: EngineSettings, homes: tuple[str, ...]) -> int:
    """Times that a token's values change device: twice for a layer whose experts are on another
    device than its dense part, and once wherever the next layer is on another device.
    """
    apart = {
        tensor.layer
        for tensor in model.tensors
        if tensor.role is Role.ROUTED_EXPERT
        and tensor.layer is not None
        and tensor.loaded
        and home_of(tensor, settings, homes) != homes[tensor.layer]
    }
    changes = sum(here != there for here, there in pairwise(homes))
    return 2 * len(apart) + changes


def _has_part(tensors: list[Tensor], parts: tuple[str, ...]) -> bool:
    return any(part in tensor.name for tensor in tensors for part in parts)


def _has(model: Model, key: str) -> bool:
    return f"{model.architecture}.{key}" in model.metadata


def _number(model: Model, key: str, layer: int) -> int:
    """A count from the header, which may hold one number for all layers or one for each; else 0."""
    value = model.metadata.get(f"{model.architecture}.{key}", 0)
    if isinstance(value, tuple):
        value = value[layer] if layer < len(value) else 0
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
