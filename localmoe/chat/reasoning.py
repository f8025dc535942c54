"""Tell what a model thinks from what it answers, while the text arrives in pieces.

Each family marks its thinking in its own way; ``FORMATS`` lists them, and a model's chat template
says which one it uses. The result never depends on where the pieces were cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Thinking stands between ``start`` and the first of ``ends``, before the answer.

    ``sign`` is the text by which a template that uses the format is known.
    """

    start: str
    ends: tuple[str, ...]
    sign: str = ""
    channels: bool = False  # gpt-oss: named channels instead of a pair of tags

    @property
    def signature(self) -> str:
        return self.sign or self.start


NO_REASONING = ReasoningFormat("", ())
THINK = ReasoningFormat("<think>", ("</think>",))
CHANNELS = ReasoningFormat("<|channel|>analysis<|message|>", (), "<|channel|>", channels=True)
FORMATS = (
    CHANNELS,
    ReasoningFormat("<|channel>thought", ("<channel|>",), "<|channel>"),  # Gemma 4
    ReasoningFormat("[THINK]", ("[/THINK]",)),  # Mistral
    ReasoningFormat(  # Apriel
        "Here are my reasoning steps:", ("[BEGIN FINAL RESPONSE]",), "[BEGIN FINAL RESPONSE]"
    ),
    ReasoningFormat("<|START_THINKING|>", ("<|END_THINKING|>",)),  # Command R, Cohere
    ReasoningFormat("<|inner_prefix|>", ("<|inner_suffix|>",)),  # Apertus
    ReasoningFormat(  # Solar
        "<|think|>", ("<|end|><|begin|>assistant<|content|>",), "<|begin|>assistant<|think|>"
    ),
    ReasoningFormat("<seed:think>", ("</seed:think>",)),
    ReasoningFormat("<mm:think>", ("</mm:think>",)),
    ReasoningFormat("<thinking>", ("</thinking>",)),
    THINK,
)

TURN_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|end|>", "<|return|>",
    "<|end_of_turn|>", "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>", "<s>", "</s>",
    "<bos>", "<eos>", "[INST]", "[/INST]", "<|END_OF_TURN_TOKEN|>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Tokens that only separate turns; the engine writes them out, nobody should read them."""

CHANNEL_MARKERS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")

_SPECIAL = re.compile(r"<[|｜][^<>|｜\s'\"{}]{1,40}[|｜]>")
_OPEN_TAG = re.compile(r"<((?:[\w.-]+:)?think(?:ing)?(?::[\w.-]+)?)>\s*$")


def find_format(source: str, prompt: str) -> ReasoningFormat:
    """How a model marks its thinking, from its chat template and a rendered prompt.

    A template that names no tag may still belong to a model that writes ``<think>`` first, so
    that is the answer when nothing else fits.
    """
    tail = _OPEN_TAG.search(prompt[-80:])
    if tail:
        return ReasoningFormat(f"<{tail[1]}>", (f"</{tail[1]}>",))
    return next((known for known in FORMATS if known.signature in source), THINK)


def turn_tokens(source: str, *more: str) -> tuple[str, ...]:
    """Tokens to leave out of the text: the known ones, those of a template, and ``more``."""
    found = {token for token in _SPECIAL.findall(source) if "tool" not in token.lower()}
    return tuple(sorted(found.union(TURN_TOKENS, filter(None, more))))


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    text: str


Piece = Reasoning | Answer


