"""What ``run`` shows of one turn: text for people and pipes, a document, or events as lines."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from localmoe.app import documents
from localmoe.app.documents import Json
from localmoe.app.model import LoadedModel
from localmoe.chat.conversation import AnswerDelta, ChatEvent, ReasoningDelta, TurnDone
from localmoe.cli.loaded import figures
from localmoe.cli.output import Output
from localmoe.engine.events import Loaded, PrefillProgress
from localmoe.terminal.live_line import LiveLine
from localmoe.text import Sanitizer


class Printer:
    """Shows the events of one turn. A context manager: the end of it tidies the terminal."""

    def __init__(
        self,
        model: LoadedModel,
        loaded: Loaded,
        output: Output,
        more: Json | None = None,
        structured: bool = False,
    ) -> None:
        """``more`` goes into the document; ``structured``: the answer is one of JSON."""
        self.model = model
        self.loaded = loaded
        self.output = output
        self.more = more or {}
        self.structured = structured
        self.done: TurnDone | None = None

    def show(self, event: ChatEvent) -> None:
        if isinstance(event, TurnDone):
            self.done = event

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class TextPrinter(Printer):
    """For people and pipes: the answer as it arrives."""

    def __init__(
        self,
        model: LoadedModel,
        loaded: Loaded,
        output: Output,
        more: Json | None = None,
        structured: bool = False,
    ) -> None:
        super().__init__(model, loaded, output, more, structured)
        self._answer = Sanitizer()
        self._reasoning = Sanitizer()
        self._thinking = False
        self._last = "\n"
        self._line = LiveLine(output.stderr)

    def show(self, event: ChatEvent) -> None:
        super().show(event)
        if isinstance(event, PrefillProgress):
            if not self.output.quiet and event.done < event.total:
                self._line.show(f"reading the prompt · {event.done}/{event.total} tokens")
            return
        self._line.clear()
        if isinstance(event, ReasoningDelta):
            if not self.output.quiet:
                self._thinking = True
                self._whisper(self._reasoning.feed(event.text))
            return
        self._end_thinking()
        if isinstance(event, AnswerDelta):
            self._say(self._answer.feed(event.text))
        else:
            self._say(self._answer.flush())
            self._end_line()
            self._finish(event)

    def __exit__(self, *_: object) -> None:
        self._line.clear()
        with contextlib.suppress(OSError):  # the reader is gone, and that is told elsewhere
            self._end_line()

    def _say(self, text: str) -> None:
        if text:
            stream = self.output.stdout.file
            stream.write(text)
            stream.flush()
            self._last = text[-1]

    def _end_line(self) -> None:
        if self._last != "\n":
            self._say("\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            self._whisper(self._reasoning.flush() + "\n")

    def _whisper(self, text: str) -> None:
        """Dimmed, on stderr. Nobody to read it is no reason to lose an answer."""
        with contextlib.suppress(OSError):
            self.output.stderr.out(text, style="dim", end="", highlight=False)

    def _finish(self, done: TurnDone) -> None:
        why = done.why_it_ended(self.loaded.context)
        if why:
            self.output.note(why)
        read = f"{done.usage.prompt_tokens} tokens read"
        self.output.note(" · ".join([read, *figures(done)]))


class DocumentPrinter(Printer):
    """``--json``: one document at the end."""

    def show(self, event: ChatEvent) -> None:
        super().show(event)
        if isinstance(event, TurnDone):
            self.output.json(self._head | self._document(event))

    @property
    def _head(self) -> Json:
        return {}

    def _document(self, done: TurnDone) -> Json:
        up = self.model
        plan = documents.plan_document(up.model, up.machine, up.plan, up.forecast)
        document = documents.run_document(up.model.name, done, self.loaded, up.plan, plan)
        if self.structured:
            document["data"] = parsed(done)
        return document | self.more


class EventPrinter(DocumentPrinter):
    """``--jsonl``: every event as it happens, the document last."""

    @property
    def _head(self) -> Json:
        return {"event": "done"}

    def show(self, event: ChatEvent) -> None:
        names = {PrefillProgress: "prefill", ReasoningDelta: "reasoning", AnswerDelta: "answer"}
        name = names.get(type(event))
        if name:
            self.output.json({"event": name, **dataclasses.asdict(event)})
        super().show(event)


def printer_for(output: Output) -> type[Printer]:
    """The one that the options ask for."""
    return EventPrinter if output.lines else DocumentPrinter if output.as_json else TextPrinter


def parsed(done: TurnDone) -> object:
    """An answer that is JSON, read; None while it is not whole."""
    try:
        return json.loads(done.answer)
    except ValueError:
        return None
