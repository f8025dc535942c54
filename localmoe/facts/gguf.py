"""GGUF headers, read from untrusted bytes within bounds of time and memory.

Format: ggml's docs/gguf.md, versions 2 and 3, little-endian; where llama.cpp is stricter than the
format, so is this (tensor data must lie one after the other), because the engine must open what
passes here. Every count is checked against the bytes that exist before anything of its size is
made. Long arrays (vocabularies) are walked or skipped, not decoded.

    read_header(source) → Header
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from localmoe.errors import ModelFileError
from localmoe.facts.cursor import Cursor
from localmoe.facts.ggml_types import REMOVED_TYPES, TENSOR_TYPES, TensorType
from localmoe.facts.source import ByteSource
from localmoe.text import clean_line

# Far above any model known, far below what would take a second or 200 MB.
MAX_STRING = 10_000_000  # bytes
MAX_KEY = 65_535  # bytes, the format's own limit
MAX_NAME = 63  # bytes of a tensor's name, llama.cpp's GGML_MAX_NAME - 1
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_KEYS = 10_000
MAX_TENSORS = 20_000  # real models have at most a few thousand; the engine's check is quadratic
MAX_SMALL_ARRAY = 1024  # elements; longer arrays become a LongArray
MAX_VALUES = 200_000  # decoded elements of small arrays together
MAX_TEXT = 16_000_000  # bytes of decoded strings together
MAX_LONG_STRINGS = 2_000_000  # strings of long arrays together; the largest vocabularies: 0.8 M
HEAD = 8  # elements of a long array that are decoded at once

_STRING, _ARRAY = 8, 9
_SCALARS = {  # value type → (name, struct code); docs/gguf.md, gguf_metadata_value_type
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array left in the file: its length and its first elements. ``decode_array`` reads it."""

    element: str  # "string", "float32", …
    count: int
    offset: int  # bytes from the start of the file to the first element
    head: tuple[Value, ...]
    end: int  # bytes from the start of the file to what follows

    def __len__(self) -> int:
        return self.count


Value = int | float | bool | str | tuple["Value", ...] | LongArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of a file's tensor table. ``shape``: fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int  # bytes from the start of the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything in a GGUF file but its tensor data."""

    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int  # bytes before the tensor data
    size: int  # bytes of the whole file


def read_header(source: ByteSource) -> Header:
    """Read and check the header of one file. Raises ModelFileError when anything in it is wrong."""
    return _HeaderReader(source).read()


def metadata_entries(source: ByteSource) -> Iterator[tuple[str, Value]]:
    """The keys and values of a file in their order, each read when it is asked for.

    Raises ModelFileError where the file stops being a GGUF file.
    """
    reader = _HeaderReader(source)
    _, _, keys = reader.preamble()
    return reader.entries(keys)


def decode_array(source: ByteSource, array: LongArray) -> Iterator[Value]:
    """All elements of a long array, one at a time."""
    cursor = Cursor(source, array.offset)
    if array.element == "string":
        for _ in range(array.count):
            yield _text(cursor.take(cursor.u64("a string length"), "a string"))
        return
    code = next(code for name, code in _SCALARS.values() if name == array.element)
    width = struct.calcsize("<" + code)
    for _ in range(array.count):
        yield struct.unpack("<" + code, cursor.take(width, "an array"))[0]


