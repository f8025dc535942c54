"""How experts that do not fit in RAM are served: the regime, its memory, its batch. Pure."""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping

from localmoe.facts.model import Model, Role, Tensor
from localmoe.planning.memory import EngineSettings, RoutedTensor
from localmoe.planning.plan import CachePlan
from localmoe.text import format_bytes

BLOCK = 4096
"""The alignment of direct reads, in bytes: nearly every disk takes it."""
PAGE = mmap.PAGESIZE
"""The unit in which the system gives memory, in bytes: a multiple of BLOCK."""
OTHER_MAPPINGS = 4096
"""Of a process's mappings, those that experts may not take."""
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


def read_by_every_token(model: Model, weights: int, experts: int) -> int:
    """Bytes that every token reads, of ``weights`` bytes with ``experts`` bytes of experts."""
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    rows = sum(t.nbytes for t in model.tensors if t.loaded and _looked_up(t, tied))
    return max(0, weights - experts - rows)


def _looked_up(tensor: Tensor, tied: bool) -> bool:
    if tensor.name == "token_embd.weight":
        return not tied
    return tensor.name.startswith("per_layer_token_embd.")


def slot_bytes(tensors: Iterable[RoutedTensor]) -> int:
    """Memory of one expert of a layer in the private regime, as ``expert_memory.cpp`` lays it out.

    Whole pages. Where direct reads are possible, each tensor keeps its place within a block of the
    file. Where experts begin within a block, neighbours are kept a block apart, and there is a page
    more, since the first begins anywhere in a page.
    """
    parts = [(tensor.offset, tensor.nbytes // tensor.experts) for tensor in tensors]
    rests = {size % BLOCK for _, size in parts}
    direct = len(rests) == 1
    within = direct and rests != {0}
    gap = BLOCK if within else 0
    at = gap
    for offset, size in parts:
        at = (_up(at, BLOCK) + offset % BLOCK if direct else _up(at, 64)) + size + gap
    return _up(at, PAGE) + (PAGE if within else 0)


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


def mapped_bytes(model: Model, layers: Iterable[int], mappings: int) -> int:
    """Bytes of experts that may be in private memory with that many mappings for the process.

    An expert in memory is a mapping, and so is what lies between it and the next one. The rest of
    the process needs some too.
    """
    slots = [slot_bytes(tensors) for tensors, _ in _routed_groups(model, layers)]
    return max(0, mappings - OTHER_MAPPINGS) // 2 * min(slots, default=0)


def most_bytes(model: Model, layers: Iterable[int], mappings: int | None) -> int:
    """Bytes of private memory with every expert of these layers in it, as far as it can be had."""
    wanted = list(layers)
    every = sum(slot_bytes(group) * group[0].experts for group, _ in _routed_groups(model, wanted))
    return every if mappings is None else min(every, mapped_bytes(model, wanted, mappings))


def plan_cache(
    model: Model,
    settings: EngineSettings,
    host_experts: Mapping[int, int],
    room: int,
    wish: str = "auto",
    wished_bytes: int | None = None,
    mappings: int | None = None,
) -> tuple[EngineSettings, CachePlan]:
    """The settings with a cache in them, and what to say of it.

    ``host_experts``: bytes of routed experts in host memory per layer; ``room``: RAM in which they
    may stay. ``wish``: auto, off, page or private; ``wished_bytes`` bounds the private memory;
    ``mappings``: the system's limit of them for a process, None without one.
    """
    experts = sum(host_experts.values())
    layers = sorted(index for index, size in host_experts.items() if size)
    left = room
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
    limits = []
    if wished_bytes is not None and left < min(wished_bytes, experts):
        limits.append(f"{format_bytes(wished_bytes)} were asked for, {format_bytes(left)} are left")
    if mappings is not None and (most := mapped_bytes(model, layers, mappings)) < room:
        limits.append(
            f"{mappings:,} memory mappings of a process (vm.max_map_count) allow "
            f"{format_bytes(most)} of {format_bytes(room)}"
        )
        room = most
    said = "".join(f"; {limit}" for limit in limits)
    if room < needed_budget(model, layers, 1, settings.experts_used):
        why = f"{format_bytes(room)} hold less than one layer's experts of one token{said}"
        return dataclasses.replace(settings, cache="page"), CachePlan("page", room, why)
    batch = batch_for(model, layers, room, settings.ubatch, settings.experts_used)
    why = (
        f"{format_bytes(experts)} of experts, {format_bytes(room)} for them: "
        f"those used most of late stay, the others are read when a token needs them{said}"
    )
    return (
        dataclasses.replace(
            settings,
            cache="private",
            op_offload=False,  # a GPU would copy a batch's experts from where they may not be
            cache_bytes=min(room, experts),
            batch=min(batch, settings.batch),
            ubatch=batch,
        ),
        CachePlan("private", min(room, experts), why),
    )


def left_over(free: int, unfilled: int, mapped_most: int, mapped: int, swapped: int) -> int:
    """Bytes that are really left when the system calls ``free`` left beside our mapped files.

    The part of the cache's budget that is still ``unfilled`` is as good as taken. What was pushed
    out is still needed: pages of the mapped weights (``mapped`` bytes of the ``mapped_most`` that
    were in memory once), and memory that was ``swapped`` out. Negative where that is more than is
    free.
    """
    return free - unfilled - max(0, mapped_most - mapped) - swapped


def budget_under_pressure(budget: int, most: int, left: int, low: int, least: int) -> int:
    """The budget of the private memory, in bytes, when ``left`` bytes are left over.

    Below ``low`` the cache gives up what is missing to twice that, but never what it cannot run
    without (``least``); above four times ``low`` it takes half of the surplus, up to ``most``.
    """
    if left < low:
        return min(budget, max(least, budget - (2 * low - left)))
    if left > 4 * low and budget < most:
        return min(most, budget + (left - 4 * low) // 2)
    return budget
