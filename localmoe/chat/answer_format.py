"""How a model marks its thinking and its answer, found out from its chat template.

A template shows how an earlier answer was written: rendered with thinking and without, with and
without the beginning of a next answer, what differs between the texts are the marks. Only where a
template shows nothing, a short list of marks that are in use stands in. Pure: ``Render`` does the
rendering.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Arguments = Mapping[str, object]  # extra variables for a template
Probe = tuple[Sequence[Mapping[str, object]], Arguments, bool]
"""Messages, arguments, and whether the beginning of the next answer is asked for."""
Render = Callable[[Sequence[Probe]], Sequence[str | None]]
"""What the template makes of each probe; None where it refuses."""

# Stand for the texts of a conversation: nothing that a template does to a text changes digits.
QUESTION, ANSWER = "4850731", "9172640"
THOUGHTS = {  # key of a message → the thinking under it
    "reasoning_content": "30518240",
    "reasoning": "30518241",
    "thinking": "30518242",
    "thought": "30518243",
}
PART = "30518244"  # thinking as a part of the content
MOST_MARK = 80  # characters; a longer text that a prompt ends with is no mark
MOST_LITERALS = 200
BATCH = 20  # probes at once: each time has the time limit of one prompt

_T = TypeVar("_T")
_TAG = re.compile(r"<[^<>\s]{1,80}>|\[[^\[\]<>\s]{1,80}\]")
_SPACED_TAG = r"<[^<>\s]{1,40} [^<>\s=]{1,40}>"  # <｜DSML｜ calls>
ATOM = re.compile(rf"{_TAG.pattern}|{_SPACED_TAG}|\w+|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Marks:
    """Thinking stands between ``start`` and ``end``, before the answer.

    ``start`` is "" where only the end is known. ``end_alone``: the end is known to come without
    a start, and then all text before it is thinking.
    """

    start: str
    end: str
    end_alone: bool = False


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a model writes around its thinking and its answer, as the template writes it."""

    thinking: tuple[Marks, ...] = ()  # one, or where the template does not tell, all in use
    is_open: bool = False  # the prompt ends inside the thinking of the first of them
    answer_start: str = ""
    answer_end: str = ""
    answer_marks_optional: bool = False  # they count after thinking only, not in a bare answer
    told: bool = False  # by the template; else it is from the list
    key: str = "reasoning_content"  # of a message, under which the template looks for thinking
    in_parts: bool = False  # the template wants it as a part of the content


