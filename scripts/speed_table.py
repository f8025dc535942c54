"""Predicted and measured speeds of generated models, side by side: docs/speed.md.

    python -m scripts.speed_table --folder F --write                   # once: 19 GB of models
    python -m scripts.speed_table --folder F --log L --minutes 5       # again and again
    python -m scripts.speed_table --folder F --log L --short           # half as long a round
    python -m scripts.speed_table --folder F --log L --again           # forecasts of today's code
    python -m scripts.speed_table --log L --table docs/speed.md

A round measures the machine, as ``localmoe doctor --measure`` does, and forecasts; then a fresh
process with a model out of the page cache loads, reads 512 tokens, 2,048, some models 8,192, then
other 512, and writes. Each case has three rounds, with one of every other case in between; what the
log has is not done again. Nothing else should run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.app.requests import PlanRequest
from localmoe.bench.cold_start import forget
from localmoe.bench.limits import memory_box
from localmoe.bench.runner import prompt_of
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling
from localmoe.engine.timing import processor_rates
from localmoe.facts import bandwidth
from localmoe.facts.bandwidth import Rates
from localmoe.facts.disk_rates import measure_file
from localmoe.facts.load import Load
from localmoe.facts.model import Model, read_model
from localmoe.planning.plan import Plan, Wishes
from localmoe.planning.speed import forecast
from localmoe.routing import profile
from scripts.make_standin import make_standin
from scripts.speed_cases import CALIBRATION, CASES, Case
from scripts.speed_page import Line, compared, page, summary, together

SHORT, MIDDLE, LONG = 512, 2048, 8192  # tokens of the prompts
STEPS, ROUNDS = 48, 3
OTHERS = 0.06  # of the processors: a round during which others took more does not count
SLACK = 1024  # tokens of the context beside the longest prompt
QUESTION = "The ferry left the harbour at seven, with forty passengers and a crate of oranges. "
SAMPLING = Sampling(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)  # greedy may loop


@dataclass(frozen=True, slots=True)
class Round:
    """A line of the log."""

    line: Line  # with one run of each figure
    rates: Rates  # of the machine, just before it

    def text(self) -> str:
        document = {"rates": bandwidth.to_json(self.rates), **dataclasses.asdict(self.line)}
        return json.dumps(document) + "\n"


def rounds_of(log: Path) -> Iterator[Round]:
    for text in log.read_text("utf-8").splitlines() if log.exists() else ():
        document = json.loads(text)
        rates = bandwidth.from_json(document.pop("rates"))
        yield Round(Line(**document), rates)


def file_of(case: Case, folder: Path) -> Path:
    return folder / f"speed-{case.name.replace(' ', '-').replace(',', '')}.gguf"


def write_model(case: Case, cases: Sequence[Case], folder: Path) -> None:
    """The file of a case, if it is not there already. Its routers have favourites where that
    matters: where a case runs it with experts on the disk.
    """
    path = file_of(case, folder)
    if not path.exists():
        part = path.with_suffix(".part")
        limited = any(other.share and other.name == case.name for other in cases)
        make_standin(case.family, part, uniform=not limited)
        part.rename(path)


def planned(case: Case, model: Model) -> Plan:
    """How a case is run here."""
    limit = None if case.share is None else int(case.share * model.size)
    context = SLACK + (LONG if case.long else MIDDLE)
    request = PlanRequest(Wishes(context=context, ram=limit))
    machine = find_machine(request, hypothetical=False)
    plan = plan_for(model, machine, request, hypothetical=False)
    if not plan.verdict.fits:
        raise SystemExit(f"{case.name}: {plan.reason}")
    return plan


def rates_now(model: Model) -> Rates:
    """What this machine does at this moment: on shared ones that changes within minutes."""
    rates = processor_rates(psutil.cpu_count(logical=False) or 1)
    if not rates.calm:
        print(f"others took {rates.others:.0%} while this machine was measured", file=sys.stderr)
    return rates.with_disk(measure_file(model.paths[0]))


def foreseen(case: Case, model: Model, plan: Plan, rates: Rates) -> dict[str, Any]:
    """Figure → range of its forecast."""
    known = profile.load(profile.key_of(model)) if case.learned else None
    by_prompt = {
        tokens: forecast(model, plan, rates, profile=known, prompt_tokens=tokens)
        for tokens in (SHORT, MIDDLE, LONG)
    }
    told = by_prompt[SHORT]
    ranges = {
        "decode": told.decode,
        "prefill": told.prefill,
        "prefill_middle": by_prompt[MIDDLE].prefill,
        "prefill_long": by_prompt[LONG].prefill,
        "loaded": told.loaded_first_token,
        "cold": told.first_token,
    }
    if not case.long:
        del ranges["prefill_long"]
    return {name: dataclasses.asdict(found) for name, found in ranges.items()}


def learn(case: Case, model: Model, plan: Plan) -> None:
    """An earlier session with another text, of which the experts' uses are kept."""
    if profile.load(profile.key_of(model)) is None:
        request = Request(QUESTION * 6, max_tokens=160, sampling=SAMPLING, ignore_end=True)
        with Engine(model, plan.settings) as engine:
            list(engine.load())
            list(engine.generate(request))


