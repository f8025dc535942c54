"""The engine counts how its experts are used, and the model's profile grows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling
from localmoe.engine.worker.usage import load_of
from localmoe.facts.catalog import resolve
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from localmoe.routing import profile
from localmoe.routing.trace import read_trace
from tests.routing.traces import profile_of

pytestmark = pytest.mark.process

BASE = EngineSettings(context=512, batch=64, ubatch=64, threads=1, threads_batch=1)
PROMPT = "What is a mixture of experts? "


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return tmp_path


def answers(
    path: Path, settings: EngineSettings, tokens: tuple[int, ...], *, remember: bool = True
) -> list[Finished]:
    """Greedy answers of so many tokens, by one engine."""
    done = []
    with Engine(read_model(path), settings, remember=remember) as engine:
        list(engine.load())
        for number, count in enumerate(tokens):
            request = Request(
                PROMPT * (number + 1),
                max_tokens=count,
                sampling=Sampling(temperature=0),
                ignore_end=True,
            )
            *_, last = engine.generate(request)
            assert isinstance(last, Finished)
            done.append(last)
    return done


@pytest.mark.parametrize("regime", ["off", "private"])
def test_the_profile_is_what_the_trace_says(tmp_path: Path, regime: str) -> None:
    """Counts to the last one, reuse, and the hit rate of every cache: those of a replay of the
    recorded routing, over two answers and with the bundled model."""
    path = resolve("nano")
    model = read_model(path)
    settings = dataclasses.replace(
        BASE, record=str(tmp_path / "t.trace"), cache=regime, cache_bytes=4 << 20, load_mode="mmap"
    )
    done = answers(path, settings, (150, 40))
    known = profile.load(profile.key_of(model))
    trace = read_trace(tmp_path / "t.trace")
    expected = profile_of(trace)
    assert known is not None and known.sessions == 1
    assert known.tokens == pytest.approx(len(trace), rel=0.01), "faded by the second answer"
    for layer, row in expected.counts.items():
        assert known.counts[layer] == pytest.approx(row, rel=0.02, abs=0.02)
    assert known.reuse == pytest.approx(expected.reuse, abs=0.01)
    assert dict(known.curve) == pytest.approx(dict(expected.curve), abs=0.01)
    for load in done[-1].load:
        counts = np.array(expected.counts[load.layer])
        assert load == load_of(load.layer, counts.astype(int).tolist())
        assert load.used == (counts > 0).sum()
        assert load.busiest == pytest.approx(counts.max() / counts.mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"experts_used": 3},
        {"prefer_cached": 0.5, "cache": "private", "cache_bytes": 4 << 20},
    ],
)
def test_choices_that_are_not_the_routers_teach_nothing(
    arch_file: Callable[..., Path], home: Path, settings: dict[str, object]
) -> None:
    """Fewer experts per token, or those at hand: that is no profile of the model."""
    path = arch_file("qwen3moe")
    answers(path, dataclasses.replace(BASE, **settings), (4,))  # type: ignore[arg-type]
    assert profile.load(profile.key_of(read_model(path))) is None
    assert not list(home.rglob("routing/*"))


def test_nothing_is_kept_of_who_wants_no_history(
    arch_file: Callable[..., Path], home: Path
) -> None:
    """Without ``remember`` no file appears at all."""
    answers(arch_file("qwen3moe"), BASE, (4,), remember=False)
    assert not [path for path in home.rglob("*") if path.is_file() and "routing" in path.parts]


def test_a_profile_that_cannot_be_written_spoils_nothing(
    arch_file: Callable[..., Path], home: Path
) -> None:
    """The answer is there; only what would have been learnt is lost."""
    (home / "data").mkdir(exist_ok=True)
    folder = profile.path_of("x").parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    done = answers(arch_file("qwen3moe"), BASE, (4, 4))
    assert [event.completion_tokens for event in done] == [4, 4]


def test_another_quantization_begins_with_what_was_used_most(tmp_path: Path) -> None:
    """A file that was never loaded has no hot set, but its model has a profile: while there is
    room, the experts used before come into memory without being asked for."""
    nano = resolve("nano")
    settings = dataclasses.replace(BASE, cache="private", cache_bytes=16 << 20)

    def resident(name: str, enough: int) -> int:
        """Bytes of experts in memory after the same answer again and again."""
        copy = tmp_path / name
        copy.write_bytes(nano.read_bytes())
        found = 0
        with Engine(read_model(copy), settings) as engine:
            list(engine.load())
            for _ in range(100):
                request = Request("A", max_tokens=2, sampling=Sampling(temperature=0))
                *_, done = engine.generate(request)
                assert isinstance(done, Finished) and done.cache is not None
                found = done.cache.resident_bytes
                if found >= enough:
                    break
        return found

    alone = resident("one.gguf", 0)
    answers(nano, BASE, (200,))
    assert resident("two.gguf", 2 * alone) >= 2 * alone


def test_load_by_hand() -> None:
    """Even, and one expert alone."""
    even, alone = load_of(3, [5, 5, 5, 5]), load_of(4, [0, 8, 0, 0])
    assert (even.layer, even.used, even.busiest) == (3, 4, 1.0)
    assert even.entropy == pytest.approx(1)
    assert (alone.used, alone.entropy, alone.busiest) == (1, 0.0, 4.0)
