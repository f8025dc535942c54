"""Our own files, and what processes promise each other."""

from __future__ import annotations

import errno
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

from localmoe import storage
from localmoe.errors import StorageError

MIB = 1 << 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder of ours below a temporary one."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_below_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``LOCALMOE_HOME`` moves all of them; without it they are where the system wants them."""
    folders = [storage.config_dir, storage.data_dir, storage.cache_dir, storage.state_dir]
    assert [f() for f in folders] == [home / n for n in ("config", "data", "cache", "state")]
    assert storage.models_dir() == home / "data" / "models"
    monkeypatch.delenv("LOCALMOE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "xdg"))
    assert storage.state_dir() == home / "xdg" / "localmoe"
    assert len({f() for f in folders}) == 4


def test_asking_for_a_folder_creates_none(home: Path) -> None:
    storage.models_dir()
    storage.promises()
    assert not home.exists()


def test_private_folders(home: Path) -> None:
    """Every folder that has to be made is 0700, whatever the umask; what exists is left alone."""
    home.mkdir(mode=0o755)
    old = os.umask(0)
    try:
        made = storage.private_dir(home / "a" / "b")
    finally:
        os.umask(old)
    assert [mode(home), mode(home / "a"), mode(made)] == [0o755, 0o700, 0o700]
    assert storage.private_dir(made) == made


def test_a_file_in_the_place_of_a_folder(home: Path) -> None:
    home.mkdir()
    (home / "file").write_text("")
    for path in (home / "file", home / "file" / "below"):
        with pytest.raises(StorageError, match="not a directory"):
            storage.private_dir(path)


def test_atomic_write(home: Path) -> None:
    """Text or bytes, 0600, folders made, nothing left beside the file."""
    path = home / "chats" / "one.json"
    storage.atomic_write(path, "grüße")
    assert path.read_text("utf-8") == "grüße"
    storage.atomic_write(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert mode(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_changes_nothing(home: Path) -> None:
    """On a disk without room the old content stays, and nothing half-written."""
    path = home / "file"
    storage.atomic_write(path, "old")
    script = (
        "import resource, signal, sys; from pathlib import Path; from localmoe import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: storage.atomic_write(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except storage.StorageError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"cannot write {path}: {os.strerror(errno.EFBIG).lower()}"
    assert path.read_text() == "old"
    assert list(home.iterdir()) == [path]


# What another localmoe process does: promise, take some memory, wait until its stdin closes.
_OTHER = """
import mmap, subprocess, sys
from localmoe import storage
ram, own, child = map(int, sys.argv[1:4])
with storage.promise(ram, {"CUDA0": 7}):
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
        process.wait(30)
        _pipe(process.stdout).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def ledger(home: Path) -> list[Path]:
    return list((home / "state" / "promises").glob("*"))


def test_a_promise_is_seen_by_others_while_it_lasts(home: Path) -> None:
    """Another process sees bytes of RAM and per device; at the end the ledger is empty."""
    with other_process(1000 * MIB) as process:
        (promise,) = storage.promises()
        assert (promise.pid, promise.ram, promise.devices) == (
            process.pid,
            1000 * MIB,
            {"CUDA0": 7},
        )
        assert [mode(path) for path in ledger(home)] == [0o600]
    assert storage.promises() == []
    assert ledger(home) == []


def test_own_promises_are_not_counted(home: Path) -> None:
    """A process plans with what others promised, not with its own plan; an error ends it too."""
    with pytest.raises(ZeroDivisionError), storage.promise(MIB, {}):
        assert len(ledger(home)) == 1
        assert storage.promises() == []
        1 / 0  # noqa: B018
    assert ledger(home) == []


def test_memory_already_taken_is_not_outstanding() -> None:
    """What process and worker hold is gone from the kernel's figure already: counted once."""
    with other_process(1000 * MIB, own=200 * MIB, child=300 * MIB):
        (promise,) = storage.promises()
        assert 400 * MIB < promise.outstanding_ram <= 500 * MIB
    with other_process(10 * MIB, own=100 * MIB):
        (promise,) = storage.promises()
        assert promise.outstanding_ram == 0


def test_mapped_weights_stay_outstanding(tmp_path: Path) -> None:
    """Pages of a mapped file can be dropped, so the kernel calls them available: not taken."""
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(1 << 16) * (200 * MIB >> 16))
    with other_process(1000 * MIB, mapped=file) as process:
        assert psutil.Process(process.pid).memory_info().rss > 200 * MIB
        (promise,) = storage.promises()
        assert promise.outstanding_ram > 900 * MIB


def test_a_killed_process_promises_nothing(home: Path) -> None:
    """Its file is still there and is removed by the next one to look."""
    with other_process(MIB) as process:
        process.kill()
        process.wait(30)
        assert len(ledger(home)) == 1
        assert storage.promises() == []
        assert ledger(home) == []


def test_a_reused_process_id_is_another_process(home: Path) -> None:
    """The same number with another start time is not the one that promised."""
    entry = {"pid": os.getppid(), "started": time.time() - 10_000_000, "ram": MIB, "devices": {}}
    storage.atomic_write(home / "state" / "promises" / "1-a.json", json.dumps(entry))
    assert storage.promises() == []
    assert ledger(home) == []


def test_two_promises_of_one_process_share_what_it_holds(home: Path) -> None:
    """Memory held is taken off once, not off each promise."""
    with other_process(1000 * MIB, own=200 * MIB) as process:
        (path,) = ledger(home)
        entry = json.loads(path.read_text())
        storage.atomic_write(path.with_name(f"{process.pid}-second.json"), json.dumps(entry))
        outstanding = sum(promise.outstanding_ram for promise in storage.promises())
        assert 1700 * MIB < outstanding <= 1800 * MIB


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x", "started": 0, "ram": 0, "devices": {}}',
     '{"pid": -1, "started": 0, "ram": 0, "devices": {}}',
     '{"pid": 1, "started": 1e999, "ram": 1e999, "devices": {}}',
     '{"pid": 1, "started": 0, "ram": 0, "devices": 3}', "[" * 100_000, "\udcff"],
)  # fmt: skip
def test_damaged_entries_are_dropped(home: Path, content: str) -> None:
    path = home / "state" / "promises" / "1-a.json"
    storage.atomic_write(path, content.encode("utf-8", "surrogateescape"))
    assert storage.promises() == []
    assert not path.exists()


def test_a_ledger_that_cannot_be_written_stops_nobody(home: Path) -> None:
    home.write_text("a file where the folder should be")
    ran = False
    with storage.promise(MIB, {}):
        ran = True
    assert ran
    assert storage.promises() == []
