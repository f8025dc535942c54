"""``bench``: what this machine does with this model, regime beside regime, under a memory limit."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from localmoe.app.documents import Json
from localmoe.app.find import model_to_load
from localmoe.app.idle_gpus import tell_of_idle_gpus
from localmoe.app.machine import find_machine
from localmoe.app.machine_file import machine_document
from localmoe.app.plans import plan_for
from localmoe.bench.bounds import expert_sizes, first_token_bytes, imposed_part, least_read
from localmoe.bench.figures import Summary, compute_seconds, ratios, summarize
from localmoe.bench.records import RESIDENT, Job, Log, Run
from localmoe.bench.runner import Start, run
from localmoe.bench.versus import Program, program_of
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.bench import screen, tuning
from localmoe.cli.output import Output
from localmoe.cli.requests import load_request, plan_request
from localmoe.errors import DoesNotFitError, UsageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.budget import PROCESS_BYTES
from localmoe.planning.plan import Plan, Verdict
from localmoe.routing.rewrite import write_trace
from localmoe.routing.trace import Trace, read_trace
from localmoe.terminal.live_line import LiveLine

PLAIN, OFF = "plain", "off"
REGIMES = (PLAIN, "page", "private", "auto")
KNOWN = (*REGIMES, OFF)
SWEEP = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.2)  # shares of the model's size
LEAST_CONTEXT = 2048  # tokens
INTERRUPTED = 130
_ROOM = 64  # tokens of the context beyond prompt and answer
_CHANGING = (
    "context",
    "threads",
    "type_k",
    "type_v",
    "ram",
    "vram",
    "gpu_layers",
    "n_cpu_moe",
    "batch",
    "cache_ram",
    "experts",
    "prefer_cached",
    "predicted",
    "experts_on",
    "overrides",
)


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that was asked for, in the order in which it is done."""

    model: Model
    jobs: tuple[Job, ...]
    shared: int  # decode steps that all regimes make
    routing: Trace | None = None  # what is imposed on the tokens of a run
    program: Program | None = None  # of ``--vs``: one more regime, by its name

    @property
    def limits(self) -> tuple[int | None, ...]:
        return tuple(dict.fromkeys(job.memory for job in self.jobs if job.regime != RESIDENT))


def bench_command(options: Options, output: Output) -> int:
    """Exit code 1 when a regime never reached its end under some limit, else 0."""
    model = model_to_load(load_request(options, only_model(options)), output)
    routing = read_trace(options.replay) if options.replay else None
    if options.predicted and routing is None:
        raise UsageError("--predicted is about an imposed routing", hint="with --replay TRACE")
    task = task_of(options, model, routing, psutil.virtual_memory().available)
    log = Log(Path(options.log) if options.log else None)
    waiting = log.missing(task.jobs)
    left = waiting[: options.at_most]
    planner = _Planner(task, options)
    tell_of_idle_gpus(planner.machine, output)
    with _quickly_read(routing, options.replay or "") as replay:
        _make_runs(left, len(task.jobs) - len(waiting), planner, replay, log, output)
    runs = log.of(task.jobs)
    summaries = summaries_of(task, runs)
    to_do = len(waiting) - len(left)
    if not output.as_json:
        output.print(*screen.screen(model, task.jobs, runs, summaries, task.shared))
    if to_do:
        again = "the same command goes on" if options.log else "--log FILE would keep them"
        output.note(f"{to_do} of {len(task.jobs)} runs are still to be made: {again}")
    advice = tuning.advise(model, planner.machine, planner.options, planner.plan_with, output)
    if output.as_json:
        head = {"event": "done"} if output.lines else {}
        document = bench_document(task, planner.machine, runs, summaries, to_do)
        output.json(head | document | {"advice": advice.document if advice else None})
    if advice is not None and advice.stopped:
        return INTERRUPTED
    return 0 if all(summary.decode is not None for summary in summaries) else 1


