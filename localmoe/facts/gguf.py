"""Bounded reader of GGUF headers. The file is untrusted: every number in it is checked before use.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header is a magic, a version,
metadata as typed key–value pairs, and a table of tensors (name, shape, type, offset); the data
follows, aligned. Nothing is trusted: counts are held against the bytes that exist, strings, nesting
and totals are bounded, and the reader keeps only a window of the file in memory.

Long arrays (vocabularies: 150,000 strings) are walked, not kept: the engine has its own tokenizer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localmoe.errors import ModelFileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_STRING = 10 * 1024 * 1024  # bytes
MAX_KEPT = 64 * 1024 * 1024  # bytes of strings and array elements that one header may keep
MAX_HEADER = 128 * 1024 * 1024  # bytes; real ones have at most about 15 MB
MAX_STRINGS = 2_000_000  # in arrays; real vocabularies with merges have under a million
MAX_ARRAYS = 100_000
MAX_NESTING = 4
MAX_KEYS = 100_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**62
MAX_ALIGNMENT = 1 << 20
KEEP_ELEMENTS = 4096  # arrays up to this length are kept as tuples
BLOCK = 1 << 20  # bytes read at a time

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""``ggml_type`` → (name, elements per block, bytes per block), from ggml.h and ggml-common.h.

Our own table, since the ``gguf`` package takes 0.2 s to import and lags behind the engine; a test
holds the two together.
"""

