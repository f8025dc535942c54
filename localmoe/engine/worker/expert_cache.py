"""The expert cache of ``experts.cpp``, seen from Python: what is opened, told and asked of it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.model_tensors import GET_TENSOR, ExpertTensor
from localmoe.errors import LIFT, EngineError, EngineMemoryError, LocalmoeError, ModelFileError
from localmoe.routing.profile import LayerUsage
from localmoe.wording import option

REGIMES = {"off": 0, "page": 1, "private": 2}
READERS = min(4, max(2, os.cpu_count() or 2))
"""Threads that read: two keep a fast disk busy, more hide the latency of a slow one."""

_SYMBOLS = (  # library, mangled name; all of llama-cpp-python 0.3.36 have them
    (binding.cpu_library, "_Z39ggml_backend_cpu_get_extra_buffer_typesv"),
    (binding.base_library, "ggml_op_name"),
    (binding.cpu_library, "ggml_get_type_traits_cpu"),
    (binding.base_library, "ggml_backend_buffer_get_base"),
    (binding.base_library, "ggml_backend_buffer_get_size"),
)


class _Symbols(ctypes.Structure):
    _fields_ = (
        ("extra_types", ctypes.c_void_p),
        ("op_name", ctypes.c_void_p),
        ("type_traits", ctypes.c_void_p),
        ("buffer_base", ctypes.c_void_p),
        ("buffer_size", ctypes.c_void_p),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("tensor", ctypes.c_void_p),
        ("group", ctypes.c_int32),
        ("file", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("nbytes", ctypes.c_int64),
        ("experts", ctypes.c_int32),
    )


class _Stats(ctypes.Structure):
    _fields_ = (
        ("lookups", ctypes.c_uint64),
        ("misses", ctypes.c_uint64),
        ("bytes_read", ctypes.c_uint64),
        ("evictions", ctypes.c_uint64),
        ("prefetched", ctypes.c_uint64),
        ("prefetch_used", ctypes.c_uint64),
        ("warmed", ctypes.c_uint64),
        ("stall_s", ctypes.c_double),
        ("resident_bytes", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("preferred", ctypes.c_uint64),
        ("most_experts", ctypes.c_uint64),
        ("no_direct", ctypes.c_uint64),
        ("arrivals", ctypes.c_uint64),
    )


class _UsageTotals(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_uint64),
        ("decoded", ctypes.c_uint64),
        ("lookups", ctypes.c_uint64),
        ("follow", ctypes.c_uint64),
        ("again", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Counters:
    """What the cache did since it was opened."""

    lookups: int  # routed experts of decoded tokens
    misses: int  # those that had to be read first
    bytes_read: int
    evictions: int
    prefetched: int  # experts read because they were predicted
    prefetch_used: int  # … and chosen then
    warmed: int  # experts read in the background because they were used before
    stall_s: float  # computing waited for reading
    resident_bytes: int  # of experts and what a prompt borrows; never above the budget
    calls: int  # multiplications by experts that were seen
    preferred: int  # choices changed by ``prefer``
    most_experts: int  # that the system's limit of mappings lets be in memory at once
    no_direct: int  # files that cannot be read past the page cache
    arrivals: int  # multiplications begun before all their experts were there


def file_changed(why: str) -> ModelFileError:
    """The error for a model file that is not any more what it was when it was opened."""
    return ModelFileError(why, hint="load the model again; in a chat, /model does")


def unreadable(why: str) -> EngineError:
    """The error for a disk, or what else the file is on, that does not give what is needed."""
    hint = "look after the disk, or the connection to it, then ask again"
    return EngineError(f"an expert is missing: {why}", hint=hint)


def _error(what: int, why: str) -> LocalmoeError:
    """The error for a value of ``enum cause`` in expert_cache.h."""
    if what == 1:  # CHANGED
        return file_changed(why)
    if what == 2:  # UNREADABLE
        return unreadable(why)
    if what == 3:  # NO_MEMORY
        hint = f"{option('cache', 'page')} needs no memory of its own for experts"
        if os.strerror(errno.ENOMEM) in why:  # the system's refusal, not the plan's measure
            hint = f"{LIFT}; {hint}"
        return EngineMemoryError(why, hint=hint)
    return EngineError(f"no expert cache: {why}", hint=option("cache", "off"))


def available() -> str | None:
    """None if the cache can be used with this engine, else why not."""
    if binding.native is None:
        return "the native helper was not built (no C++ compiler?), or is switched off"
    if not hasattr(binding.native, "localmoe_experts_open"):
        return "reading experts ourselves is made for Linux"
    needed = [*_SYMBOLS, (llama._lib, GET_TENSOR)]
    missing = [name for library, name in needed if not hasattr(library, name)]
    return f"this build of llama.cpp has no {missing[0]}" if missing else None


def _symbols() -> _Symbols:
    return _Symbols(
        *(ctypes.cast(getattr(library, name), ctypes.c_void_p) for library, name in _SYMBOLS)
    )


class ExpertCache:
    """Serves the routed experts of one loaded model until ``close``.

    ``tensors`` are all in host memory, those of a group one after the other; groups come in the
    order of computation. ``interrupt``: the flag that the abort callback reads; the cache sets it
    to 2 when it fails. To be made only where the cache is ``available``.

    Raises EngineMemoryError without address space or threads for it, EngineError for files that
    cannot be opened and for tensors that are laid out otherwise than it knows.
    """

    def __init__(
        self,
        paths: Sequence[str],
        tensors: Sequence[ExpertTensor],
        regime: str,
        budget: int,
        interrupt: ctypes.c_int32,
    ) -> None:
        assert binding.native is not None
        self._native = binding.native
        files = (ctypes.c_char_p * len(paths))(*(os.fsencode(path) for path in paths))
        entries = (_Tensor * len(tensors))(
            *(
                _Tensor(tensor.address, e.group, e.part, e.offset, e.nbytes, e.experts)
                for tensor, e in ((tensor, tensor.entry) for tensor in tensors)
            )
        )
        why, what = ctypes.create_string_buffer(1024), ctypes.c_int32()
        self._native.localmoe_experts_open.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(
            self._native.localmoe_experts_open(
                ctypes.byref(_symbols()),
                REGIMES[regime],
                ctypes.c_uint64(budget),
                READERS if paths else 0,
                ctypes.byref(interrupt),
                files,
                len(paths),
                entries,
                len(tensors),
                why,
                len(why),
                ctypes.byref(what),
            )
        )
        if not self._handle:
            raise _error(what.value, why.value.decode(errors="replace"))
        # Twice per token: ctypes converts what it knows the types of in a third of the time.
        self._begin, self._end = (
            self._native.localmoe_experts_begin,
            self._native.localmoe_experts_end,
        )
        self._begin.argtypes = (ctypes.c_void_p, *(ctypes.c_int64,) * 4, ctypes.c_uint64)
        self._end.argtypes = (ctypes.c_void_p,)
        self._begin.restype = self._end.restype = ctypes.c_bool

    def close(self) -> None:
        if self._handle:
            self._native.localmoe_experts_close(self._handle)
            self._handle = ctypes.c_void_p()

    def begin(
        self, position: int, tokens: int, decoded: int, following: int = 0, buffers: int = 0
    ) -> bool:
        """To be called before each llama_decode: ``tokens`` of one batch, from ``position`` on.

        ``decoded``: the number of the answer's token, −1 while the prompt is read; ``following``:
        tokens of the prompt's next batch; ``buffers``: bytes of the budget that the engine's
        buffers take for this one. False: a file has changed, ``failure`` says so.
        """
        return bool(self._begin(self._handle, position, tokens, decoded, following, buffers))

    def offload(self, tokens: int) -> None:
        """From now on, batches of at least ``tokens`` tokens may be multiplied on a GPU."""
        self._native.localmoe_experts_offload(self._handle, ctypes.c_int64(tokens))

    def cut_short(self) -> bool:
        """Whether an interrupt has ended the last decode, though the engine calls it done."""
        self._native.localmoe_experts_cut_short.restype = ctypes.c_bool
        return bool(self._native.localmoe_experts_cut_short(self._handle))

    def end(self) -> bool:
        """To be called after each llama_decode: what it needed may be evicted again.

        False: the cache made it fail, ``failure`` says why.
        """
        return bool(self._end(self._handle))

    def failure(self) -> LocalmoeError | None:
        """Why the last ``begin`` or decode failed; None if the cache is not to blame."""
        out = ctypes.create_string_buffer(2048)
        what = self._native.localmoe_experts_failure(self._handle, out, len(out))
        return _error(what, out.value.decode(errors="replace")) if what else None

    def counters(self) -> Counters:
        out = _Stats()
        self._native.localmoe_experts_stats(self._handle, ctypes.byref(out))
        return Counters(*(getattr(out, name) for name, _ in _Stats._fields_))

    def layers(self, count: int) -> list[tuple[int, int]]:
        """(lookups, misses) per group of tensors, in the order of ``tensors``."""
        lookups, misses = (ctypes.c_uint64 * count)(), (ctypes.c_uint64 * count)()
        n = self._native.localmoe_experts_layers(self._handle, lookups, misses, count)
        return list(zip(lookups[:n], misses[:n], strict=True))

    def resize(self, budget: int) -> None:
        """A new budget in bytes; memory above it is given back at once."""
        self._native.localmoe_experts_resize(self._handle, ctypes.c_uint64(budget))

    def share_out(self, shares: Sequence[float]) -> None:
        """Which share (0…1) of its experts each group may keep in memory, in the order of the
        groups. The shares are for the present budget; with another one they change in proportion.
        """
        numbers = (ctypes.c_float * len(shares))(*shares)
        self._native.localmoe_experts_share_out(self._handle, numbers, len(shares))

    def hot(self, limit: int) -> list[tuple[int, int]]:
        """(group, expert) pairs in memory, the most recently used first."""
        pairs = (ctypes.c_int32 * (2 * limit))()
        n = self._native.localmoe_experts_hot(self._handle, pairs, limit)
        return [(pairs[2 * i], pairs[2 * i + 1]) for i in range(n)]

    def warm(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Read these in the background, while nothing else is read and the budget has room."""
        flat = [number for pair in pairs for number in pair]
        self._native.localmoe_experts_warm(
            self._handle, (ctypes.c_int32 * len(flat))(*flat), len(pairs)
        )

    def impose(
        self, ids: bytes, prefill: int, steps: int, layers: int, k: int, predicted: float = 0
    ) -> None:
        """Replace the router's choice by int32 ids [steps, layers, k]; −1 leaves a choice alone.

        The first ``prefill`` steps are for prompts, by position, the others for answers.
        The prediction of the next layer's experts is made from the model's hidden state, which has
        nothing to do with imposed ids. ``predicted`` is the share (0…1) of the imposed ids that a
        pretended prediction gets right; 0: nothing is predicted. Raises EngineMemoryError.
        """
        self._native.localmoe_experts_impose.restype = ctypes.c_bool
        if not self._native.localmoe_experts_impose(
            self._handle,
            ids,
            *(ctypes.c_int64(n) for n in (prefill, steps, layers, k)),
            ctypes.c_float(predicted),
        ):
            raise EngineMemoryError("there is no memory for the routing to impose")

    def prefer(self, share: float) -> None:
        """Lossy: take a resident expert up to ``share`` less probable than the chosen one."""
        self._native.localmoe_experts_prefer(self._handle, ctypes.c_float(share))

    def record(self, recording: ctypes.c_void_p | None) -> None:
        """Tell a recording of ``recording.cpp`` every choice, or stop to."""
        self._native.localmoe_experts_record(self._handle, recording)

    def count_uses(self) -> None:
        """From now on: how often each expert is used, for ``usage``."""
        self._native.localmoe_experts_count(self._handle)

    def usage(self, group: int, experts: int) -> LayerUsage:
        """How one group's experts were used since ``count_uses``; ``experts``: how many it has."""
        uses, found_at = (ctypes.c_uint64 * experts)(), (ctypes.c_uint64 * experts)()
        totals = _UsageTotals()
        self._native.localmoe_experts_usage(
            self._handle, group, uses, found_at, experts, ctypes.byref(totals)
        )
        numbers = (getattr(totals, name) for name, _ in _UsageTotals._fields_)
        return LayerUsage(tuple(uses), tuple(found_at), *numbers)
