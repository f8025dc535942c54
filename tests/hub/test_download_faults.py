"""Downloads from a server or over a line that does everything wrong."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import constants

from localmoe.errors import LocalmoeError, TransferError
from localmoe.hub.download import download
from tests.hub.content import Generated
from tests.hub.pulling import (
    FILE,
    KEY,
    QUICK,
    REPO,
    SIZE,
    blobs,
    incomplete,
    lookup,
    pull,
    sha256,
    snapshots,
)
from tests.hub.server import Fault, HubServer
from tests.waiting import wait_until

HALF = SIZE // 2


@pytest.fixture
def content(hub: HubServer, hf: Path) -> Generated:
    """One model of one file."""
    generated = Generated(SIZE, b"GGUF")
    hub.add(REPO, {FILE: generated})
    return generated


def start_and_stop(hub: HubServer, at: int) -> Path:
    """Begin a download and leave it when exactly ``at`` bytes have arrived; the partial file."""
    hub.fault("content", KEY, Fault(stall_after=at))
    listing, model = lookup()
    with closing(download(listing, model.files, patience=QUICK)) as events:
        for event in events:
            if getattr(event, "done", 0) == at:
                break
    hub.heal()
    hub.forget()
    path = incomplete(Path(constants.HF_HUB_CACHE), model.files[0])
    assert path.stat().st_size == at
    return path


def refused(hub: HubServer, *fragments: str) -> TransferError:
    """A pull that ends in a TransferError which says so, with a hint; nothing is placed."""
    with pytest.raises(TransferError) as caught:
        pull()
    error = caught.value
    assert error.exit_code == 5
    assert error.hint
    for fragment in fragments:
        assert fragment in error.message
    assert snapshots(Path(constants.HF_HUB_CACHE)) == []
    return error


def test_goes_on_from_what_is_on_disk(hub: HubServer, content: Generated) -> None:
    """After a broken-off download only the missing bytes are asked for, and the hash is right."""
    start_and_stop(hub, HALF)
    pulled = pull()
    assert hub.seen(host="storage")[0].range == f"bytes={HALF}-{SIZE - 1}"
    assert (pulled.resumed, pulled.transferred) == (HALF, SIZE - HALF)
    assert sha256(pulled.paths[0]) == content.sha256


def test_a_partial_file_that_was_damaged_is_found_out(
    hub: HubServer, content: Generated, hf: Path
) -> None:
    """Bytes that a disk changed between two runs are hashed again: all is fetched anew, at once."""
    path = start_and_stop(hub, HALF)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    pulled = pull()
    assert sha256(pulled.paths[0]) == content.sha256
    assert (pulled.resumed, pulled.transferred) == (0, SIZE - HALF + SIZE)
    assert blobs(hf) == {content.sha256: SIZE}


def test_a_partial_file_with_holes_is_filled(hub: HubServer, content: Generated, hf: Path) -> None:
    """What another client wrote in several places at once is used up to its first hole."""
    path = start_and_stop(hub, HALF)
    start = 16 * 4096
    with path.open("r+b") as file:
        file.truncate(start)
        file.truncate(HALF)
        file.seek(HALF)
        file.write(b"\xff" * (SIZE - HALF))
    with path.open("rb") as file:
        if os.lseek(file.fileno(), 0, os.SEEK_HOLE) != start:
            pytest.skip("a file system without holes")
    pulled = pull()
    assert (pulled.resumed, pulled.transferred) == (start, SIZE - start)
    assert sha256(pulled.paths[0]) == content.sha256


@pytest.mark.parametrize("stage", ["resolve", "content"])
@pytest.mark.parametrize("status", [404, 500])
def test_a_file_that_is_refused_is_named(
    stage: str, status: int, hub: HubServer, content: Generated
) -> None:
    """Which of several files the Hub lists and does not give is said."""
    hub.fault(stage, KEY, Fault(status=status))  # type: ignore[arg-type]
    error = refused(hub)
    assert error.message.startswith(f"{FILE}: ")
    assert str(status) in error.message


def test_a_pause_that_the_server_asks_for_is_told(hub: HubServer, content: Generated) -> None:
    """A line says who asks to wait, and how long."""
    told: list[str] = []
    hub.fault("content", KEY, Fault(status=429, headers={"Retry-After": "1"}, times=1))
    listing, model = lookup()
    patience = dataclasses.replace(QUICK, tell=told.append)
    assert list(download(listing, model.files, patience=patience))
    (line,) = told
    assert "too many requests" in line
    assert "waiting 1" in line


def test_a_wrong_hash_twice_is_quarantined(hub: HubServer, content: Generated, hf: Path) -> None:
    """A file that was begun anew and is wrong again is the server's fault: kept aside, exit 5."""
    with start_and_stop(hub, HALF).open("r+b") as file:
        file.write(b"\xff\x00\xff")
    hub.fault("content", KEY, Fault(flip_at=SIZE - 7))
    refused(hub, "wrong hash")
    assert blobs(hf) == {f"{content.sha256}.corrupt": SIZE}


