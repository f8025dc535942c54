"""Downloads that work: layout, reuse, parts, and what other programs find afterwards."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from localmoe.errors import TransferError
from localmoe.facts import catalog
from localmoe.hub.cache import RepoCache
from localmoe.hub.download import Progress, Pulled, download
from localmoe.hub.names import RepoFile
from localmoe.hub.transfer import MOST_PER_REQUEST, Stop, receive
from tests.hub.content import Blob, Generated
from tests.hub.pulling import (
    FILE,
    KEY,
    QUICK,
    REPO,
    SIZE,
    blobs,
    lookup,
    pull,
    sha256,
    snapshots,
)
from tests.hub.server import Fault, HubServer

PARTS = [f"sub/big-Q8_0-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]


def three_parts(hub: HubServer) -> list[str]:
    """A repository with a set of three parts; their hashes."""
    contents = [Generated(SIZE + n, b"GGUF", seed=n) for n in range(3)]
    hub.add(REPO, dict(zip(PARTS, contents, strict=True)))
    return [content.sha256 for content in contents]


def test_lies_where_the_hub_tools_look(hub: HubServer, hf: Path) -> None:
    """A pulled model is one that huggingface_hub itself finds, without asking the network."""
    content = Generated(SIZE, b"GGUF")
    commit = hub.add(REPO, {FILE: content}).refs["main"]
    pulled = pull()
    assert sha256(pulled.paths[0]) == content.sha256
    found = huggingface_hub.hf_hub_download(REPO, FILE, cache_dir=hf, local_files_only=True)
    assert Path(found) == pulled.paths[0]
    assert not Path(found).readlink().is_absolute()
    assert (hf / "models--user--repo" / "refs" / "main").read_text() == commit
    scanned = huggingface_hub.scan_cache_dir(hf)
    assert not scanned.warnings
    assert scanned.size_on_disk == SIZE
    assert catalog.resolve(REPO) == pulled.paths[0]


def test_a_second_pull_fetches_no_content(hub: HubServer, hf: Path) -> None:
    """What is here is not fetched again, whichever program fetched it."""
    hub.add(REPO, {FILE: Generated(SIZE, b"GGUF"), "README.md": b"# A model"})
    huggingface_hub.hf_hub_download(REPO, FILE, cache_dir=hf)
    hub.forget()
    pulled = pull()
    assert (pulled.transferred, pulled.reused) == (0, SIZE)
    assert not hub.seen(host="storage")


def test_the_listing_is_one_request(hub: HubServer, hf: Path) -> None:
    """Names, sizes, hashes and the commit come with one request, and nothing else is asked."""
    hub.add(REPO, {FILE: Generated(SIZE), "README.md": b"# A model"})
    listing, _ = lookup()
    assert len(hub.requests) == 1
    expected = hub.repositories[REPO].revisions[listing.commit]
    assert {f.path: (f.size, f.etag) for f in listing.files} == {
        path: (entry.content.size, entry.etag) for path, entry in expected.items()
    }


def test_a_mirror_without_sizes_is_asked_page_by_page(
    hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the repository's description has no sizes, all pages of the tree are read."""
    with HubServer(page_size=7, blobs=False) as mirror:
        monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
        mirror.add(REPO, {f"x-{n:02d}.gguf": bytes([n]) for n in range(30)})
        listing, _ = lookup(f"{REPO}:x-03.gguf")
        assert [f.path for f in listing.files] == [f"x-{n:02d}.gguf" for n in range(30)]
        assert mirror.count("/tree/") == 5


def test_parts_are_one_thing(hub: HubServer, hf: Path) -> None:
    """No program finds a part before all are here; complete parts survive the failure of one."""
    hashes = three_parts(hub)
    broken = (Fault(drop_after=1000, times=1), Fault(status=503, delay=0.5))
    hub.fault("content", f"{REPO}/{PARTS[2]}", *broken)
    listing, model = lookup()
    with pytest.raises(TransferError, match="503"):
        list(download(listing, model.files, patience=QUICK))
    here = blobs(hf)
    assert set(hashes[:2]) <= set(here)
    assert here[f"{hashes[2]}.incomplete"] == 1000
    assert snapshots(hf) == []
    hub.heal()
    hub.forget()
    pulled = pull()
    assert [sha256(path) for path in pulled.paths] == hashes
    assert pulled.reused == 2 * SIZE + 1
    assert {r.path.partition("?")[0] for r in hub.seen(host="storage")} == {f"/{REPO}/{PARTS[2]}"}
    assert catalog.resolve(REPO) == pulled.paths[0]


