"""Thinking that takes too long is ended: its end mark is written in the model's place."""

from __future__ import annotations

from localmoe.engine.worker.sampling import Sampler
from localmoe.engine.worker.vocabulary import Vocabulary

SHARE = 2  # thinking has at most one of so many parts of an answer's tokens


class ThinkingEnd:
    """Watches the tokens of one answer.

    ``marks``: the texts that begin and end thinking, "" for the first where the prompt has begun
    it; None: nothing is watched. ``limit``: the most tokens that the answer may have.
    """

    def __init__(self, vocabulary: Vocabulary, marks: tuple[str, str] | None, limit: int) -> None:
        self._vocabulary = vocabulary
        self._left = limit // SHARE
        self._start, self._end = (mark.encode() for mark in marks or ("", ""))
        self._end_tokens = vocabulary.parse(marks[1]) if marks else []
        self._begins_special = (
            bool(self._end_tokens) and vocabulary.entry(self._end_tokens[0]).special
        )
        self._begun = not self._start
        self._over = marks is None  # or it never begins
        self._said = b""
        self._to_write: list[int] = []

    def write(self, sampler: Sampler) -> int | None:
        """The next token of the end mark, if thinking is to end now; ``sampler`` has taken it."""
        if self._begun and not self._over and self._left <= 0:
            self._to_write, self._over = list(self._end_tokens), True
        if self._to_write and sampler.take(self._to_write[0]):
            return self._to_write.pop(0)
        return None

    def note(self, token: int) -> None:
        """The answer has one more token."""
        if self._over:
            return
        self._left -= 1
        if self._begun and self._begins_special:
            self._over = token == self._end_tokens[0]
            return
        self._said += self._vocabulary.entry(token).data
        if self._begun:
            self._over = self._end in self._said
            self._said = self._said[-len(self._end) :]
            return
        said = self._said.lstrip()
        self._begun = said.startswith(self._start)
        self._over = not self._begun and not self._start.startswith(said)