def test_one_changed_byte_is_quarantined(hub: HubServer, content: Generated, hf: Path) -> None:
    """The right size with one wrong byte never gets the name of the right file."""
    hub.fault("content", KEY, Fault(flip_at=SIZE - 7))
    error = refused(hub, "wrong hash")
    assert blobs(hf) == {f"{content.sha256}.corrupt": SIZE}
    assert error.hint and ".corrupt" in error.hint
    hub.heal()
    assert sha256(pull().paths[0]) == content.sha256


def test_a_file_that_changed_between_two_runs_starts_anew(
    hub: HubServer, content: Generated
) -> None:
    """A new commit has another hash: nothing of the old file is used for it."""
    start_and_stop(hub, HALF)
    changed = Generated(SIZE, b"GGUF", seed=1)
    hub.repositories[REPO].commit({FILE: changed})
    pulled = pull()
    assert hub.seen(host="storage")[0].range == f"bytes=0-{SIZE - 1}"
    assert (pulled.resumed, pulled.transferred) == (0, SIZE)
    assert sha256(pulled.paths[0]) == changed.sha256


def test_a_file_that_changed_under_its_commit_is_refused(
    hub: HubServer, content: Generated, hf: Path
) -> None:
    """The Hub says what it redirects to: another hash or size is refused before its bytes."""
    for header in ({"X-Linked-ETag": '"' + "0" * 64 + '"'}, {"X-Linked-Size": "5"}):
        hub.fault("resolve", KEY, Fault(headers=header, times=1))
        # The body is not read; the length of what is on disk shows it.
        refused(hub, "changed on the server")
        assert blobs(hf) == {f"{content.sha256}.incomplete": 0}


def test_an_ignored_range_costs_time_but_no_bytes_on_disk(
    hub: HubServer, content: Generated
) -> None:
    """A server that answers 200 to a range sends what is here again: it is skipped, not lost."""
    path = start_and_stop(hub, HALF)
    hub.fault("content", KEY, Fault(ignore_range=True, stall_after=HALF + 1000))
    listing, model = lookup()
    with closing(download(listing, model.files, patience=QUICK)) as events:
        sizes = [path.stat().st_size for _, event in zip(range(8), events, strict=False) if event]
    assert min(sizes) >= HALF
    hub.heal()
    hub.fault("content", KEY, Fault(ignore_range=True))
    assert sha256(pull().paths[0]) == content.sha256


def test_a_short_answer_is_continued(hub: HubServer, content: Generated) -> None:
    """A 206 of fewer bytes than asked for is taken, and the rest asked for."""
    hub.fault("content", KEY, Fault(short_by=HALF, times=2))
    assert sha256(pull().paths[0]) == content.sha256
    ranges = [r.range for r in hub.seen(host="storage")]
    assert ranges[:2] == [f"bytes=0-{SIZE - 1}", f"bytes={HALF}-{SIZE - 1}"]


