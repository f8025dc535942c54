"""How layers are split between several GPUs, and which tensors fill what is left on each.

Sums over the header only; ``search.py`` then asks the engine about the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from localmoe.facts.model import Model
from localmoe.planning.budget import MIB
from localmoe.planning.candidates import Candidate
from localmoe.planning.layout import PROJECTIONS, expert_parts, layer_homes

SHIFTS = (0, -1, 1, -2, 2)  # layers by which the border between two devices is moved
MOST_DEVICES = 4  # with more there are too many combinations of shifts to look at


def proportional_split(budgets: Sequence[int]) -> tuple[float, ...]:
    """``EngineSettings.tensor_split`` by the devices' memory, in MiB; () for a single device."""
    return tuple(float(max(1, budget // MIB)) for budget in budgets) if len(budgets) > 1 else ()


def tensors_that_fit(
    parts: Mapping[int, Mapping[str, int]], layers: Iterable[int], room: int
) -> list[tuple[int, str]]:
    """(layer, projection) of expert tensors, in the order of ``layers``, as long as they fit into
    ``room`` bytes. ``parts``: layer → projection → bytes.

    The first that does not fit ends it, so a larger room never gives up a tensor for another.
    """
    taken: list[tuple[int, str]] = []
    for layer in layers:
        for projection in PROJECTIONS:
            size = parts.get(layer, {}).get(projection)
            if size is None:
                continue
            if size > room:
                return taken
            room -= size
            taken.append((layer, projection))
    return taken


def finer_split(
    model: Model, dense: Candidate, budgets: Mapping[str, int], free: Sequence[int]
) -> tuple[float, ...]:
    """The split near that of ``dense`` with which the most bytes of experts fit on the devices.

    A device keeps whole layers' experts and some tensors of one more layer, so as much memory as
    one tensor may stay unused on it. A border moved by a layer or two leaves less. Returns the
    split of ``dense`` when no other is better, and when some layer is not on any device.
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
    best, best_bytes = settings.tensor_split, -1
    for shifted in _shifted_counts(counts):
        placed = start = 0
        for number, count in enumerate(shifted):
            layers = [i for i in range(start, start + count) if i in free]
            own = sum(i < len(model.layers) for i in range(start, start + count))
            placed += _bytes_taken(layers, parts, rest[number] - own * each[number])
            start += count
        if placed > best_bytes:
            best, best_bytes = tuple(float(count) for count in shifted), placed
    same = [float(count) for count in counts]
    return settings.tensor_split if list(best) == same else best


def model_output(model: Model) -> int:
    """Bytes of the output matrix and norm, which are on the last device; where the model uses its
    token embedding as output (tied), the embedding counts instead.
    """
    sizes = {tensor.name: tensor.nbytes for tensor in model.tensors if tensor.loaded}
    output = sum(count for name, count in sizes.items() if name.startswith("output"))
    return output if "output.weight" in sizes else output + sizes.get("token_embd.weight", 0)


def _shifted_counts(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Layers per device with every border moved by each of ``SHIFTS``; the unmoved counts first."""
    for moves in product(SHIFTS, repeat=len(counts) - 1):
        borders = (0, *moves, 0)
        shifted = [
            count + borders[number + 1] - borders[number] for number, count in enumerate(counts)
        ]
        if min(shifted) >= 1:
            yield tuple(shifted)


def _bytes_taken(layers: Sequence[int], parts: Mapping[int, Mapping[str, int]], room: int) -> int:
    """Bytes of experts that one device with these layers takes into ``room`` bytes."""
    if room < 0:
        return -(1 << 60)  # not even the dense part fits
    return sum(
        parts[layer][name] for layer, name in tensors_that_fit(parts, reversed(layers), room)
    )
