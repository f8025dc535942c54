"""What runs showed of speed: a bounded private file that survives damage and company."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from localmoe.facts import runs
from localmoe.facts.runs import Ran


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return tmp_path


def ran(number: float = 1.0, machine: str = "here") -> Ran:
    return Ran(machine, "model", "ram", number, None)


def test_runs_are_read_back_in_order_by_machine() -> None:
    """Those of another machine, in a home that two share, are not ours."""
    for run in (ran(1.0), ran(2.0, "there"), ran(3.0)):
        runs.add(run)
    assert runs.load("here") == [ran(1.0), ran(3.0)]
    assert runs.ratios(runs.load("here"), "decode") == [1.0, 3.0]
    assert runs.ratios(runs.load("here"), "prefill") == []
    assert runs.path().stat().st_mode & 0o777 == 0o600


def test_the_file_keeps_the_newest_and_what_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never has more lines than it may, and a damaged one costs itself alone."""
    monkeypatch.setattr(runs, "MOST", 5)
    for number in range(1, 10):
        runs.add(ran(float(number)))
    assert [run.decode for run in runs.load("here")] == [5, 6, 7, 8, 9]
    good = runs.path().read_bytes()
    bad = (
        b'{"machine": "here"}\nnonsense\n{"machine":"here","model":"m","regime":"r","decode":-1}\n'
    )
    runs.path().write_bytes(bad + good)
    assert [run.decode for run in runs.load("here")] == [5, 6, 7, 8, 9]


def test_several_that_end_at_once_lose_nothing() -> None:
    """Eight threads, each with two runs: sixteen lines."""

    def work() -> None:
        for _ in range(2):
            runs.add(ran())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs.load("here")) == 16