_SCALARS = {
    0: ("<B", 1),
    1: ("<b", 1),
    2: ("<H", 2),
    3: ("<h", 2),
    4: ("<I", 4),
    5: ("<i", 4),
    6: ("<f", 4),
    7: ("<?", 1),
    10: ("<Q", 8),
    11: ("<q", 8),
    12: ("<d", 8),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class LongArray:
    """A metadata array too long to keep: what it held."""

    element_type: str  # "string", "number" or "array"
    count: int


Value = int | float | bool | str | tuple["Value", ...] | LongArray


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One row of the tensor table. ``shape`` in GGUF order, fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int  # bytes from the start of the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the tensor data of one file."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]
    nbytes: int  # where the tensor data begins
    file_size: int


class ByteSource(Protocol):
    """Where a header comes from: a file, or ranges of a remote one."""

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; fewer only at the end."""
        ...


class FileSource:
    """A local file."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise unreadable(path, error) from error
        self.size = path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        try:
            self._file.seek(offset)
            return self._file.read(length)
        except OSError as error:
            raise unreadable(self._path, error) from error

    def close(self) -> None:
        self._file.close()


def unreadable(path: Path, error: OSError) -> ModelFileError:
    """The typed error of a file that the system does not let us read."""
    hints = {
        FileNotFoundError: "check the path; localmoe list shows the models on this machine",
        PermissionError: f"chmod +r {path}",
        IsADirectoryError: "name the .gguf file inside",
    }
    return ModelFileError(
        f"cannot read {path}: {error.strerror or error}",
        hint=next((hint for kind, hint in hints.items() if isinstance(error, kind)), None),
    )


def read_header(source: ByteSource) -> Header:
    """Parse and check one header. Raises ModelFileError; never reads tensor data."""
    cursor = _Cursor(source)
    magic = cursor.take(4) if source.size >= 4 else b""
    if magic != MAGIC:
        raise cursor.error("it is not a GGUF file", hint=_what_it_is(magic))
    (version,) = struct.unpack("<I", cursor.take(4))
    if version not in VERSIONS:
        if version.to_bytes(4, "little")[::-1] in (v.to_bytes(4, "little") for v in VERSIONS):
            raise cursor.error("it is big-endian", hint="get a little-endian conversion")
        raise cursor.error(
            f"GGUF version {version} is not known (2 and 3 are)",
            hint="get a conversion of this model made for today's llama.cpp",
        )
    tensor_count = cursor.count("tensor", MAX_TENSORS, 4 + 8 + 4 + 8 + 8)
    key_count = cursor.count("metadata", MAX_KEYS, 8 + 4 + 1)
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.string(65535)
        metadata[key] = cursor.value(cursor.u32(), 0)
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise cursor.error(f"its alignment {alignment!r} is not a power of two")
    rows = [cursor.tensor() for _ in range(tensor_count)]
    start = -(-cursor.position // alignment) * alignment
    if not rows:
        start = min(start, source.size)
    tensors = tuple(
        TensorEntry(name, shape, kind, start + offset, nbytes)
        for name, shape, kind, offset, nbytes in rows
    )
    _check_layout(cursor, tensors, alignment, start)
    return Header(version, metadata, tensors, start, source.size)


def _what_it_is(magic: bytes) -> str:
    if magic.startswith((b"<", b"\n<")):
        return "it looks like a web page: the download went wrong; download it again"
    if magic in (b"ggjt", b"ggml", b"ggmf", b"tjgg", b"lmgg"):
        return "it is a GGML file from before GGUF; get a newer conversion"
    if magic.startswith(b"PK") or magic[1:3] == b"\x00\x00":
        return "it looks like PyTorch or safetensors weights; localmoe runs GGUF files"
    return "localmoe runs GGUF files; is this the whole download?"


def _check_layout(
    cursor: _Cursor, tensors: tuple[TensorEntry, ...], alignment: int, start: int
) -> None:
    """Unique names, aligned, inside the file, not overlapping."""
    if len({t.name for t in tensors}) != len(tensors):
        raise cursor.error("two tensors have the same name")
    end = start
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset % alignment:
            raise cursor.error(f"tensor {tensor.name!r} is not aligned")
        if tensor.offset < end:
            raise cursor.error(f"tensor {tensor.name!r} overlaps another one")
        end = tensor.offset + tensor.nbytes
        if end > cursor.size:
            raise cursor.error(
                f"it is truncated: tensor {tensor.name!r} ends at byte {end:,}, "
                f"the file has {cursor.size:,}",
                hint="download it again",
            )


class _Cursor:
    """A forward reader with a window of at most a few blocks in memory."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._window = b""
        self._start = 0  # file offset of the window
        self._at = 0  # offset in the window
        self._kept = self._arrays = self._strings = 0
        self.size = source.size

    @property
    def position(self) -> int:
        return self._start + self._at

    def error(self, what: str, *, hint: str | None = None) -> ModelFileError:
        return ModelFileError(f"{self._source.name}: {what}", hint=hint)

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        self._need(length)
        data = self._window[self._at : self._at + length]
        self._at += length
        return data

    def skip(self, length: int) -> None:
        """Go forward without reading what is passed over."""
        if self.position + length > self.size:
            raise self._truncated()
        if self._at + length <= len(self._window):
            self._at += length
        else:
            self._start, self._window, self._at = self.position + length, b"", 0

    def u32(self) -> int:
        value: int = struct.unpack("<I", self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = struct.unpack("<Q", self.take(8))[0]
        return value

    def count(self, what: str, limit: int, least: int) -> int:
        """A count whose entries take at least ``least`` bytes each, so the file bounds it."""
        value = self.u64()
        if value > limit or value * least > self.size:
            raise self.error(f"it claims {value:,} {what} entries in {self.size:,} bytes")
        return value

    def string(self, limit: int = MAX_STRING) -> str:
        length = self.u64()
        if length > limit:
            raise self.error(f"a string of {length:,} bytes (at most {limit:,})")
        self._keep(length)
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int) -> Value:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth + 1)
        if kind not in _SCALARS:
            raise self.error(f"metadata type {kind} is not known")
        form, size = _SCALARS[kind]
        value: Value = struct.unpack(form, self.take(size))[0]
        return value

    def tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        name = self.string(65535)
        dimensions = self.u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(f"tensor {name!r} has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        kind, offset = self.u32(), self.u64()
        if kind not in TENSOR_TYPES:
            raise self.error(
                f"tensor {name!r} has type {kind}, which the engine does not know",
                hint="get another quantization, or a newer localmoe",
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        elements = 1
        for size in shape:
            elements *= size
            if not 0 < elements <= MAX_ELEMENTS:
                raise self.error(f"tensor {name!r} has the impossible shape {shape}")
        if shape[0] % block:
            raise self.error(f"tensor {name!r}: rows of {shape[0]} do not divide into {type_name}")
        if offset > self.size:
            raise self.error(
                f"it is truncated: tensor {name!r} begins at byte {offset:,} of the data, "
                f"the file has {self.size:,}",
                hint="download it again",
            )
        return name, shape, type_name, offset, elements // block * block_bytes

    def _array(self, depth: int) -> Value:
        if depth > MAX_NESTING:
            raise self.error(f"metadata arrays nested more than {MAX_NESTING} deep")
        kind = self.u32()
        least = 8 if kind == _STRING else 12 if kind == _ARRAY else _SCALARS.get(kind, ("", 1))[1]
        count = self.count("array", 2**40, least)
        self._arrays += 1
        self._strings += count if kind == _STRING else 0
        if self._arrays > MAX_ARRAYS or self._strings > MAX_STRINGS:
            raise self.error("its metadata has more arrays or strings than any real model")
        if kind in _SCALARS:
            form, size = _SCALARS[kind]
            if count > KEEP_ELEMENTS:
                self.skip(count * size)
                return LongArray("number", count)
            self._keep(count * size)
            return struct.unpack(f"<{count}{form[1]}", self.take(count * size))
        if kind == _STRING:
            if count > KEEP_ELEMENTS:
                self._skip_strings(count)
                return LongArray("string", count)
            return tuple(self.string() for _ in range(count))
        if kind != _ARRAY:
            raise self.error(f"metadata type {kind} is not known")
        if count > KEEP_ELEMENTS:
            raise self.error(f"an array of {count:,} arrays")
        return tuple(self._array(depth + 1) for _ in range(count))

    def _skip_strings(self, count: int) -> None:
        """Walk over strings without making objects of them: 150,000 in a few hundredths of a s."""
        unpack = struct.Struct("<Q").unpack_from
        while count:
            self._need(8)
            window, at = self._window, self._at
            end = len(window) - 8
            while count and at <= end:
                length = unpack(window, at)[0]
                if length > MAX_STRING:
                    raise self.error(f"a string of {length:,} bytes (at most {MAX_STRING:,})")
                at += 8 + length
                count -= 1
            self._at = min(at, len(window))
            if at > len(window):
                self.skip(at - len(window))

    def _keep(self, nbytes: int) -> None:
        self._kept += nbytes
        if self._kept > MAX_KEPT:
            raise self.error(f"a header with more than {MAX_KEPT:,} bytes of text")

    def _need(self, length: int) -> None:
        """Have the next ``length`` bytes in the window."""
        if self._at + length <= len(self._window):
            return
        position = self.position
        if position + length > self.size:
            raise self._truncated()
        if position + length > MAX_HEADER:
            raise self.error(f"a header of more than {MAX_HEADER:,} bytes")
        rest = self._window[self._at :]
        wanted = min(max(length, BLOCK), self.size - position) - len(rest)
        more = self._source.read(position + len(rest), wanted) if wanted > 0 else b""
        self._window, self._start, self._at = rest + more, position, 0
        if len(self._window) < length:
            raise self._truncated()

    def _truncated(self) -> ModelFileError:
        return self.error(
            f"it ends inside the header (at byte {self.size:,})", hint="download it again"
        )
