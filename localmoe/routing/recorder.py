"""The trace format of localmoe: written as a stream, readable up to where it was cut.

A file is the line ``localmoe-trace 1``, one line of JSON (``TraceHeader``), and records. Integers
are little-endian. A record is ``kind u8, 3 zero bytes, length u32, payload``:

- ``S``, one step of the engine, n tokens: ``n u32, phase u8, flags u8, 0 u16``; ``token i32[n]``
  if flags & 1; ``rows u32[layers]`` if flags & 2, else every layer has n rows; then for all layers
  one after the other the ids, then the weights (``f16``) and the logits (``f32``) if the header
  says so. A layer's ids are ``[rows, k]``, u8 or, from 256 experts in any layer, u16; the largest
  value stands for "no expert in this slot". Fewer rows than n are those of the last tokens.
- ``P``, a prompt begins: JSON ``{"label": …}``, the domain or the name of a file.
- ``T``, texts of token ids: JSON ``{"17": " the", …}``.

Records of other kinds are skipped. A record that reaches beyond the end of the file is what an
interrupted recording leaves behind.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localmoe.errors import StorageError, TraceFileError
from localmoe.routing.records import ABSENT, Trace, TraceHeader, TraceLayer

MAGIC = b"localmoe-trace 1\n"
MAX_HEADER = 1 << 20  # bytes of the JSON line
MAX_ARRAYS = 4 << 30  # bytes of a trace in memory
MAX_NOTE = 16 << 20  # bytes of a P or T record
_RECORD = struct.Struct("<B3xI")
_STEP = struct.Struct("<IBBH")
_HAS_TOKENS, _HAS_ROWS = 1, 2

Array: TypeAlias = NDArray[Any]
Buffer: TypeAlias = bytes | mmap.mmap


class TraceWriter:
    """Appends steps to a new trace file; every step is in the file when ``append`` returns.

    A context manager. Raises StorageError when the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], header: TraceHeader) -> None:
        self.path = Path(path)
        self.header = header
        self._id_type = _id_type(header)
        self._limits = np.array([layer.experts for layer in header.layers])
        try:
            # Unbuffered: a killed recording has every step. What was asked of a model is private.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
        except OSError as error:
            raise _unwritable(self.path, error) from error
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
        if max(rows) > n or n == 0:
            raise ValueError(f"a layer with {max(rows)} rows in a step of {n} tokens")
        flat = np.concatenate([array.reshape(-1) for array in ids])
        if flat.min() < ABSENT or flat.max() >= self._limits.min():
            self._check_ids(ids)
        flags = (_HAS_TOKENS if tokens is not None else 0) | (_HAS_ROWS if min(rows) < n else 0)
        parts = [_STEP.pack(n, phase, flags, 0)]
        if tokens is not None:
            parts.append(np.asarray(tokens, "<i4").tobytes())
        if flags & _HAS_ROWS:
            parts.append(np.asarray(rows, "<u4").tobytes())
        parts.append(flat.astype(self._id_type).tobytes())  # -1 becomes the largest value
        if self.header.weights:
            shapes = [array.shape for array in ids]
            parts.append(_floats(weights, shapes, "<f2"))
        if self.header.logits:
            shapes = [(r, layer.experts) for r, layer in zip(rows, layers, strict=True)]
            parts.append(_floats(logits, shapes, "<f4"))
        self._record(b"S", b"".join(parts))

    def prompt(self, label: str) -> None:
        """What follows belongs to another prompt, of the domain (or file) ``label``."""
        self._record(b"P", json.dumps({"label": label[:200]}).encode())

    def pieces(self, texts: Mapping[int, str]) -> None:
        """Texts of token ids, for people who read the trace."""
        self._record(b"T", json.dumps({str(key): text for key, text in texts.items()}).encode())

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
        self._write(_RECORD.pack(kind[0], len(payload)) + payload)

    def _write(self, data: bytes) -> None:
        try:
            while data:  # an unbuffered write may be partial
                data = data[self._file.write(data) :]
        except OSError as error:
            raise _unwritable(self.path, error) from error


def read_binary(data: Buffer, name: str) -> Trace:
    """A trace in localmoe's format; ``name`` for messages.

    Never more memory than ``MAX_ARRAYS`` and about 32 times the file. Raises TraceFileError.
    """
    header, start = _read_header(data, name)
    try:
        return _Reader(data, header).read(start)
    except TraceFileError as error:
        raise TraceFileError(f"{name}: {error.message}", hint=error.hint) from error


