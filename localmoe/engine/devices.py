"""What this engine build is and which devices it sees, asked of a worker."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localmoe.engine import modules, rpc
from localmoe.engine.process import WorkerProcess
from localmoe.engine.rpc_build import find_rpc_library
from localmoe.facts.hardware import Gpu


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """How the engine was built."""

    version: str
    backends: tuple[str, ...]  # "CPU", "CUDA", "RPC" …
    cpu_features: tuple[str, ...]  # "AVX2", "AVX512" …
    native_helper: bool  # False: memory figures are totals, and interrupts wait for a token
    gpus: tuple[Gpu, ...]
    helper_preloaded: bool = True  # False: loading reads all of a mapped file at once
    rpc: bool = False  # workers on other machines can be used, and this one can be a worker
    modules: Mapping[str, str] = field(default_factory=dict)
    """Name of each installed module → why it is not in use, "" if it is."""

    @property
    def repacks(self) -> bool:
        """Whether copies of the weights in another order can be used.

        Not those for AMX. An engine compiled for it by GCC 12 dies of them in its first batch, with
        llama.cpp's own defaults too: SIGILL at ``tilezero``, or an assertion where tensors have
        shapes that its AMX buffers do not take.
        """
        return not any(feature.startswith("AMX") for feature in self.cpu_features)


def engine_info(remotes: Sequence[str] = (), worker: WorkerProcess | None = None) -> EngineInfo:
    """Ask ``worker``, or one that is started for it and ended (about 0.1 s).

    The devices of ``remotes`` ("host:port" of RPC workers) are among the GPUs. Raises EngineError
    when one of them cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if worker is None:
            worker = stack.enter_context(contextlib.closing(WorkerProcess()))
        limits = rpc.limits(remotes, rpc.ANSWER_LIMIT)
        answer = worker.ask("info", **limits, remotes=list(remotes))
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
            # An RPC device's description is the address of its server.
            remote=device["description"] if device["backend"] == "RPC" else None,
        )
        for device in once_per_card(devices)
    )
    features = re.findall(r"(\w+) = 1\b", answer["system_info"])
    return EngineInfo(
        version=answer["version"],
        backends=tuple(dict.fromkeys(device["backend"] for device in devices)),
        cpu_features=tuple(features),
        native_helper=answer["native_helper"],
        helper_preloaded=answer["helper_preloaded"],
        gpus=gpus,
        rpc=find_rpc_library() is not None,
        modules={
            modules.named([Path(path)]): modules.explained(problem)
            for path, problem in answer["modules"].items()
        }
        | modules.failures(),
    )


def once_per_card(devices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The GPUs among ``devices``; a card that two backends of one build see, only once. Pure.

    The rules are llama.cpp's (``llama_prepare_model_devices`` in src/llama.cpp): discrete cards
    are told apart by their address; of integrated ones, which may have none, one backend's count.
    """
    found: list[Mapping[str, Any]] = []
    for device in devices:
        if device["kind"] not in ("gpu", "igpu"):
            continue
        same_card = device["card"] and any(device["card"] == other["card"] for other in found)
        integrated = [other for other in found if other["kind"] == "igpu"]
        seen_already = device["kind"] == "igpu" and any(
            other["backend"] != device["backend"] for other in integrated
        )
        if not same_card and not seen_already:
            found.append(device)
    return found