def _make_runs(
    jobs: Sequence[Job], before: int, planner: _Planner, replay: str, log: Log, output: Output
) -> None:
    """One after the other, each told when it is made; ``before`` of the task were there already."""
    task, begun = planner.task, time.monotonic()
    for done, job in enumerate(jobs):
        number = f"{before + done + 1}/{len(task.jobs)}"
        rest = (time.monotonic() - begun) / done * (len(jobs) - done) if done else None
        with LiveLine(output.stderr) as line:
            line.show(f"{number} {screen.waiting_line(job, task.model, rest)}")
            made = planner.make(job, replay)
        log.add(made)
        output.note(f"{number} {screen.run_line(made, task.model)}")
        if output.lines:
            output.json({"event": "run", **dataclasses.asdict(made)})


@contextlib.contextmanager
def _quickly_read(routing: Trace | None, name: str) -> Iterator[str]:
    """The path of a routing to impose: reading the user's own file would count as loading."""
    if routing is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name  # errors are about the user's
        write_trace(path, routing)
        yield str(path)


def task_of(options: Options, model: Model, routing: Trace | None, free: int) -> Task:
    """What to run, limit by limit, the regimes alternating. ``free``: bytes of RAM now."""
    steps, prompt = options.max_tokens or 64, options.prompt_tokens or 32
    if routing is not None:
        written = int(routing.decode.sum())
        steps = min(written, options.max_tokens or written)
        prompt = options.prompt_tokens or len(routing) - written
        routing = imposed_part(routing, prompt, steps)
    regimes = options.regimes or (REGIMES if model.is_moe else (PLAIN, "auto"))
    if options.baseline and PLAIN not in regimes:
        regimes = (PLAIN, *regimes)
    if unknown := [name for name in regimes if name not in KNOWN]:
        raise UsageError(f"no regime {unknown[0]}", hint=f"--regimes {','.join(KNOWN)}")
    program = program_of(options.vs) if options.vs else None
    if program is not None:
        if routing is not None:
            raise UsageError(f"no routing can be imposed on {program.name}: --vs or --replay")
        regimes = (*regimes, program.name)
    limits = options.memory or (SWEEP if options.sweep else (None,))
    plain_steps = min(steps, options.plain_tokens or steps)
    head = Job(
        model=model.name,
        size=model.size,
        regime=RESIDENT,
        memory=None,
        repeat=0,
        prompt_tokens=prompt,
        steps=steps,
        replay=Path(options.replay).name if options.replay else "",
        asked=asked(options),
    )
    roomy = free > model.size + (model.size >> 3)
    jobs: list[Job] = []
    for limit in limits:
        for repeat in range(options.runs or 3):
            if roomy and limit == limits[0]:
                jobs.append(dataclasses.replace(head, repeat=repeat))
            jobs += [
                dataclasses.replace(
                    head,
                    regime=regime,
                    memory=limit_bytes(limit, model),
                    repeat=repeat,
                    steps=plain_steps if regime == PLAIN or regime not in KNOWN else steps,
                )
                for regime in regimes
            ]
    shared = plain_steps if PLAIN in regimes or program else steps
    return Task(model, tuple(jobs), shared, routing, program)


def asked(options: Options) -> str:
    """The options that change what is measured, so that a log keeps such runs apart."""
    default = Options()
    changed = {name: getattr(options, name) for name in _CHANGING}
    return " ".join(
        f"{name}={value}" for name, value in changed.items() if value != getattr(default, name)
    )


def limit_bytes(limit: float | int | None, model: Model) -> int | None:
    """A share of the model's size (float) or bytes (int), in bytes."""
    return int(limit * model.size) if isinstance(limit, float) else limit


