"""The marks of calls, found out from a chat template.

A template shows how earlier calls were written. Known calls are rendered, one alone and two after
each other; what surrounds names, keys and values are the marks. Pure: ``Render`` does the
rendering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from localmoe.chat.answer_format import (
    ANSWER,
    ATOM,
    QUESTION,
    AnswerFormat,
    Arguments,
    Probe,
    Render,
    shared,
)
from localmoe.chat.calls.format import ANY, GENERIC, KEY, NAME, Body, CallFormat, listed
from localmoe.chat.tool_style import Ids, ToolStyle

# Stand for the parts of two calls; none is a part of another.
NAMES = ("f6620391", "g6620392")
KEYS = ("k7731502", "k7731503")
TEXT, NUMBER = "8842613", 5953724
IDS = ("abcdefgh1", "abcdefgh2")
GIVEN = {KEYS[0]: TEXT, KEYS[1]: NUMBER}


def find_calls(
    render: Render, source: str, arguments: Arguments, style: ToolStyle, answers: AnswerFormat
) -> CallFormat:
    """The format of calls in answers to the prompts that ``render`` makes with ``arguments``."""
    known = listed(source)
    if known and known.body is Body.CHANNEL:  # a header has more forms than the history shows
        return known
    shown = _show(render, arguments, style, answers) if style.calls else None
    return (shown and _read(shown)) or known or GENERIC


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a template makes of known calls, from the beginning of the answer to its end."""

    one: str  # a call with a text and a number
    two: str  # the same, and one without arguments; "" where it refuses two
    nested: str  # one with a list in an object; "" where it refuses that
    begin: str  # the end of the prompt for an answer


@dataclass(frozen=True, slots=True)
class _Core:
    """A call without the marks around it: from the name, or the object with it, to its end."""

    format: CallFormat
    start: int
    end: int


def _show(
    render: Render, arguments: Arguments, style: ToolStyle, answers: AnswerFormat
) -> _Shown | None:
    ask = {"role": "user", "content": QUESTION}
    given = {**arguments, "tools": [_tool(name) for name in NAMES]}
    first, last = _call(style, 0, GIVEN), _call(style, 1, {})
    nested = _call(style, 0, {KEYS[0]: {KEYS[1]: [TEXT]}})
    messages = [
        {"role": "assistant", "content": style.no_text, "tool_calls": calls}
        for calls in ([first], [first, last], [nested])
    ]
    messages.append({"role": "assistant", "content": ANSWER})
    probes: list[Probe] = [([ask, message], given, False) for message in messages]
    one, two, within, plain, prompt = render([*probes, ([ask], given, True)])
    if one is None or prompt is None or NAMES[0] not in one.partition(QUESTION)[2]:
        return None
    after = plain.partition(ANSWER)[2] if plain else ""
    begin = prompt.partition(QUESTION)[2]
    one, two = (_alone(text or "", begin, after, answers) for text in (one, two))
    return _Shown(one, two if NAMES[0] in two and NAMES[1] in two else "", within or "", begin)


def _alone(text: str, begin: str, after: str, answers: AnswerFormat) -> str:
    """What the model wrote of ``text``: no prompt, no empty thinking, no end of the message."""
    for id_ in IDS:
        text = text.replace(id_, ANY)
    text = text.partition(QUESTION)[2]
    text = text[_prompt_length(text, begin) :]
    marks = [mark for pair in answers.thinking for mark in (pair.start, pair.end)]
    marks += [answers.answer_start, _empty_answer(answers.answer_end, text)]
    marks = [mark for mark in marks if mark.strip()]
    text, before = text.lstrip(), ""
    while text != before:
        before = text
        for mark in marks:
            text = text.removeprefix(mark).lstrip()
    return _without_end(text, after)


