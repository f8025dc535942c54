"""What the download tests share."""

from __future__ import annotations

import hashlib
from pathlib import Path

from localmoe.hub import names
from localmoe.hub.download import Progress, Pulled, download
from localmoe.hub.listing import Listing, list_files
from localmoe.hub.names import ModelFiles, RepoFile
from localmoe.hub.patience import Patience

REPO = "user/repo"
FILE = "model-Q4_K_M.gguf"
KEY = f"{REPO}/{FILE}"
SIZE = 3_000_000
QUICK = Patience(tries=3, first=0.01, most=0.02, longest=2.0)


def lookup(name: str = REPO) -> tuple[Listing, ModelFiles]:
    """The listing, and the one model that ``name`` means."""
    reference = names.parse(name)
    assert reference is not None
    listing = list_files(reference, QUICK)
    contents = names.contents(listing.files)
    model = names.choose(contents.models, reference, contents.others)
    assert model is not None
    return listing, model


def pull(name: str = REPO) -> Pulled:
    """Download to the end."""
    listing, model = lookup(name)
    *progress, pulled = download(listing, model.files, patience=QUICK)
    assert all(isinstance(event, Progress) for event in progress)
    assert isinstance(pulled, Pulled)
    return pulled


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blobs(cache: Path) -> dict[str, int]:
    """File name → size of what lies in the blobs of every repository."""
    return {path.name: path.stat().st_size for path in cache.glob("models--*/blobs/*")}


def snapshots(cache: Path) -> list[str]:
    """Names of the files that programs find."""
    return sorted(p.name for p in cache.glob("models--*/snapshots/*/**/*") if not p.is_dir())


def incomplete(cache: Path, file: RepoFile) -> Path:
    return next(cache.glob("models--*")) / "blobs" / f"{file.etag}.incomplete"
