"""What a loaded model is asked, over whatever connection: answers, and its vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence

from localmoe.engine import protocol, rpc
from localmoe.engine.connection import Connection
from localmoe.engine.events import AnswerEvent, Part, Request, Span


class TextClient:
    """Asks over ``_worker``. ``_limits``: of ``Connection.request``, where others take part."""

    _worker: Connection
    _limits: rpc.Limits

    @property
    def alive(self) -> bool:
        """False when the worker has died; ``load`` brings a new one."""
        return self._worker.alive

    @property
    def silent_s(self) -> float:
        """Seconds since the worker last said something of what it is asked for; 0 if of nothing."""
        return self._worker.silent_s

    def at_work(self) -> bool:
        """Whether the worker computes, or waits; takes some tenths of a second."""
        return self._worker.at_work()

    def generate(self, request: Request) -> Generator[AnswerEvent, None, None]:
        """Answer one request; the last event is ``Finished``. Dropping the iterator cancels.

        Raises ContextOverflowError when the prompt is longer than the context, EngineError, or
        EngineCrashError.
        """
        fields = {"request": dataclasses.asdict(request)}
        for message in self._worker.request("generate", **self._limits, **fields):
            event = protocol.message_to_event(message)
            assert isinstance(event, AnswerEvent)
            yield event

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` in the loaded model's vocabulary: as text, whatever it spells.

        This and the four below may be called from any thread, while an answer is written too.
        """
        data = [(0, len(text))]
        return int(self._worker.consult("count", text=text, data=data, whole=False)["tokens"])

    def count_prompt(self, prompt: str, data: Sequence[Span] = ()) -> int:
        """Tokens that ``generate`` would read for that prompt; ``data`` as in ``Request``."""
        message = self._worker.consult("count", text=prompt, data=list(data), whole=True)
        return int(message["tokens"])

    def tokenize(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]:
        """The numbers of its tokens. ``special``: special tokens that it spells become such.

        ``whole``: as a prompt, with its beginning-of-sequence token where the model wants one.
        """
        message = self._worker.consult("tokenize", text=text, special=special, whole=whole)
        return list(message["tokens"])

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; none for a number that is no token."""
        texts = self._worker.consult("spell", tokens=list(tokens))["texts"]
        return [text.encode("latin-1") for text in texts]

    def split_specials(self, texts: Sequence[str]) -> list[list[Part]]:
        """Each text cut at the special tokens that it spells."""
        found = self._worker.consult("split", texts=list(texts))["parts"]
        return [[Part(*fields) for fields in parts] for parts in found]

    def cancel(self) -> None:
        """Interrupt the load or answer under way, from any thread or signal handler.

        The iterator then ends: ``load`` with an error, ``generate`` with ``Finished`` and the
        reason ``interrupted``.
        """
        self._worker.cancel()

    def pause(self) -> None:
        """Stop reading the prompt under way where its next batch begins, from any thread.

        ``generate`` then ends with ``Finished`` and the reason ``paused``; what was read is kept
        for whoever asks the same again. An answer that has begun goes on.
        """
        self._worker.pause()