def _prompt_length(text: str, begin: str) -> int:
    """How much of ``text`` the prompt has, which may say more in front of the answer."""
    if text.startswith(begin):
        return len(begin)
    atoms = ATOM.findall(begin.rstrip())
    for at in range(len(atoms) - 1):
        end = "".join(atoms[at:])
        found = text.find(end, 0, text.find(NAMES[0]))
        if found >= 0:
            return max(found + len(end), shared(begin, text))
    return shared(begin, text)


def _empty_answer(end: str, text: str) -> str:
    """The end of an answer that was left empty, as far as ``text`` has it before the calls."""
    at = text.find(end[:12]) if len(end) > 12 else -1
    return end[: shared(end, text[at:])] if 0 <= at < text.find(NAMES[0]) else ""


def _without_end(text: str, after: str) -> str:
    """Without the longest end of a message that ``text`` ends with."""
    atoms = ATOM.findall(after.rstrip())
    text = text.rstrip()
    for at in range(len(atoms)):
        end = "".join(atoms[at:])
        if end.strip() and text.endswith(end):
            return text.removesuffix(end).rstrip()
    return text


def _read(shown: _Shown) -> CallFormat | None:
    """The format behind what was shown; None where it cannot be told."""
    core = _core(shown.one)
    if core is None:
        return None
    before, after = shown.one[: core.start], shown.one[core.end :]
    made = replace(core.format, derived=True, several=bool(shown.two))
    if made.body is Body.TAGGED:
        made = replace(made, item_key=_item_key(shown.nested, made))
    if made.in_list:
        return replace(made, start=before, end=after)
    rest = shown.two.removeprefix(shown.one[: core.end])
    second = _second(rest, made)
    if not shown.two or len(rest) == len(shown.two) or second is None:
        return replace(made, call_start=before, call_end=after, several=False)
    gap, name_end = second
    call_start = _common_end(before, gap)
    if not before.strip() and gap.strip() and shown.begin.rstrip().endswith(gap.strip()):
        return replace(made, call_start=gap, lead=gap)  # the prompt has written it
    call_end = after[: shared(after, gap[: len(gap) - len(call_start)])]
    return replace(
        made,
        start=before.removesuffix(call_start),
        call_start=call_start,
        call_end=call_end,
        between=gap[len(call_end) : len(gap) - len(call_start)],
        end="" if made.body is Body.GEMMA else after.removeprefix(call_end),
        name_end=name_end,
    )


def _item_key(text: str, made: CallFormat) -> str:
    """The tag around an item of a list, where lists and objects are tags within tags."""
    start, end = re.escape(made.key_start), re.escape(made.key_end)
    found = re.search(rf"{start}{KEYS[1]}{end}{start}([\w-]+){end}{TEXT}", text)
    return found[1] if found else ""


def _second(rest: str, made: CallFormat) -> tuple[str, str] | None:
    """What stands between two calls, and the mark after a name without what differs in it."""
    name_at = rest.find(NAMES[1])
    if name_at < 0:
        return None
    if made.body in (Body.OBJECT, Body.KEYED):
        found = re.finditer(r"\{", rest[:name_at])
        starts = (m.start() for m in found if _decoded(rest, m.start())[1] > name_at)
        at = next(starts, None)
        return None if at is None else (rest[:at], made.name_end)
    after = rest[name_at + len(NAMES[1]) :]
    name_end = made.name_end
    if not after.startswith(name_end) and re.search(r"\d", name_end):
        name_end = re.sub(r"\d+", ANY, name_end)
    return rest[:name_at], name_end


def _core(text: str) -> _Core | None:
    at = text.index(NAMES[0])
    behind = text[at + len(NAMES[0]) :]
    if re.match(rf"\(\s*{KEYS[0]}\s*=", behind):
        return _Core(CallFormat(Body.PYTHON), at, text.rindex(")") + 1)
    if re.match(rf"\{{\s*{KEYS[0]}:", behind):
        return _Core(CallFormat(Body.GEMMA), at, text.rindex("}") + 1)
    return _object(text, at) or _named(text, at) or _tagged(text, at)


