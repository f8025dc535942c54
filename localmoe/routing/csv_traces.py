"""Routing traces of other programs: CSV with one row per routed expert.

Columns are found by name; ``layer`` and ``expert`` must be there. Which rows belong to one token
is told by whichever of ``turn``, ``phase`` and ``step`` (or ``token``, ``position``) there are.
Without a step, as in llama.cpp's own ``layer,expert``, the order of the rows tells
(``_steps_by_order``). Optional: ``slot`` (rank), ``weight`` (``nan``: unknown), ``token_id``,
``label``; ``phase`` is 0 or ``prefill``, 1 or ``decode``, and decode when there is none. Other
columns are ignored. A byte order mark, quotes, and semicolons, tabs or bars between cells do no
harm; ``layer_id`` and the like are understood.

Lines with ``#`` before the columns may name what rows cannot, as in the route traces of
BigMoeOnEdge::

    # model=… arch=… n_layer=48 n_expert=128 n_expert_used=6
    # layer=0 expert_bytes=3059712 dense_bytes=11953152
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.errors import TraceFileError
from localmoe.facts.model import MAX_LAYERS
from localmoe.routing.records import (
    ABSENT,
    DECODE,
    MAX_EXPERTS,
    PREFILL,
    Trace,
    TraceHeader,
    TraceLayer,
)

MAX_LINE = 4096  # characters
MAX_ROWS = 10_000_000
_PHASES = {"0": PREFILL, "1": DECODE, "prefill": PREFILL, "decode": DECODE}
_STEPS = ("step", "token", "position", "pos")
_ALSO = {  # what others call a column
    "layer_id": "layer", "layer_idx": "layer", "layer_index": "layer",
    "expert_id": "expert", "expert_idx": "expert", "expert_index": "expert",
    "token_idx": "token", "token_index": "token",
}  # fmt: skip
_FACT = re.compile(r"(\w{1,40})=(\S{1,400})")
_AROUND = " \t\"'"  # what may stand around a cell

Ints = NDArray[np.int64]


def read_csv(lines: Iterable[str], name: str) -> Trace:
    """The trace in ``lines``; ``name`` for messages. Raises TraceFileError."""
    table = _Table()
    try:
        _read(enumerate(lines, 1), table)
        return _trace(table, name)
    except TraceFileError as error:
        raise TraceFileError(f"{name}: {error.message}", hint=error.hint or _HINT) from error


_HINT = "a CSV trace has the columns step, layer, expert and, if known, weight and phase"


@dataclass(slots=True)
class _Table:
    """Columns of the rows. ``key`` numbers the tokens' (turn, phase, step) as they first appear."""

    facts: dict[str, str] = field(default_factory=dict)
    layer_facts: dict[int, dict[str, int]] = field(default_factory=dict)
    keys: dict[tuple[str, ...], int] = field(default_factory=dict)
    has_steps: bool = True  # whether a column says which step a row belongs to
    has_phases: bool = True
    phases: dict[int, int] = field(default_factory=dict)  # of a key
    turns: dict[int, str] = field(default_factory=dict)  # label or turn of a key
    key: array[int] = field(default_factory=lambda: array("i"))
    layer: array[int] = field(default_factory=lambda: array("i"))
    expert: array[int] = field(default_factory=lambda: array("i"))
    slot: array[int] = field(default_factory=lambda: array("i"))
    token: array[int] = field(default_factory=lambda: array("i"))
    weight: array[float] = field(default_factory=lambda: array("f"))


def _read(lines: Iterator[tuple[int, str]], table: _Table) -> None:
    columns: dict[str, int] = {}
    separator = ","
    for number, line in lines:
        if len(line) > MAX_LINE:
            raise TraceFileError(f"line {number} is too long for a trace")
        line = line.removeprefix("\ufeff").strip() if number == 1 else line.strip()
        if line.startswith("#"):
            _preamble(line, table)
        elif line and not columns:
            separator = next((mark for mark in ",;\t|" if mark in line), ",")
            words = (word.strip(_AROUND).lower() for word in line.split(separator))
            columns = {_ALSO.get(word, word): at for at, word in enumerate(words)}
            if not {"layer", "expert"} <= columns.keys():
                raise TraceFileError("no columns named layer and expert: not a trace")
            table.has_steps = not columns.keys().isdisjoint(_STEPS)
            table.has_phases = "phase" in columns
        elif line:
            if len(table.key) >= MAX_ROWS:
                raise TraceFileError(f"more than {MAX_ROWS:,} rows")
            try:
                _row(line.split(separator), columns, table)
            except (ValueError, IndexError, OverflowError) as error:
                raise TraceFileError(f"line {number} is not a row of this table") from error
    if not table.key:
        raise TraceFileError("no rows")


