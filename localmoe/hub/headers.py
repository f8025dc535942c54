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
from dataclasses import replace
from functools import partial

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import read_header
from localmoe.hub.compact import (
    BORDER,
    UNIT,
    Block,
    Compact,
    architecture_of,
    join,
    states_vocabulary_size,
    without_vocabulary,
)
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.names import ModelFiles, Reference, RepoFile
from localmoe.hub.ranges import FIRST_BLOCK, RemoteSource, Traffic
from localmoe.hub.refusals import RefusedFileError

START = 16 * 1024  # bytes; holds what comes before the tokenizer, or a part's whole header
STEP = 64 * 1024  # bytes; more than any chat template
MOST_GROWTH = 1 << 20  # bytes; beyond it, reading the header in full is no worse
SLACK = 2048  # bytes by which the rest of a header may be longer than that of its sibling
WORKERS = 8  # connections
FIRST_TRIES = 3  # files that are read in full, one after the other, for a vocabulary to share
_U64 = struct.Struct("<Q")

Found = Compact | ModelFileError | RefusedFileError
"""A header, or why there is none: it cannot be read, or the Hub does not give the file."""


def fetch(
    reference: Reference,
    commit: str,
    models: Sequence[ModelFiles],
    traffic: Traffic,
    cache: HeaderCache,
) -> dict[str, Found]:
    """The header of every file of ``models``, by path.

    A file that the Hub lists and cannot give is an answer, not an error. Raises TransferError for
    what concerns them all: the network, a proxy, a token.
    """
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
        except (ModelFileError, RefusedFileError) as error:
            return error
        cache.put(file.etag, compact)
        return compact

    for file in firsts[:FIRST_TRIES]:
        if siblings:
            break
        firsts.remove(file)
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
    return without_vocabulary(source.read(0, header.data_start), header)


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
    joined = join(start, own, architecture_of(start) or "", b"")
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
    if not 0 <= view.size - data_end < UNIT or not states_vocabulary_size(header, own):
        return None
    return Compact(view.start(header.data_start), source.size, cut, own)


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