def _object(text: str, name_at: int) -> _Core | None:
    """Name and arguments in one JSON object, alone or in a list."""
    for at in (found.start() for found in re.finditer(r"[\[{]", text[:name_at])):
        value, end = _decoded(text, at)
        in_list = isinstance(value, list)
        first = value[0] if isinstance(value, list) and value else value
        if end < name_at or not isinstance(first, dict):
            continue
        if NAMES[0] in first:
            return _Core(CallFormat(Body.KEYED, in_list=in_list), at, end)
        name = next((key for key, value in first.items() if value == NAMES[0]), None)
        given = next((key for key, value in first.items() if value == GIVEN), None)
        if name and given:
            made = CallFormat(Body.OBJECT, in_list=in_list, name_key=name, arguments_key=given)
            return _Core(made, at, end)
    return None


def _named(text: str, name_at: int) -> _Core | None:
    """The name, a mark, and the arguments as a JSON object."""
    at = text.find("{", name_at)
    value, end = _decoded(text, at) if at >= 0 else (None, 0)
    if value != GIVEN:
        return None
    name_end = text[name_at + len(NAMES[0]) : at]
    return _Core(CallFormat(Body.NAMED, name_end=name_end), name_at, end)


def _tagged(text: str, name_at: int) -> _Core | None:
    """Key and value of each argument between marks."""
    words = (NAMES[0], KEYS[0], TEXT, KEYS[1], str(NUMBER))
    found = re.match("(.*?)".join(map(re.escape, words)) + "(.*)", text[name_at:], re.DOTALL)
    if found is None:
        return None
    first, text_key_end, second, other_key_end, last = found.groups()
    second, last = second.replace(KEYS[0], KEY), last.replace(KEYS[1], KEY)
    key_start = _common_end(first, second)
    value_end = second.removesuffix(key_start)
    if not value_end.strip() or not last.startswith(value_end):
        value_end = second[: shared(second, last)]
    if not key_start.strip() or not value_end.strip():
        return None
    key_end, word, other = _general(text_key_end, other_key_end)
    made = CallFormat(
        Body.TAGGED,
        name_end=first.removesuffix(key_start).replace(NAMES[0], NAME),
        key_start=key_start,
        key_end=key_end,
        value_end=value_end,
        text_word=word,
        other_word=other,
    )
    length = len(value_end.replace(KEY, KEYS[1]))
    return _Core(made, name_at, len(text) - len(found[5]) + length)


def _general(left: str, right: str) -> tuple[str, str, str]:
    """One mark for two that differ in a word, and that word of each."""
    if left == right:
        return left, "", ""
    start = shared(left, right)
    end = len(_common_end(left[start:], right[start:]))
    mark = left[:start] + ANY + left[len(left) - end :]
    return mark, left[start : len(left) - end], right[start : len(right) - end]


def _common_end(left: str, right: str) -> str:
    """The end that two texts share, in whole words and tags."""
    length = 0
    for a, b in zip(reversed(ATOM.findall(left)), reversed(ATOM.findall(right)), strict=False):
        if a != b:
            break
        length += len(a)
    return left[len(left) - length :]


def _decoded(text: str, at: int) -> tuple[object, int]:
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, -1


def _tool(name: str) -> dict[str, object]:
    properties = {
        KEYS[0]: {"type": "string", "description": "A."},
        KEYS[1]: {"type": "integer", "description": "B."},
    }
    parameters = {"type": "object", "properties": properties, "required": []}
    return {
        "type": "function",
        "function": {"name": name, "description": "C.", "parameters": parameters},
    }


def _call(style: ToolStyle, number: int, arguments: Mapping[str, object]) -> dict[str, object]:
    functions = f"functions.{NAMES[number]}:{number}"
    given: object = json.dumps(arguments) if style.arguments_as_text else arguments
    return {
        "id": functions if style.ids is Ids.FUNCTIONS else IDS[number],
        "type": "function",
        "function": {"name": NAMES[number], "arguments": given},
    }
