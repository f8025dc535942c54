"""A model that another process of the same user has loaded, reached over its socket.

``app/model_socket.py`` is the other end: it speaks the worker's protocol, after one line that says
what is loaded.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from localmoe.engine import rpc
from localmoe.engine.connection import Connection
from localmoe.engine.events import Loaded, LoadProgress
from localmoe.engine.text_client import TextClient
from localmoe.errors import EngineCrashError


class SocketConnection(Connection):
    """To a server whose greeting has been read. Closing it ends what was asked here, no more."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__()
        self._socket = connected
        events = connected.makefile("rb")
        threading.Thread(target=self._read_events, args=(events,), daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._gone

    def close(self) -> None:
        if not self._is_foreign:
            self._end("the model was closed")

    def _put_bytes(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:  # known before the thread that reads sees the end
            self._hang_up()
            raise

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        self._socket.close()
        self._hang_up()

    def _obituary(self, *, reading: bool, awaited: str = "") -> EngineCrashError:
        if self._ended:
            return EngineCrashError(f"the connection to the model was ended: {self._ended}")
        return EngineCrashError(
            "the server that had this model loaded has ended, or unloaded it",
            hint="ask again: the model is then loaded here",
        )


class AttachedEngine(TextClient):
    """The part of ``Engine`` that needs no process of one's own; ``loaded`` already."""

    def __init__(self, connected: socket.socket, loaded: Loaded) -> None:
        self._worker = SocketConnection(connected)
        self._limits = rpc.limits((), 0.0)
        self._loaded = loaded

    def load(self) -> Iterator[LoadProgress | Loaded]:
        """At once. Raises EngineCrashError when the server is gone."""
        if not self.alive:
            raise self._worker._obituary(reading=False)
        yield self._loaded

    def render(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the server's renderer of templates replies: ``rendered``, or ``refused``."""
        return self._worker.consult("render", request=dict(request))

    def keep(self, slot: str) -> int:
        """0: the server keeps what was read, for whoever asks next."""
        return 0

    def resume(self, slot: str) -> int:
        """0: as for ``keep``."""
        return 0

    def close(self) -> None:
        """Leave the model to its server."""
        self._worker.close()
