"""A better start than noise: embeddings that know which answers a token speaks for.

Drawing a question costs a thousandth of training on it. So before training, many questions are
drawn and counted, and each token's embedding begins as its association with the answers (positive
pointwise mutual information, reduced by a singular value decomposition as in latent semantic
analysis), plus noise for what the counts cannot tell. Training then refines it as any weight.
"""

from __future__ import annotations

import random

import numpy as np
from tokenizers import Tokenizer

from .compose import Composer
from .intents import Intent

SCALE = 0.04  # standard deviation of the embedding, as the other weights begin
NOISE = 0.5  # share of the noise in it
QUESTIONS = 200_000


def association(tokenizer: Tokenizer, composer: Composer, size: int) -> np.ndarray:
    """Return positive pointwise mutual information of token and answer, f64[tokens, answers]."""
    answers: dict[str, int] = {}
    counts = np.zeros((size, 512))
    turns = [composer.turn() for _ in range(QUESTIONS)]
    for encoding, turn in zip(
        tokenizer.encode_batch([turn.question for turn in turns]), turns, strict=True
    ):
        column = answers.setdefault(turn.intent, len(answers))
        counts[list(set(encoding.ids)), column] += 1
    counts = counts[:, : len(answers)]
    smooth = counts + 0.5 * counts.sum(axis=0, keepdims=True) / counts.sum()
    together = smooth / smooth.sum()
    apart = together.sum(axis=1, keepdims=True) * together.sum(axis=0, keepdims=True)
    return np.maximum(np.log(together / apart), 0.0) * (counts.sum(axis=1, keepdims=True) > 0)


def embedding(
    tokenizer: Tokenizer, known: dict[str, Intent], size: int, width: int, seed: int
) -> np.ndarray:
    """Return the first embedding, f32[size, width]; seeded."""
    composer = Composer(known, random.Random(seed))
    left, values, _ = np.linalg.svd(association(tokenizer, composer, size), full_matrices=False)
    rng = np.random.default_rng(seed)
    kept = min(width, len(values))
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    known_part = (left[:, :kept] * np.sqrt(values[:kept])) @ turn[:kept]
    norms = np.linalg.norm(known_part, axis=1, keepdims=True)
    known_part /= np.mean(norms[norms > 0]) / width**0.5
    noise = rng.standard_normal((size, width))
    mixed = (1 - NOISE) * known_part + NOISE * noise
    return (SCALE * mixed).astype(np.float32)