def test_parts_come_in_parallel(hub: HubServer, hf: Path) -> None:
    """Three parts that the server holds back are all under way at once."""
    three_parts(hub)
    for part in PARTS:
        hub.fault("content", f"{REPO}/{part}", Fault(stall_after=1_000_000))
    listing, model = lookup()
    with closing(download(listing, model.files, patience=QUICK)) as events:
        for event in events:
            assert isinstance(event, Progress)
            if all(part.done == 1_000_000 for part in event.parts):
                break
    assert isinstance(event, Progress)
    assert [part.state for part in event.parts] == ["downloading"] * 3


def test_progress_never_goes_back(hub: HubServer, hf: Path) -> None:
    """The display's numbers grow to the total, and end with the result."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    hub.fault("content", KEY, Fault(rate=10_000_000))
    listing, model = lookup()
    *progress, pulled = download(listing, model.files)
    assert isinstance(pulled, Pulled)
    done = [event.done for event in progress if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == SIZE
    rates = [event.rate for event in progress if isinstance(event, Progress)]
    assert any(0 < rate < 20_000_000 for rate in rates)


def test_equal_parts_are_fetched_once(hub: HubServer, hf: Path) -> None:
    """Files with equal content are one blob."""
    same = Generated(SIZE)
    names = ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]
    hub.add(REPO, dict.fromkeys(names, same))
    pulled = pull()
    assert pulled.transferred == SIZE
    assert [sha256(path) for path in pulled.paths] == [same.sha256] * 2


def test_files_outside_of_lfs_are_checked_by_their_git_id(hub: HubServer, hf: Path) -> None:
    """Small files have no sha256 on the Hub; git's own hash is checked instead."""
    hub.add(REPO, {"README.md": b"# A model"})
    hub.add("user/other", {FILE: b"GGUF"})
    reference_listing, _ = lookup("user/other")
    listing = type(reference_listing)(
        REPO,
        "main",
        hub.repositories[REPO].refs["main"],
        (RepoFile("README.md", 9, hub_blob_id(hub), lfs=False),),
    )
    *_, pulled = download(listing, listing.files, patience=QUICK)
    assert isinstance(pulled, Pulled)
    assert pulled.paths[0].read_bytes() == b"# A model"


def hub_blob_id(hub: HubServer) -> str:
    repository = hub.repositories[REPO]
    return repository.revisions[repository.refs["main"]]["README.md"].blob_id


def test_one_request_never_asks_for_more_than_the_storage_sends(hub: HubServer, hf: Path) -> None:
    """The Hub's storage refuses answers of more than 50 GB: a larger file is asked for in turns."""
    hub.add(REPO, {FILE: Generated(60 << 30, b"GGUF")})
    listing, model = lookup()
    from localmoe.hub.client import file_url

    url = file_url(REPO, listing.commit, FILE)
    for start in (0, MOST_PER_REQUEST):
        with closing(receive(url, model.files[0], start, Stop())) as chunks:
            assert next(chunks)
        end = min(60 << 30, start + MOST_PER_REQUEST)
        assert hub.wait_for_request("/model").range == f"bytes={start}-{end - 1}"
        assert end - start < 50_000_000_000
        hub.forget()


def test_a_moved_folder_is_still_the_cache(hub: HubServer, hf: Path, tmp_path: Path) -> None:
    """People move a repository to a larger disk and leave a link: it is not fetched again."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    pull()
    elsewhere = tmp_path / "big-disk"
    (hf / "models--user--repo").rename(elsewhere)
    (hf / "models--user--repo").symlink_to(elsewhere)
    assert pull().transferred == 0


def test_a_disk_without_links_holds_the_file_itself(
    hub: HubServer, hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On FAT, where no symbolic link can be made, the file is in the snapshot; fetched once."""
    hub.add(REPO, {FILE: Blob(b"GGUF" * 1000)})

    def refuse(*args: object, **how: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    pulled = pull()
    assert not pulled.paths[0].is_symlink()
    assert pulled.paths[0].read_bytes() == b"GGUF" * 1000
    assert pull().transferred == 0
    listing, model = lookup()
    assert RepoCache.of(REPO).missing(listing.commit, model.files) == 0
