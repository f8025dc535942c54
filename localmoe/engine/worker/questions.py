"""Questions about the loaded model's vocabulary, answered while the model computes."""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import traceback
from collections.abc import Callable

from localmoe.engine import protocol
from localmoe.engine.protocol import Message
from localmoe.engine.worker.vocabulary import Vocabulary
from localmoe.errors import EngineError, LocalmoeError


class Questions:
    """A thread that answers what ``protocol.CONSULTING`` names, in order.

    ``send`` is called on that thread. llama.cpp's tokenizer reads the vocabulary and changes
    nothing in it, so it needs no lock against the computation: only against the model's end.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._vocabulary: Vocabulary | None = None
        self._using = threading.Lock()
        self._pending: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def use(self, vocabulary: Vocabulary | None) -> None:
        """Answer about this one from now on; the one before is not used any more on return."""
        with self._using:
            self._vocabulary = vocabulary

    def put(self, message: Message) -> None:
        self._pending.put(message)

    def _run(self) -> None:
        """An error that is none of ours is a bug, and ends the worker as elsewhere."""
        try:
            while True:
                message = self._pending.get()
                self._send({"id": message["id"], **self._reply(message)})
        except BaseException as error:
            if not isinstance(error, BrokenPipeError):
                traceback.print_exc()
            os._exit(1)

    def _reply(self, message: Message) -> Message:
        try:
            with self._using:
                if self._vocabulary is None:
                    raise EngineError("no model is loaded")
                return _ANSWERS[message["op"]](self._vocabulary, message)
        except LocalmoeError as error:
            return protocol.error_to_message(error)


def _count(vocabulary: Vocabulary, message: Message) -> Message:
    read = vocabulary.prompt if message["whole"] else vocabulary.parse
    tokens = read(message["text"], [(start, end) for start, end in message["data"]])
    return {"event": "counted", "tokens": len(tokens)}


def _tokenize(vocabulary: Vocabulary, message: Message) -> Message:
    text = message["text"]
    read = vocabulary.prompt if message["whole"] else vocabulary.parse
    tokens = read(text, () if message["special"] else [(0, len(text))])
    return {"event": "tokenized", "tokens": tokens}


def _spell(vocabulary: Vocabulary, message: Message) -> Message:
    known = (t if 0 <= t < vocabulary.size else None for t in message["tokens"])
    texts = [vocabulary.entry(t).data.decode("latin-1") if t is not None else "" for t in known]
    return {"event": "spelled", "texts": texts}


def _split(vocabulary: Vocabulary, message: Message) -> Message:
    parts = [list(map(dataclasses.astuple, vocabulary.split(t))) for t in message["texts"]]
    return {"event": "parts", "parts": parts}


_ANSWERS = {"count": _count, "tokenize": _tokenize, "spell": _spell, "split": _split}
