"""What is measured: from what was asked to the runs to make, and from the runs to a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from localmoe.bench.bounds import expert_sizes, first_token_bytes, imposed_part, least_read
from localmoe.bench.figures import Summary, compute_seconds, summarize
from localmoe.bench.records import RESIDENT, Job, Run
from localmoe.bench.runner import Start, run
from localmoe.bench.versus import Program
from localmoe.errors import UsageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.budget import PROCESS_BYTES
from localmoe.planning.plan import Plan, Wishes
from localmoe.routing.records import Trace

PLAIN, OFF = "plain", "off"
REGIMES = (PLAIN, "page", "private", "auto")  # of a model with experts, unless asked otherwise
KNOWN = (*REGIMES, OFF)
SWEEP = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2)  # shares of the model's size
STEPS, PROMPT_TOKENS, RUNS = 64, 32, 3  # unless asked otherwise
LEAST_CONTEXT = 2048  # tokens
SPARE_CONTEXT = 64  # tokens beyond prompt and answer


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was asked for. () and None mean: the usual ones."""

    wishes: Wishes  # of every plan; each run adds its regime and its limit
    remotes: tuple[str, ...] = ()  # "host:port" of the workers that the plans may use
    limits: tuple[float | int | None, ...] = (None,)  # shares of the model's size, or bytes
    regimes: tuple[str, ...] = ()  # of KNOWN
    runs: int = RUNS  # of each kind
    prompt_tokens: int | None = None
    steps: int | None = None  # decode steps after the first token
    plain_steps: int | None = None  # of plain mapping, which may be too slow for all of them
    routing: Trace | None = None  # to impose on the tokens of a run
    routing_name: str = ""  # of the file that it is from
    predicted: float = 0.0  # share of an imposed routing that the prediction gets right
    program: Program | None = None  # a llama.cpp program to compare with


@dataclass(frozen=True, slots=True)
class Schedule:
    """Every run of a measurement, in the order in which they are made."""

    model: Model
    jobs: tuple[Job, ...]
    wishes: Wishes  # of a plan without a limit
    routing: Trace | None  # the part that a run imposes
    predicted: float
    program: Program | None

    @property
    def limits(self) -> tuple[int | None, ...]:
        """Bytes; None: no limit."""
        return tuple(dict.fromkeys(job.memory for job in self.jobs if job.regime != RESIDENT))

    @property
    def shared(self) -> int:
        """Decode steps that all runs make."""
        return min(job.steps for job in self.jobs)


def schedule(measurement: Measurement, model: Model, free: int) -> Schedule:
    """What to run, limit by limit, the regimes alternating. Pure.

    ``free``: bytes of RAM now, which tell whether there can be runs with everything in RAM.
    Raises UsageError for a regime that there is not, or a routing that cannot be imposed.
    """
    steps, prompt = measurement.steps or STEPS, measurement.prompt_tokens or PROMPT_TOKENS
    routing, program = measurement.routing, measurement.program
    if routing is not None:
        written = int(routing.decode.sum())
        steps = min(written, measurement.steps or written)
        prompt = measurement.prompt_tokens or len(routing) - written
        routing = imposed_part(routing, prompt, steps)
    regimes = measurement.regimes or (REGIMES if model.is_moe else (PLAIN, "auto"))
    if unknown := [name for name in regimes if name not in KNOWN]:
        raise UsageError(f"no regime {unknown[0]}", hint=f"--regimes {','.join(KNOWN)}")
    if program is not None:
        if routing is not None:
            raise UsageError(f"no routing can be imposed on {program.name}: --vs or --replay")
        regimes = (*regimes, program.name)
    head = Job(
        model=model.name,
        size=model.size,
        regime=RESIDENT,
        memory=None,
        repeat=0,
        prompt_tokens=prompt,
        steps=steps,
        replay=measurement.routing_name,
        asked=asked(measurement),
    )
    mapped = min(steps, measurement.plain_steps or steps)
    roomy = free > model.size + (model.size >> 3)
    jobs: list[Job] = []
    for limit in measurement.limits:
        memory = int(limit * model.size) if isinstance(limit, float) else limit
        for repeat in range(measurement.runs):
            if roomy and limit == measurement.limits[0]:
                jobs.append(dataclasses.replace(head, repeat=repeat))
            jobs += [
                dataclasses.replace(
                    head,
                    regime=regime,
                    memory=memory,
                    repeat=repeat,
                    steps=steps if regime in KNOWN and regime != PLAIN else mapped,
                )
                for regime in regimes
            ]
    return Schedule(
        model,
        tuple(jobs),
        _wishes(measurement, prompt + steps),
        routing,
        measurement.predicted,
        program,
    )


