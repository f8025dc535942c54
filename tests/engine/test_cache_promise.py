"""The plan is a promise: with 5 % more memory than planned, and no byte beyond, a run completes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from localmoe.bench.limits import Group, Unlimited, memory_box
from localmoe.engine.client import Engine
from localmoe.engine.events import CacheStats, Finished, Request, Sampling, Token
from localmoe.engine.oracle import Oracle
from localmoe.engine.protocol import settings_from_json
from localmoe.facts import hardware
from localmoe.facts.model import read_model
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes
from tests.needs import no_control_group
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
ROOT = Path(__file__).parents[2]
GIB, MIB = 1 << 30, 1 << 20
SHORT = 5 * MIB  # half of what counts as short of memory in a group of 512 MiB
PROMPT = "A mixture of experts has many small networks and a router. " * 4
WAIT = 'read go; exec "$@"'  # so that nothing is allocated before it is in the group
MACHINE = dataclasses.replace(hardware.detect(), ram_total=16 * GIB, ram_available=8 * GIB)


def plan_of(path: Path, ram: int) -> Plan:
    model = read_model(path)
    wishes = Wishes(context=512, threads=1, ram=ram, cache="private")
    with Oracle(model) as measure:
        return make_plan(model, MACHINE, wishes, measure)


def run(path: str, settings: str) -> None:
    """What the measured processes do: load, read a prompt, answer, and read another."""
    with Engine(
        read_model(Path(path)), settings_from_json(json.loads(settings)), remember=False
    ) as engine:
        list(engine.load())
        for prompt in (PROMPT, "Something else. " + PROMPT):
            request = Request(prompt, max_tokens=16, sampling=Sampling(temperature=0))
            done = list(engine.generate(request))[-1]
            assert isinstance(done, Finished)
            assert done.cache is not None
            print(json.dumps(dataclasses.asdict(done.cache)))


def held(pid: int) -> int:
    """Anonymous and locked bytes of a process and all that it started."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        for name in ("RssAnon", "VmLck"):
            found = re.search(rf"{name}:\s+(\d+) kB", status)
            total += int(found[1]) * 1024 if found else 0
    return total


@pytest.mark.parametrize("gib", [0.26, 0.32, 0.4])
def test_a_run_keeps_to_its_plan(gib: float, medium_file: Path) -> None:
    """Front end and worker, from their first byte on, in a control group of plan + 5 %."""
    plan = plan_of(medium_file, int(gib * GIB))
    assert plan.cache.regime == "private"
    limit = int(gib * GIB * 1.05)
    drop(medium_file)  # so that what it reads of the file counts too
    with memory_box(limit) as box:
        if not isinstance(box, Group):
            no_control_group()
        peak, answers = run_in(box, medium_file, plan)
        assert box.kills() == 0
        assert (box.peak() or 0) <= limit
    assert peak <= limit
    for answer in answers:
        assert answer["regime"] == "private"
        assert answer["resident_bytes"] <= plan.settings.cache_bytes
        assert answer["misses"] > 0


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_in(box: Unlimited, path: Path, plan: Plan) -> tuple[int, list[dict[str, Any]]]:
    """The most that was held at any look, and the cache's figures of each answer."""
    code = f"from {__name__} import run; import sys; run(*sys.argv[1:])"
    settings = json.dumps(dataclasses.asdict(plan.settings))
    child = subprocess.Popen(
        ["sh", "-c", WAIT, "sh", sys.executable, "-c", code, str(path), settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdin is not None
    box.admit(child.pid)
    child.stdin.write("go\n")
    child.stdin.flush()
    peak = 0
    while child.poll() is None:
        try:
            peak = max(peak, held(child.pid))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    said, _ = child.communicate()
    assert child.returncode == 0
    return peak, [json.loads(line) for line in said.splitlines()]


HOG = """
import sys
taken = []
for line in sys.stdin:
    room = bytearray(int(line))
    room[::4096] = b"x" * len(room[::4096])
    taken.append(room)
    print("taken", flush=True)
"""


def test_memory_is_given_back_under_pressure(medium_file: Path) -> None:
    """Another process takes nearly all that is left: the cache shrinks before anything is killed,
    the answers stay the same, and it grows again afterwards."""
    plan = plan_of(medium_file, int(0.32 * GIB))
    planned, limit = plan.settings.cache_bytes, 512 * MIB
    ask = Request(PROMPT, max_tokens=16, sampling=Sampling(temperature=0), ignore_end=True)
    with (
        memory_box(limit) as box,
        Engine(read_model(medium_file), plan.settings, remember=False) as engine,
    ):
        if not isinstance(box, Group):
            no_control_group()
        box.admit(engine.pid)
        list(engine.load())

        def answer() -> tuple[str, CacheStats]:
            text = ""
            for event in engine.generate(ask):
                text += event.text if isinstance(event, Token) else ""
            assert isinstance(event, Finished)
            assert event.cache is not None
            return text, event.cache

        answer()
        text, before = answer()
        assert before.budget == planned
        full = held(engine.pid)
        with subprocess.Popen(
            [sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as hog:
            box.admit(hog.pid)

            def shrunk() -> bool:
                """Whether the cache made room; until then whatever is free is taken."""
                if held(engine.pid) < full - 2 * SHORT:
                    return True
                surplus = free(box, limit) - SHORT
                if surplus > 0:
                    assert hog.stdin is not None and hog.stdout is not None
                    hog.stdin.write(b"%d\n" % surplus)
                    assert hog.stdout.readline() == b"taken\n"
                return False

            wait_until(shrunk)
            again, less = answer()
            hog.kill()
        assert less.budget < planned
        assert less.resident_bytes <= less.budget
        wait_until(lambda: answer()[1].budget == planned)
        assert again == answer()[0] == text
        assert box.kills() == 0


def free(box: Group, limit: int) -> int:
    """Bytes that can still be taken in the group, as localmoe counts them: page cache is free."""
    usage = int(box._read("memory.usage_in_bytes" if box._v1 else "memory.current"))
    stat = dict(line.split() for line in box._read("memory.stat").splitlines())
    prefix = "total_" if "total_active_file" in stat else ""
    return limit - usage + sum(int(stat[f"{prefix}{name}_file"]) for name in ("active", "inactive"))