@pytest.mark.parametrize(
    "stated",
    [
        f"bytes 0-{SIZE - 1}/{SIZE}",
        f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}",
        f"bytes {HALF}-{SIZE - 1}/{SIZE + 1}",
        f"bytes {HALF}-{SIZE + 5}/{SIZE}",
        f"bytes {HALF}-{HALF - 1}/{SIZE}",
        "bytes what",
        "",
    ],
)
def test_a_wrong_content_range_is_refused(hub: HubServer, content: Generated, stated: str) -> None:
    """Bytes that are not those asked for are never written."""
    path = start_and_stop(hub, HALF)
    hub.fault("content", KEY, Fault(headers={"Content-Range": stated}))
    refused(hub, FILE, "the server says")
    assert path.stat().st_size == HALF


def test_a_wrong_length_is_refused(hub: HubServer, content: Generated, hf: Path) -> None:
    """A 200 of another length than the listing's is another file."""
    hub.fault("content", KEY, Fault(ignore_range=True, headers={"Content-Length": "99"}))
    refused(hub, "99 bytes on the server")


def test_a_file_that_ends_too_soon_is_refused(hub: HubServer, content: Generated) -> None:
    """416 for bytes that the listing promises."""
    path = start_and_stop(hub, HALF)
    hub.fault("content", KEY, Fault(status=416))
    refused(hub, "416")
    assert path.stat().st_size == HALF


@pytest.mark.parametrize("ignore_range", [True, False])
def test_an_endless_body_ends_at_the_size(
    hub: HubServer, content: Generated, ignore_range: bool
) -> None:
    """No byte beyond the size is written, and the connection is closed there."""
    hub.fault("content", KEY, Fault(endless=True, ignore_range=ignore_range))
    pulled = pull()
    assert sha256(pulled.paths[0]) == content.sha256
    assert hub.wait_for_request(FILE).sent < SIZE + (16 << 20)


def test_compressed_content_is_refused(hub: HubServer, content: Generated) -> None:
    """Bytes of another encoding are not the file."""
    hub.fault("content", KEY, Fault(headers={"Content-Encoding": "gzip"}))
    refused(hub, "compressed")


def test_broken_connections_are_resumed(hub: HubServer, content: Generated) -> None:
    """Each new connection goes on where the last one broke, as often as it brings anything."""
    hub.fault("content", KEY, Fault(drop_after=500_000, times=5))
    assert sha256(pull().paths[0]) == content.sha256
    starts = [int((r.range or "").split("=")[1].split("-")[0]) for r in hub.seen(host="storage")]
    assert starts == sorted(starts)
    assert len(starts) == 6
    assert hub.sent(FILE) == SIZE


