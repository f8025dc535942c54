"""How the two hosts answer: the Hub about repositories, the storage with bytes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.content import Content, Flipped, OnDisk
from tests.hub.records import Fault, Host, Request
from tests.hub.repository import Entry, Repository

if TYPE_CHECKING:
    from tests.hub.server import HubServer

CHUNK = 1 << 20
SIGNATURE = "signed-for-an-hour"


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests, and no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers leave in one piece
    host: Host
    server: HttpServer
    record: Request

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        # Known before the client can know the answer, so that tests may count at once.
        self.record = self.hub.arrived(Request(self.host, self.command, self.path, headers))
        try:
            self.answer()
            self.wfile.flush()
        finally:
            self.record.ended = True

    do_HEAD = do_GET  # noqa: N815

    def answer(self) -> None:
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        """``requests`` is the log."""

    def head(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None and "Content-Length" not in headers:
            self.send_header("Content-Length", str(length))
        elif length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def body(self, data: bytes | memoryview) -> None:
        if self.command == "HEAD":
            return
        self.record.sent += len(data)
        self.wfile.write(data)

    def document(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = json.dumps(value).encode()
        kind = {"Content-Type": "application/json; charset=utf-8"}
        self.head(status, kind | dict(headers or {}), len(data))
        self.body(data)

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        """An error as the Hub gives it: the reason is in headers."""
        reason = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.document({"error": message}, status, reason | headers)

    def failed(self, fault: Fault) -> bool:
        """Whether the fault was the whole answer: a status of its own, or a broken connection."""
        if fault.status is None:
            if fault.drop_after == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            return fault.drop_after == 0
        self.document({"error": f"status {fault.status}"}, fault.status, fault.headers)
        return True


class HubHandler(Handler):
    """The Hub: who may see what, and where it is."""

    host = "hub"

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        words = [unquote(word) for word in url.path.strip("/").split("/")]
        if words[:2] == ["api", "whoami-v2"]:
            self.whoami()
        elif words == ["api", "models"]:
            self.search(query)
        elif words[:2] == ["api", "models"] and len(words) >= 4:
            self.api(f"{words[2]}/{words[3]}", words[4:], query)
        elif words[:3] == ["api", "resolve-cache", "models"] and len(words) >= 7:
            self.small_file(f"{words[3]}/{words[4]}", words[5], "/".join(words[6:]))
        elif len(words) >= 5 and words[2] == "resolve":
            self.resolve(f"{words[0]}/{words[1]}", words[3], "/".join(words[4:]))
        else:
            self.refuse(404, "", "Not Found")

    def token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    def whoami(self) -> None:
        if self.token() in self.hub.tokens:
            self.document({"type": "user", "name": "someone"})
        else:
            self.refuse(401, "", "Invalid username or password.")

    def search(self, query: Mapping[str, str]) -> None:
        wanted = query.get("search", "").lower()
        found = [r for r in self.hub.repositories.values() if wanted in r.id.lower()]
        limit = int(query.get("limit", "1000"))
        self.document([{"id": r.id, "modelId": r.id, "private": False} for r in found[:limit]])

    def find(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and commit, or None when the refusal has been sent."""
        token = self.token()
        if token is not None and token not in self.hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and token not in repository.readers):
            # To strangers the Hub does not say whether it is missing or private.
            if token is None:
                self.refuse(401, "RepoNotFound", "Invalid username or password.")
            else:
                self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def api(self, repo: str, rest: list[str], query: Mapping[str, str]) -> None:
        if self.failed(self.hub.take_fault("api", repo)):
            return
        revision = rest[1] if len(rest) >= 2 and rest[0] in ("revision", "tree") else "main"
        found = self.find(repo, revision)
        if found is None:
            return
        repository, commit = found
        if not rest or rest[0] == "revision":
            self.document(repository.info(commit, with_blobs=self.hub.blobs and "blobs" in query))
        elif rest[0] == "tree":
            self.tree(repository, commit, query)
        elif rest[0] == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": target}
                for name, target in repository.refs.items()
            ]
            self.document({"branches": branches, "tags": [], "converts": []})
        else:
            self.refuse(404, "", "Not Found")

    def tree(self, repository: Repository, commit: str, query: Mapping[str, str]) -> None:
        entries = list(repository.revisions[commit].values())
        start = int(query.get("cursor", "0"))
        page = entries[start : start + self.hub.page_size]
        headers = {}
        if start + len(page) < len(entries):
            path = f"{self.hub.url}/api/models/{repository.id}/tree/{commit}"
            after = f"recursive=true&cursor={start + len(page)}"
            headers["Link"] = f'<{path}?{after}>; rel="next"'
        self.document([entry.leaf() for entry in page], headers=headers)

    def readable(self, repo: str, revision: str, path: str) -> tuple[str, Entry] | None:
        """The commit and file, or None when the refusal has been sent."""
        found = self.find(repo, revision)
        if found is None:
            return None
        repository, commit = found
        if repository.gated and (token := self.token()) not in repository.readers:
            status = 401 if token is None else 403
            message = f"Access to model {repo} is restricted. Visit {self.hub.url}/{repo} to ask."
            self.refuse(status, "GatedRepo", message)
            return None
        entry = repository.revisions[commit].get(path)
        if entry is None:
            self.refuse(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
            return None
        return commit, entry

    def resolve(self, repo: str, revision: str, path: str) -> None:
        fault = self.hub.take_fault("resolve", f"{repo}/{path}")
        if self.failed(fault):
            return
        found = self.readable(repo, revision, path)
        if found is None:
            return
        commit, entry = found
        headers = {"X-Repo-Commit": commit}
        where = quote(f"{repo}/{path}")
        if entry.lfs:
            headers |= {
                "Location": f"{self.hub.storage_url}/{where}?commit={commit}&sig={SIGNATURE}",
                "X-Linked-Size": str(entry.content.size),
                "X-Linked-ETag": f'"{entry.etag}"',
            }
            status = 302
        else:
            location = f"/api/resolve-cache/models/{repo}/{commit}/{quote(path)}"
            headers |= {"Location": location, "ETag": f'"{entry.etag}"'}
            status = 307
        self.head(status, headers | dict(fault.headers), 0)

    def small_file(self, repo: str, commit: str, path: str) -> None:
        found = self.readable(repo, commit, path)
        if found is None:
            return
        entry = found[1]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.etag}"'}
        send(self, entry.content, headers, self.hub.take_fault("content", f"{repo}/{path}"))


