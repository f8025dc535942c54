"""The product's own child processes, forked from ones that have imported what they need.

An engine's worker and a renderer of templates take a fifth of a second of processor time to start,
and the tests start thousands. ``install`` makes ``localmoe.engine.process`` and
``localmoe.chat.renderer`` of this process, and of processes that are forked from it, take them from
a process that waits: it was started as the product starts them, preloaded library included, and
forks a child for each, with environment, folder and pipes of its own. A command line that is
started in earnest, and whatever is preloaded or switched off by the environment, starts them in
earnest too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import localmoe.chat.renderer
import localmoe.engine.process
from localmoe.engine.preload import open_helper, worker_environment

ROOT = Path(__file__).parents[1]
WORKER, RENDERER = "localmoe.engine.worker", "localmoe.chat.rendering"
IMPORTED = {  # before the fork
    WORKER: ("localmoe.engine.worker.__main__", "localmoe.engine.worker.loading"),
    RENDERER: ("localmoe.chat.rendering.__main__",),
}
AT_START = ("LD_", "LC_", "LANG", "PYTHON", "GLIBC_", "MALLOC_", "OMP_", "GGML_")
SWITCHES = {"LOCALMOE_NO_NATIVE", "LOCALMOE_STOCK_MMAP"}
_OURS = "/proc/self/fd/"  # begins the path under which the helper is preloaded

_waiting: dict[str, tuple[socket.socket, dict[str, str]]] = {}
"""Program → where to ask for a child, and what of the environment counted when it started."""


def install(*, at_once: bool = False) -> None:
    """From now on. The waiting processes are started when they are needed, or ``at_once``."""
    if at_once:
        _waiting.update({program: _wait_with(program) for program in IMPORTED})
    shim = types.SimpleNamespace(**vars(subprocess))
    shim.Popen = start
    for module in (localmoe.engine.process, localmoe.chat.renderer):
        vars(module)["subprocess"] = shim


def start(command: Sequence[str], **how: Any) -> Any:
    """What ``subprocess.Popen`` returns, as far as the product uses it."""
    env = how.get("env") or dict(os.environ)
    program = command[-1]
    if program not in IMPORTED or SWITCHES & env.keys():
        return subprocess.Popen(command, **how)
    if program not in _waiting:
        _waiting[program] = _wait_with(program)
    requests, at_start = _waiting[program]
    if _at_start(env) != at_start:
        return subprocess.Popen(command, **how)
    sys.audit("os.fork")  # no unit test may start a process
    return Forked(requests, env, how)


def _at_start(env: Mapping[str, str]) -> dict[str, str]:
    """What of it counts when a program starts; whose number a descriptor has does not."""
    return {
        key: _OURS if value.startswith(_OURS) and ":" not in value else value
        for key, value in env.items()
        if key.startswith(AT_START) and key != "PYTHONPATH"
    }


class Forked:
    """A child of a waiting process; as much of ``subprocess.Popen`` as the product uses."""

    def __init__(
        self, requests: socket.socket, env: Mapping[str, str], how: Mapping[str, Any]
    ) -> None:
        self.returncode: int | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        env = {key: value for key, value in env.items() if not value.startswith(_OURS)}
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours_err, theirs_err = os.pipe()
        told, telling = os.pipe()
        request = json.dumps({"env": env, "folder": str(Path.cwd())}).encode()
        theirs = [theirs_in, theirs_out, theirs_err, telling]
        socket.send_fds(requests, [request], theirs)
        for number in theirs:
            os.close(number)
        size = how.get("bufsize", -1)
        self.stdin: IO[bytes] = os.fdopen(ours_in, "wb", size)
        self.stdout: IO[bytes] = os.fdopen(ours_out, "rb", size)
        self.stderr: IO[bytes] | None = os.fdopen(ours_err, "rb", size)
        if how.get("stderr") == subprocess.DEVNULL:
            self.stderr.close()
            self.stderr = None
        self._told = os.fdopen(told, "rb", 0)
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        if os.getpid() != self._owner:
            return 0  # as the real one says of what is no child of this process
        with self._lock:
            if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
                self.returncode = int(self._told.readline() or -signal.SIGKILL)
            return self.returncode


def _wait_with(program: str) -> tuple[socket.socket, dict[str, str]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, open_helper() as helper:
        env = worker_environment(helper) if program == WORKER else dict(os.environ)
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.forked_workers", program, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=env | {"PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno(), *([] if helper is None else [helper])],
        )
    return ours, _at_start(env)


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for every request that comes; returns in each child, and never otherwise."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    children: dict[int, int] = {}  # → where its end is told
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == woken:
                with contextlib.suppress(BlockingIOError):
                    while os.read(woken, 4096):
                        pass
                _tell_ends(children)
                continue
            data, streams, _, _ = socket.recv_fds(requests, 1 << 20, 4)
            if not data:  # whoever ran the tests is gone
                os._exit(0)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                selector.close()
                for number in (requests.detach(), woken, wake, *children.values(), streams.pop()):
                    os.close(number)
                os.setsid()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                request: dict[str, Any] = json.loads(data)
                return request
            children[child] = streams.pop()
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(OSError):
                os.write(children[child], b"%d\n" % child)


def _tell_ends(children: dict[int, int]) -> None:
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        told = children.pop(child)
        with contextlib.suppress(OSError):
            os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(told)


def main() -> None:
    program, number = sys.argv[1:]
    main_module, *others = map(importlib.import_module, IMPORTED[program])
    assert main_module and others is not None
    if program == WORKER:
        main_module._leave_preloading_to_the_worker()
    with socket.socket(fileno=int(number)) as requests:
        request = serve(requests)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    main_module.main()


if __name__ == "__main__":
    main()
