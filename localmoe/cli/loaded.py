"""Loading a model and talking to it: what ``run``, ``chat`` and ``experts record`` share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from localmoe.app.attach import served_model
from localmoe.app.model import LoadedModel, settings_for
from localmoe.app.tiers import experts_sentence
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import TurnDone
from localmoe.chat.session import Session
from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.cli.requests import load_request, sample_request
from localmoe.engine.events import Loaded, LoadProgress
from localmoe.engine.rpc import named
from localmoe.errors import EngineCrashError, EngineError, InterruptedLoadError
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.terminal.interrupts import Pressed, interrupts
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line, counted, format_duration

REMOTE_SILENCE = 10.0  # seconds without an answer of another machine until a note says so
REMOTE_PATIENCE = 2.0  # seconds that other machines have after the note that follows a Ctrl-C


@contextlib.contextmanager
def open_model(name: str | None, options: Options, output: Output) -> Iterator[LoadedModel]:
    """A planned model with its engine, not loaded yet, with notes about its plan.

    Where a server of this user has it loaded as it is wanted, that one's is taken, and a note says
    so. The others say what would spare the disk; with ``run --verbose`` also where the experts live
    and what speed to expect. Raises what ``opened`` raises.
    """
    request = load_request(options, name)
    with served_model(request, output) as served:
        if served is not None:
            yield served
            return
    from localmoe.app.loading import opened  # late: who is served need not wait for the import

    with opened(request, output) as model:
        if options.verbose and options.command == "run":
            output.note(about(model.facts, model.plan, model.plan.settings.context))
            from localmoe.app import speeds

            forecast = model.forecast
            output.note(speeds.summary(forecast) if forecast else "no speed is known yet")
        if model.plan.missing_ram and model.plan.advice:
            output.note(model.plan.advice[0])
        yield model


@contextlib.contextmanager
def stoppable(model: LoadedModel, output: Output) -> Iterator[Pressed]:
    """Within the block Ctrl-C cancels what the engine does; a second one ends the engine.

    If cancelling takes long, a note says what it waits for: the end of a long operation, the disk,
    a GPU or other machines. Other machines may be asleep: their silence is noted, and the first
    Ctrl-C ends the engine if they do not react to it.
    """
    settings, over = model.plan.settings, threading.Event()
    new_line = "\n" if output.margin.is_terminal else ""
    awaited = "the engine" if settings.devices else "the disk"
    awaited = named(settings.remotes) if settings.remotes else awaited

    def tell() -> None:
        what = "the end of a long operation" if model.engine.at_work() else awaited
        output.note(f"{new_line}waiting for {what}; Ctrl-C again leaves")
        if settings.remotes and not over.wait(REMOTE_PATIENCE):
            model.engine.close()

    def watch() -> None:
        while not over.wait(1.0):
            if model.engine.silent_s > REMOTE_SILENCE:
                output.note(f"{new_line}no word from {awaited} for {REMOTE_SILENCE:.0f} s")
                return

    if settings.remotes:
        threading.Thread(target=watch, daemon=True).start()
    try:
        with interrupts(model.engine.cancel, model.engine.close, tell) as pressed:
            try:
                yield pressed
            except EngineCrashError as error:
                if not pressed.count:
                    raise
                raise InterruptedLoadError(f"interrupted; {awaited} did not react") from error
    finally:
        over.set()


def load(model: LoadedModel, output: Output) -> Loaded:
    """Load the model, or load it again after a crash. Ctrl-C raises InterruptedLoadError."""
    what = f"loading {model.facts.name}"
    with LiveLine(output.margin) as line, stoppable(model, output) as pressed:
        if not output.quiet:
            line.show(what)
        for event in model.bring_in():
            if output.lines:
                output.json(load_document(event))
            if isinstance(event, Loaded):
                if pressed.count:
                    raise InterruptedLoadError("loading was interrupted")
                break
            if not output.quiet:
                line.show(f"{what} · {100 * event.fraction:.0f} %")
        else:
            raise EngineError("the engine ended loading without a word")
    if event.note:
        output.warn(event.note)
    return event


def conversation(
    model: LoadedModel, options: Options, output: Output, session: Session | None = None
) -> Conversation:
    """A conversation with the settings that the options give. Loads the model if need be."""
    if model.loaded is None:
        load(model, output)
    if session is None:
        session = Session(options.system or "")
    settings = settings_for(model.facts.metadata, sample_request(options))
    found = model.conversation_of(session, settings)
    if found.template.is_plain:
        output.note("this model has no chat template: it continues the text")
    note = found.think_note()
    if note:
        output.note(note)
    return found


def load_document(event: LoadProgress | Loaded) -> dict[str, object]:
    """``--jsonl`` while a model loads."""
    if isinstance(event, Loaded):
        return {"event": "loaded", "context": event.context, "load_s": event.load_s}
    return {"event": "load", "fraction": event.fraction}


def about(model: Model, plan: Plan, context: int) -> str:
    """One line: which model, where its experts live, how many tokens of context."""
    return f"{clean_line(model.name)} · {experts_sentence(plan)} · context of {context} tokens"


def figures(done: TurnDone) -> list[str]:
    """A turn's tokens, tokens per second and time to the first token, for its status line."""
    parts = [f"{counted(done.usage.completion_tokens, 'token')} written"]
    if done.timings.decode_tps is not None:
        parts.append(f"{done.timings.decode_tps:.1f} tok/s")
    parts.append(f"first after {format_duration(done.timings.ttft_s)}")
    return parts
