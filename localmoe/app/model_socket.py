"""A loaded model for this user's other programs: the worker's protocol on a private Unix socket.

One operation more: ``render``, a request to the renderer of chat templates; ``rendered`` answers.

Its folder is private (0700), and both ends look at the other's user. ``app/attach.py`` connects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import struct
import threading
import uuid
from typing import IO

from localmoe import kept
from localmoe.app.attach import Greeting, is_ours, signature, socket_folder
from localmoe.app.model import LoadableEngine, LoadedModel
from localmoe.app.model_record import encoded_model
from localmoe.app.records import decoded, encoded
from localmoe.app.requests import PlanRequest
from localmoe.app.shared import SharedModel
from localmoe.chat.renderer import RenderError
from localmoe.engine import protocol
from localmoe.engine.events import Finished, Request, Span
from localmoe.engine.protocol import Message
from localmoe.errors import EngineBusyError, EngineError, LocalmoeError, StorageError

CONNECTIONS = 32
LINE_LIMIT = 64 << 20  # bytes of a request: a prompt and where its messages are
STUCK = 30  # seconds in which a client takes an event


class ModelSocket:
    """Open until ``close``. Where no socket can be made there is none, and nobody attaches."""

    def __init__(self, shared: SharedModel, request: PlanRequest, address: str = "") -> None:
        """``request``: as what the model was planned; ``address``: of the HTTP, for people."""
        self._shared = shared
        self._greeting = _greeting(shared.model, request, address)
        self._free = threading.Semaphore(CONNECTIONS)
        self._connected: set[socket.socket] = set()
        self._path = ""
        self._listening = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError, StorageError), socket_folder() as folder:
            name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._listening.bind(f"{folder}/{name}")
            self._listening.listen()
            self._path = os.path.join(os.readlink(folder), name)  # noqa: PTH115, PTH118
            threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Nobody attaches any more; who is attached is told that the server is gone."""
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108
        for connected in (self._listening, *self._connected):
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits there
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._free.acquire()
                connected, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        self._connected.add(connected)
        try:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STUCK, 0))
            if is_ours(connected):
                connected.sendall(self._greeting)
                with connected.makefile("rb") as lines:
                    _Client(self._shared, connected).read(lines)
        except OSError:
            pass
        finally:
            self._connected.discard(connected)
            connected.close()
            self._free.release()


class _Client:
    """One attached program: what it asks for, one computation at a time."""

    def __init__(self, shared: SharedModel, connected: socket.socket) -> None:
        self._shared = shared
        self._socket = connected
        self._sending = threading.Lock()
        self._running: tuple[int, LoadableEngine] | None = None  # the request's number, its view
        self._view = shared.caller()

    def read(self, lines: IO[bytes]) -> None:
        """Until the program leaves, or sends what is no request."""
        try:
            while line := lines.readline(LINE_LIMIT):
                message = protocol.decode(line)
                number, op = int(message["id"]), message["op"]
                if op == "generate" and self._running is not None:
                    busy = EngineBusyError("another request of this program is under way")
                    self._send(number, protocol.error_to_message(busy))
                elif op == "generate":
                    request = decoded(Request, message["request"])
                    engine = self._shared.caller().engine
                    self._running = (number, engine)
                    work = (number, engine, request)
                    threading.Thread(target=self._answer, args=work, daemon=True).start()
                elif op == "cancel":
                    self._cancel(number)
                elif op == "render":
                    self._send(number, self._rendered(decoded(dict, message["request"])))
                elif op in protocol.CONSULTING:
                    self._send(number, self._reply(op, message))
        except kept.DAMAGED:
            pass
        finally:
            self._cancel(None)

    def _cancel(self, number: int | None) -> None:
        """Stop the request under way, if it has that number; None: whichever it is."""
        running = self._running
        if running is not None and number in (None, running[0]):
            running[1].cancel()

    def _answer(self, number: int, engine: LoadableEngine, request: Request) -> None:
        last: Message = {}
        try:
            with contextlib.closing(engine.generate(request)) as events:
                for event in events:
                    last = protocol.event_to_message(event)
                    if not isinstance(event, Finished):
                        self._send(number, last)
        except LocalmoeError as error:
            last = protocol.error_to_message(error)
        except OSError:  # it takes no events: it is stopped, or gone
            self._hang_up()
        finally:
            self._running = None  # before it hears the end, and asks again
        with contextlib.suppress(OSError):
            self._send(number, last)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _rendered(self, request: dict[str, object]) -> Message:
        try:
            return {"event": "rendered", "rendered": self._view.renderer.ask(request)}
        except RenderError as error:
            return {"event": "rendered", "refused": error.kind, "said": error.said}

    def _reply(self, op: str, message: Message) -> Message:
        try:
            return _consulted(self._view.engine, op, message)
        except LocalmoeError as error:
            return protocol.error_to_message(error)

    def _send(self, number: int, message: Message) -> None:
        with self._sending:
            self._socket.sendall(protocol.encode({"id": number, **message}))


def _consulted(engine: LoadableEngine, op: str, message: Message) -> Message:
    """Raises TypeError or KeyError for what no program of ours sends: the worker trusts us."""
    if op == "count":
        data = decoded(tuple[Span, ...], message["data"])
        text = decoded(str, message["text"])
        tokens = engine.count_prompt(text, data) if message["whole"] else engine.count_tokens(text)
        return {"event": "counted", "tokens": tokens}
    if op == "tokenize":
        text = decoded(str, message["text"])
        special, whole = bool(message["special"]), bool(message["whole"])
        found = engine.tokenize(text, special=special, whole=whole)
        return {"event": "tokenized", "tokens": found}
    if op == "spell":
        numbers = decoded(tuple[int, ...], message["tokens"])
        texts = [data.decode("latin-1") for data in engine.spell(numbers)]
        return {"event": "spelled", "texts": texts}
    parts = engine.split_specials(decoded(tuple[str, ...], message["texts"]))
    return {"event": "parts", "parts": [list(map(dataclasses.astuple, part)) for part in parts]}


def _greeting(model: LoadedModel, request: PlanRequest, address: str) -> bytes:
    if model.loaded is None:
        raise EngineError("the model is not loaded")
    greeting = Greeting(
        signature(model.facts),
        request.wishes,
        request.remotes,
        model.plan,
        model.machine,
        model.loaded,
        address,
    )
    said = {**encoded(greeting), "model": encoded_model(model.facts)}
    return json.dumps(said).encode() + b"\n"
