"""Gemma 4's calls: ``NAME{key:VALUE,…}``, strings between tokens of their own."""

from __future__ import annotations

import json
from collections.abc import Callable

from localmoe.chat.calls.call import MOST_DEEP, MOST_KEY, Call, escaped
from localmoe.chat.calls.format import QUOTE
from localmoe.chat.calls.text import NoCall, Pattern, Waiting
from localmoe.chat.calls.values import from_text

MOST_BARE = 1 << 20  # characters of a value without quotes


class GemmaReader:
    def __init__(self, mark: Callable[[str], str]) -> None:
        self._quote = Pattern(mark(QUOTE))

    def read(self, call: Call) -> Waiting[None]:
        call.begin((yield from call.name([Pattern("{")])))
        yield from call.text.skip_space()
        yield from self._object(call, 0)

    def _object(self, call: Call, depth: int) -> Waiting[None]:
        text = call.text
        text.at += 1
        call.say("{")
        first = True
        while (char := (yield from text.skip_space())) != "}":
            if char == "," and not first:
                text.at += 1
                continue
            key = yield from self._key(call)
            call.say(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            first = False
            yield from self._value(call, depth + 1)
        text.at += 1
        call.say("}")

    def _key(self, call: Call) -> Waiting[str]:
        """A key and the colon after it."""
        text = call.text
        if (yield from text.stands(self._quote)):
            yield from text.demand(self._quote)
            key = yield from text.until([self._quote], MOST_KEY)
            yield from text.demand(self._quote)
            yield from text.demand(Pattern(":"))
            return call.spelled(key)
        key = (yield from text.until([Pattern(":")], MOST_KEY)).strip()
        text.at += 1
        return call.spelled(key).strip('"')

    def _value(self, call: Call, depth: int) -> Waiting[None]:
        text = call.text
        if depth > MOST_DEEP:
            raise NoCall
        char = yield from text.skip_space()
        if (yield from text.stands(self._quote)):
            yield from self._text(call)
        elif char == "{":
            yield from self._object(call, depth)
        elif char == "[":
            yield from self._list(call, depth)
        else:
            raw = yield from text.until([Pattern(c) for c in ",}]"], MOST_BARE)
            call.say(from_text(call.spelled(raw).strip(), None, None))

    def _text(self, call: Call) -> Waiting[None]:
        text = call.text
        yield from text.demand(self._quote)
        call.say('"')
        while not (yield from text.meets(self._quote))[0]:
            if not (yield from text.peek()):
                raise NoCall
            call.say(escaped(call.spelled(text.text[text.at])))
            text.at += 1
        call.say('"')

    def _list(self, call: Call, depth: int) -> Waiting[None]:
        text = call.text
        text.at += 1
        call.say("[")
        first = True
        while (char := (yield from text.skip_space())) != "]":
            if char == "," and not first:
                text.at += 1
                continue
            if not first:
                call.say(", ")
            first = False
            yield from self._value(call, depth + 1)
        text.at += 1
        call.say("]")
