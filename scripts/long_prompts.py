"""Long prompts from models larger than memory: speed, interrupts, and decoding after them.

    python scripts/long_prompts.py table MODEL --memory 0.4x,0.18x --prompt-tokens 512,2048,8192
    python scripts/long_prompts.py interrupts MODEL --memory 0.4x --positions 0,4096,8192,16384
    python scripts/long_prompts.py decode MODEL --memory 0.4x --prompt-tokens 2048

The table has a run with everything in RAM in the same batches before each run in a memory group;
the bound of a run is the greater of the first one's time and that of reading the bytes that the
second one read, at the speed of the disk around it. With ``--log FILE`` what is there is not made
again, and ``--at-most N`` ends after N runs. Figures mean something on a quiet machine alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.app import rates
from localmoe.app.listener import Silent
from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.app.requests import PlanRequest
from localmoe.bench.cold_start import forget
from localmoe.bench.limits import memory_box
from localmoe.bench.measurement import machine_for, start_of
from localmoe.bench.records import RESIDENT, Job, Log, Run
from localmoe.bench.runner import prompt_of, run
from localmoe.cli.option_types import limits
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, PrefillProgress, Request, Sampling, Token
from localmoe.facts.model import Model, read_model
from localmoe.planning.clock import Clock
from localmoe.planning.plan import Plan, Wishes
from localmoe.planning.prefill import attention_work, batch_threads, batches
from localmoe.text import format_bytes

MIB = 1 << 20
GREEDY = Sampling(temperature=0)
HEAD = (
    "| memory | prompt | batch | tok/s | of computing | of the bound | GB read, × once per batch | "
    "MB a token | peak, MiB (limit) | forecast tok/s | forecast MB a token |"
)
QUESTION = "A mixture of experts has many small networks and a router."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("table", "interrupts", "decode"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", type=limits, default=(0.4,))
    parser.add_argument("--prompt-tokens", type=_numbers, default=(512, 2048, 8192))
    parser.add_argument("--positions", type=_numbers, default=(0, 4096, 8192, 16384))
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--at-most", type=int, help="runs of the table")
    options = parser.parse_args(arguments)
    model = read_model(options.model)
    bounds = [int(x * model.size) if isinstance(x, float) else x for x in options.memory]
    lines: Iterator[str]
    if options.what == "table":
        table = Table(model, bounds, options.prompt_tokens, options.runs)
        lines = table.lines(Log(options.log), options.at_most)
    elif options.what == "interrupts":
        lines = interrupts(model, bounds[0], options.positions, options.runs)
    else:
        lines = decode(model, bounds[0], options.prompt_tokens, options.runs)
    for line in lines:
        print(line, flush=True)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


Planned = Callable[[int | None, int, int | None], Plan]


def planner_of(model: Model) -> Planned:
    """Plans as in a memory group of so many bytes, for a context; with a batch that is wished."""

    @cache
    def planned(memory: int | None, context: int, batch: int | None) -> Plan:
        job = Job(model.name, model.size, "auto", memory, 0, 0, 0)
        machine = machine_for(job, find_machine(PlanRequest(), hypothetical=False))
        request = PlanRequest(Wishes(context=context, batch=batch))
        return plan_for(model, machine, request, hypothetical=False)

    return planned


def context_for(prompt: int) -> int:
    return max(2048, -(-(prompt + 128) // 256) * 256)


class Table:
    """The runs of a model by memory and length of the prompt, and what they amount to."""

    def __init__(
        self, model: Model, limits: Sequence[int], prompts: Sequence[int], runs: int
    ) -> None:
        self._model, self._planned = model, planner_of(model)
        self._cells = [(memory, prompt) for prompt in prompts for memory in limits]
        self._runs = runs

    def lines(self, log: Log, at_most: int | None) -> Iterator[str]:
        """Makes what is missing, then the table."""
        jobs = [
            job for n in range(self._runs) for cell in self._cells for job in self._pair(*cell, n)
        ]
        waiting = list(dict.fromkeys(log.missing(jobs)))
        for job in waiting[:at_most]:
            made = run(job, self._model, start_of(job.regime, self._plan(job), ""))
            log.add(made)
            yield (
                f"{job.regime} {job.memory} {job.prompt_tokens}: {made.prefill_tps:.1f} tok/s, "
                + (
                    made.error
                    or f"disk {made.disk / 1e9:.2f} GB/s, waited {made.stall_s or 0:.1f} s"
                )
            )
        yield HEAD
        for memory, prompt in self._cells:
            pairs = [tuple(self._pair(memory, prompt, n)) for n in range(self._runs)]
            done = {made.job: made for made in log.of([job for pair in pairs for job in pair])}
            whole = [(done[a], done[b]) for a, b in pairs if a in done and b in done]
            if whole:
                yield self._row(memory, prompt, whole)

    def _pair(self, memory: int, prompt: int, repeat: int) -> Iterator[Job]:
        job = Job(self._model.name, self._model.size, "auto", memory, repeat, prompt, 1)
        batch = self._plan(job).settings.ubatch
        yield dataclasses.replace(job, regime=RESIDENT, memory=None, asked=f"batch={batch}")
        yield job

    def _plan(self, job: Job) -> Plan:
        batch = int(job.asked.partition("=")[2] or 0)
        return self._planned(job.memory, context_for(job.prompt_tokens), batch or None)

    def _row(self, memory: int, prompt: int, pairs: Sequence[tuple[Run, Run]]) -> str:
        good = [(a, b) for a, b in pairs if not a.error and not b.error]
        if not good:
            return f"| {memory} | {prompt} | {pairs[0][1].error} |"
        plan = self._planned(memory, context_for(prompt), None)
        settings, size = plan.settings, sum(layer.expert_bytes for layer in self._model.layers)
        attention = attention_work(self._model, settings)
        count = len(batches(prompt, settings.ubatch, attention, batch_threads(settings)))
        read = statistics.median(b.prompt_read or 0 for _, b in good)
        bounds = [
            max(prompt / a.prefill_tps, (b.prompt_read or 0) / b.disk) * b.prefill_tps / prompt
            for a, b in good
        ]
        here = find_machine(PlanRequest(), hypothetical=False)
        known = rates.rates_for(self._model, plan, here, Silent())
        clock = Clock(self._model, plan, known, None) if known else None
        seconds = clock.prefill(prompt, cold=True).expected if clock else 0.0
        foreseen = clock.prompt_bytes(prompt, cold=True) / prompt if clock else 0.0
        speeds = [b.prefill_tps for _, b in good]
        peak = max(b.anonymous_peak for _, b in good)
        return (
            f"| {memory / self._model.size:.2f} × ({memory / 1e9:.2f} GB) | {prompt:,} | "
            f"{settings.ubatch} | {statistics.median(speeds):.1f} "
            f"({min(speeds):.1f}–{max(speeds):.1f}) | "
            f"{statistics.median(b.prefill_tps / a.prefill_tps for a, b in good):.2f} | "
            f"{statistics.median(bounds):.2f} | {read / 1e9:.2f}, {read / size / count:.2f} | "
            f"{read / prompt / 1e6:.2f} | {peak // MIB:,} ({memory // MIB:,}) | "
            f"{prompt / seconds if seconds else 0:.1f} | {foreseen / 1e6:.2f} |"
        )


def opened(
    model: Model, memory: int, context: int, use: Callable[[Engine], Iterator[str]]
) -> Iterator[str]:
    """What ``use`` says of an engine in a memory group."""
    plan = planner_of(model)(memory, context, None)
    settings = plan.settings
    yield (
        f"{model.name}, {format_bytes(memory)}: {plan.cache.regime}, batch {settings.ubatch}, "
        f"{format_bytes(settings.cache_bytes)} for experts"
    )
    forget(model.paths)
    with memory_box(memory) as box, Engine(model, settings, remember=False) as engine:
        box.admit(engine.pid)
        list(engine.load())
        yield from use(engine)


def interrupts(model: Model, memory: int, positions: Sequence[int], runs: int) -> Iterator[str]:
    """Seconds from an interrupt to the end of the request, while a prompt is read, by position."""
    dice = random.Random(1)

    def use(engine: Engine) -> Iterator[str]:
        prompt = prompt_of(max(positions) + 4096, engine.count_tokens)
        for position in positions:
            times = []
            for _ in range(runs):
                asked = 0.0
                for event in engine.generate(Request(prompt, max_tokens=1, add_bos=False)):
                    if isinstance(event, PrefillProgress) and event.done >= position and not asked:
                        time.sleep(dice.uniform(0.2, 1.5))
                        asked = time.perf_counter()
                        engine.cancel()
                    elif isinstance(event, Finished):
                        times.append(time.perf_counter() - asked)
            yield (
                f"| {position:,} | {statistics.median(times):.2f} s | {max(times):.2f} s | {runs} |"
            )

    yield "| from token | median | most | interrupts |"
    yield from opened(model, memory, context_for(max(positions) + 4096), use)


def decode(model: Model, memory: int, prompts: Sequence[int], runs: int) -> Iterator[str]:
    """Tokens per second of the same answer, before and after a long prompt of another: of its first
    96 tokens, which bring back what the prompt has pushed out, and of its next 96."""

    def use(engine: Engine) -> Iterator[str]:
        def answer() -> tuple[float, float]:
            request = Request(QUESTION, max_tokens=193, sampling=GREEDY, ignore_end=True)
            events = engine.generate(request)
            at = [time.perf_counter() for event in events if isinstance(event, Token)]
            return 96 / (at[96] - at[0]), 96 / (at[192] - at[96])

        yield "| prompt | first 96 tokens, before and after | of before | next 96 | of before |"
        for prompt in prompts:
            text = prompt_of(prompt, engine.count_tokens)
            pairs = []
            for n in range(runs):
                answer()
                before = answer()
                list(engine.generate(Request(f"{n} {text}", max_tokens=1)))
                pairs.append((before, answer()))
            (first, then), (first_after, then_after) = (
                [statistics.median(each) for each in zip(*side, strict=True)]
                for side in zip(*pairs, strict=True)
            )
            quotients = [
                statistics.median(after[k] / before[k] for before, after in pairs) for k in (0, 1)
            ]
            yield (
                f"| {prompt:,} | {first:.2f}, {first_after:.2f} tok/s | {quotients[0]:.3f} | "
                f"{then:.2f}, {then_after:.2f} tok/s | {quotients[1]:.3f} |"
            )

    yield from opened(model, memory, context_for(max(prompts)), use)


if __name__ == "__main__":
    sys.exit(main())
