"""While a model is loaded, other localmoe processes plan around its memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings

GIB = 1 << 30
ASK = "from localmoe import ledger; print(sum(p.outstanding_ram for p in ledger.promises()))"


def others_see() -> int:
    """Bytes that another process believes to be promised."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_loaded_engine_promises_and_a_closed_one_does_not(
    arch_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From load to close, less what it holds already; again after it was closed and loaded anew."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    settings = EngineSettings(context=512, threads=1)
    engine = Engine(read_model(arch_file("qwen3moe")), settings, promised_ram=3 * GIB)
    assert others_see() == 0
    for _ in range(2):
        list(engine.load())
        assert 2 * GIB < others_see() < 3 * GIB
        engine.close()
        assert others_see() == 0
