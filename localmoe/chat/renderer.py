"""The child process in which chat templates render, as seen from here.

It starts once and keeps the last template compiled; a render then costs about a millisecond. One
that takes too long is killed, and the next request starts another.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from localmoe.errors import TemplateError
from localmoe.text import clean, shortened
from localmoe.wording import option

if TYPE_CHECKING:
    import subprocess

RENDER_SECONDS = 1.5  # a refusal must be there within 2 s
START_SECONDS = 30.0  # Python and Jinja start in 0.1 s, unless the machine is very busy
MESSAGE_LENGTH = 300  # characters of what a template says when it refuses

PLAIN_HINT = (
    f"{option('plain', '(in a chat: /set plain on)')} leaves the template out: "
    "bare text is continued"
)


class RenderError(TemplateError):
    """A refusal by the child. ``kind`` is ``raised`` when the template itself refused."""

    def __init__(self, kind: str, message: str) -> None:
        self.said = said = shortened(message, MESSAGE_LENGTH)
        super().__init__(f"the model's chat template cannot be used: {said}", hint=PLAIN_HINT)
        self.kind = kind


class Renderer:
    """The child process. Starts on ``start`` or first use, again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the child without waiting for it, so that it boots beside other work."""
        with self._lock:
            self._start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request, one reply. Raises ``RenderError`` for a refusal, a timeout or a crash."""
        line = json.dumps({**request, "seconds": RENDER_SECONDS}).encode()
        with self._lock:
            try:
                reply = self._answer(line)
            except RenderError as error:
                if error.kind != "crash":
                    raise
                reply = self._answer(line)  # killed from outside? a template's crash repeats itself
        if "error" in reply:
            raise RenderError(reply["kind"], clean(reply["error"]))
        return reply

    def _answer(self, line: bytes) -> dict[str, Any]:
        process = self._start()
        if not self._ready:
            self._exchange(process, None, START_SECONDS)
            self._ready = True
        return self._exchange(process, line, RENDER_SECONDS)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        import subprocess  # late: who is answered by a server starts no renderer

        if self._process is not None and self._process.poll() is not None:
            self._stop()  # it was killed while nobody asked it
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "localmoe.chat.rendering"],  # -P: no code from the cwd
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
            self._ready = False
        return self._process

    def _exchange(
        self, process: subprocess.Popen[bytes], line: bytes | None, seconds: float
    ) -> dict[str, Any]:
        """Write a request (if any) and read a reply; a timer kills the child when it is late."""
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = b""
        except BaseException:  # Ctrl-C between question and answer: they would get out of step
            self._stop()
            raise
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            self._stop()
            if late.is_set():
                raise RenderError("timeout", f"it took longer than {seconds:g} s")
            raise RenderError("crash", "it crashed the renderer (nested too deep, or too large)")
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def _stop(self) -> None:
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes for a dead child
                    pipe.close()
