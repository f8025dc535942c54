"""Calls of tools, read from what a model writes while it arrives.

Where a grammar makes sure that a call is one, its events come at once. Where none does, they come
when the call is whole, so that what turns out to be no call can still be an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from localmoe.chat.calls.call import BodyReader, Call, Tools
from localmoe.chat.calls.format import Body, CallFormat
from localmoe.chat.calls.gemma_body import GemmaReader
from localmoe.chat.calls.json_bodies import ChannelReader, KeyedReader, NamedReader, ObjectReader
from localmoe.chat.calls.python_body import PythonReader
from localmoe.chat.calls.tagged_body import TaggedReader
from localmoe.chat.calls.text import NoCall, Pattern, Waiting
from localmoe.chat.events import ToolCallEvent


class CallReader:
    """Reads the calls of one answer.

    ``mark`` puts stand-ins for the special tokens in a mark, ``spelled`` takes them out of text.
    ``hold``: no event before the call is whole.
    """

    def __init__(
        self,
        format_: CallFormat,
        tools: Tools,
        mark: Callable[[str], str],
        spelled: Callable[[str], str],
        *,
        hold: bool,
    ) -> None:
        self._format = format_
        self._call = Call(tools, spelled, hold=hold)
        self._hold = hold
        self._parser: Iterator[None] = iter(())
        self._whole = 0  # characters up to the end of the last call that was one
        self._start, self._end = Pattern(mark(format_.start)), _words(mark(format_.end))
        self._call_start = Pattern(mark(format_.call_start))
        self._call_end = _words(mark(format_.call_end))
        between = mark(format_.between)
        self._between = Pattern(between if len(between.strip()) > 1 else "")
        self.lead = mark(format_.lead)
        """What the prompt has written of the call that an answer begins with."""
        self._short_start = Pattern(_short(mark(format_.call_start)))
        self._body = self._body_reader(mark)

    def _body_reader(self, mark: Callable[[str], str]) -> BodyReader:
        match self._format.body:
            case Body.OBJECT:
                return ObjectReader(self._format, unmarked=bool(self.opening))
            case Body.KEYED:
                return KeyedReader()
            case Body.NAMED:
                return NamedReader(self._format, mark)
            case Body.TAGGED:
                return TaggedReader(self._format, mark, self._call_end)
            case Body.PYTHON:
                return PythonReader()
            case Body.GEMMA:
                return GemmaReader(mark)
            case Body.CHANNEL:
                return ChannelReader(mark)

    @property
    def triggers(self) -> list[Pattern]:
        """Marks by which a call is known to begin, wherever they stand."""
        starts = (self._start, self._call_start, self._short_start)
        return [mark for mark in starts if len(mark.text.strip()) > 2 or mark.is_token]

    @property
    def opening(self) -> str:
        """What an answer begins with that is a call, where calls have no mark."""
        if (self.triggers and not self._format.bare) or self._format.body is Body.CHANNEL:
            return ""
        return "[" if self._format.in_list or self._format.body is Body.PYTHON else "{"

    def begin(self, name: str = "", *, led: bool = False) -> None:
        """A call begins with the next text; ``name`` is known already (CHANNEL).

        ``led``: the prompt has begun it.
        """
        self._call.restart(hold=self._hold)
        self._call.text.text = self.lead if led else ""
        self._whole = len(self._call.text.text)
        self._parser = self._channel(name) if self._format.body is Body.CHANNEL else self._all()

    def feed(self, text: str) -> tuple[list[ToolCallEvent], str | None]:
        """Events, and once the calls have ended the text after them. Raises NoCall."""
        self._call.text.text += text
        return self._go_on()

    def finish(self, *, cut: bool) -> tuple[list[ToolCallEvent], str | None]:
        """No more text comes; ``cut``: the model would have written more. Raises NoCall."""
        self._call.text.final, self._call.text.cut = True, cut
        return self._go_on()

    @property
    def unread(self) -> str:
        """The text that was no call, from the first one that was none.

        Not what was a call until it was cut off, or would have become one by its grammar: that it
        is missing is told by the answer's end.
        """
        cut_off = self._call.text.cut and (self._call.begun or not self._hold)
        return "" if cut_off else self._call.text.text[self._whole :]

    def taken(self) -> list[ToolCallEvent]:
        """Events that were made before a NoCall."""
        return self._call.broken()

    def _go_on(self) -> tuple[list[ToolCallEvent], str | None]:
        try:
            next(self._parser)
            rest = None
        except StopIteration:
            rest = self._call.text.text[self._call.text.at :]
        return self._call.made(), rest

    def _all(self) -> Waiting[None]:
        """Call after call, up to their end."""
        text, format_ = self._call.text, self._format
        yield from text.skip_space()
        started = self._start and (yield from text.meets(self._start))[0]
        if self._start and not started:
            self._call.hold = True  # no grammar knows that it is a call
        if format_.bare and not started:
            yield from text.skip_space()
            text.skip("[")
        if format_.in_list:
            yield from self._list()
        else:
            while True:
                yield from self._one()
                if not (yield from self._another()):
                    break
        yield from self._ending()

    def _list(self) -> Waiting[None]:
        text = self._call.text
        if (yield from text.skip_space()) == "{":  # one call alone
            yield from self._one()
            return
        text.at += 1
        while (yield from text.skip_space()) == "{":
            yield from self._one()
            if (yield from text.skip_space()) == ",":
                text.at += 1
        if (yield from text.peek()) != "]" and not (text.final and not text.cut):
            raise NoCall
        text.skip("]")

    def _another(self) -> Waiting[bool]:
        """Whether one more call follows."""
        text = self._call.text
        at = text.at
        char = yield from text.skip_space()
        if self._format.body is Body.PYTHON:
            text.skip(",")
            return char == "," or (yield from self._starts())
        if self._between and (yield from text.stands(self._between)):
            yield from text.demand(self._between)
        if (yield from self._starts()):
            return True
        if not self._call_start and char == "{":
            return True
        text.at = at
        return False

    def _starts(self) -> Waiting[bool]:
        """Whether the mark of a call stands here; a mark of all calls is read."""
        text = self._call.text
        if self._start and (yield from text.stands(self._start)):
            yield from text.demand(self._start)
            return True
        for mark in (self._call_start, self._short_start):
            if mark and (yield from text.stands(mark)):
                return True
        return False

    def _ending(self) -> Waiting[None]:
        """Read the mark after all calls, as far as it is there."""
        text = self._call.text
        if self._format.bare and (yield from text.skip_space()) == "]":
            text.at += 1
        for mark in self._end:
            if (yield from text.stands(mark)):
                yield from text.demand(mark)
            elif text.final and mark.match(text.text, text.at) == (-1, ""):
                text.at = len(text.text)  # the beginning of it

    def _one(self) -> Waiting[None]:
        text = self._call.text
        if self._format.body not in (Body.OBJECT, Body.KEYED) or self._call_start:
            if self._call_start and not (yield from text.stands(self._call_start)):
                self._call.hold = True
                yield from text.demand(self._short_start)
            else:
                yield from text.demand(self._call_start)
        yield from self._body.read(self._call)
        yield from self._call_ending()

    def _call_ending(self) -> Waiting[None]:
        """The mark after a call; where the text ends by itself, it may be missing."""
        text = self._call.text
        for number, mark in enumerate(self._call_end):
            if (yield from text.stands(mark)):
                yield from text.demand(mark)
            elif number == 0 and not text.ends_here:
                raise NoCall
        self._call.end()
        self._whole = text.at

    def _channel(self, name: str) -> Waiting[None]:
        """gpt-oss: a message to a tool, whose header has been read."""
        self._call.begin(name)
        yield from self._body.read(self._call)
        yield from self._call_ending()


def _short(mark: str) -> str:
    """What a call may begin with as well: the token alone, or the last word of its mark."""
    if "\ud800" <= mark[:1] <= "\udfff" and "\0" not in mark:
        words = mark.split()
        return mark[0] if len(words) == 1 else words[-1]
    last = mark.split()[-1:]
    return last[0] if last and len(last[0]) > 3 else ""


def _words(mark: str) -> list[Pattern]:
    """The words of an end mark: models leave the later ones out."""
    return [Pattern(word) for word in mark.split()]
