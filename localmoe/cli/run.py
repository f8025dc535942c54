"""``run``: one answer. The answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

from localmoe.chat.attachments import Attachment, read_attachment
from localmoe.chat.context import Overflow, answer_room, find_shortage
from localmoe.chat.conversation import Conversation, TurnDone
from localmoe.chat.session import Message, ModelUsed, Session
from localmoe.cli import documents, talk
from localmoe.cli.arguments import Options, model_and_prompt
from localmoe.cli.output import Output
from localmoe.cli.piped import SILENT_STDIN, PipedInput, compose
from localmoe.cli.run_printers import Printer, parsed, printer_for
from localmoe.engine.grammar import schema_to_gbnf
from localmoe.errors import ContextOverflowError, EngineError, StorageError, UsageError
from localmoe.facts import catalog
from localmoe.text import clean_line

INTERRUPTED = 130
SCHEMA_LIMIT = 1 << 20  # bytes


def run_command(options: Options, output: Output) -> int:
    """Exit code 0; 130 when the answer was interrupted; 1 when one of JSON is not whole."""
    asked = model_and_prompt(options, catalog.looks_like_model)
    if not asked.prompt and _is_terminal(sys.stdin) and not output.as_json:
        from localmoe.cli.chat import open_chat

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
            make_room(conversation, Message("user", prompt, files=tuple(files)), room, options)
            done = answer(conversation, prompt, files, room, printer)
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
    with talk.interrupts(room.engine) as pressed, printer:
        for event in conversation.ask(prompt, files):
            if pressed.pressed:
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


@dataclasses.dataclass(slots=True)
class KeptSession:
    """The conversation that a run belongs to; one without a ``name`` is written nowhere."""

    session: Session
    output: Output
    name: str | None = None
    model_source: str | None = None  # the model that led it so far

    @contextlib.contextmanager
    def resumed(self, room: talk.Talk) -> Iterator[None]:
        """With what was read in it taken up from the disk, and kept there in the end."""
        if self.name is None:
            yield
            return
        if self.session.turns:
            room.engine.resume(self.name)
        try:
            yield
        finally:
            if room.engine.alive:
                try:
                    room.engine.keep(self.name)
                except StorageError as error:
                    self.output.warn(error.message)


@contextlib.contextmanager
def kept_session(options: Options, output: Output) -> Iterator[KeptSession]:
    """The session of ``--session`` or ``--continue``; else one of this run alone.

    Raises UsageError for a conversation that is not there, or in use.
    """
    if not options.session and not options.resume:
        yield KeptSession(Session(options.system or ""), output)
        return
    from localmoe.chat.state import Chat
    from localmoe.cli.chat import model_of, open_session

    _, log = open_session(options)
    if log is None:
        raise UsageError("no conversation to go on with")
    chat = Chat(ready=_no_model, tell=output.note, warn=output.warn)
    try:
        chat.open_log(log)
        if options.system is not None:
            chat.session.system = options.system
        turns = len(chat.session.turns)
        so_far = f"{turns} turn{'s' * (turns != 1)} so far" if turns else "a new conversation"
        output.note(f"{log.name}: {so_far}")
        yield KeptSession(chat.session, output, log.name, model_of(log, output))
    finally:
        log.close()


def _no_model() -> Conversation:
    raise EngineError("there is no chat here")


def make_room(
    conversation: Conversation, question: Message, room: talk.Talk, options: Options
) -> None:
    """Where the question does not fit, leave out the oldest turns if ``--overflow`` says so.

    Raises ContextOverflowError otherwise.
    """
    session, output = conversation.session, room.output
    if not session.turns or room.loaded is None:
        return  # the engine tells the counts of a question that is too long by itself
    wanted = answer_room(room.loaded.context, options.max_tokens)
    shortage = find_shortage(
        lambda skip: conversation.prompt_tokens(question, skip=skip),
        session.skipped,
        len(session.turns),
        room.loaded.context,
        wanted,
    )
    if shortage is None:
        return
    choice = Overflow(options.overflow or Overflow.STOP)
    if shortage.drop is None or choice in (Overflow.ASK, Overflow.STOP):
        raise ContextOverflowError(
            shortage.message,
            hint="--overflow drop leaves the oldest turns out, --overflow summarise sums them up",
        )
    output.warn(shortage.message)
    if choice is Overflow.DROP:
        session.shorten(shortage.drop)
    else:
        for _ in conversation.summarise(shortage.drop, wanted):
            pass
    output.note(f"the {shortage.drop} oldest turns are not sent any more")


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())
