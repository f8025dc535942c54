"""What a client asks for, whatever dialect it speaks; and what it hears until it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localmoe.chat.events import ChatEvent, TurnDone
from localmoe.chat.tools import ToolUse
from localmoe.engine.events import Token

Message = Mapping[str, object]  # as ``localmoe.chat.history`` reads it


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to be generated: of a chat (``messages``), or text that goes on (``prompt``)."""

    model: str | None = None  # None: the default one
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # fields of ``Sampling`` by name
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    schema: object = None  # a JSON schema that the answer follows
    top_logprobs: int | None = None  # how many of the likeliest tokens to tell; None: no figures
    tools: ToolUse | None = None  # that the model may call
    think: str | None = None  # a level; None: the server's default
    answers: int = 1  # to the same prompt, one after the other


@dataclass(frozen=True, slots=True)
class Waiting:
    """Other requests are answered first."""

    ahead: int


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is on its way into memory."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """The prompt fits: from here on the answer is on its way."""

    model: str  # the name of the model that answers
    context: int  # tokens
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, that need not be read again
    first_token_s: float | None = None  # until the first word, by the forecast; None: not known


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer, and its tokens, if they were asked for."""

    done: TurnDone
    tokens: tuple[Token, ...] = ()


Event = Waiting | Loading | Accepted | ChatEvent
