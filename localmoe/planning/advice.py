"""The sentences that go with a plan: why the model fits or not, and which setting would help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from localmoe.facts.model import Model
from localmoe.planning.budget import GIB, Budget
from localmoe.planning.candidates import Candidate
from localmoe.planning.context import smaller_contexts
from localmoe.planning.memory import CPU
from localmoe.planning.places import holder, memory_of
from localmoe.planning.plan import Verdict, Wishes
from localmoe.text import format_bytes, format_size

CLOSE_PROGRAMS = 4 * GIB  # bytes; closing programs can plausibly free no more than this
DISK = (Verdict.RAM_DISK, Verdict.GPU_RAM_DISK, Verdict.GPU_DISK)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the planner decided, with the figures that the sentences are made of.

    Bytes of RAM: ``need`` is what the model takes when no expert is left on the disk, ``taken`` is
    used by other programs, ``unused`` is free but not allowed by the user's ``--ram``.
    """

    model: Model
    wishes: Wishes
    verdict: Verdict
    candidate: Candidate
    budget: Budget
    need: int
    taken: int = 0
    unused: int = 0

    @property
    def shortfall(self) -> int:
        """Bytes of RAM missing to keep everything in memory; negative when some is left."""
        return self.need - self.budget.ram

    @property
    def spare(self) -> int:
        """Bytes of RAM for experts beside what every token needs; negative when that lacks some."""
        return self.budget.ram - (self.need - sum(self.candidate.host_experts.values()))


class Alternatives(Protocol):
    """Plans the same model again with other settings, to find out whether a suggestion helps."""

    def instead(self, context: int, **changed: object) -> Candidate:
        """The placement at ``context`` tokens with these fields of ``Wishes`` changed."""

    def without_remotes(self, context: int) -> Candidate:
        """The placement at ``context`` tokens without the devices of other machines."""


def explain(decision: Decision) -> str:
    """One sentence with the numbers that decided the verdict."""
    verdict, budget = decision.verdict, decision.budget
    devices = decision.candidate.settings.devices
    if not verdict.fits:
        return _why_not(decision)
    if verdict is Verdict.RAM:
        need, ram = format_bytes(decision.need), format_bytes(budget.ram)
        return f"everything ({need}) fits in the {ram} of RAM"
    if verdict is Verdict.GPU:
        return f"everything fits in the {format_bytes(budget.vram)} of {memory_of(devices)}"
    if verdict is Verdict.GPU_RAM:
        return f"{holder(devices)} has what every token needs, RAM has the experts that are left"
    asked = decision.wishes.cache_ram is not None or any(
        wish.tier == "disk" for wish in decision.wishes.experts_on
    )
    if asked and decision.candidate.disk > max(0, decision.shortfall):
        return f"{format_bytes(decision.candidate.disk)} of experts are on the disk, as asked"
    return (
        f"{format_bytes(decision.candidate.disk)} of experts do not fit in the "
        f"{format_bytes(budget.ram)} of RAM: read from disk"
    )


def _why_not(decision: Decision) -> str:
    budget, candidate, model = decision.budget, decision.candidate, decision.model
    for device in candidate.settings.devices:
        room, use = budget.gpus.get(device, 0), candidate.memory.on(device)
        if use.total > room:
            return (
                f"on {device} it would take {format_bytes(use.total)} "
                f"({format_bytes(use.weights)} of weights, {format_bytes(use.kv)} of KV cache, "
                f"{format_bytes(use.compute)} of buffers); the device can give {format_bytes(room)}"
            )
    if not candidate.settings.devices and any(
        wish.tier == "gpu" for wish in decision.wishes.experts_on
    ):
        if not budget.gpus:
            return "--experts-on gpu: there is no GPU to use in this engine build"
        return (
            f"--experts-on gpu: nothing of the model fits in the {format_bytes(budget.vram)} "
            "of GPU memory"
        )
    host, spare = sum(candidate.host_experts.values()), decision.spare
    if candidate.room > max(0, spare):
        return (
            f"--experts-on ram: {format_bytes(candidate.room)} of experts are to be in RAM, and "
            f"{format_bytes(max(0, spare))} is left for them"
        )
    if model.is_moe and spare >= 0 and candidate.one_token > spare:
        return (
            f"of the experts, one token reads {format_bytes(candidate.one_token)}, and only "
            f"{format_bytes(spare)} of RAM is left for them"
        )
    mapped = candidate.memory.on(CPU).weights - host  # what every token needs, and the embedding
    held = decision.need - host - mapped
    if candidate.paged:
        return (
            f"every token reads weights of {format_bytes(mapped)}, and {format_bytes(budget.ram)} "
            f"of RAM less {format_bytes(held)} of KV cache and buffers does not hold them: they "
            "are read from the disk again and again"
        )
    gives = f"RAM can give {format_bytes(budget.ram)}"
    if not budget.ram and budget.reserve:
        gives = f"less RAM is free than the {format_bytes(budget.reserve)} kept for the system"
    return f"KV cache and buffers take {format_bytes(max(held, 0))}; {gives}"


