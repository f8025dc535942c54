"""Load: many commands at the same time, in one home folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.chat import templates
from tests.cli.chat.test_real import Running
from tests.cli.command import environment
from tests.soak.conftest import Figures

pytestmark = pytest.mark.soak
AT_ONCE = 6


def test_commands_at_once(
    tmp_path: Path,
    arch_file: Callable[..., Path],
    under_way: Callable[[], bool],
    figures: Figures,
) -> None:
    """Six commands at any time in one home: each does its work, and nothing is left behind."""
    model = str(arch_file("qwen3moe", template=templates.CHATML))
    environment(tmp_path)  # speeds count as measured
    answer = ("run", "-q", "-m", model, "--temp", "0", "-n", "12", "hello")
    commands = (answer, answer, ("fit", model), ("list",), ("config",), ("plan", model))
    expected = _output(tmp_path, *answer)
    done = dict.fromkeys(("answers", "other commands"), 0)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while under_way():
            command = rng.choice(commands)
            said = _output(tmp_path, *command)
            if command == answer:
                assert said == expected
            done["answers" if command == answer else "other commands"] += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, range(AT_ONCE)))
    figures |= done
    promises = tmp_path / ".local/state/localmoe/promises"
    assert not promises.exists() or not list(promises.iterdir())
    assert not [child for child in psutil.Process().children() if "localmoe" in child.cmdline()]


def _output(home: Path, *command: str) -> str:
    running = Running(home, *command)
    assert running.process.stdin is not None
    running.process.stdin.close()
    running.process.stdin = None
    code, out, err = running.end()
    assert code == 0, err
    return out
