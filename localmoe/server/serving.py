"""The server from its start to its end: the socket, the line that says where, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import uvicorn

from localmoe.app.addresses import is_loopback
from localmoe.app.listener import Listener
from localmoe.errors import LocalmoeError, UsageError
from localmoe.server import limits
from localmoe.server.access import Access, rules
from localmoe.server.admission import Admission
from localmoe.server.answering import Answering
from localmoe.server.connections import BoundedConnection
from localmoe.server.http import Paths
from localmoe.server.models import Models
from localmoe.server.requests import Door, ServeRequest
from localmoe.text import clean_line, counted

DEFAULT_PORT = 8080
PORTS_TRIED = 20


class PortTakenError(LocalmoeError):
    """Another program listens there."""

    code = "port_taken"


Ready = Callable[[str], None]


def serve(request: ServeRequest, listener: Listener, ready: Ready) -> None:
    """Serve until SIGTERM or Ctrl-C, which let the requests under way end; a second one does not.

    ``ready`` is called with the address once requests are answered, the model loaded.
    Raises PortTakenError, UsageError, and what loading the model raises.
    """
    door = with_key(request.door, listener)
    with listening(door, listener) as sock:
        asyncio.run(_Server(replace(request, door=door), listener, sock, ready).run())


def with_key(door: Door, listener: Listener) -> Door:
    """Off loopback a key is needed: one is made, and shown this once."""
    if door.keys or is_loopback(door.host):
        return door
    key = secrets.token_urlsafe(24)
    listener.lost(f"others can reach {door.host}, so a key is needed; made for this run: {key}")
    return replace(door, keys=(key,))


@contextlib.contextmanager
def listening(door: Door, listener: Listener) -> Iterator[socket.socket]:
    """The socket. Without a stated port: 8080, or the next free one. Raises PortTakenError."""
    first = DEFAULT_PORT if door.port is None else door.port
    ports = range(first, first + PORTS_TRIED) if door.port is None else (first,)
    for port in ports:
        try:
            found = socket.getaddrinfo(door.host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UsageError(f"--host {clean_line(door.host)}: {error.strerror}") from None
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(address)
                sock.listen(limits.CONNECTIONS)
            except OSError as error:
                reason = error.strerror
                continue
            if port != first:
                listener.note(f"port {first} is taken: {port} instead")
            yield sock
            return
    raise PortTakenError(
        f"cannot listen at {door.host}:{first}: {(reason or 'no reason given').lower()}",
        hint="--port 0 takes any free one",
    )


def address_of(sock: socket.socket) -> str:
    """``http://127.0.0.1:8080``."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server:
    def __init__(
        self, request: ServeRequest, listener: Listener, sock: socket.socket, ready: Ready
    ) -> None:
        self._request = request
        self._listener = listener
        self._sock = sock
        self._ready = ready
        self._admission = Admission(limits.QUEUE)
        models = Models(request, listener, address_of(sock))
        self._answering = Answering(
            models,
            self._admission,
            request.sample,
            listener,
            learns=request.load.remember,
            drops=request.drop,
        )
        self._paths = Paths(self._answering, listener)
        door = request.door
        who = rules(door.host, door.keys, door.origins, door.hosts)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self._http = uvicorn.Server(
            uvicorn.Config(
                Access(self._paths.app(), who, self._paths.note_refusal),
                http=BoundedConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(limits.KEEP_ALIVE),
                h11_max_incomplete_event_size=limits.HEADER_BYTES,
            )
        )
        self._http.capture_signals = contextlib.nullcontext  # type: ignore

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        serving = asyncio.create_task(self._http.serve([self._sock]))
        tasks = [asyncio.create_task(self._watch_idle())]
        try:
            await self._start(serving)
            await serving
        finally:
            self._http.should_exit = self._http.force_exit = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(serving, *tasks, return_exceptions=True)
            await asyncio.to_thread(self._answering.close)

    async def _start(self, serving: asyncio.Task[None]) -> None:
        """Load the model that was named, while requests wait; then say that it can be asked."""
        name = self._request.load.name
        if name is not None:
            loading = asyncio.create_task(self._answering.load(name))
            await asyncio.wait((loading, serving), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():  # it is to end before it has begun
                loading.cancel()
                return
            loading.result()
        self._ready(address_of(self._sock))

    def _end(self) -> None:
        """The first signal: no new requests. The second: no old ones either."""
        if self._http.should_exit:
            self._http.force_exit = True
            return
        self._admission.closed = True
        self._http.should_exit = True
        if inside := self._admission.inside:
            self._listener.note(
                f"ending after {counted(inside, 'request')}; once more ends at once"
            )

    async def _watch_idle(self) -> None:
        idle = self._request.idle
        if idle is None:
            return
        loop, models = asyncio.get_running_loop(), self._answering.models
        while True:
            rest = self._paths.last_used + idle - loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
            elif self._admission.inside or models.in_use or models.current is None:
                await asyncio.sleep(min(idle, 1.0))
            else:
                await self._answering.unload()
