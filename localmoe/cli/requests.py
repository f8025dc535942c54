"""What was typed → the requests that ``localmoe.app`` takes. Pure."""

from __future__ import annotations

from pathlib import Path

from localmoe import storage
from localmoe.app.requests import LoadRequest, PlanRequest, SampleRequest, SessionRequest
from localmoe.cli.arguments import Options
from localmoe.engine.events import Sampling
from localmoe.planning.plan import ExpertsOn, Wishes


def plan_request(options: Options) -> PlanRequest:
    """How to plan, for which machine."""
    return PlanRequest(
        wishes=wishes(options),
        machine=Path(options.machine) if options.machine is not None else None,
        remotes=options.remotes,
        min_tps=options.min_tps,
    )


def load_request(options: Options, name: str | None) -> LoadRequest:
    """How to load the model of that name; None: the default one."""
    return LoadRequest(
        name=name,
        plan=plan_request(options),
        consent=options.yes,
        remember=not options.no_history,
        record=options.trace or "",
        record_logits=options.logits,
        inputs=tuple(map(storage.user_path, filter(None, (*options.files, options.schema)))),
        template=not options.plain,
    )


def sample_request(options: Options) -> SampleRequest:
    """How to choose tokens."""
    given = {
        name: getattr(options, name)
        for name in Sampling.__dataclass_fields__
        if getattr(options, name, None) is not None
    }
    return SampleRequest(given, options.think, options.plain, options.max_tokens, options.stop)


def session_request(options: Options) -> SessionRequest:
    """Which conversation to continue."""
    return SessionRequest(
        name=options.session,
        latest=options.resume,
        written=not options.no_history,
        system=options.system,
    )


def wishes(options: Options) -> Wishes:
    """The options that the planner takes."""
    return Wishes(
        context=options.context,
        type_k=options.type_k,
        type_v=options.type_v,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        n_cpu_moe=options.n_cpu_moe,
        ram=options.ram,
        vram=options.vram,
        batch=options.batch,
        experts_on=tuple(ExpertsOn(tier, spans) for tier, spans in options.experts_on),
        overrides=options.overrides,
        cache=options.cache,
        cache_ram=options.cache_ram,
        repack=options.repack,
        experts=options.experts,
        prefer_cached=options.prefer_cached,
    )
