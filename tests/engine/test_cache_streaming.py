"""Large batches whose layers do not fit pass through the stages, and change no logit."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.engine.events import AnswerEvent, PrefillProgress, Request
from localmoe.errors import ModelFileError
from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import needed_budget, routed_tensors
from localmoe.planning.memory import EngineSettings
from localmoe.planning.prefill import passing, stage_bytes
from scripts.make_standin import make_standin
from tests.archs import qwen
from tests.archs.families import Q4_K_M, Family
from tests.archs.recipe import Dims
from tests.engine.cache_matrix import FIRST
from tests.engine.cached import Case, Conversation, Turn, in_child, run_cases
from tests.systems.shims import shim
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
BASE = EngineSettings(context=512, batch=64, ubatch=64, threads=1, threads_batch=1)
LONG = FIRST * 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dims = Dims(layers=5, embd=256, heads=4, experts=16, used=2, expert_ff=512, context=512)
    folder = tmp_path_factory.mktemp("streamed")
    return make_standin(Family(qwen.qwen3moe, dims, Q4_K_M), folder / "wide.gguf", uniform=True)


def least(model: Model) -> int:
    layers = range(len(model.layers))
    staged = stage_bytes(model, layers) + needed_budget(model, layers, 1)
    assert passing(model, layers, BASE.ubatch).stages == staged
    return staged


def streamed(budget: int, base: EngineSettings = BASE) -> EngineSettings:
    return dataclasses.replace(base, cache="private", cache_bytes=budget, read_ahead=False)


def test_each_expert_is_read_once_per_batch(path: Path) -> None:
    """With memory for two projections a prompt reads at most a tenth more than all experts once per
    batch, and the logits are those without a cache."""
    model = read_model(path)
    turns = (Turn(LONG, 1),)
    plain, cached = run_cases(path, [Case(BASE, turns), Case(streamed(least(model)), turns)])
    assert cached.turns == plain.turns
    (said,) = cached.turns
    count = len(said.starts)
    assert count >= 4
    every = sum(tensor.nbytes for tensor in routed_tensors(model))
    assert 0.5 * count * every < cached.counters["bytes_read"] <= 1.1 * count * every


def test_batches_before_the_last_push_nothing_out(path: Path) -> None:
    """With memory for two of five layers the first batch fills it; those after it pass through the
    stages, and only a prompt's last one takes the place of others: fewer go than there are."""
    model = read_model(path)
    layers = range(len(model.layers))
    two = 2 * needed_budget(model, layers, BASE.ubatch)
    settings = streamed(stage_bytes(model, layers) + two)
    plain, cached = run_cases(path, [Case(each, (Turn(LONG, 1),)) for each in (BASE, settings)])
    assert cached.turns == plain.turns
    (said,) = cached.turns
    assert len(said.starts) >= 4
    assert 0 < cached.counters["evictions"] < sum(layer.expert_count for layer in model.layers)


