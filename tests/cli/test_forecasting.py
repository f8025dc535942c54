"""Forecasts from end to end: measured once, carried to other machines, and taught by real runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, Localmoe, environment
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process


def test_a_machine_is_measured_once_even_by_two_at_a_time(tmp_path: Path) -> None:
    """Two commands started together on a machine that nobody measured: one does, both answer.

    ``doctor --json`` then has the figures at once, and a plan for that file has a speed; without
    them in it, none.
    """
    env = environment(tmp_path)
    kept = tmp_path / ".cache" / "localmoe" / "rates.json"
    kept.unlink()
    started = [
        subprocess.Popen(
            [*COMMAND, "fit", "nano", "--json"],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=PATIENCE) for process in started]
    assert "".join(err for _, err in ended).count("measuring this machine") == 1
    told = [json.loads(out)["files"][0]["decode_tps"] for out, _ in ended]
    assert all(figures["expected"] > 1 for figures in told)

    localmoe = Localmoe(tmp_path)
    before = kept.read_bytes()
    machine = localmoe.document("doctor")["machine"]
    assert machine["rates"]["types"]["Q4_K"]["vector"]
    assert json.loads(kept.read_bytes())["rates"]["ram"] == json.loads(before)["rates"]["ram"]
    (tmp_path / "machine.json").write_text(json.dumps({"machine": machine}))
    plan = localmoe.document("plan", "nano", "--machine", "machine.json")
    assert plan["decode_tps"]["expected"] > 1
    del machine["rates"]
    (tmp_path / "machine.json").write_text(json.dumps({"machine": machine}))
    assert localmoe.document("plan", "nano", "--machine", "machine.json")["decode_tps"] is None


def test_a_run_teaches_the_next_forecast(localmoe: Localmoe) -> None:
    """After one answer the forecast is that answer's speed; ``--no-history`` teaches nothing.

    The invented machine of the tests is nothing like this one, so the forecast has far to move.
    """
    kept = localmoe.home / ".local" / "state" / "localmoe" / "speeds.jsonl"
    run = ("run", "-m", "nano", "Tell me all about experts.", "-n", "40", "--temp", "0")
    localmoe.document(*run, "--no-history")
    assert not kept.exists()
    before = localmoe.document("plan", "nano")["decode_tps"]
    real = localmoe.document(*run)["timings"]["decode_tps"]
    (line,) = map(json.loads, kept.read_text().splitlines())
    assert "nano" in line["model"] and line["decode"] is not None
    after = localmoe.document("plan", "nano")["decode_tps"]
    if 0.25 < line["decode"] < 4:  # else it counts as disturbed
        assert abs(after["expected"] / real - 1) < abs(before["expected"] / real - 1) + 0.1
        assert after["high"] / after["low"] < 1.02 * before["high"] / before["low"]  # rounded
