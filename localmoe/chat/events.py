"""What happens in a turn, as a front end sees it: one frozen record per event."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.chat.context import larger_context
from localmoe.chat.session import ToolCall
from localmoe.engine.events import Finished, PrefillProgress, Token
from localmoe.errors import NoAnswerError
from localmoe.wording import option

LESS_THINKING = f"less thinking: {option('think', 'low')}, {option('think', 'off')}"


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    text: str
    tokens: tuple[Token, ...] = ()  # of which it came, if their likelihoods were asked for


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """The model calls a tool; ``index`` numbers the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the JSON text of its arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    index: int


ToolCallEvent = ToolCallBegin | ToolCallDelta | ToolCallEnd


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0  # of the prompt, already in the KV cache
    reasoning_tokens: int = 0  # of the completion, up to the last word of thinking

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
    finish_reason: str  # "stop" | "tool_calls" | "length" | "interrupted"
    answer: str
    reasoning: str
    usage: Usage
    timings: Timings
    finished: Finished | None = None  # what the engine itself said
    calls: tuple[ToolCall, ...] = ()  # whole ones, in the order in which they were written
    stop_text: str | None = None  # of those that were asked for, the one that ended the answer

    @property
    def no_answer(self) -> NoAnswerError | None:
        """That the model has thought and then not answered; None for all other turns."""
        said = self.answer.strip() or self.calls
        if said or not self.reasoning or self.finish_reason == "interrupted":
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

    def why_it_ended(self, context: int, trained: int, change: str = "") -> str | None:
        """A sentence when the answer did not end by itself. ``trained``: tokens of context that the
        model was trained for, 0 if unknown; ``change``: how to ask for more.
        """
        if self.finish_reason == "interrupted":
            return "interrupted; what is there is kept"
        if self.finish_reason != "length":
            return None
        if self.usage.total >= context:
            more = " (--ctx N makes it larger)" if larger_context(context, trained) else ""
            return f"stopped: the context of {context:,} tokens is full{more}"
        return f"stopped after {self.usage.completion_tokens:,} tokens, as asked{change}"


ChatEvent = PrefillProgress | ReasoningDelta | AnswerDelta | ToolCallEvent | TurnDone
