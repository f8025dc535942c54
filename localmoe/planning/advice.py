"""Words for a verdict: why it is so, and what would change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from localmoe.facts.model import Model
from localmoe.planning.budget import Budget
from localmoe.planning.memory import EngineSettings, MemoryReport
from localmoe.planning.plan import Verdict, Wishes
from localmoe.text import format_bytes

SMALLER_CONTEXTS = (16384, 8192, 4096, 2048)
CLOSE_PROGRAMS = 4 * 1024**3  # a shortfall that closing programs can plausibly free, bytes


def explain(
    model: Model,
    verdict: Verdict,
    need: int,
    budget: Budget,
    memory: MemoryReport,
    one_token: int,
) -> str:
    """One sentence: the numbers that decide. ``need``: bytes of RAM."""
    ram, vram = budget.ram, budget.vram
    if verdict is Verdict.NO:
        for device, room in budget.gpus.items():
            if memory.on(device).total > room:
                return (
                    f"on {device} it would take {format_bytes(memory.on(device).total)}; "
                    f"the device can give {format_bytes(room)}"
                )
        fixed = need - model.expert_bytes if model.is_moe else need
        if model.is_moe and fixed + one_token > ram >= fixed:
            return (
                f"of the experts, one token reads {format_bytes(one_token)}, and only "
                f"{format_bytes(ram - fixed)} of RAM is left for them"
            )
        what = "weights that every token needs, KV cache and buffers" if model.is_moe else "it"
        verb = "take" if model.is_moe else "takes"
        return f"{what} {verb} {format_bytes(max(fixed, 0))}; RAM can give {format_bytes(ram)}"
    if verdict is Verdict.RAM:
        return f"everything ({format_bytes(need)}) fits in the {format_bytes(ram)} of RAM"
    if verdict is Verdict.GPU:
        return f"everything fits in the {format_bytes(vram)} of GPU memory"
    if verdict is Verdict.GPU_RAM:
        return "the GPU holds what every token needs, RAM holds the experts that are left"
    missing = format_bytes(max(0, need - ram))
    return f"{missing} of experts do not fit in the {format_bytes(ram)} of RAM: read from disk"


def advise(
    model: Model,
    wishes: Wishes,
    verdict: Verdict,
    shortfall: int,
    settings: EngineSettings,
    would_fit: Callable[[EngineSettings], bool],
) -> Iterator[str]:
    """What to change, most useful first. Each suggestion that names a setting was tried."""
    if verdict is Verdict.NO:
        yield from _make_it_fit(model, wishes, shortfall, settings, would_fit)
    elif verdict in (Verdict.RAM_DISK, Verdict.GPU_RAM_DISK, Verdict.GPU_DISK):
        if shortfall <= CLOSE_PROGRAMS:
            yield f"close {format_bytes(shortfall)} of programs and nothing needs the disk"
        else:
            yield f"with {format_bytes(shortfall)} more RAM nothing would need the disk"


def _make_it_fit(
    model: Model,
    wishes: Wishes,
    shortfall: int,
    settings: EngineSettings,
    would_fit: Callable[[EngineSettings], bool],
) -> Iterator[str]:
    smaller = [size for size in SMALLER_CONTEXTS if size < settings.context]
    for size in smaller:
        if would_fit(dataclasses.replace(settings, context=size)):
            yield f"it fits with --ctx {size}"
            return
    if wishes.type_k == wishes.type_v == "f16":
        for size in (settings.context, *smaller):
            small = dataclasses.replace(settings, context=size, type_k="q8_0", type_v="q8_0")
            if would_fit(small):
                context = "" if size == settings.context else f" --ctx {size}"
                yield f"it fits with --kv-type q8_0{context}"
                return
    if shortfall > 0:
        yield f"free {format_bytes(shortfall)} more RAM to hold all of it"
        share = max(0.0, 1 - shortfall / max(1, model.size))
        if share > 0.25:
            yield (
                "or choose a smaller quantization, of at most "
                f"{format_bytes(int(model.size * share))} instead of {format_bytes(model.size)}"
            )
        else:
            yield "or choose a smaller model: no quantization of this one is small enough"
