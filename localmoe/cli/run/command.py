"""``run``: one answer. The answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence

from localmoe.app.model import LoadedModel
from localmoe.app.sessions import KeptSession, kept_session
from localmoe.chat.attachments import read_attachment
from localmoe.chat.context import Overflow
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import ChatEvent, TurnDone
from localmoe.chat.overflow import make_room, not_sent
from localmoe.chat.session import Message, ModelUsed
from localmoe.chat.tools import ToolUse
from localmoe.cli import loaded as models
from localmoe.cli.arguments import ModelAndPrompt, Options, model_and_prompt
from localmoe.cli.output import Output
from localmoe.cli.requests import session_request
from localmoe.cli.run.printers import Printer, parsed, printer_for
from localmoe.errors import (
    INTERRUPTED,
    EngineError,
    LocalmoeError,
    TransferError,
    UnknownModelError,
    UsageError,
)
from localmoe.facts import catalog
from localmoe.planning.context import trained_context
from localmoe.terminal.piped_input import SILENT_STDIN, PipedInput
from localmoe.text import clean_line, counted, replaced_note


def run_command(options: Options, output: Output) -> int:
    """Exit code 0; 130 when the answer was interrupted; 1 when it should be JSON and is cut off."""
    asked = model_and_prompt(options, catalog.looks_like_model)
    if not asked.prompt and _is_terminal(sys.stdin) and not output.as_json:
        from localmoe.cli.chat.command import open_chat

        return open_chat(asked.model, options, output)
    # Mistakes in the question are errors before the long load, not after it.
    files = tuple(read_attachment(path) for path in options.files)
    grammar = tools = None
    if options.schema or options.tools:
        from localmoe.cli.schema_file import grammar_of, tools_of  # late: see chat/answering.py

        grammar = grammar_of(options.schema) if options.schema else None
        tools = tools_of(options.tools, options.tool_choice or "auto") if options.tools else None
    if tools and grammar:
        raise UsageError("--schema says what the answer is, so that no tool of --tools is called")
    for missing in tools.not_enforced if tools else ():
        output.warn(f"not enforced in the arguments of {missing}")
    piped = PipedInput() if not _is_terminal(sys.stdin) or "-" in asked.prompt else None
    needed = "-" in asked.prompt or not asked.prompt
    prompt = compose(asked.prompt, piped.text(), output) if piped and needed else None
    with (
        kept_session(session_request(options), output) as kept,
        _or_prompt(options, asked),
        models.open_model(asked.model or kept.model_source, options, output) as model,
    ):
        models.load(model, output)
        prompt = prompt or prompt_of(asked.prompt, piped, output)
        question = Message("user", prompt, files=files)
        done = answered(question, grammar, tools, kept, model, options, output)
        if not options.no_history:
            from localmoe.app.experience import learn_from  # late: the answer is there already

            learn_from(model.facts, model.plan, model.machine, done.finished)
    if done.finish_reason == "interrupted":
        return INTERRUPTED
    if done.no_answer is not None:
        if not output.as_json:  # else its document says so
            output.error(done.no_answer)
        return done.no_answer.exit_code
    if grammar is not None and parsed(done) is None:
        cut_off = LocalmoeError(
            "the answer is not whole: it ends before its JSON does",
            hint="a larger --max-tokens or --ctx leaves room for all of it",
        )
        if not output.as_json:  # else ``data`` is null in its document
            output.error(cut_off)
        return cut_off.exit_code
    return 0


@contextlib.contextmanager
def _or_prompt(options: Options, asked: ModelAndPrompt) -> Iterator[None]:
    """A first word that was taken for a model and is none: the hint says how to ask it instead."""
    try:
        yield
    except (UnknownModelError, TransferError) as error:
        if asked.model is None or "model" in options.typed:
            raise
        message, hint = error.marked
        word = shlex.quote(clean_line(asked.model))
        as_prompt = f"as a prompt: localmoe run -- {word}{' …' if asked.prompt else ''}"
        hints = "; ".join(filter(None, (hint, as_prompt)))
        raise type(error)(message, hint=hints) from error


def prompt_of(words: Sequence[str], piped: PipedInput | None, output: Output) -> str:
    """The prompt of words and stdin; an open stdin that sends nothing is left out."""
    text = piped.text(SILENT_STDIN) if piped else None
    if piped and text is None:
        output.note("stdin is open but says nothing: answering without it (`-` waits)")
    return compose(words, text, output)


def compose(words: Sequence[str], piped: str | None, output: Output) -> str:
    """The prompt: the words, with stdin where ``-`` stands, else after them.

    Raises UsageError if that is nothing.
    """
    given = (piped or "").removesuffix("\n")
    if "\ufffd" in given:
        output.warn("stdin is not UTF-8 throughout; the rest is marked �")
    if "-" in words:
        prompt = " ".join(given if word == "-" else word for word in words)
    else:
        prompt = "\n\n".join(filter(None, (" ".join(words), given)))
    if not prompt.strip():
        raise UsageError(
            "no prompt", hint='localmoe run "What is a mixture of experts?", or pipe one in'
        )
    return prompt


def answered(
    question: Message,
    grammar: str | None,
    tools: ToolUse | None,
    kept: KeptSession,
    model: LoadedModel,
    options: Options,
    output: Output,
) -> TurnDone:
    """The question asked in the session that it belongs to, its answer shown as it comes."""
    assert model.loaded is not None
    attached = [(file, model.count_tokens(file.text)) for file in question.files]
    for file, tokens in attached:
        output.note(f"{file.name} · {counted(tokens, 'token')}")
        if file.replaced:
            output.warn(replaced_note(file.name, file.replaced))
    files = [{"name": f.name, "tokens": n, "replaced": f.replaced} for f, n in attached]
    more: dict[str, object] = {"files": files, "session": kept.name}
    printer = printer_for(output)(model, model.loaded, output, more, grammar is not None)
    conversation = models.conversation(model, options, output, kept.session)
    conversation.settings = dataclasses.replace(conversation.settings, grammar=grammar, tools=tools)
    source = str(model.facts.paths[0].absolute())
    kept.session.use(ModelUsed(model.facts.name, source))
    with kept.resumed(model):
        if kept.session.turns:
            host = FixedChoice(model, output, Overflow(options.overflow or Overflow.STOP))
            fit_in(conversation, question, host)
        return show_turn(conversation, question, model, printer)


def show_turn(
    conversation: Conversation, question: Message, model: LoadedModel, printer: Printer
) -> TurnDone:
    """One turn, shown as it happens."""
    with models.stoppable(model, printer.output) as pressed, printer:
        for event in conversation.ask(question.content, question.files):
            if pressed.count:
                model.engine.cancel()
            printer.show(event)
    if printer.done is None:
        raise EngineError("the engine ended a turn without saying why")
    if printer.done.finished is not None and printer.done.finished.note:
        printer.output.warn(printer.done.finished.note)
    return printer.done


@dataclasses.dataclass(frozen=True, slots=True)
class FixedChoice:
    """The ``Host`` of ``make_room`` that does what ``--overflow`` says, without a question."""

    model: LoadedModel
    output: Output
    choice: Overflow

    def choose(self, turns: int) -> Overflow:
        return self.choice

    def warn(self, text: str) -> None:
        if self.choice in (Overflow.DROP, Overflow.SUMMARISE):  # else ``fit_in`` raises it
            self.output.warn(text)

    def note(self, text: str) -> None:
        self.output.note(text)

    def play(self, turns: int, summary: Iterator[ChatEvent]) -> None:
        """Wait for the summary. Ctrl-C raises KeyboardInterrupt, the session unchanged."""
        with models.stoppable(self.model, self.output) as pressed:
            for _ in summary:
                pass
        if pressed.count:
            raise KeyboardInterrupt


def fit_in(conversation: Conversation, question: Message, host: FixedChoice) -> None:
    """Make room for the question as ``--overflow`` says. Raises ContextOverflowError."""
    assert host.model.loaded is not None
    shortage = make_room(conversation, question, host.model.loaded.context, host)
    if shortage is not None:
        raise not_sent(shortage, trained_context(host.model.facts))


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())
