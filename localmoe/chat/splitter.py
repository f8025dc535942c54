"""Tells what a model thinks from what it answers and the tools it calls, while its tokens arrive.

Marks that are special tokens are met as such: text that only spells them is text. Marks that the
vocabulary has no token for are met by their spelling. What comes out does not depend on how the
answer was cut into tokens, and what has come out is never taken back: text that may be the
beginning of a mark is held until that is decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from localmoe.chat.answer_format import AnswerFormat
from localmoe.chat.events import ToolCallEvent
from localmoe.chat.marks import FormatMarks, Mark, SplitSpecials

if TYPE_CHECKING:  # imported late: see answering.py
    from localmoe.chat.calls.call import Tools
    from localmoe.chat.calls.format import CallFormat
    from localmoe.chat.calls.reader import CallReader
    from localmoe.chat.calls.text import Pattern

SAID_ALOUD = "commentary"  # a message of this name, for no tool, is for the reader (gpt-oss)
MOST_HEADER = 200  # characters of a header; an answer without one waits for as many


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    text: str


Piece = Reasoning | Answer | ToolCallEvent


@dataclass(frozen=True, slots=True)
class Calling:
    """That there are calls: how they are written, and the schema of each tool's arguments.

    ``hold``: no event of a call before it is whole, for want of a grammar.
    """

    format: CallFormat
    tools: Tools
    hold: bool = False


_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


def recipient(header: str) -> str:
    """The tool that a message is for, by its header (gpt-oss); "" where it is for none."""
    found = _RECIPIENT.search(header)
    return found[1] if found else ""


class State(Enum):
    BEGIN = auto()  # nothing but blank space so far
    THINKING = auto()
    BETWEEN = auto()  # thinking has ended, the answer has not begun
    ANSWER = auto()
    UNDECIDED = auto()  # text that is thinking if the end of thinking comes, else the answer
    AFTER = auto()  # the mark that ends an answer has come
    CALLS = auto()


class Splitter:
    """Splits one answer. Blank space around thinking belongs to neither part.

    ``split_specials`` tells which parts of a mark are special tokens. ``constrained``: the answer
    follows a grammar; a control token in it then stands for the text that it spells.
    """

    def __init__(
        self,
        format_: AnswerFormat,
        split_specials: SplitSpecials,
        *,
        constrained: bool = False,
        calling: Calling | None = None,
    ) -> None:
        self._constrained = constrained
        more = calling.format.marks if calling else ()
        vocabulary = FormatMarks(format_, split_specials, constrained, more)
        self._specials = vocabulary.stand_ins
        self._spelled = vocabulary.spelled
        known = [(vocabulary.mark(m.start), vocabulary.mark(m.end)) for m in format_.thinking]
        self._starts = [(start, end) for start, end in known if start and end]
        self._ends = [end for _, end in known if end] if format_.is_open else []
        self._alone = [] if format_.is_open else list(vocabulary.ends_alone(format_))
        self._answer_start = vocabulary.mark(format_.answer_start)
        # A grammar ends its answer by itself.
        self._answer_end = None if constrained else vocabulary.end_mark(format_.answer_end)
        self._header_end = self._find_header_end()
        self._state = State.THINKING if format_.is_open else State.BEGIN
        self._held = ""
        self._blank = True  # of the thinking so far
        self._space = ""  # blank space in the thinking that waits for what follows it
        self._thought = False  # some thinking has come
        self._wrapped = not format_.answer_marks_optional  # whether the answer's marks count
        self._scanned = 0  # of the text that waits for the end of thinking
        self._calls: CallReader | None = None
        self._triggers: list[Pattern] = []
        self._constrains_calls = calling is not None and not calling.hold
        if calling:
            from localmoe.chat.calls.reader import CallReader

            self._calls = CallReader(
                calling.format,
                calling.tools,
                vocabulary.with_stand_ins,
                vocabulary.as_text,
                hold=calling.hold,
            )
            self._triggers = self._calls.triggers
        self._before = ""  # blank space before a call, which counts if it turns out to be none
        self._cut = False
        self._aloud = False  # what comes in place of thinking is for the reader

    def feed(self, text: str, *, special: bool = False, control: bool = False) -> Iterator[Piece]:
        """The text of one token; for what ``special`` and ``control`` say see ``Token``."""
        if special and text in self._specials:
            text = self._specials[text]
        elif control and not self._takes_control:
            return
        self._held += text
        yield from self._run(final=False)

    @property
    def _takes_control(self) -> bool:
        """Whether a control token is the text that it spells: a grammar has taken it for that."""
        if self._state is State.CALLS:
            return True
        return self._constrained and self._state is not State.THINKING

    def finish(self, *, cut: bool = False) -> Iterator[Piece]:
        """What was held back; ``cut``: the model had more to say. The splitter is spent then."""
        self._cut = cut
        yield from self._run(final=True)

    def _find_header_end(self) -> str:
        """The token that ends the header of every message, where messages have headers.

        Thinking and answer then begin in the same way, but for a name: ``…analysis<|message|>``
        and ``…final<|message|>``. A message under any other name is not for the reader.
        """
        if len(self._starts) != 1 or self._answer_start is None:
            return ""
        start, answer = self._starts[0][0].chunks[-1], self._answer_start.chunks[-1]
        last = start[-1]
        named = len(start.strip(last)) > 0 and len(answer.strip(last)) > 0
        return last if last == answer[-1] and last in self._spelled and named else ""

    def _run(self, *, final: bool) -> Iterator[Piece]:
        """Go through the states as far as what is held decides them."""
        while True:
            before = self._state, self._held
            yield from self._step(final)
            if (self._state, self._held) == before or not (self._held or final):
                break

    def _step(self, final: bool) -> Iterator[Piece]:
        match self._state:
            case State.BEGIN | State.BETWEEN:
                yield from self._begin(final)
            case State.THINKING:
                yield from self._think(final)
            case State.UNDECIDED:
                yield from self._wait(final)
            case State.ANSWER:
                yield from self._answer(final)
            case State.AFTER:
                at, end = self._find_call(self._held, final)
                self._held = self._held[at:]
                if end >= 0:
                    self._begin_calls("")
            case State.CALLS:
                yield from self._read_calls(final)

    def _begin_calls(self, before: str, name: str = "", *, led: bool = False) -> None:
        assert self._calls is not None
        self._state, self._before = State.CALLS, before
        self._calls.begin(name, led=led)

    def _read_calls(self, final: bool) -> Iterator[Piece]:
        from localmoe.chat.calls.text import NoCall

        calls = self._calls
        assert calls is not None
        text, self._held = self._held, ""
        try:
            made, rest = calls.feed(text)
            if final and rest is None:
                yield from made
                made, rest = calls.finish(cut=self._cut)
        except NoCall:
            yield from calls.taken()
            raw = self._before + calls.unread
            shown = len(self._before) + 1
            self._state = State.ANSWER
            if calls.unread:
                yield from self._say(raw[:shown])
            self._held = raw[shown:]
            return
        yield from made
        if made:
            self._before = ""
        if rest is not None:
            self._held, self._state = rest, State.BETWEEN

    def _find_call(self, text: str, final: bool) -> tuple[int, int]:
        """Where a call begins in ``text``, and where its mark ends; as ``_find`` does."""
        firsts = {mark.first for mark in self._triggers}
        for begin in range(len(text) if firsts else 0):
            if text[begin] not in firsts:
                continue
            found = [mark.match(text, begin) for mark in self._triggers]
            ends = [end for end, _ in filter(None, found)]
            if any(end > 0 for end in ends):
                return begin, max(ends)
            if ends and self._cut and self._constrains_calls and text[begin] in self._spelled:
                return begin, len(text)  # after that token the grammar wants a call
            if ends and not final:
                return begin, -1
        return len(text), -1

    def _begin(self, final: bool) -> Iterator[Piece]:
        """Before the answer: does thinking begin here, a mark of the answer, or the answer?"""
        text = self._held
        at = len(text) - len(text.lstrip())
        if at == len(text):
            if final and self._state is State.BEGIN:
                yield from self._say(text)
            return
        starts: list[tuple[Mark, Mark | None]] = list(self._starts)
        if self._answer_start and (self._wrapped or self._state is State.BETWEEN):
            starts.append((self._answer_start, None))
        ends = [(start.match(text, at), end) for start, end in starts]
        if not final and any(where == -1 for where, _ in ends):
            return
        met = [(where, end) for where, end in ends if where is not None and where > 0]
        if met:
            where, end = max(met, key=lambda found: found[0])
            self._held = text[where:]
            if end is not None:
                self._aloud = False
                self._begin_thinking(end)
            else:
                self._state, self._wrapped = State.BETWEEN, True
                self._starts, self._answer_start, self._header_end = [], None, ""
            return
        opens = self._calls is not None and text[at] == self._calls.opening
        led = self._calls is not None and bool(self._calls.lead) and self._state is State.BEGIN
        begin, met_call = self._find_call(text[at:], final)
        if (begin == 0 and met_call >= 0) or opens or led:
            self._held = text[at:]
            before = text[:at] if self._state is State.BEGIN else ""
            self._begin_calls(before, led=led and not (begin == 0 and met_call >= 0))
            return
        if begin == 0 and not final:
            return
        if self._header_end:
            line, more, _ = text[at : at + MOST_HEADER].partition("\n")
            header, met_end, _ = line.partition(self._header_end)
            if met_end:
                self._held = text[at + len(header) + 1 :]
                if self._calls is not None and (name := recipient(header)):
                    self._begin_calls("", name)
                    return
                self._aloud = header.strip().endswith(SAID_ALOUD)
                self._begin_thinking(self._starts[0][1])
                return
            if not final and not more and len(line) < MOST_HEADER:
                return
        if self._state is State.BEGIN:
            self._state = State.UNDECIDED if self._alone else State.ANSWER
        else:
            self._state, self._held = State.ANSWER, text[at:]

    def _begin_thinking(self, end: Mark) -> None:
        self._state, self._ends, self._blank = State.THINKING, [end], True
        self._space = "\n\n" if self._thought else ""

    def _think(self, final: bool) -> Iterator[Piece]:
        text = self._held
        if self._blank:  # a model may write the start once more that the prompt ends with
            at = len(text) - len(text.lstrip())
            ends = [start.match(text, at) for start, _ in self._starts] if at < len(text) else []
            if not final and -1 in ends:
                return
            if any(end is not None and end > 0 for end in ends):
                self._held = text[max(end for end in ends if end is not None) :]
                return
        at, end = self._find(self._ends, text, 0, final)
        yield from self._reason(text[:at])
        self._held = text[at:]
        if end >= 0:
            self._held = text[end:]
            self._state, self._space = State.BETWEEN, ""

    def _wait(self, final: bool) -> Iterator[Piece]:
        text = self._held
        at, end = self._find(self._alone, text, self._scanned, final)
        if end >= 0:
            self._blank = True
            yield from self._reason(text[:at])
            self._held, self._state = text[end:], State.BETWEEN
        elif final:
            self._state = State.ANSWER
        self._scanned = at

    def _answer(self, final: bool) -> Iterator[Piece]:
        call, met = self._find_call(self._held, final)
        whole, text = self._held, self._held[:call]
        yield from self._answer_text(text, final or met >= 0)
        if self._state is State.ANSWER and call < len(whole):
            self._held += whole[call:]
            if met >= 0:
                self._begin_calls("")

    def _answer_text(self, text: str, final: bool) -> Iterator[Piece]:
        """Say ``text`` up to the mark that ends the answer; what may be that mark stays held."""
        mark = self._answer_end
        if mark is None or not self._wrapped:
            yield from self._say(text)
            return
        if mark.chunks[0][0] in self._spelled:
            whole = self._held
            before, ended, _ = text.partition(mark.chunks[0][0])
            yield from self._say(before)
            if ended:
                self._state = State.AFTER
                self._held = whole[len(before) + 1 :]
            return
        at, end = self._find([mark], text, 0, final)
        if end >= 0 and text[end:].strip():
            at, end = at + 1, -1  # text follows: it is no end
        yield from self._say(text[:at])
        self._held = "" if final and end >= 0 else text[at:]

    def _find(self, marks: Sequence[Mark], text: str, at: int, final: bool) -> tuple[int, int]:
        """Where the first of ``marks`` begins and ends in ``text`` from ``at``.

        The end is -1 where none is whole: then one may begin there, or it is the end of the text.
        """
        firsts = {mark.chunks[0][0] for mark in marks}
        for begin in range(at, len(text)):
            if text[begin] not in firsts:
                continue
            ends = [end for mark in marks if (end := mark.match(text, begin)) is not None]
            if -1 in ends and not final:
                return begin, -1
            if ends and max(ends) > 0:
                return begin, max(ends)
        return len(text), -1

    def _reason(self, text: str) -> Iterator[Piece]:
        text = self._readable(text)
        if self._aloud:
            if text:
                yield Answer(text)
            return
        if self._blank:
            text = text.lstrip()
        if not text:
            return
        self._blank, self._thought = False, True
        body = self._space + text
        kept = body.rstrip()
        self._space = body[len(kept) :]
        if kept:
            yield Reasoning(kept)

    def _say(self, text: str) -> Iterator[Answer]:
        self._held = ""
        if text := self._readable(text):
            yield Answer(text)

    def _readable(self, text: str) -> str:
        """Special tokens that turned out to be no marks: as text, or left out."""
        for stand_in, spelled in self._spelled.items():
            if stand_in in text:
                text = text.replace(stand_in, spelled)
        return text
