"""What ends a ``bench``: the settings that would be faster here, found by trying, and kept.

``advice`` of ``bench --json``: ``{"seconds", "trials", "complete", "turn": {"read", "written"},
"tried": [{"setting", "value"}], "faster": [{"setting", "now", "value", "gain", "changes_answers",
"decode_tps": {"now", "then"}, "prefill_tps": {"now", "then"}, "command"}], "gain"}``; null where
nothing was tried. ``gain``: of all of ``faster`` together, how many times sooner a turn is done.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from localmoe import config, storage
from localmoe.app.documents import Json
from localmoe.bench.records import Job
from localmoe.bench.runner import Start, trial
from localmoe.bench.tuning import AS_IT_IS, Changed, Search
from localmoe.bench.variants import Sample, Variant, variants
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.bench import tuning_screen
from localmoe.cli.output import Output
from localmoe.errors import EngineError, UsageError
from localmoe.facts import catalog
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line

SECONDS = 180.0  # that the search takes at most, unless asked otherwise
READ_SECONDS, WRITE_SECONDS = 2.0, 1.5  # of one trial, about; less where there is less time
READ, WRITTEN = (128, 1024), (16, 96)  # tokens of one trial, at least and at most

BUSY, BUSY_SECONDS = 25.0, 0.5  # percent of the processor in other hands, and how long to look

_FIELDS = {
    "threads": ("threads",),
    "batch": ("batch",),
    "kv-type": ("type_k", "type_v"),
    "cache": ("cache",),
}

PlanWith = Callable[[Options], Plan]


def seconds_for(options: Options) -> float:
    """How long to look for faster settings; not at all where something special is measured."""
    if options.tune is not None:
        return options.tune
    special = options.memory or options.sweep or options.replay or options.log
    return 0.0 if special or options.at_most is not None else SECONDS


@dataclass(frozen=True, slots=True)
class Advice:
    """What a search came to."""

    document: Json
    stopped: bool  # by Ctrl-C; the rest is what was known by then


def advise(
    model: Model, machine: Machine, options: Options, plan_with: PlanWith, output: Output
) -> Advice | None:
    """Look for faster settings, show them, and keep them when a person says so.

    None where that is not wanted. Raises LocalmoeError when the settings as they are do not work.
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
    trials = Trials(model, options, plan_with)
    found = Search(trials.measure, seconds)
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
    return Advice(tuning_screen.document(found, typed), stopped)


def fixed(options: Options) -> set[str]:
    """The settings that somebody has chosen already."""
    usual = Options()
    return {
        setting
        for setting, fields in _FIELDS.items()
        if any(getattr(options, name) != getattr(usual, name) for name in fields)
    }


def changed_options(options: Options, changed: Changed) -> Options:
    """The options with other values. Pure."""
    values = {name: v.value for v in changed for name in _FIELDS[v.setting]}
    return dataclasses.replace(options, **values)  # type: ignore[arg-type]


def offer(name: str, chosen: Sequence[Variant], output: Output) -> None:
    """Keep them for this model, if the person at the terminal says so."""
    if output.ask(f"Keep {'it' if len(chosen) == 1 else 'them'} for {clean_line(name)}?"):
        keep(name, chosen)
        output.note(f"kept in {config.path()}; `localmoe config` shows it")


def keep(name: str, chosen: Sequence[Variant]) -> None:
    """Into the configuration, for one model. Raises UsageError, StorageError."""
    for variant in chosen:
        text = config.changed(config.text(), ("models", name), variant.setting, variant.value)
        config.parse(text.encode(), config.path())
        config.write(text)


def commands(found: Search, name: str) -> list[str]:
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


class Trials:
    """Runs with one setting or another, each in a fresh engine; the model's files stay cached."""

    def __init__(self, model: Model, options: Options, plan_with: PlanWith) -> None:
        self._model = model
        self._options = options
        self._plan_with = plan_with
        self._plans: dict[Changed, Plan] = {}
        self._job = Job(
            model=model.name,
            size=model.size,
            regime="auto",
            memory=None,
            repeat=0,
            prompt_tokens=READ[0],
            steps=WRITTEN[0],
        )

    def calibrate(self, search: Search) -> None:
        """A first run, which also warms up, tells how long the others can be."""
        context = self.plan(AS_IT_IS).settings.context
        most = (min(READ[1], context // 2), min(WRITTEN[1], context // 4))  # tokens
        self._job = dataclasses.replace(
            self._job, prompt_tokens=min(READ[0], most[0]), steps=min(WRITTEN[0], most[1])
        )
        first = search.one()
        part = min(1.0, search.seconds / SECONDS)
        read = int(first.prefill_tps * READ_SECONDS * part) // READ[0] * READ[0]
        written = int(first.decode_tps * WRITE_SECONDS * part)
        self._job = dataclasses.replace(
            self._job,
            prompt_tokens=min(max(read, self._job.prompt_tokens), most[0]),
            steps=min(max(written, self._job.steps), most[1]),
        )

    def variants(self, machine: Machine) -> tuple[Variant, ...]:
        """What is worth a try here, less what somebody has chosen."""
        plan = self.plan(AS_IT_IS)
        cores = (machine.cores_physical, machine.cores_logical)
        prompt, chosen = self._job.prompt_tokens, fixed(self._options)
        return variants(plan.settings, plan.cache.regime, cores, prompt, chosen)

    def plan(self, changed: Changed) -> Plan:
        """The plan with these values; made once. Raises LocalmoeError."""
        if changed not in self._plans:
            self._plans[changed] = self._plan_with(changed_options(self._options, changed))
        return self._plans[changed]

    def measure(self, changed: Changed) -> Sample:
        """One run. Raises LocalmoeError."""
        settings = self.plan(changed).settings
        if changed and settings == self.plan(AS_IT_IS).settings:
            raise UsageError("the plan stays the same")
        run = trial(self._job, self._model, Start(settings))
        if not run.prefill_tps or not run.decode_tps:
            raise EngineError("the run was too short to tell a speed")
        return Sample(run.prefill_tps, run.decode_tps)
