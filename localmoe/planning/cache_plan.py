"""How experts that do not fit in RAM are served: the regime, its memory, its batches. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from localmoe.facts.model import Model
from localmoe.planning.cache import mapped_bytes, needed_budget
from localmoe.planning.memory import EngineSettings
from localmoe.planning.plan import CachePlan
from localmoe.planning.prefill import choose_batches
from localmoe.text import format_bytes


def plan_cache(
    model: Model,
    settings: EngineSettings,
    host_experts: Mapping[int, int],
    room: int,
    wish: str = "auto",
    wished_bytes: int | None = None,
    mappings: int | None = None,
    buffers: Callable[[int], int] | None = None,
    *,
    steady: int = 0,
    paged: int = 0,
) -> tuple[EngineSettings, CachePlan]:
    """The settings with a cache in them, and what to say of it.

    ``host_experts``: bytes of routed experts in host memory per layer; ``room``: RAM in which they
    may stay. ``wish``: auto, off, page or private; ``wished_bytes`` bounds the private memory;
    ``mappings``: the system's limit of them for a process, None without one; ``buffers``: as for
    ``choose_batches``, as ``steady``; ``paged``: bytes of weights that every token needs and RAM
    cannot keep.
    """
    experts = sum(host_experts.values())
    layers = sorted(index for index, size in host_experts.items() if size)
    left = room
    if wished_bytes is not None:
        room = min(room, wished_bytes)
    if not experts and not paged:
        return settings, CachePlan("resident", 0, "no expert is left to cache")
    if wish == "off" or not experts:
        whole = room >= experts and not paged
        how = "the system reads page by page what is missing"
        why = f"switched off: {how}" if experts else how
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
    if paged:
        why = (
            f"RAM lacks {format_bytes(paged)} for what every token needs: all is read page by page"
        )
        return dataclasses.replace(settings, cache="page"), CachePlan("page", room, why)
    if room < needed_budget(model, layers, 1, settings.experts_used):
        why = f"{format_bytes(room)} hold less than one layer's experts of one token{said}"
        return dataclasses.replace(settings, cache="page"), CachePlan("page", room, why)
    steady = steady if wished_bytes is None else min(steady, wished_bytes)
    chosen = choose_batches(model, layers, min(room, experts), settings, buffers, steady)
    why = (
        f"{format_bytes(experts)} of experts, {format_bytes(room)} for them: "
        f"those used most of late stay, the others are read when a token needs them{said}"
    )
    return (
        dataclasses.replace(
            settings,
            cache="private",
            cache_bytes=min(room, experts),
            cache_lent=chosen.lent,
            batch=chosen.tokens,
            ubatch=chosen.tokens,
        ),
        CachePlan("private", min(room, experts), why),
    )
