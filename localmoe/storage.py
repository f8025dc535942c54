"""Our own files: where they are, private, written atomically; and the promises between processes.

``LOCALMOE_HOME`` puts everything below one folder.
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

from localmoe.errors import StorageError

APP = "localmoe"


def _directory(kind: str) -> Path:
    home = os.environ.get("LOCALMOE_HOME")
    if home:
        return Path(home) / kind
    import platformdirs

    return Path(getattr(platformdirs, f"user_{kind}_dir")(APP))


def config_dir() -> Path:
    return _directory("config")


def data_dir() -> Path:
    return _directory("data")


def cache_dir() -> Path:
    return _directory("cache")


def state_dir() -> Path:
    return _directory("state")


def models_dir() -> Path:
    """Where a user may put GGUF files of their own."""
    return data_dir() / "models"


def private_dir(path: Path) -> Path:
    """Make a folder that only its owner can read (0700), with its parents."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder {path}: {error.strerror}",
            hint="set LOCALMOE_HOME to a folder that can be written",
        ) from error
    return path


def atomic_write(path: Path, data: bytes) -> None:
    """Write a private file (0600) so that a reader sees the old or the new content, whole."""
    private_dir(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


# ---- promises of memory ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory that a running localmoe process planned to use. Bytes."""

    pid: int
    ram: int
    devices: Mapping[str, int]
    outstanding_ram: int  # of ``ram``, what it has not taken yet


@contextlib.contextmanager
def promise(ram: int, devices: Mapping[str, int]) -> Iterator[None]:
    """Tell other localmoe processes, while the block runs, what this one will use.

    A failure to write is not a failure of the block: the promise is a courtesy.
    """
    path = state_dir() / "promises" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
    record = {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "ram": ram,
        "devices": dict(devices),
    }
    with contextlib.suppress(StorageError):
        atomic_write(path, json.dumps(record).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def promises() -> list[Promise]:
    """The promises of other processes that still run; those of dead ones are removed."""
    found = []
    for path in sorted((state_dir() / "promises").glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            pid, ram = int(record["pid"]), int(record["ram"])
            devices = {str(name): int(size) for name, size in record["devices"].items()}
            alive = _started(pid) == record["started"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if not alive:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        elif pid != os.getpid():
            found.append(Promise(pid, ram, devices, max(0, ram - _anonymous_memory(pid))))
    return found


def _started(pid: int) -> float | None:
    """When a process began, or None if there is none: tells it from a later one of the same id."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _anonymous_memory(pid: int) -> int:
    """Bytes that a process and its children hold and the kernel no longer counts as available.

    Pages of mapped files are shared with the page cache, which the kernel does count.
    """
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                memory = each.memory_info()
                total += max(0, memory.rss - getattr(memory, "shared", 0))
    return total
