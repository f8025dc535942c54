"""The conversation that a ``run`` goes on with, and its context on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from localmoe.chat.conversation import Conversation
from localmoe.chat.session import Session
from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.cli.talk import Talk
from localmoe.errors import EngineError, StorageError, UsageError


@dataclass(slots=True)
class KeptSession:
    """The conversation that a run belongs to; one without a ``name`` is written nowhere."""

    session: Session
    output: Output
    name: str | None = None
    model_source: str | None = None  # the model that led it so far

    @contextlib.contextmanager
    def resumed(self, room: Talk) -> Iterator[None]:
        """With what was read in it taken up from the disk, and kept there in the end."""
        if self.name is None:
            yield
            return
        if self.session.turns:
            room.engine.resume(self.name)
        try:
            yield
        finally:
            if room.engine.alive:
                try:
                    room.engine.keep(self.name)
                except StorageError as error:
                    self.output.warn(error.message)


@contextlib.contextmanager
def kept_session(options: Options, output: Output) -> Iterator[KeptSession]:
    """The session of ``--session`` or ``--continue``; else one of this run alone.

    Raises UsageError for a conversation that is not there, or in use.
    """
    if not options.session and not options.resume:
        yield KeptSession(Session(options.system or ""), output)
        return
    from localmoe.chat.state import Chat
    from localmoe.cli.chat.command import model_of, open_session

    _, log = open_session(options)
    if log is None:
        raise UsageError("no conversation to go on with")
    chat = Chat(ready=_no_model, tell=output.note, warn=output.warn)
    try:
        chat.open_log(log)
        if options.system is not None:
            chat.session.system = options.system
        turns = len(chat.session.turns)
        so_far = f"{turns} turn{'s' * (turns != 1)} so far" if turns else "a new conversation"
        output.note(f"{log.name}: {so_far}")
        yield KeptSession(chat.session, output, log.name, model_of(log, output))
    finally:
        log.close()


def _no_model() -> Conversation:
    raise EngineError("there is no chat here")
