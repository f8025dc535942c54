"""One file of the Hub onto the disk: from where it stopped, checked while it comes.

The state of a transfer is the file itself: its length is what has arrived, in order. Bytes are
written at their own offsets, never appended, so even two writers on a file system whose locks do
nothing would write the same thing. A second thread hashes what the file holds, from its beginning,
while the first one writes: whatever is on the disk has been read back before it gets its name.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from localmoe.errors import TransferError
from localmoe.hub.client import (
    check_status,
    request_headers,
    session,
    timeout,
    unreachable,
)
from localmoe.hub.names import RepoFile
from localmoe.hub.patience import Patience, TryAgainError
from localmoe.text import clean_line

if TYPE_CHECKING:
    import httpx2

MOST_PER_REQUEST = 32 << 30  # bytes; the Hub's storage sends at most 50 GB in one answer
HASH_BLOCK = 4 << 20
POLL = 0.02  # seconds between looks at what has been written

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_CHANGED = "the file changed on the server, or the server is wrong about it; run it again"


class StoppedError(Exception):
    """The transfer was stopped by ``Stop.set``; what has arrived is kept."""


class Stop:
    """Ends transfers, even those that wait for a server: their connections are shut down."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def set(self) -> None:
        self._event.set()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # it may be down already
                    connection.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        if self._event.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Sleep. Raises StoppedError as soon as somebody asks to stop."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def watching(self, response: httpx2.Response) -> Iterator[None]:
        """In the block, ``set`` shuts the connection of ``response`` down."""
        stream = response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if not isinstance(connection, socket.socket):
            yield
            return
        with self._lock:
            self._connections.add(connection)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)


class FollowingHash(threading.Thread):
    """The hash of an open file that is still growing, as its etag states it.

    sha256 for 64 hexadecimal digits; git's sha1 of a blob for 40.
    """

    def __init__(self, descriptor: int, file: RepoFile, written: int) -> None:
        super().__init__(daemon=True, name=f"hash {file.etag[:8]}")
        self.written = written  # bytes that may be read; set by the writer
        self.position = 0
        self._descriptor = descriptor
        self._size = file.size
        self._digest = hashlib.sha256() if file.lfs else hashlib.sha1(usedforsecurity=False)
        if not file.lfs:
            self._digest.update(f"blob {file.size}\0".encode())
        self._cancelled = threading.Event()
        self._error: OSError | None = None

    def run(self) -> None:
        buffer = memoryview(bytearray(min(HASH_BLOCK, max(1, self._size))))
        try:
            while self.position < self._size and not self._cancelled.is_set():
                length = min(len(buffer), self.written - self.position)
                if length < min(len(buffer), self._size - self.position):
                    self._cancelled.wait(POLL)
                    continue
                count = os.preadv(self._descriptor, [buffer[:length]], self.position)
                if count == 0:
                    raise OSError(5, "the file became shorter while it was written")
                self._digest.update(buffer[:count])
                self.position += count
        except OSError as error:
            self._error = error

    def cancel(self) -> None:
        """Stop reading; afterwards the descriptor may be closed."""
        self._cancelled.set()
        self.join()

    def result(self) -> str:
        """The hash in hexadecimal digits; waits until the whole file is read. Raises OSError."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()


def whole_until(descriptor: int) -> int:
    """Bytes from the start of a file up to its first hole.

    A partial file has holes where another program wrote several places of it at once, or where a
    file system lost what it had not yet written. Without support for SEEK_HOLE: its size.
    """
    size = os.fstat(descriptor).st_size
    try:
        return min(size, os.lseek(descriptor, 0, os.SEEK_HOLE)) if size else 0
    except OSError:
        return size


def fill(
    url: str,
    file: RepoFile,
    descriptor: int,
    arrived: Callable[[int], None],
    stop: Stop,
    patience: Patience,
) -> None:
    """Fetch what ``descriptor`` lacks of ``file``; ``arrived(position)`` after each write.

    Tries again as often as ``patience`` allows without a new byte. Raises TransferError,
    httpx2.HTTPError (a refusal of the Hub's), OSError (disk full), StoppedError.
    """
    position = os.fstat(descriptor).st_size
    failures = 0
    while position < file.size:
        before = position
        problem = TryAgainError(TransferError(f"{clean_line(file.path)}: the server sends nothing"))
        try:
            with closing(receive(url, file, position, stop)) as chunks:
                for chunk in chunks:
                    _write(descriptor, chunk, position)
                    position += len(chunk)
                    arrived(position)
            if position > before:
                failures = 0
                continue
        except TryAgainError as error:
            problem = error
        failures = failures + 1 if position == before else 1
        pause = patience.pause(failures, problem)
        if pause is None:
            raise problem.error from problem
        stop.wait(pause)


def receive(url: str, file: RepoFile, start: int, stop: Stop) -> Generator[bytes, None, None]:
    """The bytes of ``file`` from ``start`` on, perhaps not all of them.

    Raises TryAgainError, TransferError, huggingface_hub's HfHubHTTPError, StoppedError.
    """
    import httpx2

    stop.check()
    end = min(file.size, start + MOST_PER_REQUEST)
    headers = request_headers() | {"range": f"bytes={start}-{end - 1}"}
    try:
        with (
            session().stream(
                "GET", url, headers=headers, timeout=timeout(), follow_redirects=True
            ) as response,
            stop.watching(response),
        ):
            check_status(response)
            _check_identity(response, file)
            yield from _exactly(response, start, end, file, stop)
    except httpx2.TransportError as error:
        stop.check()
        raise unreachable(error) from error


def _exactly(
    response: httpx2.Response, start: int, end: int, file: RepoFile, stop: Stop
) -> Iterator[bytes]:
    """The body, less what a server sends that ignores ranges, and nothing beyond ``end``."""
    skip = _check_range(response, start, end, file)
    left = end - start
    for chunk in response.iter_raw():
        stop.check()
        if skip:
            dropped = min(skip, len(chunk))
            skip -= dropped
            chunk = chunk[dropped:]
        if len(chunk) > left:
            chunk = chunk[:left]
        if chunk:
            left -= len(chunk)
            yield chunk
        if not left:
            return  # an endless body ends here


def _check_range(response: httpx2.Response, start: int, end: int, file: RepoFile) -> int:
    """Bytes to skip at the start of an answer. Raises TransferError for a wrong answer."""
    name = clean_line(file.path)
    headers = response.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise TransferError(f"{name}: the server sends it compressed", hint=_CHANGED)
    if response.status_code == 206:
        stated = headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(stated)
        if (
            match is None
            or int(match[1]) != start
            or not start <= int(match[2]) < end
            or match[3] not in ("*", str(file.size))
        ):
            raise TransferError(
                f"{name}: asked for bytes {start}-{end - 1} of {file.size}, the server says "
                f'"{clean_line(stated)[:80]}"',
                hint=_CHANGED,
            )
        return 0
    length = headers.get("content-length")
    if length is not None and length != str(file.size):
        raise TransferError(
            f"{name}: {clean_line(length)[:20]} bytes on the server, {file.size} in its listing",
            hint=_CHANGED,
        )
    return start


def _check_identity(response: httpx2.Response, file: RepoFile) -> None:
    """Raises TransferError when the file that the Hub redirects to is not the one it has listed."""
    for answer in (*response.history, response):
        linked = answer.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
        size = answer.headers.get("x-linked-size", "")
        if (linked and linked != file.etag) or (size and size != str(file.size)):
            raise TransferError(f"{clean_line(file.path)} changed on the server", hint=_CHANGED)


def _write(descriptor: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, position)
        position += count
        view = view[count:]
