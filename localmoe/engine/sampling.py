"""The sampler chain, built from llama.cpp's samplers in the order its own tools use."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from localmoe.engine.binding import llama
from localmoe.engine.events import Sampling

PENALTY_WINDOW = 64  # tokens; llama.cpp's default penalty_last_n


def build_chain(sampling: Sampling, n_vocab: int, history: Sequence[int]) -> Any:
    """Penalties → top-k → top-p → min-p → temperature → draw; greedy at temperature 0.

    ``history`` (token ids, oldest first) is what the repetition penalty looks back on.
    Returns a ``llama_sampler *``; the caller frees it.
    """
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        llama.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1.0:
        add(
            llama.llama_sampler_init_penalties(
                n_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0
            )
        )
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
    for token in history[-PENALTY_WINDOW:]:
        llama.llama_sampler_accept(chain, token)
    return chain
