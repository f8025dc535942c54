"""Ask a short-lived worker how fast it computes here (``worker/kernel_timing.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.engine import rpc
from localmoe.engine.process import WorkerProcess
from localmoe.facts import bandwidth
from localmoe.facts.bandwidth import DeviceRate, Rates

DEVICE_LIMIT = 60.0  # seconds that timing one device may take, its shaders' compilation included


def processor_rates(threads: int) -> Rates:
    """The rates of the processor with 1 … ``threads`` threads; measuring takes some seconds.

    Raises EngineError, or EngineCrashError where there is no memory for it.
    """
    return bandwidth.from_json(_ask("", threads=threads)["processor"])


def device_rate(device: str, remotes: Sequence[str] = ()) -> DeviceRate | None:
    """The rates of a device, given by the engine's name; None if it has too little memory.

    Raises EngineError; EngineCrashError if it crashes, or does not come to an end in DEVICE_LIMIT.
    """
    found = _ask(device, devices=[device], remotes=remotes)["devices"]
    return next(iter(bandwidth.devices_from_json(found)), None)


def _ask(
    awaited: str, threads: int = 0, devices: Sequence[str] = (), remotes: Sequence[str] = ()
) -> dict[str, object]:
    worker = WorkerProcess()
    try:
        limits: rpc.Limits = {"silence": DEVICE_LIMIT, "awaited": awaited} if awaited else {}
        wanted = {"threads": threads, "devices": list(devices), "remotes": list(remotes)}
        return worker.ask("rates", **limits, **wanted)
    finally:
        worker.close()
