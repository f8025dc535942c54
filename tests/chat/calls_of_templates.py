"""Calls as the chat templates of the engine's source package write them, read back."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import localmoe
from localmoe.chat.answer_format import QUESTION, AnswerFormat, shared
from localmoe.chat.answering import TextEngine, events
from localmoe.chat.calls.format import CallFormat
from localmoe.chat.events import ToolCallBegin, ToolCallDelta, ToolCallEnd, TurnDone
from localmoe.chat.renderer import Renderer
from localmoe.chat.session import Message, ToolCall
from localmoe.chat.settings import Settings
from localmoe.chat.splitter import Answer, Calling, Piece, Reasoning, Splitter
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.chat.tools import read_tools
from localmoe.engine.events import Sampling
from tests.archs import parrot
from tests.chat.scripted import split_at
from tests.waiting import PATIENCE

SOLAR = "<|flush|>"
"""By this token llama.cpp knows that <|end|> does not end an answer of Solar's."""
CONTEXT = 16384  # a prompt with tools has some thousand letters, and each is a token
Schemas = Mapping[str, Mapping[str, Any]]
SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<｜[^<>\s]{1,40}｜>|\[/?[A-Z_]{3,}\]|</?think>|</?tool_call>|<\|\"\|>"
    r"|<tool_call\|>|<\|tool_call>|<\|channel>|<channel\|>|</?seed:\w+>|<SPECIAL_\d+>"
)
"""Spellings that are tokens of their own in the vocabularies of these families."""


@dataclass(frozen=True)
class Reading:
    """What was read of an answer."""

    answer: str
    reasoning: str
    calls: list[tuple[str, str]] = field(default_factory=list)

    def parsed(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


@dataclass(frozen=True)
class Family:
    """A chat template, and what was found out about it."""

    template: ChatTemplate
    source: str
    answers: AnswerFormat
    calls: CallFormat

    @classmethod
    def of(cls, source: str, renderer: Renderer, **arguments: object) -> Family:
        template = ChatTemplate(source, "<s>", "</s>", renderer=renderer)
        answers, calls = template.format_of(arguments), template.calls_of(arguments)
        return cls(template, source, answers, calls)

    @property
    def specials(self) -> tuple[str, ...]:
        return tuple(sorted(set(SPECIAL.findall(self.source))))

    def written(self, schemas: Schemas, calls: Sequence[tuple[str, Any]]) -> str:
        """An answer with these calls as the template writes it; the thinking is empty."""
        tools = [
            {"type": "function", "function": {"name": n, "description": "It.", "parameters": s}}
            for n, s in schemas.items()
        ]
        made = [
            ToolCall(f"abcdefgh{number}", name, json.dumps(arguments, ensure_ascii=False))
            for number, (name, arguments) in enumerate(calls)
        ]
        ask = Message("user", QUESTION)
        results = [Message("tool", "9172640", result_of=call) for call in made]
        history = (ask, Message("assistant", "", calls=tuple(made)), *results)
        text = self.template.render(history, tools=tools).prompt.partition(QUESTION)[2]
        begin = self.template.render((ask,), tools=tools).prompt.partition(QUESTION)[2]
        text = text[len(begin) if text.startswith(begin) else shared(begin, text) :]
        end = self.answers.thinking[0].end
        open_ = self.answers.is_open and not text.lstrip().startswith(end)
        return (end if open_ else "") + text

    def read(
        self,
        text: str,
        schemas: Schemas,
        sizes: Iterable[int],
        *,
        specials: Sequence[str] | None = None,
        cut_off: bool = False,
        answers: AnswerFormat | None = None,
        hold: bool = True,
    ) -> Reading:
        """What comes of ``text``, which arrives in pieces of these lengths."""
        specials = self.specials if specials is None else specials
        splitter = Splitter(
            answers or self.answers,
            lambda texts: [split_at(t, specials) for t in texts],
            calling=Calling(self.calls, schemas, hold=hold),
        )
        pieces: list[Piece] = []
        for token, special in tokens(text, specials, sizes):
            pieces += splitter.feed(token, special=special, control=special)
        pieces += splitter.finish(cut=cut_off)
        calls: dict[int, list[str]] = {}
        ended = []
        for piece in pieces:
            if isinstance(piece, ToolCallBegin):
                calls[piece.index] = [piece.name, ""]
            elif isinstance(piece, ToolCallDelta):
                calls[piece.index][1] += piece.text
            elif isinstance(piece, ToolCallEnd):
                ended.append(piece.index)
        return Reading(
            "".join(p.text for p in pieces if isinstance(p, Answer)),
            "".join(p.text for p in pieces if isinstance(p, Reasoning)),
            [(calls[index][0], calls[index][1]) for index in ended],
        )


@contextlib.contextmanager
def patient_renderer() -> Iterator[Renderer]:
    """One that a busy machine does not make give up; nor any other in the meantime."""
    with pytest.MonkeyPatch.context() as patch, Renderer() as renderer:
        patch.setattr("localmoe.chat.renderer.RENDER_SECONDS", PATIENCE)
        yield renderer


@contextlib.contextmanager
def drawing(path: Path, source: str) -> Iterator[localmoe.LoadedModel]:
    """A model that draws its tokens: those that the template's marks are in its family's too."""
    found = {*SPECIAL.findall(source), SOLAR}
    specials = [parrot.control(text) for text in sorted(found)]
    parrot.write(path, (), template=source, specials=specials, context=CONTEXT)
    one_thread = localmoe.Wishes(threads=1)
    with patient_renderer(), localmoe.load(path, context=CONTEXT, wishes=one_thread) as model:
        yield model


def constrained(
    engine: TextEngine, template: ChatTemplate, schemas: Schemas, **sampling: Any
) -> TurnDone:
    """An answer that must call a tool, in the template's form, of a model that knows no tools."""
    tools = [{"name": name, "parameters": schema} for name, schema in schemas.items()]
    use = read_tools(tools, sampling.pop("choice", "required"))
    limit = sampling.pop("max_tokens", 400)
    settings = Settings(
        tools=use, max_tokens=limit, sampling=Sampling(**sampling), think=ThinkLevel.OFF
    )
    done = list(events(engine, template, (Message("user", "What?"),), settings))[-1]
    assert isinstance(done, TurnDone)
    for call in done.calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    return done


def tokens(text: str, specials: Sequence[str], sizes: Iterable[int]) -> Iterator[tuple[str, bool]]:
    """``text`` in pieces of these lengths; a special token is one piece."""
    lengths = itertools.cycle(sizes)
    for part in split_at(text, specials):
        rest = part.text
        if part.token is not None:
            yield rest, True
            continue
        while rest:
            size = next(lengths)
            yield rest[:size], False
            rest = rest[size:]
