"""The turn: what the user says → prompt → engine → reasoning and answer → session."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from localmoe.chat.attachments import Attachment
from localmoe.chat.constraint import grammar_for
from localmoe.chat.session import Message, Session, Turn
from localmoe.chat.settings import Settings
from localmoe.chat.splitter import Answer, Piece, Splitter
from localmoe.chat.stopping import StopTexts
from localmoe.chat.template import ChatTemplate, Rendered
from localmoe.chat.thinking import ThinkLevel
from localmoe.engine.events import Finished, Part, PrefillProgress, Request, Sampling, Span, Token
from localmoe.errors import EngineError, NoAnswerError, UsageError
from localmoe.wording import option

LESS_THINKING = f"less thinking: {option('think', 'low')}, {option('think', 'off')}"
SUMMARY_REQUEST = (
    "Summarise our conversation so far for your own later use, in at most {words} words. Keep "
    "names, numbers, decisions, open questions and what I asked for. Write the summary only."
)


class TextEngine(Protocol):
    """The part of ``localmoe.engine.client.Engine`` that a conversation needs."""

    def generate(self, request: Request) -> Iterator[PrefillProgress | Token | Finished]:
        """Raises ``ContextOverflowError``, ``EngineError``, ``EngineCrashError``."""

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, as text. Raises what ``generate`` does."""

    def count_prompt(self, prompt: str, data: Sequence[Span] = ()) -> int:
        """Tokens that ``generate`` would read; ``data`` as in ``Request``."""

    def split_specials(self, texts: Sequence[str]) -> list[list[Part]]:
        """Each text cut at the special tokens that it spells."""

    def cancel(self) -> None:
        """Make ``generate`` end early. May be called from any thread or signal handler."""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0  # of the prompt, already in the KV cache

    @property
    def total(self) -> int:
        """Tokens in the context when the turn was over."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Speeds in tokens per second; ``None`` when too little happened to measure."""

    ttft_s: float
    prefill_tps: float | None
    decode_tps: float | None


@dataclass(frozen=True, slots=True)
class TurnDone:
    finish_reason: str  # "stop" | "length" | "interrupted"
    answer: str
    reasoning: str
    usage: Usage
    timings: Timings
    finished: Finished | None = None  # what the engine itself said

    @property
    def no_answer(self) -> NoAnswerError | None:
        """That the model has thought and then not answered; None for all other turns."""
        if self.answer.strip() or not self.reasoning or self.finish_reason == "interrupted":
            return None
        tokens = f"{self.usage.completion_tokens:,} tokens"
        if self.finish_reason == "length":
            return NoAnswerError(
                f"no answer came: the model was still thinking after {tokens}",
                hint=f"allow more tokens, or ask for {LESS_THINKING}",
            )
        return NoAnswerError(
            f"no answer came: the model ended after {tokens} of thinking",
            hint=f"ask again, or ask for {LESS_THINKING}",
        )

    def why_it_ended(self, context: int, change: str = "") -> str | None:
        """A sentence when the answer did not end by itself. ``change``: how to ask for more."""
        if self.finish_reason == "interrupted":
            return "interrupted; what is there is kept"
        if self.finish_reason != "length":
            return None
        if self.usage.total >= context:
            return f"stopped: the context of {context:,} tokens is full (--ctx N makes it larger)"
        return f"stopped after {self.usage.completion_tokens:,} tokens, as asked{change}"


PLAIN = ChatTemplate(None)

ChatEvent = PrefillProgress | ReasoningDelta | AnswerDelta | TurnDone


