"""Small graphs of ggml operations on one device, built and timed through ctypes.

Signatures: ggml.h, ggml-alloc.h and ggml-backend.h of llama.cpp. Handles are plain addresses.
"""

from __future__ import annotations

import ctypes
import math
import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from localmoe.engine.worker import binding
from localmoe.facts.ggml_types import TENSOR_TYPES

NODES = 400  # operations that a graph may have

_P, _I32, _I64, _SIZE, _F32 = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_size_t,
    ctypes.c_float,
)
_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
_BLOCKS = {kind.name: (kind.block_size, kind.block_bytes) for kind in TENSOR_TYPES.values()}


class _Params(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


def _bound(name: str, result: Any, *arguments: Any) -> Any:
    library = binding.cpu_library if "_cpu_set" in name else binding.base_library
    function = getattr(library, name)
    function.restype = result
    function.argtypes = list(arguments)
    return function


_init = _bound("ggml_init", _P, _Params)
_free = _bound("ggml_free", None, _P)
_new_tensor = _bound("ggml_new_tensor", _P, _P, _I32, _I32, _P)
_view = _bound("ggml_view_3d", _P, _P, _P, _I64, _I64, _I64, _SIZE, _SIZE, _SIZE)
_new_graph = _bound("ggml_new_graph_custom", _P, _P, _SIZE, ctypes.c_bool)
_expand = _bound("ggml_build_forward_expand", None, _P, _P)
_device_init = _bound("ggml_backend_dev_init", _P, _P, ctypes.c_char_p)
_backend_free = _bound("ggml_backend_free", None, _P)
_compute = _bound("ggml_backend_graph_compute", _I32, _P, _P)
_place = _bound("ggml_backend_tensor_alloc", _I32, _P, _P, _P)
_place_all = _bound("ggml_backend_alloc_ctx_tensors", _P, _P, _P)
_buffer = _bound("ggml_backend_alloc_buffer", _P, _P, _SIZE)
_buffer_start = _bound("ggml_backend_buffer_get_base", _P, _P)
_buffer_free = _bound("ggml_backend_buffer_free", None, _P)
_host_buffer = _bound("ggml_backend_cpu_buffer_from_ptr", _P, _P, _SIZE)
_set_threads = _bound("ggml_backend_cpu_set_n_threads", None, _P, _I32)
_set = _bound("ggml_backend_tensor_set", None, _P, _P, _SIZE, _SIZE)
_get = _bound("ggml_backend_tensor_get", None, _P, _P, _SIZE, _SIZE)

mul_mat = _bound("ggml_mul_mat", _P, _P, _P, _P)
mul_mat_id = _bound("ggml_mul_mat_id", _P, _P, _P, _P, _P)
add = _bound("ggml_add", _P, _P, _P, _P)
attention = _bound("ggml_flash_attn_ext", _P, _P, _P, _P, _P, _P, _F32, _F32, _F32)
delta_net = _bound("ggml_gated_delta_net", _P, _P, _P, _P, _P, _P, _P, _P, _I64)
scan = _bound("ggml_ssm_scan", _P, _P, _P, _P, _P, _P, _P, _P, _P, _I64)


def nbytes(kind: str, *shape: int) -> int:
    """Bytes of a tensor of that type; ``shape`` in GGUF order."""
    block, size = _BLOCKS[kind]
    return math.prod(shape) // block * size


class Backend:
    """A device that computes, with a region of weights on it."""

    def __init__(self, device: str, size: int, host: int | None = None) -> None:
        """``size``: bytes of the region. ``host``: its address, where there is one in host memory
        already; else the device allocates it. Raises MemoryError.
        """
        self.handle = _device_init(binding.device_named(device), None)
        if not self.handle:
            raise MemoryError(device)
        self.region = _host_buffer(host, size) if host is not None else _buffer(self.handle, size)
        if not self.region:
            _backend_free(self.handle)
            raise MemoryError(device)
        self._start, self._size, self._at = int(_buffer_start(self.region)), size, 0

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _buffer_free(self.region)
        _backend_free(self.handle)

    def use_threads(self, count: int) -> None:
        """Compute with that many threads; for the processor only."""
        _set_threads(self.handle, count)

    def place(self, tensor: int, size: int) -> None:
        """Give a tensor of ``size`` bytes the next place in the region, from its start again after
        its end: so what one run reads is not what the run before left in the caches.
        """
        room = (-(-size // 4096) + 1) * 4096  # a page more: a device may pad a tensor
        if self._at + room > self._size:
            self._at = 0
        _place(self.region, tensor, self._start + self._at)
        self._at += room


class Graph:
    """Tensors and operations; a context manager that frees them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.context = _init(_Params(1 << 20, None, True))
        self._graph = _new_graph(self.context, 2 * NODES, False)
        self._data: list[tuple[int, Any]] = []
        self._buffer: int | None = None

    def __enter__(self) -> Graph:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._buffer:
            _buffer_free(self._buffer)
        _free(self.context)

    def _tensor(self, kind: str, shape: Sequence[int]) -> int:
        counts = (_I64 * len(shape))(*shape)
        return int(_new_tensor(self.context, _NUMBERS[kind], len(shape), counts))

    def weights(self, kind: str, *shape: int) -> int:
        """A new tensor whose place is in the backend's region."""
        tensor = self._tensor(kind, shape)
        self._backend.place(tensor, nbytes(kind, *shape))
        return tensor

    def rows(self, kind: str, width: int, count: int, heads: int) -> int:
        """A view [width, count, heads] of a new tensor in the region.

        In its memory the heads of one row lie side by side, as in llama.cpp's KV cache.
        """
        whole = self.weights(kind, width * heads, count)
        row = nbytes(kind, width * heads)
        return int(_view(self.context, whole, width, count, heads, row, nbytes(kind, width), 0))

    def input(self, *shape: int) -> int:
        """A new f32 tensor, filled with one small number."""
        tensor, count = self._tensor("F32", shape), math.prod(shape)
        self._data.append((tensor, (_F32 * count).from_buffer_copy(struct.pack("f", 0.01) * count)))
        return tensor

    def indices(self, rows: Sequence[Sequence[int]]) -> int:
        """A new i32 tensor [columns, rows] with these values, of equally long rows."""
        tensor = self._tensor("I32", (len(rows[0]), len(rows)))
        flat = [value for row in rows for value in row]
        self._data.append((tensor, (ctypes.c_int32 * len(flat))(*flat)))
        return tensor

    def add(self, node: int) -> None:
        """Make ``compute`` compute this tensor, and first whatever it is computed from."""
        _expand(self._graph, node)

    def ready(self) -> None:
        """Allocate the tensors that have no place yet, and copy the inputs. Raises MemoryError."""
        self._buffer = _place_all(self.context, self._backend.handle)
        if not self._buffer:
            raise MemoryError("graph")
        for tensor, data in self._data:
            _set(tensor, data, 0, ctypes.sizeof(data))

    def compute(self) -> float:
        """Compute the graph; return the seconds it took. Raises RuntimeError."""
        start = time.perf_counter()
        if _compute(self._backend.handle, self._graph) != 0:
            raise RuntimeError("the device could not compute")
        return max(time.perf_counter() - start, 1e-9)


def copy_seconds(tensor: int, data: Any, size: int) -> tuple[float, float]:
    """Seconds of copying ``size`` bytes to a tensor's device, and back."""
    start = time.perf_counter()
    _set(tensor, data, 0, size)
    there = time.perf_counter()
    _get(tensor, data, 0, size)
    return max(there - start, 1e-9), max(time.perf_counter() - there, 1e-9)
