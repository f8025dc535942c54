"""Whether a server of this user has the model loaded, and how one is connected to it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from localmoe import kept, storage
from localmoe.app.default_model import default_model, remember
from localmoe.app.listener import Listener
from localmoe.app.model import LoadedModel
from localmoe.app.model_record import decoded_model
from localmoe.app.records import decoded
from localmoe.app.requests import LoadRequest, PlanRequest
from localmoe.chat.renderer import Renderer, RenderError
from localmoe.engine.attached import AttachedEngine
from localmoe.engine.events import Loaded
from localmoe.errors import LocalmoeError, StorageError
from localmoe.facts import catalog
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan, Wishes
from localmoe.text import clean_line

GREETING_LIMIT = 4 << 20  # bytes
PATIENCE = 2.0  # seconds in which a server says what it has loaded
CHANGES_ANSWERS = ("experts", "prefer_cached")  # wishes that have to be the same on both sides

Signature = tuple[tuple[str, int, int], ...]
"""Path, bytes and time of change (ns) of each of a model's files."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says first: what is loaded, from which files, and as what it was asked for."""

    files: Signature
    wishes: Wishes
    remotes: tuple[str, ...]
    plan: Plan
    machine: Machine
    loaded: Loaded
    address: str  # of its HTTP, for people


class Found(NamedTuple):
    """A connection to a server, and what it said: how its model is loaded, and which it is."""

    connected: socket.socket
    greeting: Greeting
    facts: Model


@contextlib.contextmanager
def served_model(request: LoadRequest, listener: Listener) -> Iterator[LoadedModel | None]:
    """The model, if a server of this user has it loaded as the request wants it; else None.

    At the end of the block the server keeps it. Nothing is looked for where there is no server.
    """
    if request.record or not _sockets():
        yield None
        return
    path = _path_of(request)
    found = served(path, request.plan) if path is not None else None
    if found is None:
        yield None
        return
    connected, greeting, facts = found
    kind = greeting.plan.settings.type_k
    how = "" if kind == Wishes().type_k else f", with its KV cache in {kind}"
    where = f" at {greeting.address}" if greeting.address else ""
    listener.note(
        f"{clean_line(facts.name)}: answered by the server that has it loaded{how}{where}"
    )
    if request.name is not None and request.remember:
        remember(request.name)
    engine = AttachedEngine(connected, greeting.loaded)
    try:
        renderer = ServersRenderer(engine)
        yield LoadedModel(facts, greeting.machine, greeting.plan, engine, renderer)
    finally:
        engine.close()


class ServersRenderer(Renderer):
    """The server's, which runs already: an answer need not wait for another to start."""

    def __init__(self, engine: AttachedEngine) -> None:
        super().__init__()
        self._engine = engine

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As ``Renderer.ask``. Raises EngineCrashError too, when the server is gone."""
        reply = self._engine.render(request)
        if "refused" in reply:
            raise RenderError(reply["refused"], reply["said"])
        return dict(reply["rendered"])


def served(path: Path, request: PlanRequest) -> Found | None:
    """A server that has the model at this path loaded as the request wants it; None: none has."""
    if request.machine is not None:
        return None
    for one in _sockets():
        found = _greeted(one)
        if found is None:
            continue
        if is_of(found.greeting.files, path) and agree(request, found.greeting):
            return found
        found.connected.close()
    return None


def is_of(files: Signature, path: Path) -> bool:
    """Whether the file at this path is one of these, and all of them are as they were."""
    here = os.path.realpath(path)
    return any(here == file for file, *_ in files) and files == _signed([f for f, *_ in files])


def agree(request: PlanRequest, greeting: Greeting) -> bool:
    """Whether what was asked for is what is loaded. Pure.

    An option that was not given agrees with anything, unless it changes answers.
    """
    settings = greeting.plan.settings
    there = dataclasses.asdict(greeting.wishes) | {
        "context": greeting.loaded.context,
        "type_k": settings.type_k,
        "type_v": settings.type_v,
        "threads": settings.threads,
        "batch": settings.batch,
    }
    here, usual = dataclasses.asdict(request.wishes), dataclasses.asdict(Wishes())
    return set(request.remotes) <= set(greeting.remotes) and all(
        here[name] == there[name] or (here[name] == usual[name] and name not in CHANGES_ANSWERS)
        for name in here
    )


def signature(model: Model) -> Signature:
    """Of the model's files; no two are equal where one cannot be looked at."""
    return _signed([os.path.realpath(path) for path in model.paths])


def _signed(paths: Sequence[str]) -> Signature:
    found = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116
            found.append((path, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((os.urandom(16).hex(), 0, 0))
    return tuple(found)


def is_ours(connected: socket.socket) -> bool:
    """Whether the process at the other end is one of this user's."""
    three = struct.Struct("3i")  # process, user, group
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, three.size)
    return bool(three.unpack(found)[1] == os.getuid())


@contextlib.contextmanager
def socket_folder() -> Iterator[str]:
    """Where servers have their sockets, by a short name: an address has 107 bytes at most.

    Raises StorageError, OSError.
    """
    number = os.open(storage.private_dir(_folder()), os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def _folder() -> Path:
    return storage.state_dir() / "served"


def _sockets() -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(_folder().iterdir())
    return []


def _path_of(request: LoadRequest) -> Path | None:
    """Where the model of that name is, if it is here; who loads it says what is wrong."""
    name = request.name if request.name is not None else default_model()[0]
    with contextlib.suppress(LocalmoeError):
        return catalog.resolve(name)
    return None


def _greeted(path: Path) -> Found | None:
    """A connection and what its server says first; None, and no trace, of one that is gone."""
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(PATIENCE)
        with socket_folder() as folder:
            connected.connect(f"{folder}/{path.name}")
        if not is_ours(connected):
            raise ValueError("of another user")
        said = kept.parse(_line(connected))
        facts = decoded_model(said.pop("model"))
        greeting = decoded(Greeting, said)
        connected.settimeout(None)
        return Found(connected, greeting, facts)
    except (OSError, StorageError, *kept.DAMAGED) as error:
        connected.close()
        if isinstance(error, ConnectionRefusedError):  # its server was killed
            with contextlib.suppress(OSError):
                path.unlink()
        return None


def _line(connected: socket.socket) -> bytes:
    """The first line; what follows it comes only when something was asked."""
    data = b""
    while not data.endswith(b"\n"):
        part = connected.recv(1 << 16)
        data += part
        if not part or len(data) > GREETING_LIMIT:
            raise ValueError("no greeting")
    return data
