"""The parent's end of an RPC server: start it, hear of its clients, start it again, end it."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from localmoe.engine import modules
from localmoe.engine.process import end
from localmoe.engine.rpc import INSTALL, OtherVersionError, greet
from localmoe.engine.rpc_build import find_rpc_library
from localmoe.errors import EngineError

RESTARTS, RESTART_TIME = 5, 30.0  # that many ends in so many seconds are too many
START_PATIENCE = 20.0  # seconds until the server must listen
MODULE = ("-P", "-m", "localmoe.engine.worker.rpc_server")  # -P: no code from the working directory


ANY = "0.0.0.0"  # every address of this machine


def address_of(host: str) -> str:
    """The IPv4 address of a name, in digits: llama.cpp's server understands nothing else.

    Raises EngineError.
    """
    try:
        found = socket.getaddrinfo(host or ANY, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise EngineError(
            f"cannot serve at {host}: no IPv4 address of this machine",
            hint="--host 127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses",
        ) from error
    return str(found[0][4][0])


def require_free(host: str, port: int) -> None:
    """Raises EngineError where something listens already, or the address is not ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(f"{host}:{port}") from error
            raise EngineError(
                f"cannot serve at {host}:{port}: {(error.strerror or str(error)).lower()}",
                hint="--host 127.0.0.1, or an address of this machine",
            ) from error


def _taken(endpoint: str) -> EngineError:
    return EngineError(
        f"something serves at {endpoint} already",
        hint="another --port, or end what listens there",
    )


@dataclass(frozen=True, slots=True)
class Served:
    """One device that a server gives to its client. Bytes."""

    name: str
    description: str
    free: int
    total: int


class Server:
    """An RPC server process on ``host:port``. Raises EngineError when it cannot serve."""

    def __init__(self, host: str, port: int, threads: int, ram: int | None) -> None:
        if find_rpc_library() is None:
            raise EngineError("this engine build has no RPC backend", hint=INSTALL)
        host = address_of(host)
        require_free(host, port)
        self.endpoint = f"{host}:{port}"
        self.last_words = ""  # of a server that has ended
        self._ends: collections.deque[float] = collections.deque(maxlen=RESTARTS)
        # a server on all addresses is greeted on the loopback one
        self._greeting = f"{'127.0.0.1' if host == ANY else host}:{port}"
        backends = list(map(str, modules.usable()))
        self._how = {
            "endpoint": self.endpoint,
            "threads": threads,
            "ram": ram,
            "modules": backends,
        }
        self.devices = self._list_devices()
        if not any(device.free for device in self.devices):
            raise EngineError("there is no memory to give", hint="a greater --ram, or none")
        self._start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def next_event(self) -> str:
        """Wait for ``connected``, ``disconnected`` or ``ended``: what the server says of clients.

        After ``ended`` it has been started again: a request that llama.cpp's server refuses with an
        abort costs its client the connection, and nobody else anything.
        """
        event = self._events.get()
        if event == "ended":
            self.last_words = why = self._last_words()
            self.close()
            self._ends.append(time.monotonic())
            if len(self._ends) == RESTARTS and self._ends[-1] - self._ends[0] < RESTART_TIME:
                raise EngineError(f"the server ended again and again: {why}")
            self._start()
        return event

    def close(self) -> None:
        """End the server; its client sees the connection break."""
        end(self._process)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _list_devices(self) -> tuple[Served, ...]:
        done = subprocess.run(
            [sys.executable, *MODULE, json.dumps({"list": True, **self._how})],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise EngineError(f"the engine does not start: {done.stderr.strip()[-300:]}")
        return tuple(Served(**entry) for entry in json.loads(done.stdout.splitlines()[-1]))

    def _start(self) -> None:
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: collections.deque[str] = collections.deque(maxlen=20)
        self._process = subprocess.Popen(
            [sys.executable, *MODULE, json.dumps(self._how)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            text=True,
            errors="replace",
        )
        self._started = time.monotonic()
        for target in (self._read_events, self._read_errors):
            threading.Thread(target=target, args=(self._process,), daemon=True).start()
        self._wait_until_it_answers()
        self._wait_for_our_greeting()

    def _wait_until_it_answers(self) -> None:
        while time.monotonic() - self._started < START_PATIENCE:
            if self._process.poll() is not None:
                self._process.wait()
                why = self._last_words()
                self.close()
                raise EngineError(
                    f"cannot serve at {self.endpoint}: {why}",
                    hint="another --port, or end what listens there",
                )
            try:
                return greet(self._greeting, patience=2)
            except OtherVersionError as error:
                self.close()
                raise EngineError(
                    f"the RPC of this engine is not the one that localmoe knows: {error.message}",
                    hint="`pip check` names the engine that belongs to this localmoe",
                ) from error
            except EngineError:
                time.sleep(0.05)
        self.close()
        raise EngineError(f"the server at {self.endpoint} does not answer")

    def _wait_for_our_greeting(self) -> None:
        """It must be this server that was greeted, and not another one at the same address."""
        try:
            while self._events.get(timeout=START_PATIENCE) != "disconnected":
                pass
        except queue.Empty:
            self.close()
            raise _taken(self.endpoint) from None

    def _last_words(self) -> str:
        time.sleep(0.1)  # the reader may be behind
        return self._errors[-1] if self._errors else "no reason given"

    def _read_events(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout:
                if line.startswith("Accepted client"):
                    self._events.put("connected")
                elif line.startswith("Client connection closed"):
                    self._events.put("disconnected")
        self._events.put("ended")

    def _read_errors(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in process.stderr:
                if line.strip():
                    self._errors.append(line.strip())