def _preamble(line: str, table: _Table) -> None:
    facts = dict(_FACT.findall(line))
    if "layer" not in facts:
        table.facts |= facts
        return
    numbers = {
        key: int(value)
        for key, value in facts.items()
        if value.isascii() and value.isdigit() and len(value) < 16
    }
    if "layer" in numbers and len(table.layer_facts) < 10_000:
        table.layer_facts[numbers["layer"]] = numbers


def _row(cells: list[str], columns: dict[str, int], table: _Table) -> None:
    def cell(name: str) -> str:
        at = columns.get(name)
        return "" if at is None else cells[at].strip(_AROUND)

    step = next((cell(name) for name in _STEPS if name in columns), "")
    turn, phase = cell("turn"), cell("phase")
    key = table.keys.setdefault((turn, phase, step), len(table.keys))
    if key not in table.phases:
        if phase and phase.lower() not in _PHASES:
            raise ValueError(phase)
        table.phases[key] = _PHASES[phase.lower()] if phase else DECODE
        table.turns[key] = (cell("label") or (f"turn {turn}" if turn else ""))[:200]
    table.key.append(key)
    table.layer.append(int(cell("layer")))
    table.expert.append(int(cell("expert")))
    table.slot.append(int(cell("slot") or -1))
    table.token.append(int(cell("token_id") or -1))
    table.weight.append(float(cell("weight") or math.nan))


def _trace(table: _Table, name: str) -> Trace:
    key, layer, expert, slot, token = (
        np.array(column, np.int64)
        for column in (table.key, table.layer, table.expert, table.slot, table.token)
    )
    weight = np.array(table.weight, np.float32)
    for column, limit in ((layer, MAX_LAYERS), (expert, MAX_EXPERTS), (slot, MAX_EXPERTS)):
        if column.min() < (-1 if column is slot else 0) or column.max() >= limit:
            raise TraceFileError("a layer, an expert or a slot that cannot be")
    if not table.has_steps:
        key, slot, repeat = _steps_by_order(table, key, layer, expert, slot)
    elif (slot < 0).any():
        slot = _occurrence(key, layer)
        repeat = np.zeros_like(key)
    else:
        repeat = _repeats(key, layer, slot)
    # Tokens in the order of their first rows; those of one step stay together.
    identity = key * (int(repeat.max()) + 1) + repeat
    known, row = np.unique(identity, return_inverse=True)
    layers = np.unique(layer)
    count = len(known)
    used = [int(slot[layer == index].max()) + 1 for index in layers]
    if count * sum(used) > 16 * len(key) + 1024:
        raise TraceFileError("most rows of its tokens are missing")
    ids, weights = [], []
    tokens = np.full(count, -1, np.int32)
    tokens[row] = token
    for index, k in zip(layers, used, strict=True):
        here = layer == index
        table_ids = np.full((count, k), ABSENT, np.int16)
        table_weights = np.full((count, k), np.nan, np.float32)
        table_ids[row[here], slot[here]] = expert[here]
        table_weights[row[here], slot[here]] = weight[here]
        ids.append(table_ids)
        weights.append(table_weights)
    keys = known // (int(repeat.max()) + 1)
    phase = np.array([table.phases[int(k)] for k in keys], np.uint8)
    segment, labels = _prompts([table.turns[int(k)] for k in keys])
    has_weights = not np.isnan(weight).all()
    experts = [int(expert[layer == index].max()) + 1 for index in layers]
    return Trace(
        header=_header(table, name, [int(i) for i in layers], experts, used, has_weights),
        phase=phase,
        batch=_batches(keys, phase, segment),
        tokens=tokens,
        segment=segment,
        labels=labels,
        layer_ids=tuple(ids),
        layer_weights=tuple(weights) if has_weights else None,
    )


