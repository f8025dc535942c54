"""The speed that a plan will have here: what the machine does is measured once, and kept."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from localmoe import storage
from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.engine.builds import binding_version
from localmoe.engine.timing import device_rates, processor_rates
from localmoe.errors import LocalmoeError, StorageError
from localmoe.facts import bandwidth, catalog, disk_rates
from localmoe.facts.bandwidth import DiskRate, Rates
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast, forecast
from localmoe.routing import profile

PATIENCE = 60.0  # seconds to wait for another process that measures


def forecast_for(
    model: Model, plan: Plan, machine: Machine, options: Options, output: Output
) -> Forecast | None:
    """What this plan will do, by what was measured of the machine that it is for.

    None for a plan that does not fit, and where nothing is known of the machine: it is described
    by a file that says nothing of speed, or it could not be measured.
    """
    if not plan.verdict.fits:
        return None
    if options.machine is not None:
        rates = rates_of_file(Path(options.machine))
    else:
        rates = rates_for(model, plan, machine, output)
    if rates is None:
        return None
    return forecast(model, plan, rates, profile=profile.load(profile.key_of(model)))


def rates_of_file(path: Path) -> Rates | None:
    """Those of another machine, from its ``doctor --json``; None if it does not have them."""
    try:
        document = json.loads(path.read_bytes())
        return bandwidth.from_json(document.get("machine", document)["rates"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def rates_for(model: Model, plan: Plan, machine: Machine, output: Output) -> Rates | None:
    """This machine's, with the disk that the model is on, or will be, and the plan's devices."""
    rates = machine_rates(machine, output)
    if rates is None:
        return None
    if plan.tiers.disk or not rates.disk:
        rates = _with_disk(rates, machine, _place(model), output)
    in_engine = {gpu.device for gpu in machine.gpus if gpu.in_engine}
    unknown = [
        name
        for name in plan.settings.devices
        if name in in_engine and rates.on_device(name) is None
    ]
    if unknown:
        rates = _with_devices(rates, machine, unknown, plan.settings.remotes, output)
    return rates


def machine_rates(machine: Machine, output: Output) -> Rates | None:
    """This machine's processor and memory, measured if that was not done yet; None if it fails."""
    return _processor(key_of(machine), machine.cores_physical, output)


def key_of(machine: Machine) -> str:
    """Under which this machine's rates are kept."""
    return bandwidth.key_of(machine, binding_version())


@cache
def _processor(key: str, threads: int, output: Output) -> Rates | None:
    known = bandwidth.load(key)
    if known is not None:
        return known
    try:
        with FileLock(storage.private_dir(storage.cache_dir()) / "rates.lock", timeout=PATIENCE):
            known = bandwidth.load(key)  # another process may have measured meanwhile
            if known is None:
                output.note("measuring this machine: once, some seconds")
                known = processor_rates(threads)
                bandwidth.save(key, known)
    except (LocalmoeError, OSError, Timeout, ValueError) as error:
        output.warn(f"this machine cannot be measured, so no speeds: {_reason(error)}")
    return known


def _with_disk(rates: Rates, machine: Machine, place: Path, output: Output) -> Rates:
    """With the disk of ``place`` first; as they are where it cannot be measured."""
    known = rates.on_disk(bandwidth.disk_of(place))
    if known is None:
        known = _disk(place, key_of(machine), output)
    return rates.with_disk(known) if known else rates


@cache
def _disk(place: Path, key: str, output: Output) -> DiskRate | None:
    where = bandwidth.disk_of(place)
    try:
        with FileLock(storage.private_dir(storage.cache_dir()) / "rates.lock", timeout=PATIENCE):
            kept = bandwidth.load(key)
            if kept is not None and (known := kept.on_disk(where)):
                return known
            sample = _sample(where)
            found = disk_rates.measure_file(sample) if sample else disk_rates.measure_folder(place)
            if kept is not None:
                bandwidth.save(key, kept.with_disk(found))
            return found
    except (LocalmoeError, OSError, Timeout) as error:
        output.note(f"the disk cannot be measured: {_reason(error)}")
        return None


def _with_devices(
    rates: Rates, machine: Machine, names: list[str], remotes: tuple[str, ...], output: Output
) -> Rates:
    try:
        found = device_rates(names, remotes)
    except (LocalmoeError, ValueError) as error:
        output.note(f"the speed of {', '.join(names)} is not known: {_reason(error)}")
        return rates
    rates = dataclasses.replace(rates, devices=(*rates.devices, *found))
    with FileLock(storage.private_dir(storage.cache_dir()) / "rates.lock", timeout=PATIENCE):
        kept = bandwidth.load(key_of(machine))
        if kept is not None:
            bandwidth.save(key_of(machine), dataclasses.replace(kept, devices=rates.devices))
    return rates


def _place(model: Model) -> Path:
    """The folder of the model's files, or the one where they will be: a header alone has holes."""
    first = model.paths[0]
    return first.parent if _is_there(first) else catalog.hub_cache()


def _sample(where: str) -> Path | None:
    """A large file on that disk, to read."""
    here = [p for p in catalog.local_models() if bandwidth.disk_of(p) == where and _is_there(p)]
    large = [path for path in here if path.stat().st_size >= disk_rates.SMALLEST]
    return max(large, key=lambda path: path.stat().st_size, default=None)


def _is_there(path: Path) -> bool:
    """Whether a file has its bytes, and no holes."""
    try:
        found = path.stat()
    except OSError:
        return False
    blocks = getattr(found, "st_blocks", None)
    return stat.S_ISREG(found.st_mode) and (blocks is None or blocks * 512 > found.st_size // 2)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, LocalmoeError) else str(error)
