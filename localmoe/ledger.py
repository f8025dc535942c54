"""The memory ledger: RAM that running localmoe processes will take and have not touched yet.

The kernel calls that RAM available, so the next plan would use it a second time. (GPU memory is
taken at once, and the driver's figures show it.) Each promise is a file of its own, written
atomically, so no lock is needed::

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
PATIENCE = 10.0  # seconds to wait for other processes that plan; a plan takes about one
_SAME_START = 10.0  # seconds by which a start time may differ: it moves when the clock is set


@dataclass(frozen=True, slots=True)
class Promise:
    """RAM that a running localmoe process will take."""

    pid: int
    started: float  # seconds since the epoch; the pid alone may be used again
    ram: int  # bytes promised
    outstanding_ram: int  # bytes of ``ram`` that the kernel still calls available


@contextlib.contextmanager
def planning(patience: float = PATIENCE) -> Iterator[None]:
    """A lock for the time between measuring free memory and promising it.

    After ``patience`` seconds it is entered without the lock: its holder may be a stopped process.
    The folder itself is locked, so no lock file stays behind; the kernel unlocks it if we die.
    """
    try:
        folder = os.open(storage.private_dir(_ledger()), os.O_RDONLY | os.O_CLOEXEC)
    except (StorageError, OSError):  # a read-only home: plan without the lock
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
    """Note that a process will take ``ram`` bytes, until the block ends.

    ``holder`` is the id of that process, by default this one. Where the ledger cannot be written
    (a read-only home) nothing is noted. The end of the block in a forked child does not count.
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
    """When a process was started, in seconds since the epoch; 0 if it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def promises() -> list[Promise]:
    """All promises on this machine, this process's too; those of dead processes are removed."""
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
    """The promises with ``outstanding_ram`` reduced by the memory their processes hold already.

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
    """The promise in a file; None if the file is damaged."""
    try:
        with path.open("rb") as file:
            entry = kept.parse(file.read(_PROMISE_LIMIT))
        pid, ram = kept.whole(entry["pid"], 1), kept.whole(entry["ram"], most=_MAX_BYTES)
        return Promise(pid, kept.number(entry["started"]), ram, ram)
    except (OSError, *kept.DAMAGED):
        return None


def _ledger() -> Path:
    return storage.state_dir() / "promises"
