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

    ``cancel`` names the request it is meant for, so one that comes late cannot stop the next.
    """

    def __init__(self, source: int, interrupt: ctypes.c_int32, questions: Questions) -> None:
        self._source = source
        self._interrupt = interrupt
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
        return message

    def _read(self) -> None:
        """Until the end of input, or a line that is no request: both end the worker."""
        with contextlib.suppress(ValueError, KeyError), os.fdopen(self._source, "rb") as stream:
            for line in stream:
                message = protocol.decode(line)
                if message["op"] in protocol.CONSULTING:
                    self._questions.put(message)
                    continue
                if message["op"] != "cancel":
                    self._pending.put(message)
                    continue
                with self._lock:
                    self._cancelled = message["id"]
                    if self._current == self._cancelled:
                        self._interrupt.value = 1
        os._exit(0)  # nobody is listening any more