class _Reader:
    """Two passes: count and check, then fill arrays of the right size."""

    def __init__(self, data: Buffer, header: TraceHeader) -> None:
        self.data, self.header = data, header
        self.id_type = _id_type(header)
        self.used = np.array([layer.used for layer in header.layers])
        self.experts = np.array([layer.experts for layer in header.layers])
        self.steps: list[tuple[int, int, int, int]] = []  # offset of the body, n, phase, flags
        self.starts: list[tuple[int, str]] = []  # first token of a prompt, its label
        self.pieces: dict[int, str] = {}

    def read(self, start: int) -> Trace:
        count, cut = self._scan(start)
        self._check_size(count)
        layers = self.header.layers
        ids = [np.full((count, layer.used), ABSENT, np.int16) for layer in layers]
        weights = (
            [np.full((count, layer.used), np.nan, np.float32) for layer in layers]
            if self.header.weights
            else None
        )
        logits = (
            [np.full((count, layer.experts), np.nan, np.float32) for layer in layers]
            if self.header.logits
            else None
        )
        tokens = np.full(count, -1, np.int32)
        at = 0
        for offset, n, _, flags in self.steps:
            offset, rows = self._lead(offset, n, flags, tokens[at : at + n])
            offset = self._ids(offset, rows, ids, at + n)
            if weights is not None:
                offset = self._fill(offset, rows, weights, at + n, "<f2")
            if logits is not None:
                offset = self._fill(offset, rows, logits, at + n, "<f4")
            at += n
        sizes = np.array([n for _, n, _, _ in self.steps], np.int64)
        segment, labels = _segments(self.starts, count)
        return Trace(
            header=self.header,
            phase=np.repeat(np.array([p for _, _, p, _ in self.steps], np.uint8), sizes),
            batch=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            tokens=tokens,
            segment=segment,
            labels=labels,
            layer_ids=tuple(ids),
            layer_weights=tuple(weights) if weights is not None else None,
            layer_logits=tuple(logits) if logits is not None else None,
            pieces=self.pieces,
            cut=cut,
        )

    def _scan(self, offset: int) -> tuple[int, bool]:
        """Tokens in all whole records, and whether the file ends within one."""
        count, end = 0, len(self.data)
        while offset < end:
            if end - offset < _RECORD.size:
                return count, True
            kind, length = _RECORD.unpack_from(self.data, offset)
            offset += _RECORD.size
            if length > end - offset:
                return count, True
            if kind == ord("S"):
                count += self._step(offset, length)
            elif kind == ord("P"):
                label = self._note(offset, length).get("label")
                self.starts.append((count, label if isinstance(label, str) else ""))
            elif kind == ord("T"):
                self._texts(self._note(offset, length))
            offset += length
        return count, False

    def _step(self, offset: int, length: int) -> int:
        """Check a step's length against what it says it holds; return its tokens."""
        if length < _STEP.size:
            raise _damaged(offset, "a step without a beginning")
        n, phase, flags, _ = _STEP.unpack_from(self.data, offset)
        layers = len(self.used)
        need = _STEP.size + (4 * n if flags & _HAS_TOKENS else 0)
        rows = np.full(layers, n, np.int64)
        if flags & _HAS_ROWS:
            if need + 4 * layers > length:
                raise _damaged(offset, "a step that is too short")
            rows = np.frombuffer(self.data, "<u4", layers, offset + need).astype(np.int64)
            need += 4 * layers
        if phase > 1 or n == 0 or int(rows.max()) != n:
            raise _damaged(offset, f"a step of {n} tokens in phase {phase}")
        slots = int(rows @ self.used)
        need += slots * (self.id_type.itemsize + (2 if self.header.weights else 0))
        need += int(rows @ self.experts) * 4 if self.header.logits else 0
        if need != length:
            raise _damaged(offset, f"a step of {length} bytes, {need} expected")
        self.steps.append((offset + _STEP.size, n, phase, flags))
        return int(n)

    def _check_size(self, count: int) -> None:
        width = int(self.used.sum()) * (6 if self.header.weights else 2)
        width += int(self.experts.sum()) * 4 if self.header.logits else 0
        size = count * width
        if size > MAX_ARRAYS:
            raise TraceFileError(
                f"{count:,} tokens take {size >> 20:,} MiB of memory, more than "
                f"{MAX_ARRAYS >> 20:,} MiB",
                hint="record fewer tokens, or without logits",
            )
        if size > max(64 << 20, 32 * len(self.data)):  # nearly all rows absent: nobody records that
            raise TraceFileError("damaged: most of its layers have no rows")

    def _lead(self, offset: int, n: int, flags: int, tokens: Array) -> tuple[int, Array]:
        if flags & _HAS_TOKENS:
            tokens[:] = np.frombuffer(self.data, "<i4", n, offset)
            offset += 4 * n
        if not flags & _HAS_ROWS:
            return offset, np.full(len(self.used), n, np.int64)
        rows = np.frombuffer(self.data, "<u4", len(self.used), offset).astype(np.int64)
        return offset + 4 * len(self.used), rows

    def _ids(self, offset: int, rows: Array, ids: Sequence[Array], end: int) -> int:
        nothing = np.iinfo(self.id_type).max
        for layer, array, r in zip(self.header.layers, ids, rows.tolist(), strict=True):
            raw = np.frombuffer(self.data, self.id_type, r * layer.used, offset)
            if r and (raw[raw != nothing] >= layer.experts).any():
                raise _damaged(offset, f"an expert that layer {layer.index} does not have")
            values = raw.astype(np.int16)
            values[raw == nothing] = ABSENT
            array[end - r : end] = values.reshape(r, layer.used)
            offset += raw.nbytes
        return offset

    def _fill(self, offset: int, rows: Array, into: Sequence[Array], end: int, kind: str) -> int:
        for array, r in zip(into, rows.tolist(), strict=True):
            raw = np.frombuffer(self.data, kind, r * array.shape[1], offset)
            array[end - r : end] = raw.reshape(r, array.shape[1])
            offset += raw.nbytes
        return offset

    def _note(self, offset: int, length: int) -> dict[str, Any]:
        if length > MAX_NOTE:
            raise _damaged(offset, f"a note of {length} bytes")
        return _json_object(self.data[offset : offset + length])

    def _texts(self, note: Mapping[str, Any]) -> None:
        for key, text in note.items():
            if isinstance(text, str) and key.isascii() and key.isdigit() and len(key) < 10:
                self.pieces[int(key)] = text[:200]


