"""A loaded model's tensors of routed experts, as llama.cpp holds them.

What is done to them (reading ahead, private memory) rests on the layout of ``struct ggml_tensor``,
which is no interface of llama.cpp's. So the engine is asked whether it is the one we know before
anything is done: ``layout_problem``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.errors import ModelFileError
from localmoe.facts.model import Model
from localmoe.planning.cache import looked_up, routed_tensors
from localmoe.planning.memory import RoutedTensor

GET_TENSOR = "_ZNK11llama_model10get_tensorEPKc"
"""``llama_model::get_tensor(const char *) const``."""
COMPARED = 64  # bytes of a tensor that are compared with the file


class GgmlTensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h, as far as it is read here."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """The experts of one projection in one layer: where they are in the file, and in the engine."""

    entry: RoutedTensor
    address: int  # of its ggml_tensor

    @property
    def loaded(self) -> GgmlTensor:
        return GgmlTensor.from_address(self.address)


def expert_tensors(llama_model: Any, model: Model) -> list[ExpertTensor]:
    """All that the engine has loaded, in the order of computation."""
    get = getattr(llama._lib, GET_TENSOR)
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
    found = ((entry, get(llama_model, entry.name.encode())) for entry in routed_tensors(model))
    return [ExpertTensor(entry, address) for entry, address in found if address]


def expect_single_rows(llama_model: Any, model: Model) -> None:
    """Tells the system that of an embedding one row is read at a time. Else a fault brings what is
    around it, as much as the disk reads ahead: 8 to 16 MB for a word, where memory is short.

    To be asked only when ``layout_problem`` has found none.
    """
    get = getattr(llama._lib, GET_TENSOR)
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
    libc = ctypes.CDLL(None)
    for tensor in looked_up(model):
        address = get(llama_model, tensor.name.encode())
        loaded = GgmlTensor.from_address(address) if address else None
        if loaded and loaded.data and loaded.buffer and binding.buffer_is_host(loaded.buffer):
            start = -(-loaded.data // mmap.PAGESIZE) * mmap.PAGESIZE
            size = max(0, loaded.data + tensor.nbytes - start)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_RANDOM)


def in_host_memory(tensors: Sequence[ExpertTensor]) -> list[ExpertTensor]:
    """Those that the processor can touch; the others are on a GPU or another machine.

    To be asked only when ``layout_problem`` has found none.
    """
    return [
        tensor
        for tensor in tensors
        if tensor.loaded.buffer and binding.buffer_is_host(tensor.loaded.buffer)
    ]


def layout_problem(tensors: Sequence[ExpertTensor], paths: Sequence[Path]) -> str | None:
    """Why the engine is not the one whose layouts we know; None if it is.

    Each tensor must have its name, its number of experts and their distance where we look for
    them, and the first one in host memory must begin with the bytes that the file has there.
    Raises ModelFileError when that cannot be read.
    """
    for tensor in tensors:
        entry, loaded = tensor.entry, tensor.loaded
        distance = entry.nbytes // entry.experts
        found = (loaded.name, loaded.ne[2], loaded.nb[2])
        if found != (entry.name.encode(), entry.experts, distance):
            return f"this build of llama.cpp describes {entry.name} in a way we do not know"
    for tensor in in_host_memory(tensors)[:1]:
        entry = tensor.entry
        if _memory(tensor.loaded.data or 0) != _content(paths[entry.part], entry.offset):
            return f"this build of llama.cpp does not have the file's bytes for {entry.name}"
    return None


def _memory(address: int) -> bytes | None:
    """What is at an address of this process; None if nothing is (reading it would be a crash)."""
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        try:
            return os.pread(memory, COMPARED, address)
        finally:
            os.close(memory)
    except (OSError, OverflowError):
        return None


def _content(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(COMPARED)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
