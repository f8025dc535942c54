"""Predicted and measured speeds of generated models, side by side: docs/speed.md.

    python scripts/speed_table.py --folder /tmp --log speed.jsonl --at-most 1   # again and again
    python scripts/speed_table.py --log speed.jsonl --table docs/speed.md
    python scripts/speed_table.py --folder /tmp --log speed.jsonl --again  # after a change

Each model is written, forecast, run three times in fresh processes, out of the page cache before,
and removed. A run reads a prompt of 256 tokens and writes 48. Nothing else should run; with
``--write-only`` the next model is only written, which may be done beside other work. ``--again``
forecasts the measured cases anew, from headers alone, except those with a profile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.app.rates import rates_for
from localmoe.app.requests import PlanRequest
from localmoe.bench import runner
from localmoe.bench.records import Job
from localmoe.bench.runner import Start
from localmoe.cli.output import Output
from localmoe.engine.client import Engine
from localmoe.engine.events import Request, Sampling
from localmoe.facts.bandwidth import Rates
from localmoe.facts.load import Load
from localmoe.facts.model import Model, read_model
from localmoe.planning.budget import PROCESS_BYTES
from localmoe.planning.plan import Plan, Wishes
from localmoe.planning.speed import forecast
from localmoe.routing.capacity import even_capacities, lru_curves
from localmoe.routing.profile import FRACTIONS, Profile
from localmoe.routing.trace import read_trace
from localmoe.text import format_bytes
from scripts.make_standin import make_standin
from scripts.speed_cases import CALIBRATION, CASES, Case
from scripts.speed_page import Line, page

PROMPT, STEPS, RUNS = 256, 48, 3
TRIES = 6  # runs that may be made for them
OTHERS = 0.06  # of the processors: a run during which others took more does not count
CONTEXT = 1024
TRACE = Path(__file__).resolve().parents[1] / "tests/routing/data/qwen3-30b-a3b.route.csv.gz"
TRACE_USED = 6  # experts per token of that trace
QUESTION = "The ferry left the harbour at seven, with forty passengers and a crate of oranges. "
FIGURES = ("decode", "prefill", "first_token")


def write_model(case: Case, folder: Path) -> Path:
    """The file of a case, if it is not there already."""
    path = folder / f"speed-{case.name.replace(' ', '-').replace(',', '')}.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        make_standin(case.family, part, uniform=case.routing != "profile")
        part.rename(path)
    os.sync()  # the disk is about to be measured
    return path


def planned(case: Case, model: Model, output: Output) -> tuple[Plan, Rates]:
    """How a case is run here, and what it will be forecast from."""
    limit = None if case.share is None else int(case.share * model.size)
    experts = TRACE_USED if case.routing == "trace" else None
    request = PlanRequest(Wishes(context=CONTEXT, ram=limit, experts=experts))
    machine = find_machine(request, hypothetical=False)
    plan = plan_for(model, machine, request, hypothetical=False)
    measured = rates_for(model, plan, machine, output)
    if measured is not None and not measured.calm:
        others = f"{measured.others:.0%}"
        raise SystemExit(f"others took {others} while this machine was measured: again")
    if measured is None or not plan.verdict.fits:
        raise SystemExit(f"{case.name}: {plan.reason}")
    return plan, measured


def forecast_again(lines: Sequence[Line], cases: Sequence[Case], folder: Path) -> list[Line]:
    """The lines with what would be forecast now; a profile is not kept, so those stay."""
    again = []
    for line in lines:
        case = next((case for case in cases if case.name == line.name), None)
        if case is not None and case.routing != "profile":
            path = make_standin(case.family, folder / "header.gguf", header_only=True)
            model = read_model(path)
            plan, rates = planned(case, model, Output())
            path.unlink()
            expected = forecast(model, plan, rates, prompt_tokens=PROMPT)
            line = dataclasses.replace(line, forecast=dataclasses.asdict(expected))
        again.append(line)
    return again


def measure(case: Case, path: Path, output: Output) -> Line:
    """Forecast and run."""
    model = read_model(path)
    plan, rates = planned(case, model, output)
    limit = None if case.share is None else int(case.share * model.size)
    known = _profile(model, plan, path) if case.routing == "profile" else None
    expected = forecast(model, plan, rates, profile=known, prompt_tokens=PROMPT)
    settings = plan.settings
    if case.routing == "trace":
        settings = dataclasses.replace(settings, replay=str(TRACE))
    start = Start(settings, plan.tiers.ram + PROCESS_BYTES, plan.cache.budget)
    job = Job(model.name, model.size, "auto", limit, 0, PROMPT, STEPS)
    measured: dict[str, list[float]] = {name: [] for name in FIGURES}
    for repeat in range(TRIES):
        load = Load()
        run = runner.run(dataclasses.replace(job, repeat=repeat), model, start)
        others = load.others()
        if run.error:
            raise SystemExit(f"{case.name}: {run.error}")
        if others > OTHERS:
            print(f"again: others took {others:.0%} of the processor", file=sys.stderr)
            continue
        for name, value in zip(
            FIGURES, (run.decode_tps, run.prefill_tps, run.first_s), strict=True
        ):
            measured[name].append(value)
        if len(measured[name]) == RUNS:
            break
    else:
        raise SystemExit(f"{case.name}: this machine has other work to do")
    return Line(
        name=case.name,
        architecture=model.architecture,
        quantization=model.quantization,
        size=model.size,
        memory=limit,
        regime=plan.cache.regime if plan.tiers.disk else "resident",
        routing=case.routing,
        forecast=dataclasses.asdict(expected),
        measured=measured,
    )


def _profile(model: Model, plan: Plan, path: Path) -> Profile:
    """How the experts were used in an earlier session, with another prompt."""
    trace = path.with_suffix(".route")
    settings = dataclasses.replace(
        plan.settings, cache="off", read_ahead=True, record=str(trace), batch=512, ubatch=512
    )
    request = Request(QUESTION * 6, max_tokens=96, sampling=Sampling(seed=7), ignore_end=True)
    with Engine(model, settings, remember=False) as engine:
        for _ in engine.load():
            pass
        for _ in engine.generate(request):
            pass
    session = read_trace(trace)
    trace.unlink()
    curves, decoded = lru_curves(session), float(session.decode.sum())
    curve = tuple((f, curves.hit_rate(even_capacities(session, f))) for f in FRACTIONS)
    return Profile(model.name, {}, float(len(session)), curve, decoded)


def lines_of(log: Path) -> list[Line]:
    """The last line of each case."""
    if not log.exists():
        return []
    found = [Line(**json.loads(text)) for text in log.read_text("utf-8").splitlines() if text]
    return list({line.name: line for line in found}.values())


def compared(lines: Sequence[Line]) -> Iterator[tuple[Line, str, float, dict[str, float]]]:
    """(line, figure, median measured, forecast) of what can be compared.

    Reading a prompt with experts on the disk is part of the first token, and not a speed.
    """
    for line in lines:
        for name in FIGURES:
            if name != "prefill" or line.regime == "resident":
                yield line, name, statistics.median(line.measured[name]), line.forecast[name]


def summary(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Per figure: lines, share inside the range, median error of the expected value."""
    result = {}
    for name in FIGURES:
        rows = [(real, told) for _, what, real, told in compared(lines) if what == name]
        if rows:
            inside = sum(told["low"] <= real <= told["high"] for real, told in rows)
            errors = [abs(told["expected"] / real - 1) for real, told in rows]
            result[name] = {
                "models": len(rows),
                "inside": inside / len(rows),
                "median_error": statistics.median(errors),
            }
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--log", type=Path, required=True, help="runs that were made")
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--at-most", type=int, default=len(CASES), help="models in this call")
    parser.add_argument("--case", help="only the one of this name")
    parser.add_argument("--write-only", action="store_true", help="write the next models")
    parser.add_argument("--keep", action="store_true", help="do not remove the models")
    parser.add_argument("--calibration", action="store_true", help="the models not in the table")
    parser.add_argument("--again", action="store_true", help="only forecast anew")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table")
    options = parser.parse_args(arguments)
    cases = CALIBRATION if options.calibration else CASES
    if options.again and options.folder is None:
        parser.error("--again needs --folder")
    if options.again:
        lines = forecast_again(lines_of(options.log), cases, options.folder)
        for line in lines:
            print(row(line))
        part = options.log.with_suffix(".part")
        part.write_text("".join(json.dumps(dataclasses.asdict(x)) + "\n" for x in lines), "utf-8")
        part.replace(options.log)
    elif options.folder is not None:
        done = {line.name for line in lines_of(options.log)}
        wanted = [case for case in cases if case.name not in done or case.name == options.case]
        if options.case:
            wanted = [case for case in wanted if case.name == options.case]
        for case in wanted[: options.at_most]:
            path = write_model(case, options.folder)
            if options.write_only:
                continue
            line = measure(case, path, Output())
            with options.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(line)) + "\n")
            print(row(line))
            if not options.keep:
                path.unlink()
    lines = lines_of(options.log)
    print(json.dumps(summary(lines)))
    if options.table is not None:
        options.table.write_text(page(lines, summary(lines)), encoding="utf-8")
        document = {"summary": summary(lines), "lines": [dataclasses.asdict(x) for x in lines]}
        options.table.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


def row(line: Line) -> str:
    """One line of text: forecast and measured."""
    parts = [
        f"{name} {told['low']:.3g}–{told['expected']:.3g}–{told['high']:.3g}: {real:.3g}"
        for _, name, real, told in compared([line])
    ]
    return f"{line.name} · {format_bytes(line.size)} · " + " · ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