def _read_header(data: Buffer, name: str) -> tuple[TraceHeader, int]:
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + MAX_HEADER)
    try:
        if data[: len(MAGIC)] != MAGIC or end < 0:
            raise TraceFileError("not a trace of version 1")
        return header_from_json(_json_object(data[len(MAGIC) : end])), end + 1
    except TraceFileError as error:
        raise TraceFileError(f"{name}: {error.message}", hint=error.hint) from error


def header_from_json(document: Mapping[str, Any]) -> TraceHeader:
    """The header line. Unknown keys are ignored. Raises TraceFileError."""
    try:
        layers = tuple(
            TraceLayer(
                index=_whole(layer["index"]),
                experts=_whole(layer["experts"]),
                used=_whole(layer["used"]),
                expert_bytes=_whole(layer.get("expert_bytes", 0)),
            )
            for layer in document["layers"]
        )
        return TraceHeader(
            model=str(document.get("model", ""))[:200],
            architecture=str(document.get("architecture", ""))[:64],
            layers=layers,
            gating=str(document.get("gating", ""))[:400],
            dense_bytes=_whole(document.get("dense_bytes", 0)),
            weights=bool(document.get("weights", True)),
            logits=bool(document.get("logits", False)),
            source=str(document.get("source", ""))[:200],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceFileError("its header is damaged") from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 50:
        raise ValueError(value)
    return value


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TraceFileError("damaged: a part of it is not JSON") from error
    if not isinstance(value, dict):
        raise TraceFileError("damaged: a part of it is not a JSON object")
    return value


def _segments(starts: Sequence[tuple[int, str]], count: int) -> tuple[Array, tuple[str, ...]]:
    """Prompt numbers i32[count] and their labels; tokens before the first prompt have their own."""
    if not starts or starts[0][0] > 0:
        starts = [(0, ""), *starts]
    begins = np.array([first for first, _ in starts])
    numbers = np.searchsorted(begins, np.arange(count), side="right") - 1
    return numbers.astype(np.int32), tuple(label for _, label in starts)


def _id_type(header: TraceHeader) -> np.dtype[Any]:
    return np.dtype("u1" if max(layer.experts for layer in header.layers) < 256 else "<u2")


def _floats(values: Sequence[Array] | None, shapes: Sequence[tuple[int, ...]], kind: str) -> bytes:
    if values is None:
        return np.full(sum(a * b for a, b in shapes), np.nan, kind).tobytes()
    if [array.shape for array in values] != list(shapes):
        raise ValueError(f"weights are [rows, k] and logits [rows, experts]: {shapes} expected")
    return np.concatenate([array.reshape(-1) for array in values]).astype(kind).tobytes()


def _damaged(offset: int, what: str) -> TraceFileError:
    return TraceFileError(f"damaged at byte {offset}: {what}")


def _unwritable(path: Path, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    hint = "free some disk space" if error.errno == 28 else "name another file"
    return StorageError(f"cannot write the trace {path}: {reason}", hint=hint)
