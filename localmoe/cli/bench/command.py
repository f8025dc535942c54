"""``bench``: what this machine does with this model, regime beside regime, under a memory limit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import psutil

from localmoe.app.bench_documents import measurement_document
from localmoe.app.find import model_to_load
from localmoe.app.idle_gpus import tell_of_idle_gpus
from localmoe.app.machine import find_machine
from localmoe.app.outputs import RUN_LOG, check_output
from localmoe.app.plans import plan_for
from localmoe.bench.measurement import (
    RUNS,
    SWEEP,
    Measurement,
    Schedule,
    machine_for,
    make,
    schedule,
    summaries_of,
    wishes_for,
)
from localmoe.bench.records import Job, Log
from localmoe.bench.runner import routing_file
from localmoe.bench.versus import program_of
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.bench import screen, tuning
from localmoe.cli.output import Output
from localmoe.cli.requests import load_request, plan_request
from localmoe.errors import INTERRUPTED, DoesNotFitError
from localmoe.facts.hardware import Machine
from localmoe.planning.plan import Plan, Verdict, Wishes
from localmoe.routing.trace import read_trace
from localmoe.terminal.live_line import LiveLine


def bench_command(options: Options, output: Output) -> int:
    """Exit code 1 when a regime never reached its end under some limit, else 0."""
    return measure(measurement_of(options), options, output)


def measurement_of(options: Options) -> Measurement:
    """What the options ask to be measured. Raises what reading a trace does, and UsageError."""
    request = plan_request(options)
    return Measurement(
        wishes=request.wishes,
        remotes=request.remotes,
        limits=options.memory or (SWEEP if options.sweep else (None,)),
        regimes=options.regimes,
        runs=options.runs or RUNS,
        prompt_tokens=options.prompt_tokens,
        steps=options.max_tokens,
        routing=read_trace(options.replay) if options.replay else None,
        routing_name=Path(options.replay).name if options.replay else "",
        program=program_of(options.vs) if options.vs else None,
    )


def measure(
    asked: Measurement, options: Options, output: Output, *, at_most: int | None = None
) -> int:
    """Make the runs that are missing, or the first ``at_most`` of them; show and advise.

    Exit code as of ``bench``.
    """
    model = model_to_load(load_request(options, only_model(options)), output)
    wanted = schedule(asked, model, psutil.virtual_memory().available)
    if options.log:
        replayed = [Path(options.replay)] if options.replay else []
        check_output(Path(options.log), RUN_LOG, [*model.paths, *replayed])
    log = Log(Path(options.log) if options.log else None)
    waiting = log.missing(wanted.jobs)
    left = waiting[:at_most]
    request = plan_request(options)
    machine = find_machine(request, hypothetical=False)
    tell_of_idle_gpus(machine, output)

    @cache  # a regime under a limit is planned once, not before each of its runs
    def plan_on(machine: Machine, wishes: Wishes) -> Plan:
        own = dataclasses.replace(request, wishes=wishes)
        plan = plan_for(model, machine, own, hypothetical=False)
        if plan.verdict is Verdict.NO:
            raise DoesNotFitError(
                f"{model.name} does not run with so little memory: {plan.reason}",
                hint="a greater --memory",
            )
        return plan

    def plan_of(job: Job) -> Plan:
        return plan_on(machine_for(job, machine), wishes_for(job, wanted))

    with routing_file(wanted.routing, asked.routing_name) as replay:
        _make_runs(left, len(wanted.jobs) - len(waiting), wanted, plan_of, replay, log, output)
    runs = log.of(wanted.jobs)
    summaries = summaries_of(wanted, runs)
    to_do = len(waiting) - len(left)
    if not output.as_json:
        output.print(*screen.screen(wanted, runs, summaries))
    if to_do:
        again = "the same command goes on" if options.log else "--log FILE would keep them"
        output.note(f"{to_do} of {len(wanted.jobs)} runs are still to be made: {again}")
    plan_here = partial(plan_on, machine)
    advice = tuning.advise(model, machine, wanted.wishes, plan_here, options, output)
    if output.as_json:
        head = {"event": "done"} if output.lines else {}
        document = measurement_document(wanted, machine, runs, summaries, to_do)
        output.json(head | document | {"advice": advice.document if advice else None})
    if advice is not None and advice.stopped:
        return INTERRUPTED
    return 0 if all(summary.decode is not None for summary in summaries) else 1


def _make_runs(
    jobs: Sequence[Job],
    before: int,
    wanted: Schedule,
    plan_of: Callable[[Job], Plan],
    replay: str,
    log: Log,
    output: Output,
) -> None:
    """One after the other, each told when it is made; ``before``: that many were there already."""
    begun = time.monotonic()
    for done, job in enumerate(jobs):
        number = f"{before + done + 1}/{len(wanted.jobs)}"
        rest = (time.monotonic() - begun) / done * (len(jobs) - done) if done else None
        with LiveLine(output.stderr) as line:
            line.show(f"{number} {screen.waiting_line(job, rest)}")
            made = make(job, wanted, plan_of(job), replay)
        log.add(made)
        output.note(f"{number} {screen.run_line(made)}")
        if output.lines:
            output.json({"event": "run", **dataclasses.asdict(made)})