class MarkerScanner:
    """Cuts a stream of text at markers, whatever the chunking.

    Text that may be the beginning of a marker is held until that is decided. Where several
    markers begin at the same place the longest wins.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted({m for m in markers if m}, key=len, reverse=True)
        self._first = frozenset(m[0] for m in self._markers)
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yields (text, is it a marker?)."""
        self._held += text
        yield from self._scan(final=False)

    def finish(self) -> Iterator[tuple[str, bool]]:
        yield from self._scan(final=True)

    def _scan(self, final: bool) -> Iterator[tuple[str, bool]]:
        held, begin, at = self._held, 0, 0
        while at < len(held):
            if held[at] in self._first:
                rest = held[at:]
                if not final and any(
                    len(m) > len(rest) and m.startswith(rest) for m in self._markers
                ):
                    break
                marker = next((m for m in self._markers if rest.startswith(m)), None)
                if marker:
                    if at > begin:
                        yield held[begin:at], False
                    yield marker, True
                    begin = at = at + len(marker)
                    continue
            at += 1
        if at > begin:
            yield held[begin:at], False
        self._held = held[at:]


class ReasoningSplitter:
    """Splits generated text into ``Reasoning`` and ``Answer``.

    Thinking is recognised at the start only, where models put it: an answer may speak of
    ``<think>`` tags. ``open_`` says that the prompt itself ended with the start tag. Blank space
    around thinking, and between it and the answer, belongs to neither.
    """

    def __init__(
        self,
        format_: ReasoningFormat = THINK,
        *,
        open_: bool = False,
        drop: Iterable[str] = TURN_TOKENS,
    ) -> None:
        self._format = format_
        own = CHANNEL_MARKERS if format_.channels else (format_.start, *format_.ends)
        self._drop = frozenset(drop).difference(own)
        self._scanner = MarkerScanner([*own, *self._drop])
        # start → (thinking → gap →) answer; gpt-oss also passes through role and channel names
        self._state = "thinking" if open_ else "start"
        self._blank = True  # this part has had nothing but blank space so far
        self._space = ""  # blank space that waits for what follows it
        self._thought = open_
        self._channel = ""

    def feed(self, text: str) -> Iterator[Piece]:
        for part, is_marker in self._scanner.feed(text):
            yield from self._take(part, is_marker)

    def finish(self) -> Iterator[Piece]:
        """What was held back. The splitter is spent afterwards."""
        for part, is_marker in self._scanner.finish():
            yield from self._take(part, is_marker)
        if self._state == "start" and self._space:
            yield Answer(self._space)

    def _take(self, part: str, is_marker: bool) -> Iterator[Piece]:
        if is_marker and part in self._drop:
            return
        if is_marker and (self._switch_channel if self._format.channels else self._switch)(part):
            return
        if self._state == "thinking":
            yield from self._think(part)
        elif self._state == "channel":
            self._channel += part
        elif self._state != "role":
            yield from self._say(part)

    def _switch(self, marker: str) -> bool:
        """Follow a tag. False when it is only text that looks like one."""
        if self._blank and self._state in ("start", "thinking") and marker == self._format.start:
            self._begin_thinking()
        elif self._state == "thinking" and marker in self._format.ends:
            self._state, self._blank = "gap", True
        else:
            return False
        return True

    def _switch_channel(self, marker: str) -> bool:
        """Follow gpt-oss' ``<|start|>role<|channel|>name<|message|>text<|end|>``."""
        if marker == "<|channel|>":
            self._state, self._channel = "channel", ""
        elif marker != "<|message|>":
            self._state, self._channel = "role", ""
        elif self._channel.startswith(("analysis", "commentary")):
            self._begin_thinking()
        else:
            self._state = "gap" if self._thought else "start"
        return True

    def _begin_thinking(self) -> None:
        self._space = "\n\n" if self._thought and not self._blank else ""
        self._state, self._blank, self._thought = "thinking", True, True

    def _think(self, text: str) -> Iterator[Reasoning]:
        if self._blank:
            text = text.lstrip()
        if not text:
            return
        self._blank = False
        body = self._space + text
        kept = body.rstrip()
        self._space = body[len(kept) :]
        if kept:
            yield Reasoning(kept)

    def _say(self, text: str) -> Iterator[Answer]:
        if self._state == "start":
            text = self._space + text
            if not text.strip():
                self._space = text
                return
        elif self._state == "gap":
            text = text.lstrip()
            if not text:
                return
        self._state, self._space, self._blank = "answer", "", False
        yield Answer(text)
