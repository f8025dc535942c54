"""More than one machine: the devices of remote workers, through llama.cpp's RPC backend.

A server has one client at a time and makes others wait without a word, and the backend aborts the
process when a server does not answer as it should. So each server is greeted by ourselves first,
with a time limit, and every way to fail is a typed error.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from localmoe.errors import EngineError

PATIENCE = 5.0  # seconds that a worker may take to answer
INSTALL = "localmoe engine install rpc"

_HELLO = 14  # RPC_CMD_HELLO in ggml-rpc.cpp
_CAPABILITIES = 24  # RPC_CONN_CAPS_SIZE in ggml-rpc/transport.h
_PROTOCOL = 7  # RPC_PROTO_MAJOR_VERSION in ggml-rpc.h


def greet(endpoint: str, patience: float = PATIENCE) -> None:
    """Make sure that a worker of our protocol answers there and is free.

    Source of the greeting: ``negotiate_hello`` in llama.cpp's ggml-rpc.cpp. Raises EngineError.
    """
    host, port = endpoint.rsplit(":", 1)
    start = f"on that machine: localmoe worker --port {port}"
    try:
        with socket.create_connection((host, int(port)), timeout=patience) as connection:
            connection.sendall(struct.pack("<BQ", _HELLO, _CAPABILITIES) + bytes(_CAPABILITIES))
            answer = _receive(connection, 8 + 4 + _CAPABILITIES)
    except TimeoutError as error:
        raise EngineError(
            f"the worker at {endpoint} does not answer: most likely it serves somebody else, "
            "and it serves one at a time",
            hint="end the other localmoe, or leave --remote out",
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EngineError(f"no worker answers at {endpoint}: {reason}", hint=start) from error
    if len(answer) < 12:
        raise EngineError(f"what listens at {endpoint} is no worker", hint=start)
    length, major, minor, _ = struct.unpack_from("<Q3B", answer)
    if length != 4 + _CAPABILITIES or major != _PROTOCOL:
        raise EngineError(
            f"the worker at {endpoint} speaks another version of the protocol ({major}.{minor})",
            hint="the same version of localmoe on both machines",
        )


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data
