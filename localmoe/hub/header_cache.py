"""Compact headers on disk, by the hash of the file they are of; bounded, the oldest go first.

One file each: a line of JSON, then the header. A damaged one counts as none.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from localmoe import kept, storage
from localmoe.errors import StorageError
from localmoe.hub.compact import Block, Compact

LIMIT = 256 << 20  # bytes of all entries together
_LARGEST = 1 << 28  # bytes of one entry
_FORMAT = 1


class HeaderCache:
    """The kept headers of files, by the files' hashes. One that cannot be written is not kept."""

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder = folder or storage.cache_dir() / "headers"
        self.limit = limit

    def get(self, etag: str) -> Compact | None:
        """The header of the file with that content, if it is known."""
        path = self._path(etag)
        try:
            if path.stat().st_size > _LARGEST:
                return None
            line, _, data = path.read_bytes().partition(b"\n")
            compact = _from_json(kept.parse(line), data)
        except (OSError, *kept.DAMAGED):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the last to go
        return compact

    def put(self, etag: str, compact: Compact) -> None:
        """Keep the header of the file with that content."""
        line = json.dumps(_to_json(compact)).encode()
        with contextlib.suppress(StorageError):
            storage.atomic_write(self._path(etag), line + b"\n" + compact.data)

    def prune(self) -> None:
        """Delete those unused for longest until the folder is below its limit."""
        entries = []
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    status = path.stat()
                    entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _path(self, etag: str) -> Path:
        return self.folder / hashlib.sha256(etag.encode()).hexdigest()


def _to_json(compact: Compact) -> dict[str, Any]:
    block: dict[str, Any] | None = None
    if compact.block is not None:
        block = dataclasses.asdict(compact.block)
        for border in ("head", "tail"):
            block[border] = base64.b64encode(block[border]).decode()
    return {
        "format": _FORMAT,
        "size": compact.size,
        "cut": compact.cut,
        "block": block,
        "sha256": hashlib.sha256(compact.data).hexdigest(),
    }


def _from_json(stated: Any, data: bytes) -> Compact:
    """Raises one of ``kept.DAMAGED`` for what was not written by us."""
    if stated["format"] != _FORMAT or stated["sha256"] != hashlib.sha256(data).hexdigest():
        raise ValueError("another format, or damaged")
    block = stated["block"]
    if block is not None:
        block = Block(
            start=kept.whole(block["start"]),
            length=kept.whole(block["length"]),
            keys=kept.whole(block["keys"]),
            tokens=kept.whole(block["tokens"]),
            states_size=block["states_size"] is True,
            head=base64.b64decode(block["head"]),
            tail=base64.b64decode(block["tail"]),
        )
    return Compact(data, kept.whole(stated["size"]), kept.whole(stated["cut"]), block)
