"""localmoe's own files: their folders, private, and files written whole or not at all.

With ``LOCALMOE_HOME`` all folders are below that one. Folders are 0700 and files 0600: chats are
private.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NoReturn

import platformdirs

from localmoe.errors import StorageError


def config_dir() -> Path:
    """The folder of the configuration file. Like all of these it may not exist yet."""
    return _folder("config", platformdirs.user_config_dir("localmoe", appauthor=False))


def data_dir() -> Path:
    """The folder of what must last: chats, models."""
    return _folder("data", platformdirs.user_data_dir("localmoe", appauthor=False))


def cache_dir() -> Path:
    """The folder of what can be made again."""
    return _folder("cache", platformdirs.user_cache_dir("localmoe", appauthor=False))


def state_dir() -> Path:
    """The folder of this machine's present state: the input history, the ledger."""
    return _folder("state", platformdirs.user_state_dir("localmoe", appauthor=False))


def models_dir() -> Path:
    """The folder of model files that localmoe itself manages."""
    return data_dir() / "models"


def bytes_below(folder: Path) -> int:
    """Sum of the sizes of all files below a folder; files that cannot be read count as 0."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += (Path(parent) / name).lstat().st_size
    return size


def user_path(text: str) -> Path:
    """The path that was typed, ``~`` expanded. Raises StorageError if there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        if user == "~":
            message, hint = "it is not known where your home folder is", "set HOME to its path"
        else:
            message, hint = f"{text}: there is no home folder {user}", "write the path without ~"
        raise StorageError(message, hint=hint) from None


def private_dir(path: Path) -> Path:
    """Create the folder ``path``, and those above it, as 0700; returns it. Raises StorageError."""
    try:
        missing = [path, *path.parents]
        missing = missing[: next((i for i, p in enumerate(missing) if p.exists()), len(missing))]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
        if not path.is_dir():
            raise NotADirectoryError(20, "Not a directory")
    except OSError as error:
        _failed("cannot create the folder", path, error)
    return path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by a 0600 file with ``content``, or leave it as it is.

    The folder is created if need be. Raises StorageError (disk full, no permission …).
    """
    import tempfile  # late: who only reads need not wait for it

    private_dir(path.parent)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary: str | None = None
    try:
        # mkstemp creates with 0600.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the source is a plain string
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
        _failed("cannot write", path, error)


def _folder(name: str, usual: str) -> Path:
    home = os.environ.get("LOCALMOE_HOME")
    return user_path(home or usual) / (name if home else "")


def _failed(what: str, path: Path, error: OSError) -> NoReturn:
    reason = (error.strerror or str(error)).lower()
    hint = {
        28: "free some disk space",
        13: "check who owns it, or set LOCALMOE_HOME to another folder",
        30: "set LOCALMOE_HOME to a folder that can be written",
    }.get(error.errno or 0)
    raise StorageError(f"{what} {path}: {reason}", hint=hint) from error
