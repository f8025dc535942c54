"""Headers of remote models, without their vocabularies, for as few bytes as possible.

Nine tenths of a header are the tokenizer's long arrays, and the quantizations of one model share
them. So one header is read in full; of every other file only the start and, behind the place where
the arrays must end, the tensor table. That they are the same is verified: the bytes at both borders
must be equal, the table must parse, and the data that it describes must end where the file ends.
Whatever does not agree is read in full.

What is kept of a file is a ``Compact`` header: the real bytes with those arrays cut out and
``no_vocab`` put in, which llama.cpp loads as a model of the same sizes. It is cached on disk by the
content's hash, so that a second question costs no bytes.

    fetch(reference, commit, models, traffic, cache)   → {path: Compact}
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import Header, LongArray, read_header
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.names import ModelFiles, Reference, RepoFile
from localmoe.hub.ranges import FIRST_BLOCK, RemoteSource, Traffic

BORDER = 4096  # bytes compared at each end of the shared block
START = 16 * 1024  # bytes; holds what comes before the tokenizer, or a part's whole header
STEP = 64 * 1024  # bytes; more than any chat template
MOST_GROWTH = 1 << 20  # bytes; beyond it, reading the header in full is no worse
SLACK = 2048  # bytes by which the rest of a header may be longer than that of its sibling
WORKERS = 8  # connections
_U64 = struct.Struct("<Q")
_COUNTS = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
_UNIT = 4096  # the cut keeps offsets modulo this, so that no alignment changes
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


Found = Compact | ModelFileError
"""A header, or why the file has none that can be read."""


def fetch(
    reference: Reference,
    commit: str,
    models: Sequence[ModelFiles],
    traffic: Traffic,
    cache: HeaderCache,
) -> dict[str, Found]:
    """The header of every file of ``models``, by path. Raises TransferError."""
    found: dict[str, Found] = {}
    for file in (file for model in models for file in model.files):
        known = cache.get(file.etag)
        if known is not None and known.size == file.size:
            found[file.path] = known
    firsts = [m.files[0] for m in models if m.files[0].path not in found]
    rest = [f for m in models for f in m.files[1:] if f.path not in found]
    known_firsts = (found.get(model.files[0].path) for model in models)
    siblings = [k for k in known_firsts if isinstance(k, Compact) and k.block is not None]

    def read(file: RepoFile, how: Callable[[RemoteSource], Compact], block: int) -> Found:
        try:
            compact = how(RemoteSource(reference, commit, file, traffic, block=block))
        except ModelFileError as error:
            return error
        cache.put(file.etag, compact)
        return compact

    while firsts and not siblings:
        file = firsts.pop(0)
        whole = found[file.path] = read(file, read_whole, FIRST_BLOCK)
        if isinstance(whole, Compact):
            siblings.append(whole)
    with ThreadPoolExecutor(WORKERS) as pool:
        like = partial(read_like, siblings=siblings)
        jobs = {file.path: pool.submit(read, file, like, START) for file in firsts}
        jobs |= {file.path: pool.submit(read, file, read_part, START) for file in rest}
        try:
            return found | {path: job.result() for path, job in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_whole(source: RemoteSource) -> Compact:
    """Read one header in full, and cut its vocabulary out if that changes nothing else."""
    header = read_header(source)
    data = source.read(0, header.data_start)
    whole = Compact(data, source.size, 0, None)
    block = _find_block(data, header)
    if block is None:
        return whole
    architecture = str(header.metadata.get("general.architecture"))
    start = data[: block.start]
    rest = data[block.start + block.length :]
    joined = _join(start, block, architecture, rest)
    if joined is None:
        return whole
    cut = len(data) - len(joined)
    try:
        again = read_header(_Joined(joined, source.size - cut))
    except ModelFileError:
        return whole
    if not _same_but_vocabulary(header, again, block):
        return whole
    return Compact(joined, source.size, cut, block)


def read_part(source: RemoteSource) -> Compact:
    """Read a header without a vocabulary, that of a later part: a few kilobytes as a rule."""
    view = _Growing(source.read(0, START), source, step=START, most=source.size)
    try:
        header = read_header(view)
    except ModelFileError:
        source.block = FIRST_BLOCK
        return read_whole(source)
    return Compact(view.start(header.data_start), source.size, 0, None)


def read_like(source: RemoteSource, siblings: Sequence[Compact]) -> Compact:
    """Read one header, taking its vocabulary to be that of a sibling where it can be verified."""
    for sibling in siblings:
        if sibling.block is not None:
            found = _as_sibling(source, sibling, sibling.block)
            if found is not None:
                return found
    source.block = FIRST_BLOCK
    return read_whole(source)


def _as_sibling(source: RemoteSource, sibling: Compact, block: Block) -> Compact | None:
    """The header of ``source`` if its vocabulary is the sibling's, else None."""
    key = block.head[: 8 + _U64.unpack_from(block.head)[0]]
    at = source.read(0, START).find(key)
    if at < 0 or source.read(at, BORDER) != block.head:
        return None
    start, end = source.read(0, at), at + block.length
    own = replace(block, start=at)
    joined = _join(start, own, _architecture(start) or "", b"")
    rest = sibling.header_bytes - block.start - block.length  # what followed there
    if joined is None or end + rest > source.size:
        return None
    begin = end - BORDER
    tail = source.fetch(begin, min(BORDER + rest + SLACK, source.size - begin))
    if not tail.startswith(block.tail):
        return None
    cut = end - len(joined)
    view = _Growing(joined + tail[BORDER:], source, step=STEP, most=MOST_GROWTH, cut=cut)
    try:
        header = read_header(view)
    except ModelFileError:
        return None
    last = header.tensors[-1] if header.tensors else None
    data_end = last.offset + last.nbytes if last else header.data_start
    if not 0 <= view.size - data_end < _UNIT or not _sized(header, own):
        return None
    return Compact(view.start(header.data_start), source.size, cut, own)


