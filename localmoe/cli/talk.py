"""What ``run`` and ``chat`` share: a model brought up, Ctrl-C, and the figures of a turn."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from localmoe import api
from localmoe.api import LoadedModel
from localmoe.chat.conversation import Conversation, TurnDone
from localmoe.chat.session import Session
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate, Renderer
from localmoe.cli import prepare, speeds
from localmoe.cli.arguments import Options
from localmoe.cli.config import defaults as configured
from localmoe.cli.expected import known
from localmoe.cli.idle_gpus import tell_of_idle_gpus
from localmoe.cli.output import Output
from localmoe.cli.replan import moved
from localmoe.engine.events import Loaded, LoadProgress, Sampling
from localmoe.errors import EngineError, EngineMemoryError, InterruptedLoadError
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast
from localmoe.terminal.interrupts import interrupts
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line, format_duration


@dataclass(slots=True)
class Talk(LoadedModel):
    """A model that a command talks to; what it has to say on the way goes to ``output``."""

    output: Output
    _expected: tuple[Plan, Forecast | None] | None = field(default=None, init=False)

    @property
    def forecast(self) -> Forecast | None:
        """How fast it should be; None where nothing is known, or after it was planned anew."""
        plan, forecast = self._expected or (None, None)
        return forecast if plan is self.plan else None

    def foresee(self, *, verbose: bool) -> None:
        """Tell what would spare the disk, and if wanted where the model lives and how fast it is.

        What is known of the speed is taken up; nothing is measured now.
        """
        self._expected = known(self.model, self.plan, self.machine)
        self.plan, forecast = self._expected
        if verbose:
            self.output.note(about(self.model, self.plan, self.plan.settings.context))
            self.output.note(speeds.summary(forecast) if forecast else "no speed is known yet")
        if self.plan.missing_ram and self.plan.advice:
            self.output.note(self.plan.advice[0])

    def load(self) -> Loaded:
        """Load the model, or load it again after a crash. Ctrl-C stops it with an error."""
        what = f"loading {self.model.name}"
        engine = self.engine
        with LiveLine(self.output.stderr) as line, interrupts(engine.cancel, engine.close) as seen:
            if not self.output.quiet:
                line.show(what)
            for event in self.bring_in():
                if self.output.lines:
                    self.output.json(load_document(event))
                if isinstance(event, Loaded):
                    if seen.count:
                        raise InterruptedLoadError("loading was interrupted")
                    return event
                if not self.output.quiet:
                    line.show(f"{what} · {100 * event.fraction:.0f} %")
        raise EngineError("the engine ended loading without a word")

    def conversation(self, options: Options, session: Session | None = None) -> Conversation:
        """A conversation, as the options want it. Loads the model if needed."""
        if self.loaded is None:
            self.load()
        if session is None:
            session = Session(options.system or "")
        conversation = self.conversation_of(session, settings(options, self.model))
        if conversation.template.is_plain:
            self.output.note("this model has no chat template: it continues the text")
        note = conversation.think_note()
        if note:
            self.output.note(note)
        return conversation


@contextlib.contextmanager
def open_talk(name: str | None, options: Options, output: Output) -> Iterator[Talk]:
    """Plan a model and start its engine, not loaded yet.

    Raises ``DoesNotFitError`` when the plan says no, ``TemplateError`` for a template that does
    not compile, and what the steps raise.
    """

    def settle(error: EngineMemoryError, plan: Plan, other: Plan) -> Plan:
        chosen = api.settle(error, plan, other)
        output.note(f"{error.message}; planned anew with what is free now: {moved(plan, chosen)}")
        return chosen

    remember = not options.no_history
    with Renderer() as renderer:
        renderer.start()
        model = prepare.open_model(name, output, options)
        with api.planned(
            model,
            lambda: prepare.find_machine(options, imagined=False),
            prepare.wishes(options),
            renderer,
            make=functools.partial(Talk, output=output),
            record=options.trace or "",
            record_logits=options.logits,
            remember=remember,
            settle=settle,
        ) as room:
            tell_of_idle_gpus(room.machine, output)
            room.foresee(verbose=options.verbose and options.command == "run")
            if name is not None and remember:
                configured.remember(name)
            if model.chat_template is not None and not options.plain:
                # A template that cannot be used is told of before a long load, not after it.
                _ = ChatTemplate(model.chat_template, renderer=renderer).think_control
            yield room


def settings(options: Options, model: Model) -> Settings:
    """The file's own sampling values, with those of the command line over them. Pure."""
    given = {
        name: getattr(options, name)
        for name in Sampling.__dataclass_fields__
        if getattr(options, name, None) is not None
    }
    return api.settings_for(
        model.metadata,
        given,
        think=options.think,
        plain=options.plain,
        max_tokens=options.max_tokens,
        stop=options.stop,
    )


def load_document(event: LoadProgress | Loaded) -> dict[str, object]:
    """``--jsonl`` while a model loads."""
    if isinstance(event, Loaded):
        return {"event": "loaded", "context": event.context, "load_s": event.load_s}
    return {"event": "load", "fraction": event.fraction}


def about(model: Model, plan: Plan, context: int) -> str:
    """The first line of a chat: which model, where its experts live, how long it may get."""
    return f"{clean_line(model.name)} · {experts_home(plan)} · context of {context} tokens"


def experts_home(plan: Plan) -> str:
    """``experts in RAM``, ``experts of 8 layers on the GPU, of 16 in RAM`` …"""
    names = {"gpu": "on the GPU", "ram": "in RAM", "both": "in RAM and on disk", "disk": "on disk"}
    kinds = ["both" if row.experts_ram and row.experts_disk else row.experts for row in plan.layers]
    counts = {tier: kinds.count(tier) for tier in names}
    homes = [tier for tier, count in counts.items() if count]
    if not homes:
        return "no experts (dense)"
    if len(homes) == 1:
        return f"experts {names[homes[0]]}"
    first, *rest = homes
    layers = "layer" if counts[first] == 1 else "layers"
    return f"experts of {counts[first]} {layers} {names[first]}" + "".join(
        f", of {counts[tier]} {names[tier]}" for tier in rest
    )


def figures(done: TurnDone) -> list[str]:
    """What a turn's status line says of its speed."""
    count = done.usage.completion_tokens
    parts = [f"{count} token written" if count == 1 else f"{count} tokens written"]
    if done.timings.decode_tps is not None:
        parts.append(f"{done.timings.decode_tps:.1f} tok/s")
    parts.append(f"first after {format_duration(done.timings.ttft_s)}")
    return parts
