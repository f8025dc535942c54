"""This machine: memory that may be used, cores, GPUs, disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, seen by the engine (``in_engine``) or only by the operating system."""

    name: str
    total: int  # bytes; 0 if unknown
    free: int  # bytes; 0 if unknown
    in_engine: bool
    device: (
        str | None
    )  # the engine's device name ("CUDA0", "RPC0[host:port]"), None if not in_engine
    backend: str | None  # for in_engine=False: the build that would use it ("cuda", "vulkan", …)
    unified: bool = False  # shares the machine's RAM (integrated, Apple silicon)


@dataclass(frozen=True, slots=True)
class Machine:
    """Every field can be set by hand (``dataclasses.replace``), to plan for other machines."""

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
