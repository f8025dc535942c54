"""What an evicted expert's place is, and what memory the cache takes and gives back."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.model import read_model
from localmoe.planning.cache import needed_budget, routed_tensors, slot_bytes
from localmoe.planning.memory import RoutedTensor
from scripts.make_standin import make_standin
from tests.archs import qwen
from tests.archs.families import Q8_0, Family
from tests.archs.recipe import Dims
from tests.engine.cache_matrix import BASE, FIRST, groups_of, variants, whole_budget
from tests.engine.cached import SANITIZED, Case, Conversation, Turn, in_child, planned, run_cases
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
MIB = 1 << 20


def where(conversation: Conversation, tensor: RoutedTensor, expert: int) -> tuple[int, int]:
    """First address and bytes of one expert's part of a tensor, as the engine computes them."""
    from localmoe.engine.worker.model_tensors import expert_tensors

    (found,) = (
        t for t in expert_tensors(conversation.handle, conversation.model) if t.entry == tensor
    )
    assert found.loaded.data is not None
    return found.loaded.data + expert * found.loaded.nb[2], tensor.nbytes // tensor.experts


def readable() -> list[tuple[int, int]]:
    """Ranges of this process's address space that can be read, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
        if match is None:
            continue
        start, end = (int(number, 16) for number in match.groups())
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))
    return ranges


def survives_a_look(address: int) -> bool:
    """Whether a process that reads this byte lives on; a child tries it."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(address, 1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGSEGV
    return os.WIFEXITED(status)


def holds(start: int, content: bytes) -> bool:
    return ctypes.string_at(start, len(content)) == content


def check_places(conversation: Conversation, path: Path) -> tuple[int, int]:
    """Every expert is wholly there, with the file's bytes, or not at all; how many of each.

    What is there is what the cache says that it holds, no byte more.
    """
    cache = conversation.experts._cache
    assert cache is not None
    ranges, groups = readable(), list(groups_of(conversation.model).values())
    found: dict[tuple[int, int], set[bool]] = {}
    looked: set[bool] = set()
    for index, tensors in enumerate(groups):
        for tensor, expert in itertools.product(tensors, range(tensors[0].experts)):
            start, size = where(conversation, tensor, expert)
            there = any(a < start + size and start < b for a, b in ranges)
            found.setdefault((index, expert), set()).add(there)
            if there:
                with path.open("rb") as file:
                    file.seek(tensor.offset + expert * size)
                    wait_until(functools.partial(holds, start, file.read(size)))
            if there not in looked:
                looked.add(there)
                assert survives_a_look(start) == survives_a_look(start + size - 1) == there
    assert all(len(states) == 1 for states in found.values())
    resident = {place for place, states in found.items() if True in states}
    assert resident >= set(cache.hot(65536))  # which lists what was used
    held = sum(slot_bytes(groups[index]) for index, _ in resident)
    assert held == conversation.counters().resident_bytes
    return len(resident), len(found) - len(resident)


