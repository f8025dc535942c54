"""A local server that speaks the Hub's protocol, as the real huggingface_hub client uses it.

As a fixture::

    with HubServer() as hub:
        hub.add("user/repo", {"model-Q4_K_M.gguf": Generated(60 << 30, header)})
        os.environ["HF_ENDPOINT"] = hub.url

As a program: ``python -m tests.hub.server FOLDER`` serves ``FOLDER/USER/REPO/…``.

There are two hosts, as there are in reality: the Hub answers about repositories and redirects to
the storage, which sends the bytes and must never see a token. Everything is counted in
``requests``. ``fault`` makes one file or repository misbehave.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.hub.handlers import Handler, HttpServer, HubHandler, StorageHandler
from tests.hub.records import Fault, Request, Stage
from tests.hub.repository import Repository, Servable
from tests.waiting import wait_until

__all__ = ["Fault", "HubServer", "Request"]


class HubServer:
    """Both hosts, in threads of this process; a context manager."""

    def __init__(self, *, page_size: int = 1000, blobs: bool = True) -> None:
        self.page_size = page_size  # entries per page of a tree
        self.blobs = blobs  # whether a repository's description can have sizes and hashes
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()  # the valid ones
        self.requests: list[Request] = []
        self._faults: dict[tuple[Stage, str], list[Fault]] = {}
        self._lock = threading.Lock()
        self.released = threading.Event()
        self._hub = _listen(self, "127.0.0.1", HubHandler)
        try:
            self._storage = _listen(self, "127.0.0.2", StorageHandler)  # Linux has all of 127/8
        except OSError:
            self._storage = _listen(self, "127.0.0.1", StorageHandler)
        self.url = _url(self._hub)
        self.storage_url = _url(self._storage)

    def __enter__(self) -> Self:
        for server in (self._hub, self._storage):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()

    def add(
        self,
        repo: str,
        files: Mapping[str, Servable],
        *,
        gated: bool = False,
        private: bool = False,
        readers: frozenset[str] = frozenset(),
        gguf: dict[str, Any] | None = None,
    ) -> Repository:
        """A repository with ``files`` on ``main``. Tokens in ``readers`` become valid ones."""
        repository = Repository(repo, gated=gated, private=private, readers=readers, gguf=gguf)
        repository.commit(files)
        self.tokens |= readers
        self.repositories[repo] = repository
        return repository

    def fault(self, stage: Stage, key: str, *faults: Fault) -> None:
        """Misbehave for ``key``: ``user/repo`` (api), ``user/repo/file`` (resolve, content).

        Of several faults, each comes after the one before has been used up.
        """
        with self._lock:
            self._faults[stage, key] = list(faults)

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def release(self) -> None:
        """Let stalled answers go on, now and from now on."""
        self.released.set()

    def forget(self) -> None:
        """Start counting anew."""
        with self._lock:
            self.requests.clear()

    def sent(self, part: str = "") -> int:
        """Bytes of body in answer to requests whose path contains ``part``."""
        with self._lock:
            return sum(r.sent for r in self.requests if part in r.path)

    def count(self, part: str = "") -> int:
        """Requests whose path contains ``part``."""
        with self._lock:
            return sum(part in r.path for r in self.requests)

    def seen(self, part: str = "", host: str | None = None) -> list[Request]:
        """Requests whose path contains ``part``, of one host or of both, as they came."""
        with self._lock:
            return [r for r in self.requests if part in r.path and host in (None, r.host)]

    def wait_for_request(self, part: str, host: str = "storage") -> Request:
        """The first request whose path contains ``part``, once it has ended."""
        wait_until(
            lambda: any(request.ended for request in self.seen(part, host)),
            f"{part}: no request to the {host} has ended",
        )
        return next(request for request in self.seen(part, host) if request.ended)

    def arrived(self, request: Request) -> Request:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)
        return request

    def take_fault(self, stage: Stage, key: str) -> Fault:
        """The fault of this answer; one that is used up is gone."""
        with self._lock:
            waiting = self._faults.get((stage, key), [])
            fault = waiting[0] if waiting else Fault()
            if fault.times is not None:
                waiting[0] = replace(fault, times=fault.times - 1)
                if fault.times <= 1:
                    del waiting[0]
        if fault.delay:
            time.sleep(fault.delay)
        return fault


def _listen(hub: HubServer, address: str, handler: type[Handler]) -> HttpServer:
    server = HttpServer((address, 0), handler)
    server.hub = hub
    return server


def _url(server: HttpServer) -> str:
    host, port = server.server_address[:2]
    return f"http://{host!s}:{port}"


def main() -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="holds USER/REPO/FILES")
    folder: Path = parser.parse_args().folder
    with HubServer() as hub:
        for repo in sorted(folder.glob("*/*/")):
            files: dict[str, Servable] = {
                path.relative_to(repo).as_posix(): path
                for path in repo.rglob("*")
                if path.is_file()
            }
            hub.add(f"{repo.parent.name}/{repo.name}", files)
        print(f"export HF_ENDPOINT={hub.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
