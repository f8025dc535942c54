"""``rm``: what goes, what stays, and what that frees."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from filelock import FileLock

from localmoe.errors import StorageError, UsageError
from localmoe.facts import catalog
from localmoe.hub import removal
from tests.hub.command import HubCommand
from tests.hub.content import Generated
from tests.hub.pulling import FILE, REPO, SIZE, blobs, pull, sha256, snapshots
from tests.hub.server import HubServer

PARTS = [f"m-Q8_0-{number:05d}-of-00002.gguf" for number in (1, 2)]


def used(folder: Path) -> int:
    """Bytes on disk of all files below."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(path.stat().st_blocks * 512 for path in files)


def test_frees_what_it_says(hub: HubServer, hf: Path) -> None:
    """The bytes that are stated are those that the folder shrinks by; the repository is gone."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    pulled = pull()
    blobs_folder = hf / "models--user--repo" / "blobs"
    before = used(blobs_folder)
    removed = removal.remove(removal.plan(pulled.paths[0]))
    assert removed.freed == before - used(blobs_folder) >= SIZE
    assert not (hf / "models--user--repo").exists()
    assert not huggingface_hub.scan_cache_dir(hf).warnings
    assert pull().transferred == SIZE


def test_other_files_stay(hub: HubServer, hf: Path) -> None:
    """All parts of one model go; the other quantization of the repository stays usable."""
    other = Generated(SIZE, seed=9)
    contents = {PARTS[0]: Generated(SIZE, seed=1), PARTS[1]: Generated(SIZE, seed=2)}
    hub.add(REPO, contents | {FILE: other})
    pull(f"{REPO}:Q8_0")
    kept = pull(f"{REPO}:Q4_K_M").paths[0]
    removal.remove(removal.plan(catalog.resolve(f"{REPO}:Q8_0")))
    assert snapshots(hf) == [FILE]
    assert set(blobs(hf)) == {other.sha256}
    assert sha256(kept) == other.sha256
    assert not huggingface_hub.scan_cache_dir(hf).warnings


def test_older_revisions_of_it_go_too(hub: HubServer, hf: Path) -> None:
    """A model that was updated is removed with what it was before; nothing reappears."""
    repository = hub.add(REPO, {FILE: Generated(SIZE, seed=1)})
    pull()
    repository.commit({FILE: Generated(SIZE, seed=2)})
    removed = removal.remove(removal.plan(pull().paths[0]))
    assert removed.freed >= 2 * SIZE
    assert blobs(hf) == {}
    assert snapshots(hf) == []


def test_content_with_another_name_stays(hub: HubServer, hf: Path) -> None:
    """Two names of one content: removing one frees nothing, and the other still works."""
    same = Generated(SIZE)
    hub.add(REPO, {FILE: same, "copy-Q6_K.gguf": same})
    pull(f"{REPO}:Q4_K_M")
    copy = pull(f"{REPO}:Q6_K").paths[0]
    removed = removal.remove(removal.plan(catalog.resolve(f"{REPO}:Q4_K_M")))
    assert removed.freed == 0
    assert sha256(copy) == same.sha256


def test_links_out_of_the_cache_are_only_links(hub: HubServer, hf: Path, tmp_path: Path) -> None:
    """A file elsewhere that a snapshot points to is not the cache's: it stays."""
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF" * 5000)
    snapshot = hf / "models--user--repo" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / FILE).symlink_to(mine)
    removed = removal.remove(removal.plan(snapshot / FILE))
    assert removed.freed == 0
    assert mine.exists()
    assert not (snapshot / FILE).is_symlink()


def test_only_what_is_ours(tmp_path: Path, hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other folders and the bundled model are refused; our own folder's are not."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    elsewhere = tmp_path / "elsewhere.gguf"
    own = tmp_path / "home" / "data" / "models" / "own.gguf"
    own.parent.mkdir(parents=True)
    for path in (elsewhere, own):
        path.write_bytes(b"GGUF" * 5000)
    with pytest.raises(UsageError, match="it stays"):
        removal.plan(elsewhere)
    with pytest.raises(UsageError, match="it stays"):
        removal.plan(own.parent / ".." / ".." / ".." / "elsewhere.gguf")
    with pytest.raises(UsageError, match="part of localmoe"):
        removal.plan(catalog.resolve("nano"))
    removed = removal.remove(removal.plan(own))
    assert removed.freed >= 20_000
    assert elsewhere.exists() and not own.exists()


def test_a_second_name_of_a_file_frees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hf: Path
) -> None:
    """A hard link elsewhere keeps the bytes: they are not counted as freed."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    own = tmp_path / "home" / "data" / "models" / "own.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"GGUF" * 5000)
    os.link(own, tmp_path / "kept.gguf")
    assert removal.remove(removal.plan(own)).freed == 0
    assert (tmp_path / "kept.gguf").stat().st_size == 20_000


def test_not_while_it_is_downloaded(hub: HubServer, hf: Path) -> None:
    """A lock that another process holds is respected."""
    content = Generated(SIZE)
    hub.add(REPO, {FILE: content})
    path = pull().paths[0]
    lock = FileLock(hf / ".locks" / "models--user--repo" / f"{content.sha256}.lock")
    with lock, pytest.raises(StorageError, match="being downloaded"):
        removal.remove(removal.plan(path))
    assert sha256(path) == content.sha256


def test_broken_off_downloads_can_be_removed(hub: HubServer, localmoe: HubCommand) -> None:
    """A name of which only a part has arrived: ``rm`` frees that part."""
    content = Generated(SIZE)
    hub.add(REPO, {FILE: content})
    folder = localmoe.cache / "models--user--repo" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{content.sha256}.incomplete").write_bytes(bytes(500_000))
    done = localmoe("rm", REPO, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["freed"] >= 500_000
    assert blobs(localmoe.cache) == {}
    assert localmoe("rm", REPO).returncode == 2


def test_what_to_delete_is_never_guessed(hub: HubServer, localmoe: HubCommand) -> None:
    """Of two models the one must be named, even where ``run`` would take the default."""
    hub.add(REPO, {FILE: Generated(SIZE), "m-Q2_K.gguf": Generated(SIZE, seed=1)})
    for quant in ("Q4_K_M", "Q2_K"):
        assert localmoe("pull", f"{REPO}:{quant}", "--yes").returncode == 0
    done = localmoe("rm", REPO)
    assert done.returncode == 2
    assert f"{REPO}:Q2_K" in done.stderr
    done = localmoe("rm", f"{REPO}:Q2_K")
    assert (done.returncode, done.stdout) == (0, "freed 3.0 MB\n")
    assert snapshots(localmoe.cache) == [FILE]


def test_a_cache_on_another_disk(hub: HubServer, hf: Path, tmp_path: Path) -> None:
    """The repository's folder may be a link to somewhere larger: it is still the cache."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    pull()
    shutil.move(hf / "models--user--repo", tmp_path / "big")
    (hf / "models--user--repo").symlink_to(tmp_path / "big")
    removed = removal.remove(removal.plan(catalog.resolve(REPO)))
    assert removed.freed >= SIZE
    assert snapshots(hf) == []
