"""While a model is loaded, whoever plans another one plans around its memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe import ledger
from localmoe.engine.client import Engine
from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings

pytestmark = pytest.mark.process

GIB = 1 << 30
ASK = "from localmoe import ledger; print(sum(p.outstanding_ram for p in ledger.promises()))"
SETTINGS = EngineSettings(context=512, threads=1)


@pytest.fixture
def model(
    arch_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Model:
    """With a ledger of its own."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return read_model(arch_file("qwen3moe"))


def others_see() -> int:
    """Bytes that another process believes to be promised."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return int(done.stdout)


def promised() -> int:
    """The same in this process."""
    return sum(promise.outstanding_ram for promise in ledger.promises())


def test_a_loaded_engine_promises_and_a_closed_one_does_not(model: Model) -> None:
    """From load to close, less what it holds already; again after it was closed and loaded anew."""
    engine = Engine(model, SETTINGS, promised_ram=3 * GIB)
    assert others_see() == 0
    for _ in range(2):
        list(engine.load())
        assert 2 * GIB < others_see() < 3 * GIB
        engine.close()
        assert others_see() == 0


def test_two_models_of_one_process_count_each_other(model: Model) -> None:
    """Each has its own worker, so what one holds is not taken off the other's promise."""
    with Engine(model, SETTINGS, promised_ram=3 * GIB) as first:
        list(first.load())
        with Engine(model, SETTINGS, promised_ram=5 * GIB) as second:
            second.promise()
            assert 7 * GIB < promised() < 8 * GIB
        assert 2 * GIB < promised() < 3 * GIB


def test_a_dead_worker_holds_no_memory_back(model: Model, own_children: None) -> None:
    """Until it is started again, its memory is free for others."""
    with Engine(model, SETTINGS, promised_ram=3 * GIB) as engine:
        list(engine.load())
        os.kill(engine.pid, signal.SIGKILL)
        os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)
        assert promised() == 0
        list(engine.load())
        assert 2 * GIB < promised() < 3 * GIB
