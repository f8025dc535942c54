"""Random tensor data in GGUF's storage types, built block by block instead of quantised.

Layouts: ggml-common.h (block_q4_K, block_q6_K, block_q8_0, block_mxfp4 …). Every block decodes to
values with mean 0 and the asked standard deviation, so a network of them stays well-behaved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Bytes = npt.NDArray[np.uint8]

# Standard deviation of one uniformly drawn code, in units of the block's scale.
_UNIFORM_I8 = float(np.std(np.arange(-127, 128)))
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_UNIFORM_Q6 = float(np.std(np.arange(64)))
_E2M1 = float(np.sqrt(np.mean(np.square([0, 0.5, 1, 1.5, 2, 3, 4, 6]))))


def row_bytes(columns: int, kind: GGMLQuantizationType) -> int:
    """Bytes of one row of ``columns`` values; ``columns`` must be a multiple of the block."""
    per_block, size = GGML_QUANT_SIZES[kind]
    if columns % per_block:
        raise ValueError(f"a row of {columns} values is not a multiple of {kind.name}'s block")
    return int(columns // per_block * size)


def random_rows(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    kind: GGMLQuantizationType,
    deviation: float,
    mean: float = 0.0,
) -> Bytes:
    """``rows`` × ``columns`` random values as raw bytes, shape (rows, bytes per row).

    ``mean`` is only for the float types; quantised blocks are centred on zero.
    """
    width = row_bytes(columns, kind)
    if kind in _FLOATS:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * deviation + mean
        return values.astype(_FLOATS[kind]).view(np.uint8).reshape(rows, width)
    _, size = GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(rng.bytes(rows * width), np.uint8).reshape(-1, size).copy()
    _FINISH[kind](blocks, deviation)
    return blocks.reshape(rows, width)


def _half(values: npt.NDArray[np.float64] | float) -> Bytes:
    return np.atleast_1d(np.asarray(values, np.float16)).view(np.uint8).reshape(-1, 2)


def _finish_q8_0(blocks: Bytes, deviation: float) -> None:
    blocks[:, 0:2] = _half(deviation / _UNIFORM_I8)


def _finish_q4_k(blocks: Bytes, deviation: float) -> None:
    """d, dmin (f16), 12 bytes of 6-bit scales and minimums, 128 bytes of 4-bit codes."""
    _finish_with_minimums(blocks, deviation, codes=16)


def _finish_q5_k(blocks: Bytes, deviation: float) -> None:
    """As Q4_K, with 32 bytes of high bits before the codes."""
    _finish_with_minimums(blocks, deviation, codes=32)


def _finish_with_minimums(blocks: Bytes, deviation: float, codes: int) -> None:
    """Every minimum code equals its scale code and dmin = d × the mean code: centred values."""
    scales = 32 + (blocks[:, 4:12] & 31)  # 8 per block, 32 … 63
    spread = float(np.std(np.arange(codes)))
    unit = deviation / (spread * float(np.sqrt(np.mean(np.square(np.arange(32, 64))))))
    blocks[:, 0:2] = _half(unit)
    blocks[:, 2:4] = _half(unit * (codes - 1) / 2)
    low, high = scales[:, :4], scales[:, 4:]
    blocks[:, 4:8] = low | (high >> 4) << 6
    blocks[:, 8:12] = blocks[:, 4:8]
    blocks[:, 12:16] = (high & 15) | (high & 15) << 4


def _finish_q2_k(blocks: Bytes, deviation: float) -> None:
    """16 bytes of 4-bit scales and minimums, 64 of 2-bit codes, d, dmin (f16). As Q4_K."""
    scales = 8 + (blocks[:, 0:16] & 7)
    spread = float(np.std(np.arange(4)))
    unit = deviation / (spread * float(np.sqrt(np.mean(np.square(np.arange(8, 16))))))
    blocks[:, 0:16] = scales | scales << 4
    blocks[:, 80:82] = _half(unit)
    blocks[:, 82:84] = _half(unit * 1.5)


def _finish_q4_0(blocks: Bytes, deviation: float) -> None:
    """d (f16), 16 bytes of codes from -8 to 7; d of either sign centres the values."""
    unit = _half(deviation / float(np.sqrt(np.mean(np.square(np.arange(-8, 8))))))
    blocks[:, 0] = unit[0, 0]
    blocks[:, 1] = unit[0, 1] | (blocks[:, 1] & 128)


def _finish_iq4_xs(blocks: Bytes, deviation: float) -> None:
    """d (f16), 6 bytes of 6-bit scales from -32 to 31, 128 bytes of codes into a table."""
    scale = float(np.sqrt(np.mean(np.square(np.arange(-32, 32)))))
    blocks[:, 0:2] = _half(deviation / (scale * float(np.sqrt(np.mean(np.square(_IQ4))))))


def _finish_q6_k(blocks: Bytes, deviation: float) -> None:
    """128 bytes of low codes, 64 of high codes, 16 signed scales, d (f16)."""
    magnitude = 64 + (blocks[:, 192:208] & 31)
    sign = np.where(blocks[:, 192:208] & 128, -1, 1)
    blocks[:, 192:208] = (magnitude * sign).astype(np.int8).view(np.uint8)
    unit = deviation / (_UNIFORM_Q6 * float(np.sqrt(np.mean(np.square(np.arange(64, 96))))))
    blocks[:, 208:210] = _half(unit)


def _finish_mxfp4(blocks: Bytes, deviation: float) -> None:
    """One power-of-two exponent (E8M0), 16 bytes of 4-bit floats (E2M1)."""
    blocks[:, 0] = round(127 + np.log2(deviation / _E2M1))


_FLOATS: dict[GGMLQuantizationType, type[np.floating]] = {
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F16: np.float16,
}
_FINISH: dict[GGMLQuantizationType, Callable[[Bytes, float], None]] = {
    GGMLQuantizationType.Q8_0: _finish_q8_0,
    GGMLQuantizationType.Q4_K: _finish_q4_k,
    GGMLQuantizationType.Q5_K: _finish_q5_k,
    GGMLQuantizationType.Q2_K: _finish_q2_k,
    GGMLQuantizationType.Q4_0: _finish_q4_0,
    GGMLQuantizationType.IQ4_XS: _finish_iq4_xs,
    GGMLQuantizationType.Q6_K: _finish_q6_k,
    GGMLQuantizationType.MXFP4: _finish_mxfp4,
}
