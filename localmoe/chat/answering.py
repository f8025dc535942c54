"""One answer: messages → prompt → tokens → reasoning and answer, as events.

Grammars and calls of tools are imported where they are used: a short answer by a model that a
server has loaded would wait for them longer than for the model.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from localmoe.chat.events import (
    AnswerDelta,
    ChatEvent,
    ReasoningDelta,
    Timings,
    ToolCallBegin,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallEvent,
    TurnDone,
    Usage,
)
from localmoe.chat.likelihoods import Likelihoods
from localmoe.chat.replay import Prompt, Sampled, sampled_text, sampled_tokens
from localmoe.chat.session import Message, ToolCall
from localmoe.chat.settings import Settings
from localmoe.chat.splitter import Answer, Calling, Piece, Reasoning, Splitter
from localmoe.chat.stopping import StopTexts
from localmoe.chat.template import ChatTemplate, Rendered
from localmoe.engine.events import (
    AnswerEvent,
    Finished,
    Part,
    PrefillProgress,
    Request,
    Span,
    Token,
)
from localmoe.errors import EngineError

PLAIN = ChatTemplate(None)


class TextEngine(Protocol):
    """The part of ``localmoe.engine.client.Engine`` that a conversation needs."""

    def generate(self, request: Request) -> Iterator[AnswerEvent]:
        """Raises ``ContextOverflowError``, ``EngineError``, ``EngineCrashError``."""

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, as text. Raises what ``generate`` does."""

    def count_prompt(self, prompt: str, data: Sequence[Span] = ()) -> int:
        """Tokens that ``generate`` would read; ``data`` as in ``Request``."""

    def split_specials(self, texts: Sequence[str]) -> list[list[Part]]:
        """Each text cut at the special tokens that it spells."""

    def cancel(self) -> None:
        """Make ``generate`` end early. May be called from any thread or signal handler."""


def template_for(template: ChatTemplate, settings: Settings) -> ChatTemplate:
    """The template that counts under these settings."""
    return PLAIN if settings.plain else template


def events(
    engine: TextEngine, template: ChatTemplate, messages: Sequence[Message], settings: Settings
) -> Generator[ChatEvent, None, None]:
    """The events of one answer to ``messages``, ``TurnDone`` last. Raises what ``answer`` does."""
    yield (yield from answer(engine, template, messages, settings, Said()))


def answer(
    engine: TextEngine,
    template: ChatTemplate,
    messages: Sequence[Message],
    settings: Settings,
    said: Said,
) -> Generator[ChatEvent, None, TurnDone]:
    """One answer; ``said`` has what came of it when it breaks off. Returns the last event.

    A caller that no longer wants its events stops the engine. Raises ``TemplateError``,
    ``ContextOverflowError``, ``EngineError``.
    """
    tools = settings.tools.tools if settings.tools else None
    template = template_for(template, settings)
    rendered = template.render(messages, tools=tools, think=settings.think)
    grammar = _grammar(engine, rendered, settings)
    reader = _reader(engine, rendered, settings, grammar)
    request = Request(
        prompt=rendered.prompt,
        stable_chars=rendered.stable_chars,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        grammar=grammar,
        data=rendered.data,
        written=rendered.written,
        top_logprobs=settings.top_logprobs,
        thinking=_thinking(rendered, settings) if grammar else None,
    )
    likelihoods = Likelihoods()
    sampled: list[Token] = []
    try:
        for event in engine.generate(request):
            if isinstance(event, PrefillProgress):
                yield event
            elif isinstance(event, Token):
                sampled.append(event)
                if not reader.stopped_after:
                    yield from likelihoods.of(event, map(said.take, reader.feed(event)))
                    if reader.stopped_after:
                        engine.cancel()
            else:
                left = reader.finish(cut=event.reason != "stop")
                yield from likelihoods.rest(map(said.take, left))
                if reader.stopped_after:
                    event = replace(event, reason="stop", completion_tokens=reader.stopped_after)
                done = said.done(event, reader.reasoning_tokens, reader.stop_text)
                if done.calls:
                    _remember(template, rendered, sampled, done)
                return done
    except GeneratorExit:
        engine.cancel()
        raise
    raise EngineError("the engine ended a turn without saying why")


def _remember(
    template: ChatTemplate, rendered: Rendered, tokens: Sequence[Token], done: TurnDone
) -> None:
    """Keep what was sampled for these calls, until their client returns them."""
    text, data = sampled_text(tokens)
    prompt = Prompt(rendered.prompt, rendered.stable_chars, rendered.data, rendered.written)
    numbers = sampled_tokens(tokens)
    sampled = Sampled(rendered.canonical, prompt, text, data, numbers, done.reasoning)
    template.replay.remember([call.id for call in done.calls], sampled)


