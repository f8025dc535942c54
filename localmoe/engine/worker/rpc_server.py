"""The process that serves this machine's devices to others: llama.cpp's RPC server.

``python -m localmoe.engine.worker.rpc_server JSON`` serves until its standard input ends. JSON:
``endpoint`` ("host:port"), ``threads``, ``ram`` (bytes to give at most, or null), ``modules``
(paths of backends to load).

The GPUs of the engine build are served; without any, the processor with its RAM. llama.cpp reports
all of the installed RAM as free. A plan made from that would end the server, so the question is
answered by ``free_ram`` instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from localmoe import ledger, storage
from localmoe.engine.rpc import watch
from localmoe.engine.rpc_build import find_rpc_library
from localmoe.engine.worker import binding
from localmoe.facts import hardware
from localmoe.planning.budget import ram_reserve

GREETING_PATIENCE = 10.0  # seconds in which a client must say something

_GET_MEMORY = 2  # position of get_memory in struct ggml_backend_device_i, ggml-backend-impl.h


def free_ram(limit: int | None) -> tuple[int, int]:
    """(free, total) bytes of RAM that a client may plan with: a reserve stays with this machine.

    Of ``limit`` bytes, those that clients hold already are taken off.
    """
    machine = hardware.detect()
    free = max(0, machine.ram_available - ram_reserve(machine))
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:  # ulimit -v
        free = max(0, min(free, allowed - psutil.Process().memory_info().vms))
    if limit is None:
        return free, machine.ram_total
    held = ledger.anonymous_memory(os.getpid())
    return max(0, min(free, limit - held)), min(limit, machine.ram_total)


def served_devices(limit: int | None) -> list[dict[str, Any]]:
    """Name, kind and bytes of what a server here gives."""
    found = [d for d in binding.devices() if d.kind in ("gpu", "igpu")]
    cards: dict[str, binding.Device] = {d.card or d.name: d for d in reversed(found)}
    chosen = [d for d in found if d in cards.values()]
    if any(d.kind == "gpu" for d in chosen):
        chosen = [d for d in chosen if d.kind == "gpu"]
    if chosen:
        return [
            {"name": d.name, "description": d.description, "free": d.free, "total": d.total}
            for d in chosen
        ]
    free, total = free_ram(limit)
    name = hardware.detect().cpu
    return [{"name": "CPU", "description": f"RAM, {name}", "free": free, "total": total}]


def serve(
    endpoint: str, threads: int, names: Sequence[str], ram: Callable[[], tuple[int, int]]
) -> None:
    """Serve the devices called ``names``; returns only if the address cannot be used.

    ``ram`` is asked for the (free, total) bytes of the processor's device.
    """
    path = find_rpc_library()
    if path is None:
        sys.exit("this engine build has no RPC backend")
    handles = [binding.device_named(name) for name in names]
    report = _MEMORY_REPORT(lambda _, free, total: _answer(ram, free, total))
    cpu = binding.device_named("CPU")
    ctypes.cast(cpu, ctypes.POINTER(ctypes.c_void_p))[_GET_MEMORY] = ctypes.cast(
        report, ctypes.c_void_p
    ).value
    start = ctypes.CDLL(str(path)).ggml_backend_rpc_start_server
    start.restype = None
    start.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    devices = (ctypes.c_void_p * len(handles))(*handles)
    if sys.platform.startswith("linux"):
        port = int(endpoint.rsplit(":", 1)[1])
        watch(lambda connection: _is_client(connection, port), patience=GREETING_PATIENCE)
    cache = storage.private_dir(storage.cache_dir() / "rpc")
    prune(cache, psutil.virtual_memory().total)
    start(endpoint.encode(), os.fsencode(cache), threads, len(handles), devices)


def _is_client(connection: socket.socket, port: int) -> bool:
    inet = connection.family == socket.AF_INET
    return inet and connection.getsockname()[1] == port and bool(connection.getpeername())


def prune(folder: Path, limit: int) -> None:
    """Delete what was used longest ago of the weights that clients sent, down to ``limit`` bytes.

    llama.cpp's server keeps each large tensor under the hash of its bytes: the next load sends the
    hash alone.
    """
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size


_MEMORY_REPORT = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)


def _answer(ram: Callable[[], tuple[int, int]], free: Any, total: Any) -> None:
    try:
        free[0], total[0] = ram()
    except Exception:  # an exception cannot pass through C: then there is nothing to give
        free[0] = total[0] = 0


def _end_with_the_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    how = json.loads(sys.argv[1])
    for path in how["modules"]:
        binding.load_module(path)
    if how.get("list"):
        print(json.dumps(served_devices(how["ram"])))
        return
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    limit: int | None = how["ram"]
    names = [device["name"] for device in served_devices(limit)]
    serve(how["endpoint"], how["threads"], names, lambda: free_ram(limit))
    sys.exit(1)


if __name__ == "__main__":
    main()