def asked(measurement: Measurement) -> str:
    """The part of the request that changes what a run shows, so that a log keeps runs apart. Pure.

    The regime of the expert cache is left out: each run has its own.
    """
    usual = Wishes()
    values = {
        field.name: getattr(measurement.wishes, field.name)
        for field in dataclasses.fields(Wishes)
        if field.name != "cache"
    }
    changed = [f"{name}={value}" for name, value in values.items() if value != getattr(usual, name)]
    changed += [f"remotes={','.join(measurement.remotes)}"] if measurement.remotes else []
    changed += [f"predicted={measurement.predicted}"] if measurement.predicted else []
    return " ".join(changed)


def _wishes(measurement: Measurement, tokens: int) -> Wishes:
    """A context for so many tokens, and as many experts per token as an imposed routing has."""
    wishes = measurement.wishes
    experts = wishes.experts
    if measurement.routing is not None:
        experts = max(layer.used for layer in measurement.routing.header.layers)
    context = max(LEAST_CONTEXT, -(-(tokens + SPARE_CONTEXT) // 256) * 256)
    return dataclasses.replace(wishes, context=wishes.context or context, experts=experts)


def wishes_for(job: Job, schedule: Schedule) -> Wishes:
    """What to ask the planner for before a run, on the machine of ``machine_for``. Pure.

    A llama.cpp program gets the plan of plain mapping; everything in RAM is what ``auto`` chooses
    without a limit.
    """
    regime = job.regime if job.regime in KNOWN else PLAIN
    cache = "auto" if job.regime == RESIDENT else OFF if regime == PLAIN else regime
    return dataclasses.replace(schedule.wishes, cache=cache)


def machine_for(job: Job, machine: Machine) -> Machine:
    """The machine as a run sees it: all of a memory group of its limit is free. Pure.

    So a run is planned as localmoe plans in such a group by itself, reserve and growth included.
    """
    if job.memory is None:
        return machine
    return dataclasses.replace(
        machine,
        ram_total=job.memory,
        ram_available=min(job.memory, machine.ram_available),
        ram_limited_by="the measurement",
    )


def make(job: Job, schedule: Schedule, plan: Plan, replay: str) -> Run:
    """Make one run by its plan. ``replay``: path of the routing to impose, "" for none."""
    program = schedule.program
    if program is not None and job.regime == program.name:
        return run(job, schedule.model, start_of(PLAIN, plan, ""), program.measure)
    return run(job, schedule.model, start_of(job.regime, plan, replay, schedule.predicted))


def start_of(regime: str, plan: Plan, replay: str, predicted: float = 0.0) -> Start:
    """How the engine is started in a regime. Pure."""
    settings = dataclasses.replace(plan.settings, replay=replay, predicted=predicted)
    planned = plan.tiers.ram + PROCESS_BYTES
    cached = settings.cache_bytes or plan.cache.budget
    if regime == PLAIN:
        # llama.cpp's own mapping, which reads the whole file first.
        settings = dataclasses.replace(settings, read_ahead=False)
        return Start(settings, planned, cached, {"LOCALMOE_STOCK_MMAP": "1"})
    return Start(settings, planned, cached)


def summaries_of(schedule: Schedule, runs: Sequence[Run]) -> list[Summary]:
    """One per limit and regime that was run, in the order of the jobs. Pure."""
    groups: dict[tuple[int | None, str], list[Run]] = {}
    for each in runs:
        if each.job.regime != RESIDENT:
            groups.setdefault((each.job.memory, each.job.regime), []).append(each)
    compute = compute_seconds(runs, max(job.steps for job in schedule.jobs))
    sizes, routing = expert_sizes(schedule.model), schedule.routing

    @cache
    def least(budget: int) -> int | None:
        return None if routing is None else least_read(routing, sizes, budget)

    first = None if routing is None else first_token_bytes(routing, schedule.model)
    return [
        summarize(
            group, shared=schedule.shared, compute_s=compute, least_read=least, first_bytes=first
        )
        for group in groups.values()
    ]
