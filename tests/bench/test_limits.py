"""A memory limit holds, whichever way it is made, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localmoe.bench import cold_start, limits
from localmoe.bench.cold_start import cached_share, forget
from localmoe.bench.limits import Group, memory_box
from localmoe.facts.cgroup import own_groups
from tests.needs import missing, no_control_group

MIB = 1 << 20
TAKE = """
import sys
sys.stdin.readline()
room = bytearray({})
for i in range(0, len(room), 4096):
    room[i] = 1
print(len(room))
"""


def taking(size: int) -> subprocess.Popen[str]:
    """A process that takes so many bytes when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKE.format(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def our_group() -> Group | None:
    return limits._own_group(128 * MIB)


@pytest.mark.process
def test_a_group_limits_what_is_in_it() -> None:
    """What fits runs; what does not is killed, and counted as killed."""
    group = our_group()
    if group is None:
        no_control_group()
    group.close()
    with memory_box(128 * MIB) as box:
        assert box.kind.startswith("cgroup")
        with taking(64 * MIB) as small:
            box.admit(small.pid)
            assert small.communicate("go\n")[0].strip() == str(64 * MIB)
        assert box.kills() == 0
        peak = box.peak()
        assert peak is None or 64 * MIB <= peak <= 128 * MIB
        with taking(512 * MIB) as large:
            box.admit(large.pid)
            large.communicate("go\n")
        assert large.returncode == -signal.SIGKILL
        assert box.kills() == 1


@pytest.mark.process
def test_a_group_is_removed() -> None:
    """After the run there is no group of ours any more."""
    with memory_box(128 * MIB):
        pass
    folders = [*own_groups("memory"), *own_groups(None)]
    ours = f"localmoe-bench-{os.getpid()}"
    assert not [folder for folder in folders if (folder / ours).exists()]


@pytest.mark.process
def test_the_substitute_holds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without groups another process takes what shall be missing, and ends with the run."""
    monkeypatch.setattr(limits, "_own_group", lambda limit: None)
    others = set(psutil.Process().children())
    with memory_box(psutil.virtual_memory().available - 256 * MIB) as box:
        assert "held" in box.kind
        (holder,) = set(psutil.Process().children()) - others
        # What was free a moment ago may have changed by what other programs took or gave.
        assert holder.memory_info().rss > 100 * MIB
    assert not set(psutil.Process().children()) - others


def test_no_limit() -> None:
    """None is no limit, and says so."""
    with memory_box(None) as box:
        assert (box.kind, box.peak(), box.kills()) == ("no limit", None, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore is asked on Linux only")
def test_another_file_takes_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model's pages give way to those of a file that takes no disk."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cold_start, "_SMALL", 0)
    monkeypatch.setattr(cold_start, "_memory", lambda: 64 * MIB)
    cold_start._filler.cache_clear()
    path = tmp_path / "file"
    path.write_bytes(os.urandom(16 * MIB))
    os.sync()
    path.read_bytes()
    try:
        assert forget([path]) == 0 == cached_share([path])
        filler = Path(f"/proc/self/fd/{cold_start._filler().fileno()}")
        assert filler.stat().st_size == 64 * MIB and filler.stat().st_blocks == 0
        assert cached_share([filler]) > 0.9
    finally:
        cold_start._filler().close()
        cold_start._filler.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore is asked on Linux only")
def test_files_are_forgotten(tmp_path: Path) -> None:
    """A file that was just read is out of the page cache afterwards."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(16 * MIB))
    os.sync()
    path.read_bytes()
    if not cached_share([path]):
        missing("this file system has no page cache")
    assert forget([path]) == 0 == cached_share([path])
