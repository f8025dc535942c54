"""A machine as a JSON document: written by ``doctor --json``, read by ``--machine``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localmoe import kept
from localmoe.errors import UsageError
from localmoe.facts import bandwidth
from localmoe.facts.bandwidth import Rates
from localmoe.facts.hardware import Gpu, Machine
from localmoe.schema import SCHEMA_VERSION
from localmoe.text import clean_line, shortened

FILE_LIMIT = 1 << 20  # bytes; a real one has about 2 KB
MOST = 1 << 60  # the largest number that is accepted, of bytes or of anything else


def read_machine(path: Path) -> Machine:
    """The machine that ``doctor --json`` described in a file. Raises UsageError."""
    return machine_of(_document(path), f"--machine {path}")


def read_rates(path: Path) -> Rates | None:
    """The rates of that machine (bytes/s); None if the file has none, or cannot be read."""
    try:
        document = _document(path)
        return bandwidth.from_json(document.get("machine", document)["rates"])
    except (UsageError, *kept.DAMAGED):
        return None


def read_key(path: Path) -> str:
    """The key of that machine's rates; "" if the file has none, or cannot be read."""
    try:
        document = _document(path)
        return kept.text(document.get("machine", document)["key"], 80)
    except (UsageError, AttributeError, *kept.DAMAGED):
        return ""


def _document(path: Path) -> Any:
    hint = "write one with `localmoe doctor --json > machine.json` on that machine"
    try:
        with path.open("rb") as file:
            text = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"--machine {path}: {error.strerror}", hint=hint) from error
    if len(text) > FILE_LIMIT:
        raise UsageError(f"--machine {path}: larger than any machine document", hint=hint)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--machine {path} is not JSON", hint=hint) from error


def machine_document(machine: Machine) -> dict[str, object]:
    """The ``machine`` of ``doctor --json``, which ``--machine`` reads."""
    return asdict(machine)


def machine_of(document: object, source: str) -> Machine:
    """A machine from ``doctor --json`` (or the ``machine`` of ``fit --json``).

    A field that is missing gets a neutral value. Raises UsageError, its message naming ``source``.
    """
    if isinstance(document, Mapping):
        _require_known_schema(document, source)
    body = document.get("machine", document) if isinstance(document, Mapping) else None
    if not isinstance(body, Mapping) or "ram_total" not in body:
        raise UsageError(
            f"{source} describes no machine",
            hint="write one with `localmoe doctor --json > machine.json` on that machine",
        )
    read = _Reader(body, source)
    gpus = body.get("gpus", [])
    if not isinstance(gpus, list) or not all(isinstance(gpu, Mapping) for gpu in gpus):
        raise read.wrong("gpus", "a list of objects")
    total = read.whole("ram_total")
    return Machine(
        os=read.text("os", "unknown"),
        cpu=read.text("cpu", "unknown"),
        cores_physical=read.whole("cores_physical", 1),
        cores_logical=read.whole("cores_logical", 1),
        ram_total=total,
        ram_available=read.free_of("ram_available", total),
        ram_limited_by=read.text("ram_limited_by", "") or None,
        gpus=tuple(_gpu(_Reader(gpu, f"{source}: gpus[{i}]"), i) for i, gpu in enumerate(gpus)),
        disk_free=read.whole("disk_free", 0),
        disk_read_bandwidth=read.number_or_none("disk_read_bandwidth"),
        mappings=read.whole("mappings", 0) or None,
        swap_total=read.whole("swap_total", 0),
    )


def _require_known_schema(document: Mapping[str, object], source: str) -> None:
    """Raises UsageError for a document of another schema: its fields may mean something else.

    One without a version was written by hand, and counts as ours.
    """
    version = document.get("schema_version", SCHEMA_VERSION)
    if type(version) is int and version == SCHEMA_VERSION:
        return
    hint = "write it anew with `localmoe doctor --json > machine.json` of this version"
    if type(version) is int and version > SCHEMA_VERSION:
        hint = "a newer localmoe wrote it: update this one"
    shown = shortened(clean_line(repr(version)), 40)
    raise UsageError(
        f"{source}: schema_version is {shown}, and this localmoe reads {SCHEMA_VERSION}", hint=hint
    )


def _gpu(read: _Reader, number: int) -> Gpu:
    """GPU ``number`` of the document; one in the engine that has no device name is called GPU0 …"""
    total = read.whole("total")
    in_engine = read.flag("in_engine", True)
    return Gpu(
        name=read.text("name", "GPU"),
        total=total,
        free=read.free_of("free", total),
        in_engine=in_engine,
        device=read.text("device", f"GPU{number}" if in_engine else "") or None,
        backend=read.text("backend", "") or None,
        unified=read.flag("unified", False),
    )


class _Reader:
    """Typed fields of a JSON object that a person may have edited; null counts as missing."""

    def __init__(self, body: Mapping[str, object], source: str) -> None:
        self.body = body
        self.source = source

    def wrong(self, key: str, wanted: str) -> UsageError:
        shown = shortened(repr(self.body.get(key)), 40)
        return UsageError(f"{self.source}: {key} is {shown}, not {wanted}")

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise self.wrong(key, f"a whole number from 0 to {MOST}")
        return value

    def free_of(self, key: str, total: int) -> int:
        """The free bytes out of ``total``; all of them if the field is missing."""
        value = self.whole(key, total)
        if value > total:
            raise self.wrong(key, f"at most the total, {total}")
        return value

    def number_or_none(self, key: str) -> float | None:
        value = self.body.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise self.wrong(key, f"a number from 0 to {MOST}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def _get(self, key: str, default: object) -> object:
        value = self.body.get(key)
        return default if value is None else value
