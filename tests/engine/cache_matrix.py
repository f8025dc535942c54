"""One architecture against every regime and budget: what is compared, and with what.

The conversation is interrupted in a prefill and in a decode, asked again, repeated and continued.
Each decode's logits must be, bit by bit, those of the same conversation without a cache and with
the same batches; and those of the answer after the first interrupt those of the plain loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import needed_budget, routed_tensors, slot_bytes
from localmoe.planning.memory import EngineSettings, RoutedTensor
from tests.archs.plain import plain_greedy
from tests.engine.cached import Case, Ran, Turn, planned, run_cases

BASE = EngineSettings(context=256, batch=24, ubatch=24, threads=1, threads_batch=1)
FIRST = "A mixture of experts has many small networks and a router. " * 2
MORE = FIRST + "And what does it cost?"
TURNS = (
    Turn(FIRST, stable=80, stop=("prefill", 1, 40)),
    Turn(FIRST, stable=80),
    Turn(FIRST, stable=80),
    Turn(MORE, stable=len(FIRST), stop=("decode", 1, 25)),
    Turn(MORE, stable=len(FIRST)),
)
WARMED = 4  # experts


@dataclass(frozen=True, slots=True)
class Cell:
    """One regime and budget beside its reference."""

    name: str
    settings: EngineSettings
    ran: Ran
    reference: Ran

    @property
    def decodes(self) -> int:
        return sum(len(turn.logits) for turn in self.ran.turns)

    @property
    def equal(self) -> bool:
        return self.ran.turns == self.reference.turns


@dataclass(frozen=True, slots=True)
class Matrix:
    cells: tuple[Cell, ...]
    plain: bool  # the reference with the smallest batch of several tokens is the plain loop's


def groups_of(model: Model) -> dict[int, list[RoutedTensor]]:
    groups: dict[int, list[RoutedTensor]] = {}
    for tensor in routed_tensors(model):
        groups.setdefault(tensor.group, []).append(tensor)
    return groups


def whole_budget(model: Model) -> int:
    """Bytes of the private regime with every expert in memory."""
    return sum(slot_bytes(group) * group[0].experts for group in groups_of(model).values())


def variants(path: Path, base: EngineSettings = BASE) -> Iterator[tuple[str, EngineSettings]]:
    """The regimes; the private one with the smallest budget, a middle one, and room for all."""
    model = read_model(path)
    layers = [layer.index for layer in model.layers if layer.expert_count]
    least, whole = needed_budget(model, layers, 1), whole_budget(model)
    yield "page", planned(path, base, "page", 0)
    yield "private, least", planned(path, base, "private", least)
    middle = planned(path, base, "private", max(least, whole // 2))
    yield "private, half", middle
    everything = planned(path, base, "private", 2 * whole)
    yield "private, all", dataclasses.replace(everything, cache_bytes=whole)


def compare(path: Path, hot: Path, threads: int = 1) -> Matrix:
    """Run all of it; the hot set of the middle budget is kept in ``hot`` and warmed in one more."""
    base = dataclasses.replace(BASE, threads=threads, threads_batch=threads)
    runs = {name: Case(settings, TURNS) for name, settings in variants(path, base)}
    middle = runs["private, half"]
    runs["private, half"] = dataclasses.replace(middle, hot=str(hot))
    runs["private, half, warmed"] = dataclasses.replace(middle, hot=str(hot), warm=WARMED)
    batches = sorted({(case.settings.batch, case.settings.ubatch) for case in runs.values()})
    references = [
        Case(dataclasses.replace(base, batch=batch, ubatch=ubatch), TURNS)
        for batch, ubatch in batches
    ]
    ran = run_cases(path, [*references, *runs.values()])
    by_batch = dict(zip(batches, ran, strict=False))
    cells = tuple(
        Cell(name, case.settings, done, by_batch[case.settings.batch, case.settings.ubatch])
        for (name, case), done in zip(runs.items(), ran[len(references) :], strict=True)
    )
    batch = next(batch for batch, _ in batches if batch > 1)
    return Matrix(cells, as_plain(path, batch, threads, by_batch[batch, batch]))


def as_plain(path: Path, batch: int, threads: int, reference: Ran) -> bool:
    """The second turn beside the plain loop's, which gets the same batches at once."""
    interrupted, whole = reference.turns[:2]
    edges = [*(b for b in interrupted.starts if b < whole.reused), *whole.starts]
    plain = plain_greedy(
        path,
        FIRST,
        TURNS[1].tokens,
        n_ctx=BASE.context,
        n_batch=batch,
        threads=threads,
        splits=sorted({b for b in edges if 0 < b < whole.prompt_tokens}),
    )
    return (plain.text, plain.digest) == (whole.text, whole.answer)
