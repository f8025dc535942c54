"""Texts that end an answer. They count in the answer alone: thinking may speak of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localmoe.chat.reasoning import Answer, MarkerScanner, Piece


class StopTexts:
    """Passes pieces on until one of the texts would come; then ``met``, and nothing any more."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._scanner = MarkerScanner(texts)
        self.met = False

    def feed(self, piece: Piece) -> Iterator[Piece]:
        if isinstance(piece, Answer):
            yield from self._until_met(self._scanner.feed(piece.text))
        elif not self.met:
            yield piece

    def finish(self) -> Iterator[Piece]:
        """What was held back, since a text might have begun with it."""
        yield from self._until_met(self._scanner.finish())

    def _until_met(self, parts: Iterator[tuple[str, bool]]) -> Iterator[Piece]:
        if self.met:
            return
        for text, is_stop in parts:
            if is_stop:
                self.met = True
                return
            yield Answer(text)
