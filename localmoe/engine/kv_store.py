"""What a model has read, kept on disk: a long conversation goes on without a new prefill.

One file per conversation and model, private, written when it is left. It is used only if all of it
is as it was written (SHA-256) and what it depends on has not changed (``identity``); else it is
deleted. The folder stays below ``CAPACITY``: the files used longest ago go first.

::

    magic · header length (u64) · header (JSON) · token ids (i32) · state · checkpoints · SHA-256

State and checkpoints are llama.cpp's own bytes. They are handed over in a mapping of the file, so
that a state of gigabytes is never in memory twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmoe import kept, storage
from localmoe.errors import StorageError

if TYPE_CHECKING:  # the chat's list of conversations need not wait for this import
    from localmoe.facts.model import Model

CAPACITY = 4 << 30  # bytes of all files together
DISK_RESERVE = 1 << 30  # bytes of the disk that are left free
MIN_TOKENS = 64  # fewer are read again sooner than found

MAGIC = b"LMOE-KV1"
SUFFIX = ".kv"
_TEMPORARY = ".kv-"
_STALE = 3600.0  # seconds after which a temporary file is nobody's
_HEADER_LIMIT = 1 << 20
_PIECE = 16 << 20  # bytes hashed between two looks at the interrupt flag

Fill = Callable[[int, int], bool]
"""Write that many bytes to that address; False when it went wrong."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file holds. Addresses are valid inside ``opened`` only."""

    tokens: list[int]
    state: tuple[int, int]  # address, bytes
    checkpoints: list[tuple[int, int, int]]  # tokens, address, bytes


def identity(model: Model, settings: Mapping[str, Any], engine: str) -> str:
    """A digest of all that a state depends on. Nothing kept has that of a model whose file is gone.

    ``settings`` are those of ``EngineSettings`` that shape the state or its values; where weights
    live and how they are read change nothing in what has been read so far. Nor does the length of
    the context, but where it chooses between two sets of rotation factors (Phi's LongRoPE).
    """
    names = ("batch", "ubatch", "type_k", "type_v", "flash_attention", "swa_full", "repack",
             "experts_used", "prefer_cached")  # fmt: skip
    shape = {name: settings.get(name) for name in names} | {"long": _long_rope(model, settings)}
    files: list[object] = []
    for path in model.paths:
        try:
            status = path.stat()
            files.append((os.path.realpath(path), status.st_size, status.st_mtime_ns))
        except OSError:
            files.append(os.urandom(16).hex())
    return hashlib.sha256(json.dumps([engine, files, shape]).encode()).hexdigest()


def _long_rope(model: Model, settings: Mapping[str, Any]) -> bool:
    """Whether the longer of two sets of rotation factors is used (llama.cpp, get_rope_factors)."""
    if not any(tensor.name.startswith("rope_factors_long") for tensor in model.tensors):
        return False
    key = f"{model.architecture}.rope.scaling.original_context_length"
    original = model.metadata.get(key, model.context_train)
    return isinstance(original, int) and bool(settings["context"] > original)


def folder() -> Path:
    return storage.cache_dir() / "kv"


def path_of(slot: str, model: Path) -> Path:
    """The file of a conversation (``slot`` is its name) with a model."""
    return folder() / f"{_digest(slot)}-{_digest(os.path.realpath(model))}{SUFFIX}"


