"""The ledger: promises of memory between processes that run at the same time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest

from localmoe import ledger, storage
from tests.waiting import PATIENCE

MIB = 1 << 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder of ours below a temporary one."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What another localmoe process does: promise, take some memory, wait until its stdin closes.
_OTHER = """
import mmap, subprocess, sys
from localmoe import ledger
ram, own, child = map(int, sys.argv[1:4])
with ledger.promise(ram):
    held = b"x" * own
    if child:
        code = f"held = b'x' * {child}; print('ready', flush=True); input()"
        worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        worker.stdout.readline()
    file = open(sys.argv[4], "rb") if len(sys.argv) > 4 else None
    if file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        sum(mapped[i] for i in range(0, len(mapped), 4096))
    print("ready", flush=True)
    sys.stdin.read()
    if child:
        worker.communicate("")
"""


@contextmanager
def other_process(
    ram: int, own: int = 0, child: int = 0, mapped: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that has promised ``ram`` bytes and holds ``own``, its child ``child``."""
    args = [str(n) for n in (ram, own, child)] + ([str(mapped)] if mapped else [])
    process = subprocess.Popen(
        [sys.executable, "-c", _OTHER, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert _pipe(process.stdout).readline() == "ready\n"
        yield process
    finally:
        _pipe(process.stdin).close()
        process.wait(PATIENCE)
        _pipe(process.stdout).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def entries(home: Path) -> list[Path]:
    return list((home / "state" / "promises").glob("*"))


@pytest.mark.process
def test_a_promise_is_seen_by_others_while_it_lasts(home: Path) -> None:
    """Another process sees bytes of RAM; at the end the ledger is empty."""
    with other_process(1000 * MIB) as process:
        (promise,) = ledger.promises()
        assert (promise.pid, promise.ram) == (process.pid, 1000 * MIB)
        assert [mode(path) for path in entries(home)] == [0o600]
    assert ledger.promises() == []
    assert entries(home) == []


def test_own_promises_count_too(home: Path) -> None:
    """A second model in the same process is planned beside the first; an error ends it too."""
    with pytest.raises(ZeroDivisionError), ledger.promise(10_000 * MIB):
        (promise,) = ledger.promises()
        assert promise.pid == os.getpid()
        assert len(entries(home)) == 1
        1 / 0  # noqa: B018
    assert entries(home) == []


@pytest.mark.process
def test_memory_already_taken_is_not_outstanding() -> None:
    """What process and worker hold is gone from the kernel's figure already: counted once."""
    with other_process(1000 * MIB, own=200 * MIB, child=300 * MIB):
        (promise,) = ledger.promises()
        assert 400 * MIB < promise.outstanding_ram <= 500 * MIB
    with other_process(10 * MIB, own=100 * MIB):
        (promise,) = ledger.promises()
        assert promise.outstanding_ram == 0


@pytest.mark.process
def test_mapped_weights_stay_outstanding(tmp_path: Path) -> None:
    """Pages of a mapped file can be dropped, so the kernel calls them available: not taken."""
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(1 << 16) * (200 * MIB >> 16))
    with other_process(1000 * MIB, mapped=file) as process:
        assert psutil.Process(process.pid).memory_info().rss > 200 * MIB
        (promise,) = ledger.promises()
        assert promise.outstanding_ram > 900 * MIB


@pytest.mark.process
def test_a_killed_process_promises_nothing(home: Path) -> None:
    """Its file is still there and is removed by the next one to look."""
    with other_process(MIB) as process:
        process.kill()
        process.wait(PATIENCE)
        assert len(entries(home)) == 1
        assert ledger.promises() == []
        assert entries(home) == []


def test_a_reused_process_id_is_another_process(home: Path) -> None:
    """The same number with another start time is not the one that promised."""
    entry = {"pid": os.getppid(), "started": time.time() - 10_000_000, "ram": MIB}
    storage.atomic_write(home / "state" / "promises" / "1-a.json", json.dumps(entry))
    assert ledger.promises() == []
    assert entries(home) == []


@pytest.mark.process
def test_two_promises_of_one_process_share_what_it_holds(home: Path) -> None:
    """Memory held is taken off once, not off each promise."""
    with other_process(1000 * MIB, own=200 * MIB) as process:
        (path,) = entries(home)
        entry = json.loads(path.read_text())
        storage.atomic_write(path.with_name(f"{process.pid}-second.json"), json.dumps(entry))
        outstanding = sum(promise.outstanding_ram for promise in ledger.promises())
        assert 1700 * MIB < outstanding <= 1800 * MIB


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x", "started": 0, "ram": 0}',
     '{"pid": -1, "started": 0, "ram": 0}',
     '{"pid": 1, "started": 1e999, "ram": 1e999}',
     '{"pid": 1, "started": 0, "ram": []}', "[" * 100_000, "\udcff"],
)  # fmt: skip
def test_damaged_entries_are_dropped(home: Path, content: str) -> None:
    path = home / "state" / "promises" / "1-a.json"
    storage.atomic_write(path, content.encode("utf-8", "surrogateescape"))
    assert ledger.promises() == []
    assert not path.exists()


def test_a_ledger_that_cannot_be_written_stops_nobody(home: Path) -> None:
    home.write_text("a file where the folder should be")
    ran = False
    with ledger.promise(MIB):
        ran = True
    assert ran
    assert ledger.promises() == []


_PLANS = """
import sys, time
from localmoe import ledger
print("ready", flush=True)
sys.stdin.readline()
with ledger.planning():
    seen = sum(promise.outstanding_ram for promise in ledger.promises())
    time.sleep(0.1)
    promise = ledger.promise(1 << 30)
    promise.__enter__()
print(round(seen / 2**30), flush=True)
sys.stdin.readline()
"""


@pytest.mark.process
def test_plans_made_at_the_same_instant_see_each_other() -> None:
    """Of four that start at once one finds nothing promised, one a promise, one two, one three."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _PLANS]
    others = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    try:
        for other in others:
            assert other.stdout.readline() == "ready\n"
        for other in others:
            other.stdin.write("\n")
            other.stdin.flush()
        assert sorted(int(other.stdout.readline()) for other in others) == [0, 1, 2, 3]
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_a_plan_waits_for_no_process_that_stopped(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience ends, a free ledger is not waited for, and no file is left behind by the lock."""
    pauses: list[float] = []
    clock = time.monotonic()
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock + sum(pauses))
    with ledger.planning(), ledger.planning(patience=0.2):
        assert sum(pauses) == pytest.approx(0.2, abs=0.03)
    pauses.clear()
    with ledger.planning():
        assert pauses == []
    assert [path for path in home.rglob("*") if path.is_file()] == []
