"""How a prompt is read where experts come from the disk: in which batches, with which memory. Pure.

A batch of some hundred tokens chooses nearly every expert, so all of them pass through memory once
per batch: the larger the batch, the fewer bytes are read per token, and the more memory its buffers
take. They are lent by the experts' memory while the prompt is read (``EngineSettings.cache_lent``).
How the experts pass is decided by ``streams`` in ``expert_streaming.cpp``: projection by projection
through two stages, in a prompt's last batch layer by layer where two layers fit; where not even the
stages fit, from the file's mapping, page by page. What else is in memory stays, and is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from localmoe.facts.model import Model
from localmoe.planning.cache import BLOCK, PAGE, needed_budget, routed_groups, slot_bytes
from localmoe.planning.memory import EngineSettings, RoutedTensor
from localmoe.planning.work import work_of

BATCHES = (512, 1024, 2048, 4096)
"""Tokens of the batches among which a plan chooses."""
LONG = 4096  # tokens of a prompt for which as few bytes as possible are read
NODE = 20e9
"""Multiplications of one attention by one thread: some half a second, and an interrupt is only
looked at between two operations."""
LEAST = 32  # tokens; a batch is not made smaller for an interrupt's sake


@dataclass(frozen=True, slots=True)
class Batches:
    """How large a prompt's batches are, and what the largest takes of the experts' memory."""

    tokens: int
    lent: int = 0  # bytes, for buffers beyond those that the plan has counted


def stage_bytes(model: Model, layers: Iterable[int]) -> int:
    """Bytes of the two stages through which a layer's projections pass."""
    return _stage_bytes(tensors for tensors, _ in routed_groups(model, layers))


def _stage_bytes(groups: Iterable[Sequence[RoutedTensor]]) -> int:
    return 2 * max(
        (
            -(-(tensor.offset % BLOCK + tensor.nbytes) // PAGE) * PAGE
            for tensors in groups
            for tensor in tensors
        ),
        default=0,
    )


@dataclass(frozen=True, slots=True)
class Passing:
    """Bytes of memory in which a batch's experts pass."""

    layers: int  # two layers', the next one beside the one that is computed
    stages: int  # the two stages, and one token's experts
    every: int  # all experts: with as many none has to pass

    def fits(self, budget: int) -> bool:
        """Whether experts pass through memory, and not through the file's mapping."""
        return min(self.layers, self.stages) <= budget

    def kept(self, budget: int, *, last: bool) -> int:
        """Bytes of experts that a batch finds in ``budget`` bytes and need not read.

        ``last``: of a prompt. Where two layers fit it takes them, and leaves its experts there for
        the answer: no fewer count as found than with less memory, where it takes the stages.
        """
        if budget >= self.every:
            return self.every
        if not self.fits(budget):
            return 0
        if self.layers <= self.stages or not last:
            return budget - min(self.layers, self.stages)
        return max(budget - self.layers, min(budget, self.layers) - self.stages)


def passing(model: Model, layers: Iterable[int], batch: int, used: int = 0) -> Passing:
    """How the experts of a batch of so many tokens pass. ``used``: experts per token, 0 for the
    model's own.
    """
    return _passing_by_size(model, layers, (batch,), used)[batch]


def _passing_by_size(
    model: Model, layers: Iterable[int], sizes: Iterable[int], used: int
) -> dict[int, Passing]:
    """``passing`` for each size of a batch."""
    groups = [
        (slot_bytes(tensors), tensors[0].experts, tensors, used or own)
        for tensors, own in routed_groups(model, layers)
    ]

    def needed(batch: int) -> int:
        return max((slot * min(count, batch * k) for slot, count, _, k in groups), default=0)

    staged = _stage_bytes(tensors for _, _, tensors, _ in groups) + needed(1)
    every = sum(slot * count for slot, count, _, _ in groups)
    return {size: Passing(2 * needed(size), staged, every) for size in sizes}


def least_budget(model: Model, layers: Iterable[int], settings: EngineSettings) -> int:
    """Bytes without which a batch of the planned size is not read by the private regime."""
    wanted, used = list(layers), settings.experts_used
    staged = stage_bytes(model, wanted) + needed_budget(model, wanted, 1, used)
    whole = needed_budget(model, wanted, settings.ubatch, used)
    return min(whole, staged) + settings.cache_lent


def choose_batches(
    model: Model,
    layers: Iterable[int],
    budget: int,
    settings: EngineSettings,
    buffers: Callable[[int], int] | None = None,
    steady: int | None = None,
) -> Batches:
    """The batches with which a long prompt reads the fewest bytes in ``steady`` bytes for experts,
    or the next smaller ones whose buffers fit into the ``budget`` that there is now.

    ``buffers``: bytes of the engine's buffers for batches of so many tokens; None: no larger batch
    than the settings' is wanted. ``steady``: what the machine has for experts when nothing else
    runs, so that answers do not depend on what is free at the moment; None: the budget.
    """
    wanted, used, planned = list(layers), settings.experts_used, settings.ubatch
    sizes = {planned}
    if buffers is not None:
        attention, threads = attention_work(model, settings), batch_threads(settings)
        larger = [size for size in BATCHES if planned < size <= settings.context]
        sizes |= {size for size in larger if batch_at(0, size, attention, threads) == size}

    def lent(size: int) -> int:
        return max(0, buffers(size) - buffers(planned)) if buffers is not None else 0

    ways = _passing_by_size(model, wanted, sizes, used)

    def fits(size: int, room: int) -> bool:
        return ways[size].fits(room - lent(size))

    def read(size: int, room: int) -> int:
        way, left = ways[size], room - lent(size)
        first, last = (way.every - way.kept(left, last=last) for last in (False, True))
        return (-(-LONG // size) - 1) * first + last

    roomy = max(budget, steady or 0)
    fewest = min(
        (size for size in sorted(sizes) if fits(size, roomy)),
        key=lambda size: read(size, roomy),
        default=0,
    )
    for size in sorted(sizes, reverse=True):
        if size <= fewest and fits(size, budget):
            return Batches(size, lent(size))
    return Batches(planned)


def batch_at(position: int, most: int, attention: int, threads: int) -> int:
    """Tokens of the batch that begins at ``position``; a function of position and settings alone.

    The largest of ``most``, its half, its quarter … whose longest operation, the attention to all
    tokens before, takes an interrupt's patience: ``NODE``. ``attention``: multiplications of one
    layer per pair of tokens; ``threads`` that compute it.
    """
    size = most
    while size > LEAST and size * (position + size) * attention > NODE * max(1, threads):
        size //= 2
    return max(1, size)


def batch_threads(settings: EngineSettings) -> int:
    """Threads that read a prompt; 0 where the engine decides."""
    return settings.threads_batch or settings.threads


def attention_work(model: Model, settings: EngineSettings) -> int:
    """``batch_at``'s ``attention``: of the layer that takes most; 0 where a GPU computes it."""
    if settings.devices:
        return 0
    return max((x.heads * x.widths for x in work_of(model, settings).attending), default=0)


def batches(
    tokens: int, most: int, attention: int, threads: int, start: int = 0
) -> Sequence[tuple[int, int]]:
    """(tokens of the batch, tokens before it) of a prompt from ``start`` on."""
    found, at = [], start
    while at < tokens:
        size = min(batch_at(at, most, attention, threads), tokens - at)
        found.append((size, at))
        at += size
    return found
