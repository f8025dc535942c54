"""The experts that do not fit in RAM: where they are, and what memory they take. Pure."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator

from localmoe.facts.model import Model, Role, Tensor
from localmoe.planning.memory import RoutedTensor

BLOCK = 4096
"""The alignment of direct reads, in bytes: nearly every disk takes it."""
PAGE = mmap.PAGESIZE
"""The unit in which the system gives memory, in bytes: a multiple of BLOCK."""
OTHER_MAPPINGS = 4096
"""Of a process's mappings, those that experts may not take."""
NEAR = 64 * 1024
"""Bytes between two dense ranges that are read with them: less than a separate read costs."""

_ORDER = {"gate_up": 0, "up": 0, "gate": 1, "down": 2}  # at first; the cache learns the graph's
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
    rows = {tensor.name for tensor in looked_up(model)}
    wanted = sorted(
        (tensor.part, tensor.offset, tensor.offset + tensor.nbytes)
        for tensor in model.tensors
        if tensor.loaded and tensor.role is not Role.ROUTED_EXPERT and tensor.name not in rows
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
    return max(0, weights - experts - sum(tensor.nbytes for tensor in looked_up(model)))


def looked_up(model: Model) -> Iterator[Tensor]:
    """The tensors of which a token reads one row."""
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    for tensor in model.tensors:
        embedding = tensor.name == "token_embd.weight" and not tied
        if tensor.loaded and (embedding or tensor.name.startswith("per_layer_token_embd.")):
            yield tensor


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


def needed_budget(model: Model, layers: Iterable[int], batch: int, used: int = 0) -> int:
    """Bytes in which the experts of a batch of that many tokens have places of their own, layer by
    layer: in the worst case a token's top-k each, or all.
    """
    return max(
        (
            slot_bytes(tensors) * min(tensors[0].experts, batch * (used or own))
            for tensors, own in routed_groups(model, layers)
        ),
        default=0,
    )


def routed_groups(model: Model, layers: Iterable[int]) -> Iterator[tuple[list[RoutedTensor], int]]:
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
    slots = [slot_bytes(tensors) for tensors, _ in routed_groups(model, layers)]
    return max(0, mappings - OTHER_MAPPINGS) // 2 * min(slots, default=0)


def most_bytes(model: Model, layers: Iterable[int], mappings: int | None) -> int:
    """Bytes of private memory with every expert of these layers in it, as far as it can be had."""
    wanted = list(layers)
    every = sum(slot_bytes(group) * group[0].experts for group, _ in routed_groups(model, wanted))
    return every if mappings is None else min(every, mapped_bytes(model, wanted, mappings))


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
