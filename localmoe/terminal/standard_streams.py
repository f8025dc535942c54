"""stdin, stdout and stderr that may be closed, full or gone: one error is enough for them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def claim() -> bool:
    """Open closed standard streams on /dev/null; False if stdout is closed.

    Else a file opened later would get the closed stream's number, and output would go into it.
    """
    closed = [s is None for s in (sys.stdin, sys.stdout, sys.stderr)]
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            os.set_inheritable(fd, True)
    if closed[0]:
        sys.stdin = open(0)  # noqa: SIM115
    if closed[2]:
        sys.stderr = open(2, "w")  # noqa: SIM115
    if closed[1]:
        sys.stderr.write("error: standard output is closed\n")
        return False
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test may have put a plain buffer here
            stream.reconfigure(errors="backslashreplace")
    return True


def flush_or_drop(stream: TextIO) -> None:
    """Flush a stream; if that fails, drop what it holds, so that the exit does not fail on it."""
    try:
        stream.flush()
    except OSError:
        drop(stream)


def drop(stream: TextIO) -> None:
    """Send what is still buffered to /dev/null."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
