"""What a machine does per second: memory, ggml's kernels, disk and devices, measured once and kept.

Decoding on a processor is bounded by memory or by ggml's own multiplication of a quantized matrix
with a vector, whichever is slower, and the second differs from type to type; so both are measured,
by the engine (``localmoe/engine/worker/kernel_timing.py``). This module has the records, their
JSON and the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe import kept, storage
from localmoe.facts.hardware import Machine

VERSION = 5  # of the way of measuring; rates of another version are measured anew
MAX_FILE = 1 << 20  # bytes; a real file has about 10 KB
MOST = 1e18  # no rate in a document may be larger
CALM = 0.1  # rates are kept for good when other programs took no more of the processors
MAX_POINTS = 64  # of a curve in a document

Curve = tuple[tuple[float, float], ...]
"""(x, value) with x ascending: a figure by number of threads, or by bytes of a request."""


def value_at(curve: Curve, x: float) -> float:
    """Linear between the points of a curve, constant beyond them. 0 without points."""
    if not curve:
        return 0.0
    before = curve[0]
    for point in curve:
        if x <= point[0]:
            if point[0] == before[0]:
                return point[1]
            share = (x - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


@dataclass(frozen=True, slots=True)
class TypeRate:
    """ggml's speed with weights of one type, read from memory; by number of threads."""

    vector: Curve  # bytes of weights per second, one token through several experts
    row: Curve  # bytes of weights per second, one token through one matrix
    dense: Curve  # weights × tokens per second, many tokens through one matrix
    experts: Curve  # weights × tokens per second, many tokens spread over several experts


@dataclass(frozen=True, slots=True)
class DiskRate:
    """How fast a file system is read."""

    where: str  # as ``disk_of`` names it
    reads: Curve  # bytes/s of direct reads, several at once, by bytes of one read
    cached: float  # bytes/s of reading a file in order into the page cache, as a load does


@dataclass(frozen=True, slots=True)
class DeviceRate:
    """How fast a GPU or a remote device is."""

    device: str  # the engine's name
    types: Mapping[str, TypeRate]  # by storage type; curves of one point
    node_s: float  # seconds per operation of a graph
    sync_s: float  # seconds of the smallest copy there and back
    to_device: float  # bytes/s
    from_device: float


