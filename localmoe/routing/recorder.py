"""The trace format of localmoe: written as a stream, readable up to where it was cut.

A file is the line ``localmoe-trace 1``, one line of JSON (``TraceHeader``), and records. Integers
are little-endian. A record is ``kind u8, 3 zero bytes, length u32, payload``:

- ``S``, one step of the engine, n tokens: ``n u32, phase u8, flags u8, 0 u16``; ``token i32[n]``
  if flags & 1; ``rows u32[layers]`` if flags & 2, else every layer has n rows; then for all layers
  one after the other the ids, then the weights and the logits (both ``f16``) if the header
  says so. A layer's ids are ``[rows, k]``, u8 or, from 256 experts in any layer, u16; the largest
  value stands for "no expert in this slot". Fewer rows than n are those of the last tokens.
- ``P``, a prompt begins: JSON ``{"label": …}``, the domain or the name of a file.
- ``T``, texts of token ids: JSON ``{"17": " the", …}``.

Records of other kinds are skipped. A record that reaches beyond the end of the file is what an
interrupted recording leaves behind.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localmoe.errors import StorageError
from localmoe.routing.records import ABSENT, TraceHeader

MAGIC = b"localmoe-trace 1\n"
RECORD = struct.Struct("<B3xI")
STEP = struct.Struct("<IBBH")
HAS_TOKENS, HAS_ROWS = 1, 2

Array: TypeAlias = NDArray[Any]


class TraceWriter:
    """Appends steps to a new trace file; every step is in the file when ``append`` returns.

    A context manager. Raises StorageError when the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], header: TraceHeader) -> None:
        self.path = Path(path)
        self.header = header
        self._id_type = id_type(header)
        self._limits = np.array([layer.experts for layer in header.layers])
        try:
            # Unbuffered: a killed recording has every step. What was asked of a model is private.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        line = json.dumps({"version": 1, **asdict(header)}, separators=(",", ":"))
        self._write(MAGIC + line.encode() + b"\n")

    def append(
        self,
        phase: int,
        ids: Sequence[Array],
        weights: Sequence[Array] | None = None,
        logits: Sequence[Array] | None = None,
        *,
        tokens: Sequence[int] | Array | None = None,
    ) -> None:
        """Add one engine step, layer by layer in the header's order.

        ``ids``: integers [rows, k], ``weights`` [rows, k], ``logits`` [rows, experts]; rows may be
        fewer than the step's tokens in a layer (then they are the last ones). Weights or logits
        that the header promises and the step lacks are written as NaN; others are left out.
        ``tokens``: the step's token ids. Raises ValueError for shapes or ids that do not match.
        """
        layers = self.header.layers
        if len(ids) != len(layers):
            raise ValueError(f"{len(ids)} layers in a step, {len(layers)} in the header")
        rows = [len(array) for array in ids]
        n = max(rows) if tokens is None else len(tokens)
        if any(a.shape != (r, layer.used) for a, r, layer in zip(ids, rows, layers, strict=True)):
            raise ValueError("expert ids must be [rows, k] in every layer")
        if max(rows) > n or n == 0 or (max(rows) < n and tokens is None):
            raise ValueError(f"a layer with {max(rows)} rows in a step of {n} tokens")
        flat = np.concatenate([array.reshape(-1) for array in ids])
        if flat.min() < ABSENT or flat.max() >= self._limits.min():
            self._check_ids(ids)
        flags = (HAS_TOKENS if tokens is not None else 0) | (HAS_ROWS if min(rows) < n else 0)
        parts = [STEP.pack(n, phase, flags, 0)]
        if tokens is not None:
            parts.append(np.asarray(tokens, "<i4").tobytes())
        if flags & HAS_ROWS:
            parts.append(np.asarray(rows, "<u4").tobytes())
        parts.append(flat.astype(self._id_type).tobytes())  # -1 becomes the largest value
        if self.header.weights:
            shapes = [array.shape for array in ids]
            parts.append(_floats(weights, shapes, "<f2"))
        if self.header.logits:
            shapes = [(r, layer.experts) for r, layer in zip(rows, layers, strict=True)]
            parts.append(_floats(logits, shapes, "<f2"))
        self._record(b"S", b"".join(parts))

    def prompt(self, label: str) -> None:
        """What follows belongs to another prompt, of the domain (or file) ``label``."""
        self._record(b"P", json.dumps({"label": label[:200]}).encode())

    def token_texts(self, texts: Mapping[int, str]) -> None:
        """Texts of token ids, for people who read the trace."""
        self._record(b"T", json.dumps({str(key): text for key, text in texts.items()}).encode())

    def fileno(self) -> int:
        """The open file: ``engine/native/recording.cpp`` writes the steps there itself."""
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_ids(self, ids: Sequence[Array]) -> None:
        for array, layer in zip(ids, self.header.layers, strict=True):
            if array.size and not (array.min() >= ABSENT and array.max() < layer.experts):
                raise ValueError(f"expert ids out of range in layer {layer.index}")

    def _record(self, kind: bytes, payload: bytes) -> None:
        self._write(RECORD.pack(kind[0], len(payload)) + payload)

    def _write(self, data: bytes) -> None:
        try:
            while data:  # an unbuffered write may be partial
                data = data[self._file.write(data) :]
        except OSError as error:
            raise unwritable(self.path, error) from error


def id_type(header: TraceHeader) -> np.dtype[Any]:
    """How expert ids are stored."""
    return np.dtype("u1" if max(layer.experts for layer in header.layers) < 256 else "<u2")


def _floats(values: Sequence[Array] | None, shapes: Sequence[tuple[int, ...]], kind: str) -> bytes:
    if values is None:
        return np.full(sum(a * b for a, b in shapes), np.nan, kind).tobytes()
    if [array.shape for array in values] != list(shapes):
        raise ValueError(f"weights are [rows, k] and logits [rows, experts]: {shapes} expected")
    return np.concatenate([array.reshape(-1) for array in values]).astype(kind).tobytes()


def unwritable(path: Path, error: OSError) -> StorageError:
    """What a user is told when a trace cannot be written."""
    reason = (error.strerror or str(error)).lower()
    hint = "free some disk space" if error.errno == 28 else "name another file"
    return StorageError(f"cannot write the trace {path}: {reason}", hint=hint)