def _grammar(engine: TextEngine, rendered: Rendered, settings: Settings) -> str | None:
    """What the answer must look like: what is asked for, or else its calls of tools."""
    if settings.grammar is not None and rendered.format is not None:
        from localmoe.chat.constraint import grammar_for

        return grammar_for(settings.grammar, rendered.format, engine.split_specials)
    if settings.grammar is not None or not (settings.tools and rendered.calls and rendered.format):
        return settings.grammar
    from localmoe.chat.calls.grammar import call_grammar

    return call_grammar(
        settings.tools,
        rendered.calls,
        rendered.format,
        engine.split_specials,
        settings.max_tokens,
    )


def _thinking(rendered: Rendered, settings: Settings) -> tuple[str, str] | None:
    """The marks of thinking that has to leave room, since the answer's form is demanded."""
    demanded = settings.grammar is not None or (settings.tools and settings.tools.required)
    if not demanded or rendered.format is None:
        return None
    from localmoe.chat.constraint import room_for_thinking

    marks = room_for_thinking(rendered.format)
    return (marks.start, marks.end) if marks else None


def _reader(
    engine: TextEngine, rendered: Rendered, settings: Settings, grammar: str | None
) -> Reader:
    if rendered.format is None:
        return Reader(None, settings)
    calling = None
    if settings.tools and rendered.calls and settings.tools.allowed and not settings.grammar:
        free = rendered.calls.is_unmarked and not settings.tools.required
        calling = Calling(rendered.calls, settings.tools.callable, hold=grammar is None or free)
    splitter = Splitter(
        rendered.format,
        engine.split_specials,
        constrained=settings.grammar is not None,
        calling=calling,
    )
    return Reader(splitter, settings)


class Reader:
    """Tokens → pieces to show, up to a text that ends the answer."""

    def __init__(self, splitter: Splitter | None, settings: Settings) -> None:
        self._splitter = splitter  # None: all text is the answer
        self._stops = StopTexts(settings.stop)
        self._calls_only = settings.tools is not None and settings.tools.required
        self._tokens = 0
        self._told = 0  # of them, those whose text has been passed on
        self.reasoning_tokens = 0  # those that were thinking

    @property
    def stopped_after(self) -> int:
        """Tokens of the answer when a stop text was complete; 0 while none was."""
        return self._tokens if self._stops.met else 0

    @property
    def stop_text(self) -> str | None:
        """The stop text that was complete; None while none was."""
        return self._stops.which

    def feed(self, token: Token) -> Iterator[Piece]:
        self._tokens = token.tokens
        if token.control:
            self._stops.control(token.text)
        if self._splitter is not None:
            pieces = self._splitter.feed(token.text, special=token.special, control=token.control)
        else:
            pieces = iter([] if token.control or not token.text else [Answer(token.text)])
        for piece in pieces:
            self._count(piece)
            yield from self._stops.feed(piece)

    def finish(self, *, cut: bool) -> Iterator[Piece]:
        """What was held back; ``cut``: the model had more to say."""
        for piece in self._splitter.finish(cut=cut) if self._splitter is not None else ():
            if cut and self._calls_only and isinstance(piece, Answer):
                continue  # the beginning of a mark
            self._count(piece)
            yield from self._stops.feed(piece)
        yield from self._stops.finish()

    def _count(self, piece: Piece) -> None:
        """The tokens since the piece before belong to this one, marks between them included."""
        if isinstance(piece, Reasoning):
            self.reasoning_tokens += self._tokens - self._told
        self._told = self._tokens


class Said:
    """What the model has said in the turn that is running."""

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._reasoning: list[str] = []
        self._begun: dict[int, ToolCallBegin] = {}
        self._arguments: dict[int, list[str]] = {}
        self._calls: list[ToolCall] = []

    @property
    def is_empty(self) -> bool:
        return not self._answer and not self._reasoning and not self._calls

    @property
    def answer(self) -> str:
        return "".join(self._answer)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def take(self, piece: Piece) -> ReasoningDelta | AnswerDelta | ToolCallEvent:
        match piece:
            case Answer(text):
                self._answer.append(text)
                return AnswerDelta(text)
            case Reasoning(text):
                self._reasoning.append(text)
                return ReasoningDelta(text)
            case ToolCallBegin():
                self._begun[piece.index], self._arguments[piece.index] = piece, []
            case ToolCallDelta():
                self._arguments[piece.index].append(piece.text)
            case ToolCallEnd(index):
                begun = self._begun[index]
                arguments = "".join(self._arguments[index])
                self._calls.append(ToolCall(begun.id, begun.name, arguments))
        return piece

    def done(self, finished: Finished, reasoning_tokens: int, stop_text: str | None) -> TurnDone:
        reason = finished.reason
        return TurnDone(
            finish_reason="tool_calls" if reason == "stop" and self._calls else reason,
            answer=self.answer,
            reasoning=self.reasoning,
            usage=Usage(
                finished.prompt_tokens,
                finished.completion_tokens,
                finished.reused_tokens,
                reasoning_tokens,
            ),
            timings=Timings(finished.ttft_s, finished.prefill_tps, finished.decode_tps),
            finished=finished,
            calls=tuple(self._calls),
            stop_text=stop_text,
        )
