"""The low-level interface: llama.cpp through llama-cpp-python, ggml through ctypes.

Five things need care here, each found by trying:

* Importing ``llama_cpp`` the ordinary way costs 0.3 s (its high-level classes, numpy, jinja2).
  Only the submodule ``llama_cpp.llama_cpp`` is needed, so the package's ``__init__`` is not run.
* ggml's functions live in sibling libraries. libllama is linked to the names that end in ``.so.0``;
  the plain ``.so`` files are separate copies, and loading one maps a second ggml with a device
  registry of its own.
* An engine for any x86-64 (``scripts/wheelhouse.py``) has a CPU backend for each kind of processor,
  and ggml chooses one when it is told the folder. Untold, ``llama_backend_init`` would look beside
  the interpreter and in the working directory. Which library was chosen is asked of one of its
  functions, as it is where there is only one.
* An error here ends the worker before it can answer: whoever started it reads the last line of its
  stderr (``process.py``), so the message says what to type, too.
* ``llama_get_memory_breakdown`` returns a C++ map by value. ``native.cpp`` unpacks it. Without that
  helper ``memory_breakdown`` returns None, and the abort callback enters Python, so it is used for
  prefill only (see ``generation.py``).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe.engine.native import fingerprint, native_path
from localmoe.errors import EngineError
from localmoe.text import clean_line

GGML_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
"""KV cache types that llama.cpp accepts (``enum ggml_type`` in ggml.h)."""

LOAD_MODES = {"none": 0, "mmap": 1}
"""``enum llama_load_mode`` in llama.h."""

DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}
"""``enum ggml_backend_dev_type`` in ggml-backend.h."""

PARTIAL_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


def _import_low_level() -> Any:
    name = "llama_cpp"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise EngineError(
                "llama-cpp-python is not installed: `pip install llama-cpp-python` installs it"
            )
        sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, ImportError, AttributeError) as error:
        raise EngineError(
            f"the engine library cannot be loaded ({clean_line(str(error))}): "
            "`pip install --force-reinstall --no-cache-dir llama-cpp-python` installs it anew"
        ) from error


llama: Any = _import_low_level()
"""``llama_cpp.llama_cpp``: every ``llama_*`` function and struct."""

LIBRARY_DIR = Path(llama._lib._name).parent


def _sibling(stem: str) -> ctypes.CDLL:
    for name in (f"lib{stem}.so.0", f"lib{stem}.0.dylib", f"lib{stem}.dylib"):
        path = LIBRARY_DIR / name
        if path.exists():
            return ctypes.CDLL(str(path))
    raise EngineError(f"lib{stem} is missing from {LIBRARY_DIR}")


_REGISTRY = _sibling("ggml")
_BASE = _sibling("ggml-base")

_POINTER = ctypes.c_void_p


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = list(arguments)
    return function


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _cpu_backend() -> ctypes.CDLL:
    """The library of the CPU backend, which is loaded first where ggml has to choose one."""
    registered = _function(_REGISTRY, "ggml_backend_reg_by_name", _POINTER, ctypes.c_char_p)
    if not registered(b"CPU"):
        load = _function(_REGISTRY, "ggml_backend_load_all_from_path", None, ctypes.c_char_p)
        silence = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(silence, None)
        load(os.fsencode(LIBRARY_DIR))
        llama.llama_log_set(llama.llama_log_callback(), None)
    backend = registered(b"CPU")
    if not backend:
        raise EngineError(f"the engine in {LIBRARY_DIR} has no CPU backend for this processor")
    symbol = _function(
        _BASE, "ggml_backend_reg_get_proc_address", _POINTER, _POINTER, ctypes.c_char_p
    )
    info = _SymbolInfo()
    where = _function(
        ctypes.CDLL(None), "dladdr", ctypes.c_int, _POINTER, ctypes.POINTER(_SymbolInfo)
    )
    if not where(symbol(backend, b"ggml_backend_set_n_threads"), ctypes.byref(info)):
        raise EngineError(f"the CPU backend of the engine in {LIBRARY_DIR} cannot be found")
    return ctypes.CDLL(os.fsdecode(info.file))


_CPU = _cpu_backend()

base_library, cpu_library = _BASE, _CPU

dev_count = _function(_REGISTRY, "ggml_backend_dev_count", ctypes.c_size_t)
dev_get = _function(_REGISTRY, "ggml_backend_dev_get", _POINTER, ctypes.c_size_t)
dev_by_name = _function(_REGISTRY, "ggml_backend_dev_by_name", _POINTER, ctypes.c_char_p)
backend_load = _function(_REGISTRY, "ggml_backend_load", _POINTER, ctypes.c_char_p)
backend_register = _function(_REGISTRY, "ggml_backend_register", None, _POINTER)
dev_name = _function(_BASE, "ggml_backend_dev_name", ctypes.c_char_p, _POINTER)
dev_description = _function(_BASE, "ggml_backend_dev_description", ctypes.c_char_p, _POINTER)
dev_type = _function(_BASE, "ggml_backend_dev_type", ctypes.c_int, _POINTER)
dev_memory = _function(
    _BASE,
    "ggml_backend_dev_memory",
    None,
    _POINTER,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
)
dev_properties = _function(_BASE, "ggml_backend_dev_get_props", None, _POINTER, _POINTER)
dev_buffer_type = _function(_BASE, "ggml_backend_dev_buffer_type", _POINTER, _POINTER)
dev_backend_reg = _function(_BASE, "ggml_backend_dev_backend_reg", _POINTER, _POINTER)
reg_name = _function(_BASE, "ggml_backend_reg_name", ctypes.c_char_p, _POINTER)
buft_device = _function(_BASE, "ggml_backend_buft_get_device", _POINTER, _POINTER)
buft_is_host = _function(_BASE, "ggml_backend_buft_is_host", ctypes.c_bool, _POINTER)
buffer_is_host = _function(_BASE, "ggml_backend_buffer_is_host", ctypes.c_bool, _POINTER)
tensor_get = _function(
    _BASE,
    "ggml_backend_tensor_get",
    None,
    _POINTER,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
)
cpu_buffer_type = _function(_CPU, "ggml_backend_cpu_buffer_type", _POINTER)


@dataclass(frozen=True, slots=True)
class Device:
    """One entry of ggml's device registry. Bytes."""

    name: str
    description: str
    kind: str  # "cpu" | "gpu" | "igpu" | "accel"
    backend: str
    free: int
    total: int
    card: str | None = None  # PCI address of the hardware; None where the backend does not say


