"""Speeds of earlier answers: written down, and used to correct the next forecast."""

from __future__ import annotations

import contextlib

from filelock import Timeout

from localmoe.engine.events import Finished
from localmoe.engine.package import binding_version
from localmoe.errors import StorageError
from localmoe.facts import bandwidth, runs
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.facts.runs import Ran
from localmoe.planning.clock import Clock
from localmoe.planning.experience import Correction, correction
from localmoe.planning.plan import Plan
from localmoe.routing import profile

LEAST_WRITTEN = 24  # tokens of an answer, and
LEAST_READ = 64  # of a prompt, below which the measured speed says too little


def learn(model: Model, plan: Plan, key: str, done: Finished) -> None:
    """Compare an answer with its forecast, and keep the ratios of time taken to time expected.

    ``key``: of this machine's rates. Does nothing if they were never measured, or if both the
    answer and its prompt were too short.
    """
    rates = bandwidth.load(key)
    if rates is None or not plan.verdict.fits or plan.settings.prefer_cached:
        return
    disk = rates.on_disk(bandwidth.disk_of(model.paths[0]))
    if disk is not None:
        rates = rates.with_disk(disk)
    elif plan.tiers.disk:
        return
    clock = Clock(model, plan, rates, profile.load(profile.key_of(model)))
    decode = prefill = None
    written, read = done.completion_tokens, done.prompt_tokens - done.reused_tokens
    if done.decode_tps and written >= LEAST_WRITTEN:
        decode = 1 / done.decode_tps / clock.decode(done.prompt_tokens + written // 2).expected
    if done.prefill_tps and read >= LEAST_READ and not plan.tiers.disk:
        prefill = read / done.prefill_tps / clock.prefill(read).expected
    if decode is not None or prefill is not None:
        ran = Ran(key, profile.key_of(model), regime_of(model, plan), decode, prefill)
        with contextlib.suppress(StorageError, Timeout, OSError):
            runs.add(ran)


def learn_from(model: Model, plan: Plan, machine: Machine, done: Finished | None) -> None:
    """``learn`` with this machine's rates; nothing for an answer that the engine did not end."""
    if done is not None:
        learn(model, plan, bandwidth.key_of(machine, binding_version()), done)


def corrections(model: Model, plan: Plan, key: str) -> tuple[Correction | None, Correction | None]:
    """Corrections of this plan's decode and prefill times, by earlier runs; None: no run yet."""
    name, regime = profile.key_of(model), regime_of(model, plan)
    seen = runs.load(key)
    same = [ran for ran in seen if (ran.model, ran.regime) == (name, regime)]
    place = place_of(plan)
    others = [ran for ran in seen if ran.model != name and ran.regime.endswith(place)]
    decode, prefill = (
        correction(runs.ratios(same, what), runs.ratios(others, what))
        for what in ("decode", "prefill")
    )
    return decode, prefill


def was_sent(model: Model, plan: Plan, key: str) -> bool:
    """Whether the plan's workers have had this model's weights before: they keep them."""
    name, place = profile.key_of(model), place_of(plan)
    return bool(plan.settings.remotes) and any(
        ran.model == name and ran.regime.endswith(place) for ran in runs.load(key)
    )


def regime_of(model: Model, plan: Plan) -> str:
    """Quantization, tiers, cache, threads, order, devices: runs that share these are compared."""
    settings = plan.settings
    parts = (
        model.quantization,
        plan.verdict.value,
        plan.cache.regime,
        f"{settings.threads} threads",
        *(("repacked",) if settings.repack else ()),
        place_of(plan),
    )
    return " ".join(parts)


def place_of(plan: Plan) -> str:
    """``on CUDA0``, ``on RPC0 of box:50052`` or ``here``: runs are compared within one place."""
    settings = plan.settings
    if not settings.devices:
        return "here"
    workers = f" of {','.join(settings.remotes)}" if settings.remotes else ""
    return f"on {','.join(settings.devices)}{workers}"
