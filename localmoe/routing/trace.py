"""Routing traces: ``TraceWriter(path, header)`` records, ``read_trace(path)`` reads any kind.

header = TraceHeader.of_model(model)
with TraceWriter(path, header) as writer:
    writer.append(PREFILL, ids, weights, tokens=token_ids)   # ids[l]: i32[rows, k]
trace = read_trace(path)
trace.ids(layer)                                             # i16[tokens, k]
"""

from __future__ import annotations

import codecs
import gzip
import io
import mmap
import os
import zlib
from pathlib import Path
from typing import BinaryIO

from localmoe.errors import TraceFileError
from localmoe.routing.csv_traces import MAX_LINE, MAX_ROWS, read_csv
from localmoe.routing.reader import Buffer, read_binary
from localmoe.routing.recorder import MAGIC, TraceWriter
from localmoe.routing.records import DECODE, PREFILL, Trace, TraceHeader, TraceLayer
from localmoe.text import clean_line

__all__ = [
    "DECODE",
    "PREFILL",
    "Trace",
    "TraceHeader",
    "TraceLayer",
    "TraceWriter",
    "read_trace",
]

MAX_UNPACKED = 512 << 20  # bytes of a compressed trace
MAX_PREAMBLE = 20_000  # lines before the rows, and empty ones
MAX_UTF16 = 64 << 20  # bytes of a trace in UTF-16, which is read at once
_BLOCK = 16 << 20


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """A trace of localmoe's format or CSV, either one also compressed by gzip.

    Raises TraceFileError for a file that is missing, damaged, too large or something else.
    """
    path = Path(path)
    name = clean_line(path.name) or "trace"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if path.is_dir() or size == 0:
                raise TraceFileError(f"{name} is empty")
            # Not closed here: while an error is on its way its traceback still has views of it.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if data[:2] == b"\x1f\x8b":
                unpacked = _unpack(file, name)
                return _read(unpacked, io.BytesIO(unpacked), name)
            return _read(data, file, name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "`localmoe experts record MODEL -o FILE` writes one"
        raise TraceFileError(f"cannot read the trace {name}: {reason}", hint=hint) from error


def _read(data: Buffer, file: BinaryIO, name: str) -> Trace:
    if data[: len(MAGIC)] == MAGIC:
        return read_binary(data, name)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # as spreadsheets write text
        if len(data) > MAX_UTF16:
            raise TraceFileError(f"{name}: too long for UTF-16", hint="save it as UTF-8")
        text = bytes(data).decode("utf-16", "replace")
        return _read(text.encode(), io.BytesIO(text.encode()), name)
    if b"\0" in data[:MAX_LINE]:
        raise TraceFileError(
            f"{name} is not a routing trace", hint="`localmoe experts record` writes one"
        )
    if _lines(data) > MAX_ROWS + MAX_PREAMBLE:
        raise TraceFileError(f"{name}: more than {MAX_ROWS:,} rows")
    lines = iter(lambda: file.readline(MAX_LINE + 2), b"")
    return read_csv((line.decode("utf-8", "replace") for line in lines), name)


def _lines(data: Buffer) -> int:
    """How many lines there are, counted in a fraction of the time that reading them takes."""
    return sum(data[at : at + _BLOCK].count(b"\n") for at in range(0, len(data), _BLOCK))


def _unpack(file: io.BufferedReader, name: str) -> bytes:
    try:
        with gzip.open(file) as packed:
            data = packed.read(MAX_UNPACKED + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceFileError(f"{name}: its compression is damaged") from error
    if len(data) > MAX_UNPACKED:
        raise TraceFileError(f"{name} unpacks to more than {MAX_UNPACKED >> 20:,} MiB")
    return data