class _Properties(ctypes.Structure):
    """``struct ggml_backend_dev_props`` in ggml-backend.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", ctypes.c_bool * 16),
    )


def devices() -> list[Device]:
    """All devices of this engine build, host memory included."""
    found = []
    for index in range(dev_count()):
        dev = dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        dev_memory(dev, ctypes.byref(free), ctypes.byref(total))
        properties = _Properties()
        dev_properties(dev, ctypes.byref(properties))
        found.append(
            Device(
                name=dev_name(dev).decode(),
                description=dev_description(dev).decode(errors="replace"),
                kind=DEVICE_KINDS.get(dev_type(dev), "accel"),
                backend=reg_name(dev_backend_reg(dev)).decode(),
                free=free.value,
                total=total.value,
                card=(properties.device_id or b"").decode(errors="replace") or None,
            )
        )
    return found


def load_module(path: str) -> str:
    """Register the devices of the backend in the file ``path``; returns why not, "" if it did."""
    try:
        library = ctypes.CDLL(path)  # the linker's own words, which ggml would only log
    except OSError as error:
        return str(error)
    if hasattr(library, "ggml_backend_init"):
        start = _function(library, "ggml_backend_init", _POINTER)
        if not start():  # Vulkan's loader without any driver: nothing is wrong, and no device there
            return ""
    return "" if backend_load(os.fsencode(path)) else "it is no backend of this engine's version"


def device_named(name: str) -> int:
    """The registry's handle of a device; EngineError if this build has no such device."""
    handle = dev_by_name(name.encode())
    if not handle:
        known = ", ".join(d.name for d in devices())
        raise EngineError(f"the engine has no device {name!r}; it has {known}")
    return int(handle)


def buffer_type_named(device: str) -> int:
    """The buffer type whose tensors live on ``device`` ("CPU" is plain host memory)."""
    if device == "CPU":
        return int(cpu_buffer_type())
    return int(dev_buffer_type(device_named(device)))


# ---- the optional native helper -------------------------------------------------------------