def advise(decision: Decision, alternatives: Alternatives) -> Iterator[str]:
    """Suggestions, the most useful first. One that names a setting was planned and found to fit."""
    if not decision.verdict.fits:
        wished = list(_grant_less(decision, alternatives))
        yield from wished or _make_it_fit(decision, alternatives)
        return
    context = decision.candidate.settings.context
    if decision.verdict in DISK and decision.shortfall > 0:
        missing = format_bytes(decision.shortfall)
        if decision.wishes.ram is not None and decision.shortfall <= decision.unused:
            enough = math.ceil(10 * (decision.wishes.ram + decision.shortfall) / GIB) / 10
            yield f"with --ram {enough:g} nothing would need the disk: so much is free"
        elif decision.shortfall <= min(CLOSE_PROGRAMS, decision.taken):
            yield f"close programs that use {missing}, and nothing needs the disk"
        else:
            yield f"with {missing} more RAM nothing would need the disk"
        yield from _smaller_kv(decision, alternatives)
    elif decision.verdict is Verdict.GPU_RAM:
        host = sum(decision.candidate.host_experts.values())
        if host:
            place = holder(decision.candidate.settings.devices)
            yield f"with {format_bytes(host)} more memory on {place} all experts would be there"
    if decision.wishes.gpu_layers and not decision.budget.gpus:
        yield "--gpu-layers changes nothing: there is no GPU to use in this engine build"
    sent = any(device != CPU for _, device in decision.wishes.overrides)
    if decision.candidate.settings.remotes and not sent:
        here = alternatives.without_remotes(context)
        if here.fits and not here.disk:
            yield "without --remote everything fits in this machine's memory, most likely faster"


def _smaller_kv(decision: Decision, alternatives: Alternatives) -> Iterator[str]:
    """A smaller context or KV type with which no expert is left on the disk, if there is one."""
    if decision.wishes.experts_on:
        return
    context = decision.candidate.settings.context
    for size in smaller_contexts(decision.model, context):
        candidate = alternatives.instead(size)
        if candidate.fits and not candidate.disk:
            yield f"or with --ctx {size}"
            return
    if decision.wishes.type_k == decision.wishes.type_v == "f16":
        candidate = alternatives.instead(context, type_k="q8_0", type_v="q8_0")
        if candidate.fits and not candidate.disk:
            yield "or with --kv-type q8_0"


def _grant_less(decision: Decision, alternatives: Alternatives) -> Iterator[str]:
    """For placement options that cannot be met: the largest part of them that fits."""
    wishes, context = decision.wishes, decision.candidate.settings.context
    layers = len(decision.model.layers)
    if wishes.gpu_layers is not None and decision.budget.gpus:
        most = layers + 1 if wishes.gpu_layers < 0 else min(wishes.gpu_layers, layers + 1)
        less = _most(most, lambda n: alternatives.instead(context, gpu_layers=n).fits)
        if less is not None:
            yield f"it fits with --gpu-layers {less}"
        if wishes.n_cpu_moe is None and decision.model.is_moe:
            count = _least(
                layers,
                lambda n: alternatives.instead(context, n_cpu_moe=n).fits,
            )
            if count is not None:
                yield f"it fits with --gpu-layers {_layers(wishes.gpu_layers)} --n-cpu-moe {count}"
    elif wishes.n_cpu_moe is not None and decision.budget.gpus:
        count = _least(layers, lambda n: alternatives.instead(context, n_cpu_moe=n).fits)
        if count is not None:
            yield f"it fits with --n-cpu-moe {count}"
    given = {"--experts-on": wishes.experts_on, "--override": wishes.overrides}
    names = " and ".join(name for name, value in given.items() if value)
    if names and alternatives.instead(context, experts_on=(), overrides=()).fits:
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


def _make_it_fit(decision: Decision, alternatives: Alternatives) -> Iterator[str]:
    wishes, model = decision.wishes, decision.model
    usable = decision.candidate.one_token - decision.spare  # bytes of RAM missing for that
    helps = decision.verdict.runs and 0 < usable < decision.shortfall
    if helps and wishes.ram is not None and usable <= decision.unused:
        enough = math.ceil(10 * (wishes.ram + usable) / GIB) / 10
        yield f"with --ram {enough:g} it is usable: so much is free"
        helps = False
    context = decision.candidate.settings.context
    smaller = smaller_contexts(model, context)
    for size in smaller:
        if alternatives.instead(size).fits:
            yield f"it fits with --ctx {size}"
            return
    if wishes.type_k == wishes.type_v == "f16":
        for size in (context, *smaller):
            if alternatives.instead(size, type_k="q8_0", type_v="q8_0").fits:
                flag = "" if size == context else f" --ctx {size}"
                yield f"it fits with --kv-type q8_0{flag}"
                return
    if helps:
        yield f"with {format_bytes(usable)} more RAM it is usable"
    if decision.shortfall > 0:
        yield f"free {format_bytes(decision.shortfall)} more RAM to hold all of it"
        share = max(0.0, 1 - decision.shortfall / max(1, model.size))
        if share > 0.25:
            yield (
                "or choose a smaller quantization, of at most "
                f"{format_size(int(model.size * share))} instead of {format_size(model.size)}"
            )
        else:
            yield "or choose a smaller model: no quantization of this one is small enough"
