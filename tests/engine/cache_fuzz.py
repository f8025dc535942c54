"""Random budgets, batches, threads, prompts, interrupts and faults of the disk: what must never go
wrong, does not.

Prompts begin with different tokens, so that whatever an interrupt left behind, the logits of a
whole answer depend on nothing but its prompt and batches.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localmoe.facts.model import read_model
from localmoe.planning.cache import needed_budget, routed_tensors
from localmoe.planning.memory import EngineSettings
from localmoe.planning.prefill import stage_bytes
from tests.engine.cache_matrix import whole_budget
from tests.engine.cached import Case, Turn, run_cases

ARCHITECTURES = ("qwen3moe", "gpt-oss", "gemma4", "qwen3next", "deepseek4", "llama4", "phimoe")
UBATCHES = (1, 2, 3, 7, 16, 33, 64, 512)
WORDS = (
    *[
        "a",
        "mixture",
        "of",
        "experts",
        "has",
        "many",
        "networks",
        "and",
        "one",
        "router",
        "zebra",
        "12",
        "code",
    ],
    "\n",
    "{ }",
)
TURNS = 8
FAULTS = ("DIRECT", "CACHED", "RATE")
HARD = ("EIO", "EINVAL")  # through the page cache too: then an error is the right answer


@dataclass(frozen=True, slots=True)
class Round:
    """What was tried, and what came of it: answers compared, experts evicted."""

    title: str
    answers: int
    evictions: int
    wrong: tuple[int, ...]  # turns


def play(
    rng: random.Random,
    model_file: Callable[[str], Path],
    faults: Path | None = None,
    *,
    tight: bool = False,
) -> Round:
    """One round in a child process. Raises AssertionError when it dies or hangs.

    ``faults``: the library of shims/faults.c, where reads are to go wrong too. ``tight``: memory
    in which batches are streamed, or multiplied where the file is mapped.
    """
    name = rng.choice(ARCHITECTURES)
    path = model_file(name)
    settings, shaken = _settings(rng, path)
    if tight:
        settings, shaken = _tightened(rng, path, settings)
    turns = tuple(_turn(rng, number) for number in range(TURNS))
    title = (
        f"{name}, {settings.threads} and {settings.threads_batch} threads, "
        f"batch {settings.batch}/{settings.ubatch}, {settings.cache} "
        f"{settings.cache_bytes}{', shaken' if shaken else ''}"
    )
    environment = _faults(rng, path, faults) if faults is not None else {}
    if environment:
        title += ", " + " ".join(f"{name}={environment[name]}" for name in FAULTS)
    plain = dataclasses.replace(settings, cache="off", cache_bytes=0)
    whole = [number for number, turn in enumerate(turns) if turn.cancel_after is None]
    reference, cached = run_cases(
        path,
        [
            Case(plain, tuple(turns[number] for number in whole)),
            Case(settings, turns, shaken=shaken),
        ],
        environment=environment,
    )
    lossless = environment.get("CACHED") not in HARD
    wrong = tuple(
        number
        for number, expected in zip(whole, reference.turns, strict=True)
        if cached.turns[number] != expected
        and (lossless or not cached.turns[number].reason.startswith("EngineError"))
    )
    bad = tuple(
        number
        for number, said in enumerate(cached.turns)
        if number not in whole
        and said.reason not in ("interrupted", "length")
        and (lossless or not said.reason.startswith("EngineError"))
    )
    return Round(title, len(whole), int(cached.counters["evictions"]), wrong + bad)


def _faults(rng: random.Random, path: Path, library: Path) -> dict[str, str]:
    """What reads of experts shall meet with; the header stays readable."""
    first = min(tensor.offset for tensor in routed_tensors(read_model(path)))
    return {
        "LD_PRELOAD": ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library)))),
        "DIRECT": rng.choice(("", "EIO", "EINVAL", "EOPNOTSUPP", "short", "torn", "slow")),
        "CACHED": rng.choice(("", "", "short", "torn", "slow", *HARD)),
        "RATE": rng.choice(("1", "5", "30")),
        "FROM": str(first),
    }


def _settings(rng: random.Random, path: Path) -> tuple[EngineSettings, tuple[int, int] | None]:
    model = read_model(path)
    ubatch = rng.choice(UBATCHES)
    threads = rng.choice((1, 1, 2, 4))
    settings = EngineSettings(
        context=640,
        batch=ubatch * rng.choice((1, 1, 2)),
        ubatch=ubatch,
        threads=threads,
        threads_batch=rng.choice((threads, threads, 1, 2)),
        cache=rng.choice(("private", "private", "private", "page")),
    )
    if settings.cache == "page":
        return settings, None
    least, whole = needed_budget(model, range(len(model.layers)), ubatch), whole_budget(model)
    budget = rng.choice((least, rng.randint(least, max(least, whole)), max(least, whole)))
    shaken = (least, max(least, whole)) if rng.random() < 0.4 else None
    return dataclasses.replace(settings, cache_bytes=budget), shaken


def _tightened(
    rng: random.Random, path: Path, settings: EngineSettings
) -> tuple[EngineSettings, tuple[int, int] | None]:
    """In memory for a token's experts of a layer to those of two layers, some of it lent."""
    model = read_model(path)
    layers = range(len(model.layers))
    least, most = needed_budget(model, layers, 1), 2 * needed_budget(model, layers, 64)
    lent = rng.choice((0, 0, least // 2, least))
    budget = lent + rng.choice(
        (least, rng.randint(least, most), stage_bytes(model, layers) + least)
    )
    shaken = (lent + least, lent + most) if rng.random() < 0.5 else None
    tight = dataclasses.replace(
        settings, cache="private", cache_bytes=budget, cache_lent=lent, read_ahead=False
    )
    return tight, shaken


def _turn(rng: random.Random, number: int) -> Turn:
    words = [rng.choice(WORDS) for _ in range(rng.choice((1, 10, 40, 70)))]
    prompt = f"{chr(ord('A') + number)} {' '.join(words)}"
    cancel = rng.uniform(0.0, 0.05) if rng.random() < 0.4 else None
    return Turn(prompt, rng.randint(1, 8), cancel_after=cancel)
