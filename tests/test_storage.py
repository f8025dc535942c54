"""Our own files, and what processes promise each other."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

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
    storage.models_dir()
    assert not home.exists()


def test_what_a_folder_takes(home: Path) -> None:
    """Files at any depth; a link counts as itself, and what is not there takes nothing."""
    assert storage.bytes_below(home / "nothing") == 0
    (home / "a" / "b").mkdir(parents=True)
    (home / "a" / "one").write_bytes(bytes(1000))
    (home / "a" / "b" / "two").write_bytes(bytes(234))
    (home / "a" / "link").symlink_to(home / "a" / "one")
    assert 1234 <= storage.bytes_below(home) < 2234


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


@pytest.mark.process
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


@pytest.mark.parametrize("variable", ["HOME", "LOCALMOE_HOME"])
def test_a_home_that_is_not_there(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typed error that says what to set, not an accident of the library's."""
    monkeypatch.setenv(variable, "~nosuch")
    with pytest.raises(StorageError) as caught:
        storage.user_path("~/models" if variable == "HOME" else "~nosuch/models")
    assert caught.value.hint
    if variable == "LOCALMOE_HOME":
        with pytest.raises(StorageError, match="there is no home folder ~nosuch"):
            storage.data_dir()
