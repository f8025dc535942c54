"""How long the soak tests go on, and the page of what they found: see scripts/soak.sh."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

Figures = dict[str, int]
"""What a test counted: the words for it → the figure."""

ROOT = Path(__file__).parents[2]
_HEAD = """\
# What long runs found

Written by `scripts/soak.sh` on {day}: commit {commit}, {cores} cores, {memory:.0f} GiB of memory,
{system}, Python {python}. Each row is a test that repeats what a person, a crash or a bad file
does, with other values each time; the first time that something goes wrong ends it. Those of
`tests/soak` had {minutes:g} minutes together, those of `tests/server` as long as they took.

| claim | time | counted | result |
|---|--:|---|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-minutes", type=float, default=5.0, help="of all soak tests together")
    parser.addoption("--soak-seed", type=int, default=20, help="of what is invented at random")
    parser.addoption("--soak-page", type=Path, help="where to write a page of the results")


@pytest.fixture
def under_way(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether this test shall go on: those that ask have equal shares of the minutes."""
    minutes = float(request.config.getoption("--soak-minutes"))
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    shares = sum("under_way" in item.fixturenames for item in items)
    end = time.monotonic() + 60 * minutes / shares
    return lambda: time.monotonic() < end


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """For what the test counts; on the page when it ends, however it ends."""
    counted: Figures = {}
    record_property("figures", counted)
    return counted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The reports know the claim, which is the first line of the test's docstring."""
    for item in items:
        text = getattr(getattr(item, "function", None), "__doc__", None) or item.name
        item.user_properties.append(("claim", text.strip().splitlines()[0]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Writes the page, if it is wanted."""
    page: Path | None = config.getoption("--soak-page")
    if page is None:
        return
    reports = [
        report
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call" or outcome != "passed"
    ]
    rows = [_row(report) for report in reports]
    page.write_text(_head(config) + "".join(rows), encoding="utf-8")


def _row(report: Any) -> str:
    known = dict(report.user_properties)
    claim, figures = known.get("claim", report.nodeid), known.get("figures", {})
    counted = ", ".join(f"{_number(value)} {name}" for name, value in figures.items())
    cells = (claim, f"{report.duration:.0f} s", counted or "–", report.outcome)
    return f"| {' | '.join(cells)} |\n"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _head(config: pytest.Config) -> str:
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    return _HEAD.format(
        minutes=config.getoption("--soak-minutes"),
        day=datetime.date.today().isoformat(),
        commit=commit or "unknown",
        cores=os.cpu_count(),
        memory=psutil.virtual_memory().total / (1 << 30),
        system=platform.system(),
        python=platform.python_version(),
    )
