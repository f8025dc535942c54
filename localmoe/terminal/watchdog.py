"""The last way out: the program is asked to end, and waits in the kernel for a disk that is silent.

A signal's handler runs when the main thread is back from its system call. One that looks at a file
on a mount which has stopped answering is not back before that answers, and nothing but the end of
the process wakes it. A second thread sees that the signal is still waiting, and ends the process.

A wait that even SIGKILL does not end (Linux: some file systems of a local disk that is gone) keeps
the process, whoever ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESET = "\x1b[?2004l\x1b[?25h\x1b[0m"  # bracketed paste off, cursor shown, plain text
LOOK = 1.0  # seconds between two looks; what waits at both of them is not being heard
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLONE_VM, _CLONE_FILES = 0x100, 0x400  # of clone(2)
_STACK = 1 << 16  # bytes
_OURS = ("pipe:", "socket:", "/dev/", "/proc/")  # what is closed without waiting


_NAME = "watchdog"  # of the thread


def watch() -> None:
    """From now on one of ENDING that is not heard for two looks ends the process: 128 + its number.

    What the handler would have done cannot be done: the thread that would do it does not run.
    """
    threading.Thread(target=_watch, args=(_terminal(),), name=_NAME, daemon=True).start()


def end(code: int) -> None:
    """The last call of a program: end it here, if a thread of it still waits for a file.

    Else returns, and the interpreter ends as ever.
    """
    others = {thread.name for thread in threading.enumerate()} - {_NAME, "MainThread"}
    if not (others and sys.platform.startswith("linux") and any(_files())):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _leave_files_behind()
    os._exit(code)


def _files() -> Iterator[str]:
    """What is open beside the standard streams, pipes and devices; none of it is looked at."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = str(link.readlink())
            if int(link.name) > 2 and name.startswith("/") and not name.startswith(_OURS):
                yield name


def _watch(terminal: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # of this thread: they stay the main one's
    before: set[int] = set()
    while True:
        time.sleep(LOOK)
        waiting = set(signal.sigpending()).intersection(ENDING)
        if unheard := sorted(waiting & before):
            _leave(128 + unheard[0], terminal)
        before = waiting


def _leave(code: int, terminal: Any) -> None:
    """End the process as it is; the engine's process ends with its pipe."""
    with contextlib.suppress(OSError, termios.error):
        if terminal is not None:
            termios.tcsetattr(0, termios.TCSANOW, terminal)
            os.write(2, RESET.encode())
        os.write(2, b"\nerror: the disk does not answer: left without waiting for it\n")
    if sys.platform.startswith("linux"):
        _leave_files_behind()
    os._exit(code)


def _leave_files_behind() -> None:
    """Share our open files with a process that closes them a second later.

    Closing one of a FUSE mount waits for an answer too, so this process would not end before that.
    Others may wait for the end of our pipes: those are closed here.
    """
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(_OURS):
                os.close(int(link.name))
    libc = ctypes.CDLL(None)
    stack = ctypes.create_string_buffer(_STACK)
    top = (ctypes.addressof(stack) + _STACK) & ~15
    closes = ctypes.cast(libc.sleep, ctypes.c_void_p)
    libc.clone(closes, ctypes.c_void_p(top), _CLONE_VM | _CLONE_FILES, ctypes.c_void_p(1))


def _terminal() -> Any:
    """Its settings, to be restored; None where standard input is none."""
    with contextlib.suppress(OSError, termios.error, AttributeError, ValueError):
        if sys.stdin.isatty():
            return termios.tcgetattr(0)
    return None
