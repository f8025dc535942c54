"""An engine with queued replies: an ordinary class that keeps the real engine's contract."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from localmoe.chat.events import AnswerDelta, ReasoningDelta
from localmoe.engine.events import (
    Finished,
    Loaded,
    LoadProgress,
    Part,
    PrefillProgress,
    Request,
    Span,
    Token,
)
from localmoe.errors import EngineCrashError
from localmoe.planning.memory import MemoryReport

CONTEXT = 100  # tokens

Reply = list[str | BaseException]


@dataclass
class ScriptedEngine:
    """Each ``generate`` takes the next reply: texts in order; an exception is raised in its place.

    A token is a chunk, a control token where it is one of ``specials``; a prompt has as many tokens
    as words.
    """

    replies: list[Reply]
    specials: tuple[str, ...] = ()
    delay: float = 0  # seconds before each chunk
    alive: bool = True
    loads: int = 0
    requests: list[Request] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # slots that were written to disk
    resumed: list[str] = field(default_factory=list)  # and read from it
    cancelled: threading.Event = field(default_factory=threading.Event)

    silent_s = 0.0

    def at_work(self) -> bool:
        return False

    def load(self) -> Iterator[LoadProgress | Loaded]:
        self.alive = True
        self.loads += 1
        yield LoadProgress(0.5)
        yield Loaded(CONTEXT, 512, 512, MemoryReport((), exact=True), 0.01, "<s>", "</s>")

    def generate(
        self, request: Request
    ) -> Generator[PrefillProgress | Token | Finished, None, None]:
        self.requests.append(request)
        self.cancelled.clear()
        prompt_tokens = len(request.prompt.split())
        yield PrefillProgress(prompt_tokens, prompt_tokens, 0)
        tokens = 0
        reason = "stop"
        for chunk in self.replies.pop(0):
            if self.cancelled.is_set():
                reason = "interrupted"
                break
            if tokens == request.max_tokens:
                reason = "length"
                break
            if isinstance(chunk, BaseException):
                self.alive = not isinstance(chunk, EngineCrashError)
                raise chunk
            if self.cancelled.wait(self.delay):
                reason = "interrupted"
                break
            tokens += 1
            special = chunk in self.specials
            yield Token(tokens, chunk, tokens, special, special)
        yield Finished(reason, prompt_tokens, 0, tokens, 0.1, 50.0, 10.0 if tokens > 1 else None)

    def pause(self) -> None:
        """A prompt is read at once here."""

    def tokenize(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]:
        return list(text.encode())

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        return [bytes([token]) for token in tokens]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def count_prompt(self, prompt: str, data: Sequence[Span] = ()) -> int:
        return len(prompt.split())

    def split_specials(self, texts: Sequence[str]) -> list[list[Part]]:
        return [split_at(text, self.specials) for text in texts]

    def close(self) -> None:
        self.alive = False
        self.cancelled.set()

    def keep(self, slot: str) -> int:
        self.kept.append(slot)
        return 1

    def resume(self, slot: str) -> int:
        self.resumed.append(slot)
        return 1

    def cancel(self) -> None:
        self.cancelled.set()


def collect(events: Iterable[object], kind: type[AnswerDelta] | type[ReasoningDelta]) -> str:
    """The joined text of all events of one kind."""
    return "".join(event.text for event in events if isinstance(event, kind))


def split_at(text: str, specials: Sequence[str]) -> list[Part]:
    """``text`` cut at the control tokens that it spells."""
    pattern = "|".join(map(re.escape, specials)) or "(?!)"
    pieces = [piece for piece in re.split(f"({pattern})", text) if piece]
    return [
        Part(piece, specials.index(piece), True) if piece in specials else Part(piece)
        for piece in pieces
    ]