class _HeaderReader:
    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.cursor = Cursor(source)
        self.values_left = MAX_VALUES
        self.text_left = MAX_TEXT
        self.strings_left = MAX_LONG_STRINGS

    def read(self) -> Header:
        version, tensor_count, key_count = self.preamble()
        metadata: dict[str, Value] = {}
        for key, value in self.entries(key_count):
            if key in metadata:
                self._bad(f"the metadata key {_quoted(key)} occurs twice")
            metadata[key] = value
        alignment = self._alignment(metadata)
        table = [self._tensor_entry() for _ in range(tensor_count)]
        data_start = self.cursor.position
        if table:
            data_start += -data_start % alignment
        tensors = self._placed(table, data_start, alignment)
        return Header(version, metadata, tensors, data_start, self.source.size)

    def preamble(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of keys."""
        size = self.source.size
        if size == 0:
            self._bad("the file is empty", hint="download it again")
        magic = self.cursor.take(min(4, size), "the magic")
        if magic == b"FUGG":
            self._big_endian()
        if magic != b"GGUF":
            kind = _other_kind(magic, self.source)
            self._bad(f"not a GGUF file{kind}", hint="localmoe runs models in GGUF format")
        version = self.cursor.u32("the version")
        if version and version & 0xFFFF == 0:
            self._big_endian()
        if version not in (2, 3):
            hint = (
                "convert it again with a current llama.cpp"
                if version < 2
                else "a newer localmoe may read it: pip install --upgrade localmoe"
            )
            self._bad(f"GGUF version {version}; versions 2 and 3 can be read", hint=hint)
        tensors = self._count("tensors", self.cursor.u64("the tensor count"), 24, MAX_TENSORS)
        keys = self._count("metadata keys", self.cursor.u64("the key count"), 13, MAX_KEYS)
        return version, tensors, keys

    def entries(self, count: int) -> Iterator[tuple[str, Value]]:
        for _ in range(count):
            key = self._string(MAX_KEY, "a metadata key")
            if not key:
                self._bad("a metadata key is empty")
            yield key, self._value(self.cursor.u32("a value type"), key)

    def _value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._string(MAX_STRING, f"the value of {_quoted(key)}")
        if kind == _ARRAY:
            return self._array(key, 1)
        _, code = self._scalar(kind, key)
        return self._numbers(code, 1, key)[0]

    def _array(self, key: str, depth: int) -> Value:
        if depth > MAX_NESTING:
            self._bad(f"{_quoted(key)} nests arrays deeper than {MAX_NESTING}")
        kind = self.cursor.u32("an element type")
        count = self.cursor.u64("an array length")
        smallest = 8 if kind == _STRING else 12
        if kind not in (_STRING, _ARRAY):
            smallest = struct.calcsize("<" + self._scalar(kind, key)[1])
        self._count(f"elements of {_quoted(key)}", count, smallest, _INT64_MAX)
        if count > MAX_SMALL_ARRAY:
            return self._long_array(kind, count, key, depth)
        self.values_left -= count
        if self.values_left < 0:
            self._bad("more metadata than any model has")
        if kind == _STRING:
            what = f"an element of {_quoted(key)}"
            return tuple(self._string(MAX_STRING, what) for _ in range(count))
        if kind == _ARRAY:
            return tuple(self._array(key, depth + 1) for _ in range(count))
        return self._numbers(self._scalar(kind, key)[1], count, key)

    def _long_array(self, kind: int, count: int, key: str, depth: int) -> LongArray:
        start = self.cursor.position
        if kind == _ARRAY or depth > 1:
            self._bad(f"{_quoted(key)} holds {count:,} values in nested arrays")
        if kind == _STRING:
            self.strings_left -= count
            if self.strings_left < 0:
                self._bad(f"{_quoted(key)} holds {count:,} strings")
            what = f"an element of {_quoted(key)}"
            head = tuple(self._string(MAX_STRING, what) for _ in range(HEAD))
            self.cursor.skip_strings(count - HEAD, MAX_STRING, what)
            return LongArray("string", count, start, head, self.cursor.position)
        name, code = self._scalar(kind, key)
        numbers = self._numbers(code, HEAD, key)
        self.cursor.skip((count - HEAD) * struct.calcsize("<" + code), _quoted(key))
        return LongArray(name, count, start, numbers, self.cursor.position)

    def _alignment(self, metadata: dict[str, Value]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._bad(f"the alignment is {_quoted(str(alignment))}, not a power of two")
        return alignment

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        cursor = self.cursor
        name = self._string(MAX_NAME, "a tensor name")
        dimensions = cursor.u32("the dimensions of a tensor")
        if dimensions > MAX_DIMENSIONS:
            self._bad(f"tensor {_quoted(name)} has {dimensions} dimensions; 4 is the most")
        shape = cursor.u64s(dimensions, "the shape of a tensor")
        number = cursor.u32("the type of a tensor")
        offset = cursor.u64("the offset of a tensor")
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            self._unknown_type(name, number)
        return name, shape, kind, offset

    def _placed(
        self,
        table: list[tuple[str, tuple[int, ...], TensorType, int]],
        data_start: int,
        alignment: int,
    ) -> tuple[TensorInfo, ...]:
        tensors: list[TensorInfo] = []
        names: set[str] = set()
        expected = end = 0
        for name, shape, kind, offset in table:
            if name in names:
                self._bad(f"the tensor {_quoted(name)} occurs twice")
            names.add(name)
            nbytes = self._nbytes(name, shape, kind)
            if offset != expected:
                self._bad(
                    f"tensor {_quoted(name)} starts at byte {offset} of the data, not at "
                    f"{expected}, where the one before it ends"
                )
            tensors.append(TensorInfo(name, shape, kind, data_start + offset, nbytes))
            end = offset + nbytes
            expected = end + -end % alignment
        if data_start + end > self.source.size:
            size, whole = self.source.size, data_start + end
            self._bad(
                f"cut off: {size:,} of {whole:,} bytes are there ({100 * size // whole} %)",
                hint="download it again",
            )
        return tuple(tensors)

    def _nbytes(self, name: str, shape: tuple[int, ...], kind: TensorType) -> int:
        elements = 1
        for length in shape:
            if not 1 <= length <= _INT64_MAX:
                self._bad(f"tensor {_quoted(name)} has a dimension of {length}")
            elements *= length
        if elements > _INT64_MAX:
            self._bad(f"tensor {_quoted(name)} has {elements} elements")
        row = shape[0] if shape else 1
        if row % kind.block_size:
            self._bad(
                f"tensor {_quoted(name)} has rows of {row}; {kind.name} stores blocks of "
                f"{kind.block_size}"
            )
        return elements // kind.block_size * kind.block_bytes

    def _string(self, limit: int, what: str) -> str:
        length = self.cursor.u64(f"the length of {what}")
        if length > limit:
            self._bad(f"{what} has {length:,} bytes; {limit:,} is the most")
        self.text_left -= length
        if self.text_left < 0:
            self._bad("more text in the metadata than any model has")
        return _text(self.cursor.take(length, what))

    def _numbers(self, code: str, count: int, key: str) -> tuple[int | float | bool, ...]:
        layout = f"<{count}{code}"
        taken = self.cursor.take(struct.calcsize(layout), f"the value of {_quoted(key)}")
        return struct.unpack(layout, taken)

    def _scalar(self, kind: int, key: str) -> tuple[str, str]:
        known = _SCALARS.get(kind)
        if known is None:
            self._bad(f"{_quoted(key)} has the unknown value type {kind}")
        return known

    def _count(self, what: str, count: int, smallest: int, limit: int) -> int:
        if count > limit or count * smallest > self.cursor.left:
            self._bad(
                f"claims {count:,} {what}, with {self.cursor.left:,} bytes left to hold them"
                if count <= limit
                else f"claims {count:,} {what}; {limit:,} is the most"
            )
        return count

    def _unknown_type(self, name: str, number: int) -> NoReturn:
        removed = REMOVED_TYPES.get(number)
        if removed is not None:
            self._bad(
                f"tensor {_quoted(name)} has type {removed}, which llama.cpp no longer reads",
                hint="get a newer conversion of this model",
            )
        self._bad(
            f"tensor {_quoted(name)} has the unknown type {number}",
            hint="a newer localmoe may know it: pip install --upgrade localmoe",
        )

    def _big_endian(self) -> NoReturn:
        self._bad(
            "a big-endian GGUF file, and this machine is little-endian",
            hint="get the usual little-endian file of this model",
        )

    def _bad(self, what: str, *, hint: str = "download it again, or get another file") -> NoReturn:
        raise ModelFileError(f"{self.source.name}: {what}", hint=hint)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _quoted(name: str) -> str:
    """A name out of the file, safe and short enough for a message."""
    name = clean_line(name)
    return f'"{name[:77]}…"' if len(name) > 80 else f'"{name}"'


def _other_kind(magic: bytes, source: ByteSource) -> str:
    """The end of a message that says what a file without GGUF's magic probably is."""
    start = source.read(0, 256).lstrip().lower()
    if magic in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return " but its predecessor of 2023 (GGML), which llama.cpp no longer reads"
    if start.startswith((b"<!doctype", b"<html")):
        return " but a web page"
    if start.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer: the file itself was not downloaded"
    if source.read(8, 2) == b'{"':
        return " but probably safetensors"
    return ""
