"""Requests to a worker and its answers: numbered, one computed at a time, cancelled from anywhere.

What carries them is the subclass's: the pipes of a process of ours, or a socket.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO

from localmoe.engine import protocol
from localmoe.engine.protocol import Message
from localmoe.errors import EngineBusyError, EngineCrashError, EngineError, LocalmoeError

PATIENCE = 3.0  # seconds that a cancelled request may take to end
AT_WORK = 0.2  # of a processor; a worker that uses as much is inside a long operation
LOOK = 0.3  # seconds for which that is looked at
LONGEST = 60.0  # seconds that such a one may take
LAST_PATIENCE = 1.0  # the same when the program is ending, and that a killed process may take

_Events = queue.SimpleQueue[Message | None]  # None: there will be no more


class Connection(ABC):
    """One worker. A single ``request`` at a time; ``consult``, ``cancel``, ``close`` from anywhere.

    It belongs to the process that made it: in one that was forked off from that, a request is an
    EngineError, and nothing else has an effect.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._ended = ""  # why we ended it
        self._ids = itertools.count(1)
        self._running = 0  # the number of the request that is computed
        self._heard = 0.0  # when its last event came
        self._cancel_wanted = 0  # the number of a request that is to be cancelled
        self._writing = threading.Lock()
        self._starting = threading.Lock()
        self._answers: dict[int, _Events] = {}  # of the requests under way
        self._gone = False  # no more events will come

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it can answer, as far as the process that made it knows."""

    @abstractmethod
    def close(self) -> None:
        """End it; a computation under way is not waited for."""

    @abstractmethod
    def _put_bytes(self, data: bytes) -> None:
        """Send all of it. Raises OSError or ValueError when there is nobody any more."""

    @abstractmethod
    def _end(self, why: str) -> None:
        """Do not wait for it any longer."""

    def _processor_s(self) -> float:
        """Seconds for which it has used a processor, where that is seen from here."""
        return 0.0

    @abstractmethod
    def _obituary(self, *, reading: bool, awaited: str = "") -> LocalmoeError:
        """Why it is gone. ``reading``: while it was reading a model's file."""

    def request(
        self, op: str, *, silence: float | None = None, awaited: str = "", **fields: object
    ) -> Iterator[Message]:
        """Send one request; yield its events up to the last one.

        ``silence``: seconds without an event after which the worker is given up, since ``awaited``
        ("the worker at box:50052") does not answer; None: as long as it takes.
        Raises the typed error the worker reports, or EngineCrashError when it dies.
        An iterator that is dropped early cancels the request and reads it to its end.
        """
        self._check_owner()
        with self._starting:
            if self._running:
                raise EngineBusyError(
                    "the model is busy with another request", hint="wait for its end, or stop it"
                )
            number = next(self._ids)
            self._running, self._heard = number, time.monotonic()
        with self._answers_of(number) as events:
            try:
                self._write({"op": op, "id": number, **fields})
            except BaseException:
                self._running = 0
                raise
            patience = PATIENCE if op in ("load", "generate") else 0.0
            try:
                while True:
                    try:
                        message = self._next(events, silence)
                    except queue.Empty:
                        raise self._given_up(awaited, silence or 0.0) from None
                    if message is None:
                        raise self._obituary(reading=op in ("measure", "load"), awaited=awaited)
                    if message["event"] == "error":
                        raise protocol.message_to_error(message)
                    yield message
                    if message["event"] in protocol.LAST_EVENTS:
                        return
            except SystemExit:  # of a signal's handler: the program is to end
                patience = min(patience, LAST_PATIENCE)
                raise
            finally:
                if self._running == number:  # the consumer went away in the middle
                    self._abandon(number, events, patience)

    def ask(
        self, op: str, *, silence: float | None = None, awaited: str = "", **fields: object
    ) -> Message:
        """A request with a single event as its answer."""
        (answer,) = self.request(op, silence=silence, awaited=awaited, **fields)
        return answer

    def consult(self, op: str, **fields: object) -> Message:
        """One of ``protocol.CONSULTING``: answered beside what is computed. From any thread.

        Raises the typed error the worker reports, or EngineCrashError when it dies.
        """
        self._check_owner()
        number = next(self._ids)
        with self._answers_of(number) as events:
            self._write({"op": op, "id": number, **fields})
            message = events.get()
        if message is None:
            raise self._obituary(reading=False)
        if message["event"] == "error":
            raise protocol.message_to_error(message)
        return message

    @property
    def silent_s(self) -> float:
        """Seconds since the request under way was sent, or had its last event; 0 without one."""
        return time.monotonic() - self._heard if self._running else 0.0

    def at_work(self) -> bool:
        """Whether the worker computes, as seen for some tenths of a second: not stopped yet, it is
        inside a long operation.
        """
        before = self._processor_s()
        time.sleep(LOOK)
        return self._processor_s() - before >= AT_WORK * LOOK

    def cancel(self) -> None:
        """Interrupt the running request, if there is one. Safe from threads and signal handlers."""
        if not self._running or self._is_foreign:
            return
        self._cancel_wanted = self._running
        self._send_cancel()

    def pause(self) -> None:
        """Let the running request end where the next batch of its prompt would begin."""
        if not self._running or self._is_foreign:
            return
        with contextlib.suppress(LocalmoeError):  # whoever waits for the request is told
            self._write({"op": "pause", "id": self._running})

    @property
    def _is_foreign(self) -> bool:
        return self._owner != os.getpid()

    def _check_owner(self) -> None:
        if self._is_foreign:
            raise EngineError(
                f"this model was loaded by process {self._owner}, and can be used there only",
                hint="load it again in this process",
            )

    def _given_up(self, awaited: str, seconds: float) -> EngineCrashError:
        self._running = 0
        self._end(f"{awaited} did not answer")
        return EngineCrashError(
            f"no answer from {awaited} for {seconds:.0f} s",
            hint="is that machine awake, and its network up? `localmoe worker` runs there",
        )

    def _write(self, message: Message) -> None:
        with self._writing:
            self._put(message)
        self._send_cancel()

    def _send_cancel(self) -> None:
        """Send the cancel that is wanted.

        Unless a message is half written, perhaps by the code that we interrupt: whoever writes it
        sends this one after it.
        """
        while self._cancel_wanted and self._writing.acquire(blocking=False):
            try:
                number, self._cancel_wanted = self._cancel_wanted, 0
                with contextlib.suppress(EngineCrashError):
                    self._put({"op": "cancel", "id": number})
            finally:
                self._writing.release()

    def _put(self, message: Message) -> None:
        try:
            self._put_bytes(protocol.encode(message))
        except (ValueError, OSError):
            raise self._obituary(reading=False) from None

    @contextlib.contextmanager
    def _answers_of(self, number: int) -> Iterator[_Events]:
        """Where the events of that request arrive, until the block ends."""
        events: _Events = queue.SimpleQueue()
        self._answers[number] = events
        if self._gone:
            events.put(None)
        try:
            yield events
        finally:
            self._answers.pop(number, None)

    def _next(self, events: _Events, timeout: float | None = None) -> Message | None:
        """The next event of the running request; None when the worker is gone.

        Raises queue.Empty after ``timeout`` seconds.
        """
        message = events.get(timeout=timeout)
        if message is None or message["event"] in protocol.LAST_EVENTS:
            self._running = 0
        self._heard = time.monotonic()
        return message

    def _abandon(self, number: int, events: _Events, patience: float) -> None:
        """Cancel a request nobody waits for any more; a worker that does not stop is ended.

        One that computes looks for the interrupt at the end of an operation, which may take longer
        far into a prompt: it is waited for, so that what it has read is not lost.
        """
        started = time.monotonic()
        deadline, used = started + patience, self._processor_s()
        self.cancel()
        while self._running == number:
            try:
                self._next(events, max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                before, used = used, self._processor_s()
                at_work = patience >= PATIENCE and used - before >= AT_WORK * patience
                if at_work and time.monotonic() - started < LONGEST:
                    deadline = time.monotonic() + patience
                    continue
                self._running = 0
                self._end("it did not stop when it was interrupted")

    def _read_events(self, stream: IO[bytes]) -> None:
        """Hand on what arrives, to its end; on a thread of its own."""
        with contextlib.suppress(ValueError, KeyError, OSError), stream:
            for line in stream:
                self._deliver(protocol.decode(line))
        self._hang_up()

    def _deliver(self, message: Message) -> None:
        """An event for whoever asked; one of nobody, or of somebody who has left, is dropped."""
        events = self._answers.get(message.get("id", 0))
        if events is not None:
            events.put(message)

    def _hang_up(self) -> None:
        """Nobody waits for an event any more."""
        self._gone = True
        for events in list(self._answers.values()):
            events.put(None)
