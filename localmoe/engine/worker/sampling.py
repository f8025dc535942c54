"""How the next token is chosen: llama.cpp's samplers, in the order of its tools, and a grammar."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from localmoe.engine.events import Sampling
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.vocabulary import Vocabulary
from localmoe.errors import EngineError


class Sampler:
    """Chooses the tokens of one answer.

    ``history`` (token ids, oldest first) is what the penalties look back on. With a ``grammar``
    (GBNF, see ``localmoe.engine.grammar``) only tokens that continue it are chosen. Raises
    EngineError for a grammar that llama.cpp cannot use.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: Vocabulary,
        history: Sequence[int],
        grammar: str | None = None,
    ) -> None:
        self._n_vocab = vocabulary.size
        self._chain = build_chain(sampling, vocabulary.size, history)
        self._grammar: Any = None
        if grammar is not None:
            self._grammar = llama.llama_sampler_init_grammar(
                vocabulary.handle, grammar.encode(), b"root"
            )
            if not self._grammar:
                self.close()
                raise EngineError(
                    "the engine cannot use the grammar of this answer",
                    hint="a schema that refers to itself before anything else has no end",
                )

    def next(self, ctx: Any) -> int:
        """The token after what was decoded last."""
        if self._grammar is None:
            return int(llama.llama_sampler_sample(self._chain, ctx, -1))
        # The whole vocabulary goes through the grammar only when the first choice is refused:
        # that takes milliseconds, and most first choices are right.
        token = self._choose(ctx, self._chain)
        if not self._allows(token):
            token = self._choose(ctx, self._grammar, self._chain)
            if not self._allows(token):
                raise EngineError("no token of this model can continue the answer in its form")
        self._accept(token)
        return token

    def take(self, token: int) -> bool:
        """Go on as if ``token`` had been chosen; False, and nothing, where the grammar forbids."""
        if self._grammar is not None and not self._allows(token):
            return False
        self._accept(token)
        return True

    def _accept(self, token: int) -> None:
        for sampler in (self._grammar, self._chain):
            if sampler is not None:
                llama.llama_sampler_accept(sampler, token)

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                llama.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def _choose(self, ctx: Any, *samplers: Any) -> int:
        import numpy as np

        logits = llama.llama_get_logits_ith(ctx, -1)
        candidates = np.zeros(self._n_vocab, dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        candidates["id"] = np.arange(self._n_vocab, dtype="i4")
        candidates["logit"] = np.ctypeslib.as_array(logits, shape=(self._n_vocab,))
        return self._apply(candidates.ctypes.data, self._n_vocab, *samplers)

    def _allows(self, token: int) -> bool:
        candidate = llama.llama_token_data(token, 1.0, 0.0)
        self._apply(llama.ctypes.addressof(candidate), 1, self._grammar)
        return bool(candidate.logit > float("-inf"))

    def _apply(self, address: int, count: int, *samplers: Any) -> int:
        """Run samplers over ``count`` candidates; return the token that the last one selected."""
        data = llama.ctypes.cast(address, llama.llama_token_data_p)
        array = llama.llama_token_data_array(data, count, -1, False)
        for sampler in samplers:
            llama.llama_sampler_apply(sampler, llama.ctypes.byref(array))
        return int(array.data[array.selected].id) if array.selected >= 0 else -1


def build_chain(sampling: Sampling, n_vocab: int, history: Sequence[int]) -> Any:
    """Biases → penalties → top-k → top-p → min-p → temperature → draw; greedy at temperature 0.

    Returns a ``llama_sampler *``; the caller frees it.
    """
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        llama.llama_sampler_chain_add(chain, sampler)

    if sampling.logit_bias:
        biases = (llama.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
        add(llama.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
    penalties = (
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    window = sampling.repeat_last_n
    if penalties != (1.0, 0.0, 0.0) and window > 0:
        add(llama.llama_sampler_init_penalties(n_vocab, window, *penalties))
    if sampling.temperature <= 0:
        add(llama.llama_sampler_init_greedy())
    else:
        if sampling.top_k > 0:
            add(llama.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        add(llama.llama_sampler_init_temp(sampling.temperature))
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(32)
        # 0xFFFFFFFF means "random" to llama.cpp; a seed is always a seed here.
        add(llama.llama_sampler_init_dist(seed % 0xFFFFFFFF))
    for token in history[-window:] if window else ():
        llama.llama_sampler_accept(chain, token)
    return chain