class StorageHandler(Handler):
    """Where the bytes are: knows signatures, no tokens."""

    host = "storage"

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        user, repo, *rest = [*unquote(url.path).strip("/").split("/"), ""]
        path = "/".join(rest).rstrip("/")
        repository = self.hub.repositories.get(f"{user}/{repo}")
        if query.get("sig") != SIGNATURE or "Authorization" in self.headers:
            # Real storage refuses a signature and a token at once, too.
            self.document({"error": "SignatureDoesNotMatch"}, 403)
            return
        entry = repository and repository.revisions.get(query["commit"], {}).get(path)
        if not entry:
            self.document({"error": "NoSuchKey"}, 404)
            return
        fault = self.hub.take_fault("content", f"{user}/{repo}/{path}")
        # Not the sha256: the storage has names of its own.
        send(self, entry.content, {"ETag": f'"storage-{entry.etag[:16]}"'}, fault)


def send(handler: Handler, content: Content, headers: Mapping[str, str], fault: Fault) -> None:
    """The file, or the range of it that was asked for, as the fault has it."""
    if handler.failed(fault):
        return
    if fault.flip_at is not None:
        content = Flipped(content, fault.flip_at)
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"} | dict(headers)
    if handler.headers.get("If-None-Match") == headers.get("ETag"):
        handler.head(304, headers, 0)
        return
    if handler.headers.get("If-Match", headers.get("ETag")) != headers.get("ETag"):
        handler.head(412, headers, 0)
        return
    size, wanted = content.size, handler.headers.get("Range")
    start, end, status = 0, size, 200
    if wanted is not None and not fault.ignore_range:
        asked = _parse_range(wanted, size)
        if asked is None:
            headers["Content-Range"] = f"bytes */{size}"
            handler.head(416, headers, 0)
            return
        start, end = asked
        end = max(start + 1, end - fault.short_by)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        status = 206
    headers |= dict(fault.headers)
    handler.head(status, headers, None if fault.endless else end - start)
    if handler.command != "HEAD":
        _send_body(handler, content, start, end, fault)


def _send_body(handler: Handler, content: Content, start: int, end: int, fault: Fault) -> None:
    plain = fault.drop_after is None and fault.stall_after is None and fault.rate is None
    if isinstance(content, OnDisk) and plain and not fault.endless:
        handler.wfile.flush()
        with content.path.open("rb") as file:
            while start < end:
                length = min(end - start, 16 * CHUNK)
                handler.record.sent += length
                done = os.sendfile(handler.connection.fileno(), file.fileno(), start, length)
                handler.record.sent -= length - done
                if done == 0:
                    return
                start += done
        return
    sent = 0
    if fault.drop_after == 0:
        end = start  # the headers, and no more
        handler.close_connection = True
    for piece in _pieces(content, start, end, fault):
        handler.body(piece)
        sent += len(piece)
        if sent == fault.stall_after:
            handler.wfile.flush()
            handler.hub.released.wait()
        if sent == fault.drop_after:
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault.rate:
            handler.wfile.flush()
            time.sleep(len(piece) / fault.rate)


def _pieces(content: Content, start: int, end: int, fault: Fault) -> Iterator[bytes | memoryview]:
    """The bytes, cut where a fault wants to act."""
    most = min(CHUNK, fault.rate // 20) if fault.rate else CHUNK
    stops = [stop for stop in (fault.drop_after, fault.stall_after) if stop]
    sent = 0
    while start < end:
        length = min([most, end - start, *(stop - sent for stop in stops if stop > sent)])
        piece = content.read(start, length)
        yield piece
        start += len(piece)
        sent += len(piece)
    while fault.endless:
        yield bytes(CHUNK)


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """``bytes=A-B`` → (A, B + 1) within ``size``; None for what is out of range."""
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first:
        length = min(int(last), size)
        return (size - length, size) if length else None
    start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None
