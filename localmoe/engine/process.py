"""The parent's end of a worker: start it, send requests, receive events, say why it died."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

from localmoe.engine import protocol
from localmoe.engine.native import native_path
from localmoe.engine.protocol import Message
from localmoe.errors import EngineCrashError, EngineError, ModelFileError

REMOTE_LOST = (  # what ggml-rpc.cpp says before it aborts
    "Remote RPC server crashed",
    "Failed to connect to",
    "RPC handshake failed",
)
PATIENCE = 3.0  # seconds that a cancelled request may take to end
LAST_EVENTS = frozenset(
    {"info", "measured", "loaded", "finished", "counted", "kept", "resumed", "rates", "error"}
)


def _worker_environment() -> dict[str, str]:
    """Ours, with the native helper preloaded where that works: see its ``mmap``.

    LOCALMOE_STOCK_MMAP leaves llama.cpp's mapping as it is: the baseline of measurements.
    """
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # or a failed check starts a debugger
    helper = native_path()
    stock = bool(os.environ.get("LOCALMOE_STOCK_MMAP"))
    if sys.platform.startswith("linux") and helper is not None and not stock:
        others = environment.get("LD_PRELOAD")
        environment["LD_PRELOAD"] = f"{helper}:{others}" if others else str(helper)
    return environment


class WorkerProcess:
    """One worker. Not for use from several threads, except ``cancel`` and ``close``."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C in the terminal is ours to translate into a cancel.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "localmoe.engine.worker"],  # -P: no code from the cwd
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
            env=_worker_environment(),
        )
        self._ids = itertools.count(1)
        self._running = 0
        self._writing = threading.Lock()
        self._cancel_later = False
        self._events: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=40)
        # The pipes are unbuffered for writing's sake; reading wants lines.
        events, errors = (
            os.fdopen(os.dup(pipe.fileno()), "rb")
            for pipe in (self._process.stdout, self._process.stderr)
            if pipe is not None
        )
        self._reader = threading.Thread(target=self._read_events, args=(events,), daemon=True)
        self._reader.start()
        self._drain = threading.Thread(target=self._read_stderr, args=(errors,), daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def request(self, op: str, **fields: object) -> Iterator[Message]:
        """Send one request; yield its events up to the last one.

        Raises the typed error the worker reports, or EngineCrashError when it dies.
        An iterator that is dropped early cancels the request and reads it to its end.
        """
        if self._running:
            raise EngineError("the engine is busy with another request")
        number = next(self._ids)
        self._running = number
        try:
            self._write({"op": op, "id": number, **fields})
        except BaseException:
            self._running = 0
            raise
        try:
            while True:
                message = self._events.get()
                if message is None:
                    self._events.put(None)  # there is no more for whoever asks next either
                    self._running = 0
                    raise self._obituary(reading=op in ("measure", "load"))
                if message["event"] in LAST_EVENTS:
                    self._running = 0
                if message["event"] == "error":
                    raise protocol.message_to_error(message)
                yield message
                if not self._running:
                    return
        finally:
            if self._running:  # the consumer went away in the middle
                self._abandon(op)

    def ask(self, op: str, **fields: object) -> Message:
        """A request with a single event as its answer."""
        (answer,) = self.request(op, **fields)
        return answer

    def cancel(self) -> None:
        """Interrupt the running request, if there is one. Safe from threads and signal handlers."""
        if not self._running:
            return
        if not self._writing.acquire(blocking=False):
            self._cancel_later = True  # a message is half written, perhaps by the code we interrupt
            return
        try:
            with contextlib.suppress(EngineCrashError):
                self._put({"op": "cancel", "id": self._running})
        finally:
            self._writing.release()

    def close(self) -> None:
        """End the worker; a computation under way is not waited for."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in (self._reader, self._drain):
            thread.join(timeout=1)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _write(self, message: Message) -> None:
        self._cancel_later = False
        with self._writing:
            self._put(message)
        if self._cancel_later:
            self.cancel()

    def _put(self, message: Message) -> None:
        assert self._process.stdin is not None
        data = memoryview(protocol.encode(message))
        try:
            while data:
                data = data[self._process.stdin.write(data) :]
        except (ValueError, OSError):
            raise self._obituary(reading=False) from None

    def _abandon(self, op: str) -> None:
        """Cancel a request nobody waits for any more; a worker that does not stop is ended."""
        deadline = time.monotonic() + (PATIENCE if op in ("load", "generate") else 0)
        self.cancel()
        while self._running:
            try:
                message = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._process.kill()
                self._running = 0
                return
            if message is None:
                self._events.put(None)
            if message is None or message["event"] in LAST_EVENTS:
                self._running = 0

    def _read_events(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                self._events.put(protocol.decode(line))
        self._events.put(None)

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                self._stderr.append(line.decode(errors="replace").rstrip())

    def _obituary(self, *, reading: bool) -> EngineError | ModelFileError:
        """Why the process is gone. While it was ``reading`` a file, a failed check blames that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._drain.join(timeout=1)
        status = self._process.poll()
        words = next((line for line in self._stderr if "GGML_ASSERT" in line), "")
        if not words and self._stderr:
            words = self._stderr[-1]
        words = re.sub(r"\S*/(?=[\w.-]+:\d+)", "", words)  # the folder it was built in
        said = f": {words}" if words else ""
        if any(sign in line for sign in REMOTE_LOST for line in self._stderr):
            return EngineCrashError(
                "a remote worker went away, or lost the connection; the engine process ended "
                "with it",
                hint="start `localmoe worker` there again, or go on without its --remote",
            )
        again = "the next message starts the engine again; `localmoe doctor` checks it"
        if status is None:
            return EngineCrashError(f"the engine process stopped answering{said}", hint=again)
        if status >= 0:
            return EngineCrashError(
                f"the engine process ended with status {status}{said}", hint=again
            )
        name = signal.Signals(-status).name
        if reading and name in ("SIGABRT", "SIGSEGV", "SIGFPE"):
            return ModelFileError(
                f"the engine gave up on this file ({name}){said}",
                hint="it is damaged, or made for another llama.cpp: get another conversion",
            )
        cause = {
            "SIGKILL": "killed, most likely because memory ran out",
            "SIGBUS": "the model file became shorter or unreadable while it was in use (SIGBUS)",
            "SIGABRT": "an internal check of llama.cpp failed",
        }.get(name, f"killed by {name}")
        return EngineCrashError(f"the engine process died: {cause}{said}", hint=again)
