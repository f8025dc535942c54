"""Text to tokens and back, with the engine's own tokenizer."""

from __future__ import annotations

import codecs
import ctypes
from typing import Any

from localmoe.engine.worker.binding import llama
from localmoe.errors import EngineError


class Vocabulary:
    """Tokenizer of one loaded model."""

    def __init__(self, model: Any) -> None:
        self.handle = llama.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}
        self.size = int(llama.llama_vocab_n_tokens(self.handle))

    def tokenize(self, text: str, *, add_bos: bool) -> list[int]:
        """Token ids of ``text``; special tokens written in it are recognised.

        ``add_bos`` adds what the model asks for at the beginning, no more.
        """
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = llama.llama_tokenize(self.handle, data, len(data), buffer, room, add_bos, True)
            if count >= 0:
                return list(buffer[:count])
            if -count <= room:
                raise EngineError("the engine cannot tokenize this text")
            room = -count

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens written out."""
        known = self._pieces.get(token)
        if known is None:
            room = 64
            while True:
                buffer = ctypes.create_string_buffer(room)
                count = llama.llama_token_to_piece(self.handle, token, buffer, room, 0, True)
                if count >= 0:
                    break
                room = -count
            known = self._pieces[token] = buffer.raw[:count]
        return known

    def ends_generation(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self.handle, token))

    def bos_text(self) -> str:
        return self._special(llama.llama_vocab_bos(self.handle))

    def eos_text(self) -> str:
        return self._special(llama.llama_vocab_eos(self.handle))

    def _special(self, token: int) -> str:
        return self.piece(token).decode(errors="replace") if 0 <= token < self.size else ""


class TextStream:
    """Bytes of tokens → whole characters, held back while they may be the start of a stop string.

    A character split over two tokens appears when its last byte does; bytes that are no UTF-8
    become U+FFFD.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, data: bytes) -> str:
        """Text that may be shown now. Sets ``stopped_by`` when a stop string was completed."""
        return self._release(self._decoder.decode(data))

    def flush(self) -> str:
        """What was held back, at the end of the generation."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        hits = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if hits:
            at, self.stopped_by = min(hits)
            text, self._held = self._held[:at], ""
            return text
        keep = 0
        for s in self._stop:
            for length in range(min(len(s) - 1, len(self._held)), keep, -1):
                if self._held.endswith(s[:length]):
                    keep = length
                    break
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text
