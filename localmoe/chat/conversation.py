"""The turn: what the user says → prompt → engine → reasoning and answer → session."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from localmoe.chat.reasoning import Answer, Piece
from localmoe.chat.session import Message, Session
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate
from localmoe.engine.events import Finished, PrefillProgress, Request, Text
from localmoe.errors import EngineError


class TextEngine(Protocol):
    """The part of ``localmoe.engine.client.Engine`` that a conversation needs."""

    def generate(self, request: Request) -> Iterator[PrefillProgress | Text | Finished]:
        """Raises ``ContextOverflowError``, ``EngineError``, ``EngineCrashError``."""

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
        template = PLAIN if self.settings.plain else self.template
        return template.think_control.note(self.settings.think)

    def ask(self, text: str) -> Generator[ChatEvent, None, None]:
        """One turn. Ends with ``TurnDone``, an interrupted one too.

        What the model said is kept and marked as interrupted when the turn was cancelled, broke
        off with an error, or its events are no longer wanted. An error before the first word
        leaves the session as it was. Raises ``TemplateError``, ``ContextOverflowError``,
        ``EngineError``.
        """
        self.session.append(Message("user", text))
        turn = _Turn()
        try:
            done = yield from self._answer(turn)
        except GeneratorExit:
            self.engine.cancel()
            self.session.append(turn.message(interrupted=True))
            raise
        except BaseException:
            if turn.is_empty:
                self.session.undo()
            else:
                self.session.append(turn.message(interrupted=True))
            raise
        interrupted = done.finish_reason == "interrupted"
        self.session.append(turn.message(interrupted=interrupted))
        yield done

    def _answer(self, turn: _Turn) -> Generator[ChatEvent, None, TurnDone]:
        settings = self.settings
        template = PLAIN if settings.plain else self.template
        rendered = template.render(self.session.prompt_messages(), think=settings.think)
        splitter = template.splitter(rendered)
        request = Request(
            prompt=rendered.prompt,
            stable_chars=rendered.stable_chars,
            max_tokens=settings.max_tokens,
            sampling=settings.sampling,
            add_bos=not rendered.has_bos,
        )
        for event in self.engine.generate(request):
            if isinstance(event, PrefillProgress):
                yield event
            elif isinstance(event, Text):
                for piece in splitter.feed(event.text):
                    yield turn.take(piece)
            else:
                for piece in splitter.finish():
                    yield turn.take(piece)
                return turn.done(event)
        raise EngineError("the engine ended a turn without saying why")


class _Turn:
    """What the model has said in the turn that is running."""

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._reasoning: list[str] = []

    @property
    def is_empty(self) -> bool:
        return not self._answer and not self._reasoning

    def take(self, piece: Piece) -> ReasoningDelta | AnswerDelta:
        if isinstance(piece, Answer):
            self._answer.append(piece.text)
            return AnswerDelta(piece.text)
        self._reasoning.append(piece.text)
        return ReasoningDelta(piece.text)

    def message(self, *, interrupted: bool) -> Message:
        answer, reasoning = "".join(self._answer), "".join(self._reasoning)
        return Message("assistant", answer, reasoning, interrupted)

    def done(self, finished: Finished) -> TurnDone:
        return TurnDone(
            finish_reason=finished.reason,
            answer="".join(self._answer),
            reasoning="".join(self._reasoning),
            usage=Usage(finished.prompt_tokens, finished.completion_tokens, finished.reused_tokens),
            timings=Timings(finished.ttft_s, finished.prefill_tps, finished.decode_tps),
        )
