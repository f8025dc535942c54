"""What was measured of a machine: kept, read back, and refused where it is something else."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localmoe.facts import bandwidth, disk_rates
from localmoe.facts.bandwidth import value_at
from localmoe.facts.disk import Span, measure_reads
from tests.planning.rates import RATES


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return tmp_path


def test_a_curve_is_linear_between_its_points_and_flat_beyond() -> None:
    """2 threads measured at 10 and 4 at 16: 3 have 13, 8 have 16, 1 has 10."""
    curve = ((2.0, 10.0), (4.0, 16.0))
    assert [value_at(curve, n) for n in (1, 2, 3, 4, 8)] == [10, 10, 13, 16, 16]
    assert value_at((), 3) == 0


def test_what_is_kept_is_read_back_the_same_by_its_key_alone(home: Path) -> None:
    """Saved, loaded: equal in every figure. Another key, another file's content: nothing."""
    bandwidth.save("this", RATES)
    assert bandwidth.load("this") == RATES
    assert bandwidth.load("that") is None
    path = bandwidth.path_of_rates()
    assert path.is_relative_to(home) and path.stat().st_mode & 0o777 == 0o600
    for damaged in (b"", b"[]", b"{", path.read_bytes()[:-40], b"[" * 100_000):
        path.write_bytes(damaged)
        assert bandwidth.load("this") is None


def _set(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Change one entry of a document, "types.Q8_0.vector"."""

    def change(document: Any) -> None:
        *path, last = place.split(".")
        for step in path:
            document = document[int(step)] if step.isdigit() else document[step]
        document[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("ram", []),
        _set("ram", [[1, 0]]),
        _set("ram", [[1, float("inf")]]),
        _set("ram", [[1, -5]]),
        _set("ram", [[2, 5], [1, 5]]),
        _set("ram", [[1, "fast"]]),
        _set("ram", [[i, 1] for i in range(1, 1000)]),
        _set("types", []),
        _set("types.Q8_0.vector", [[1, True]]),
        _set("disk", {"a": 1}),
        _set("disk.0.cached", None),
        _set("node_s", 3),
    ],
)
def test_a_document_that_is_no_machine_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    """Zero, infinite, negative, unordered or endless figures never become rates."""
    document = json.loads(json.dumps(bandwidth.to_json(RATES)))
    assert bandwidth.from_json(document) == RATES
    other = copy.deepcopy(document)
    change(other)
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        bandwidth.from_json(other)


def test_the_disk_of_a_path_is_that_of_its_nearest_folder(tmp_path: Path) -> None:
    """A folder that does not exist yet lies where its parent is."""
    assert bandwidth.disk_of(tmp_path / "not" / "yet") == bandwidth.disk_of(tmp_path) != ""


def test_a_folder_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    """Every size that is asked for has a speed, within a factor 20 of a plain read of the disk.

    Nothing remains of the file that was written for it.
    """
    rate = disk_rates.measure_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [size for size, _ in rate.reads] == list(disk_rates.SIZES)
    path = tmp_path / "file"
    path.write_bytes(os.urandom(32 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    plain = measure_reads([Span(path, at, 4 << 20) for at in range(0, 32 << 20, 4 << 20)])
    assert plain / 20 < rate.reads[-1][1] < plain * 20
    assert 1e6 < rate.cached < 1e12
