"""``run``: one answer. The answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

from localmoe.chat.attachments import Attachment, read_attachment
from localmoe.chat.context import Overflow
from localmoe.chat.conversation import ChatEvent, Conversation, TurnDone
from localmoe.chat.overflow import make_room
from localmoe.chat.session import Message, ModelUsed
from localmoe.cli import documents, talk
from localmoe.cli.arguments import Options, model_and_prompt
from localmoe.cli.learning import learn_from
from localmoe.cli.output import Output
from localmoe.cli.run.piped_input import SILENT_STDIN, PipedInput, compose
from localmoe.cli.run.printers import Printer, parsed, printer_for
from localmoe.cli.run.session import kept_session
from localmoe.engine.grammar import schema_to_gbnf
from localmoe.errors import ContextOverflowError, EngineError, UsageError
from localmoe.facts import catalog
from localmoe.terminal.interrupts import interrupts
from localmoe.text import clean_line

INTERRUPTED = 130
SCHEMA_LIMIT = 1 << 20  # bytes


def run_command(options: Options, output: Output) -> int:
    """Exit code 0; 130 when the answer was interrupted; 1 when one of JSON is not whole."""
    asked = model_and_prompt(options, catalog.looks_like_model)
    if not asked.prompt and _is_terminal(sys.stdin) and not output.as_json:
        from localmoe.cli.chat.command import open_chat

        return open_chat(asked.model, options, output)
    # What is wrong with the question is told before the load.
    files = [read_attachment(path) for path in options.files]
    grammar = schema_to_gbnf(read_schema(options.schema)) if options.schema else None
    piped = PipedInput() if not _is_terminal(sys.stdin) or "-" in asked.prompt else None
    needed = "-" in asked.prompt or not asked.prompt
    prompt = compose(asked.prompt, piped.text(), output) if piped and needed else None
    with (
        kept_session(options, output) as session,
        talk.open_talk(asked.model or session.model_source, options, output) as room,
    ):
        loaded = room.load()
        if prompt is None:
            text = piped.text(SILENT_STDIN) if piped else None
            if piped and text is None:
                output.note("stdin is open but says nothing: answering without it (`-` waits)")
            prompt = compose(asked.prompt, text, output)
        attached = [{"name": f.name, "tokens": room.count_tokens(f.text)} for f in files]
        for entry in attached:
            output.note(f"{entry['name']} · {entry['tokens']:,} tokens")
        more: documents.Json = {"files": attached, "session": session.name}
        printer = printer_for(output)(room, loaded, output, more, grammar is not None)
        conversation = room.conversation(options, session.session)
        conversation.settings = dataclasses.replace(conversation.settings, grammar=grammar)
        source = str(room.model.paths[0].absolute())
        session.session.use(ModelUsed(room.model.name, source))
        with session.resumed(room):
            if session.session.turns:
                fit_in(conversation, Message("user", prompt, files=tuple(files)), room, options)
            done = answer(conversation, prompt, files, room, printer)
        if not options.no_history:
            learn_from(room.model, room.plan, room.machine, done.finished)
    if done.finish_reason == "interrupted":
        return INTERRUPTED
    if grammar is not None and parsed(done) is None:
        output.warn("the answer is not whole: it ends before its JSON does")
        return 1
    return 0


def answer(
    conversation: Conversation,
    prompt: str,
    files: list[Attachment],
    room: talk.Talk,
    printer: Printer,
) -> TurnDone:
    """One turn, shown while it happens."""
    with interrupts(room.engine.cancel, room.engine.close) as pressed, printer:
        for event in conversation.ask(prompt, files):
            if pressed.count:
                room.engine.cancel()
            printer.show(event)
    if printer.done is None:
        raise EngineError("the engine ended a turn without saying why")
    return printer.done


def read_schema(path: str) -> Any:
    """The JSON of a schema file. Raises UsageError."""
    shown = clean_line(path)
    text = read_attachment(path).text

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        if len(text) > SCHEMA_LIMIT:
            raise UsageError(f"--schema {shown} is longer than {SCHEMA_LIMIT >> 20} MiB")
        return json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--schema {shown} is not JSON: {error}", hint="a JSON schema, as for ajv or pydantic"
        ) from None


@dataclasses.dataclass(frozen=True, slots=True)
class NobodyThere:
    """The ``Host`` of ``make_room`` where nobody can be asked: ``--overflow`` says what to do."""

    room: talk.Talk
    choice: Overflow

    def choose(self, turns: int) -> Overflow:
        return self.choice

    def warn(self, text: str) -> None:
        if self.choice in (Overflow.DROP, Overflow.SUMMARISE):  # else it is the error
            self.room.output.warn(text)

    def note(self, text: str) -> None:
        self.room.output.note(text)

    def play(self, turns: int, summary: Iterator[ChatEvent]) -> None:
        """Ctrl-C ends the run, and nothing has changed."""
        engine = self.room.engine
        with interrupts(engine.cancel, engine.close) as pressed:
            for _ in summary:
                pass
        if pressed.count:
            raise KeyboardInterrupt


def fit_in(
    conversation: Conversation, question: Message, room: talk.Talk, options: Options
) -> None:
    """Make room for the question as ``--overflow`` says. Raises ContextOverflowError."""
    assert room.loaded is not None
    host = NobodyThere(room, Overflow(options.overflow or Overflow.STOP))
    shortage = make_room(conversation, question, room.loaded.context, host)
    if shortage is None:
        return
    hint = "--overflow drop leaves the oldest turns out, --overflow summarise sums them up"
    if shortage.drop is None:
        hint = "even alone it is too long: shorten it, or use a larger --ctx"
    raise ContextOverflowError(shortage.message, hint=hint)


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())
