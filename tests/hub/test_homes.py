"""Caches on file systems and with settings that people have: no links, no locks, no writing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from filelock import FileLock

from localmoe.errors import StorageError
from localmoe.facts import catalog
from localmoe.facts.local_files import hub_cache
from localmoe.hub import removal
from localmoe.hub.locks import try_lock
from tests.hub.command import HubCommand
from tests.hub.content import Generated
from tests.hub.pulling import FILE, REPO, SIZE, pull, sha256, snapshots
from tests.hub.server import HubServer

pytestmark = pytest.mark.process

NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@pytest.fixture
def content(hub: HubServer, hf: Path) -> Generated:
    """One model of one file."""
    generated = Generated(SIZE, b"GGUF")
    hub.add(REPO, {FILE: generated})
    return generated


@pytest.fixture(params=[*NO_LINKS, "HF_HUB_DISABLE_SYMLINKS"])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without symbolic links (exFAT, FUSE, network), or a user who wants none."""
    if isinstance(request.param, str):
        monkeypatch.setenv(request.param, "1")
        return

    def refused(*args: object, **how: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "symlink", refused)


@pytest.mark.usefixtures("no_links")
def test_a_cache_without_links(hub: HubServer, hf: Path, content: Generated) -> None:
    """The files themselves get their names; nothing is fetched twice, and all can be removed."""
    pulled = pull()
    (path,) = pulled.paths
    assert not path.is_symlink()
    assert sha256(path) == content.sha256
    assert not list(hf.glob("models--*/blobs/*"))
    assert catalog.resolve(REPO) == path
    again = pull()
    assert (again.transferred, again.reused, again.paths) == (0, SIZE, pulled.paths)
    assert removal.remove(removal.plan(path)).freed >= SIZE
    assert not (hf / "models--user--repo").exists()


