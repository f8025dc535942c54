"""Headers without their vocabularies: what is cut out, and how what is left stays a header.

Pure: bytes in, bytes out. ``headers`` fetches them, ``header_cache`` keeps them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import Header, LongArray, read_header

BORDER = 4096  # bytes compared at each end of the shared block
UNIT = 4096  # the cut keeps offsets modulo this, so that no alignment changes
_U64 = struct.Struct("<Q")
_COUNTS = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
_MODEL = "tokenizer.ggml.model"
_TOKENS = "tokenizer.ggml.tokens"
_TOKEN_TYPES = "tokenizer.ggml.token_type_count"  # changes the weights of some models


@dataclass(frozen=True, slots=True)
class Block:
    """The tokenizer's keys as they lie in one file, from the first to the last long array."""

    start: int  # bytes before it
    length: int
    keys: int
    tokens: int
    states_size: bool  # whether the file has ``ARCH.vocab_size`` beside it
    head: bytes  # its first bytes
    tail: bytes  # its last bytes


@dataclass(frozen=True, slots=True)
class Compact:
    """One file's header without its vocabulary."""

    data: bytes  # all bytes before the tensor data
    size: int  # bytes of the whole file, as it is on the Hub
    cut: int  # bytes that are missing from the real header; 0: it is the real one
    block: Block | None  # what was cut out

    @property
    def header_bytes(self) -> int:
        """Bytes of the real header."""
        return len(self.data) + self.cut


class BytesSource:
    """The first bytes of a file of ``size`` bytes, as a ``ByteSource``."""

    def __init__(self, data: bytes, size: int) -> None:
        self.name = "header"
        self.size = size
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def without_vocabulary(data: bytes, header: Header) -> Compact:
    """The header of a file, read in full as ``data``, with its vocabulary cut out.

    Where that would change anything else, nothing is cut out.
    """
    whole = Compact(data, header.size, 0, None)
    block = _find_block(data, header)
    if block is None:
        return whole
    architecture = str(header.metadata.get("general.architecture"))
    joined = join(data[: block.start], block, architecture, data[block.start + block.length :])
    if joined is None:
        return whole
    cut = len(data) - len(joined)
    try:
        again = read_header(BytesSource(joined, header.size - cut))
    except ModelFileError:
        return whole
    if not _same_but_vocabulary(header, again, block):
        return whole
    return Compact(joined, header.size, cut, block)


def _find_block(data: bytes, header: Header) -> Block | None:
    """The tokenizer's keys that can be cut out, None when they are not all in one place."""
    keys = list(header.metadata)
    long = {k: v for k, v in header.metadata.items() if isinstance(v, LongArray)}
    tokens = long.get(_TOKENS)
    ours = [key for key in long if key.startswith("tokenizer.")]
    if tokens is None or _MODEL not in keys or not ours:
        return None
    last = max(keys.index(key) for key in ours)
    first = min(keys.index(_MODEL), min(keys.index(key) for key in ours))
    run = keys[first : last + 1]
    if any(not key.startswith("tokenizer.") or key == _TOKEN_TYPES for key in run):
        return None
    name = keys[first].encode()
    start = data.find(_U64.pack(len(name)) + name)
    end = long[keys[last]].end
    architecture = header.metadata.get("general.architecture")
    stated = header.metadata.get(f"{architecture}.vocab_size")
    if start < 0 or end - start < 2 * BORDER or stated not in (None, len(tokens)):
        return None
    return Block(
        start=start,
        length=end - start,
        keys=len(run),
        tokens=len(tokens),
        states_size=stated is not None,
        head=data[start : start + BORDER],
        tail=data[end - BORDER : end],
    )


def join(start: bytes, block: Block, architecture: str, rest: bytes) -> bytes | None:
    """A header without its vocabulary: ``start``, the vocabulary's size as keys, and ``rest``.

    A key of filler text keeps offsets modulo ``UNIT``. None if it would not be shorter.
    """
    stated = [_string_key(_MODEL, b"no_vocab")]
    if not block.states_size:
        key = f"{architecture}.vocab_size".encode()
        stated.append(_U64.pack(len(key)) + key + struct.pack("<II", 4, block.tokens))
    between = b"".join(stated)
    empty = _string_key("localmoe.filler", b"")
    filler = (block.length - len(between) - len(empty)) % UNIT
    between += _string_key("localmoe.filler", b"-" * filler)
    if len(between) >= block.length or len(start) < _COUNTS.size:
        return None
    magic, version, tensors, keys = _COUNTS.unpack_from(start)
    keys += len(stated) + 1 - block.keys
    if not 0 <= keys < 2**64:
        return None
    return _COUNTS.pack(magic, version, tensors, keys) + start[_COUNTS.size :] + between + rest


def _string_key(key: str, value: bytes) -> bytes:
    """A metadata entry of type string (docs/gguf.md: key, type 8, value)."""
    name = key.encode()
    parts = (_U64.pack(len(name)), name, struct.pack("<I", 8), _U64.pack(len(value)), value)
    return b"".join(parts)


def architecture_of(start: bytes) -> str | None:
    """``general.architecture`` from the first bytes of a file."""
    key = _string_key("general.architecture", b"")[:-8]
    at = start.find(key)
    if at < 0 or len(start) < at + len(key) + 8:
        return None
    at += len(key)
    length = _U64.unpack_from(start, at)[0]
    if length > 64:
        return None
    return start[at + 8 : at + 8 + length].decode("ascii", "replace")


def states_vocabulary_size(header: Header, block: Block) -> bool:
    """Whether the engine will find the vocabulary's size in a header without the vocabulary."""
    architecture = header.metadata.get("general.architecture")
    return header.metadata.get(f"{architecture}.vocab_size") == block.tokens


def _same_but_vocabulary(whole: Header, compact: Header, block: Block) -> bool:
    """Whether a compact header says what the whole one says, the tokenizer left out."""

    def others(header: Header) -> dict[str, object]:
        skipped = ("tokenizer.", "localmoe.filler")
        sizes = f"{header.metadata.get('general.architecture')}.vocab_size"
        return {
            k: v for k, v in header.metadata.items() if not k.startswith(skipped) and k != sizes
        }

    mine = {(t.name, t.shape, t.type, t.nbytes) for t in whole.tensors}
    return (
        mine == {(t.name, t.shape, t.type, t.nbytes) for t in compact.tensors}
        and others(whole) == others(compact)
        and states_vocabulary_size(compact, block)
    )
