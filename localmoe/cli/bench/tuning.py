"""The end of a ``bench``: settings that would be faster here are looked for, shown, and kept."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from localmoe import config, storage
from localmoe.app.bench_documents import advice_document
from localmoe.app.documents import Json
from localmoe.bench.trials import SECONDS, PlanFor, Trials
from localmoe.bench.tuning import Tuning
from localmoe.bench.variants import Variant
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.bench import tuning_screen
from localmoe.cli.output import Output
from localmoe.facts import catalog
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Wishes
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line

BUSY, BUSY_SECONDS = 25.0, 0.5  # percent of the processor that others use, and seconds to look


def seconds_for(options: Options) -> float:
    """How long to look for faster settings; not at all where something special is measured."""
    if options.tune is not None:
        return options.tune
    special = options.memory or options.sweep or options.replay or options.log
    return 0.0 if special else SECONDS


@dataclass(frozen=True, slots=True)
class Advice:
    """What a search came to."""

    document: Json
    stopped: bool  # by Ctrl-C; the rest is what was known by then


def advise(
    model: Model,
    machine: Machine,
    wishes: Wishes,
    plan_for: PlanFor,
    options: Options,
    output: Output,
) -> Advice | None:
    """Look for faster settings, show them, and keep them when a person says so.

    ``wishes``: the settings as they are. None where no search is wanted. Raises LocalmoeError when
    the settings as they are do not work.
    """
    seconds = seconds_for(options)
    if not seconds:
        return None
    output.note(f"looking for faster settings, for {seconds:.0f} s at most (--tune 0: not at all)")
    busy = psutil.cpu_percent(BUSY_SECONDS)
    if busy >= BUSY:
        output.warn(
            f"other programs use {busy:.0f} % of the processor: what is found holds while they do"
        )
    trials = Trials(model, wishes, plan_for)
    found = Tuning(trials.measure, seconds)
    stopped = False
    with LiveLine(output.stderr) as line:

        def tell(text: str) -> None:
            line.show(f"looking for faster settings · {text} · {found.took:.0f} of {seconds:.0f} s")

        found.tell = tell
        try:
            trials.calibrate(found)
            found.run(trials.variants(machine))
        except KeyboardInterrupt:
            stopped = True
    name = kept_name(model, options)
    typed = commands(found, name)
    if not output.as_json:
        output.print(*tuning_screen.screen(found, typed))
        if found.confirmed is not None and not stopped:
            offer(name, found.confirmed.variants, output)
    return Advice(advice_document(found, typed), stopped)


def offer(name: str, chosen: Sequence[Variant], output: Output) -> None:
    """Keep them for this model, if the person at the terminal says so."""
    if output.ask(f"Keep {'it' if len(chosen) == 1 else 'them'} for {clean_line(name)}?"):
        keep(name, chosen)
        output.note(f"kept in {config.path()}; `localmoe config` shows it")


def keep(name: str, chosen: Sequence[Variant]) -> None:
    """Into the configuration, for one model. Raises UsageError, StorageError."""
    for variant in chosen:
        config.assign(("models", name), variant.setting, variant.value)


def commands(found: Tuning, name: str) -> list[str]:
    """What to type to keep what was found."""
    if found.confirmed is None:
        return []
    return [
        f"localmoe config set {v.setting} {v.value} -m {shlex.quote(name)}"
        for v in found.confirmed.variants
    ]


def kept_name(model: Model, options: Options) -> str:
    """The name under which settings of this model are found again."""
    name = only_model(options)
    if name is None or catalog.is_path(name):
        path = storage.user_path(name) if name else model.paths[0]
        return catalog.model_name(path)
    return name
