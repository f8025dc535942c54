"""The source package of the engine that is installed: its path, after a download if need be.

    python -m scripts.engine_source

Kept in the user's cache folder, some 75 MB for each version. LOCALMOE_LLAMA_SDIST names another
file instead.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import tarfile
import tempfile
from pathlib import Path

import platformdirs

from localmoe.engine.package import PACKAGE, download
from localmoe.errors import StorageError
from localmoe.storage import atomic_write

TEMPLATES = "/models/templates/"


def archive(version: str = "") -> Path:
    """The package of a version, or of the installed one. Raises EngineError if there is none."""
    if named := os.environ.get("LOCALMOE_LLAMA_SDIST"):
        return Path(named)
    version = version or importlib.metadata.version(PACKAGE)
    kept = platformdirs.user_cache_path("localmoe-dev") / f"{PACKAGE}-{version}.tar.gz"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            download(version, Path(folder)).rename(kept)
    return kept


def templates() -> dict[str, str]:
    """Name → text of each chat template that the package has. Raises EngineError, OSError.

    Kept beside the package: to find them in it takes seconds.
    """
    package = archive()
    kept = package.with_name(f"{package.name}.templates.json")
    if kept.is_file() and kept.stat().st_mtime >= package.stat().st_mtime:
        return dict(json.loads(kept.read_text("utf-8")))
    with tarfile.open(package) as files:
        found = {
            Path(member.name).stem: stream.read().decode()
            for member in files
            if TEMPLATES in member.name and member.name.endswith(".jinja")
            if (stream := files.extractfile(member)) is not None
        }
    with contextlib.suppress(StorageError):  # a named package may be where nobody may write
        atomic_write(kept, json.dumps(found))
    return found


if __name__ == "__main__":
    print(archive())