@pytest.mark.usefixtures("no_links")
def test_equal_contents_without_links(hub: HubServer, hf: Path) -> None:
    """Two parts of one content are two files, fetched once."""
    same = Generated(SIZE)
    names = [f"m-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.add(REPO, dict.fromkeys(names, same))
    pulled = pull()
    assert [path.name for path in pulled.paths] == names
    assert {sha256(path) for path in pulled.paths} == {same.sha256}
    assert pulled.transferred == SIZE


def test_links_that_are_there_stay_whole(
    hub: HubServer, hf: Path, content: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who switches links off later gets a copy: an older revision still has its file."""
    old = pull().paths[0]
    hub.repositories[REPO].commit({"README.md": b"new"})
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    new = pull().paths[0]
    assert new != old and not new.is_symlink()
    assert sha256(old) == sha256(new) == content.sha256


@pytest.fixture(params=NO_LOCKS)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refused(*args: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(fcntl, "lockf", refused)


@pytest.mark.usefixtures("no_locks")
def test_a_cache_without_locks(hub: HubServer, hf: Path, content: Generated) -> None:
    """Downloads and removals work; a file takes the place of the lock, and goes again."""
    (path,) = pull().paths
    assert sha256(path) == content.sha256
    assert removal.remove(removal.plan(path)).freed >= SIZE
    assert not list(hf.glob(".locks/*/*.soft"))


@pytest.mark.usefixtures("no_locks")
def test_a_file_as_a_lock(tmp_path: Path) -> None:
    """Keeps a second one out while its process lives; of a process that is gone it is taken."""
    held = try_lock(tmp_path / "x.lock")
    assert held is not None
    assert try_lock(tmp_path / "x.lock") is None
    held.release()
    code = (
        "import os, sys; from filelock import SoftFileLock; "
        "locks = [SoftFileLock(path) for path in sys.argv[1:]]; "
        "[lock.acquire() for lock in locks]; os._exit(0)"
    )
    left = [tmp_path / name for name in ("y.lock", "y.lock.soft")]
    subprocess.run([sys.executable, "-c", code, *map(str, left)], check=True)
    assert all(path.exists() for path in left)
    again = try_lock(tmp_path / "y.lock")
    assert again is not None
    again.release()


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    """The usual kind, which huggingface_hub takes too."""
    with FileLock(tmp_path / "x.lock"):
        assert try_lock(tmp_path / "x.lock") is None
    lock = try_lock(tmp_path / "x.lock")
    assert lock is not None
    lock.release()


@pytest.fixture
def read_only(hf: Path, content: Generated) -> Iterator[Path]:
    """A cache of somebody else's with one model, and that model's file in it."""
    (path,) = pull().paths
    folders = [p for p in hf.rglob("*") if p.is_dir()]
    if os.geteuid() == 0:
        mounted = subprocess.run(["mount", "--bind", "-o", "ro", hf, hf], check=False)
        if mounted.returncode or os.access(hf, os.W_OK):
            subprocess.run(["umount", hf], check=False, capture_output=True)
            pytest.skip("nothing can be mounted here, and root may write everywhere")
        yield path
        subprocess.run(["umount", hf], check=True)
        return
    for folder in (hf, *folders):
        folder.chmod(0o555)
    yield path
    for folder in (hf, *folders):
        folder.chmod(0o755)


def test_a_read_only_cache(hub: HubServer, hf: Path, read_only: Path) -> None:
    """What is there is used without a write; what is not says which variable names another."""
    assert catalog.resolve(REPO) == read_only
    pulled = pull()
    assert (pulled.transferred, pulled.paths) == (0, (read_only,))
    hub.repositories[REPO].commit({FILE: Generated(SIZE, seed=3)})
    with pytest.raises(StorageError) as caught:
        pull()
    assert "HF_HUB_CACHE" in (caught.value.hint or "")
    assert "lock" not in caught.value.message
    with pytest.raises(StorageError):
        removal.remove(removal.plan(read_only))
    assert read_only.is_file()
    assert snapshots(hf) == [FILE]


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"])
@pytest.mark.parametrize("text", ["$BIG/x", "${BIG}/x", "~/x", "/plain/x"])
def test_where_the_cache_is(
    variable: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``$NAME`` and ``~`` stand for what they do in a shell, as huggingface_hub has it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BIG", str(tmp_path / "big"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv(variable, text)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(hub_cache()) == done.stdout.strip()


@pytest.mark.parametrize("seconds", ["2.5", "0.5", " 7 ", "", "0", "10"])
@pytest.mark.parametrize("variable", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_a_timeout_in_fractions(
    variable: str, seconds: str, hub: HubServer, localmoe: HubCommand
) -> None:
    """Any number of seconds will do, and none."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    done = localmoe("pull", REPO, "--yes", **{variable: seconds})
    assert done.returncode == 0, done.stderr
    if seconds == "2.5":
        assert localmoe("fit", "--json", HF_HUB_OFFLINE="1", **{variable: seconds}).returncode == 0


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf", "1,5"])
def test_a_timeout_that_is_none(seconds: str, hub: HubServer, localmoe: HubCommand) -> None:
    """Is an error of usage that names the variable."""
    done = localmoe("pull", REPO, "--yes", HF_HUB_DOWNLOAD_TIMEOUT=seconds)
    assert done.returncode == 2
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in done.stderr
    assert "Traceback" not in done.stderr


def test_contents_that_repositories_share(hub: HubServer, hf: Path) -> None:
    """huggingface_hub's store beside the repositories: freed with the last blob that needs it."""
    first, second = (shared_blob(hf, repo) for repo in ("user/one", "user/two"))
    store = first.resolve()
    assert store.parent.parent == hf / "blobs"
    removed = removal.remove(removal.plan(first))
    assert (removed.freed, removed.shared) == (0, True)
    assert sha256(second)
    removed = removal.remove(removal.plan(second))
    assert removed.freed >= SIZE and not removed.shared
    assert not store.exists()
    assert not list(hf.glob("blobs/*/*.refs"))
    assert not huggingface_hub.scan_cache_dir(hf).warnings


def shared_blob(hf: Path, repo: str) -> Path:
    """A file of ``repo`` as huggingface_hub shares it: its path in the snapshot."""
    xet = "ab" + "0" * 62
    store = hf / "blobs" / "ab" / xet
    store.parent.mkdir(parents=True, exist_ok=True)
    (hf / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    if not store.exists():
        store.write_bytes(b"GGUF" + bytes(SIZE))
    folder = hf / f"models--{repo.replace('/', '--')}"
    blob = folder / "blobs" / ("c" * 64)
    blob.parent.mkdir(parents=True)
    blob.symlink_to(f"../../blobs/ab/{xet}")
    with store.with_name(f"{xet}.refs").open("a") as refs:
        refs.write(f"{blob.relative_to(hf)}\n")
    snapshot = folder / "snapshots" / ("d" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / FILE).symlink_to(f"../../blobs/{'c' * 64}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("d" * 40)
    return snapshot / FILE


def test_what_another_client_left_goes_too(hub: HubServer, hf: Path, content: Generated) -> None:
    """huggingface_hub's partial files have names of their own: ``ETAG.SOMETHING.incomplete``."""
    (path,) = pull().paths
    blobs = hf / "models--user--repo" / "blobs"
    left = blobs / f"{content.sha256}.1a2b3c4d.incomplete"
    other = blobs / f"{'e' * 64}.1a2b3c4d.incomplete"
    for file in (left, other):
        file.write_bytes(bytes(500_000))
    removed = removal.remove(removal.plan(path))
    assert removed.freed >= SIZE + 500_000
    assert not left.exists()
    assert other.exists()


def test_linked_folders_are_not_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hf: Path
) -> None:
    """A file that our folder only links to is somebody else's: it stays."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    models = tmp_path / "home" / "data" / "models"
    models.mkdir(parents=True)
    (tmp_path / "nas").mkdir()
    theirs = tmp_path / "nas" / "theirs.gguf"
    theirs.write_bytes(b"GGUF" * 100)
    (models / "linked").symlink_to(tmp_path / "nas")
    path = catalog.resolve("theirs")
    assert path.resolve() == theirs
    with pytest.raises(Exception, match="it stays"):
        removal.plan(path)
    assert theirs.exists()
