"""The page regime without the native helper."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, Request, Sampling, Token
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests import rates

pytestmark = pytest.mark.process

BASE = EngineSettings(context=256, batch=16, ubatch=16, threads=1, threads_batch=1)
PROMPT = "A mixture of experts has many small networks and a router. "


def answer(path: Path, settings: EngineSettings) -> tuple[Loaded, str]:
    """What was loaded, and a greedy answer of 12 tokens."""
    with Engine(read_model(path), settings, remember=False) as engine:
        *_, loaded = engine.load()
        assert isinstance(loaded, Loaded)
        request = Request(PROMPT, max_tokens=12, sampling=Sampling(temperature=0), ignore_end=True)
        events = list(engine.generate(request))
    done = events[-1]
    assert isinstance(done, Finished) and done.completion_tokens == 12
    return loaded, "".join(event.text for event in events if isinstance(event, Token))


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "deepseek4", "llama4"])
@pytest.mark.parametrize("wish", ["page", "private"])
def test_without_the_helper_experts_come_through_the_page_cache(
    architecture: str,
    wish: str,
    arch_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever regime was planned: it says so, and the answer is that of plain llama.cpp."""
    monkeypatch.setenv("LOCALMOE_NO_NATIVE", "1")
    path = arch_file(architecture)
    plain, expected = answer(path, BASE)
    cached, text = answer(path, dataclasses.replace(BASE, cache=wish, cache_bytes=1 << 30))
    assert (plain.cache, cached.cache) == ("off", "page")
    assert "native helper" in cached.note
    assert text == expected != ""


def test_a_line_says_why_the_experts_are_served_otherwise(tmp_path: Path) -> None:
    """Asked for private memory without the helper, ``run`` answers, and says what it does."""
    home = tmp_path / "home"
    rates.seed(home)
    environment = {k: v for k, v in os.environ.items() if "XDG" not in k}
    command = "run nano hello --cache private --cache-ram 0.05 -n 4 -t 1 --no-history"
    done = subprocess.run(
        [sys.executable, "-m", "localmoe", *command.split()],
        env=environment | {"HOME": str(home), "LOCALMOE_NO_NATIVE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip()
    (line,) = [line for line in done.stderr.splitlines() if "warning" in line]
    assert "experts are read through the page cache: the native helper was not built" in line
