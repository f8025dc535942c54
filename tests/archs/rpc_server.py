"""A second device without a GPU: this machine's RAM, served by a worker of the product."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from localmoe.engine.serving import Server

HOST = "127.0.0.1"


@contextmanager
def rpc_server(*, threads: int = 1, ram: int | None = None) -> Iterator[str]:
    """A running worker; the value is its endpoint, "127.0.0.1:PORT".

    Raises EngineError: there is no RPC backend, or it did not start to serve.
    """
    with Server(HOST, free_port(), threads, ram) as server:
        yield server.endpoint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