class _BufferBytes(ctypes.Structure):
    _fields_ = (
        ("buffer_type", ctypes.c_void_p),
        ("model", ctypes.c_uint64),
        ("context", ctypes.c_uint64),
        ("compute", ctypes.c_uint64),
    )


def _load_native() -> ctypes.CDLL | None:
    path = native_path()
    try:
        if path is None:
            helper = None
        elif "$" in str(path):  # the linker would expand $ORIGIN and the like in a name
            with path.open("rb") as file:
                helper = ctypes.CDLL(f"/proc/self/fd/{file.fileno()}")
        else:
            helper = ctypes.CDLL(str(path))
    except OSError:
        return None
    here = fingerprint()
    if helper is not None and here and _built_from(helper) != here:
        raise EngineError(
            "the native helper was built from other C++ sources than are here: "
            "`pip install --no-deps -e .` builds it anew"
        )
    return helper


def _built_from(helper: ctypes.CDLL) -> str:
    """The fingerprint of the sources that it was compiled from; "" if it is older than that."""
    if not hasattr(helper, "localmoe_sources"):
        return ""
    sources = _function(helper, "localmoe_sources", ctypes.c_char_p)
    return str(sources().decode())


_REDIRECTED = {
    "localmoe_transfers": ("ggml_backend_tensor_get_async", "ggml_backend_tensor_set_async"),
    "localmoe_scheduling": ("ggml_backend_sched_reset", "ggml_backend_sched_reserve_size"),
}


def _redirect(helper: ctypes.CDLL | None) -> None:
    """Tell the helper of ggml's functions that go through it where it is preloaded."""
    for told, names in _REDIRECTED.items():
        tell = getattr(helper, told, None)
        if tell is not None:
            tell(*(ctypes.cast(getattr(_BASE, name), _POINTER) for name in names))


native = _load_native()
"""The compiled ``native.cpp``, or None."""
_redirect(native)


def helper_is_preloaded() -> bool:
    """Whether llama.cpp's mapping of a file goes through the helper: see its ``mmap``."""
    ours = getattr(native, "mmap", None)
    if ours is None:
        return False
    used = ctypes.CDLL(None).mmap
    return _address(used) == _address(ours)


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def memory_breakdown(ctx: Any) -> dict[str, tuple[int, int, int]] | None:
    """Bytes (weights, KV, compute) per device of a context; None without the native helper.

    Buffers in host memory (pinned ones of a GPU too) count for ``CPU``.
    """
    symbol = getattr(llama._lib, "_Z26llama_get_memory_breakdownPK13llama_context", None)
    if native is None or symbol is None:
        return None
    entries = (_BufferBytes * 64)()
    ask = _function(
        native,
        "localmoe_memory_breakdown",
        ctypes.c_int32,
        _POINTER,
        _POINTER,
        ctypes.POINTER(_BufferBytes),
        ctypes.c_int32,
    )
    count = ask(ctypes.cast(symbol, _POINTER), ctx, entries, len(entries))
    result: dict[str, tuple[int, int, int]] = {}
    for entry in entries[: min(count, len(entries))]:
        device = "CPU"
        if not buft_is_host(entry.buffer_type):
            device = dev_name(buft_device(entry.buffer_type)).decode()
        weights, kv, compute = result.get(device, (0, 0, 0))
        result[device] = (weights + entry.model, kv + entry.context, compute + entry.compute)
    return result


def abort_callback(flag: ctypes.c_int32) -> tuple[Any, int, bool]:
    """(callback, user data, cheap): cheap is False when each call enters Python."""
    if native is not None:
        function = ctypes.cast(native.localmoe_abort_requested, llama.ggml_abort_callback)
        return function, ctypes.addressof(flag), True
    return llama.ggml_abort_callback(lambda _: flag.value != 0), 0, False


# ---- the engine's log -----------------------------------------------------------------------

LOG_WARN, LOG_ERROR, LOG_CONTINUE = 3, 4, 5  # enum ggml_log_level in ggml.h


def set_log(sink: Callable[[int, str], None]) -> Any:
    """Send llama.cpp's log lines to ``sink(level, text)``.

    The callback is returned, and kept: llama.cpp goes on calling it after its maker is gone.
    """
    global _log_callback
    callback = llama.llama_log_callback(
        lambda level, text, _: sink(level, text.decode(errors="replace"))
    )
    llama.llama_log_set(callback, None)
    _log_callback = callback
    return callback


_log_callback: Any = None