class _Planner:
    """Plans and makes runs; a plan is asked for once per regime and limit."""

    def __init__(self, task: Task, options: Options) -> None:
        self.task = task
        tokens = task.jobs[0].prompt_tokens + task.jobs[0].steps + _ROOM
        used = options.experts
        if task.routing is not None:
            used = max(layer.used for layer in task.routing.header.layers)
        self.options = dataclasses.replace(
            options,
            context=options.context or max(LEAST_CONTEXT, -(-tokens // 256) * 256),
            experts=used,
        )
        self.machine: Machine = find_machine(plan_request(self.options), imagined=False)
        self._plan = cache(self._make_plan)

    def make(self, job: Job, replay: str) -> Run:
        task, program = self.task, self.task.program
        if program is not None and job.regime == program.name:  # as plain mapping would be run
            start = start_of(PLAIN, self._plan(PLAIN, job.memory), "")
            return run(job, task.model, start, program.measure)
        plan = self._plan(job.regime, job.memory)
        start = start_of(job.regime, plan, replay, self.options.predicted or 0.0)
        return run(job, task.model, start)

    def plan_with(self, options: Options) -> Plan:
        """As ``run`` would plan. Raises DoesNotFitError."""
        request = plan_request(options)
        plan = plan_for(self.task.model, self.machine, request, imagined=False)
        if plan.verdict is Verdict.NO:
            raise DoesNotFitError(
                f"{self.task.model.name} does not run with so little memory: {plan.reason}",
                hint="a greater --memory",
            )
        return plan

    def _make_plan(self, regime: str, limit: int | None) -> Plan:
        wish = {PLAIN: OFF, RESIDENT: "auto"}.get(regime, regime)
        return self.plan_with(
            dataclasses.replace(self.options, ram=limit or self.options.ram, cache=wish)
        )


def start_of(regime: str, plan: Plan, replay: str, predicted: float = 0.0) -> Start:
    """How the engine is started in a regime. Pure."""
    settings = dataclasses.replace(plan.settings, replay=replay, predicted=predicted)
    planned = plan.tiers.ram + PROCESS_BYTES
    room = settings.cache_bytes or plan.cache.budget
    if regime == PLAIN:
        # llama.cpp's own mapping, which reads the whole file first.
        settings = dataclasses.replace(settings, read_ahead=False)
        return Start(settings, planned, room, {"LOCALMOE_STOCK_MMAP": "1"})
    return Start(settings, planned, room)


def summaries_of(task: Task, runs: Sequence[Run]) -> list[Summary]:
    """One per limit and regime that was run, in the order of the jobs. Pure."""
    groups: dict[tuple[int | None, str], list[Run]] = {}
    for each in runs:
        if each.job.regime != RESIDENT:
            groups.setdefault((each.job.memory, each.job.regime), []).append(each)
    compute = compute_seconds(runs, max(job.steps for job in task.jobs))
    sizes = expert_sizes(task.model)

    @cache
    def least(budget: int) -> int | None:
        return None if task.routing is None else least_read(task.routing, sizes, budget)

    first = None if task.routing is None else first_token_bytes(task.routing, task.model)
    return [
        summarize(group, shared=task.shared, compute_s=compute, least_read=least, first_bytes=first)
        for group in groups.values()
    ]


def bench_document(
    task: Task, machine: Machine, runs: Sequence[Run], summaries: Sequence[Summary], to_do: int
) -> Json:
    """``bench --json`` of the command line contract; ``to_do``: runs that are still missing."""
    job = task.jobs[0]
    compute = compute_seconds(runs, job.steps)
    by_limit = {limit: [s for s in summaries if s.memory == limit] for limit in task.limits}
    return {
        "machine": machine_document(machine),
        "model": task.model.name,
        "size": task.model.size,
        "prompt_tokens": job.prompt_tokens,
        "shared_window": task.shared,
        "replay": job.replay or None,
        "resident_tps": 1 / compute if compute else None,
        "to_do": to_do,
        "runs": [screen.summary_document(summary) for summary in summaries],
        "ratios": {
            screen.limit_name(limit, task.model): ratios(group) for limit, group in by_limit.items()
        },
    }
