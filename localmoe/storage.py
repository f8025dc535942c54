"""Our own files: where they are, private, written whole or not at all; the memory ledger.

``LOCALMOE_HOME`` puts all folders below one. Folders are 0700 and files 0600: chats are private.

The ledger is for localmoe processes that run at the same time. What one has planned to load, but
not touched yet, the kernel still calls available; so each writes down what it will take. Each
promise is a file of its own, written atomically, so no lock is needed::

    with promise(ram, {"CUDA0": vram}):
        …
    others = sum(p.outstanding_ram for p in promises())
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import platformdirs
import psutil

from localmoe.errors import StorageError

_PROMISE_LIMIT = 65_536  # bytes; a real one has about 100
_MAX_BYTES = 2**60
_DAMAGED = (  # what reading a file of unexpected content can raise
    OSError,
    ValueError,
    ArithmeticError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
_SAME_START = 10.0  # seconds; start times move when the clock is set


def config_dir() -> Path:
    """Settings that people write. Not created until it is written to."""
    return _folder("config", platformdirs.user_config_dir("localmoe", appauthor=False))


def data_dir() -> Path:
    """Chats and what else must last."""
    return _folder("data", platformdirs.user_data_dir("localmoe", appauthor=False))


def cache_dir() -> Path:
    """What can be made again."""
    return _folder("cache", platformdirs.user_cache_dir("localmoe", appauthor=False))


def state_dir() -> Path:
    """What belongs to this machine now: history, the ledger."""
    return _folder("state", platformdirs.user_state_dir("localmoe", appauthor=False))


def models_dir() -> Path:
    """Model files that are ours to manage."""
    return data_dir() / "models"


def private_dir(path: Path) -> Path:
    """``path`` as an existing folder; what had to be created is 0700. Raises StorageError."""
    try:
        missing = [path, *path.parents]
        missing = missing[: next((i for i, p in enumerate(missing) if p.exists()), len(missing))]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        if not path.is_dir():
            raise NotADirectoryError(20, "Not a directory")
    except OSError as error:
        _failed("cannot create the folder", path, error)
    return path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by a 0600 file with ``content``, or leave it as it is.

    The folder is created if need be. Raises StorageError (disk full, no permission …).
    """
    private_dir(path.parent)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary: str | None = None
    try:
        # mkstemp creates with 0600.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the source is a plain string
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
        _failed("cannot write", path, error)


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory that a running localmoe process said it will take."""

    pid: int
    started: float  # seconds since the epoch; with the pid, it names one process for good
    ram: int  # bytes promised
    devices: Mapping[str, int]  # engine's device name → bytes promised
    outstanding_ram: int  # bytes of ``ram`` that the kernel still calls available


@contextlib.contextmanager
def promise(ram: int, devices: Mapping[str, int]) -> Iterator[None]:
    """Tell other localmoe processes of ``ram`` bytes and bytes per device, until the block ends.

    A ledger that cannot be written (a read-only home) stops nobody from working.
    """
    path = _ledger() / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    entry = {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "ram": max(0, int(ram)),
        "devices": {name: max(0, int(count)) for name, count in devices.items()},
    }
    with contextlib.suppress(StorageError):
        atomic_write(path, json.dumps(entry))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def promises() -> list[Promise]:
    """What other localmoe processes have promised themselves; those of the dead are removed.

    The promises of this process are left out: they are its own plan.
    """
    living = []
    for path in sorted(_ledger().glob("*.json")):
        entry = _read(path)
        if entry is None or not _alive(entry):
            with contextlib.suppress(OSError):
                path.unlink()
        elif entry.pid != os.getpid():
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
        result.append(
            Promise(entry.pid, entry.started, entry.ram, entry.devices, entry.ram - covered)
        )
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
            entry = json.loads(file.read(_PROMISE_LIMIT))
        pid, started, ram = int(entry["pid"]), float(entry["started"]), int(entry["ram"])
        devices = {str(name): int(count) for name, count in entry["devices"].items()}
    except _DAMAGED:
        return None
    sizes = (ram, *devices.values())
    if pid <= 0 or not all(0 <= size <= _MAX_BYTES for size in sizes):
        return None
    return Promise(pid, started, ram, devices, ram)


def _ledger() -> Path:
    return state_dir() / "promises"


def _folder(name: str, usual: str) -> Path:
    home = os.environ.get("LOCALMOE_HOME")
    return Path(home).expanduser() / name if home else Path(usual)


def _failed(what: str, path: Path, error: OSError) -> NoReturn:
    reason = (error.strerror or str(error)).lower()
    hint = {
        28: "free some disk space",
        13: "check who owns it, or set LOCALMOE_HOME to another folder",
        30: "set LOCALMOE_HOME to a folder that can be written",
    }.get(error.errno or 0)
    raise StorageError(f"{what} {path}: {reason}", hint=hint) from error
