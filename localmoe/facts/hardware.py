"""This machine: memory that may be used, cores, GPUs, disk."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe import storage
from localmoe.facts import cgroup, gpus
from localmoe.facts.disk import measure_disk
from localmoe.facts.gpus import Gpu
from localmoe.text import clean_line

__all__ = ["Gpu", "Machine", "detect", "free_memory", "measure_disk", "own_memory"]

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as the planner sees it. To plan for another one, replace fields."""

    os: str
    cpu: str
    cores_physical: int
    cores_logical: int  # that this process may use (affinity and cgroup quota counted)
    ram_total: int  # bytes, the cgroup limit if that is lower
    ram_available: int  # bytes that can be allocated now without swapping, cgroup counted
    ram_limited_by: str | None  # "cgroup v1", "cgroup v2", … when a limit is below the hardware
    gpus: tuple[Gpu, ...]
    disk_free: int  # bytes free where models are stored
    disk_read_bandwidth: float | None = None  # bytes/s, measured only when needed
    mappings: int | None = None  # of memory that a process may have; None: no limit is known
    swap_total: int = 0  # bytes to which the system may move memory


def detect(
    engine_devices: Sequence[Gpu] = (), model_dir: Path | None = None, *, root: Path = ROOT
) -> Machine:
    """This machine, as the operating system describes it; nothing is started or measured.

    ``engine_devices``: the GPUs of the engine build. ``model_dir``: where models are stored, if
    not in our own folder. ``root``: where /proc and /sys are found.
    """
    total, available = _memory(root)
    limit = cgroup.memory_limit(root)
    limited = limit is not None and limit.total < total
    if limit is not None:
        total, available = min(total, limit.total), min(available, limit.available)
    allowed = _affinity()
    logical = len(allowed)
    quota = cgroup.cpu_limit(root)
    if quota is not None:
        # A thread beyond the quota makes all of them wait, so parts of a processor do not count.
        logical = max(1, min(logical, int(quota)))
    return Machine(
        os=f"{os.uname().sysname} {os.uname().machine}",
        cpu=_cpu_name(root),
        cores_physical=min(_physical_cores(root, allowed), logical),
        cores_logical=logical,
        ram_total=total,
        ram_available=min(available, total),
        ram_limited_by=limit.version if limit is not None and limited else None,
        gpus=gpus.merge(engine_devices, _system_gpus(root, total, available)),
        disk_free=_disk_free(model_dir or storage.models_dir()),
        mappings=_mappings(root),
        swap_total=_swap(root),
    )


@dataclass(frozen=True, slots=True)
class OwnMemory:
    """What this process has of the machine's memory, in bytes."""

    mapped: int  # of mapped files, the page cache's pages: the system counts them as free
    swapped: int  # of its own memory, on the swap device


def own_memory(root: Path = ROOT) -> OwnMemory:
    """As Linux tells (proc_pid_status(5)); nothing on other systems."""
    text = _read(root / "proc/self/status")
    found = dict(re.findall(r"^(RssFile|VmSwap):\s+(\d{1,15}) kB", text, re.MULTILINE))
    return OwnMemory(*(int(found.get(name, 0)) * 1024 for name in ("RssFile", "VmSwap")))


def free_memory(root: Path = ROOT, mapped: int = 0) -> tuple[int, int]:
    """Bytes that can still be taken now, and how few of them mean that memory is short.

    The bound is a fiftieth of the machine's memory, or of the group's where that is tighter.
    """
    total, available = _memory(root)
    available = max(0, available - mapped)
    limit = cgroup.memory_limit(root, mapped)
    if limit is not None and limit.available / max(1, limit.total) < available / total:
        return limit.available, limit.total // 50
    return available, total // 50


def _swap(root: Path) -> int:
    found = re.search(r"^SwapTotal:\s+(\d{1,15}) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _mappings(root: Path) -> int | None:
    text = _read(root / "proc/sys/vm/max_map_count")
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def _memory(root: Path) -> tuple[int, int]:
    """Bytes of RAM, and those available without swapping."""
    text = _read(root / "proc/meminfo")
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d{1,15}) kB", text, re.MULTILINE))
    if len(found) == 2:
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    import psutil  # late, as below: it is seldom needed, and takes a while

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _affinity() -> Collection[int]:
    """The logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _physical_cores(root: Path, allowed: Collection[int]) -> int:
    """Cores that the allowed logical processors belong to."""
    cores = set()
    for number in allowed:
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        if not core:
            import psutil

            return min(len(allowed), psutil.cpu_count(logical=False) or len(allowed))
        cores.add((package, core))
    return max(1, len(cores))


def _cpu_name(root: Path) -> str:
    text = _read(root / "proc/cpuinfo")
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(\S.*)$", text, re.MULTILINE)
    name = match[1] if match else os.uname().machine
    return clean_line(name)[:80] or "unknown"


def _system_gpus(root: Path, total: int, available: int) -> list[Gpu]:
    if (os.uname().sysname, os.uname().machine) == ("Darwin", "arm64"):
        return [Gpu("Apple GPU", total, available, False, None, "metal", unified=True)]
    return gpus.system_gpus(root)


def _disk_free(folder: Path) -> int:
    """Free bytes where ``folder`` is, or will be."""
    import shutil  # late: who is answered by a server plans nothing

    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
