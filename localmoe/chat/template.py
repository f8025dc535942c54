"""A model's chat template: messages → the prompt it was trained on.

Templates are programs that come with model files, so they render in a child process
(``localmoe.chat.renderer``) with limits on time, memory and output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from localmoe.chat.answer_format import AnswerFormat, Arguments, Probe, find_format
from localmoe.chat.renderer import Renderer, RenderError
from localmoe.chat.replay import Prompt, Replay
from localmoe.chat.session import Message
from localmoe.chat.template_messages import (
    Messages,
    arrangements,
    for_template,
    plainer,
    system_merged,
    with_generic_tools,
)
from localmoe.chat.thinking import ThinkControl, ThinkLevel
from localmoe.chat.tool_style import ToolStyle, find_style
from localmoe.engine.events import Span, Written
from localmoe.errors import ContextOverflowError

if TYPE_CHECKING:  # imported late: see answering.py
    from localmoe.chat.calls.format import CallFormat

MOST_CHARACTERS = 8 << 20  # of a conversation; a million tokens are about 4 million


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and how the answer to it will be written."""

    prompt: str
    stable_chars: int  # the first characters, which the next turn's prompt will share
    data: tuple[Span, ...]  # what came with the messages: text, not the template's marks
    format: AnswerFormat | None  # None: plain completion, nothing is split off
    calls: CallFormat | None = None  # how it calls tools; None where there are none
    canonical: str = ""  # the prompt as the template alone writes it
    written: tuple[Written, ...] = ()  # what of the prompt the model has written itself


@dataclass(frozen=True, slots=True)
class _Code:
    """What a template looks up, and the texts in its code."""

    variables: frozenset[str]
    literals: tuple[str, ...]


