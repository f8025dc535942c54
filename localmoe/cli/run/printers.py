"""What ``run`` shows of one turn: text for people and pipes, a document, or events as lines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from localmoe.app.model import LoadedModel
from localmoe.chat.events import (
    AnswerDelta,
    ChatEvent,
    ReasoningDelta,
    ToolCallBegin,
    ToolCallDelta,
    ToolCallEnd,
    TurnDone,
)
from localmoe.cli.loaded import figures
from localmoe.cli.output import Output
from localmoe.engine.events import Loaded, PrefillProgress
from localmoe.planning.context import trained_context
from localmoe.terminal.answers import answer_writer, reasoning_writer
from localmoe.terminal.live_line import LiveLine
from localmoe.terminal.plain_writer import PlainWriter
from localmoe.text import counted


@dataclass
class Printer:
    """Shows the events of one turn. A context manager: its end tidies the terminal.

    ``more`` is added to the JSON document; ``structured``: the answer follows a JSON schema.
    """

    model: LoadedModel
    loaded: Loaded
    output: Output
    more: dict[str, object] = field(default_factory=dict)
    structured: bool = False
    done: TurnDone | None = field(default=None, init=False)

    def show(self, event: ChatEvent) -> None:
        if isinstance(event, TurnDone):
            self.done = event

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@dataclass
class TextPrinter(Printer):
    """For people and pipes: the answer as it arrives."""

    def __post_init__(self) -> None:
        out = self.output.screen
        # JSON is read by programs, and has no markdown in it.
        self._answer = PlainWriter(out) if self.structured else answer_writer(out)
        self._reasoning = reasoning_writer(self.output.margin)
        self._line = LiveLine(self.output.margin)

    def show(self, event: ChatEvent) -> None:
        super().show(event)
        if isinstance(event, PrefillProgress):
            if not self.output.quiet and event.done < event.total:
                self._line.show(f"reading the prompt · {event.done}/{event.total} tokens")
            return
        self._line.clear()
        if isinstance(event, ReasoningDelta):
            if not self.output.quiet:
                with contextlib.suppress(OSError):  # the answer can still be written
                    self._reasoning.feed(event.text)
            return
        self._end_thinking()
        if isinstance(event, AnswerDelta):
            self._answer.feed(event.text)
        elif isinstance(event, TurnDone):
            self._answer.finish()
            for call in event.calls:
                self.output.note(f"calls {call.name} {call.arguments}")
            self._note_figures(event)

    def __exit__(self, *_: object) -> None:
        self._line.clear()
        self._end_thinking()
        with contextlib.suppress(OSError):  # a broken pipe: ``show`` raised it already
            self._answer.finish()

    def _end_thinking(self) -> None:
        with contextlib.suppress(OSError):
            self._reasoning.finish()

    def _note_figures(self, done: TurnDone) -> None:
        why = done.why_it_ended(self.loaded.context, trained_context(self.model.facts))
        if why:
            self.output.note(why)
        read = f"{counted(done.usage.prompt_tokens, 'token')} read"
        self.output.note(" · ".join([read, *figures(done)]))


class DocumentPrinter(Printer):
    """``--json``: one document at the end."""

    def show(self, event: ChatEvent) -> None:
        super().show(event)
        if isinstance(event, TurnDone):
            self.output.json(self._head | self._document(event))

    @property
    def _head(self) -> dict[str, object]:
        return {}

    def _document(self, done: TurnDone) -> dict[str, object]:
        from localmoe.app import documents  # late: a text need not wait for the import

        model, facts = self.model, self.model.facts
        plan = documents.plan_document(facts, model.machine, model.plan, model.forecast)
        document = documents.run_document(facts.name, done, self.loaded, model.plan, plan)
        if self.structured:
            document["data"] = parsed(done)
        return document | self.more


TOOL_CALL_EVENTS: Mapping[type[ChatEvent], str] = {
    ToolCallBegin: "tool_call_begin",
    ToolCallDelta: "tool_call_delta",
    ToolCallEnd: "tool_call_end",
}


class EventPrinter(DocumentPrinter):
    """``--jsonl``: every event as it happens, the document last."""

    @property
    def _head(self) -> dict[str, object]:
        return {"event": "done"}

    def show(self, event: ChatEvent) -> None:
        if isinstance(event, PrefillProgress):
            self.output.json({"event": "prefill", **asdict(event)})
        elif isinstance(event, ReasoningDelta):
            self.output.json({"event": "reasoning", "text": event.text})
        elif isinstance(event, AnswerDelta):
            self.output.json({"event": "answer", "text": event.text})
        elif isinstance(event, ToolCallBegin | ToolCallDelta | ToolCallEnd):
            self.output.json({"event": TOOL_CALL_EVENTS[type(event)], **asdict(event)})
        super().show(event)


def printer_for(output: Output) -> type[Printer]:
    """The printer for ``--jsonl``, ``--json`` or neither."""
    return EventPrinter if output.lines else DocumentPrinter if output.as_json else TextPrinter


def parsed(done: TurnDone) -> object:
    """The value of an answer that is JSON; None if it is not whole."""
    try:
        return json.loads(done.answer)
    except ValueError:
        return None