def test_a_silent_line_counts_as_broken(
    hub: HubServer, content: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that stays open without a byte is given up and made anew."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fault("content", KEY, Fault(stall_after=HALF, times=1))
    assert sha256(pull().paths[0]) == content.sha256


def test_gives_up_on_a_dead_line(hub: HubServer, content: Generated) -> None:
    """So many tries in a row without a byte, then an error; what is here is kept."""
    path = start_and_stop(hub, HALF)
    hub.fault("content", KEY, Fault(drop_after=0))
    refused(hub, "broke")
    assert len(hub.seen(host="storage")) == QUICK.tries
    assert path.stat().st_size == HALF


@pytest.mark.parametrize("stage", ["resolve", "content"])
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_server_errors_are_tried_again(
    hub: HubServer, content: Generated, status: int, stage: str
) -> None:
    """Two failures are got over; endless ones end in an error that names the status."""
    assert stage in ("resolve", "content")
    hub.fault(stage, KEY, Fault(status=status, times=2))  # type: ignore[arg-type]
    pull_again = pull()
    assert sha256(pull_again.paths[0]) == content.sha256
    hub.repositories[REPO].commit({FILE: Generated(SIZE, seed=2)})
    hub.fault(stage, KEY, Fault(status=status))  # type: ignore[arg-type]
    hub.forget()
    with pytest.raises(TransferError, match=str(status)):
        pull()
    assert hub.count("/resolve/") == QUICK.tries


def test_a_server_that_asks_to_wait_is_obeyed(hub: HubServer, content: Generated) -> None:
    """``Retry-After: 1`` is waited for; longer than we have patience for is told of."""
    hub.fault("content", KEY, Fault(status=429, headers={"Retry-After": "1"}, times=1))
    started = time.monotonic()
    assert sha256(pull().paths[0]) == content.sha256
    assert time.monotonic() - started >= 1
    hub.repositories[REPO].commit({FILE: Generated(SIZE, seed=3)})
    hub.fault("content", KEY, Fault(status=429, headers={"Retry-After": "7200"}))
    hub.forget()
    with pytest.raises(TransferError, match="2 h") as caught:
        pull()
    assert caught.value.hint and "hf auth login" in caught.value.hint
    assert len(hub.seen(host="storage")) == 1


def test_an_address_that_has_expired_is_asked_for_anew(hub: HubServer, content: Generated) -> None:
    """The storage refuses an old signature: the Hub gives a new one, and nothing is lost."""
    faults = (Fault(drop_after=HALF, times=1), Fault(status=403, times=1))
    hub.fault("content", KEY, *faults)
    pulled = pull()
    assert sha256(pulled.paths[0]) == content.sha256
    assert hub.count("/resolve/") == 3
    assert hub.sent(FILE) < SIZE + 1000


def test_a_file_that_is_gone_from_the_storage(hub: HubServer, content: Generated) -> None:
    """404 behind the redirect: an error that names the status."""
    hub.fault("content", KEY, Fault(status=404))
    refused(hub, "404")


def test_redirects_in_a_circle_end(hub: HubServer, content: Generated) -> None:
    """A Hub that redirects to itself is no Hub."""
    commit = hub.repositories[REPO].refs["main"]
    circle = f"{hub.url}/{REPO}/resolve/{commit}/{FILE}"
    hub.fault("resolve", KEY, Fault(headers={"Location": circle}))
    refused(hub)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/y", "http://[", ""])
def test_redirects_to_no_web_address_are_refused(
    hub: HubServer, content: Generated, location: str, hf: Path
) -> None:
    """Only HTTP addresses are followed."""
    hub.fault("resolve", KEY, Fault(headers={"Location": location}))
    refused(hub)
    assert sum(blobs(hf).values()) == 0


@pytest.mark.parametrize(
    "name",
    [
        "../x.gguf",
        "a/../../x.gguf",
        "/x.gguf",
        "C:\\x.gguf",
        "a\\..\\x.gguf",
        "a\0.gguf",
        "./x.gguf",
    ],
)
def test_unsafe_names_are_refused(hub: HubServer, hf: Path, tmp_path: Path, name: str) -> None:
    """A name that could lead out of its folder is refused before anything is written."""
    hub.add(REPO, {name: b"GGUF"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TransferError, match="unsafe name"):
        pull(f"{REPO}:{name}")
    assert sorted(tmp_path.rglob("*")) == before
    assert not hub.seen(host="storage")


def test_links_that_lead_out_of_the_cache_are_not_followed(
    hub: HubServer, content: Generated, hf: Path, tmp_path: Path
) -> None:
    """Neither the partial file nor the snapshot may be somewhere else."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "precious"
    victim.write_text("mine")
    listing, _ = lookup()
    folder = hf / "models--user--repo"
    (folder / "blobs").mkdir(parents=True)
    planted = folder / "blobs" / f"{content.sha256}.incomplete"
    planted.symlink_to(victim)
    with pytest.raises(LocalmoeError):
        pull()
    planted.unlink()
    (folder / "snapshots").mkdir(exist_ok=True)
    (folder / "snapshots" / listing.commit).symlink_to(outside)
    with pytest.raises(TransferError, match="leads out"):
        pull()
    assert [p.name for p in outside.iterdir()] == ["precious"]
    assert victim.read_text() == "mine"


def test_a_stopped_transfer_leaves_no_thread(
    hub: HubServer, content: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the iterator ends a transfer that waits for a silent server, however patient."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10_000)
    hub.fault("content", KEY, Fault(stall_after=HALF))
    listing, model = lookup()
    events = download(listing, model.files)
    while getattr(next(events), "done", 0) < HALF:
        pass
    events.close()
    wait_until(lambda: not transfers(), lambda: str(transfers()))
    assert not hub.released.is_set()


def transfers() -> list[str]:
    """The threads of downloads under way."""
    return [t.name for t in threading.enumerate() if t.name.startswith(("download", "hash"))]
