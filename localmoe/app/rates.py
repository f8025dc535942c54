"""The rates of a machine's processor, disks and GPUs (bytes/s), measured once and kept."""

from __future__ import annotations

import dataclasses
import datetime
import stat
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from localmoe import storage
from localmoe.app.listener import Listener
from localmoe.engine.package import binding_version
from localmoe.engine.timing import device_rate, processor_rates
from localmoe.errors import EngineCrashError, LocalmoeError
from localmoe.facts import bandwidth, catalog, disk_rates
from localmoe.facts.bandwidth import DeviceRate, DiskRate, Rates, Untimed
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.text import reason_of

PATIENCE = 60.0  # seconds to wait for another process that measures
AGAIN = datetime.timedelta(minutes=20)  # how long rates measured on a busy machine are used


def rates_for(model: Model, plan: Plan, machine: Machine, listener: Listener) -> Rates | None:
    """This machine's rates, with the disk that the model is or will be on, and the plan's devices.

    None, after a warning, if the processor cannot be measured.
    """
    settings = plan.settings
    return _rates(machine, _place(model), settings.devices, settings.remotes, listener)


def machine_rates(machine: Machine, listener: Listener) -> Rates | None:
    """As ``rates_for``, with the disk of ``models_dir`` and every GPU of the engine build."""
    devices = [gpu.device for gpu in machine.gpus if gpu.device and gpu.remote is None]
    return _rates(machine, storage.models_dir(), devices, (), listener)


def rates_at(machine: Machine, place: Path, listener: Listener) -> Rates | None:
    """As ``rates_for``, with the disk that ``place`` is on and no devices."""
    return _rates(machine, place, (), (), listener)


def key_of(machine: Machine) -> str:
    """The key under which this machine's rates are kept."""
    return bandwidth.key_of(machine, binding_version())


def _rates(
    machine: Machine,
    place: Path,
    devices: Sequence[str],
    remotes: tuple[str, ...],
    listener: Listener,
) -> Rates | None:
    """The kept rates; what they lack is measured. None if the processor cannot be measured."""
    key = key_of(machine)
    rates = _processor(key, machine.cores_physical, listener)
    if rates is None:
        return None
    disk = rates.on_disk(bandwidth.disk_of(place)) or _disk(key, place, listener)
    if disk is not None:
        rates = rates.with_disk(disk)
    in_engine = {gpu.device for gpu in machine.gpus if gpu.in_engine}
    addresses = {gpu.device: gpu.remote for gpu in machine.gpus}
    for name in devices:
        address = addresses.get(name)
        untimed = any(_still_counts(entry) for entry in rates.untimed_as(address or name))
        if name in in_engine and rates.on_device(name) is None and not untimed:
            found = _device(key, name, address, remotes, listener)
            rates = dataclasses.replace(rates, devices=(*rates.devices, *found))
    return rates


@cache
def _processor(key: str, threads: int, listener: Listener) -> Rates | None:
    known = bandwidth.load(key)
    if known is not None and _is_good(known):
        return known
    try:
        with _lock():
            known = bandwidth.load(key)  # another process may have measured meanwhile
            if known is None or not _is_good(known):
                listener.note("measuring this machine, once: some seconds")
                fresh = processor_rates(threads)
                if known is not None:
                    fresh = dataclasses.replace(
                        fresh, disk=known.disk, devices=known.devices, untimed=known.untimed
                    )
                known = fresh
                bandwidth.save(key, known)
    except (LocalmoeError, OSError, Timeout, ValueError) as error:
        listener.warn(f"no speeds, since this machine cannot be measured: {_reason(error)}")
    return known


def _is_good(rates: Rates) -> bool:
    """Whether they were measured on a quiet machine, or lately: not every command measures anew."""
    return rates.calm or _is_recent(rates.when)


def _is_recent(when: str) -> bool:
    now = datetime.datetime.now(datetime.UTC)
    try:
        return now - datetime.datetime.fromisoformat(when) < AGAIN
    except (ValueError, TypeError):
        return False


def _still_counts(failure: Untimed) -> bool:
    """Whether the device is not tried again; the worker at an address may be another by now."""
    return ":" not in failure.device or _is_recent(failure.when)


@cache
def _disk(key: str, place: Path, listener: Listener) -> DiskRate | None:
    """The rate of the disk that ``place``, a file or folder, is on; None: it cannot be measured.

    A large file there is read; without one, a file is written, but only in localmoe's folders.
    """
    where = bandwidth.disk_of(place)
    ours = [f for f in (storage.cache_dir(), storage.models_dir()) if bandwidth.disk_of(f) == where]
    try:
        with _lock():
            kept = bandwidth.load(key)
            if kept is not None and (known := kept.on_disk(where)):
                return known
            sample = _sample(where, place)
            if sample is None and not ours:
                return None
            found = (
                disk_rates.measure_file(sample) if sample else disk_rates.measure_folder(ours[0])
            )
            if kept is not None:
                bandwidth.save(key, kept.with_disk(found))
            return found
    except (LocalmoeError, OSError, Timeout) as error:
        listener.note(f"the disk cannot be measured: {_reason(error)}")
        return None


@cache
def _device(
    key: str, name: str, address: str | None, remotes: tuple[str, ...], listener: Listener
) -> tuple[DeviceRate, ...]:
    """The rates of a device, () if it cannot be timed: that is said and remembered.

    ``address``: of the worker that it belongs to, whose name may mean another machine next time.
    """
    try:
        with _lock():
            kept = bandwidth.load(key)
            try:
                rate = device_rate(name, remotes)
            except EngineCrashError as error:
                if kept is not None:
                    bandwidth.save(key, kept.with_untimed(_untimed(address or name, error)))
                raise
            if kept is not None and rate is not None and address is None:
                bandwidth.save(key, kept.with_device(rate))
            return () if rate is None else (rate,)
    except (LocalmoeError, OSError, Timeout, ValueError) as error:
        listener.note(f"the speed of {address or name} is not known: {_reason(error)}")
        return ()


def _untimed(device: str, error: EngineCrashError) -> Untimed:
    now = datetime.datetime.now(datetime.UTC)
    return Untimed(device, error.message, now.isoformat(timespec="seconds"))


def _lock() -> FileLock:
    """One process measures at a time: two at once would slow each other down."""
    return FileLock(storage.private_dir(storage.cache_dir()) / "rates.lock", timeout=PATIENCE)


def _place(model: Model) -> Path:
    """The model's first file; the Hub cache for one that is not downloaded yet."""
    return model.paths[0] if _is_whole(model.paths[0]) else catalog.hub_cache()


def _sample(where: str, place: Path) -> Path | None:
    """A large file to read on disk ``where``: ``place`` itself, else the largest model there."""
    paths = (place, *(model.path for model in catalog.installed_models()))
    here = [path for path in paths if bandwidth.disk_of(path) == where]
    sizes = {path: path.stat().st_size for path in here if _is_whole(path)}
    large = [path for path, size in sizes.items() if size >= disk_rates.SMALLEST]
    return place if place in large else max(large, key=lambda path: sizes[path], default=None)


def _is_whole(path: Path) -> bool:
    """Whether it is a file that has its bytes; a header from the Hub has a hole for the weights."""
    try:
        found = path.stat()
    except OSError:
        return False
    blocks = getattr(found, "st_blocks", None)
    return stat.S_ISREG(found.st_mode) and (blocks is None or blocks * 512 > found.st_size // 2)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, LocalmoeError) else reason_of(error)