def forget(slot: str) -> None:
    """Delete what is kept of a conversation, with whichever model."""
    for path in folder().glob(f"{_digest(slot)}-*{SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def make_room(wanted: int, capacity: int = CAPACITY) -> bool:
    """Delete the files used longest ago until ``wanted`` more bytes fit into ``capacity``.

    False, and nothing is deleted, when they are more than that.
    """
    if wanted > capacity:
        return False
    files = []
    for path in folder().glob("*") if folder().is_dir() else ():
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.name.startswith(_TEMPORARY) and time.time() - status.st_mtime > _STALE:
                path.unlink()
            else:
                files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total + wanted <= capacity:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
    return True


def write(
    path: Path,
    who: str,
    tokens: Sequence[int],
    state: tuple[int, Fill],
    checkpoints: Sequence[tuple[int, int, Fill]],
    interrupted: Callable[[], bool] = lambda: False,
) -> int:
    """Put a state into ``path``, whole or not at all; return its bytes, 0 if it was not written.

    ``who`` is its ``identity``; ``state`` is (bytes, fill), a checkpoint (tokens, bytes, fill).
    Raises StorageError when the disk is full or cannot be written.
    """
    header = json.dumps(
        {
            "identity": who,
            "tokens": len(tokens),
            "state": state[0],
            "checkpoints": [[length, size] for length, size, _ in checkpoints],
        }
    ).encode()
    start = MAGIC + struct.pack("<Q", len(header)) + header
    ids = struct.pack(f"<{len(tokens)}i", *tokens)
    body = len(start) + len(ids) + state[0] + sum(size for _, size, _ in checkpoints)
    try:
        storage.private_dir(path.parent)
        disk = os.statvfs(path.parent)
        if disk.f_bavail * disk.f_frsize < body + DISK_RESERVE or not make_room(body):
            return 0
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
        try:
            with os.fdopen(number, "r+b") as file:
                # Without blocks of its own a full disk would be a SIGBUS in the mapping.
                os.posix_fallocate(file.fileno(), 0, body + 32)
                with _mapped(file.fileno(), body + 32, write=True) as (memory, address):
                    memory[: len(start) + len(ids)] = start + ids
                    at = address + len(start) + len(ids)
                    for size, fill in [state, *((size, fill) for _, size, fill in checkpoints)]:
                        if interrupted() or not fill(at, size):
                            return 0
                        at += size
                    digest = _checksum(memory, body, interrupted)
                    if digest is None:
                        return 0
                    memory[body:] = digest
            os.replace(temporary, path)  # noqa: PTH105 - a str
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
    except OSError as error:
        raise StorageError(f"cannot keep what was read: {error.strerror}") from error
    return body + 32


@contextlib.contextmanager
def opened(
    path: Path, who: str, interrupted: Callable[[], bool] = lambda: False
) -> Iterator[Saved | None]:
    """What a file holds; None if there is none, or if it is of no use.

    A file that is damaged, or whose identity is not ``who``, is deleted.

    The caller may delete the file too, by ``path``, if its content turns out to be of no use.
    """
    with contextlib.ExitStack() as mapping:  # the caller's exceptions say nothing of the file
        yield _open(mapping, path, who, interrupted)


def _open(
    mapping: contextlib.ExitStack, path: Path, who: str, interrupted: Callable[[], bool]
) -> Saved | None:
    """``opened``, with the file mapped until ``mapping`` is closed."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(MAGIC) + 8 + 32:
                raise ValueError("too short")
            memory, address = mapping.enter_context(_mapped(file.fileno(), size, write=False))
        digest = _checksum(memory, size - 32, interrupted)
        if digest is None:
            return None
        if digest != memory[size - 32 :]:
            raise ValueError("damaged")
        saved = _read(memory, size, address, who)
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return saved
    except kept.DAMAGED:
        mapping.close()
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    except OSError:
        return None


def _read(memory: mmap.mmap, size: int, address: int, who: str) -> Saved:
    """Raises one of ``kept.DAMAGED`` for what ``write`` did not write."""
    if memory[: len(MAGIC)] != MAGIC:
        raise ValueError("another format")
    (length,) = struct.unpack_from("<Q", memory, len(MAGIC))
    at = len(MAGIC) + 8
    if length > min(_HEADER_LIMIT, size - at - 32):
        raise ValueError("header too long")
    header = kept.parse(memory[at : at + length])
    at += length
    if header["identity"] != who:
        raise ValueError("of another model, build or setting")
    count, state = kept.whole(header["tokens"]), kept.whole(header["state"])
    checkpoints = [
        (kept.whole(tokens, most=count), kept.whole(nbytes))
        for tokens, nbytes in header["checkpoints"]
    ]
    if at + 4 * count + state + sum(nbytes for _, nbytes in checkpoints) + 32 != size:
        raise ValueError("the parts do not add up")
    tokens = list(struct.unpack_from(f"<{count}i", memory, at))
    at += 4 * count
    found = []
    after = at + state
    for tokens_before, nbytes in checkpoints:
        found.append((tokens_before, address + after, nbytes))
        after += nbytes
    return Saved(tokens, (address + at, state), found)


@contextlib.contextmanager
def _mapped(number: int, size: int, *, write: bool) -> Iterator[tuple[mmap.mmap, int]]:
    """A file's bytes and their address. Without ``write`` the file does not change with them."""
    access = mmap.ACCESS_WRITE if write else mmap.ACCESS_COPY
    with mmap.mmap(number, size, access=access) as memory:
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        del first  # it would keep the mapping from closing
        yield memory, address


def _checksum(memory: mmap.mmap, size: int, interrupted: Callable[[], bool]) -> bytes | None:
    """SHA-256 of the first ``size`` bytes; None when it was interrupted."""
    digest = hashlib.sha256()
    with memoryview(memory) as view:
        for start in range(0, size, _PIECE):
            if interrupted():
                return None
            digest.update(view[start : min(start + _PIECE, size)])
    return digest.digest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20]
