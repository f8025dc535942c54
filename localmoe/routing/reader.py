"""Reading traces of localmoe's own format (``recorder.py`` describes it): bounded and checked."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from localmoe.errors import TraceFileError
from localmoe.routing.recorder import (
    HAS_ROWS,
    HAS_TOKENS,
    MAGIC,
    RECORD,
    STEP,
    Array,
    id_type,
)
from localmoe.routing.records import ABSENT, Trace, TraceHeader, TraceLayer

MAX_HEADER = 1 << 20  # bytes of the JSON line
MAX_ARRAYS = 4 << 30  # bytes of a trace in memory
MAX_NOTE = 16 << 20  # bytes of a P or T record

Buffer: TypeAlias = bytes | mmap.mmap


def read_binary(data: Buffer, name: str) -> Trace:
    """The trace in ``data``, in localmoe's format; ``name`` is the file's name in messages.

    Takes at most ``MAX_ARRAYS`` bytes, and about 32 times the file. Raises TraceFileError.
    """
    header, start = _read_header(data, name)
    try:
        return _Reader(data, header).read(start)
    except TraceFileError as error:
        raise TraceFileError(f"{name}: {error.message}", hint=error.hint) from error


class _Reader:
    """Reads a trace in two passes: the first counts and checks, the second fills the arrays."""

    def __init__(self, data: Buffer, header: TraceHeader) -> None:
        self.data, self.header = data, header
        self.id_type = id_type(header)
        self.used = np.array([layer.used for layer in header.layers])
        self.experts = np.array([layer.experts for layer in header.layers])
        self.steps: list[tuple[int, int, int, int]] = []  # offset of the body, n, phase, flags
        self.starts: list[tuple[int, str]] = []  # first token of a prompt, its label
        self.token_texts: dict[int, str] = {}

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
                offset = self._fill(offset, rows, logits, at + n, "<f2")
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
            token_texts=self.token_texts,
            cut=cut,
        )

    def _scan(self, offset: int) -> tuple[int, bool]:
        """Tokens in all whole records, and whether the file ends within one."""
        count, end = 0, len(self.data)
        while offset < end:
            if end - offset < RECORD.size:
                return count, True
            kind, length = RECORD.unpack_from(self.data, offset)
            offset += RECORD.size
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
        if length < STEP.size:
            raise _damaged(offset, "a step without a beginning")
        n, phase, flags, _ = STEP.unpack_from(self.data, offset)
        layers = len(self.used)
        need = STEP.size + (4 * n if flags & HAS_TOKENS else 0)
        rows = np.full(layers, n, np.int64)
        if flags & HAS_ROWS:
            if need + 4 * layers > length:
                raise _damaged(offset, "a step that is too short")
            rows = np.frombuffer(self.data, "<u4", layers, offset + need).astype(np.int64)
            need += 4 * layers
        most = int(rows.max())
        # Without ids of tokens, n is believed only where some layer has as many rows.
        if phase > 1 or n == 0 or most > n or (most < n and not flags & HAS_TOKENS):
            raise _damaged(offset, f"a step of {n} tokens in phase {phase}")
        slots = int(rows @ self.used)
        need += slots * (self.id_type.itemsize + (2 if self.header.weights else 0))
        need += int(rows @ self.experts) * 2 if self.header.logits else 0
        if need != length:
            raise _damaged(offset, f"a step of {length} bytes, {need} expected")
        self.steps.append((offset + STEP.size, n, phase, flags))
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
        if flags & HAS_TOKENS:
            tokens[:] = np.frombuffer(self.data, "<i4", n, offset)
            offset += 4 * n
        if not flags & HAS_ROWS:
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
                self.token_texts[int(key)] = text[:200]


def _read_header(data: Buffer, name: str) -> tuple[TraceHeader, int]:
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + MAX_HEADER)
    try:
        if data[: len(MAGIC)] != MAGIC or end < 0:
            raise TraceFileError("not a trace of version 1")
        return header_from_json(_json_object(data[len(MAGIC) : end])), end + 1
    except TraceFileError as error:
        raise TraceFileError(f"{name}: {error.message}", hint=error.hint) from error


def header_from_json(document: Mapping[str, Any]) -> TraceHeader:
    """The header from its JSON line; unknown keys are ignored. Raises TraceFileError."""
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


def _damaged(offset: int, what: str) -> TraceFileError:
    return TraceFileError(f"damaged at byte {offset}: {what}")
