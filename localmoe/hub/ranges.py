"""Bytes of remote files by HTTP range requests, within bounds of size and time.

The Hub answers ``/resolve/`` with a redirect to the storage that has the bytes. The token goes to
the Hub alone; the place it names is remembered, so that further ranges go there at once.

    traffic = Traffic()
    source = RemoteSource(reference, commit, file, traffic)
    header = read_header(source)
    traffic.transferred, traffic.requests
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urljoin, urlsplit

from localmoe.errors import TransferError, UnknownModelError
from localmoe.hub import client
from localmoe.hub.client import Deadline
from localmoe.hub.names import Reference, RepoFile
from localmoe.hub.patience import ASKING, Patience, TryAgainError, persistently
from localmoe.hub.refusals import RefusedFileError
from localmoe.text import clean_line

if TYPE_CHECKING:
    import httpx2

FIRST_BLOCK = 256 * 1024  # bytes
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Traffic:
    """Counts bytes and requests, from several threads; ``patience`` is that of all requests."""

    def __init__(self, patience: Patience = ASKING) -> None:
        self.patience = patience
        self.transferred = 0  # bytes of content received
        self.requests = 0
        self._lock = threading.Lock()

    def count(self, *, requests: int = 0, transferred: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.transferred += transferred


class RemoteSource:
    """A ``ByteSource`` over a file of a repository. Keeps all that it has read from the start.

    Made for headers, whose reader asks for blocks that grow with what it has read: a header of H
    bytes costs at most H/8 + 0.75 MiB too much. All requests together have one deadline. ``read``
    and ``fetch`` raise TransferError; RefusedFileError where another file may be had.
    """

    def __init__(
        self,
        reference: Reference,
        commit: str,
        file: RepoFile,
        traffic: Traffic,
        *,
        block: int = FIRST_BLOCK,
    ) -> None:
        self.name = clean_line(file.path)
        self.size = file.size
        self.block = block  # bytes that a request asks for at least
        self._reference = reference
        self._file = file
        self._traffic = traffic
        self._prefix = bytearray()
        self._deadline: Deadline | None = None  # from the first request on
        self._origin = client.file_url(reference.repo, commit, file.path)
        self._location: str | None = None  # where the Hub sent us

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end."""
        end = min(offset + length, self.size)
        have = len(self._prefix)
        if end > have:
            self._prefix += self.fetch(have, min(max(self.block, end - have), self.size - have))
        return bytes(memoryview(self._prefix)[offset:end])

    def fetch(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``, straight from the network.

        Tries again where that can help, and then asks only for what is still missing.
        """
        data = bytearray()
        deadline = self._deadline = self._deadline or Deadline()

        def attempt() -> None:
            try:
                self._exchange(data, start, length, deadline)
            except TryAgainError:
                self._location = None  # its signature may have expired
                raise

        try:
            with client.hub_errors(self._reference):
                persistently(attempt, self._traffic.patience, deadline.sleep)
        except RefusedFileError as error:
            raise RefusedFileError(f"{self.name}: {error.message}", hint=error.hint) from error
        except UnknownModelError as error:
            raise RefusedFileError(
                f"{self.name}: the Hub lists it, and refuses it",
                hint="its access may be restricted: hf auth login",
            ) from error
        return bytes(data)

    def _exchange(self, data: bytearray, start: int, length: int, deadline: Deadline) -> None:
        """One request, and the redirects it meets, that adds to ``data`` what is missing."""
        import httpx2

        first, last = start + len(data), start + length - 1
        url = self._location or self._origin
        for _ in range(MAX_REDIRECTS + 1):
            headers = client.request_headers() | {"range": f"bytes={first}-{last}"}
            if _origin_of(url) != _origin_of(client.endpoint()):
                headers.pop("authorization", None)
            self._traffic.count(requests=1)
            try:
                with client.session().stream(
                    "GET", url, headers=headers, follow_redirects=False, timeout=client.timeout()
                ) as response:
                    if response.status_code not in _REDIRECTS:
                        self._take(response, data, first, last, deadline)
                        return
                    url = self._location = self._redirected(response, url)
            except httpx2.TransportError as error:
                raise client.unreachable(error) from error
        self._odd(f"more than {MAX_REDIRECTS} redirects")

    def _redirected(self, response: httpx2.Response, url: str) -> str:
        """The address that a redirect names. The file must be the one that was listed."""
        linked = response.headers.get("x-linked-size")
        etag = response.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
        if (linked and linked != str(self.size)) or (etag and etag != self._file.etag):
            self._odd("another file than it listed: it has changed", "run it again")
        try:
            target = urljoin(url, response.headers.get("location", ""))
            scheme = urlsplit(target).scheme
        except ValueError:
            target = scheme = ""
        if scheme not in ("http", "https") or (scheme == "http" and url.startswith("https:")):
            self._odd("a redirect to an address that is not secure")
        return target

    def _take(
        self, response: httpx2.Response, data: bytearray, first: int, last: int, deadline: Deadline
    ) -> None:
        """Check that an answer is one to this range request, and receive it."""
        client.check_status(response)
        if response.headers.get("content-encoding", "identity") != "identity":
            self._odd("the file in another encoding")
        if response.status_code == 206:
            self._check_range(response, first, last)
        elif not (first == 0 and last == self.size - 1):
            self._odd(
                "the whole file instead of a range of bytes",
                "a proxy in between may be the reason; `localmoe pull` needs no ranges",
            )
        self._receive(response, data, last + 1 - first, deadline)

    def _check_range(self, response: httpx2.Response, first: int, last: int) -> None:
        stated = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(stated)
        if (
            match is None
            or int(match[1]) != first
            or not first <= int(match[2]) <= last
            or match[3] not in ("*", str(self.size))
        ):
            self._odd(f"other bytes than asked for ({clean_line(stated)[:60]})")

    def _receive(
        self, response: httpx2.Response, data: bytearray, missing: int, deadline: Deadline
    ) -> None:
        """Add at most ``missing`` bytes to ``data``, whatever comes."""
        wanted = len(data) + missing
        for chunk in response.iter_raw():
            self._traffic.count(transferred=len(chunk))
            data += chunk[: wanted - len(data)]
            if len(data) >= wanted:
                return
            deadline.received(len(chunk))
        error = TransferError(
            f"{self.name}: {wanted - len(data):,} of {missing:,} bytes did not come",
            hint="check the network connection, and run it again",
        )
        raise TryAgainError(error)

    def _odd(self, what: str, hint: str = "check HF_ENDPOINT and the proxy") -> NoReturn:
        raise TransferError(f"{self.name}: the server sent {what}", hint=hint)


def _origin_of(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
