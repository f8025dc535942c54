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
from localmoe.errors import (
    LIFT,
    EngineError,
    EngineMemoryError,
    InterruptedLoadError,
    LocalmoeError,
    ModelFileError,
)
from localmoe.planning.memory import CPU, DeviceMemory, EngineSettings, MemoryReport
from localmoe.wording import option

Progress = Callable[[float], bool]
"""Called with 0…1 while weights are read; returning False stops the load."""


SHORT_OF_MEMORY = re.compile(
    r"(failed|unable) to allocate|(out of|insufficient) memory", re.IGNORECASE
)
"""How llama.cpp's log tells that an allocation has failed."""
UNKNOWN_ARCHITECTURE = "unknown model architecture"
"""How it tells that it does not know the kind of model."""

UNMAPPED = "mmap failed"
"""How it tells that the system does not map the file into memory."""

KV_INTEGER, KV_STRING = 0, 3  # enum llama_model_kv_override_type in llama.h


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a dry run needs to know of the header to leave the vocabulary's texts out.

    They cost most of its time (150,000 strings: 0.2 s) and no memory that is asked about.
    ``vocabulary`` 0 reads them.
    """

    vocabulary: int  # tokens


class MappingRefusedError(Exception):
    """The system does not map the file: a file system that cannot, or too little address space."""


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
    Raises ModelFileError with the engine's reason, EngineMemoryError, MappingRefusedError, and
    InterruptedLoadError when ``progress`` says so.
    """
    params = llama.llama_model_default_params()
    # What the parameters point to has to live until the call returns.
    devices = _place_weights(params, settings)
    overrides = _buffer_overrides(settings.overrides)
    if overrides is not None:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    # A dry run with a mapping asserts inside llama.cpp.
    params.load_mode = binding.LOAD_MODES["none" if dry_run is not None else settings.load_mode]
    params.use_extra_bufts = settings.repack
    params.no_alloc = dry_run is not None
    params.kv_overrides = metadata = _metadata_overrides(architecture, settings, dry_run)
    stopped = False

    def on_progress(fraction: float, _: Any) -> bool:
        nonlocal stopped
        stopped = stopped or (progress is not None and not progress(fraction))
        return not stopped

    params.progress_callback = callback = llama.llama_progress_callback(on_progress)
    log.clear()
    model = _load(paths, params)
    del devices, overrides, metadata, callback
    if stopped:
        if model:
            llama.llama_model_free(model)
        raise InterruptedLoadError("loading was interrupted")
    if not model:
        reason = log.reason()
        if UNMAPPED in reason:
            raise MappingRefusedError(reason)
        raise _loading_failed(reason)
    return model


def _load(paths: Sequence[str], params: Any) -> Any:
    """A ``llama_model *``, null when it could not be loaded."""
    encoded = [os.fsencode(path) for path in paths]
    if len(encoded) == 1:
        return llama.llama_model_load_from_file(encoded[0], params)
    parts = (ctypes.c_char_p * len(encoded))(*encoded)
    return llama.llama_model_load_from_splits(parts, len(encoded), params)


def _loading_failed(reason: str) -> LocalmoeError:
    """The error for what llama.cpp's log gives as the reason: it has no other way to say it."""
    if SHORT_OF_MEMORY.search(reason):
        return EngineMemoryError(
            f"the engine did not get the memory for the weights: {reason}",
            hint=LIFT,
        )
    hint = "localmoe show FILE says what the file contains"
    if UNKNOWN_ARCHITECTURE in reason:
        hint = "a newer llama-cpp-python may know it; or choose another model"
    return ModelFileError(f"the engine cannot load this model: {reason}", hint=hint)


def _place_weights(params: Any, settings: EngineSettings) -> tuple[Any, ...]:
    """Say which devices get which layers. What ``params`` then point to is returned."""
    handles = [binding.device_named(name) for name in settings.devices]
    devices = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    params.n_gpu_layers = settings.gpu_layers
    if not handles:
        return (devices,)
    # Stated even when equal: llama.cpp would split by what is free at that moment.
    shares = (ctypes.c_float * llama.llama_max_devices())(
        *(settings.tensor_split or (1.0,) * len(handles))
    )
    params.tensor_split = shares
    return (devices, shares)


def _metadata_overrides(architecture: str, settings: EngineSettings, dry_run: DryRun | None) -> Any:
    """Metadata that is not taken from the file; an entry with an empty key ends the list."""
    values: dict[str, int | bytes] = {}
    if settings.experts_used:
        values[f"{architecture}.expert_used_count"] = settings.experts_used
    if dry_run is not None and dry_run.vocabulary:  # as many tokens, without their texts
        values[f"{architecture}.vocab_size"] = dry_run.vocabulary
        values["tokenizer.ggml.model"] = b"no_vocab"
    entries = (llama.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(entries, values.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, bytes):
            entry.tag, entry.value.val_str = KV_STRING, value
        else:
            entry.tag, entry.value.val_i64 = KV_INTEGER, value
    return entries


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _buffer_overrides(overrides: Sequence[tuple[str, str]]) -> Any:
    """Tensors by the pattern of their names, and where they go; None if there are none."""
    if not overrides:
        return None
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
    params.op_offload = settings.op_offload
    params.no_perf = True
    if on_node is not None:
        params.cb_eval = on_node
    log.clear()
    ctx = llama.llama_init_from_model(model, params)
    if not ctx:
        reason = log.reason()
        if SHORT_OF_MEMORY.search(reason):
            raise EngineMemoryError(
                f"the engine did not get the memory for its context: {reason}", hint=LIFT
            )
        raise EngineError(
            f"the engine cannot make a context of {settings.context} tokens: {reason}",
            hint=f"a smaller {option('ctx')}, or {option('kv-type', 'f16')}",
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