class ChatTemplate:
    """The template of one model, or plain completion where ``source`` is ``None``."""

    def __init__(
        self, source: str | None, bos: str = "", eos: str = "", *, renderer: Renderer | None = None
    ) -> None:
        self.source = source
        self._bos = bos
        self._eos = eos
        self._renderer = renderer or Renderer()
        self._read: _Code | None = None
        self._formats: dict[str, AnswerFormat] = {}
        self._styles: dict[str, ToolStyle] = {}
        self._calls: dict[str, CallFormat] = {}
        self.replay = Replay()

    @classmethod
    def from_model(
        cls, source: str | None, bos: str, eos: str, *, renderer: Renderer | None = None
    ) -> ChatTemplate:
        """``source`` is the file's ``tokenizer.chat_template``; ``bos`` and ``eos`` are texts.

        A blank one is none.
        """
        return cls(source if source and source.strip() else None, bos, eos, renderer=renderer)

    @property
    def is_plain(self) -> bool:
        return self.source is None

    @property
    def think_control(self) -> ThinkControl:
        """What can be chosen about thinking. Raises ``TemplateError``."""
        if self.source is None:
            return ThinkControl()
        return ThinkControl.of(self._code.variables, self.source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        think: ThinkLevel = ThinkLevel.AUTO,
    ) -> Rendered:
        """The prompt for the next answer. Raises ``TemplateError``, ``ContextOverflowError``.

        Where a template refuses or ignores the system message, its text goes in front of the
        first user message, as llama.cpp does.
        """
        if self.source is None:
            return plain_completion(messages)
        length = sum(map(_length, messages))
        if length > MOST_CHARACTERS:
            raise ContextOverflowError(
                f"the conversation has {length:,} characters, more than any context holds",
                hint="shorten it",
            )
        refusal: RenderError | None = None
        for arguments in self.think_control.attempts(think):
            format_ = self.format_of(arguments)
            given = self.replay.with_reasoning(messages)
            try:
                prompt = self._render(given, tools, arguments, format_)
            except RenderError as error:
                if error.kind not in ("raised", "failed"):
                    raise
                refusal = refusal or error
                continue
            if not prompt.text.strip():
                raise RenderError("empty", "it writes nothing")
            calls = self.calls_of(arguments) if tools else None
            canonical = prompt.text
            if calls is not None:
                render = partial(self._render, tools=tools, arguments=arguments, format_=format_)
                prompt = self.replay.put_back(given, prompt, calls, render)
            text, stable, data = prompt.text, prompt.stable_chars, prompt.data
            return Rendered(text, stable, data, format_, calls, canonical, prompt.written)
        assert refusal is not None
        raise refusal

    def format_of(self, arguments: Arguments) -> AnswerFormat:
        """How answers are written when the template is given these. Raises ``TemplateError``."""
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._formats:
            control = self.think_control
            levels = (ThinkLevel.HIGH, ThinkLevel.OFF) if control.can_choose else ()
            self._formats[key] = find_format(
                self._probe,
                self.source or "",
                arguments,
                [control.attempts(level)[0] for level in levels],
                self._code.literals,
            )
        return self._formats[key]

    def style_of(self, arguments: Arguments) -> ToolStyle:
        """How tools and calls are handed to the template. Raises ``TemplateError``."""
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._styles:
            self._styles[key] = find_style(self._probe, arguments)
        return self._styles[key]

    def calls_of(self, arguments: Arguments) -> CallFormat:
        """How calls are written when the template is given these. Raises ``TemplateError``."""
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._calls:
            from localmoe.chat.calls.derivation import find_calls

            style, answers = self.style_of(arguments), self.format_of(arguments)
            source = self.source or ""
            self._calls[key] = find_calls(self._probe, source, arguments, style, answers)
        return self._calls[key]

    def close(self) -> None:
        self._renderer.close()

    @property
    def _code(self) -> _Code:
        if self._read is None:
            reply = self._renderer.ask({"source": self.source})
            self._read = _Code(frozenset(reply["variables"]), tuple(reply["literals"]))
        return self._read

    def _probe(self, probes: Sequence[Probe]) -> list[str | None]:
        request = {
            **self._request,
            "probes": [
                {"messages": list(messages), "kwargs": dict(arguments), "generation": generation}
                for messages, arguments, generation in probes
            ],
        }
        texts: list[str | None] = self._renderer.ask(request)["texts"]
        return texts

    @property
    def _request(self) -> dict[str, object]:
        return {"source": self.source, "bos": self._bos, "eos": self._eos}

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        arguments: Arguments,
        format_: AnswerFormat,
    ) -> Prompt:
        request = {**self._request, "kwargs": dict(arguments)}
        plain = not tools and not any(message.calls for message in messages)
        style = ToolStyle() if plain else self.style_of(arguments)

        def ask(messages: Messages) -> dict[str, Any]:
            return self._renderer.ask(
                {**request, "messages": for_template(messages, format_, style)}
            )

        given = with_generic_tools(messages, style, tools or ())
        reply, refusal = None, None
        ways = arrangements(given)
        for told, arranged in ((told, way) for told in _tellings(tools) for way in ways):
            request["tools"] = told
            try:
                reply = ask(arranged)
                break
            except RenderError as error:
                if error.kind not in ("raised", "failed"):
                    raise
                refusal = refusal or error
        if reply is None:
            assert refusal is not None
            raise refusal
        system = given[0].content.strip() if given and given[0].role == "system" else ""
        if system and system not in reply["prompt"]:
            reply = ask(system_merged(given))
        data = tuple((start, end) for start, end in reply["data"])
        return Prompt(reply["prompt"], reply["stable_chars"], data)


def _tellings(tools: Sequence[Mapping[str, object]] | None) -> Iterator[object]:
    """Ways to tell a template of the tools, the truest first; None where there are none."""
    yield list(tools) if tools else None
    if tools:
        yield plainer(tools)


def _length(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.calls)
    return len(message.content) + len(message.reasoning) + calls


def plain_completion(messages: Sequence[Message]) -> Rendered:
    """No template: the texts one after the other, for the model to continue.

    Special tokens that they spell are parsed: here the user is who writes the prompt.
    """
    prompt = "\n\n".join(m.content for m in messages if m.content)
    return Rendered(prompt, len(prompt), (), None)
