"""``localmoe bench``: real runs of generated models by the real command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.facts.model import read_model
from localmoe.routing.trace import DECODE, PREFILL, TraceHeader, TraceWriter
from tests.cli.chat.terminal import Terminal
from tests.cli.command import Localmoe

pytestmark = pytest.mark.process

FAST = ("-n", "6", "--prompt-tokens", "12", "--runs", "1", "-t", "1")


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe")


def document(localmoe: Localmoe, *arguments: str | Path, code: int = 0) -> Any:
    done = localmoe("bench", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_document(localmoe: Localmoe, model: Path) -> None:
    """Every regime has the figures of the contract, and its ratio to plain mapping."""
    found = document(localmoe, model, *FAST, "--memory", "1")
    assert [run["regime"] for run in found["runs"]] == ["plain", "page", "private", "auto"]
    for run in found["runs"]:
        assert run["memory"] == 1 << 30
        assert run["errors"] == []
        assert run["decode_tps"]["low"] <= run["decode_tps"]["median"] <= run["decode_tps"]["high"]
        for name in ("prefill_tps", "ttft_s", "load_s", "disk_bandwidth", "of_own_bound"):
            assert run[name]["median"] > 0
        assert run["anonymous_peak"] > 0
    assert 0 <= found["runs"][2]["hit_rate"]["median"] <= 1
    (ratios,) = found["ratios"].values()
    assert set(ratios) == {"page", "private", "auto"}


def test_screen(localmoe: Localmoe, model: Path) -> None:
    """A table per limit on stdout, progress on stderr."""
    done = localmoe("bench", model, *FAST, "--memory", "1,2", "--regimes", "plain,page")
    assert done.returncode == 0
    assert done.stdout.count("regime ") == 2
    assert "memory 1.0 GiB" in done.stdout and "memory 2.0 GiB" in done.stdout
    assert done.stderr.count("tok/s") == len(done.stderr.splitlines()) >= 4


def test_a_terminal_shows_what_runs_and_what_is_left(model: Path, tmp_path: Path) -> None:
    """One line that goes away; the time left is known from the second run on."""
    bench = ("-m", "localmoe", "bench", str(model), *FAST, "--regimes", "plain,page", "--tune", "0")
    terminal = Terminal(tmp_path, *bench, columns=160)
    assert terminal.exit_code() == 0
    assert ": running\x1b" in terminal.raw and " left\x1b" in terminal.raw
    assert "running" not in terminal.text and "first token after" in terminal.text


def sweep(localmoe: Localmoe, *arguments: str | Path, code: int = 0) -> Any:
    """The document of ``scripts/bench_sweep.py``, which has more options than the command."""
    done = localmoe.script("bench_sweep.py", *arguments, "--json")
    assert done.returncode == code, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def test_goes_on_from_its_log(localmoe: Localmoe, model: Path, tmp_path: Path) -> None:
    """Pieces of a measurement add up: no run is made twice, and the last piece knows all."""
    log = tmp_path / "runs.jsonl"
    wanted = (model, *FAST, "--regimes", "plain,page", "--sweep", "--memory", "1,2", "--log", log)
    first = sweep(localmoe, *wanted, "--at-most", "2")
    assert first["to_do"] == 3  # of five: everything in RAM, and two regimes under two limits
    assert first["advice"] is None  # not at the end yet
    kept = log.read_text()
    assert len(kept.splitlines()) == 2
    rest = document(localmoe, *wanted)
    assert rest["to_do"] == 0 and len(rest["runs"]) == 4
    assert all(run["runs"] == 1 for run in rest["runs"])
    assert log.read_text().startswith(kept)
    done = log.read_text()
    assert document(localmoe, *wanted)["runs"] == rest["runs"]
    assert log.read_text() == done
    other = sweep(localmoe, *wanted, "--ctx", "4096", "--at-most", "0")
    assert other["to_do"] == 5  # another context is another measurement


def test_plain_mapping_may_write_less(localmoe: Localmoe, model: Path) -> None:
    """What all regimes made is compared; the others go on to their end."""
    found = sweep(
        localmoe, "--plain-tokens", "3", model, *FAST, "--regimes", "plain,off", "--tune", "0"
    )
    assert [run["steps"] for run in found["runs"]] == [3, 6]
    assert found["shared_window"] == 3


def test_imposed_routing(localmoe: Localmoe, model: Path, tmp_path: Path) -> None:
    """One expert all the time: after the prompt nothing is missed, in any regime."""
    header = TraceHeader.of_model(read_model(model), weights=False)
    path = tmp_path / "always.trace"
    with TraceWriter(path, header) as writer:
        for n, phase in ((12, PREFILL), *((1, DECODE),) * 6):
            ids = [np.tile(np.arange(layer.used), (n, 1)) for layer in header.layers]
            writer.append(phase, ids)
    found = document(localmoe, model, "--runs", "1", "-t", "1", "--replay", path)
    assert [run["steps"] for run in found["runs"]] == [6] * 4
    assert found["runs"][2]["hit_rate"]["median"] == 1.0
    predicted = sweep(
        localmoe, model, "--runs", "1", "-t", "1", "--replay", path, "--regimes", "private",
        "--predicted", "1",
    )  # fmt: skip
    assert predicted["runs"][0]["hit_rate"]["median"] == 1.0
    refused = sweep(localmoe, model, "--predicted", "0.9", code=2)
    assert "--replay" in refused["error"]["hint"]
    for run in found["runs"]:
        assert run["first_token_over_reading"]["median"] > 0
        assert run["of_stretch_bound"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--regimes", "plain,fast"), "no regime fast"),
        (("--memory", "0.4y"), "0.4y"),
        (("--memory", "0x"), "0x"),
        (("--memory", "5MiB"), "a share such as 0.4x"),
        (("--runs", "0"), "0"),
        (("--replay", "no-such.trace"), "no-such.trace"),
        (("--at-most", "1"), "no option"),
        (("--temp", "0"), "bench takes no --temp"),
    ],
)
def test_wrong_options(
    localmoe: Localmoe, model: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Refused before anything runs, by what was typed."""
    done = localmoe("bench", model, *arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "tok/s" not in done.stderr


def test_too_little_memory(localmoe: Localmoe, model: Path) -> None:
    """A limit under which nothing runs is refused as what does not fit."""
    done = localmoe("bench", model, *FAST, "--memory", "0.01")
    assert done.returncode == 3
    assert "greater --memory" in done.stderr
