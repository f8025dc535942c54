"""Ask a short-lived worker how fast it computes here (``worker/kernel_timing.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.engine import rpc
from localmoe.engine.process import WorkerProcess
from localmoe.facts import bandwidth
from localmoe.facts.bandwidth import DeviceRate, Rates


def processor_rates(threads: int) -> Rates:
    """The rates of the processor with 1 … ``threads`` threads; measuring takes some seconds.

    Raises EngineError, or EngineCrashError where there is no memory for it.
    """
    return bandwidth.from_json(_ask(threads=threads)["processor"])


def device_rates(devices: Sequence[str], remotes: Sequence[str] = ()) -> tuple[DeviceRate, ...]:
    """The rates of devices, given by the engine's names. Those with too little memory are left out.

    Raises EngineError, or EngineCrashError where there is no memory for it.
    """
    return bandwidth.devices_from_json(_ask(devices=devices, remotes=remotes)["devices"])


def _ask(
    threads: int = 0, devices: Sequence[str] = (), remotes: Sequence[str] = ()
) -> dict[str, object]:
    worker = WorkerProcess()
    try:
        limits = rpc.limits(remotes, rpc.WORK_LIMIT)
        wanted = {"threads": threads, "devices": list(devices), "remotes": list(remotes)}
        return worker.ask("rates", **limits, **wanted)
    finally:
        worker.close()
