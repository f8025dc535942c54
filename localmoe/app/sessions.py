"""Conversations on disk: opened to be continued, with the model and the engine's state of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localmoe.app.listener import Listener
from localmoe.app.requests import SessionRequest
from localmoe.chat.conversation import Conversation
from localmoe.chat.session import Session
from localmoe.chat.state import Chat
from localmoe.chat.store import Log, Store
from localmoe.errors import EngineError, StorageError, UsageError
from localmoe.text import clean_line

if TYPE_CHECKING:  # imported late: a chat's input line need not wait for what it imports
    from localmoe.app.model import LoadedModel


def open_session(request: SessionRequest) -> tuple[Store | None, Log | None]:
    """The store of conversations, and the log of the one to continue; None, None: not written.

    Raises UsageError for a bad name, and for a conversation that does not exist or is in use.
    """
    if not request.written:
        if request.latest or request.name:
            raise UsageError("--no-history neither reads nor writes conversations")
        return None, None
    store = Store()
    if request.latest:
        return store, store.open(store.latest())
    return store, store.open(request.name) if request.name else store.begin()


def model_of(log: Log, listener: Listener) -> str | None:
    """The path of the model that a conversation was held with; None if the file is gone."""
    model = log.session.model
    if model is None:
        return None
    if Path(model.source).exists():
        return model.source
    listener.note(f"{clean_line(model.name)}, the model of this conversation, is not here any more")
    return None


@dataclass(slots=True)
class KeptSession:
    """The conversation that one answer belongs to; without a ``name`` it is not written."""

    session: Session
    listener: Listener
    name: str | None = None
    model_source: str | None = None  # path of the model that it was held with

    @contextlib.contextmanager
    def resumed(self, model: LoadedModel) -> Iterator[None]:
        """Read the engine's context of the session from the disk, and write it back at the end.

        So the earlier turns need no prefill. A context that cannot be written is a warning.
        """
        if self.name is None:
            yield
            return
        if self.session.turns:
            model.engine.resume(self.name)
        try:
            yield
        finally:
            if model.engine.alive:
                try:
                    model.engine.keep(self.name)
                except StorageError as error:
                    self.listener.warn(error.message)


@contextlib.contextmanager
def kept_session(request: SessionRequest, listener: Listener) -> Iterator[KeptSession]:
    """The conversation of that name, or the latest; else one for this answer alone.

    Raises UsageError for a conversation that does not exist or is in use.
    """
    if not request.name and not request.latest:
        yield KeptSession(Session(request.system or ""), listener)
        return
    _, log = open_session(request)
    if log is None:
        raise UsageError("no conversation to go on with")
    chat = Chat(ready=_no_model, tell=listener.note, warn=listener.warn, lost=listener.lost)
    try:
        chat.open_log(log)
        if request.system is not None:
            chat.session.system = request.system
        turns = len(chat.session.turns)
        so_far = f"{turns} turn{'s' * (turns != 1)} so far" if turns else "a new conversation"
        listener.note(f"{log.name}: {so_far}")
        yield KeptSession(chat.session, listener, log.name, model_of(log, listener))
    finally:
        log.close()


def _no_model() -> Conversation:
    raise EngineError("there is no chat here")
