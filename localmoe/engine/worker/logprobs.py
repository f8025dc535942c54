"""How likely the tokens of an answer were, by the model's own logits: before any sampling."""

from __future__ import annotations

from typing import Any

from localmoe.engine.events import Likely
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.vocabulary import Vocabulary


class Logprobs:
    """Natural logarithms of probabilities.

    ``top``: how many of the likeliest tokens to tell of; None: no figures at all.
    """

    def __init__(self, ctx: Any, vocabulary: Vocabulary, top: int | None) -> None:
        self._ctx = ctx
        self._vocabulary = vocabulary
        self._top = top

    def of(self, token: int) -> tuple[float | None, tuple[Likely, ...]]:
        """Of the token that was chosen after the last decode, and of the likeliest ones there."""
        if self._top is None:
            return None, ()
        import numpy as np  # a tenth of a second that others need not wait for

        size = self._vocabulary.size
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._ctx, -1), shape=(size,))
        highest = float(logits.max())
        total = highest + float(np.log(np.exp(logits.astype(np.float64) - highest).sum()))
        count = min(self._top, size)
        best = np.argpartition(-logits, count - 1)[:count].tolist() if count else []
        ids = sorted(best, key=lambda token: (-logits[token], token))
        likely = (Likely(i, self._vocabulary.spelling(i), float(logits[i]) - total) for i in ids)
        return float(logits[token]) - total, tuple(likely)
