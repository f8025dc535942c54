"""A worker process of ours: start it, end it, say why it died."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from localmoe.engine import modules
from localmoe.engine.connection import LAST_PATIENCE, Connection
from localmoe.engine.preload import open_helper, worker_environment
from localmoe.engine.protocol import Message
from localmoe.errors import LIFT, REFUSED, EngineCrashError, EngineError, ModelFileError

REMOTE_LOST = (  # what ggml-rpc.cpp says before it aborts
    "Remote RPC server crashed",
    "Failed to connect to",
    "RPC handshake failed",
)
NO_MEMORY = (  # what ggml, the C++ library and Python say when an allocation fails, before they end
    "GGML_ASSERT(ctx->mem_buffer != NULL)",
    "std::bad_alloc",
    *REFUSED,
)
OURS = "localmoe.errors.EngineError: "  # begins the last line of one that cannot even start
LINKER = "ERROR: ld.so:"  # begins its complaints about what is preloaded, ours or the user's
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


class WorkerProcess(Connection):
    """A worker of ours: it ends with us, or when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._loading: Path | None = None  # the module that it is loading
        self._started = threading.Event()  # it has loaded its modules, or is gone
        paths = modules.usable()
        if not paths:
            self._started.set()
        with open_helper() as helper:
            self._process = subprocess.Popen(
                # -P: no code from the cwd
                [sys.executable, "-P", "-m", "localmoe.engine.worker", *map(str, paths)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A session of its own: Ctrl-C in the terminal is ours to translate into a cancel.
                start_new_session=True,
                bufsize=0,
                env=worker_environment(helper),
                pass_fds=() if helper is None else (helper,),
            )
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
        return not self._ended and (self._is_foreign or self._process.poll() is None)

    def close(self) -> None:
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

    def _end(self, why: str) -> None:
        if not self._ended and self._process.poll() is None:
            self._ended = why
            self._hang_up()  # whoever waits for an answer need not wait for the death
            end(self._process)

    def _processor_s(self) -> float:
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _close_pipes(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _put_bytes(self, data: bytes) -> None:
        self._wait_for_modules()
        assert self._process.stdin is not None
        left = memoryview(data)
        while left:
            left = left[self._process.stdin.write(left) :]

    def _wait_for_modules(self) -> None:
        """Raises EngineCrashError if one crashes or hangs: it is left out from then on."""
        answered = self._started.wait(modules.START_LIMIT)
        path, killed = self._loading, self._ended
        if path is None or killed:
            return
        if answered:
            why = self._obituary(reading=False).message
            if self._process.poll() in (-signal.SIGKILL, -signal.SIGTERM):
                return  # of somebody else, or for want of memory
        else:
            why = f"it took more than {modules.START_LIMIT:.0f} s"
            self._end("a module did not load")
        modules.leave_out(path, why)
        name = modules.named([path])
        raise EngineCrashError(
            f"the engine's {name} module could not be loaded, and is left out from now on: {why}",
            hint=f"the same command again; `{modules.INSTALL} {name}` tries the module once more",
        )

    def _deliver(self, message: Message) -> None:
        if message["event"] == "module":
            self._loading = Path(message["path"])
        elif message["event"] == "started":
            self._loading = None
            self._started.set()
        else:
            super()._deliver(message)

    def _hang_up(self) -> None:
        super()._hang_up()
        self._started.set()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                if not text.startswith(LINKER):
                    self._stderr.append(text)

    def _obituary(self, *, reading: bool, awaited: str = "") -> EngineError | ModelFileError:
        """Why the process is gone. While it was ``reading`` a file, a failed check blames that."""
        if self._ended:
            return EngineCrashError(f"the engine process was ended: {self._ended}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._drain.join(timeout=1)
        said = list(self._stderr)
        return cause_of_death(self._process.poll(), said, reading=reading, awaited=awaited)


def cause_of_death(
    status: int | None, said: Sequence[str], *, reading: bool, awaited: str = ""
) -> EngineError | ModelFileError:
    """The error for a worker that is gone. Pure.

    ``status``: of its end, negative for the number of a signal, None if it has not ended; ``said``:
    the last lines of its standard error; ``reading``: whether it was reading a model's file;
    ``awaited``: the workers on other machines that it needed.
    """
    words = next((line for line in said if "GGML_ASSERT" in line), "")
    if not words and said:
        words = said[-1]
    if words.startswith(OURS):
        return EngineError(words.removeprefix(OURS))
    words = re.sub(r"\S*/(?=[\w.-]+:\d+)", "", words)  # the folder it was built in
    words = f": {words}" if words else ""
    if any(sign in line for sign in REMOTE_LOST for line in said):
        who = awaited.replace("the workers", "one of the workers", 1) or "a worker"
        return EngineCrashError(
            f"lost the connection to {who}; the engine process ended with it",
            hint="start `localmoe worker` there again, or go on without its --remote",
        )
    if any(sign in line for sign in NO_MEMORY for line in said):
        return EngineError(
            f"the engine did not get the memory that it needs{words}",
            hint=LIFT,
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