def measured(case: Case, model: Model, plan: Plan, *, long: bool) -> dict[str, float]:
    """One round: figure → what it was; ``long``: of a prompt of 8,192 tokens too."""
    forget(model.paths)
    limit = None if case.share is None else int(case.share * model.size)
    with memory_box(limit) as box:
        begun = time.perf_counter()
        with Engine(model, plan.settings, remember=False) as engine:
            box.admit(engine.pid)
            list(engine.load())
            loaded = time.perf_counter() - begun

            def read(tokens: int, first: str, steps: int = 1) -> Finished:
                text = f"{first} {prompt_of(tokens - 1, engine.count_tokens)}"
                request = Request(
                    text, max_tokens=steps, sampling=SAMPLING, add_bos=False, ignore_end=True
                )
                *_, done = engine.generate(request)
                assert isinstance(done, Finished)
                return done

            cold = read(SHORT, "First")
            middle = read(MIDDLE, "Second")
            longest = read(LONG, "Third") if long else None
            warm = read(SHORT, "Last", STEPS + 1)
    found = {
        "decode": warm.decode_tps,
        "prefill": warm.prefill_tps,
        "prefill_middle": middle.prefill_tps,
        "loaded": warm.ttft_s,
        "cold": loaded + cold.ttft_s,
    }
    if longest is not None:
        found["prefill_long"] = longest.prefill_tps
    return {name: value for name, value in found.items() if value}


def one_round(case: Case, folder: Path, *, short: bool) -> Round | None:
    """A round of a case, ``short`` of its longest prompt; None when other programs disturbed it."""
    model = read_model(file_of(case, folder))
    plan = planned(case, model)
    if case.learned:
        learn(case, model, plan)
    rates = rates_now(model)
    load = Load()
    figures = measured(case, model, plan, long=case.long and not short)
    if (others := load.others()) > OTHERS:
        print(f"{case.name}: others took {others:.0%} of the processor", file=sys.stderr)
        return None
    runs = {name: [value] for name, value in figures.items()}
    return Round(line_of(case, model, plan, rates, runs), rates)


def line_of(
    case: Case, model: Model, plan: Plan, rates: Rates, runs: dict[str, list[float]]
) -> Line:
    return Line(
        name=case.name,
        share=case.share,
        quantization=model.quantization,
        size=model.size,
        learned=case.learned,
        forecast=foreseen(case, model, plan, rates),
        measured=runs,
    )


def lines_of(log: Path) -> list[Line]:
    """One line per case, with the runs of all its rounds and the median of their forecasts."""
    by_case: dict[tuple[str, float | None], list[Line]] = {}
    for done in rounds_of(log):
        by_case.setdefault(done.line.key, []).append(done.line)
    return [together(lines) for lines in by_case.values()]


def wanted(cases: Sequence[Case], log: Path) -> Iterator[Case]:
    """The cases that lack a round, those with the fewest first."""
    rounds = Counter(done.line.key for done in rounds_of(log))
    for number in range(ROUNDS):
        yield from (c for c in cases if rounds[c.name, c.share] <= number)


def forecast_again(done: Round, cases: Sequence[Case], folder: Path) -> Round:
    """A round with what would be forecast now, from the rates of then."""
    case = next(case for case in cases if (case.name, case.share) == done.line.key)
    model = read_model(file_of(case, folder))
    line = line_of(case, model, planned(case, model), done.rates, done.line.measured)
    return Round(line, done.rates)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--log", type=Path, help="rounds that were made")
    parser.add_argument("--folder", type=Path, help="where the models are")
    parser.add_argument("--write", action="store_true", help="write the models")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which none is begun")
    parser.add_argument("--case", help="only those whose name has this in it")
    parser.add_argument("--short", action="store_true", help="without the prompts of 8,192 tokens")
    parser.add_argument("--calibration", action="store_true", help="the models not in the table")
    parser.add_argument("--again", action="store_true", help="only forecast anew")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    cases = CALIBRATION if options.calibration else CASES
    if options.case:
        cases = tuple(case for case in cases if options.case in case.name)
    end = time.monotonic() + 60 * options.minutes
    if options.write:
        for case in cases:
            write_model(case, cases, options.folder)
    elif options.again:
        rounds = [forecast_again(done, cases, options.folder) for done in rounds_of(options.log)]
        part = options.log.with_suffix(".part")
        part.write_text("".join(done.text() for done in rounds), "utf-8")
        part.replace(options.log)
    elif options.folder is not None:
        there = [case for case in cases if file_of(case, options.folder).exists()]
        for case in wanted(there, options.log):
            if time.monotonic() > end:
                break
            done = one_round(case, options.folder, short=options.short)
            if done is not None:
                with options.log.open("a", encoding="utf-8") as file:
                    file.write(done.text())
                print(row(done.line), flush=True)
    if options.log is not None:
        lines = lines_of(options.log)
        for line in lines:
            print(row(line))
        print(json.dumps(summary(lines)))
        if options.table is not None:
            options.table.write_text(page(lines, processor()), encoding="utf-8")
            document = {"summary": summary(lines), "lines": [dataclasses.asdict(x) for x in lines]}
            options.table.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


def processor() -> str:
    """This machine's, as Linux names it."""
    facts = Path("/proc/cpuinfo").read_text("utf-8")
    return facts.partition("model name\t: ")[2].partition("\n")[0] or "unnamed"


def row(line: Line) -> str:
    """One line of text: forecast and measured."""
    parts = [
        f"{name} {told['low']:.3g}–{told['expected']:.3g}–{told['high']:.3g}: "
        f"{statistics.median(runs):.3g} ({told['expected'] / statistics.median(runs) - 1:+.0%})"
        for name, runs, told in compared(line)
    ]
    return f"{line.name} {line.share or ''} · {' · '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
