"""Repositories as the Hub keeps them: revisions, each a set of files, some of them in Git LFS."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hub.content import Blob, Content, OnDisk, whole

Servable = bytes | Path | Content


def as_content(data: Servable) -> Content:
    """Whatever a test has at hand, as content."""
    if isinstance(data, bytes):
        return Blob(data)
    return OnDisk(data) if isinstance(data, Path) else data


def is_lfs(path: str) -> bool:
    """The rule of the Hub's default ``.gitattributes``, as far as tests need it."""
    return path.endswith((".gguf", ".safetensors", ".bin"))


@dataclass(frozen=True)
class Entry:
    """One file of one revision."""

    path: str
    content: Content
    lfs: bool

    @property
    def blob_id(self) -> str:
        """Git's name: of the file itself, or of the pointer that LFS leaves in its place."""
        if self.lfs:
            return _git_sha1(
                b"version https://git-lfs.github.com/spec/v1\n"
                + f"oid sha256:{self.content.sha256}\nsize {self.content.size}\n".encode()
            )
        return _git_sha1(whole(self.content))

    @property
    def etag(self) -> str:
        """What huggingface_hub calls the file's blob."""
        return self.content.sha256 if self.lfs else self.blob_id

    def sibling(self, *, with_blobs: bool) -> dict[str, Any]:
        """The entry in ``/api/models/REPO``."""
        if not with_blobs:
            return {"rfilename": self.path}
        entry: dict[str, Any] = {
            "rfilename": self.path,
            "blobId": self.blob_id,
            "size": self.content.size,
        }
        if self.lfs:
            size, sha256 = self.content.size, self.content.sha256
            entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        return entry

    def leaf(self) -> dict[str, Any]:
        """The entry in ``/api/models/REPO/tree/REVISION``."""
        entry: dict[str, Any] = {
            "type": "file",
            "oid": self.blob_id,
            "size": self.content.size,
            "path": self.path,
        }
        if self.lfs:
            size, sha256 = self.content.size, self.content.sha256
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """A model repository and its history on ``main``.

    ``gated``: files only for tokens in ``readers``; names and sizes for everybody. ``private``:
    without such a token it does not exist.
    """

    id: str
    gated: bool = False
    private: bool = False
    readers: frozenset[str] = frozenset()
    gguf: dict[str, Any] | None = None  # the Hub's summary of the header, if a test wants one
    revisions: dict[str, dict[str, Entry]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag → commit

    def commit(self, files: Mapping[str, Servable]) -> str:
        """Put ``files`` on top of what ``main`` has; the new commit's hash."""
        before = self.revisions.get(self.refs.get("main", ""), {})
        entries = before | {p: Entry(p, as_content(data), is_lfs(p)) for p, data in files.items()}
        listing = "\n".join(f"{e.etag} {e.path}" for e in entries.values())
        name = hashlib.sha1(f"{self.id}\n{len(self.revisions)}\n{listing}".encode()).hexdigest()
        self.revisions[name] = entries
        self.refs["main"] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit names."""
        name = self.refs.get(revision, revision)
        return name if name in self.revisions else None

    def info(self, commit: str, *, with_blobs: bool) -> dict[str, Any]:
        """The document of ``/api/models/REPO``."""
        document: dict[str, Any] = {
            "_id": "0" * 24,
            "id": self.id,
            "modelId": self.id,
            "author": self.id.partition("/")[0],
            "sha": commit,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": ["gguf"],
            "siblings": [
                entry.sibling(with_blobs=with_blobs) for entry in self.revisions[commit].values()
            ],
        }
        if self.gguf is not None:
            document["gguf"] = self.gguf
        return document


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
