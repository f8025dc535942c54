"""The model of a chat: brought up behind the input line, replaced, loaded again after a crash."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from localmoe import config
from localmoe.chat.conversation import Conversation
from localmoe.chat.session import ModelUsed
from localmoe.chat.state import Chat
from localmoe.cli import configured
from localmoe.cli.arguments import Options
from localmoe.cli.chat_load import ModelLoad, interrupts
from localmoe.cli.lines import Lines, Notices
from localmoe.cli.live import LiveLine
from localmoe.cli.output import Output
from localmoe.errors import DoesNotFitError, InterruptedLoadError, LocalmoeError
from localmoe.planning.plan import Plan

if TYPE_CHECKING:  # the input line need not wait for what it imports
    from localmoe.cli.talk import Talk

LEAVING = 0.2  # seconds that a thread is waited for at the end
KEEP_FROM = 64  # tokens in the context from which keeping them is worth it

OpenRoom = Callable[[str | None, Options], AbstractContextManager["Talk"]]
"""Plans the model of a name, as the options want it; called on a thread."""


class Seat:
    """Where the model sits that the chat talks to. ``chat`` and ``lines`` are set by its owner."""

    chat: Chat
    lines: Lines

    def __init__(
        self,
        open_room: OpenRoom,
        options: Options,
        output: Output,
        notices: Notices,
        grammar: str | None = None,
    ) -> None:
        self._open_room = open_room
        self._options = options
        self._output = output
        self._notices = notices
        self._grammar = grammar  # GBNF that every answer follows
        self._name: str | None = None  # as it was typed
        self._load: ModelLoad | None = None
        self._conversation: Conversation | None = None
        self.taken = False  # by a model that was loaded, at least once

    @property
    def load(self) -> ModelLoad:
        assert self._load is not None
        return self._load

    @property
    def loading(self) -> str:
        """What is under way; "" when nothing is."""
        return self._load.state if self._load is not None else ""

    @property
    def plan(self) -> Plan | None:
        return self._load.room.plan if self._load and self._load.room else None

    def begin(self, name: str | None, options: Options | None = None) -> None:
        """Bring up the model of that name; returns at once."""
        self._options = options or self._options
        self._name, self._conversation = name, None
        self._load = self._new_load(name, self._options)
        self._load.start()

    def close(self) -> None:
        if self._load is not None:
            self._load.close(LEAVING)

    def wait_for_plan(self) -> None:
        """Raises what planning raises."""
        self.load.wait_for_plan(self._line(), self._notices)

    def room(self) -> Talk:
        """The loaded model; waits, or loads it again. Raises what loading raises."""
        load = self.load
        if not load.busy and load.changed():
            self._output.note("the model's file was replaced: it is read anew")
            load.forget()
            self.chat.last = None
            load.start()
        elif not load.busy and not load.ready:
            if self.taken:
                self._output.note("starting the engine again")
            load.start()
        room = load.wait(self._line(), self._notices)
        self.taken = True
        return room

    def ready(self) -> Conversation:
        """The conversation as it is now, with a loaded model. Raises what ``room`` does."""
        room, chat = self.room(), self.chat
        assert room.loaded is not None
        if self._conversation is None or self._conversation.engine is not room.engine:
            self._conversation = room.conversation(self._options)
            self._notices.show()
            settings = dataclasses.replace(self._conversation.settings, grammar=self._grammar)
            chat.model_settings(settings)
            chat.context = room.loaded.context
            source = str(room.model.paths[0].absolute())
            chat.session.use(ModelUsed(room.model.name, source))
        self._conversation.session = chat.session
        self._conversation.settings = chat.settings
        return self._conversation

    def switch(self, name: str) -> str:
        """Go on with another model, if it fits; else the one before stays, and it raises."""
        from localmoe.cli.chat import bring_here

        read = config.read()
        options = configured.for_model(self._options, name, read)
        target = read.target(name)
        bring_here(target, options, self._output)
        new, tight = self._try_plan(target, options), False
        if new is None or _may_be_better_alone(new.room, self.load.room):
            tight = True
        self.keep(self.chat.name)
        self.load.close()
        before = self._name, self._options
        try:
            if tight:
                if new is not None:
                    new.close()
                new = self._new_load(target, options)
                new.start(plan_only=True)
                new.wait_for_plan(self._line(), self._notices)
            assert new is not None
            self._name, self._options = target, options
            self._load, self._conversation = new, None
            self.ready()
        except LocalmoeError:
            if new is not None:
                new.close()
            self.begin(*before)
            raise
        self.chat.last = None
        turns = len(self.chat.session.turns)
        return f"the conversation goes on, {turns} turns so far" if turns else ""

    def _try_plan(self, name: str, options: Options) -> ModelLoad | None:
        """The plan beside the model that is loaded; ``None`` when both together do not fit."""
        new = self._new_load(name, options)
        new.start(plan_only=True)
        try:
            new.wait_for_plan(self._line(), self._notices)
        except DoesNotFitError:
            new.close()
            return None
        except BaseException:
            new.close(0)
            raise
        return new

    def keep(self, name: str) -> None:
        """What was read of a session, on disk, so that the next time it need not be read again."""
        load, last = self._load, self.chat.last
        if not name or load is None or not load.ready or load.room is None:
            return
        if last is None or last.usage.total < KEEP_FROM:
            return
        engine = load.room.engine
        with interrupts(engine.cancel, engine.close), self._line() as line:
            line.show("keeping what was read, for the next time")
            with contextlib.suppress(LocalmoeError, KeyboardInterrupt):
                engine.keep(name)

    def resume(self, name: str) -> None:
        """Take up what was kept of a session that was opened."""
        load = self._load
        if load is not None and load.ready and load.room is not None:
            self._came(load.room)

    def _new_load(self, name: str | None, options: Options) -> ModelLoad:
        def open_room() -> AbstractContextManager[Talk]:
            self.lines.settle()  # what is imported now would only delay the input line
            return self._open_room(name, options)

        return ModelLoad(open_room, self._news, self._planned, self._came)

    def _line(self) -> LiveLine:
        return LiveLine(self._output.stderr)

    # On the loading thread.

    def _news(self) -> None:
        error = self._load.error if self._load is not None else None
        if isinstance(error, LocalmoeError) and not isinstance(error, InterruptedLoadError):
            self.lines.stop(error)
        else:
            self.lines.news()

    def _planned(self, room: Talk) -> None:
        self._notices.post(lambda: self._card(room))

    def _came(self, room: Talk) -> None:
        """The model is loaded, and nobody else talks to it."""
        if self.chat.session.turns and self.chat.name:
            with contextlib.suppress(LocalmoeError):
                room.engine.resume(self.chat.name)

    # Elsewhere.

    def _card(self, room: Talk) -> None:
        from localmoe.cli.chat_status import card

        context = room.plan.settings.context
        self.chat.about = "\n".join(t.plain for t in card(room.model, room.plan, context))
        if self._output.quiet:
            return
        with contextlib.suppress(OSError):
            for text in card(room.model, room.plan, context, self._output.columns):
                self._output.stderr.print(text, soft_wrap=True)
        if self.lines.interactive and not self.taken:
            self._output.note("/help lists the commands, Ctrl-D leaves")


def _may_be_better_alone(new: Talk | None, old: Talk | None) -> bool:
    """Whether a plan could gain from the memory that the loaded model still holds."""
    if new is None or old is None:
        return True
    return old.plan.tiers.gpu > 0 or new.plan.tiers.disk > 0
