"""Limits that Linux control groups put on this process: containers, sessions, batch systems.

A process is in one group per hierarchy, and every group above it limits it too. Files and their
meaning: the kernel's cgroup-v1/memory.rst and cgroup-v2.rst. Page cache is charged to a group but
given back before anything is killed, so it counts as available.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60  # bytes; v1 writes "no limit" as 2**63 less one page


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The tightest limits of all groups around this process."""

    total: int  # bytes
    available: int  # bytes that can still be taken, page cache counted as free
    version: str  # "cgroup v1" | "cgroup v2"


def memory_limit(root: Path = Path("/"), mapped: int = 0) -> MemoryLimit | None:
    """The limit on this process's memory, None when no group has one.

    ``root``: where /proc and /sys are found. ``mapped``: bytes of page cache that are not free to
    be taken, since this process needs them.
    """
    levels = [*_v2_levels(root, mapped), *_v1_levels(root, mapped)]
    if not levels:
        return None
    tightest = min(levels, key=lambda level: level.total)
    return MemoryLimit(tightest.total, min(x.available for x in levels), tightest.version)


def cpu_limit(root: Path = Path("/")) -> float | None:
    """Processors' worth of time this process may use (1.5 is one and a half), None if all."""
    limits = []
    for folder in _folders(root, None):
        quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
        limits.append(_ratio(quota, period))
    for folder in _folders(root, "cpu"):
        quota = _read(folder / "cpu.cfs_quota_us") or "-1"
        limits.append(_ratio(quota, _read(folder / "cpu.cfs_period_us") or ""))
    return min((limit for limit in limits if limit is not None), default=None)


def own_groups(controller: str | None, root: Path = Path("/")) -> tuple[Path, ...]:
    """The folders of this process's group and of those above it, innermost first.

    ``controller``: one of version 1 ("memory"); ``None`` means the hierarchy of version 2.
    """
    return tuple(_folders(root, controller))


def _v2_levels(root: Path, mapped: int) -> Iterator[MemoryLimit]:
    for folder in _folders(root, None):
        # memory.high is where the kernel slows a group down; a plan must stay below it as well.
        bounds = [_number(folder / "memory.max"), _number(folder / "memory.high")]
        limit = min((bound for bound in bounds if bound is not None), default=None)
        usage = _number(folder / "memory.current")
        if limit is not None and usage is not None:
            stat = _stat(folder / "memory.stat")
            cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
            yield _level(limit, usage, cache - mapped, "cgroup v2")


def _v1_levels(root: Path, mapped: int) -> Iterator[MemoryLimit]:
    for folder in _folders(root, "memory"):
        limit = _number(folder / "memory.limit_in_bytes")
        usage = _number(folder / "memory.usage_in_bytes")
        if limit is not None and usage is not None:
            stat = _stat(folder / "memory.stat")
            # "total_" includes the groups below, as usage_in_bytes does.
            prefix = "total_" if "total_inactive_file" in stat else ""
            cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
            yield _level(limit, usage, cache - mapped, "cgroup v1")


def _level(limit: int, usage: int, cache: int, version: str) -> MemoryLimit:
    available = limit - usage + max(0, min(cache, usage))
    return MemoryLimit(limit, max(0, min(available, limit)), version)


def _folders(root: Path, controller: str | None) -> Iterator[Path]:
    """As ``own_groups``, one folder after the other."""
    group = _own_group(root, controller)
    mount = _mount(root, controller)
    if group is None or mount is None:
        return
    top, mounted = mount
    # In a container the mount may show only the groups from ``mounted`` down.
    inside = PurePosixPath(group)
    if inside.is_relative_to(mounted):
        inside = inside.relative_to(mounted)
    elif ".." in inside.parts:
        inside = PurePosixPath()
    relative = PurePosixPath(str(inside).lstrip("/"))
    folder = top / relative
    if not folder.is_dir():
        folder, relative = top, PurePosixPath()
    for _ in range(len(relative.parts) + 1):
        yield folder
        folder = folder.parent


def _own_group(root: Path, controller: str | None) -> str | None:
    """From /proc/self/cgroup: ``4:memory:/path`` (v1) or ``0::/path`` (v2)."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        number, controllers, path = fields
        if controller is None:
            if number == "0" and not controllers:
                return path
        elif controller in controllers.split(","):
            return path
    return None


def _mount(root: Path, controller: str | None) -> tuple[Path, str] | None:
    """Where a hierarchy is mounted, and which of its groups is seen there."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        before, dash, after = line.partition(" - ")
        fields, filesystem = before.split(), after.split()
        if not dash or len(fields) < 5 or len(filesystem) < 3:
            continue
        options = filesystem[2].split(",")
        version_2 = filesystem[0] == "cgroup2"
        version_1 = filesystem[0] == "cgroup" and controller in options
        if version_2 if controller is None else version_1:
            return root / fields[4].lstrip("/"), fields[3]
    return None


def _ratio(quota: str, period: str) -> float | None:
    try:
        numerator, denominator = int(quota), int(period)
    except ValueError:
        return None
    return numerator / denominator if numerator > 0 and denominator > 0 else None


def _number(path: Path) -> int | None:
    """None for no limit, and for what is not a number."""
    try:
        value = int(_read(path) or "max")
    except ValueError:
        return None
    return value if 0 <= value < _NO_LIMIT else None


def _stat(path: Path) -> dict[str, int]:
    result = {}
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            result[key] = int(value)
    return result


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None
