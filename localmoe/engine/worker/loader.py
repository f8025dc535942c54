"""From ``EngineSettings`` to a llama.cpp model and context. Runs in the worker process only."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.errors import EngineError, EngineMemoryError, ModelFileError
from localmoe.planning.memory import CPU, DeviceMemory, EngineSettings, MemoryReport

Progress = Callable[[float], bool]
"""Called with 0…1 while weights are read; returning False stops the load."""


SHORT_OF_MEMORY = re.compile(r"(failed|unable) to allocate|out of memory", re.IGNORECASE)
"""How llama.cpp's log tells that an allocation has failed."""

KV_INTEGER, KV_STRING = 0, 3  # enum llama_model_kv_override_type in llama.h


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a dry run needs to know of the header to leave the vocabulary's texts out.

    They cost most of its time (150,000 strings: 0.2 s) and no memory that is asked about.
    ``vocabulary`` 0 reads them.
    """

    vocabulary: int  # tokens


class LoadInterruptedError(Exception):
    """The progress callback said stop."""


@dataclass
class EngineLog:
    """The last lines llama.cpp logged: the only place where it says why something failed."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def write(self, level: int, text: str) -> None:
        if level == binding.LOG_CONTINUE:
            return
        line = text.rstrip("\n")
        self.lines.append(line)
        del self.lines[:-400]
        if level >= binding.LOG_ERROR:
            self.errors.append(line)

    def reason(self) -> str:
        """The first error, which names the cause; later ones only say that loading failed."""
        for line in self.errors:
            text = re.sub(r"^\w+: (error loading model: )?", "", line).strip()
            if text:
                return text
        return "the engine gave no reason"

    def clear(self) -> None:
        self.lines.clear()
        self.errors.clear()


def open_model(
    paths: Sequence[str],
    settings: EngineSettings,
    log: EngineLog,
    architecture: str,
    *,
    dry_run: DryRun | None = None,
    progress: Progress | None = None,
) -> Any:
    """Load weights (or, as a dry run, only the metadata) and return a ``llama_model *``.

    A dry run reads no tensor data: the files may be headers extended to full size by a hole.
    Raises ModelFileError with the engine's reason; LoadInterruptedError when ``progress`` says so.
    """
    keep: list[Any] = []  # what llama.cpp points to until the call returns
    params = llama.llama_model_default_params()
    handles = [binding.device_named(name) for name in settings.devices]
    device_list = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
    keep.append(device_list)
    params.devices = ctypes.cast(device_list, ctypes.c_void_p)
    params.n_gpu_layers = settings.gpu_layers
    if settings.devices:  # stated, or llama.cpp splits by what is free at that moment
        shares = (ctypes.c_float * llama.llama_max_devices())(
            *(settings.tensor_split or (1.0,) * len(settings.devices))
        )
        keep.append(shares)
        params.tensor_split = shares
    if settings.overrides:
        overrides = _override_array(settings.overrides)
        keep.append(overrides)
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    # A dry run with a mapping asserts inside llama.cpp.
    params.load_mode = binding.LOAD_MODES["none" if dry_run is not None else settings.load_mode]
    params.use_extra_bufts = settings.repack
    if dry_run is not None:
        params.no_alloc = True
    values = _overridden(architecture, settings, dry_run)
    keep.append(values)
    params.kv_overrides = values
    stopped = False

    def on_progress(fraction: float, _: Any) -> bool:
        nonlocal stopped
        if progress is not None and not progress(fraction):
            stopped = True
        return not stopped

    callback = llama.llama_progress_callback(on_progress)
    keep.append(callback)
    params.progress_callback = callback
    log.clear()
    encoded = [os.fsencode(path) for path in paths]
    if len(encoded) == 1:
        model = llama.llama_model_load_from_file(encoded[0], params)
    else:
        parts = (ctypes.c_char_p * len(encoded))(*encoded)
        model = llama.llama_model_load_from_splits(parts, len(encoded), params)
    if stopped:
        if model:
            llama.llama_model_free(model)
        raise LoadInterruptedError
    if not model:
        reason = log.reason()
        if SHORT_OF_MEMORY.search(reason):
            raise EngineMemoryError(f"the engine did not get the memory for the weights: {reason}")
        hint = "localmoe show FILE says what the file contains"
        if "unknown model architecture" in reason:
            hint = "a newer llama-cpp-python may know it; or choose another model"
        raise ModelFileError(f"the engine cannot load this model: {reason}", hint=hint)
    return model


