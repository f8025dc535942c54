"""Seconds that multiplications take, from the rates of timed kernels. Pure.

On a processor ggml multiplies many tokens by a matrix of most types in tiles: the weights of a tile
are unpacked once and multiplied with up to 16 tokens; with fewer than 8, an expert's tokens are
multiplied one by one. An expert that has few of a batch's tokens takes nearly as long as with more.
Source: llama.cpp's ggml/src/ggml-cpu/tiled. So a model of many small experts, each with a few
tokens, reads prompts more slowly than its multiplications would say.
"""

from __future__ import annotations

from collections.abc import Mapping

from localmoe.facts.bandwidth import TypeRate, value_at
from localmoe.facts.ggml_types import TENSOR_TYPES
from localmoe.planning.work import Matrices

_TILED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_", "IQ2_", "IQ3_", "IQ4_XS")
TIMED = 32  # tokens that each expert had when ``TypeRate.experts`` was timed
UNPACK = 25  # an expert's weights are unpacked in the time that so many tokens are multiplied in

_BYTES_PER_WEIGHT = {
    kind.name: kind.block_bytes / kind.block_size for kind in TENSOR_TYPES.values()
}


def multiplying(
    m: Matrices, tokens: int, types: Mapping[str, TypeRate], threads: int, *, tiles: bool
) -> float:
    """Seconds of a batch: its first token reads a weight from memory, the others reuse it.

    ``tiles``: experts are multiplied as a processor does it.
    """
    rate = typed(types, m.kind)
    tokens = 1 if m.last_only else tokens
    one = m.nbytes / value_at(rate.vector if m.experts else rate.row, threads)
    touched = m.touched(tokens)
    if not (tiles and m.experts and m.kind.startswith(_TILED)):
        again = m.weights * (tokens * m.share - touched)
        return one * touched + again / value_at(rate.experts if m.experts else rate.dense, threads)
    each = tokens * m.share / max(1e-12, touched)  # tokens of an expert that has some
    tile = m.weights * TIMED / (TIMED + UNPACK) / value_at(rate.experts, threads)
    dense = m.weights * each / value_at(rate.dense, threads)
    together = max(one, tile * (UNPACK + each), dense)  # all is read from memory at least
    return touched * min(one * each, together)


def typed(types: Mapping[str, TypeRate], kind: str) -> TypeRate:
    """The rates of a storage type; one that was not timed gets those of the type nearest to it in
    bytes per weight.
    """
    if kind in types:
        return types[kind]
    size = _BYTES_PER_WEIGHT.get(kind, 1.0)
    near = min(types, key=lambda name: abs(_BYTES_PER_WEIGHT.get(name, 1.0) - size))
    scale = size / _BYTES_PER_WEIGHT.get(near, 1.0)
    known = types[near]
    vector, row = (tuple((x, y * scale) for x, y in of) for of in (known.vector, known.row))
    return TypeRate(vector, row, known.dense, known.experts)