KNOWN = (
    Marks("<think>", "</think>", end_alone=True),
    Marks("<thinking>", "</thinking>"),
    Marks("<reasoning>", "</reasoning>"),
    Marks("<thought>", "</thought>"),
)
"""Looked for at the start of every answer whose template shows nothing."""
KNOWN_IF_SPELLED = (
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
"""These only where the template has their start in it."""
KNOWN_ANSWERS = (("<response>", "</response>"),)
"""Marks around an answer, where the template has both in it."""


def find_format(
    render: Render,
    source: str,
    arguments: Arguments,
    on_and_off: Sequence[Arguments] = (),
    literals: Iterable[str] = (),
) -> AnswerFormat:
    """The format of answers to the prompts that ``render`` makes with ``arguments``.

    ``on_and_off`` are the arguments that switch thinking on and off, if there are any: where one
    way shows nothing, another may. ``literals`` are the texts in the template's code, tried as
    marks at which it cuts earlier answers.
    """
    here = _View.of(render, arguments)
    if here is None:
        return _from_list(source, None)
    marks = here.marks()
    if marks is None or not marks.start:
        views = [found for other in on_and_off if (found := _View.of(render, other))]
        others = [shown for view in views if (shown := view.marks())]
        whole = _first(other for other in others if other.start)
        marks = whole or marks or _first(others) or _of_switch(views)
        view = _first(view for view in views if view.before is not None) or here
        here = replace(here, key=here.key or view.key, in_parts=here.in_parts or view.in_parts)
    if marks is None and (end := _cut_at(render, arguments, literals)):
        start = here.opened or _mirrored(end)
        marks = Marks(start, end, end_alone=not start)
    if marks is None and here.opened and here.lead_in:
        marks = Marks(here.opened, here.lead_in)
    if marks is None and (end := _closing(here.opened)):
        marks = Marks(here.opened, end)
    if marks is None:
        return _from_list(source, here)
    marks = replace(marks, start=marks.start or _mirrored(marks.end))
    return AnswerFormat(
        (marks,),
        is_open=here.is_open(marks),
        answer_start=here.answer_start(marks),
        answer_end=here.after.strip(),
        told=True,
        key=here.key or "reasoning_content",
        in_parts=here.in_parts,
    )


@dataclass(frozen=True, slots=True)
class _View:
    """What a template writes between question and answer, each text from the question on."""

    prompt: str  # to the end of the prompt for a next answer
    lead: str  # to an earlier answer without thinking
    after: str  # from that answer on
    before: str | None = None  # to the thinking of an earlier answer; None where it is not shown
    between: str = ""  # from that thinking to the answer
    key: str | None = None  # of the message, for the thinking that is shown
    in_parts: bool = False

    @classmethod
    def of(cls, render: Render, arguments: Arguments) -> _View | None:
        """None where the template refuses such a conversation."""
        ask = {"role": "user", "content": QUESTION}
        part = [{"type": "thinking", "thinking": PART}, {"type": "text", "text": ANSWER}]
        answers: list[Mapping[str, object]] = [
            {"role": "assistant", "content": ANSWER},
            *({"role": "assistant", "content": ANSWER, k: text} for k, text in THOUGHTS.items()),
            {"role": "assistant", "content": part},
        ]
        last = [([ask, answer], arguments, False) for answer in answers]
        earlier = [([ask, answer, ask], arguments, False) for answer in answers]
        prompt, *shown = render([([ask], arguments, True), *last, *earlier])
        texts = [a or b for a, b in zip(shown[: len(last)], shown[len(last) :], strict=True)]
        plain = _parts(texts[0], ANSWER)
        if prompt is None or QUESTION not in prompt or plain is None:
            return None
        lead, after = plain
        view = cls(prompt.partition(QUESTION)[2], lead, after)
        for key, text in zip((*THOUGHTS, None), texts[1:], strict=True):
            found = _parts(text, THOUGHTS[key] if key else PART, ANSWER)
            if found and found[1][:1] not in ("'", '"'):  # else it has only printed the list
                before, between, _ = found
                return replace(view, before=before, between=between, key=key, in_parts=not key)
        return view

    @property
    def _common(self) -> int:
        """Characters that the prompt and what stands before an earlier answer share."""
        begin = self.prompt.rstrip()
        return len(begin) if self.lead.startswith(begin) else shared(self.prompt, self.lead)

    @property
    def opened(self) -> str:
        """What the prompt ends with and earlier answers do not begin with."""
        return _short(self.prompt[self._common :])

    @property
    def lead_in(self) -> str:
        """What stands before an earlier answer, and a model has to write itself."""
        too_long = len(self.prompt) - self._common > MOST_MARK  # another kind of text altogether
        return "" if too_long else _short(self.lead[self._common :])

    def marks(self) -> Marks | None:
        """The marks of thinking, where this view shows them."""
        if self.before is None:
            pair = _pair(self.opened) or _pair(self.lead_in)
            return Marks(*pair) if pair else None
        end, lead_in = self.between.strip(), self.lead_in.strip()
        if lead_in and end != lead_in and end.endswith(lead_in):
            end = end.removesuffix(lead_in).rstrip()
        begin = self.prompt.rstrip()
        lead = len(begin) if self.before.startswith(begin) else shared(self.prompt, self.before)
        start = _short(self.before[lead:]) or self.opened.removesuffix(end).rstrip()
        return Marks(start, end) if end else None

    def is_open(self, marks: Marks) -> bool:
        """Whether the prompt ends inside the thinking."""
        begin = self.prompt.rstrip()
        if begin.endswith(marks.end):
            return False
        if self.before is not None and self.before.rstrip() == begin != self.lead.rstrip():
            return True
        return bool(marks.start) and begin.endswith(marks.start)

    def answer_start(self, marks: Marks | None) -> str:
        """What a model writes between its thinking, if any, and its answer."""
        rest = self.lead_in
        for mark in (marks.start, marks.end) if marks else ():
            rest = rest.removeprefix(mark).lstrip()
        return rest


def _parts(text: str | None, *marks: str) -> list[str] | None:
    """What stands between the question and each of the marks, and after the last of them."""
    if text is None:
        return None
    rest = text.partition(QUESTION)[2]
    found: list[str] = []
    for mark in marks:
        part, met, rest = rest.partition(mark)
        if not met:
            return None
        found.append(part)
    return [*found, rest]


def shared(left: str, right: str) -> int:
    """Length of the beginning that two texts share, in whole words and tags."""
    length = 0
    for a, b in zip(ATOM.findall(left), ATOM.findall(right), strict=False):
        if a != b:
            break
        length += len(a)
    return length


def _short(text: str) -> str:
    """A mark without the blank space around it, or "" for what is too long to be one.

    A line break behind a mark that ends with a letter is a part of it: ``all`` is no beginning of
    ``allowed``.
    """
    mark = text.strip()
    if len(mark) > MOST_MARK:
        return ""
    return text.lstrip() if mark[-1:].isalnum() else mark


def _pair(text: str) -> tuple[str, str] | None:
    """Start and end of a thinking that is written down empty: two tags, or two marked words."""
    parts = _TAG.findall(text)
    if "".join(parts) != text:
        parts = text.split()
    if len(parts) != 2 or any(part.isalnum() for part in parts):
        return None
    return parts[0], parts[1]


def _of_switch(views: Sequence[_View]) -> Marks | None:
    """From two prompts, with thinking on and off: what the second one has more is the marks."""
    if len(views) != 2 or views[0].prompt == views[1].prompt:
        return None
    on, off = (view.prompt for view in views)
    lead = len(on.rstrip()) if off.startswith(on.rstrip()) else shared(on, off)
    start, more = _short(on[lead:]), _short(off[lead:])
    if pair := _pair(more):
        return Marks(*pair)
    start = start or views[0].opened
    return Marks(start, more) if start and more else None


def _cut_at(render: Render, arguments: Arguments, literals: Iterable[str]) -> str:
    """The mark up to which a template drops the text of earlier answers, or ""."""
    tried = sorted((text for text in literals if len(text) <= MOST_MARK), key=len)[:MOST_LITERALS]
    ask = {"role": "user", "content": QUESTION}
    for follow, first in itertools.product(([], [ask]), range(0, len(tried), BATCH)):
        marks = tried[first : first + BATCH]
        answers = [{"role": "assistant", "content": f"{PART}{mark}{ANSWER}"} for mark in marks]
        probes = [([ask, answer, *follow], arguments, False) for answer in answers]
        for mark, text in zip(marks, render(probes), strict=True):
            if text is not None and ANSWER in text and PART not in text:
                return mark
    return ""


def _mirrored(end: str) -> str:
    """``<think>`` for ``</think>``, ``[THINK]`` for ``[/THINK]``; "" for other marks."""
    found = re.fullmatch(r"([<\[])/(\S+[>\]])", end)
    return found[1] + found[2] if found else ""


def _closing(start: str) -> str:
    """The opposite of ``_mirrored``."""
    found = re.fullmatch(r"([<\[])([\w:.-]+[>\]])", start)
    return f"{found[1]}/{found[2]}" if found else ""


def _from_list(source: str, view: _View | None) -> AnswerFormat:
    """Where the template does not tell: all marks in use that it does not rule out."""
    spelled = tuple(marks for marks in KNOWN_IF_SPELLED if marks.start in source)
    thinking = (*spelled, *KNOWN)
    opened = tuple(marks for marks in thinking if view and view.is_open(marks))
    format_ = AnswerFormat(opened or thinking, is_open=bool(opened))
    for start, end in KNOWN_ANSWERS:
        if start in source and end in source:
            return replace(format_, answer_start=start, answer_end=end, answer_marks_optional=True)
    if view and view.lead_in:
        return replace(format_, answer_start=view.lead_in, answer_end=view.after.strip())
    return format_


def _first(found: Iterable[_T | None]) -> _T | None:
    return next((item for item in found if item), None)
