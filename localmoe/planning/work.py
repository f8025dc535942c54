"""What a token makes a machine do: weights to read and multiply, cache to attend to. Pure.

Counted from the header alone, so it holds for architectures that nobody has thought of; what is not
a matrix (norms, biases, activations) is counted as operations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from localmoe.facts.model import Layer, Model, Role, Tensor
from localmoe.planning.layout import home_of, layer_homes
from localmoe.planning.memory import EngineSettings

MATRIX = 32  # a tensor with shorter rows is no matrix: a convolution, a scale
SMALL = 4 << 10  # bytes; what has less is no matrix either, but a norm or a bias
LAYER_NODES = 9  # operations of a layer beside its tensors: rotations, cache, attention, sums
MOE_NODES = 9  # of a router, beside one sum per expert used
RECURRENT_NODES = 20
NODES_PER_TENSOR = 1.3  # a norm is two operations, a matrix is one

_ATTENDS = (".attn_q.", ".attn_q_b.", ".attn_qkv.", ".attn_k.")
_RECURRENT = (".ssm_", ".time_mix_")
_DELTA = (".ssm_ba.", ".ssm_beta.")  # a gated delta net's


@dataclass(frozen=True, slots=True)
class Matrices:
    """Matrices of one type in one place that are used alike; figures are sums."""

    home: str  # the engine's device name
    kind: str  # storage type, "Q4_K"
    nbytes: int
    weights: int
    experts: int = 0  # routed: of so many, ``used`` by a token; 0: every token uses all of it
    used: int = 0
    last_only: bool = False  # needed for a prompt's last token only: the output, the last FFN
    count: int = 1  # of tensors

    @property
    def share(self) -> float:
        """Of the bytes, that one token reads."""
        return self.used / self.experts if self.experts else 1.0

    def touched(self, tokens: int) -> float:
        """Share of the bytes that so many tokens read, if they choose independently."""
        tokens = 1 if self.last_only else tokens
        return 1 - (1 - self.share) ** tokens


@dataclass(frozen=True, slots=True)
class Attending:
    """The attention of one layer."""

    home: str
    heads: int
    widths: int  # of a key and a value together
    cached: int  # rows per token in its cache, of keys and as many of values
    window: int  # cached tokens that it looks back on at most; 0: all

    def sees(self, context: float) -> float:
        """Of so many cached tokens, those that it looks at."""
        return min(context, self.window) if self.window else context


@dataclass(frozen=True, slots=True)
class Work:
    """All that one token takes."""

    matrices: tuple[Matrices, ...]
    attending: tuple[Attending, ...]
    state: Mapping[str, int]  # elements of recurrent state, by home
    delta: Mapping[str, int]  # the same of gated delta nets
    nodes: Mapping[str, int]  # operations of the graph, by home
    crossings: int  # times that a token's values go from one device to another
    width: int  # values of a token between two layers
    vocabulary: int

    def cached_bytes(self, home: str, context: float) -> float:
        """Of the KV cache (f16) that one token looks at."""
        layers = [layer for layer in self.attending if layer.home == home]
        return sum(2 * x.cached * x.widths * x.sees(context) for x in layers)

    def attention(self, home: str, context: float) -> tuple[float, float]:
        """Of one token that sees ``context`` others: multiplications, and cached rows to find."""
        layers = [(layer, layer.sees(context)) for layer in self.attending if layer.home == home]
        return (
            sum(layer.heads * layer.widths * seen for layer, seen in layers),
            sum(layer.cached * seen for layer, seen in layers),
        )


def work_of(model: Model, settings: EngineSettings) -> Work:
    """Of one token of ``model``, placed by ``settings``."""
    homes = layer_homes(model, settings)
    by_layer: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in model.tensors:
        if tensor.loaded and tensor.layer is not None:
            by_layer[tensor.layer].append(tensor)
    attending, nodes = [], dict.fromkeys(homes, 0)
    state, delta = dict.fromkeys(homes, 0), dict.fromkeys(homes, 0)
    for layer in model.layers:
        tensors, home = by_layer[layer.index], homes[layer.index]
        recurrent = _has_part(tensors, _RECURRENT)
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
        _crossings(model, settings, homes),
        width=words.shape[0] if words else 0,
        vocabulary=words.shape[-1] if words else 0,
    )


def _matrices(model: Model, settings: EngineSettings, homes: tuple[str, ...]) -> Iterator[Matrices]:
    layers = [t.layer for t in model.tensors if t.loaded and t.layer is not None]
    last = max(layers, default=-1)
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    sums: dict[tuple[str, str, int, int, bool], list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in model.tensors:
        if not tensor.loaded or tensor.nbytes < SMALL or tensor.shape[0] < MATRIX:
            continue
        home, output = home_of(tensor, settings, homes), tensor.name == "output.weight"
        if tensor.name == "token_embd.weight" and tied:
            home, output = homes[-1], True
        elif "token_embd." in tensor.name:
            continue  # a row is looked up
        # In the last layer only what is told of is computed after attention (inp_out_ids).
        output |= tensor.layer == last and ".ffn_" in tensor.name
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
    """A stated pattern is followed; without one every second layer has the window."""
    window = _number(model, "attention.sliding_window", layer)
    pattern = model.metadata.get(f"{model.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return window if layer < len(pattern) and pattern[layer] else 0
    if isinstance(pattern, int) and pattern > 1:
        return window if (layer + 1) % pattern else 0
    return 0 if layer % 2 else window


def _state(model: Model) -> int:
    """Elements of one layer's state: as wide as the inner values, times the state's size."""
    return _number(model, "ssm.inner_size", 0) * _number(model, "ssm.state_size", 0)


def _crossings(model: Model, settings: EngineSettings, homes: tuple[str, ...]) -> int:
    """A layer whose experts are elsewhere than the rest of it is left and come back to."""
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
    """A count from the header, of one layer where there is one for each; 0 if it does not say."""
    value = model.metadata.get(f"{model.architecture}.{key}", 0)
    if isinstance(value, tuple):
        value = value[layer] if layer < len(value) else 0
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
