"""What the memory beside this machine's RAM is called: a GPU's, or another machine's. Pure.

A plan treats both alike, as devices of its tier "gpu"; people are told which of them is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

GPU, WORKER, BOTH = "GPU", "worker", "GPU + worker"

_MEMORY = {GPU: "GPU memory", WORKER: "the worker's memory", BOTH: "GPU and worker memory"}
_HOLDER = {GPU: "the GPU", WORKER: "the worker", BOTH: "the GPU and worker"}


def is_remote(device: str) -> bool:
    """Whether the engine's device of that name belongs to a worker, on whatever machine."""
    return device.startswith("RPC")


def kind_of(devices: Sequence[str]) -> str:
    """``GPU``, ``worker`` or ``GPU + worker``: what these devices are; GPU for none."""
    remote = {is_remote(device) for device in devices}
    return BOTH if len(remote) == 2 else WORKER if remote == {True} else GPU


def memory_of(devices: Sequence[str]) -> str:
    """``GPU memory``, ``the worker's memory``, ``GPU and worker memory``."""
    return _MEMORY[kind_of(devices)]


def holder(devices: Sequence[str]) -> str:
    """``the GPU``, ``the worker``, ``the GPU and worker``."""
    return _HOLDER[kind_of(devices)]