def _header(
    table: _Table, name: str, layers: list[int], seen: list[int], used: list[int], weights: bool
) -> TraceHeader:
    """From the preamble where there is one; else as many experts as were seen."""
    facts = table.facts
    said = facts.get("n_expert", "")
    count = int(said) if said.isascii() and said.isdigit() and len(said) < 6 else 0
    if count and count < max(seen):
        raise TraceFileError(f"it names expert {max(seen) - 1}, and says that there are {count}")
    dense = sum(f.get("dense_bytes", 0) for f in table.layer_facts.values())
    return TraceHeader(
        model=re.split(r"[/\\]", facts.get("model", name))[-1][:200],
        architecture=facts.get("arch", "")[:64],
        layers=tuple(
            TraceLayer(
                index,
                count or max(seen),
                k,
                table.layer_facts.get(index, {}).get("expert_bytes", 0),
            )
            for index, k in zip(layers, used, strict=True)
        ),
        dense_bytes=dense,
        weights=weights,
        source="CSV",
    )


def _steps_by_order(
    table: _Table, turn: Ints, layer: Ints, expert: Ints, slot: Ints
) -> tuple[Ints, Ints, Ints]:
    """Steps, ranks and tokens of rows that do not say their step, from their order.

    The engine computes the layers one after the other, so a step ends where a row's layer is one
    before that of the row above. In a layer of a step come the experts of one token after the
    other: as many for each as the preamble says, else as many as divide all layers' rows without
    an expert that occurs twice in a token. A step of several tokens is prefill. ``turn``: the key
    that the other columns give. Sets ``table``'s phases and turns for the steps.
    """
    new = np.ones(len(layer), bool)
    new[1:] = (np.diff(layer) < 0) | (np.diff(turn) != 0)
    key = np.cumsum(new) - 1
    if (slot < 0).any():
        place = _occurrence(key, layer)
        slot = place % _experts_per_token(table, key, layer, expert, place)
    repeat = _repeats(key, layer, slot)
    tokens = np.zeros(int(key[-1]) + 1, np.int64)
    np.maximum.at(tokens, key, repeat)
    phases, turns = table.phases, table.turns
    first = turn[new].tolist()
    table.turns = {step: turns[before] for step, before in enumerate(first)}
    if table.has_phases:
        table.phases = {step: phases[before] for step, before in enumerate(first)}
    else:
        table.phases = {
            step: PREFILL if last else DECODE for step, last in enumerate(tokens.tolist())
        }
    return key, slot, repeat


def _experts_per_token(table: _Table, key: Ints, layer: Ints, expert: Ints, place: Ints) -> int:
    """Top-k: as the preamble says, else the largest number that the rows allow."""
    said = table.facts.get("n_expert_used", "")
    if said.isascii() and said.isdigit() and 0 < int(said[:6]) < MAX_EXPERTS:
        return int(said)
    _, rows = np.unique(key * MAX_LAYERS + layer, return_counts=True)
    common = int(np.gcd.reduce(rows))
    for used in range(min(common, int(expert.max()) + 1), 1, -1):
        if common % used == 0 and not _occurrence(key, layer, place // used, expert).any():
            return used
    return 1


def _repeats(key: Ints, layer: Ints, slot: Ints) -> Ints:
    """Which token of its step a row belongs to, for steps that hold several tokens.

    A layer with fewer tokens than the others computed the last ones.
    """
    repeat = _occurrence(key, layer, slot)
    most = np.zeros(int(key.max()) + 1, np.int64)
    np.maximum.at(most, key, repeat)
    cell = key * MAX_LAYERS + layer
    cells, at = np.unique(cell, return_inverse=True)
    here = np.zeros(len(cells), np.int64)
    np.maximum.at(here, at, repeat)
    return repeat + most[key] - here[at]


def _occurrence(*columns: Ints) -> Ints:
    """How many earlier rows have the same values, for each row."""
    mixed = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        mixed = mixed * (int(column.max()) + 1) + column
    _, group = np.unique(mixed, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    result = np.empty(len(group), np.int64)
    result[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return result


def _prompts(turns: list[str]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """A new segment wherever the label changes."""
    labels: list[str] = []
    segment = np.empty(len(turns), np.int32)
    for at, turn in enumerate(turns):
        if not labels or labels[-1] != turn:
            labels.append(turn)
        segment[at] = len(labels) - 1
    return segment, tuple(labels)


def _batches(keys: Any, phase: NDArray[np.uint8], segment: NDArray[np.int32]) -> Any:
    """A prompt's prefill counts as one engine step, a decode token as one each."""
    new = np.ones(len(keys), bool)
    same = (segment[1:] == segment[:-1]) & (phase[1:] == PREFILL) & (phase[:-1] == PREFILL)
    new[1:] = ~same & (keys[1:] != keys[:-1])
    return (np.cumsum(new) - 1).astype(np.int32)
