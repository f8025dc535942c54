"""What the client asks for, sorted as it arrives."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading

from localmoe.engine import protocol
from localmoe.engine.protocol import Message
from localmoe.engine.worker.questions import Questions


class Inbox:
    """Requests from the client, read on a thread of their own.

    ``cancel`` and ``pause`` name the request they are meant for, so one that comes late cannot stop
    the next: ``interrupt`` and ``pause`` are set for the current one.
    """

    def __init__(
        self,
        source: int,
        interrupt: ctypes.c_int32,
        pause: threading.Event,
        questions: Questions,
    ) -> None:
        self._source = source
        self._interrupt = interrupt
        self._pause = pause
        self._questions = questions
        self._lock = threading.Lock()
        self._current = self._cancelled = 0
        self._pending: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Message:
        """The next request; the interrupt flag then says whether it is cancelled already."""
        message = self._pending.get()
        with self._lock:
            self._current = message["id"]
            self._interrupt.value = int(self._current <= self._cancelled)
            self._pause.clear()
        return message

    def _read(self) -> None:
        """Until the end of input, or a line that is no request: both end the worker."""
        with contextlib.suppress(ValueError, KeyError), os.fdopen(self._source, "rb") as stream:
            for line in stream:
                message = protocol.decode(line)
                if message["op"] in protocol.CONSULTING:
                    self._questions.put(message)
                elif message["op"] in ("cancel", "pause"):
                    self._stop(message)
                else:
                    self._pending.put(message)
        os._exit(0)  # nobody is listening any more

    def _stop(self, message: Message) -> None:
        with self._lock:
            is_current = self._current == message["id"]
            if message["op"] == "cancel":
                self._cancelled = message["id"]
                self._interrupt.value = int(is_current or self._interrupt.value)
            elif is_current:
                self._pause.set()
