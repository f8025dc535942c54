"""The model where none is named: the configured one, else the one used last, else nano."""

from __future__ import annotations

import json
import os
from pathlib import Path

from localmoe import config, kept, storage
from localmoe.config import Config
from localmoe.errors import LocalmoeError, StorageError
from localmoe.facts import catalog

VARIABLE = "LOCALMOE_MODEL"


def default_model(read: Config | None = None) -> tuple[str, str]:
    """The name of the default model, and why it is that one.

    Raises UsageError for a configuration that cannot be read.
    """
    read = read or config.read()
    if chosen := os.environ.get(VARIABLE):
        return read.target(chosen), VARIABLE
    if read.model:
        return read.target(read.model), "the configured one"
    last = last_used()
    if last:
        return last, "the last one used"
    return catalog.BUNDLED, "the small bundled model"


def last_used() -> str | None:
    """The name of the model that was run last; None if it is not here any more."""
    try:
        text = _last_file().read_bytes()[:65_536]
        name = kept.text(kept.parse(text)["model"])
        catalog.resolve(name)
    except (OSError, LocalmoeError, *kept.DAMAGED):
        return None
    return name


def remember(name: str) -> None:
    """Note the name of the model that is being run; does nothing where it cannot be written."""
    if catalog.is_path(name):
        name = str(storage.user_path(name).absolute())
    if name == last_used():
        return
    try:
        storage.atomic_write(_last_file(), json.dumps({"model": name}))
    except StorageError:
        return


def _last_file() -> Path:
    return storage.state_dir() / "last-model.json"
