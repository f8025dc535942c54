"""``run``: one answer. The answer goes to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Sequence

from localmoe.chat.conversation import AnswerDelta, ChatEvent, ReasoningDelta, TurnDone
from localmoe.cli import documents, talk
from localmoe.cli.arguments import Options, model_and_prompt
from localmoe.cli.live import LiveLine
from localmoe.cli.output import Output
from localmoe.engine.events import Loaded, PrefillProgress
from localmoe.errors import EngineError, UsageError
from localmoe.facts import catalog
from localmoe.planning.plan import Plan
from localmoe.text import Sanitizer

INTERRUPTED = 130
STDIN_LIMIT = 64 << 20  # bytes; far more than any context takes
SILENT_STDIN = 5.0  # seconds, after which a prompt no longer waits for an open, silent pipe


def run_command(options: Options, output: Output) -> int:
    """Exit code 0, or 130 when the answer was interrupted."""
    asked = model_and_prompt(options, catalog.looks_like_model)
    if not asked.prompt and _on_terminal() and not output.as_json:
        from localmoe.cli.chat import open_chat

        return open_chat(asked.model, options, output)
    piped = PipedInput() if not _is_terminal(sys.stdin) or "-" in asked.prompt else None
    needed = "-" in asked.prompt or not asked.prompt
    if piped and needed:
        compose(asked.prompt, piped.text(), output)  # a missing prompt is told before the load
    with talk.open_talk(asked.model, options, output) as room:
        loaded = room.load()
        text = piped.text(None if needed else SILENT_STDIN) if piped else None
        if piped and text is None:
            output.note("stdin is open but says nothing: answering without it (`-` waits for it)")
        prompt = compose(asked.prompt, text, output)
        printer = _printer(room, loaded, output)
        conversation = room.conversation(options)
        with talk.interrupts(room.engine) as pressed, printer:
            for event in conversation.ask(prompt):
                if pressed.pressed:
                    room.engine.cancel()
                printer.show(event)
    done = printer.done
    if done is None:
        raise EngineError("the engine ended a turn without saying why")
    return INTERRUPTED if done.finish_reason == "interrupted" else 0


class PipedInput:
    """Reads stdin to its end in the background.

    The file descriptor is read directly: a thread that still waits in a Python stream when the
    interpreter ends would crash it.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = sys.stdin.fileno() if fd is None else fd
        self._chunks: list[bytes] = []
        self._size = 0
        self._error: OSError | None = None
        self._first = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def text(self, patience: float | None = None) -> str | None:
        """All of it; ``None`` when nothing came within ``patience`` seconds.

        Once something has come, the end is waited for. Raises ``UsageError`` for what is no text.
        """
        if not self._first.wait(patience):
            return None
        self._ended.wait()
        if self._error is not None:
            raise self._error
        if self._size > STDIN_LIMIT:
            raise UsageError(f"stdin is longer than {STDIN_LIMIT >> 20} MiB")
        data = b"".join(self._chunks)
        if b"\0" in data:
            raise UsageError(
                "stdin is not text: it has NUL bytes", hint="pipe text, or none: < /dev/null"
            )
        return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")

    def _read(self) -> None:
        try:
            while self._size <= STDIN_LIMIT:
                chunk = os.read(self._fd, 1 << 16)
                if not chunk:
                    break
                self._chunks.append(chunk)
                self._size += len(chunk)
                self._first.set()
        except OSError as error:
            self._error = error
        finally:
            self._ended.set()
            self._first.set()


def compose(words: Sequence[str], piped: str | None, output: Output) -> str:
    """The prompt: the words, with stdin where ``-`` stands, else after them.

    Raises ``UsageError`` when nothing is left to ask.
    """
    given = (piped or "").removesuffix("\n")
    if "\ufffd" in given:
        output.warn("stdin is not UTF-8 throughout; the rest is marked �")
    if "-" in words:
        prompt = " ".join(given if word == "-" else word for word in words)
    else:
        prompt = "\n\n".join(filter(None, (" ".join(words), given)))
    if not prompt.strip():
        raise UsageError(
            "no prompt", hint='localmoe run "What is a mixture of experts?", or pipe one in'
        )
    return prompt


class Printer:
    """Shows the events of one turn. A context manager: the end of it tidies the terminal."""

    def __init__(self, room: talk.Talk, loaded: Loaded, output: Output) -> None:
        self.room = room
        self.loaded = loaded
        self.output = output
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

    def __init__(self, room: talk.Talk, loaded: Loaded, output: Output) -> None:
        super().__init__(room, loaded, output)
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
                text = self._reasoning.feed(event.text)
                self.output.stderr.out(text, style="dim", end="", highlight=False)
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
            self.output.stderr.out("\n", highlight=False)

    def _finish(self, done: TurnDone) -> None:
        why = talk.why_it_ended(done, self.loaded.context)
        if why:
            self.output.note(why)
        read = f"{done.usage.prompt_tokens} tokens read"
        self.output.note(" · ".join([read, *talk.figures(done)]))


class DocumentPrinter(Printer):
    """``--json``: one document at the end."""

    def show(self, event: ChatEvent) -> None:
        super().show(event)
        if isinstance(event, TurnDone):
            self.output.json(self._head | self._document(event))

    @property
    def _head(self) -> documents.Json:
        return {}

    def _document(self, done: TurnDone) -> documents.Json:
        room = self.room
        plan = documents.plan_document(room.model, room.machine, room.plan)
        return run_document(room.model.name, done, self.loaded, room.plan, plan)


class EventPrinter(DocumentPrinter):
    """``--jsonl``: every event as it happens, the document last."""

    @property
    def _head(self) -> documents.Json:
        return {"event": "done"}

    def show(self, event: ChatEvent) -> None:
        names = {PrefillProgress: "prefill", ReasoningDelta: "reasoning", AnswerDelta: "answer"}
        name = names.get(type(event))
        if name:
            self.output.json({"event": name, **dataclasses.asdict(event)})
        super().show(event)


def _printer(room: talk.Talk, loaded: Loaded, output: Output) -> Printer:
    kind = EventPrinter if output.lines else DocumentPrinter if output.as_json else TextPrinter
    return kind(room, loaded, output)


def run_document(
    model: str, done: TurnDone, loaded: Loaded, plan: Plan, plan_document: documents.Json
) -> documents.Json:
    """``run --json`` of the command line contract; the schema version is added on output.

    Figures of the expert cache are ``null`` when all experts are resident.
    """
    cache = done.finished.cache if done.finished is not None else None
    return {
        "text": done.answer,
        "reasoning": done.reasoning,
        "finish_reason": done.finish_reason,
        "model": model,
        "usage": {
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
            "reused_tokens": done.usage.reused_tokens,
        },
        "timings": {
            "load_s": loaded.load_s,
            "ttft_s": done.timings.ttft_s,
            "prefill_tps": done.timings.prefill_tps,
            "decode_tps": done.timings.decode_tps,
        },
        "cache": {
            "regime": plan.cache.regime,
            "hits": cache.hits if cache else None,
            "misses": cache.misses if cache else None,
            "hit_rate": cache.hit_rate if cache else None,
            "bytes_read": cache.bytes_read if cache else None,
        },
        "plan": plan_document,
    }


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())


def _on_terminal() -> bool:
    return _is_terminal(sys.stdin)
