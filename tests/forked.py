"""Programs in processes of their own that need not import anything first: they are forked.

A program is a module of the tests with two functions. ``ready`` imports what every run needs; a
process that has done that waits for command lines and forks a child for each. ``main`` is what the
child does, with arguments, environment, folder and standard streams of its own, to the
interpreter's end. That saves the better part of a second each time. Where the start itself matters,
tests start a real one.
"""

from __future__ import annotations

import importlib
import json
import locale
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Forker:
    """The waiting process of a program; one command at a time."""

    def __init__(self, program: str) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._answers = ours.makefile("r", encoding="utf-8")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", program, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )

    def run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        streams: Sequence[int],
        seconds: float,
    ) -> int:
        """The exit code of a command with these standard streams; -N: killed by signal N.

        Raises subprocess.TimeoutExpired once it has taken so long and was killed.
        """
        command = {"arguments": list(arguments), "env": dict(env), "folder": str(folder)}
        socket.send_fds(self._socket, [b"!"], list(streams))
        self._socket.sendall(json.dumps(command).encode() + b"\n")
        pid = int(self._answers.readline())
        late = not select.select([self._socket], [], [], seconds)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        code = int(self._answers.readline())
        if late:
            raise subprocess.TimeoutExpired(list(arguments), seconds)
        return code


@cache
def forker(program: str) -> Forker:
    """This process's, for that module."""
    return Forker(program)


def answer(program: str, request: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` returns for the program, with ``request`` on its standard input."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as asked,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as err,
    ):
        asked.write(request)
        asked.seek(0)
        streams = (asked.fileno(), out.fileno(), err.fileno())
        code = forker(program).run((), os.environ, ROOT, streams, timeout)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(program, code, out.read(), err.read())


def serve(connection: socket.socket) -> dict[str, object]:
    """Fork for every command that comes; returns in each child, and never otherwise."""
    lines = connection.makefile("r", encoding="utf-8")
    while True:
        mark, streams, _, _ = socket.recv_fds(connection, 1, 3)
        if not mark:  # whoever ran the tests is gone
            os._exit(0)
        command: dict[str, object] = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            lines.close()
            connection.close()
            return command
        for stream in streams:
            os.close(stream)
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(program: str, command: dict[str, object]) -> None:
    """Make this process what a fresh one would be."""
    env, arguments = command["env"], command["arguments"]
    assert isinstance(env, dict) and isinstance(arguments, list)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(str(command["folder"]))
    time.tzset()
    locale.setlocale(locale.LC_CTYPE, "")
    sys.argv = [program, *arguments]
    encoding = locale.getencoding()
    sys.stdin = os.fdopen(0, "r", -1, encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", -1, encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)


def main() -> int:
    program = importlib.import_module(sys.argv[1])
    program.ready()
    with socket.socket(fileno=int(sys.argv[2])) as connection:
        command = serve(connection)
    become(sys.argv[1], command)
    return int(program.main() or 0)


if __name__ == "__main__":
    raise SystemExit(main())
