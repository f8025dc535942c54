"""Batches whose experts the page cache does not hold until they are multiplied."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from localmoe.bench.limits import Group, memory_box
from localmoe.engine.client import Engine
from localmoe.engine.events import Request, Sampling, Token
from localmoe.facts.model import read_model
from localmoe.planning.cache import routed_tensors
from localmoe.planning.memory import EngineSettings
from tests.needs import no_control_group

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
SETTINGS = EngineSettings(
    context=512, batch=128, ubatch=128, threads=1, threads_batch=1, cache="page", read_ahead=False
)
PROMPTS = [f"{n}. A mixture of experts has small networks and a router. " * 4 for n in range(3)]
PAGE = 4096


def answers(engine: Engine) -> list[list[int]]:
    """The tokens that answer each of the prompts."""
    asked = (Request(text, max_tokens=3, sampling=Sampling(temperature=0)) for text in PROMPTS)
    return [[e.token for e in engine.generate(a) if isinstance(e, Token)] for a in asked]


def faults(pid: int) -> int:
    """Pages that the process has had to wait for."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


def anonymous(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_pages_come_by_large_reads(medium_file: Path) -> None:
    """In a group with room for less than one projection: the same tokens, and no fault per page."""
    model = read_model(medium_file)
    experts = routed_tensors(model)
    with Engine(model, SETTINGS, remember=False) as engine:
        list(engine.load())
        expected = answers(engine)
        own = anonymous(engine.pid)
    with medium_file.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    room = model.dense_bytes + min(entry.nbytes for entry in experts) // 2
    with (
        memory_box(own + room) as box,
        Engine(model, SETTINGS, remember=False) as engine,
    ):
        if not isinstance(box, Group):
            no_control_group()
        box.admit(engine.pid)
        list(engine.load())
        before = faults(engine.pid)
        assert answers(engine) == expected
        whole = sum(entry.nbytes for entry in experts) // PAGE
        assert faults(engine.pid) - before < len(PROMPTS) * whole // 10


def flags_of(pid: int, path: Path, offset: int) -> list[str]:
    """What the system knows of the mapping that has this place of a file (proc_pid_smaps(5))."""
    found = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        place = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +(.*)", line)
        if place:
            start, end, begin = (int(place[n], 16) for n in (1, 2, 3))
            found = place[4] == str(path) and begin <= offset < begin + end - start
        elif found and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.parametrize(("cache", "expected"), [("private", True), ("page", True), ("off", False)])
def test_of_the_embedding_one_row_is_read_at_a_time(
    medium_file: Path, cache: str, expected: bool
) -> None:
    """Where memory is short the system is told so, and does not read on around each word."""
    model = read_model(medium_file)
    (words,) = (tensor for tensor in model.tensors if tensor.name == "token_embd.weight")
    settings = dataclasses.replace(SETTINGS, cache=cache, cache_bytes=model.expert_bytes // 2)
    with Engine(model, settings, remember=False) as engine:
        list(engine.load())
        flags = flags_of(engine.pid, medium_file, words.offset + words.nbytes // 2)
        assert flags and ("rr" in flags) is expected
