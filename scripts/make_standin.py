"""Writes a stand-in for a published model: its real layer sizes and types, random weights.

For benchmarks on machines that cannot download the real one: the bytes per layer and expert, the
arithmetic and the memory traffic are the model's own; what it says is noise. Its routers prefer
some experts about as much as trained ones do (``standin_router.py``); to find out how, the model
is run once.

    python scripts/make_standin.py qwen3-30b-a3b --layers 24 -o standin.gguf

With ``--header-only`` the weights are a hole: a sparse file of full size that takes a few megabytes
on disk. ``localmoe fit`` and ``plan`` need no more; it cannot be run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.standin_router import calibrate, leaning
from tests.archs import deepseek, others, qwen
from tests.archs.blocks import Bytes, random_rows, row_bytes
from tests.archs.families import MXFP4, Q4_K_M, Family
from tests.archs.recipe import Dims, Recipe, TensorSpec
from tests.archs.vocabulary import Vocabulary, vocabulary
from tests.archs.writer import Data, TensorData, write

POOL_BYTES = 32 << 20
CHUNK_BYTES = 16 << 20

_QWEN3 = Dims(kv_heads=4, head_dim=128, experts=128, used=8, vocab=151936, context=40960)
_GPT_OSS = Dims(
    embd=2880,
    heads=64,
    kv_heads=8,
    head_dim=64,
    ff=2880,
    expert_ff=2880,
    used=4,
    vocab=201088,
    context=131072,
    window=128,
    rope_base=150000.0,
)
_ROPE = 1000000.0
MODELS: dict[str, Family] = {
    "qwen3-30b-a3b": Family(
        qwen.qwen3moe,
        replace(_QWEN3, layers=48, embd=2048, heads=32, ff=6144, expert_ff=768, rope_base=_ROPE),
        Q4_K_M,
    ),
    "qwen3-235b-a22b": Family(
        qwen.qwen3moe,
        replace(_QWEN3, layers=94, embd=4096, heads=64, ff=12288, expert_ff=1536, rope_base=_ROPE),
        Q4_K_M,
    ),
    "gpt-oss-20b": Family(others.gpt_oss, replace(_GPT_OSS, layers=24, experts=32), MXFP4),
    "gpt-oss-120b": Family(others.gpt_oss, replace(_GPT_OSS, layers=36, experts=128), MXFP4),
    "mixtral-8x7b": Family(
        others.llama,
        Dims(32, 4096, 32, 8, 128, 14336, 8, 2, 14336, vocab=32000, context=32768, rope_base=_ROPE),
        Q4_K_M,
    ),
    "olmoe-1b-7b": Family(
        others.olmoe, Dims(16, 2048, 16, 16, 128, 1024, 64, 8, 1024, vocab=50304), Q4_K_M
    ),
    "glm-4.7-flash": Family(  # DeepSeek's architecture
        deepseek.deepseek2,
        Dims(
            layers=47,
            embd=2048,
            heads=20,
            ff=10240,
            experts=64,
            used=4,
            expert_ff=1536,
            shared_ff=1536,
            vocab=154880,
            context=202752,
            rope_base=_ROPE,
            query_rank=768,
            latent_rank=512,
            nope_dim=192,
            value_dim=256,
        ),
        Q4_K_M,
    ),
    "qwen3-next-80b-a3b": Family(
        qwen.qwen3next,
        Dims(
            layers=48,
            embd=2048,
            heads=16,
            kv_heads=2,
            head_dim=256,
            ff=5120,
            experts=512,
            used=10,
            expert_ff=512,
            shared_ff=512,
            vocab=151936,
            context=262144,
            rope_base=10 * _ROPE,
            linear_state=128,
            linear_key_heads=16,
            linear_value_heads=32,
        ),
        Q4_K_M,
    ),
    "glm-4.5-air": Family(
        others.glm4moe,
        Dims(46, 4096, 96, 8, 128, 10944, 128, 8, 1408, 1408, vocab=151552, context=131072),
        Q4_K_M,
    ),
}


@dataclass(frozen=True)
class Rolled:
    """A tensor read from a pool of random blocks, from ``start`` on and round again.

    ``silent`` rows are zero in the end.
    """

    pool: Bytes  # (blocks, bytes per block)
    start: int  # block
    row_bytes: int
    rows: int
    silent: frozenset[int] = frozenset()
    change: Callable[[Bytes], None] | None = None  # what is done to the rows, in place

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def chunks(self) -> Iterator[Bytes]:
        """The rows in order, some megabytes at a time."""
        flat = self.pool.reshape(-1)
        per_chunk = max(1, CHUNK_BYTES // self.row_bytes)
        position = self.start * self.pool.shape[1]
        for first in range(0, self.rows, per_chunk):
            count = min(per_chunk, self.rows - first)
            chunk = np.empty(count * self.row_bytes, np.uint8)
            filled = 0
            while filled < chunk.size:
                piece = flat[position : position + chunk.size - filled]
                chunk[filled : filled + piece.size] = piece
                filled += piece.size
                position = (position + piece.size) % flat.size
            rows = chunk.reshape(count, self.row_bytes)
            if self.change is not None:
                self.change(rows)
            rows[[i - first for i in self.silent if first <= i < first + count]] = 0
            yield rows

    def tofile(self, file: BinaryIO, /) -> None:
        for chunk in self.chunks():
            chunk.tofile(file)


@dataclass(frozen=True)
class Hole:
    """A tensor that takes its place in the file but no space on disk."""

    nbytes: int

    def tofile(self, file: BinaryIO, /) -> None:
        end = file.tell() + self.nbytes
        file.flush()
        file.truncate(end)
        file.seek(end)


def hollow_data(spec: TensorSpec) -> TensorData:
    """No weights at all."""
    return Hole(spec.rows * row_bytes(spec.shape[0], spec.kind))


def pooled_data(recipe: Recipe, seed: int, words: Vocabulary, pool_bytes: int) -> Data:
    """Weights for large files: quantised tensors from pools, the small float ones drawn anew.

    A pool holds a prime number of blocks, and tensors of one shape continue where the last one
    ended. So expert n begins n times its size into the pool, modulo a prime: bytes recur, but no
    two experts are equal until there are as many experts as blocks.
    """
    rng = np.random.default_rng(seed)
    pools: dict[tuple[GGMLQuantizationType, float], Bytes] = {}
    cursors: dict[tuple[GGMLQuantizationType, float, tuple[int, ...]], int] = {}
    tied = all(spec.name != "output.weight" for spec in recipe.tensors)
    output = "token_embd.weight" if tied else "output.weight"

    def data(spec: TensorSpec) -> TensorData:
        if spec.kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return random_rows(rng, spec.rows, spec.shape[0], spec.kind, spec.deviation, spec.mean)
        key = spec.kind, spec.deviation
        if key not in pools:
            per_block, size = GGML_QUANT_SIZES[spec.kind]
            blocks = _prime_up_to(pool_bytes // size)
            pools[key] = random_rows(rng, blocks, per_block, spec.kind, spec.deviation)
        pool, width = pools[key], row_bytes(spec.shape[0], spec.kind)
        start = cursors.get((*key, spec.shape), 0)
        cursors[*key, spec.shape] = (start + spec.rows * width // pool.shape[1]) % len(pool)
        silent = frozenset(words.silent) if spec.name == output else frozenset[int]()
        change = leaning(spec, rng) if spec.name == "token_embd.weight" else None
        return Rolled(pool, start, width, spec.rows, silent, change)

    return data


def _prime_up_to(limit: int) -> int:
    """The greatest prime that is not above ``limit`` (≥ 2)."""
    candidate = limit
    while any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate -= 1
    return candidate


def make_standin(
    family: Family,
    path: Path,
    *,
    layers: int | None = None,
    vocab: int | None = None,
    seed: int = 0,
    pool_bytes: int = POOL_BYTES,
    header_only: bool = False,
    uniform: bool = False,
) -> Path:
    """Writes ``family`` with ``layers`` of its layers and ``vocab`` tokens (None: its own).

    ``uniform``: routers of random weights, which use all experts alike.
    """
    dims = replace(
        family.dims, layers=layers or family.dims.layers, vocab=vocab or family.dims.vocab
    )
    family = replace(family, dims=dims)
    recipe = family.recipe()
    words = vocabulary(dims.vocab)
    path = write(
        recipe,
        path,
        data=hollow_data if header_only else pooled_data(recipe, seed, words, pool_bytes),
        vocabulary=words,
        file_type=family.storage.file_type,
        name=path.stem,
    )[0]
    if not (header_only or uniform):
        calibrate(path, seed=seed)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--layers", type=int, help="layers to write (default: all)")
    parser.add_argument("--vocab", type=int, help="tokens, at least 512 (default: the model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--header-only", action="store_true", help="a hole for the weights")
    parser.add_argument("--uniform", action="store_true", help="routers without preferences")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    if (options.layers or 1) < 1 or (options.vocab or 512) < 512:
        parser.error("--layers must be at least 1 and --vocab at least 512")
    begun = time.monotonic()
    try:
        path = make_standin(
            MODELS[options.model],
            options.output,
            layers=options.layers,
            vocab=options.vocab,
            seed=options.seed,
            header_only=options.header_only,
            uniform=options.uniform,
        )
    except OSError as error:
        print(f"make_standin: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begun
    size = path.stat().st_size
    print(f"{path}: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / seconds / 1e6:.0f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
