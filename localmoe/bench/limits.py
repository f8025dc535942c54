"""A hard limit on the memory of one process: a control group, or a stated substitute for it.

A control group counts the page cache that its processes bring in, so a mapped model is limited
like everything else. Files and their meaning: the kernel's cgroup-v1/memory.rst, cgroup-v2.rst.
Where no group can be made, another process takes the memory that the worker shall not have.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil

from localmoe.errors import EngineError
from localmoe.facts.cgroup import own_groups

_PATIENCE = 5.0  # seconds that a group may need to become empty
_LEAST_HELD = 64 << 20  # bytes; less is not worth holding


class Box(Protocol):
    """What a measured process runs in."""

    kind: str  # for people: "cgroup v1", "cgroup v2", …

    def admit(self, pid: int) -> None:
        """Put a process in; what it took before stays outside."""

    def peak(self) -> int | None:
        """Most bytes charged so far, page cache included; None where that is not counted."""

    def kills(self) -> int:
        """How many processes were killed for want of memory."""


class Unlimited:
    """No limit at all."""

    kind = "no limit"

    def admit(self, pid: int) -> None:
        pass

    def peak(self) -> int | None:
        return None

    def kills(self) -> int:
        return 0


class Held(Unlimited):
    """The rest of the memory is held by another process, so that about the limit is left."""

    kind = "the rest of the RAM held by another process"


class Group(Unlimited):
    """A control group of our own. Raises OSError where we may not make one."""

    def __init__(self, parent: Path, limit: int, version: int) -> None:
        self.kind = f"cgroup v{version}"
        self._v1 = version == 1
        self._folder = parent / f"localmoe-bench-{os.getpid()}"
        self._folder.mkdir()
        try:
            self._restrict(limit)
        except OSError:
            self._folder.rmdir()
            raise

    def _restrict(self, limit: int) -> None:
        if self._v1:
            self._write("memory.swappiness", 0)
            self._write("memory.limit_in_bytes", limit)
            with contextlib.suppress(OSError):  # counts only where the kernel accounts swap
                self._write("memory.memsw.limit_in_bytes", limit)
        else:
            self._write("memory.max", limit)
            with contextlib.suppress(OSError):
                self._write("memory.swap.max", 0)

    def let_swap(self) -> None:
        """Allow the group to use the machine's swap, beyond its limit."""
        if self._v1:
            self._write("memory.memsw.limit_in_bytes", -1)
            self._write("memory.swappiness", 60)
        else:
            self._write("memory.swap.max", "max")

    def admit(self, pid: int) -> None:
        self._write("cgroup.procs", pid)

    def peak(self) -> int | None:
        name = "memory.max_usage_in_bytes" if self._v1 else "memory.peak"
        try:
            return int(self._read(name))
        except (OSError, ValueError):
            return None

    def kills(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in self._read("memory.oom_control" if self._v1 else "memory.events").split(
                "\n"
            ):
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0

    def close(self) -> None:
        """Remove the group; its processes have ended or are about to."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(OSError):
                if self._v1:
                    self._write("memory.force_empty", 0)
            try:
                self._folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)

    def _write(self, name: str, value: int | str) -> None:
        (self._folder / name).write_text(str(value))

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text()


@contextlib.contextmanager
def memory_box(limit: int | None) -> Iterator[Box]:
    """A box of ``limit`` bytes for one worker. Raises EngineError when there is no way to limit."""
    if limit is None:
        yield Unlimited()
        return
    group = _own_group(limit)
    if group is not None:
        with contextlib.closing(group):
            yield group
        return
    with _held(psutil.virtual_memory().available - limit):
        yield Held()


def _own_group(limit: int) -> Group | None:
    """A new group in or beside our own; None where we may make none that takes a process."""
    places = [(folder, 1) for folder in own_groups("memory")]
    places += [(folder, 2) for folder in own_groups(None)]
    for parent, version in places:
        try:
            group = Group(parent, limit, version)
        except OSError:  # not ours to change, or no memory controller in it
            continue
        if _takes_a_process(group):
            return group
        group.close()
    return None


def _takes_a_process(group: Group) -> bool:
    """Whether a process can be moved there: that needs rights on a common parent too, so we try."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            group.admit(child.pid)
            return True
        except OSError:
            return False
        finally:
            child.kill()


# Locked where that is allowed; else kept by being touched again and again.
_HOLDER = """
import ctypes, mmap, select, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None)
locked = libc.mlock(ctypes.c_void_p(at), ctypes.c_size_t(size)) == 0
while True:
    for i in range(0 if locked else size)[:: mmap.PAGESIZE]:
        memory[i] = 1
    print("held", flush=True)
    if select.select([sys.stdin], [], [], None if locked else 2.0)[0]:
        break
"""


@contextlib.contextmanager
def _held(size: int) -> Iterator[None]:
    if size < _LEAST_HELD:
        yield
        return
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            if holder.stdout is None or not holder.stdout.readline():
                raise EngineError(
                    "no way to limit memory: no control group can be made, and no memory held",
                    hint="as root, or in a session that may make control groups, it works",
                )
            yield
        finally:
            holder.kill()
