"""The files of a repository at one commit, as the Hub or an old mirror lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from localmoe.hub.client import Deadline, endpoint, get_json, hub_errors, odd_answer
from localmoe.hub.names import Reference, RepoFile
from localmoe.hub.patience import ASKING, Patience
from localmoe.text import clean_line

PAGES_LIMIT = 1000  # of one listing

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    repo: str  # as its folder in the cache is called
    revision: str  # what was asked for: "main", a tag, a commit
    commit: str  # 40 hexadecimal digits
    files: tuple[RepoFile, ...]
    gguf: Mapping[str, Any] | None = None  # the Hub's own summary of a header; untrusted


def list_files(reference: Reference, patience: Patience = ASKING) -> Listing:
    """The files of ``reference`` with size and hash, in one request (more for an old mirror).

    Raises UnknownModelError for a repository or revision that is not there (with the nearest
    names), TransferError for everything that the network, the token or the server does.
    """
    repo, revision = reference.repo, reference.revision or "main"
    path = f"/api/models/{repo}"
    if reference.revision:
        path += f"/revision/{quote(revision, safe='')}"
    with hub_errors(reference):
        deadline = Deadline()
        document, _ = get_json(endpoint() + path + "?blobs=true", patience, deadline)
        if not isinstance(document, dict):
            raise odd_answer("no description of the repository")
        commit = str(document.get("sha", ""))
        if not _COMMIT.fullmatch(commit):
            raise odd_answer("no commit")
        siblings = document.get("siblings")
        files = _files(siblings, "rfilename", "blobId", "sha256")
        if files is None:  # a mirror that does not know ``blobs``
            files = _tree(repo, commit, patience, deadline)
    name = str(document.get("id", ""))
    summary = document.get("gguf")
    return Listing(
        # The Hub ignores case, the cache does not; a renamed repository keeps the asked name.
        repo=name if name.lower() == repo.lower() else repo,
        revision=revision,
        commit=commit,
        files=files,
        gguf=summary if isinstance(summary, dict) else None,
    )


def _tree(repo: str, commit: str, patience: Patience, deadline: Deadline) -> tuple[RepoFile, ...]:
    """Files with sizes and hashes from the tree of a commit, page by page.

    For mirrors that leave both out of a repository's description.
    """
    first = f"{endpoint()}/api/models/{repo}/tree/{commit}?recursive=true"
    files: list[RepoFile] = []
    following: str | None = first
    for _ in range(PAGES_LIMIT):
        if following is None:
            return tuple(files)
        if urlsplit(following)[:2] != urlsplit(first)[:2]:
            raise odd_answer("a next page on another host")
        entries, following = get_json(following, patience, deadline)
        if isinstance(entries, list):
            entries = [e for e in entries if not (isinstance(e, dict) and e.get("type") != "file")]
        page = _files(entries, "path", "oid", "oid")
        if page is None:
            raise odd_answer("a listing without sizes")
        files += page
    raise odd_answer("an endless listing")


def _files(
    entries: object, path_key: str, blob_key: str, sha256_key: str
) -> tuple[RepoFile, ...] | None:
    """The entries of a listing, checked, as files; None when sizes or hashes are missing.

    The other parameters are the entries' keys. Raises TransferError for impossible entries.
    """
    if not isinstance(entries, list):
        raise odd_answer("no list of files")
    files = []
    for entry in entries:
        path = entry.get(path_key) if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise odd_answer("a file without a name")
        lfs = entry.get("lfs")
        size = (lfs if isinstance(lfs, dict) else entry).get("size")
        etag = lfs.get(sha256_key) if isinstance(lfs, dict) else entry.get(blob_key)
        if size is None or etag is None:
            return None
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 60:
            raise odd_answer(f"an impossible size of {clean_line(path)[:120]}")
        if not isinstance(etag, str) or not _ETAG.fullmatch(etag):  # it becomes a file's name
            raise odd_answer(f"no hash of {clean_line(path)[:120]}")
        files.append(RepoFile(path, size, etag, lfs=len(etag) == 64))
    return tuple(files)
