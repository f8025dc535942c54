"""Text to tokens and back, with the engine's own tokenizer.

A prompt has two authors. What the chat template writes is parsed for special tokens; what came
with the messages is ``data``: text, whatever it spells.
"""

from __future__ import annotations

import codecs
import ctypes
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from localmoe.engine.events import Part, Span, Written
from localmoe.engine.worker.binding import llama
from localmoe.errors import EngineError

# Of enum llama_token_attr in llama.h.
UNKNOWN, CONTROL, USER_DEFINED, STRIPS_LEFT, STRIPS_RIGHT = 1 << 0, 1 << 3, 1 << 4, 1 << 7, 1 << 8
NAMED = (  # tokens that the metadata name by their id
    "bos", "eos", "eot", "sep", "pad", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)  # fmt: skip
WHITE_SPACE = " \t\n\v\f\r"  # of C's isspace, which tokens that strip it go by


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of the vocabulary.

    ``special``: it is set apart from text, as a control token or by its user. ``control``: it
    steers the model and is no text: by its type, or because the metadata name its id, or because
    it ends a generation.
    """

    data: bytes  # special tokens written out
    special: bool
    control: bool


class Vocabulary:
    """Tokenizer of one loaded model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.handle = llama.llama_model_get_vocab(model)
        self.size = int(llama.llama_vocab_n_tokens(self.handle))
        self._entries: dict[int, Entry] = {}

    def prompt(
        self,
        text: str,
        data: Sequence[Span] = (),
        written: Sequence[Written] = (),
        *,
        add_bos: bool = True,
    ) -> list[int]:
        """Token ids of a whole prompt; ``data``: where it is only text, ``written``: where it has
        been tokens of the model's; both in order.

        The beginning-of-sequence token comes first where the model wants one, and once: not again
        where the template has written it, perhaps behind white space.
        """
        tokens = self._with_written(text, data, written)
        bos = int(llama.llama_vocab_bos(self.handle))
        if not add_bos or bos < 0 or not llama.llama_vocab_get_add_bos(self.handle):
            return tokens
        blank = 0
        while blank < len(tokens) and not self.entry(tokens[blank]).data.strip():
            blank += 1
        has_bos = tokens[blank : blank + 1] == [bos]
        return tokens[blank:] if has_bos else [bos, *tokens]

    def _with_written(
        self, text: str, data: Sequence[Span], written: Sequence[Written]
    ) -> list[int]:
        """Token ids of ``text``, what the model wrote as it wrote it.

        Where each stretch of text gets a space in front, that behind has to begin with a special
        token: else it would be another text.
        """
        ids: list[int] = []
        at = 0
        for start, end, tokens in written:
            if self._begins_with_space and not self._begins_special(text[end:]):
                continue
            ids += [*self.parse(text[at:start], _within(data, at, start)), *tokens]
            at = end
        return ids + self.parse(text[at:], _within(data, at, len(text)))

    def _begins_special(self, text: str) -> bool:
        tokens = self.tokenize(text[:80], special=True)
        return bool(tokens) and self.entry(tokens[0]).special

    def parse(self, text: str, data: Sequence[Span] = ()) -> list[int]:
        """Token ids of ``text`` alone, special tokens recognised outside ``data``.

        llama.cpp cuts a text at its special tokens, the longest first, and tokenizes each stretch
        between them by itself (``tokenizer_st_partition`` in llama-vocab.cpp). This does the same,
        but never cuts within ``data`` or across its ends. So a message is still tokenized together
        with the text that the template puts beside it, as the model has learned it.
        """
        if not data:
            return self.tokenize(text, special=True)
        ids: list[int] = []
        for piece in self._cut(text, _Ranges(data)):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self.tokenize(text[slice(*piece)], special=False)
        return ids

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``; ``special``: control tokens that it spells are recognised."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = llama.llama_tokenize(self.handle, data, len(data), buffer, room, False, special)
            if count >= 0:
                return list(buffer[:count])
            if -count <= room:
                raise EngineError("the engine cannot tokenize this text")
            room = -count

    def split(self, text: str) -> list[Part]:
        """``text`` cut at the special tokens that it spells."""
        pieces = self._cut(text, _Ranges(()), USER_DEFINED)
        return [
            Part(self.spelling(piece), piece, self.entry(piece).control)
            if isinstance(piece, int)
            else Part(text[slice(*piece)])
            for piece in pieces
        ]

    def entry(self, token: int) -> Entry:
        known = self._entries.get(token)
        if known is None:
            attributes = self._attributes(token)
            control = bool(attributes & (CONTROL | UNKNOWN))
            control = control or token in self._named or self.ends_generation(token)
            special = control or bool(attributes & USER_DEFINED)
            known = self._entries[token] = Entry(self._bytes(token), special, control)
        return known

    def spelling(self, token: int) -> str:
        """Its text; "" for a number that is no token."""
        return self.entry(token).data.decode(errors="replace") if 0 <= token < self.size else ""

    def ends_generation(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self.handle, token))

    def bos_text(self) -> str:
        return self.spelling(llama.llama_vocab_bos(self.handle))

    def eos_text(self) -> str:
        return self.spelling(llama.llama_vocab_eos(self.handle))

    @cached_property
    def _named(self) -> frozenset[int]:
        """Tokens that the metadata name, whatever their type, but for those that are text.

        Some files name a token of ordinary text, such as ``!``, as their padding.
        """
        ids = (int(getattr(llama, f"llama_vocab_{name}")(self.handle)) for name in NAMED)
        return frozenset(token for token in ids if token >= 0 and not self._is_text(token))

    def _is_text(self, token: int) -> bool:
        """Whether text that spells the token becomes it, at its beginning or within."""
        text = self._bytes(token).decode(errors="replace")
        return any(token in self.tokenize(before + text, special=False) for before in ("", "a"))

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """Tokens of its user's that the chat template uses as marks, such as ``<think>``.

        llama.cpp recognises these in every text. Many others of their type are plain words.
        """
        source = llama.llama_model_chat_template(self._model, None)
        tokens = set(self.tokenize(source.decode(errors="replace"), special=True) if source else ())
        chosen = (token for token in tokens if self._attributes(token) & USER_DEFINED)
        return tuple(text for text in map(self.spelling, chosen) if len(text) > 1)

    @cached_property
    def _begins_with_space(self) -> bool:
        """Whether each stretch of text gets a space in front (SentencePiece)."""
        return b"".join(self._bytes(t) for t in self.tokenize("a", special=False)) != b"a"

    def _cut(self, text: str, data: _Ranges, more: int = 0) -> list[Span | int]:
        """``text`` as special tokens (ids) and the stretches between them.

        ``more``: further types of tokens to cut at.
        """
        wanted = CONTROL | UNKNOWN | more
        others = data.others(text)
        found = {t for part in set(others) for t in self.tokenize(part, special=True)}
        tokens = {t for t in found if self._attributes(t) & wanted}
        tokens |= {t for t in self._named if any(self.spelling(t) in part for part in others)}
        pieces: list[Span | int] = [(0, len(text))] if text else []
        for token in sorted(tokens, key=lambda t: -len(self.entry(t).data)):
            pieces = [part for piece in pieces for part in self._cut_at(token, text, piece, data)]
        return [part for piece in pieces for part in self._take_apart(text, piece, data)]

    def _cut_at(
        self, token: int, text: str, piece: Span | int, data: _Ranges
    ) -> Iterator[Span | int]:
        mark = self.spelling(token)
        if isinstance(piece, int) or not mark:
            yield piece
            return
        attributes = self._attributes(token)
        begin, end = piece
        at = begin
        while (found := text.find(mark, at, end)) >= 0:
            at = found + len(mark)
            if data.touch(found, at):
                at = found + 1
                continue
            stretch = text[begin:found]
            left = stretch.rstrip(WHITE_SPACE) if attributes & STRIPS_LEFT else stretch
            if left:
                yield begin, begin + len(left)
            yield token
            if attributes & STRIPS_RIGHT:
                at = end - len(text[at:end].lstrip(WHITE_SPACE))
            begin = at
        if begin < end:
            yield begin, end

    def _take_apart(self, text: str, piece: Span | int, data: _Ranges) -> Iterator[Span | int]:
        """A stretch, cut within each of the template's marks that a message spells."""
        if isinstance(piece, int) or not data or self._begins_with_space:
            yield piece
            return
        begin, end = piece
        cuts = set()
        for mark in self._marks:
            at = begin
            while (found := text.find(mark, at, end)) >= 0:
                at = found + 1
                if data.touch(found, found + len(mark)):
                    cuts.add(at)
        for cut in (*sorted(cuts), end):
            yield begin, cut
            begin = cut

    def _attributes(self, token: int) -> int:
        return int(llama.llama_vocab_get_attr(self.handle, token))

    def _bytes(self, token: int) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = llama.llama_token_to_piece(self.handle, token, buffer, room, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


def _within(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """What of ``spans`` lies in a part of a text, counted from its beginning."""
    cut = ((max(a, start) - start, min(b, end) - start) for a, b in spans)
    return [(a, b) for a, b in cut if a < b]


class _Ranges:
    """Ranges of a text, in order, that do not meet."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = [span for span in spans if span[0] < span[1]]
        self._starts = [start for start, _ in self._spans]

    def __bool__(self) -> bool:
        return bool(self._spans)

    def touch(self, start: int, end: int) -> bool:
        """Whether one of them has a character from ``start`` to ``end``."""
        before = bisect_right(self._starts, end - 1)
        return before > 0 and self._spans[before - 1][1] > start

    def others(self, text: str) -> list[str]:
        """What of ``text`` is in none of them."""
        ends = [0, *(end for _, end in self._spans)]
        starts = [*self._starts, len(text)]
        return [text[a:b] for a, b in zip(ends, starts, strict=True) if a < b]


class Utf8:
    """Bytes of tokens → whole characters: one that is split over tokens comes with its last byte.

    Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def flush(self) -> str:
        """U+FFFD for what has begun and not ended."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