class Conversation:
    """A session that talks to an engine. ``engine`` may be replaced between turns."""

    def __init__(
        self,
        engine: TextEngine,
        template: ChatTemplate,
        session: Session,
        settings: Settings,
    ) -> None:
        self.engine = engine
        self.template = template
        self.session = session
        self.settings = settings

    def think_note(self) -> str | None:
        """One sentence when the level of thinking that is set cannot be had exactly.

        Raises ``TemplateError``.
        """
        return self._template.think_control.note(self.settings.think)

    def ask(self, text: str, files: Sequence[Attachment] = ()) -> Generator[ChatEvent, None, None]:
        """One turn. Ends with ``TurnDone``, an interrupted one too.

        What the model said is kept and marked as interrupted when the turn was cancelled, broke
        off with an error, or its events are no longer wanted. An error before the first word
        leaves the session as it was. Raises ``TemplateError``, ``ContextOverflowError``,
        ``EngineError``.
        """
        question = Message("user", text, files=tuple(files))
        said = _Said()
        try:
            done = yield from self._answer(self.session.prompt_messages(question), said)
        except GeneratorExit:
            self.engine.cancel()
            self.session.add(self._turn(question, said, interrupted=True))
            raise
        except BaseException:
            if not said.is_empty:
                self.session.add(self._turn(question, said, interrupted=True))
            raise
        interrupted = done.finish_reason == "interrupted"
        self.session.add(self._turn(question, said, interrupted, done.usage))
        yield done

    def regenerate(self) -> Generator[ChatEvent, None, None]:
        """Ask the last question again; its answer is replaced once a new one has begun.

        Raises UsageError where there is no turn, and what ``ask`` does. Without a word of a new
        answer, after an error or an interrupt, the old one is still there.
        """
        last = self.session.undo()
        if last is None:
            raise UsageError("nothing was asked yet")
        before = len(self.session.turns)
        try:
            yield from self.ask(last.question.content, last.question.files)
        finally:
            self.session.put_back(last, before)

    def prompt_tokens(self, question: Message | None = None, *, skip: int = 0) -> int:
        """Tokens of the prompt for that question, as if ``skip`` turns were not sent any more.

        Raises ``TemplateError``, ``EngineError``.
        """
        messages = self.session.prompt_messages(question, skip=skip)
        return self._count(messages, self.settings.think) if messages else 0

    def summarise(self, turns: int, max_tokens: int) -> Generator[ChatEvent, None, None]:
        """Let the model sum up the oldest ``turns`` in ``max_tokens``, then not sent any more.

        Nothing changes when that is interrupted, or says nothing. Raises what ``ask`` does.
        """
        settings = replace(
            self.settings,
            max_tokens=max_tokens,
            think=ThinkLevel.OFF,
            sampling=Sampling(temperature=0.0),
            stop=(),
            grammar=None,
        )
        said = _Said()
        done = yield from self._answer(self._to_sum_up(turns, max_tokens), said, settings)
        summary = done.answer.strip()
        if summary and done.finish_reason != "interrupted":
            self.session.shorten(turns, summary)
        yield done

    def summary_tokens(self, turns: int, max_tokens: int) -> int:
        """Tokens of the prompt that ``summarise`` sends. Raises what ``prompt_tokens`` does."""
        return self._count(self._to_sum_up(turns, max_tokens), ThinkLevel.OFF)

    def _to_sum_up(self, turns: int, max_tokens: int) -> tuple[Message, ...]:
        older = Session(self.session.system, self.session.turns[:turns])
        older.shorten(self.session.skipped, self.session.summary)
        request = SUMMARY_REQUEST.format(words=max(30, max_tokens // 2))
        return older.prompt_messages(Message("user", request))

    def _count(self, messages: Sequence[Message], think: ThinkLevel) -> int:
        rendered = self._template.render(messages, think=think)
        return self.engine.count_prompt(rendered.prompt, rendered.data)

    @property
    def _template(self) -> ChatTemplate:
        return PLAIN if self.settings.plain else self.template

    def _answer(
        self, messages: Sequence[Message], said: _Said, settings: Settings | None = None
    ) -> Generator[ChatEvent, None, TurnDone]:
        settings = settings or self.settings
        rendered = self._template.render(messages, think=settings.think)
        reader = self._reader(rendered, settings)
        grammar = settings.grammar
        if grammar is not None and rendered.format is not None:
            grammar = grammar_for(grammar, rendered.format, self.engine.split_specials)
        request = Request(
            prompt=rendered.prompt,
            stable_chars=rendered.stable_chars,
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            grammar=grammar,
            data=rendered.data,
        )
        for event in self.engine.generate(request):
            if isinstance(event, PrefillProgress):
                yield event
            elif isinstance(event, Token):
                if not reader.stopped_after:
                    yield from map(said.take, reader.feed(event))
                    if reader.stopped_after:
                        self.engine.cancel()
            else:
                yield from map(said.take, reader.finish())
                if reader.stopped_after:
                    event = replace(event, reason="stop", completion_tokens=reader.stopped_after)
                return said.done(event)
        raise EngineError("the engine ended a turn without saying why")

    def _reader(self, rendered: Rendered, settings: Settings) -> _Reader:
        format_ = rendered.format
        if format_ is None:
            return _Reader(None, settings)
        constrained = settings.grammar is not None
        specials = self.engine.split_specials
        return _Reader(Splitter(format_, specials, constrained=constrained), settings)

    def _turn(
        self, question: Message, said: _Said, interrupted: bool, usage: Usage | None = None
    ) -> Turn:
        usage = usage or Usage(0, 0)
        model = self.session.model
        return Turn(
            question,
            Message("assistant", said.answer, said.reasoning, interrupted),
            model=model.name if model else "",
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )


class _Reader:
    """Tokens → pieces to show, up to a text that ends the answer."""

    def __init__(self, splitter: Splitter | None, settings: Settings) -> None:
        self._splitter = splitter  # None: all text is the answer
        self._stops = StopTexts(settings.stop)
        self._tokens = 0

    @property
    def stopped_after(self) -> int:
        """Tokens of the answer when a stop text was complete; 0 while none was."""
        return self._tokens if self._stops.met else 0

    def feed(self, token: Token) -> Iterator[Piece]:
        self._tokens = token.tokens
        if token.control:
            self._stops.control(token.text)
        if self._splitter is not None:
            pieces = self._splitter.feed(token.text, special=token.special, control=token.control)
        else:
            pieces = iter([] if token.control or not token.text else [Answer(token.text)])
        for piece in pieces:
            yield from self._stops.feed(piece)

    def finish(self) -> Iterator[Piece]:
        for piece in self._splitter.finish() if self._splitter is not None else ():
            yield from self._stops.feed(piece)
        yield from self._stops.finish()


class _Said:
    """What the model has said in the turn that is running."""

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._reasoning: list[str] = []

    @property
    def is_empty(self) -> bool:
        return not self._answer and not self._reasoning

    @property
    def answer(self) -> str:
        return "".join(self._answer)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def take(self, piece: Piece) -> ReasoningDelta | AnswerDelta:
        if isinstance(piece, Answer):
            self._answer.append(piece.text)
            return AnswerDelta(piece.text)
        self._reasoning.append(piece.text)
        return ReasoningDelta(piece.text)

    def done(self, finished: Finished) -> TurnDone:
        return TurnDone(
            finish_reason=finished.reason,
            answer=self.answer,
            reasoning=self.reasoning,
            usage=Usage(finished.prompt_tokens, finished.completion_tokens, finished.reused_tokens),
            timings=Timings(finished.ttft_s, finished.prefill_tps, finished.decode_tps),
            finished=finished,
        )