def _overridden(architecture: str, settings: EngineSettings, dry_run: DryRun | None) -> Any:
    """Metadata that is not taken from the file; an entry with an empty key ends the list."""
    values = (llama.llama_model_kv_override * 4)()
    numbers = []
    if settings.experts_used:
        numbers.append((f"{architecture}.expert_used_count", settings.experts_used))
    if dry_run is not None and dry_run.vocabulary:  # as many tokens, without their texts
        numbers.append((f"{architecture}.vocab_size", dry_run.vocabulary))
        values[2].tag, values[2].key = KV_STRING, b"tokenizer.ggml.model"
        values[2].value.val_str = b"no_vocab"
    for value, (key, number) in zip(values, numbers, strict=False):
        value.tag, value.key = KV_INTEGER, key.encode()
        value.value.val_i64 = number
    if len(numbers) < 2 and values[2].key:
        values[len(numbers)], values[2] = values[2], llama.llama_model_kv_override()
    return values


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _override_array(overrides: Sequence[tuple[str, str]]) -> Any:
    entries = [
        _Override(pattern.encode(), binding.buffer_type_named(device))
        for pattern, device in overrides
    ]
    return (_Override * (len(entries) + 1))(*entries, _Override(None, None))


def open_context(model: Any, settings: EngineSettings, log: EngineLog, on_node: Any = None) -> Any:
    """Allocate KV cache and compute buffers and return a ``llama_context *``.

    ``on_node``: llama.cpp's evaluation callback; the caller keeps it alive.
    """
    params = llama.llama_context_default_params()
    params.n_ctx = settings.context
    params.n_batch = settings.batch
    params.n_ubatch = settings.ubatch
    params.n_seq_max = 1
    params.n_outputs_max = 1  # logits of the last token only; 512 rows of a large vocabulary else
    if settings.threads:
        params.n_threads = settings.threads
    if settings.threads_batch or settings.threads:
        params.n_threads_batch = settings.threads_batch or settings.threads
    params.type_k = binding.GGML_TYPES[settings.type_k]
    params.type_v = binding.GGML_TYPES[settings.type_v]
    if settings.flash_attention is not None:
        params.flash_attn_type = int(settings.flash_attention)
    params.swa_full = settings.swa_full
    if settings.cache == "private":  # a GPU would copy a batch's experts from where they may not be
        params.op_offload = False
    params.no_perf = True
    if on_node is not None:
        params.cb_eval = on_node
    log.clear()
    ctx = llama.llama_init_from_model(model, params)
    if not ctx:
        reason = log.reason()
        if SHORT_OF_MEMORY.search(reason):
            raise EngineMemoryError(f"the engine did not get the memory for its context: {reason}")
        raise EngineError(
            f"the engine cannot make a context of {settings.context} tokens: {reason}",
            hint="a smaller --ctx, or --kv-type f16",
        )
    return ctx


def memory_report(ctx: Any, log: EngineLog) -> MemoryReport:
    """Bytes per device of a context and its model, dry or real.

    Without the native helper the figures are the totals that llama.cpp logs, all put on the host
    and marked inexact; the planner then splits them by the header.
    """
    breakdown = binding.memory_breakdown(ctx)
    if breakdown is not None:
        entries = [DeviceMemory(device, *figures) for device, figures in breakdown.items()]
        entries.sort(key=lambda entry: (entry.device != CPU, entry.device))
        return MemoryReport(tuple(entries), exact=True)
    mib = 1024 * 1024
    kv = compute = 0.0
    for line in log.lines:
        if found := re.search(r"compute buffer size = +([\d.]+) MiB", line):
            compute += float(found[1])
        elif found := re.search(r"^llama_(?:kv_cache|memory).*: size = +([\d.]+) MiB", line):
            kv += float(found[1])
    weights = int(llama.llama_model_size(llama.llama_get_model(ctx)))
    host = DeviceMemory(CPU, weights, int(kv * mib), int(compute * mib))
    return MemoryReport((host,), exact=False)
