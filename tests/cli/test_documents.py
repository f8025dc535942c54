"""A machine survives the way through ``doctor --json`` and ``--machine``."""

from __future__ import annotations

import json

import pytest

from localmoe.app.documents import machine_summary
from localmoe.app.machine_file import machine_document, machine_of
from localmoe.errors import UsageError
from localmoe.facts.hardware import Gpu, Machine

GIB = 1 << 30
GAMING_PC = Machine(
    os="Linux",
    cpu="some processor",
    cores_physical=8,
    cores_logical=16,
    ram_total=32 * GIB,
    ram_available=24 * GIB,
    ram_limited_by=None,
    gpus=(Gpu("RTX 4060", 8 * GIB, 7 * GIB, True, "CUDA0", "cuda"),),
    disk_free=100 * GIB,
    disk_read_bandwidth=3.1e9,
)


def test_machine_round_trip() -> None:
    """What ``doctor`` writes is what ``--machine`` reads."""
    text = json.dumps({"schema_version": 1, "machine": machine_document(GAMING_PC)})
    assert machine_of(json.loads(text), "m.json") == GAMING_PC


def test_the_machine_of_fit_is_enough() -> None:
    """The short machine in ``fit --json`` can be planned for, too."""
    text = json.dumps({"machine": machine_summary(GAMING_PC)})
    machine = machine_of(json.loads(text), "m.json")
    assert (machine.ram_total, machine.ram_available) == (32 * GIB, 24 * GIB)
    (gpu,) = machine.gpus
    assert (gpu.total, gpu.device) == (8 * GIB, "GPU0")


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "text",
        {},
        {"machine": None},
        {"machine": {"ram_total": "32"}},
        {"machine": {"ram_total": -1}},
        {"machine": {"ram_total": True}},
        {"machine": {"ram_total": 1, "gpus": {}}},
        {"machine": {"ram_total": 1, "gpus": [1]}},
        {"machine": {"ram_total": 1, "gpus": [{"name": 3, "total": 1}]}},
        {"machine": {"ram_total": 1, "disk_read_bandwidth": "fast"}},
        {"machine": {"ram_total": 1, "disk_read_bandwidth": float("inf")}},
        {"machine": {"ram_total": 1, "ram_available": 2}},
        {"machine": {"ram_total": 10**30}},
        {"machine": {"ram_total": 1, "gpus": [{"total": 1, "free": 2}]}},
    ],
)
def test_other_documents_are_refused(document: object) -> None:
    """A usage error that names the file, whatever the JSON was."""
    with pytest.raises(UsageError, match=r"m\.json"):
        machine_of(document, "m.json")


@pytest.mark.parametrize("version", [0, 2, 99, -1, "1", 1.0, True, None, [1]])
def test_a_machine_of_another_schema_is_refused(version: object) -> None:
    """Its fields may mean something else; the version that is read is named, and what to do."""
    document = {"schema_version": version, "machine": machine_document(GAMING_PC)}
    with pytest.raises(
        UsageError, match=r"m\.json: schema_version is .*localmoe reads 1"
    ) as caught:
        machine_of(document, "m.json")
    assert ("update" in str(caught.value.hint)) == (version in (2, 99))


def test_a_machine_written_by_hand_needs_no_version() -> None:
    assert machine_of({"ram_total": GIB}, "m.json").ram_total == GIB