@pytest.mark.parametrize("fault", ["EIO", "torn"])
def test_a_read_that_fails_spoils_no_neighbour(
    fault: str, arch_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Experts that begin within a block of the disk share it with the one before: what a failed
    read has spoilt there is read again, too, whoever brought it first."""
    path = arch_file("gpt-oss")
    assert any(tensor.offset % 4096 for tensor in routed_tensors(read_model(path)))
    turns = tuple(Turn(f"{letter} {FIRST}", 6) for letter in "ABCD")
    base = dataclasses.replace(BASE, batch=7, ubatch=7)
    budgets = [least(read_model(path)) * step // 8 for step in range(8, 12)]
    plain, *cached = run_cases(
        path,
        [Case(base, turns), *(Case(streamed(budget, base), turns) for budget in budgets * 4)],
        environment={
            "LD_PRELOAD": ":".join(
                filter(None, (os.environ.get("LD_PRELOAD"), str(shim("faults", tmp_path))))
            ),
            "DIRECT": fault,
            "RATE": "30",
            "FROM": str(min(tensor.offset for tensor in routed_tensors(read_model(path)))),
        },
    )
    assert [each.turns for each in cached] == [plain.turns] * len(cached)


def one_batch_of(conversation: Conversation) -> Iterator[AnswerEvent]:
    """A request whose first batch is done, and whose second one is about to begin."""
    conversation._generator.watch(None)
    events: Iterator[AnswerEvent] = conversation._generator.generate(Request(LONG, max_tokens=1))
    next(event for event in events if isinstance(event, PrefillProgress) and event.done)
    return events


def cut_off_between_batches(path: Path, content: bytes) -> None:
    model, times, after = read_model(path), path.stat(), Turn("Another. " + LONG, 2)
    with Conversation(path, BASE) as plain:
        one_batch_of(plain)
        expected = plain.say(after)
    with Conversation(path, streamed(least(model))) as conversation:
        events = one_batch_of(conversation)
        os.truncate(path, len(content) - 50_000)
        before = conversation.counters().bytes_read
        with pytest.raises(ModelFileError, match="was changed"):
            next(events)
        wait_until(lambda: conversation.counters().bytes_read > before)
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        said = conversation.say(after)
        assert said == expected, said


def test_what_could_not_be_read_ahead_is_read_when_it_is_needed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is cut off while the next batch's first projection comes, which takes its time, and
    whole again before the next request: that one is answered."""
    copy = Path(shutil.copy2(path, tmp_path / "model.gguf"))
    others = os.environ.get("LD_PRELOAD")
    library = str(shim("faults", tmp_path))
    monkeypatch.setenv("LD_PRELOAD", f"{others}:{library}" if others else library)
    for name, value in (("DIRECT", "slow"), ("SLOW", "1500"), ("AGAIN", "1")):
        monkeypatch.setenv(name, value)
    in_child(cut_off_between_batches, copy, copy.read_bytes())


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupts_short_batches_and_the_answer_after(path: Path, threads: int) -> None:
    """Stopped anywhere, in a prompt or in an answer; asked again, continued, with a prompt's last
    batch of any length: at several budgets nothing differs, nor with a loan for buffers."""
    base = dataclasses.replace(BASE, threads=threads, threads_batch=threads)
    model = read_model(path)
    text = FIRST * 3
    turns = (
        Turn(text, stop=("prefill", 1, 40)),
        Turn(text + "one"),
        Turn("Another. " + text, stop=("prefill", 0, 77)),
        Turn("Another. " + text, 4, stop=("decode", 2, 30)),
        *(Turn(text + "more " * n, 2) for n in range(1, 4)),
    )
    if threads > 1:  # which wait for each other on a busy machine
        turns = turns[:3]
    budget = least(model)
    small = streamed(budget, base)
    more = streamed(budget * 5 // 4, base)
    lent = dataclasses.replace(more, cache_lent=budget // 5)
    cached_so = (small, more, lent) if threads == 1 else (small,)
    plain, *cached = run_cases(path, [Case(s, turns) for s in (base, *cached_so)])
    for ran in cached:
        assert ran.turns == plain.turns
        assert 0 < ran.counters["resident_bytes"] <= budget * 5 // 4


@pytest.mark.parametrize("threads", [1, 2])
def test_without_room_for_the_stages_the_mapping_serves(path: Path, threads: int) -> None:
    """With memory for one token's experts alone, batches are multiplied where the file is mapped
    and answers from that memory, by turns: nothing differs, and prompts take nothing of it."""
    base = dataclasses.replace(BASE, threads=threads, threads_batch=threads)
    model = read_model(path)
    budget = needed_budget(model, range(len(model.layers)), 2)
    assert budget < least(model)
    turns = (Turn(LONG, 3), Turn("Another. " + LONG, stop=("prefill", 1, 40)), Turn(FIRST * 3, 3))
    plain, cached = run_cases(path, [Case(base, turns), Case(streamed(budget, base), turns)])
    assert cached.turns == plain.turns
    assert 0 < cached.counters["resident_bytes"] <= budget
    every = sum(tensor.nbytes for tensor in routed_tensors(model))
    assert cached.counters["bytes_read"] < every, "for the answers' six tokens alone"


def test_a_budget_that_shrinks_and_grows_meanwhile(path: Path) -> None:
    """Another thread moves the budget between what the stages take and all experts."""
    model = read_model(path)
    every = 2 * sum(tensor.nbytes for tensor in routed_tensors(model))
    turns = tuple(Turn(f"{n} {LONG}", 2) for n in range(2))
    shaken = Case(streamed(least(model)), turns, shaken=(least(model), every))
    plain, cached = run_cases(path, [Case(BASE, turns), shaken])
    assert cached.turns == plain.turns


def test_without_direct_reads(path: Path) -> None:
    """A file system that refuses them is read through the page cache, as whole projections too."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        pytest.skip("no file system in memory")
    copy = place / f"localmoe-streamed-{os.getpid()}.gguf"
    try:
        copy.write_bytes(path.read_bytes())
        settings = streamed(least(read_model(path)))
        turns = (Turn(LONG, 2),)
        plain, cached = run_cases(copy, [Case(BASE, turns), Case(settings, turns)])
        assert cached.turns == plain.turns
    finally:
        copy.unlink(missing_ok=True)
