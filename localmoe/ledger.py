"""The memory ledger: what models that are loaded at the same time have been promised.

What is planned but not touched yet the kernel still calls available; so the RAM that a model will
take is written down. (GPU memory is taken at once, and a driver's figures show it.) Each
promise is a file of its own, written atomically, so no lock is needed::

    with promise(ram):
        …
    taken = sum(p.outstanding_ram for p in promises())
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from localmoe import kept, storage
from localmoe.errors import StorageError

_PROMISE_LIMIT = 65_536  # bytes; a real one has about 100
_MAX_BYTES = 2**60
PATIENCE = 10.0  # seconds; a plan takes one
_SAME_START = 10.0  # seconds; start times move when the clock is set


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory that a running localmoe process said it will take."""

    pid: int
    started: float  # seconds since the epoch; with the pid, it names one process for good
    ram: int  # bytes promised
    outstanding_ram: int  # bytes of ``ram`` that the kernel still calls available


@contextlib.contextmanager
def planning(patience: float = PATIENCE) -> Iterator[None]:
    """One process at a time, from its look at what is free to its promise.

    Whoever stays in there longer than ``patience`` seconds (a stopped process) is passed by. The
    folder is locked itself, so no file is left behind; the kernel frees the lock of the dead.
    """
    try:
        folder = os.open(storage.private_dir(_ledger()), os.O_RDONLY | os.O_CLOEXEC)
    except (StorageError, OSError):  # a read-only home stops nobody
        yield
        return
    try:
        deadline = time.monotonic() + patience
        while not _locked(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        os.close(folder)


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def promise(ram: int, holder: int | None = None) -> Iterator[None]:
    """Tell whoever plans of ``ram`` bytes that a process will take, until the block ends.

    ``holder`` is the id of that process, by default this one. A ledger that cannot be written (a
    read-only home) stops nobody from working. A process that is forked off inside the block does
    not end the promise.
    """
    owner = os.getpid()
    pid = holder or owner
    path = _ledger() / f"{pid}-{uuid.uuid4().hex[:8]}.json"
    entry = {
        "pid": pid,
        "started": _started(pid),
        "ram": max(0, int(ram)),
    }
    with contextlib.suppress(StorageError):
        storage.atomic_write(path, json.dumps(entry))
    try:
        yield
    finally:
        if os.getpid() == owner:
            with contextlib.suppress(OSError):
                path.unlink()


def _started(pid: int) -> float:
    """When a process was started; 0, as if it were another one, when it is gone already."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def promises() -> list[Promise]:
    """What is promised on this machine, in this process too; promises of the dead are removed."""
    living = []
    for path in sorted(_ledger().glob("*.json")):
        entry = _read(path)
        if entry is None or not _alive(entry):
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            living.append(entry)
    return _settled(living)


def _settled(entries: list[Promise]) -> list[Promise]:
    """The same promises less what their processes hold already.

    Only anonymous memory counts as held: mapped weights are page cache, which the kernel still
    calls available. A process with several promises fills them one after the other.
    """
    held: dict[int, int] = {}
    result = []
    for entry in entries:
        left = held.setdefault(entry.pid, -1)
        if left < 0:
            left = anonymous_memory(entry.pid)
        covered = min(entry.ram, left)
        held[entry.pid] = left - covered
        result.append(Promise(entry.pid, entry.started, entry.ram, entry.ram - covered))
    return result


def anonymous_memory(pid: int) -> int:
    """Bytes that a process and its children hold and that no file backs (rss - shared)."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        with contextlib.suppress(psutil.Error):
            memory = member.memory_info()
            total += max(0, memory.rss - int(getattr(memory, "shared", 0)))
    return total


def _alive(entry: Promise) -> bool:
    try:
        process = psutil.Process(entry.pid)
        same = abs(process.create_time() - entry.started) <= _SAME_START
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def _read(path: Path) -> Promise | None:
    """None for what is not a promise: a damaged file counts as nobody's."""
    try:
        with path.open("rb") as file:
            entry = kept.parse(file.read(_PROMISE_LIMIT))
        pid, ram = kept.whole(entry["pid"], 1), kept.whole(entry["ram"], most=_MAX_BYTES)
        return Promise(pid, kept.number(entry["started"]), ram, ram)
    except (OSError, *kept.DAMAGED):
        return None


def _ledger() -> Path:
    return storage.state_dir() / "promises"
