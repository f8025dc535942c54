"""Words for a verdict: why it is so, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from localmoe.facts.model import Model
from localmoe.planning.budget import GIB, Budget
from localmoe.planning.candidates import Candidate
from localmoe.planning.memory import CPU
from localmoe.planning.plan import Verdict, Wishes
from localmoe.text import format_bytes

SMALLER_CONTEXTS = (16384, 8192, 4096, 2048)
CLOSE_PROGRAMS = 4 * GIB  # a shortfall that closing programs can plausibly free, bytes
DISK = (Verdict.RAM_DISK, Verdict.GPU_RAM_DISK, Verdict.GPU_DISK)


@dataclass(frozen=True, slots=True)
class Question:
    """What a plan came to, and on what terms. Bytes of RAM: ``need`` with nothing on the disk,
    ``taken`` by other programs, ``unused`` because the user allowed less than is free.
    """

    model: Model
    wishes: Wishes
    verdict: Verdict
    best: Candidate
    budget: Budget
    need: int
    taken: int = 0
    unused: int = 0

    @property
    def shortfall(self) -> int:
        """Bytes of RAM that are missing to keep everything in memory; negative: to spare."""
        return self.need - self.budget.ram


class Alternatives(Protocol):
    """What would be planned if something were different."""

    def instead(self, context: int, **changed: object) -> Candidate: ...

    def without_remotes(self, context: int) -> Candidate: ...


def explain(asked: Question) -> str:
    """One sentence: the numbers that decide."""
    verdict, budget = asked.verdict, asked.budget
    if verdict is Verdict.NO:
        return _why_not(asked)
    if verdict is Verdict.RAM:
        return (
            f"everything ({format_bytes(asked.need)}) fits in the {format_bytes(budget.ram)} of RAM"
        )
    if verdict is Verdict.GPU:
        return f"everything fits in the {format_bytes(budget.vram)} of GPU memory"
    if verdict is Verdict.GPU_RAM:
        return "the GPU holds what every token needs, RAM holds the experts that are left"
    if asked.best.disk > max(0, asked.shortfall):
        return f"{format_bytes(asked.best.disk)} of experts are on the disk, as asked"
    missing = format_bytes(max(0, asked.shortfall))
    return (
        f"{missing} of experts do not fit in the {format_bytes(budget.ram)} of RAM: read from disk"
    )


def _why_not(asked: Question) -> str:
    budget, best, model = asked.budget, asked.best, asked.model
    for device in best.settings.devices:
        room, use = budget.gpus.get(device, 0), best.memory.on(device)
        if use.total > room:
            return (
                f"on {device} it would take {format_bytes(use.total)} "
                f"({format_bytes(use.weights)} of weights, {format_bytes(use.kv)} of KV cache, "
                f"{format_bytes(use.compute)} of buffers); the device can give {format_bytes(room)}"
            )
    if not best.settings.devices and any(wish.tier == "gpu" for wish in asked.wishes.experts_on):
        if not budget.gpus:
            return "--experts-on gpu: there is no GPU to use in this engine build"
        return (
            f"--experts-on gpu: nothing of the model fits in the {format_bytes(budget.vram)} "
            "of GPU memory"
        )
    host = sum(best.host_experts.values())
    spare = budget.ram - (asked.need - host)  # RAM for experts
    if spare >= 0 and best.room > spare:
        return (
            f"--experts-on ram: {format_bytes(best.room)} of experts are to be in RAM, and "
            f"{format_bytes(spare)} is left for them"
        )
    if model.is_moe and spare >= 0 and best.one_token > spare:
        return (
            f"of the experts, one token reads {format_bytes(best.one_token)}, and only "
            f"{format_bytes(spare)} of RAM is left for them"
        )
    fixed = asked.need - host
    what = "weights that every token needs, KV cache and buffers" if model.is_moe else "it"
    verb = "take" if model.is_moe else "takes"
    gives = f"RAM can give {format_bytes(budget.ram)}"
    if not budget.ram and budget.reserve:
        gives = f"less RAM is free than the {format_bytes(budget.reserve)} kept for the system"
    return f"{what} {verb} {format_bytes(max(fixed, 0))}; {gives}"


def advise(asked: Question, planner: Alternatives) -> Iterator[str]:
    """What to change, most useful first. Each suggestion that names a setting was tried."""
    if asked.verdict is Verdict.NO:
        wished = list(_grant_less(asked, planner))
        yield from wished or _make_it_fit(asked, planner)
        return
    context = asked.best.settings.context
    if asked.verdict in DISK and asked.shortfall > 0:
        missing = format_bytes(asked.shortfall)
        if asked.wishes.ram is not None and asked.shortfall <= asked.unused:
            enough = math.ceil(10 * (asked.wishes.ram + asked.shortfall) / GIB) / 10
            yield f"with --ram {enough:g} nothing would need the disk: so much is free"
        elif asked.shortfall <= min(CLOSE_PROGRAMS, asked.taken):
            yield f"close {missing} of programs and nothing needs the disk"
        else:
            yield f"with {missing} more RAM nothing would need the disk"
        yield from _smaller_kv(asked, planner)
    elif asked.verdict is Verdict.GPU_RAM:
        host = sum(asked.best.host_experts.values())
        if host:
            yield (f"with {format_bytes(host)} more GPU memory all experts would be on the GPU")
    if asked.wishes.gpu_layers and not asked.budget.gpus:
        yield "--gpu-layers changes nothing: there is no GPU to use in this engine build"
    sent = any(device != CPU for _, device in asked.wishes.overrides)
    if asked.best.settings.remotes and not sent:
        here = planner.without_remotes(context)
        if here.fits and not here.disk:
            yield "without --remote everything fits in this machine's memory, most likely faster"


def _smaller_kv(asked: Question, planner: Alternatives) -> Iterator[str]:
    """A setting that keeps the experts off the disk, when one does."""
    if asked.wishes.experts_on:
        return
    context = asked.best.settings.context
    for size in [s for s in SMALLER_CONTEXTS if s < context]:
        candidate = planner.instead(size)
        if candidate.fits and not candidate.disk:
            yield f"or with --ctx {size}"
            return
    if asked.wishes.type_k == asked.wishes.type_v == "f16":
        candidate = planner.instead(context, type_k="q8_0", type_v="q8_0")
        if candidate.fits and not candidate.disk:
            yield "or with --kv-type q8_0"


def _grant_less(asked: Question, planner: Alternatives) -> Iterator[str]:
    """How much of an impossible wish could be had."""
    wishes, context = asked.wishes, asked.best.settings.context
    layers = len(asked.model.layers)
    if wishes.gpu_layers is not None and asked.budget.gpus:
        most = layers + 1 if wishes.gpu_layers < 0 else min(wishes.gpu_layers, layers + 1)
        less = _most(most, lambda n: planner.instead(context, gpu_layers=n).fits)
        if less is not None:
            yield f"it fits with --gpu-layers {less}"
        if wishes.n_cpu_moe is None and asked.model.is_moe:
            count = _least(
                layers,
                lambda n: planner.instead(context, n_cpu_moe=n).fits,
            )
            if count is not None:
                yield f"it fits with --gpu-layers {_layers(wishes.gpu_layers)} --n-cpu-moe {count}"
    elif wishes.n_cpu_moe is not None and asked.budget.gpus:
        count = _least(layers, lambda n: planner.instead(context, n_cpu_moe=n).fits)
        if count is not None:
            yield f"it fits with --n-cpu-moe {count}"
    given = {"--experts-on": wishes.experts_on, "--override": wishes.overrides}
    names = " and ".join(name for name, value in given.items() if value)
    if names and planner.instead(context, experts_on=(), overrides=()).fits:
        yield f"it fits without {names}"


def _layers(count: int) -> str:
    return "all" if count < 0 else str(count)


def _most(limit: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number below ``limit`` that fits, by bisection; None if not even 1 does."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


def _least(limit: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number up to ``limit`` that fits, by bisection; None if ``limit`` does not."""
    if not fits(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _make_it_fit(asked: Question, planner: Alternatives) -> Iterator[str]:
    wishes, model = asked.wishes, asked.model
    context = asked.best.settings.context
    smaller = [size for size in SMALLER_CONTEXTS if size < context]
    for size in smaller:
        if planner.instead(size).fits:
            yield f"it fits with --ctx {size}"
            return
    if wishes.type_k == wishes.type_v == "f16":
        for size in (context, *smaller):
            if planner.instead(size, type_k="q8_0", type_v="q8_0").fits:
                flag = "" if size == context else f" --ctx {size}"
                yield f"it fits with --kv-type q8_0{flag}"
                return
    if asked.shortfall > 0:
        yield f"free {format_bytes(asked.shortfall)} more RAM to hold all of it"
        share = max(0.0, 1 - asked.shortfall / max(1, model.size))
        if share > 0.25:
            yield (
                "or choose a smaller quantization, of at most "
                f"{format_bytes(int(model.size * share))} instead of {format_bytes(model.size)}"
            )
        else:
            yield "or choose a smaller model: no quantization of this one is small enough"
