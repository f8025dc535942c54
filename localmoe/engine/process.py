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
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, Any

from localmoe.engine import protocol
from localmoe.engine.preload import open_helper, worker_environment
from localmoe.engine.protocol import Message
from localmoe.errors import EngineBusyError, EngineCrashError, EngineError, ModelFileError

REMOTE_LOST = (  # what ggml-rpc.cpp says before it aborts
    "Remote RPC server crashed",
    "Failed to connect to",
    "RPC handshake failed",
)
LINKER = "ERROR: ld.so:"  # begins its complaints about what is preloaded, ours or the user's
PATIENCE = 3.0  # seconds that a cancelled request may take to end
LAST_PATIENCE = 1.0  # the same when the program is ending, and that a killed process may take
LAST_EVENTS = frozenset(
    {
        *("info", "measured", "loaded", "finished", "counted", "parts", "kept", "resumed", "rates"),
        "error",
    }
)
_CHECK = "`localmoe doctor` checks the engine"

_workers: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def _in_forked_child() -> None:
    """The child has a copy of every pipe to a worker. Its end would keep the worker alive."""
    for worker in list(_workers):
        worker.disown()


os.register_at_fork(after_in_child=_in_forked_child)


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and wait for its end, but not long.

    One that waits for a disk or a mount that does not answer dies only when that does: the system
    then removes it.
    """
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LAST_PATIENCE)


class WorkerProcess:
    """One worker. Not for use from several threads, except ``cancel`` and ``close``.

    It belongs to the process that made it: in one that was forked off from that, a request is an
    EngineError, and nothing else has an effect.
    """

    def __init__(self) -> None:
        with open_helper() as helper:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "localmoe.engine.worker"],  # -P: no code from the cwd
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A session of its own: Ctrl-C in the terminal is ours to translate into a cancel.
                start_new_session=True,
                bufsize=0,
                env=worker_environment(helper),
                pass_fds=() if helper is None else (helper,),
            )
        self._owner = os.getpid()
        self._ended = ""  # why we ended it
        self._ids = itertools.count(1)
        self._running = 0
        self._heard = 0.0  # when the last event came
        self._writing = threading.Lock()
        self._starting = threading.Lock()
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
        _workers.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can answer, as far as the process that made it knows."""
        return not self._ended and (self._is_foreign or self._process.poll() is None)

    def request(
        self, op: str, *, silence: float | None = None, awaited: str = "", **fields: object
    ) -> Iterator[Message]:
        """Send one request; yield its events up to the last one.

        ``silence``: seconds without an event after which the worker is given up, since ``awaited``
        ("the worker at box:50052") does not answer; None: as long as it takes.
        Raises the typed error the worker reports, or EngineCrashError when it dies.
        An iterator that is dropped early cancels the request and reads it to its end.
        """
        if self._is_foreign:
            raise EngineError(
                f"this model was loaded by process {self._owner}, and can be used there only",
                hint="load it again in this process",
            )
        with self._starting:
            if self._running:
                raise EngineBusyError(
                    "the model is busy with another request", hint="wait for its end, or stop it"
                )
            number = next(self._ids)
            self._running, self._heard = number, time.monotonic()
        try:
            self._write({"op": op, "id": number, **fields})
        except BaseException:
            self._running = 0
            raise
        patience = PATIENCE if op in ("load", "generate") else 0.0
        try:
            while True:
                try:
                    message = self._next_event(number, silence)
                except queue.Empty:
                    raise self._given_up(awaited, silence or 0.0) from None
                if message is None:
                    raise self._obituary(reading=op in ("measure", "load"))
                if message["event"] == "error":
                    raise protocol.message_to_error(message)
                yield message
                if not self._running:
                    return
        except SystemExit:  # of a signal's handler: the program is to end
            patience = min(patience, LAST_PATIENCE)
            raise
        finally:
            if self._running:  # the consumer went away in the middle
                self._abandon(number, patience)

    def ask(
        self, op: str, *, silence: float | None = None, awaited: str = "", **fields: object
    ) -> Message:
        """A request with a single event as its answer."""
        (answer,) = self.request(op, silence=silence, awaited=awaited, **fields)
        return answer

    @property
    def silent_s(self) -> float:
        """Seconds since the request under way was sent, or had its last event; 0 without one."""
        return time.monotonic() - self._heard if self._running else 0.0

    def _given_up(self, awaited: str, seconds: float) -> EngineCrashError:
        self._running = 0
        self._end(f"{awaited} did not answer")
        return EngineCrashError(
            f"{awaited} has not answered for {seconds:.0f} s",
            hint="is that machine awake, and its network up? `localmoe worker` runs there",
        )

    def cancel(self) -> None:
        """Interrupt the running request, if there is one. Safe from threads and signal handlers."""
        if not self._running or self._is_foreign:
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
        if self._is_foreign:
            return
        self._end("the model was closed")
        if self._process.poll() is not None:
            for thread in (self._reader, self._drain):
                thread.join(timeout=1)
        self._close_pipes()

    def disown(self) -> None:
        """In a forked child: leave the worker to the process that made it."""
        self._close_pipes()

    @property
    def _is_foreign(self) -> bool:
        return self._owner != os.getpid()

    def _end(self, why: str) -> None:
        if not self._ended and self._process.poll() is None:
            self._ended = why
            self._events.put(None)  # whoever waits for an answer need not wait for the death
            end(self._process)

    def _close_pipes(self) -> None:
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

    def _next_event(self, number: int, timeout: float | None = None) -> Message | None:
        """The next event of request ``number``; None when the worker is gone.

        What is left of an earlier request is dropped. Raises queue.Empty after ``timeout`` seconds.
        """
        while True:
            message = self._events.get(timeout=timeout)
            if message is None:
                self._events.put(None)  # there is no more for whoever asks next either
                self._running = 0
                return None
            if message.get("id") == number:
                self._heard = time.monotonic()
                if message["event"] in LAST_EVENTS:
                    self._running = 0
                return message

    def _abandon(self, number: int, patience: float) -> None:
        """Cancel a request nobody waits for any more; a worker that does not stop is ended."""
        deadline = time.monotonic() + patience
        self.cancel()
        while self._running:
            try:
                self._next_event(number, max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._running = 0
                self._end("it did not stop when it was interrupted")

    def _read_events(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                self._events.put(protocol.decode(line))
        self._events.put(None)

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                if not text.startswith(LINKER):
                    self._stderr.append(text)

    def _obituary(self, *, reading: bool) -> EngineError | ModelFileError:
        """Why the process is gone. While it was ``reading`` a file, a failed check blames that."""
        if self._ended:
            return EngineCrashError(f"the engine process was ended: {self._ended}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._drain.join(timeout=1)
        return cause_of_death(self._process.poll(), list(self._stderr), reading=reading)


def cause_of_death(
    status: int | None, said: Sequence[str], *, reading: bool
) -> EngineError | ModelFileError:
    """The error for a worker that is gone. Pure.

    ``status``: of its end, negative for the number of a signal, None if it has not ended; ``said``:
    the last lines of its standard error; ``reading``: whether it was reading a model's file.
    """
    words = next((line for line in said if "GGML_ASSERT" in line), "")
    if not words and said:
        words = said[-1]
    words = re.sub(r"\S*/(?=[\w.-]+:\d+)", "", words)  # the folder it was built in
    words = f": {words}" if words else ""
    if any(sign in line for sign in REMOTE_LOST for line in said):
        return EngineCrashError(
            "a remote worker went away, or lost the connection; the engine process ended with it",
            hint="start `localmoe worker` there again, or go on without its --remote",
        )
    if status is None:
        return EngineCrashError(f"the engine process stopped answering{words}", hint=_CHECK)
    if status >= 0:
        return EngineCrashError(
            f"the engine process ended with status {status}{words}", hint=_CHECK
        )
    name = signal.Signals(-status).name
    if reading and name in ("SIGABRT", "SIGSEGV", "SIGFPE"):
        return ModelFileError(
            f"the engine gave up on this file ({name}){words}",
            hint="it is damaged, or made for another llama.cpp: get another conversion",
        )
    cause = {
        "SIGKILL": "killed, most likely because memory ran out",
        "SIGBUS": "the model file became shorter or unreadable while it was in use (SIGBUS)",
        "SIGABRT": "an internal check of llama.cpp failed",
    }.get(name, f"killed by {name}")
    return EngineCrashError(f"the engine process died: {cause}{words}", hint=_CHECK)
