"""The devices of remote workers, registered with this process's engine."""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Sequence

from localmoe.engine.rpc import INSTALL, greet, watch
from localmoe.engine.worker import binding
from localmoe.errors import EngineError


class Servers:
    """The RPC servers of this worker process, in the order in which they give devices names."""

    def __init__(self) -> None:
        self._known: list[str] = []
        self._library: ctypes.CDLL | None = None

    def add(self, endpoints: Sequence[str]) -> None:
        """Register servers that are not known yet as devices ``RPC0``, ``RPC1`` …

        Raises EngineError: no RPC backend in this engine build, or no free worker there.
        """
        new = [each for each in dict.fromkeys(endpoints) if each not in self._known]
        if not new:
            return
        if self._library is None:
            from localmoe.engine.rpc_build import find_rpc_library  # late: most workers have none

            path = find_rpc_library()
            if path is None:
                raise EngineError("this engine build has no RPC backend", hint=INSTALL)
            self._library = ctypes.CDLL(str(path))
            self._library.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
            self._library.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
            if sys.platform.startswith("linux"):
                watch(self._is_ours)
        for endpoint in new:
            greet(endpoint)
            registry = self._library.ggml_backend_rpc_add_server(endpoint.encode())
            if not registry:
                raise EngineError(f"the worker at {endpoint} has no device to give")
            binding.backend_register(registry)
            self._known.append(endpoint)

    def _is_ours(self, connection: socket.socket) -> bool:
        """Whether it leads to the port of one of the servers (their names may have changed)."""
        ports = {int(endpoint.rsplit(":", 1)[1]) for endpoint in self._known}
        return connection.family == socket.AF_INET and connection.getpeername()[1] in ports
