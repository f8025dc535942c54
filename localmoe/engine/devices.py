"""What this engine build is and which devices it sees, asked of a short-lived worker."""

from __future__ import annotations

import re
from dataclasses import dataclass

from localmoe.engine.process import WorkerProcess
from localmoe.facts.hardware import Gpu


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """How the engine was built."""

    version: str
    backends: tuple[str, ...]  # "CPU", "CUDA", "RPC" …
    cpu_features: tuple[str, ...]  # "AVX2", "AVX512" …
    native_helper: bool  # False: memory figures are totals, and interrupts wait for a token
    gpus: tuple[Gpu, ...]


def engine_info() -> EngineInfo:
    """Start a worker, ask, and end it (about 0.2 s)."""
    worker = WorkerProcess()
    try:
        answer = worker.ask("info")
    finally:
        worker.close()
    devices = answer["devices"]
    gpus = tuple(
        Gpu(
            name=device["description"],
            total=device["total"],
            free=device["free"],
            in_engine=True,
            device=device["name"],
            backend=device["backend"].lower(),
            unified=device["kind"] == "igpu",
        )
        for device in devices
        if device["kind"] in ("gpu", "igpu")
    )
    features = re.findall(r"(\w+) = 1\b", answer["system_info"])
    return EngineInfo(
        version=answer["version"],
        backends=tuple(dict.fromkeys(device["backend"] for device in devices)),
        cpu_features=tuple(features),
        native_helper=answer["native_helper"],
        gpus=gpus,
    )
