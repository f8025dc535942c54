"""Fuzz: random use and random damage, with other values than in the other tests, and for longer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.text import FORBIDDEN
from tests.effort import yards
from tests.engine.cache_fuzz import play
from tests.facts.damage import Damage
from tests.soak.conftest import Figures
from tests.systems.shims import shim
from tests.terminal.test_answer import lasting, written

pytestmark = pytest.mark.soak
PIECES = (
    "word", " ", "long" * 12, "\n", "\n\n", "**", "*", "`", "```\n", "- ", "1. ", "| a |\n",
    "> ", "# ", "[t](u)", "漢字", "👩\u200d🔬", "e\u0301", "\x1b[2J", "\x1b]0;t\x07", "\t",
    "\u202e", "|-|\n", "~~", "_", "\\", "<b>", "&amp;", "    ", "***", "![i](x)", "| b | c |\n",
)  # fmt: skip


def test_the_expert_cache(
    arch_file: Callable[..., Path], under_way: Callable[[], bool], figures: Figures
) -> None:
    """Random budgets, batches, threads, prompts and interrupts change no token of an answer."""
    _play(1000, arch_file, None, under_way, figures)


def test_the_expert_cache_while_reads_fail(
    arch_file: Callable[..., Path],
    tmp_path: Path,
    under_way: Callable[[], bool],
    figures: Figures,
) -> None:
    """Nor do reads that fail, come short or late: where none can succeed, an error says so."""
    _play(5000, arch_file, shim("faults", tmp_path), under_way, figures)


@pytest.mark.parametrize("reads_fail", [False, True])
def test_the_expert_cache_in_little_memory(
    reads_fail: bool,
    arch_file: Callable[..., Path],
    tmp_path: Path,
    under_way: Callable[[], bool],
    figures: Figures,
) -> None:
    """Nor does memory for no more than a token's experts of a layer, or a batch's stages."""
    faults = shim("faults", tmp_path) if reads_fail else None
    _play(7000, arch_file, faults, under_way, figures, tight=True)


def _play(
    first: int,
    arch_file: Callable[..., Path],
    faults: Path | None,
    under_way: Callable[[], bool],
    figures: Figures,
    *,
    tight: bool = False,
) -> None:
    seed, answers, evictions = first, 0, 0
    while under_way():
        played = play(random.Random(seed), arch_file, faults, tight=tight)
        assert played.wrong == (), f"seed {seed}: {played.title}"
        seed, answers, evictions = seed + 1, answers + played.answers, evictions + played.evictions
        figures |= {"rounds": seed - first, "answers": answers, "evictions": evictions}


def test_damaged_headers(
    arch_file: Callable[..., Path],
    tmp_path: Path,
    under_way: Callable[[], bool],
    figures: Figures,
) -> None:
    """A damaged header is a typed error or a sound model, and never takes long."""
    damage = Damage(arch_file("gpt-oss"), tmp_path / "damaged.gguf", seed=1)
    while under_way():
        damage.go(1000)
        figures |= {"files": damage.refused + damage.read, "refused": damage.refused}
    assert yards(damage.slowest) < 30


def test_answers_on_the_screen(under_way: Callable[[], bool], figures: Figures) -> None:
    """Whatever a model writes, in whatever pieces, shows the same and cannot act on a terminal."""
    rng = random.Random(4)
    answers = 0
    while under_way():
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(60)))
        columns = rng.choice((12, 40, 80, 160))
        whole = lasting(written([text], columns))
        assert not FORBIDDEN.search(whole), repr(text)
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(20)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert lasting(written(parts, columns)) == whole, repr(text)
        answers += 1
        figures["answers"] = answers
