"""Texts that end an answer. They count in the answer alone: thinking may speak of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localmoe.chat.splitter import Answer, Piece, Reasoning


class StopTexts:
    """Passes pieces on until one of the texts would come; then ``met``, and nothing any more."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)
        self._scanner = Scanner(self._texts)
        self.which: str | None = None  # the text that would have come

    @property
    def met(self) -> bool:
        """Whether one of the texts has ended the answer."""
        return self.which is not None

    def feed(self, piece: Piece) -> Iterator[Piece]:
        if isinstance(piece, Answer):
            yield from self._until_met(self._scanner.feed(piece.text))
        elif isinstance(piece, Reasoning):
            if not self.met:
                yield piece
        else:  # a call: the text before it is over
            yield from self._until_met(self._scanner.finish())
            if not self.met:
                yield piece

    def control(self, spelling: str) -> None:
        """A control token has come, which is not shown; it may be named as an end all the same."""
        if not self.met and spelling in self._texts:
            self.which = spelling

    def finish(self) -> Iterator[Piece]:
        """What was held back, since a text might have begun with it."""
        yield from self._until_met(self._scanner.finish())

    def _until_met(self, parts: Iterator[tuple[str, bool]]) -> Iterator[Piece]:
        if self.met:
            return
        for text, is_stop in parts:
            if is_stop:
                self.which = text
                return
            yield Answer(text)


class Scanner:
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
        if not self._markers:
            if text:
                yield text, False
            return
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
