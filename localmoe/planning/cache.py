"""How experts that do not fit in RAM are served: the regime, its memory, its batch. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from localmoe.facts.model import Model, Role, Tensor
from localmoe.planning.memory import EngineSettings, RoutedTensor
from localmoe.planning.plan import CachePlan
from localmoe.text import format_bytes

PAGE = 4096
NEAR = 64 * 1024
"""Bytes between two dense ranges that are read with them: less than a separate read costs."""

_ORDER = {"gate_up": 0, "up": 0, "gate": 1, "down": 2}  # as llama.cpp multiplies by them
_PROJECTION = re.compile(r"blk\.\d+\.ffn_(gate_up|up|gate|down)_(ch)?exps\.weight")
_CHUNK_EXPERTS = 10_000  # added to the layer: grovemoe's second set of experts has ids of its own


def routed_tensors(model: Model) -> tuple[RoutedTensor, ...]:
    """The tensors whose experts can be cached, layer by layer in the order of computation."""
    found = []
    for tensor in model.tensors:
        match = _PROJECTION.fullmatch(tensor.name)
        if match is None or not tensor.loaded or tensor.layer is None:
            continue
        group = tensor.layer + (_CHUNK_EXPERTS if match[2] else 0)
        routed = RoutedTensor(
            tensor.name, group, tensor.part, tensor.offset, tensor.nbytes, tensor.shape[-1]
        )
        found.append(((tensor.layer, group, _ORDER[match[1]]), routed))
    return tuple(routed for _, routed in sorted(found, key=lambda item: item[0]))


def layer_of(group: int) -> int:
    """The layer of a ``RoutedTensor.group``."""
    return group % _CHUNK_EXPERTS


def dense_ranges(model: Model) -> tuple[tuple[int, int, int], ...]:
    """(part, start, end) in bytes of what every token reads, near neighbours joined.

    Without the token embedding, of which a token reads one row, unless it is the output too.
    """
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    wanted = sorted(
        (tensor.part, tensor.offset, tensor.offset + tensor.nbytes)
        for tensor in model.tensors
        if tensor.loaded and tensor.role is not Role.ROUTED_EXPERT and not _looked_up(tensor, tied)
    )
    ranges: list[tuple[int, int, int]] = []
    for part, start, end in wanted:
        if ranges and ranges[-1][0] == part and start - ranges[-1][2] <= NEAR:
            ranges[-1] = (part, ranges[-1][1], max(end, ranges[-1][2]))
        else:
            ranges.append((part, start, end))
    return tuple(ranges)


def _looked_up(tensor: Tensor, tied: bool) -> bool:
    if tensor.name == "token_embd.weight":
        return not tied
    return tensor.name.startswith("per_layer_token_embd.")


def slot_bytes(tensors: Iterable[RoutedTensor]) -> int:
    """Memory of one expert of a layer in the private regime, as ``expert_memory.cpp`` lays it out.

    Whole pages. Where direct reads are possible, each tensor keeps its place within a page of the
    file, and where experts begin within a page, neighbours are kept a page apart.
    """
    parts = [(tensor.offset, tensor.nbytes // tensor.experts) for tensor in tensors]
    rests = {size % PAGE for _, size in parts}
    direct = len(rests) == 1
    gap = PAGE if direct and rests != {0} else 0
    at = gap
    for offset, size in parts:
        at = (_up(at, PAGE) + offset % PAGE if direct else _up(at, 64)) + size + gap
    return _up(at, PAGE) + gap


def _up(number: int, to: int) -> int:
    return -(-number // to) * to


def batch_for(model: Model, layers: Iterable[int], budget: int, batch: int, used: int = 0) -> int:
    """The largest prefill batch, at most ``batch``, that leaves half of the budget free.

    A batch needs all experts of a layer that its tokens choose at the same time: in the worst case
    a token's top-k each, or all. The free half is where the next layer is read meanwhile. When
    even one token takes more than half, 1: it is the smallest there is. ``used``: experts per
    token, 0 for the model's own.
    """
    for tensors, own in _routed_groups(model, layers):
        slots = budget // 2 // slot_bytes(tensors)
        if slots < tensors[0].experts:
            batch = min(batch, max(1, slots // max(1, used or own)))
    return batch


def needed_budget(model: Model, layers: Iterable[int], batch: int, used: int = 0) -> int:
    """Bytes without which the private regime cannot compute a batch of that many tokens."""
    return max(
        (
            slot_bytes(tensors) * min(tensors[0].experts, batch * (used or own))
            for tensors, own in _routed_groups(model, layers)
        ),
        default=0,
    )


def _routed_groups(model: Model, layers: Iterable[int]) -> Iterator[tuple[list[RoutedTensor], int]]:
    """Tensors that share their ids, and the experts that a token chooses there."""
    groups: dict[int, list[RoutedTensor]] = {}
    for tensor in routed_tensors(model):
        groups.setdefault(tensor.group, []).append(tensor)
    wanted = set(layers)
    for group, tensors in groups.items():
        if layer_of(group) in wanted:
            yield tensors, model.layers[layer_of(group)].expert_used


def plan_cache(
    model: Model,
    settings: EngineSettings,
    host_experts: Mapping[int, int],
    room: int,
    wish: str = "auto",
    wished_bytes: int | None = None,
) -> tuple[EngineSettings, CachePlan]:
    """The settings with a cache in them, and what to say of it.

    ``host_experts``: bytes of routed experts in host memory per layer; ``room``: RAM in which they
    may stay. ``wish``: auto, off, page or private; ``wished_bytes`` bounds the private memory.
    """
    experts = sum(host_experts.values())
    layers = sorted(index for index, size in host_experts.items() if size)
    if wished_bytes is not None:
        room = min(room, wished_bytes)
    if not experts:
        return settings, CachePlan("resident", 0, "no expert is left to cache")
    if wish == "off":
        whole = room >= experts
        why = "switched off: the system reads page by page what is missing"
        return (
            dataclasses.replace(settings, read_ahead=whole),
            CachePlan("resident" if whole else "off", room, why),
        )
    if room >= experts and wish == "auto":
        return settings, CachePlan("resident", experts, "all experts fit in memory")
    settings = dataclasses.replace(settings, read_ahead=False, repack=False)
    if wish == "page":
        return (
            dataclasses.replace(settings, cache="page"),
            CachePlan("page", room, "asked for: the system's page cache decides what stays"),
        )
    if room < needed_budget(model, layers, 1, settings.experts_used):
        why = f"{format_bytes(room)} hold less than one layer's experts of one token"
        return dataclasses.replace(settings, cache="page"), CachePlan("page", room, why)
    batch = batch_for(model, layers, room, settings.ubatch, settings.experts_used)
    why = (
        f"{format_bytes(experts)} of experts, {format_bytes(room)} for them: "
        "those used most of late stay, the others are read when a token needs them"
    )
    return (
        dataclasses.replace(
            settings,
            cache="private",
            cache_bytes=min(room, experts),
            batch=min(batch, settings.batch),
            ubatch=batch,
        ),
        CachePlan("private", min(room, experts), why),
    )


def budget_under_pressure(budget: int, planned: int, free: int, low: int, least: int) -> int:
    """The budget of the private memory, in bytes, when ``free`` bytes of the machine are left.

    Below ``low`` the cache gives up what is missing to twice that, but never what it cannot run
    without (``least``); above four times ``low`` it takes half of the surplus back, up to what was
    planned.
    """
    if free < low:
        return min(budget, max(least, budget - (2 * low - free)))
    if free > 4 * low and budget < planned:
        return min(planned, budget + (free - 4 * low) // 2)
    return budget