def _find_block(data: bytes, header: Header) -> Block | None:
    """The run of tokenizer keys that can go, or None when something else is among them."""
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


def _join(start: bytes, block: Block, architecture: str, rest: bytes) -> bytes | None:
    """``start`` and ``rest`` with a statement of the vocabulary's size between them.

    A filler keeps offsets modulo ``_UNIT``. None if that would not be shorter.
    """
    stated = [_string_key(_MODEL, b"no_vocab")]
    if not block.states_size:
        key = f"{architecture}.vocab_size".encode()
        stated.append(_U64.pack(len(key)) + key + struct.pack("<II", 4, block.tokens))
    between = b"".join(stated)
    empty = _string_key("localmoe.filler", b"")
    filler = (block.length - len(between) - len(empty)) % _UNIT
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


def _architecture(start: bytes) -> str | None:
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


def _sized(header: Header, block: Block) -> bool:
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
        and _sized(compact, block)
    )


class _Joined:
    """Bytes as the start of a file of ``size`` bytes."""

    def __init__(self, data: bytes, size: int) -> None:
        self.name = "header"
        self.size = size
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class _Growing:
    """The first bytes of a header; more are fetched in steps, but only when none are left.

    A reader asks for more than it needs. It gets what is known, and may find that too short: then
    the header is read another way. ``cut``: bytes that the real file has more before its end.
    """

    def __init__(
        self, data: bytes, source: RemoteSource, *, step: int, most: int, cut: int = 0
    ) -> None:
        self.name = source.name
        self.size = source.size - cut
        self._data = data
        self._source = source
        self._cut = cut
        self._step = step
        self._left = most

    def start(self, length: int) -> bytes:
        """The first bytes; those behind the table, where the data begins, are padding."""
        return self._data[:length].ljust(length, b"\0")

    def read(self, offset: int, length: int) -> bytes:
        have = len(self._data)
        if offset >= have and self._left > 0:
            step = max(have, self._step)
            more = min(max(offset + length - have, 0), step, self.size - have)
            self._data += self._source.fetch(have + self._cut, more) if more else b""
            self._left -= more
        return self._data[offset : min(offset + length, self.size)]