def look_at_places(path: Path, name: str) -> None:
    settings = dict(variants(path))[name]
    with Conversation(path, settings) as conversation:
        cache = conversation.experts._cache
        assert cache is not None
        assert conversation.say(Turn(FIRST)).reason == "length"
        resident, evicted = check_places(conversation, path)
        assert resident > 0
        assert evicted > 0
        cache.resize(settings.cache_bytes // 2)
        fewer, _ = check_places(conversation, path)
        assert 0 < fewer < resident
        assert conversation.counters().resident_bytes <= settings.cache_bytes // 2


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "gemma4", "phimoe"])
@pytest.mark.parametrize("budget", ["private, least", "private, half"])
def test_an_evicted_expert_cannot_be_read(
    architecture: str, budget: str, arch_file: Callable[[str], Path]
) -> None:
    """A forgotten read crashes; it does not compute with zeros. What is there is the file's."""
    in_child(look_at_places, arch_file(architecture), budget)


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def shrink_and_grow(path: Path) -> None:
    turns = [Turn(FIRST + str(number), 32) for number in range(4)]
    budget, smaller = 120 * MIB, 72 * MIB  # a layer has 58 MiB
    settings = planned(path, BASE, "private", budget)
    uncached = dataclasses.replace(settings, cache="off")
    with Conversation(path, uncached) as plain:
        expected = [plain.say(turn).answer for turn in turns]
    with Conversation(path, settings) as conversation:
        cache, said = conversation.experts._cache, []
        assert cache is not None
        said.append(conversation.say(turns[0]).answer)
        said.append(conversation.say(turns[1]).answer)
        before, own = anonymous(), conversation.counters().resident_bytes
        assert own > budget // 3
        cache.resize(smaller)
        after, less = anonymous(), conversation.counters().resident_bytes
        assert less <= smaller and less < own
        assert before - after > 0.9 * (own - less)
        said.append(conversation.say(turns[2]).answer)
        assert anonymous() < after - less + smaller + 2 * MIB
        cache.resize(budget)
        said.append(conversation.say(turns[3]).answer)
        assert conversation.counters().resident_bytes > budget // 2
    assert said == expected


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has memory of its own for what is freed")
def test_memory_is_really_given_back(medium_file: Path) -> None:
    """A smaller budget frees anonymous memory at once, and changes no token; so does a larger."""
    in_child(shrink_and_grow, medium_file)


def test_more_experts_than_mappings(tmp_path: Path) -> None:
    """20,480 experts in memory at once: a process may have some 65,000 mappings, and six for each
    would be more."""
    dims = Dims(
        layers=20, embd=64, heads=2, head_dim=32, experts=1024, used=8, expert_ff=32, context=1024
    )
    path = make_standin(Family(qwen.qwen3moe, dims, Q8_0), tmp_path / "many.gguf", uniform=True)
    base = dataclasses.replace(BASE, context=1024, batch=300, ubatch=300)
    whole = whole_budget(read_model(path))
    everything = dataclasses.replace(base, cache="private", cache_bytes=whole)
    turns = (Turn(FIRST * 6, 2),)
    plain, cached = run_cases(path, [Case(base, turns), Case(everything, turns)])
    assert cached.turns == plain.turns
    assert cached.counters["resident_bytes"] > 0.9 * whole


def test_tensors_that_take_several_reads(tmp_path: Path) -> None:
    """Read ahead in pieces, evicted half read and asked for again: never computed half read."""
    dims = Dims(layers=3, embd=512, heads=4, experts=12, used=2, expert_ff=4096, context=512)
    path = make_standin(Family(qwen.qwen3moe, dims, Q8_0), tmp_path / "wide.gguf", uniform=True)
    model = read_model(path)
    assert min(t.nbytes // t.experts for t in routed_tensors(model)) > 2 << 20
    base = dataclasses.replace(BASE, context=512)
    least = needed_budget(model, [0, 1, 2], base.ubatch)
    for budget in (least, max(least, whole_budget(model) * 2 // 3)):
        settings = dataclasses.replace(base, cache="private", cache_bytes=budget, read_ahead=False)
        turns = tuple(
            Turn(
                f"{number} {FIRST}",
                3,
                stop=("prefill", number % 3, 12 * number) if number % 2 else None,
            )
            for number in range(1, 8)
        )
        plain, cached = run_cases(path, [Case(base, turns), Case(settings, turns)])
        assert cached.counters["evictions"] > 0
        assert [t.answer for t in cached.turns if t.reason == "length"] == [
            t.answer for t in plain.turns if t.reason == "length"
        ]
        assert len([t for t in cached.turns if t.reason == "length"]) >= 3


def test_the_page_regime_rests_while_nothing_is_missing(arch_file: Callable[[str], Path]) -> None:
    """With the whole file in the page cache it soon looks at one token of eight."""
    path = arch_file("qwen3moe")
    path.read_bytes()
    settings = planned(path, BASE, "page", 0)
    short, long = run_cases(path, [Case(settings, (Turn("Hello.", tokens=n),)) for n in (30, 150)])
    per_token = short.counters["calls"] / 30
    assert long.counters["calls"] < (32 + 150 / 4) * per_token
    assert long.turns[0].logits[:25] == short.turns[0].logits[:25]
