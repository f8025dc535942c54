"""A second device without a GPU: this machine's processor, served by another process.

``with rpc_server() as endpoint:`` in tests; as a program (``python -m tests.archs.rpc_server
LIBRARY PORT THREADS``) it serves until it is killed. It listens on the loopback address only.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.build_rpc import engine_libraries, rpc_library

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"


@contextmanager
def rpc_server(library: Path | None = None, *, threads: int = 1) -> Iterator[str]:
    """A running server; the value is its endpoint, "127.0.0.1:PORT".

    Raises:
        RuntimeError: the server ended or did not listen within 20 s.
        scripts.build_rpc.BuildError: the library had to be built and could not be.
    """
    path = library or rpc_library()
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.archs.rpc_server", str(path), str(port), str(threads)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_until_listening(server, port)
        yield f"{HOST}:{port}"
    finally:
        server.kill()
        server.communicate()


def _wait_until_listening(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if server.poll() is not None:
            error = server.stderr.read().decode(errors="replace") if server.stderr else ""
            raise RuntimeError(f"the RPC server ended: {error[-1000:]}")
        if _listens(port):
            return
        time.sleep(0.05)
    raise RuntimeError("the RPC server does not listen")


def _listens(port: int) -> bool:
    """Whether a socket listens there, asked of the kernel: a connection would be its client."""
    wanted = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[1] == wanted and fields[3] == "0A" for fields in map(str.split, lines))


def serve(library: str, port: int, threads: int) -> None:
    """Serves the processor device; never returns."""
    folder = engine_libraries()
    ctypes.CDLL(str(folder / "libggml-cpu.so.0"), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(folder / "libggml.so.0"), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(
        ggml.ggml_backend_dev_by_type(0)
    )  # GGML_BACKEND_DEVICE_TYPE_CPU
    start = ctypes.CDLL(library).ggml_backend_rpc_start_server
    start.restype = None
    start.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    start(f"{HOST}:{port}".encode(), None, threads, 1, devices)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
