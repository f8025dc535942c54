"""Which layers to deal to which device, and what fits into the rest: arithmetic, nothing measured.

The search asks the engine about what comes out of here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from localmoe.facts.model import Model
from localmoe.planning.budget import MIB
from localmoe.planning.candidates import Candidate
from localmoe.planning.layout import expert_parts, layer_homes

SHIFTS = (0, -1, 1, -2, 2)  # layers that a border between two devices is moved by
MOST_DEVICES = 4  # for which all combinations of shifts are looked at


def proportional(budgets: Sequence[int]) -> tuple[float, ...]:
    """Proportions of several devices, in MiB: readable, and the same wherever they are used."""
    return tuple(float(max(1, budget // MIB)) for budget in budgets) if len(budgets) > 1 else ()


def fillings(
    parts: Mapping[int, Mapping[str, int]], layers: Sequence[int], room: int
) -> list[tuple[int, frozenset[str]]]:
    """Tensors of one of ``layers`` that fit into ``room`` bytes, the largest first; of equals the
    last layer's. ``parts``: bytes per projection and layer.
    """
    found = [
        (sum(parts[layer][name] for name in some), layer, frozenset(some))
        for layer in layers
        for count in range(1, len(parts.get(layer, {})) + 1)
        for some in combinations(sorted(parts[layer]), count)
    ]
    fitting = [entry for entry in found if entry[0] <= room]
    fitting.sort(key=lambda entry: (-entry[0], -entry[1], sorted(entry[2])))
    return [(layer, chosen) for _, layer, chosen in fitting]


def redealt(
    model: Model, dense: Candidate, budgets: Mapping[str, int], free: Sequence[int]
) -> tuple[float, ...]:
    """Layers per device, near those of ``dense``, with which most bytes of experts find room.

    A device keeps whole layers and one part of a layer, so what is left over on it may be as large
    as a tensor; a border moved by a layer or two leaves less. The split of ``dense`` where that is
    best, and where a layer is not on a device.
    """
    settings = dense.settings
    devices = settings.devices
    homes = layer_homes(model, settings)
    if not 1 < len(devices) <= MOST_DEVICES or any(home not in devices for home in homes):
        return settings.tensor_split
    counts = [homes.count(device) for device in devices]  # the output is one layer, too
    each, rest = [], []
    for device, count in zip(devices, counts, strict=True):
        used = dense.memory.on(device)
        output = model_output(model) if device == homes[-1] else 0
        own = count - (device == homes[-1])
        each.append((used.weights - output + used.kv) // max(1, own))
        rest.append(budgets[device] - used.compute - output)
    parts = expert_parts(model)
    sizes = {index: sum(parts.get(index, {}).values()) for index in free}
    best, best_bytes = settings.tensor_split, -1
    for shifted in _shifts(counts):
        placed = start = 0
        for number, count in enumerate(shifted):
            layers = [i for i in range(start, start + count) if i in sizes]
            own = sum(i < len(model.layers) for i in range(start, start + count))
            placed += _room_for(layers, sizes, parts, rest[number] - own * each[number])
            start += count
        if placed > best_bytes:
            best, best_bytes = tuple(float(count) for count in shifted), placed
    same = [float(count) for count in counts]
    return settings.tensor_split if list(best) == same else best


def model_output(model: Model) -> int:
    """Bytes of the output matrix and norm, which the last device has; the embedding if tied."""
    sizes = {tensor.name: tensor.nbytes for tensor in model.tensors if tensor.loaded}
    output = sum(count for name, count in sizes.items() if name.startswith("output"))
    return output if "output.weight" in sizes else output + sizes.get("token_embd.weight", 0)


def _shifts(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Counts with the same sum, each border moved a little; unmoved first."""
    for moves in product(SHIFTS, repeat=len(counts) - 1):
        borders = (0, *moves, 0)
        shifted = [
            count + borders[number + 1] - borders[number] for number, count in enumerate(counts)
        ]
        if min(shifted) >= 1:
            yield tuple(shifted)


def _room_for(
    layers: Sequence[int],
    sizes: Mapping[int, int],
    parts: Mapping[int, Mapping[str, int]],
    room: int,
) -> int:
    """Bytes of experts that one device would take: its last layers, and a part of another."""
    if room < 0:
        return -(1 << 60)  # not even the dense part fits
    left, waiting = room, list(layers)
    while waiting and sizes[waiting[-1]] <= left:
        left -= sizes[waiting.pop()]
    best = fillings(parts, waiting, left)
    if best:
        layer, chosen = best[0]
        left -= sum(parts[layer][name] for name in chosen)
    return room - left
