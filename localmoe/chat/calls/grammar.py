"""Calls of tools as a grammar: names exist, arguments validate, marks are the template's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from localmoe.chat.answer_format import AnswerFormat, Marks
from localmoe.chat.calls.argument_rules import ArgumentRules
from localmoe.chat.calls.bounds import MOST_BOUNDED_CALLS, bounds_for
from localmoe.chat.calls.format import ANY, NAME, Body, CallFormat
from localmoe.chat.calls.notations import not_one_of
from localmoe.chat.constraint import room_for_thinking
from localmoe.chat.marks import SplitSpecials
from localmoe.chat.tools import ToolUse
from localmoe.engine.grammar import (
    Bounds,
    Symbols,
    literal,
    sequence,
    text_until,
    with_basic_rules,
    with_reasoning,
)

WORD = "[0-9a-z]{1,9}"  # for ANY, such as the number of a call
FREE = "[^\\x00]*"
Schemas = Mapping[str, Mapping[str, object]]
"""What is enforced of each tool's arguments, by the tool's name."""


def call_grammar(
    use: ToolUse,
    calls: CallFormat,
    answers: AnswerFormat,
    split_specials: SplitSpecials,
    max_tokens: int | None,
) -> str | None:
    """The grammar of an answer that may or must call tools; None where none can be called.

    Where it must, a call is all that comes after thinking; else text may come before.
    """
    tools = use.callable
    if not tools:
        return None
    thinking = room_for_thinking(answers)
    if use.required and thinking and max_tokens is not None:
        max_tokens //= 2  # so much it may take
    made = _Grammar(calls, split_specials, bounds_for(use, max_tokens))
    most = None if use.parallel and calls.several else 1
    if most is None and made.bounds:
        most = MOST_BOUNDED_CALLS
    root = made.calls(tools, most) if use.required else made.text_or_calls(tools, most, answers)
    grammar = made.text(root)
    marks = thinking or Marks("", "")
    start, end = made.symbols(marks.start), made.symbols(marks.end)
    return with_reasoning(grammar, start, end, is_open=answers.is_open)


class _Grammar:
    """The rules of one grammar while it is made."""

    def __init__(
        self, format_: CallFormat, split_specials: SplitSpecials, bounds: Bounds | None
    ) -> None:
        self._format = format_
        self._split = split_specials
        self.bounds = bounds
        self._rules: dict[str, str] = {}
        self._arguments = ArgumentRules(format_, self.symbols, self._rules, bounds)
        self._prefix = format_.start + ("[" if format_.in_list else "") + format_.call_start

    def text(self, root: str) -> str:
        rules = with_basic_rules(self._rules, self.bounds, self._arguments.notation)
        lines = (f"{name} ::= {rule}" for name, rule in rules.items())
        return "\n".join([f"root ::= {root}", *lines])

    def symbols(self, text: str) -> Symbols:
        """A mark: texts, and special tokens by their numbers."""
        (parts,) = self._split([text])
        return [part.text if part.token is None else part.token for part in parts]

    def _mark(self, text: str, name: str = "") -> str:
        """A mark in GBNF; a word for each ANY in it, and ``name`` for NAME."""
        pieces = [
            sequence(self.symbols(piece)) if piece else ""
            for piece in text.replace(NAME, name).split(ANY)
        ]
        return f" {WORD} ".join(pieces).strip()

    def calls(self, tools: Schemas, most: int | None) -> str:
        """One call or more, from the beginning of an answer on."""
        if self._format.body is Body.CHANNEL:
            return self._channel(tools)
        first = self._prefix.removeprefix(self._format.lead)
        return f"{self._mark(first)} {self._after_prefix(tools, most)}".strip()

    def _after_prefix(self, tools: Schemas, most: int | None) -> str:
        format_ = self._format
        call_end = self._mark(format_.call_end)
        self._rules["a-call"] = f"{self._call(tools)} {call_end}".strip()
        more = ""
        if most is None or most > 1:
            often = "*" if most is None else f"{{0,{most - 1}}}"
            between = format_.between or (", " if format_.in_list else "")
            more = f"({self._mark(between + format_.call_start)} a-call){often}"
            if not (between + format_.call_start).strip():
                more = f'("\\n" a-call){often}'
        end = self._mark(("]" if format_.in_list else "") + format_.end)
        if (
            end
            and not format_.in_list
            and all(isinstance(s, int) for s in self.symbols(format_.end))
        ):
            end = f"({end})?"  # it may be the token that ends the answer
        elif format_.in_list and format_.end:
            end = f"{literal(']')} ({self._mark(format_.end)})?"
        return f"a-call {more} {end}".strip()

    def text_or_calls(self, tools: Schemas, most: int | None, answers: AnswerFormat) -> str:
        """Text, and calls from the moment on that their first mark is there."""
        format_ = self._format
        if format_.body is Body.CHANNEL:
            return self._channel_or_text(tools, answers)
        if format_.is_unmarked:
            return self._unmarked(tools)
        begin = "" if answers.answer_marks_optional else answers.answer_start
        between = format_.between if begin and format_.between.strip() else ""
        text = self._text_then_calls(between + self._prefix, tools, most)
        return f"{self._mark(begin)} {text} | {self.calls(tools, most)}" if begin else text

    def _text_then_calls(self, trigger: str, tools: Schemas, most: int | None) -> str:
        """Any text, up to the first mark of a call."""
        words = re.match(r"\s*(\S+)(.*)", trigger, re.DOTALL)
        assert words is not None
        first = self.symbols(words[1].split(ANY)[0])
        rest = words[1][len(words[1].split(ANY)[0]) :] + words[2]
        self._rules["the-calls"] = f"{self._mark(rest)} {self._after_prefix(tools, most)}".strip()
        then = f"{sequence(first[1:])} the-calls".strip()
        if isinstance(first[0], int):
            return f"!<[{first[0]}]>* (<[{first[0]}]> {then})?"
        self._rules["first-call"] = then
        rules, start = text_until(first[0], "free", then="first-call", optional=True)
        self._rules |= rules
        return start

    def _unmarked(self, tools: Schemas) -> str:
        """Any answer; one that begins as a call of a tool does, up to its arguments, is one."""
        format_ = self._format
        self._rules["free-text"] = FREE
        ends = {}
        for number, (name, schema) in enumerate(tools.items()):
            arguments = self._arguments.whole(schema, f"tool-{number}")
            begin = f' {{ "{format_.name_key}" : "{name}" , "{format_.arguments_key}" : '
            ends[begin] = f'{arguments} "}}"'
        return self._begun_so(ends, "begun")

    def _begun_so(self, ends: Mapping[str, str], label: str) -> str:
        """A tree of beginnings: where an answer leaves it, it is text. A space may be any."""
        if "" in ends:
            return ends[""]
        if all(text[0] == " " for text in ends):
            inner = self._begun_so({text[1:]: end for text, end in ends.items()}, label)
            return f"[ \\n]* {inner}"
        groups: dict[str, dict[str, str]] = {}
        for text, end in ends.items():
            groups.setdefault(text[0], {})[text[1:]] = end
        choices = []
        for letter, group in groups.items():
            rule = f"{label}-{len(self._rules)}"
            self._rules[rule] = ""
            self._rules[rule] = self._begun_so(group, label)
            choices.append(f"{literal(letter)} {rule}")
        blank = " \n" if "{" in groups or "," in groups or ":" in groups else ""
        others = not_one_of("".join(groups) + blank)
        return f"({' | '.join([*choices, f'{others} free-text'])})?"

    def _call(self, tools: Schemas) -> str:
        """The alternatives from the name on, one for each tool."""
        format_ = self._format
        before, ends = "", {}
        for number, (name, schema) in enumerate(tools.items()):
            label = f"tool-{number}"
            if format_.body is Body.TAGGED:
                end = f"{self._mark(format_.name_end, name)} {self._arguments.tags(schema, label)}"
                ends[name] = end.strip()
                continue
            if format_.body is Body.PYTHON:
                ends[name] = f'"(" {self._arguments.keywords(schema, label)} ")"'
                continue
            arguments = self._arguments.whole(schema, label)
            if format_.body is Body.OBJECT:
                before = f'{{"{format_.name_key}": "'
                ends[name] = literal(f'", "{format_.arguments_key}": ') + f' {arguments} "}}"'
            elif format_.body is Body.KEYED:
                before = '{"'
                ends[name] = f'{literal(chr(34) + ": ")} {arguments} "}}"'
            else:
                ends[name] = f"{self._mark(format_.name_end, name)} {arguments}".strip()
        body = self._by_name(ends, "name")
        return f"{literal(before)} {body}" if before else body

    def _by_name(self, ends: Mapping[str, str], label: str) -> str:
        """The names with what follows each, as a tree: few of them are alive at a time."""
        groups: dict[str, dict[str, str]] = {}
        for name, end in ends.items():
            groups.setdefault(name[:1], {})[name[1:]] = end
        choices = []
        for letter, group in groups.items():
            if len(group) == 1:
                ((rest, end),) = group.items()
                choices.append(f"{literal(letter + rest)} {end}" if letter else end)
            else:
                below = f"{label}-{len(self._rules)}"
                self._rules[below] = ""
                self._rules[below] = self._by_name(group, label)
                choices.append(f"{literal(letter)} {below}")
        return f"({' | '.join(choices)})"

    def _channel(self, tools: Schemas) -> str:
        """gpt-oss: a message to the tool, which is the last one of the answer."""
        to = self._mark("<|channel|>commentary to=functions.")
        message = self._mark(" <|constrain|>json<|message|>")
        ends = {
            name: f"{message} {self._arguments.whole(schema, f'tool-{number}')}"
            for number, (name, schema) in enumerate(tools.items())
        }
        return f"{to} {self._by_name(ends, 'name')}"

    def _channel_or_text(self, tools: Schemas, answers: AnswerFormat) -> str:
        end, start = self.symbols("<|end|>"), self._mark("<|end|><|start|>assistant")
        free = f"!<[{end[0]}]>*" if isinstance(end[0], int) else FREE
        self._rules["aloud"] = f"{self._mark('<|channel|>commentary<|message|>')} {free} {start}"
        final = self._mark(answers.answer_start or "<|channel|>final<|message|>")
        self._rules["the-call"] = self._channel(tools)
        self._rules["the-answer"] = f"{final} {free}"
        return "aloud? (the-call | the-answer)"
