"""Downloads by real processes: killed, side by side, and on disks that are too small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.command import HubCommand
from tests.hub.content import Generated
from tests.hub.pulling import FILE, KEY, REPO, SIZE, blobs, sha256, snapshots
from tests.hub.server import Fault, HubServer
from tests.needs import no_mount
from tests.waiting import PATIENCE, wait_until

HALF = SIZE // 2


@pytest.fixture
def content(hub: HubServer) -> Generated:
    """One model of one file."""
    generated = Generated(SIZE, b"GGUF")
    hub.add(REPO, {FILE: generated})
    return generated


def wait_until_written(cache: Path, content: Generated, size: int) -> None:
    """Until the partial file has that many bytes."""
    name = f"{content.sha256}.incomplete"
    wait_until(lambda: blobs(cache).get(name) == size, lambda: str(blobs(cache)))


@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_killed_at_half_goes_on_from_there(
    hub: HubServer, content: Generated, localmoe: HubCommand, how: signal.Signals, code: int
) -> None:
    """Whatever kills it, the next run asks for the bytes that are missing and no others."""
    hub.fault("content", KEY, Fault(stall_after=HALF))
    child = localmoe.start("pull", REPO, "--yes")
    wait_until_written(localmoe.cache, content, HALF)
    child.send_signal(how)
    out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == code
    assert not hub.released.is_set()  # the server that it waited for is as silent as before
    assert out == ""
    assert "Traceback" not in err
    if how != signal.SIGKILL:
        assert "1.5 MB are kept" in err
    assert blobs(localmoe.cache) == {f"{content.sha256}.incomplete": HALF}
    assert snapshots(localmoe.cache) == []
    hub.heal()
    hub.forget()
    done = localmoe("pull", REPO, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["resumed"], document["transferred"]) == (HALF, SIZE - HALF)
    assert [r.range for r in hub.seen(host="storage")] == [f"bytes={HALF}-{SIZE - 1}"]
    assert sha256(Path(document["path"])) == content.sha256


def test_two_at_once_fetch_it_once(
    hub: HubServer, content: Generated, localmoe: HubCommand
) -> None:
    """One writes, the other waits; both end with the model, and its bytes came once."""
    hub.fault("content", KEY, Fault(stall_after=HALF))
    first = localmoe.start("pull", REPO, "--yes")
    wait_until_written(localmoe.cache, content, HALF)
    second = localmoe.start("pull", REPO, "--yes", "--jsonl")
    states: set[str] = set()
    assert second.stdout is not None
    for line in second.stdout:
        states.update(part["state"] for part in json.loads(line)["parts"])
        if "waiting" in states:
            break
    hub.release()
    rest = second.stdout.read().splitlines()
    assert second.wait(PATIENCE) == 0
    assert first.communicate(timeout=PATIENCE) and first.returncode == 0
    assert json.loads(rest[-1])["reused"] == SIZE
    assert hub.sent(FILE) == SIZE
    assert sha256(Path(json.loads(rest[-1])["path"])) == content.sha256
    assert "downloading" not in states
    second.stdout.close()
    assert second.stderr is not None
    second.stderr.close()


def test_a_dead_writer_frees_its_lock(
    hub: HubServer, content: Generated, localmoe: HubCommand
) -> None:
    """When the writer is killed, the one that waits takes over where it stopped."""
    hub.fault("content", KEY, Fault(stall_after=HALF, times=1))
    first = localmoe.start("pull", REPO, "--yes")
    wait_until_written(localmoe.cache, content, HALF)
    second = localmoe.start("pull", REPO, "--yes", "--jsonl")
    assert second.stdout is not None
    for line in second.stdout:
        if json.loads(line)["parts"][0]["state"] == "waiting":
            break
    first.kill()
    first.communicate()
    last = json.loads(second.stdout.read().splitlines()[-1])
    assert second.wait(PATIENCE) == 0
    assert (last["resumed"], last["transferred"]) == (HALF, SIZE - HALF)
    assert sha256(Path(last["path"])) == content.sha256
    second.stdout.close()
    assert second.stderr is not None
    second.stderr.close()


def test_huggingface_hub_and_localmoe_wait_for_each_other(
    hub: HubServer, content: Generated, localmoe: HubCommand
) -> None:
    """Both take the same lock: while huggingface_hub downloads a file, we wait and then have it."""
    hub.fault("content", KEY, Fault(stall_after=HALF))
    code = f"from huggingface_hub import hf_hub_download as d; d({REPO!r}, {FILE!r})"
    other = subprocess.Popen([sys.executable, "-c", code], env=localmoe.environment())
    wait_until(lambda: hub.seen(host="storage"), "huggingface_hub asked for nothing")
    ours = localmoe.start("pull", REPO, "--yes", "--jsonl")
    assert ours.stdout is not None
    for line in ours.stdout:
        if json.loads(line)["parts"][0]["state"] == "waiting":
            break
    hub.release()
    out, _ = ours.communicate(timeout=PATIENCE)
    assert (ours.returncode, other.wait(PATIENCE)) == (0, 0)
    assert json.loads(out.splitlines()[-1])["reused"] == SIZE
    assert hub.sent(FILE) == SIZE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB, where the cache is."""
    folder = tmp_path / "hf"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        no_mount(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_refused_first(
    hub: HubServer, small_disk: Path, localmoe: HubCommand
) -> None:
    """With the numbers, and before any content is asked for; --yes changes nothing."""
    hub.add(REPO, {FILE: Generated(5 << 20)})
    done = localmoe("pull", REPO, "--yes")
    assert done.returncode == 3
    assert "5.2 MB to download" in done.stderr
    assert "4.2 MB free" in done.stderr
    assert "hint: free 1" in done.stderr
    assert hub.count("/resolve/") == 0


def test_a_disk_that_fills_up_keeps_what_is_there(
    hub: HubServer, content: Generated, small_disk: Path, localmoe: HubCommand
) -> None:
    """Another program takes the space: a clear error; with space again, it goes on from there."""
    hub.fault("content", KEY, Fault(stall_after=HALF))
    child = localmoe.start("pull", REPO, "--yes")
    wait_until_written(localmoe.cache, content, HALF)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(65536))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 200_000)
    hub.release()
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 5
    assert "the disk is full" in err
    assert "hint: free 1.3 MB" in err
    kept = blobs(localmoe.cache)[f"{content.sha256}.incomplete"]
    assert HALF < kept < SIZE
    filler.unlink()
    hub.heal()
    done = localmoe("pull", REPO, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["resumed"] == kept
    assert sha256(Path(document["path"])) == content.sha256


def test_a_cache_that_cannot_be_written(
    hub: HubServer, content: Generated, localmoe: HubCommand
) -> None:
    """A file where the cache should be: one clear line, exit 1."""
    localmoe.cache.parent.mkdir()
    localmoe.cache.write_text("not a folder")
    done = localmoe("pull", REPO, "--yes")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: cannot create" in done.stderr
