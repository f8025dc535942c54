"""What the files of a repository are where their names leave it open: a look at their headers.

kinds = look(reference, listing, traffic)       → {path: kind}, for names.contents
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from localmoe.errors import TransferError
from localmoe.facts.file_kind import read_kind
from localmoe.hub.compact import BytesSource
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.listing import Listing
from localmoe.hub.names import Reference, RepoFile, doubtful
from localmoe.hub.ranges import RemoteSource, Traffic

MOST = 16  # files of one repository that are looked at
BLOCK = 16 * 1024  # bytes; the keys that matter are among the first
WORKERS = 4  # connections


def look(reference: Reference, listing: Listing, traffic: Traffic) -> Mapping[str, str]:
    """The kinds (``facts.file_kind``) of the files with doubtful names, by path.

    Of a file that cannot be read nothing is said: its name decides. Never raises TransferError.
    """
    files = doubtful(listing.files)[:MOST]
    if not files:
        return {}
    cache = HeaderCache()

    def kind(file: RepoFile) -> str | None:
        known = cache.get(file.etag)
        if known is not None:
            return read_kind(BytesSource(known.data, known.size))
        source = RemoteSource(reference, listing.commit, file, traffic, block=BLOCK)
        try:
            return read_kind(source)
        except TransferError:
            return None

    with ThreadPoolExecutor(WORKERS) as pool:
        found = zip(files, pool.map(kind, files), strict=True)
        return {file.path: answer for file, answer in found if answer is not None}
