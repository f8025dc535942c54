"""A model's chat template: messages → the prompt it was trained on.

Templates are programs that come with model files, so they render in a child process
(``localmoe.chat.rendering``) with limits on time, memory and output. The child starts once and
keeps the template compiled; a render then costs about a millisecond.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from localmoe.chat.answer_format import AnswerFormat, Arguments, Probe, find_format
from localmoe.chat.session import Message
from localmoe.chat.thinking import ThinkControl, ThinkLevel
from localmoe.engine.events import Span
from localmoe.errors import ContextOverflowError, TemplateError
from localmoe.text import clean, shortened

RENDER_SECONDS = 1.5  # a refusal must be there within 2 s
START_SECONDS = 30.0  # Python and Jinja start in 0.1 s, unless the machine is very busy
MOST_CHARACTERS = 8 << 20  # of a conversation; a million tokens are about 4 million
MESSAGE_LENGTH = 300  # characters of what a template says when it refuses
NOTHING_SAID = "…"  # stands for an answer that was interrupted at once: many templates refuse ""

PLAIN_HINT = "--plain (in a chat: /set plain on) leaves the template out: bare text is continued"


class RenderError(TemplateError):
    """A refusal by the child. ``kind`` is ``raised`` when the template itself refused."""

    def __init__(self, kind: str, message: str) -> None:
        said = shortened(message, MESSAGE_LENGTH)
        super().__init__(f"the model's chat template cannot be used: {said}", hint=PLAIN_HINT)
        self.kind = kind


class Renderer:
    """The child process. Starts on ``start`` or first use, again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the child without waiting for it, so that it boots beside other work."""
        with self._lock:
            self._start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request, one reply. Raises ``RenderError`` for a refusal, a timeout or a crash."""
        line = json.dumps({**request, "seconds": RENDER_SECONDS}).encode()
        with self._lock:
            try:
                reply = self._answer(line)
            except RenderError as error:
                if error.kind != "crash":
                    raise
                reply = self._answer(line)  # killed from outside? a template's crash repeats itself
        if "error" in reply:
            raise RenderError(reply["kind"], clean(reply["error"]))
        return reply

    def _answer(self, line: bytes) -> dict[str, Any]:
        process = self._start()
        if not self._ready:
            self._exchange(process, None, START_SECONDS)
            self._ready = True
        return self._exchange(process, line, RENDER_SECONDS)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()  # it was killed while nobody asked it
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "localmoe.chat.rendering"],  # -P: no code from the cwd
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
            self._ready = False
        return self._process

    def _exchange(
        self, process: subprocess.Popen[bytes], line: bytes | None, seconds: float
    ) -> dict[str, Any]:
        """Write a request (if any) and read a reply; a timer kills the child when it is late."""
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = b""
        except BaseException:  # Ctrl-C between question and answer: they would get out of step
            self._stop()
            raise
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            self._stop()
            if late.is_set():
                raise RenderError("timeout", f"it took longer than {seconds:g} s")
            raise RenderError("crash", "it crashed the renderer (nested too deep, or too large)")
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def _stop(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a dead child
                    pipe.close()


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and how the answer to it will be written."""

    prompt: str
    stable_chars: int  # the first characters, which the next turn's prompt will share
    data: tuple[Span, ...]  # what came with the messages: text, not the template's marks
    format: AnswerFormat | None  # None: plain completion, nothing is split off


@dataclass(frozen=True, slots=True)
class _Code:
    """What a template looks up, and the texts in its code."""

    variables: frozenset[str]
    literals: tuple[str, ...]


class ChatTemplate:
    """The template of one model, or plain completion where ``source`` is ``None``."""

    def __init__(
        self, source: str | None, bos: str = "", eos: str = "", *, renderer: Renderer | None = None
    ) -> None:
        self.source = source
        self._bos = bos
        self._eos = eos
        self._renderer = renderer or Renderer()
        self._read: _Code | None = None
        self._formats: dict[str, AnswerFormat] = {}

    @classmethod
    def from_model(
        cls, source: str | None, bos: str, eos: str, *, renderer: Renderer | None = None
    ) -> ChatTemplate:
        """``source`` is the file's ``tokenizer.chat_template``; ``bos`` and ``eos`` are texts.

        A blank one is none.
        """
        return cls(source if source and source.strip() else None, bos, eos, renderer=renderer)

    @property
    def is_plain(self) -> bool:
        return self.source is None

    @property
    def think_control(self) -> ThinkControl:
        """What can be chosen about thinking. Raises ``TemplateError``."""
        if self.source is None:
            return ThinkControl()
        return ThinkControl.of(self._code.variables, self.source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        think: ThinkLevel = ThinkLevel.AUTO,
    ) -> Rendered:
        """The prompt for the next answer. Raises ``TemplateError``, ``ContextOverflowError``.

        Where a template refuses or ignores the system message, its text goes in front of the
        first user message, as llama.cpp does.
        """
        if self.source is None:
            return plain_completion(messages)
        length = sum(len(message.content) for message in messages)
        if length > MOST_CHARACTERS:
            raise ContextOverflowError(
                f"the conversation has {length:,} characters, more than any context holds",
                hint="shorten it",
            )
        refusal: RenderError | None = None
        for arguments in self.think_control.attempts(think):
            format_ = self.format_of(arguments)
            try:
                reply = self._render(messages, tools, arguments, format_)
            except RenderError as error:
                if error.kind not in ("raised", "failed"):
                    raise
                refusal = refusal or error
                continue
            if not reply["prompt"].strip():
                raise RenderError("empty", "it writes nothing")
            data = tuple((start, end) for start, end in reply["data"])
            return Rendered(reply["prompt"], reply["stable_chars"], data, format_)
        assert refusal is not None
        raise refusal

    def format_of(self, arguments: Arguments) -> AnswerFormat:
        """How answers are written when the template is given these. Raises ``TemplateError``."""
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._formats:
            control = self.think_control
            levels = (ThinkLevel.HIGH, ThinkLevel.OFF) if control.can_choose else ()
            self._formats[key] = find_format(
                self._probe,
                self.source or "",
                arguments,
                [control.attempts(level)[0] for level in levels],
                self._code.literals,
            )
        return self._formats[key]

    def close(self) -> None:
        self._renderer.close()

    @property
    def _code(self) -> _Code:
        if self._read is None:
            reply = self._renderer.ask({"source": self.source})
            self._read = _Code(frozenset(reply["variables"]), tuple(reply["literals"]))
        return self._read

    def _probe(self, probes: Sequence[Probe]) -> list[str | None]:
        request = {
            **self._request,
            "probes": [
                {"messages": list(messages), "kwargs": dict(arguments), "generation": generation}
                for messages, arguments, generation in probes
            ],
        }
        texts: list[str | None] = self._renderer.ask(request)["texts"]
        return texts

    @property
    def _request(self) -> dict[str, object]:
        return {"source": self.source, "bos": self._bos, "eos": self._eos}

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None,
        arguments: Arguments,
        format_: AnswerFormat,
    ) -> dict[str, Any]:
        request = {
            **self._request,
            "tools": list(tools) if tools else None,
            "kwargs": dict(arguments),
        }

        def ask(messages: Sequence[Message]) -> dict[str, Any]:
            shown = [_for_template(message, format_) for message in messages]
            return self._renderer.ask({**request, "messages": shown})

        merged = merge_system(messages)
        system = messages[0].content.strip() if messages and merged is not messages else ""
        try:
            reply = ask(messages)
        except RenderError as error:
            if merged is messages or error.kind not in ("raised", "failed"):
                raise
            try:
                return ask(merged)
            except RenderError:
                raise error from None
        return ask(merged) if system and system not in reply["prompt"] else reply


def _for_template(message: Message, format_: AnswerFormat) -> dict[str, object]:
    """A message in the words that the template knows."""
    if message.role != "assistant":
        return {"role": message.role, "content": message.content}
    content = message.content or NOTHING_SAID
    if not message.reasoning:
        return {"role": message.role, "content": content}
    if format_.in_parts:
        thinking = {"type": "thinking", "thinking": message.reasoning}
        parts = [thinking, {"type": "text", "text": content}]
        return {"role": message.role, "content": parts}
    return {"role": message.role, "content": content, format_.key: message.reasoning}


def plain_completion(messages: Sequence[Message]) -> Rendered:
    """No template: the texts one after the other, for the model to continue.

    Special tokens that they spell are parsed: here the user is who writes the prompt.
    """
    prompt = "\n\n".join(m.content for m in messages if m.content)
    return Rendered(prompt, len(prompt), (), None)


def merge_system(messages: Sequence[Message]) -> Sequence[Message]:
    """The system text in front of the first user message; the same object if there is none."""
    if not messages or messages[0].role != "system":
        return messages
    system, rest = messages[0], list(messages[1:])
    for index, message in enumerate(rest):
        if message.role == "user":
            rest[index] = Message("user", f"{system.content}\n\n{message.content}")
            return rest
    return [Message("user", system.content), *rest]
