"""The table and the plot of a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench_report import main, plot, table


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.9, "high": median * 1.1}


def run(regime: str, memory: int | None, tps: float | None, **facts: Any) -> dict[str, Any]:
    names = (
        "of_own_bound",
        "of_stretch_bound",
        "first_token_s",
        "first_token_over_reading",
        "prefill_tps",
        "hit_rate",
        "bytes_read_per_token",
    )
    speed = None if tps is None else spread(tps)
    return {
        "regime": regime,
        "memory": memory,
        "decode_tps": speed,
        "shared_window_tps": speed,
        "ran": [],
        "errors": [],
        "anonymous_peak": 1 << 20,
        "locked_peak": 0,
        "planned": 2 << 20,
        **dict.fromkeys(names),
        **facts,
    }


DOCUMENT = {
    "model": "invented",
    "size": 1000,
    "shared_window": 32,
    "resident_tps": 10.0,
    "runs": [
        run("plain", 400, 0.25),
        run("auto", 400, 5.0, ran=["private"], hit_rate=spread(0.8)),
        run("plain", 1200, 9.0),
        run("auto", 1200, None, errors=["killed"], ran=["off"]),
    ],
}


def test_table() -> None:
    """A row per regime and limit, its speed against the plain one under the same limit."""
    lines = table(DOCUMENT).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(cells[0]) for row in cells)
    assert cells[0][3] == "first 32 steps"
    assert cells[2][:3] == ["0.40 ×", "plain", "0.25 (0.23–0.28)"]
    assert cells[3][:2] == ["0.40 ×", "auto (private)"]
    assert [row[4] for row in cells[2:6]] == ["1.0", "20.0", "1.0", "–"]
    assert cells[5][1] == "auto (resident)"
    assert "killed" in cells[6][1]


def test_files_beside_the_document(tmp_path: Path) -> None:
    """The table is written next to what it was made of; another file is refused."""
    path = tmp_path / "invented.json"
    path.write_text(json.dumps(DOCUMENT))
    assert main([str(path), "--no-plot"]) == 0
    assert (tmp_path / "invented.md").read_text() == table(DOCUMENT)
    path.write_text("{}")
    assert main([str(path), "--no-plot"]) == 1


def test_plot(tmp_path: Path) -> None:
    """Both kinds of picture, with what has no figure left out."""
    pytest.importorskip("matplotlib")
    paths = [tmp_path / "plot.png", tmp_path / "plot.svg"]
    plot(DOCUMENT, paths)
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[1].read_text()
