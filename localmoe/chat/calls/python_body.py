"""Calls as Python writes them: ``NAME(key=VALUE, …)``."""

from __future__ import annotations

import json

from localmoe.chat.calls.call import MOST_KEY, Call
from localmoe.chat.calls.text import NoCall, Pattern, Waiting
from localmoe.chat.calls.values import from_python


class PythonReader:
    def read(self, call: Call) -> Waiting[None]:
        text = call.text
        call.begin((yield from call.name([Pattern("(")])))
        text.at = text.text.index("(", text.at) + 1
        call.say("{")
        first = True
        while (char := (yield from text.skip_space())) != ")":
            if char == "," and not first:
                text.at += 1
                continue
            key = (yield from text.until([Pattern("=")], MOST_KEY)).strip()
            text.at += 1
            if not key.isidentifier():
                raise NoCall
            value = from_python((yield from _literal(call)))
            call.say(f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: {value}")
            first = False
        text.at += 1
        call.say("}")


def _literal(call: Call) -> Waiting[str]:
    """A literal, up to the comma or bracket after it."""
    text = call.text
    begin, depth, quote = text.at, 0, ""
    while True:
        char = yield from text.peek()
        if not char:
            raise NoCall
        if quote:
            if char == "\\":
                text.at += 1
                yield from text.peek()
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif depth == 0 and char in ",)":
            return call.spelled(text.text[begin : text.at])
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        text.at += 1
