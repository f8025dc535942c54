"""A second device without a GPU: this machine's RAM, served by a worker of the product."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

from localmoe.engine.rpc import OtherVersionError, greet
from localmoe.engine.rpc_serving import Server
from localmoe.errors import EngineError
from tests.waiting import wait_until

HOST = "127.0.0.1"
_SERVE = """
import sys
from localmoe.engine.worker import rpc_server
endpoint, devices, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rpc_server.serve(endpoint, 1, ["CPU"] * devices, lambda: (size, size))
"""


@contextlib.contextmanager
def rpc_server(*, threads: int = 1, ram: int | None = None) -> Iterator[str]:
    """A running worker; the value is its endpoint, "127.0.0.1:PORT".

    Raises EngineError: there is no RPC backend, or it did not start to serve.
    """
    with Server(HOST, free_port(), threads, ram) as server:
        yield server.endpoint


@contextlib.contextmanager
def invented_cards(size: int, devices: int = 1) -> Iterator[str]:
    """A worker with some devices that each say they have ``size`` bytes, all free; its endpoint."""
    endpoint = f"{HOST}:{free_port()}"
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, endpoint, str(devices), str(size)],
        stdout=quiet,
        stderr=quiet,
        stdin=quiet,
    )
    try:
        wait_until(lambda: _answers(endpoint), "the invented cards are not served")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str) -> bool:
    try:
        greet(endpoint)
    except OtherVersionError:
        raise
    except EngineError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
