"""More than one machine: the devices of remote workers, through llama.cpp's RPC backend.

A server has one client at a time and makes others wait without a word, and the backend aborts the
process when a server does not answer as it should. So each server is greeted by ourselves first,
with a time limit, and every way to fail is a typed error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypedDict

from localmoe.errors import EngineError

PATIENCE = 5.0  # seconds that a worker may take to answer
PROBE_PATIENCE = 1.0  # seconds for each question about something that did not answer
INSTALL = "localmoe engine install rpc"
SAME_VERSION = "the same version of localmoe on both machines"

_HELLO = 14  # RPC_CMD_HELLO in ggml-rpc.cpp
_CAPABILITIES = 24  # RPC_CONN_CAPS_SIZE in ggml-rpc/transport.h
_PROTOCOL = 7  # RPC_PROTO_MAJOR_VERSION in ggml-rpc.h


class OtherVersionError(EngineError):
    """A worker answers, and will never be understood: waiting for it is of no use."""


ANSWER_LIMIT = 20.0  # seconds in which a question about memory or devices is answered
WORK_LIMIT = 300.0  # seconds without a word while weights are sent or a batch is computed
DEAD_AFTER = 10.0  # seconds without an acknowledgement by the other machine's network

_WATCH = 0.5  # seconds between two looks at this process's connections


class Limits(TypedDict, total=False):
    """How long a request may wait for other machines without a word, and what to call them."""

    silence: float  # seconds
    awaited: str


def limits(remotes: Sequence[str], seconds: float) -> Limits:
    """For ``WorkerProcess.request``; none where no other machine takes part."""
    return {"silence": seconds, "awaited": named(remotes)} if remotes else {}


def named(remotes: Sequence[str]) -> str:
    """``the worker at box:50052``, ``the workers at a:1, b:2``."""
    return f"the worker{'s' * (len(remotes) > 1)} at {', '.join(remotes)}"


def watch(is_one: Callable[[socket.socket], bool], patience: float | None = None) -> None:
    """Notice, on a thread, when the machine at the other end of a connection is gone.

    llama.cpp's RPC waits for an answer without any limit. So its connections, those of this process
    that ``is_one`` knows, get TCP's own signs of life: after DEAD_AFTER seconds without one a wait
    ends with an error. ``patience``: seconds after which a peer that never said anything is let go.
    """
    threading.Thread(target=_watch, args=(is_one, patience), daemon=True).start()


def _watch(is_one: Callable[[socket.socket], bool], patience: float | None) -> None:
    seen: dict[tuple[int, int], float] = {}  # descriptor and inode of a connection → since when
    while True:
        now, open_ones = time.monotonic(), set()
        for entry in os.scandir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                number = int(entry.name)
                state = os.fstat(number)
                if not stat.S_ISSOCK(state.st_mode):
                    continue
                key = number, state.st_ino
                with socket.socket(fileno=os.dup(number)) as connection:
                    if not is_one(connection):
                        continue
                    open_ones.add(key)
                    if key not in seen:
                        seen[key] = now
                        _expect_signs_of_life(connection)
                    if patience is not None and now - seen[key] > patience:
                        _let_go_if_mute(connection)
        seen = {key: since for key, since in seen.items() if key in open_ones}
        time.sleep(_WATCH)


def _expect_signs_of_life(connection: socket.socket) -> None:
    tcp = socket.IPPROTO_TCP
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(tcp, socket.TCP_KEEPIDLE, 4)
    connection.setsockopt(tcp, socket.TCP_KEEPINTVL, 2)
    connection.setsockopt(tcp, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(tcp, socket.TCP_USER_TIMEOUT, int(1000 * DEAD_AFTER))


def _let_go_if_mute(connection: socket.socket) -> None:
    """End a connection on which nothing ever came (``tcpi_bytes_received`` of linux/tcp.h)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    if len(info) == 136 and struct.unpack_from("<Q", info, 128)[0] == 0:
        connection.shutdown(socket.SHUT_RDWR)


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
        raise _silence(endpoint, host, int(port)) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EngineError(f"no worker answers at {endpoint}: {reason}", hint=start) from error
    if len(answer) < 12:
        raise EngineError(f"what listens at {endpoint} is no worker", hint=start)
    length, major, minor, _ = struct.unpack_from("<Q3B", answer)
    if length != 4 + _CAPABILITIES or major != _PROTOCOL:
        raise OtherVersionError(
            f"the worker at {endpoint} speaks another version of the protocol ({major}.{minor})",
            hint=SAME_VERSION,
        )


def _silence(endpoint: str, host: str, port: int) -> EngineError:
    """The error for what takes a connection and does not answer the greeting.

    A web server waits for the end of a request that it does not understand. A worker from before
    the protocol had capabilities (version 3) waits for a greeting without them. A worker that is in
    use, or whose machine is stuck, says nothing to anybody.
    """
    if _answer_to(host, port, b"GET / HTTP/1.0\r\n\r\n", 5) == b"HTTP/":
        return EngineError(
            f"a web server listens at {endpoint}, and no worker",
            hint="the port of `localmoe worker` on that machine",
        )
    if len(_answer_to(host, port, struct.pack("<BQ", _HELLO, 0), 11)) == 11:
        older = f"the worker at {endpoint} is of an older version"
        return OtherVersionError(older, hint=SAME_VERSION)
    return EngineError(
        f"the worker at {endpoint} does not answer: most likely it serves somebody else, "
        "and it serves one at a time",
        hint="end the other localmoe, or leave --remote out",
    )


def _answer_to(host: str, port: int, words: bytes, count: int) -> bytes:
    """The first bytes of an answer; none where none comes."""
    try:
        with socket.create_connection((host, port), timeout=PROBE_PATIENCE) as connection:
            connection.sendall(words)
            return _receive(connection, count)
    except OSError:
        return b""


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data