@dataclass(frozen=True, slots=True)
class Untimed:
    """A device that crashed or hung while it was timed: no command waits for it again."""

    device: str  # the engine's name, or the address of a worker
    why: str
    when: str  # ISO date and time


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does, measured once in a few seconds. Curves by number of threads."""

    measured: bool  # False: taken over from elsewhere or estimated
    when: str  # ISO date and time, "" if unknown
    others: float  # share of the processors that other programs took while it was measured
    ram: Curve  # bytes/s that threads read together
    types: Mapping[str, TypeRate]  # by storage type ("Q4_K"), for the processor
    attention: Curve  # multiplications per second, one token against its cache (f16)
    attention_batch: Curve  # multiplications per second, many tokens at once against the cache
    scan: Curve  # elements of recurrent state × tokens per second (Mamba-2)
    delta: Curve  # elements of recurrent state × tokens per second (gated delta nets)
    node_s: Curve  # seconds per operation of a graph, beside what it computes
    disk: tuple[DiskRate, ...] = ()
    devices: tuple[DeviceRate, ...] = ()
    untimed: tuple[Untimed, ...] = ()

    @property
    def calm(self) -> bool:
        """Whether it was measured while nothing else ran: other figures are kept for some time."""
        return self.others <= CALM

    def on_disk(self, where: str) -> DiskRate | None:
        """The disk of that name."""
        return next((disk for disk in self.disk if disk.where == where), None)

    def with_disk(self, disk: DiskRate) -> Rates:
        """These rates with ``disk`` first in the list, where a forecast looks for it."""
        others = tuple(other for other in self.disk if other.where != disk.where)
        return dataclasses.replace(self, disk=(disk, *others))

    def with_device(self, device: DeviceRate) -> Rates:
        """These rates with those of ``device``."""
        others = tuple(other for other in self.devices if other.device != device.device)
        return dataclasses.replace(self, devices=(*others, device))

    def with_untimed(self, failure: Untimed) -> Rates:
        """These rates with the word that a device cannot be timed."""
        others = tuple(other for other in self.untimed if other.device != failure.device)
        return dataclasses.replace(self, untimed=(*others, failure))

    def untimed_as(self, device: str) -> tuple[Untimed, ...]:
        """Why the device of that name or address was not timed."""
        return tuple(failure for failure in self.untimed if failure.device == device)

    def on_device(self, name: str) -> DeviceRate | None:
        """The device of that name."""
        return next((device for device in self.devices if device.device == name), None)


def disk_of(path: Path) -> str:
    """The name of the file system that ``path`` is on, or will be; "" where that is unknown."""
    for place in (path, *path.absolute().parents):
        try:
            return str(place.stat().st_dev)
        except OSError:
            continue
    return ""


def key_of(machine: Machine, engine: str) -> str:
    """A name for this machine with this ``engine`` version, for which measured rates hold.

    The size of its memory is left out: ``--ram`` plans with another, and that is no reason to
    measure anew.
    """
    told = (
        VERSION,
        machine.os,
        machine.cpu,
        machine.cores_physical,
        machine.cores_logical,
        platform.release(),
        engine,
    )
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:20]


def path_of_rates() -> Path:
    """The file in which measured rates are kept."""
    return storage.cache_dir() / "rates.json"


def load(key: str) -> Rates | None:
    """The rates measured for ``key``; None when there are none, or the file cannot be read."""
    try:
        with path_of_rates().open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        document = kept.parse(raw) if len(raw) <= MAX_FILE else {}
        return from_json(document["rates"]) if document["key"] == key else None
    except (OSError, *kept.DAMAGED):
        return None


def forget() -> None:
    """Remove what was measured: the next command that needs it measures anew."""
    path_of_rates().unlink(missing_ok=True)


def save(key: str, rates: Rates) -> None:
    """Keeps ``rates`` in a private file, written whole or not at all. Raises StorageError."""
    document = {"key": key, "rates": to_json(rates)}
    storage.atomic_write(path_of_rates(), json.dumps(document, separators=(",", ":")))


def to_json(rates: Rates) -> dict[str, Any]:
    """The document that ``doctor --json`` has."""
    return dataclasses.asdict(rates)


def from_json(document: Any) -> Rates:
    """The inverse of ``to_json``; the document may come from another machine.

    Raises one of ``kept.DAMAGED`` for any other document.
    """
    return Rates(
        measured=bool(document["measured"]),
        when=str(document["when"])[:40],
        others=_share(document["others"]),
        ram=_curve(document["ram"]),
        types=_types(document["types"]),
        attention=_curve(document["attention"]),
        attention_batch=_curve(document["attention_batch"]),
        scan=_curve(document["scan"]),
        delta=_curve(document["delta"]),
        node_s=_curve(document["node_s"]),
        disk=tuple(
            DiskRate(str(disk["where"])[:80], _curve(disk["reads"]), _number(disk["cached"]))
            for disk in document["disk"]
        ),
        devices=devices_from_json(document["devices"]),
        untimed=tuple(
            Untimed(*(kept.text(entry[name], 400) for name in ("device", "why", "when")))
            for entry in document.get("untimed", ())
        ),
    )


def devices_from_json(document: Any) -> tuple[DeviceRate, ...]:
    """``Rates.devices`` from its part of the document. Raises what ``from_json`` does."""
    return tuple(
        DeviceRate(
            device=str(device["device"])[:80],
            types=_types(device["types"]),
            node_s=_number(device["node_s"]),
            sync_s=_number(device["sync_s"]),
            to_device=_number(device["to_device"]),
            from_device=_number(device["from_device"]),
        )
        for device in document
    )


def _types(document: Any) -> dict[str, TypeRate]:
    return {
        str(name)[:20]: TypeRate(
            *(_curve(rate[name]) for name in ("vector", "row", "dense", "experts"))
        )
        for name, rate in document.items()
    }


def _curve(points: Any) -> Curve:
    curve = tuple((_number(x), _number(y)) for x, y in points)
    if not 1 <= len(curve) <= MAX_POINTS or list(curve) != sorted(curve):
        raise ValueError("no curve")
    return curve


def _share(value: Any) -> float:
    return min(max(kept.number(value), 0.0), 1.0)


def _number(value: Any) -> float:
    """A positive number. Raises one of ``kept.DAMAGED`` for anything else."""
    number = kept.number(value)
    if not 0 < number < MOST:
        raise ValueError(value)
    return number
