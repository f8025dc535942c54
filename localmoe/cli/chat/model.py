"""The model of a chat: loaded in the background, replaced, loaded again after a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from localmoe import config
from localmoe.app.background_load import BackgroundLoad
from localmoe.chat.builtin import attached, turns_text
from localmoe.chat.conversation import Conversation
from localmoe.chat.session import ModelUsed
from localmoe.chat.state import Chat
from localmoe.cli.arguments import Options
from localmoe.cli.chat.waiting import wait, wait_for_plan
from localmoe.cli.config import defaults
from localmoe.cli.output import Output
from localmoe.cli.requests import load_request
from localmoe.errors import InterruptedLoadError, LocalmoeError
from localmoe.facts import catalog
from localmoe.facts.model import read_model
from localmoe.planning.context import trained_context
from localmoe.planning.plan import Plan
from localmoe.terminal.line_sources import Lines, Notices
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line

if TYPE_CHECKING:  # imported late: the input line need not wait for what it imports
    from localmoe.app.model import LoadedModel

LEAVING = 0.2  # seconds to wait for the loading thread at the end
KEEP_FROM = 64  # tokens; computing fewer again is as fast as reading them from the disk

OpenModel = Callable[[str | None, Options], AbstractContextManager["LoadedModel"]]
"""Plans the model of a name with these options; called on the loading thread."""


class ChatModel:
    """The model of a chat. ``chat`` and ``lines`` are set by its owner."""

    chat: Chat
    lines: Lines

    def __init__(
        self,
        open_model: OpenModel,
        options: Options,
        output: Output,
        notices: Notices,
        grammar: str | None = None,
    ) -> None:
        self._open_model = open_model
        self._options = options
        self._output = output
        self._notices = notices
        self._grammar = grammar  # GBNF that every answer follows
        self._name: str | None = None  # as it was typed
        self._load: BackgroundLoad | None = None
        self._conversation: Conversation | None = None
        self.loaded_once = False
        self.unsaved = False  # whether the context has changed since ``keep`` or ``resume``
        self._awaited: BackgroundLoad | None = None  # a load whose caller waits, and gets its error

    @property
    def load(self) -> BackgroundLoad:
        assert self._load is not None
        return self._load

    @property
    def loading(self) -> str:
        """The state of loading, as ``BackgroundLoad.state``."""
        return self._load.state if self._load is not None else ""

    @property
    def plan(self) -> Plan | None:
        return self._load.model.plan if self._load and self._load.model else None

    def begin(self, name: str | None, options: Options | None = None) -> None:
        """Start to load the model of that name; returns at once."""
        self._options = options or self._options
        self._name, self._conversation = name, None
        self._load = self._new_load(name, self._options)
        self._load.start()

    def close(self) -> None:
        if self._load is not None:
            self._load.close(LEAVING)

    def wait_for_plan(self) -> None:
        """Raises what planning raises."""
        wait_for_plan(self.load, self._line(), self._notices)

    def loaded(self) -> LoadedModel:
        """The loaded model, waited for; loaded again if the engine died or the file was replaced.

        Raises what planning and loading raise.
        """
        load = self.load
        if not load.busy and load.changed():
            self._output.note("the model's file was replaced: it is read anew")
            load.forget()
            self.chat.last = None
            load.start()
        elif not load.busy and not load.ready:
            if self.loaded_once:
                self._output.note("starting the engine again")
            load.start()
        self._awaited = load
        model = wait(load, self._line(), self._notices)
        self._awaited = None
        self.loaded_once = True
        return model

    def ready(self) -> Conversation:
        """The chat's conversation with a loaded model. Raises what ``loaded`` raises."""
        model, chat = self.loaded(), self.chat
        assert model.loaded is not None
        if self._conversation is None or self._conversation.engine is not model.engine:
            from localmoe.cli.loaded import conversation

            self._conversation = conversation(model, self._options, self._output)
            self._notices.show()
            settings = replace(self._conversation.settings, grammar=self._grammar)
            chat.model_settings(settings)
            chat.context, chat.trained = model.loaded.context, trained_context(model.facts)
            source = str(model.facts.paths[0].absolute())
            chat.session.use(ModelUsed(model.facts.name, source))
        self._conversation.session = chat.session
        self._conversation.settings = chat.settings
        return self._conversation

    def switch(self, name: str) -> str:
        """Continue with another model, and say so. If it fails, the one before is loaded again.

        Raises UnknownModelError, DoesNotFitError, and what planning and loading raise.
        """
        from localmoe.app.find import bring_here
        from localmoe.app.loading import require_fit_after

        read = config.read()
        options = defaults.for_model(self._options, name, read)
        target = read.target(name)
        request = load_request(options, target)
        bring_here(request, self._output)
        model, old = read_model(catalog.resolve(target)), self.load.model
        if old is not None and model.paths == old.facts.paths and not self.load.changed():
            return f"{clean_line(model.name)} is the model of this chat already"
        with self._line() as line:
            line.show(f"planning {clean_line(model.name)}")
            if old is not None:
                require_fit_after(old.plan, model, request.plan)
        return self._replace(target, options)

    def resize(self, context: int) -> str:
        """Load the model again with so many tokens of context; if it fails, with those before.

        Raises DoesNotFitError, and what planning and loading raise.
        """
        typed = self._options.typed | {"context"}
        return self._replace(self._name, replace(self._options, context=context, typed=typed))

    def _replace(self, name: str | None, options: Options) -> str:
        self.keep(self.chat.name)
        before = self._name, self._options
        try:
            self.load.close()
            self.begin(name, options)
            self.ready()
        except BaseException as error:
            self._back_to(*before)
            if isinstance(error, InterruptedLoadError) or type(error) is KeyboardInterrupt:
                return "stopped: the model before is loaded again"
            raise
        self.chat.last = None
        turns = len(self.chat.session.turns)
        return f"the conversation goes on, {turns_text(turns)} so far" if turns else ""

    def _back_to(self, name: str | None, options: Options) -> None:
        self.load.close(0)
        self.begin(name, options)

    def keep(self, name: str) -> None:
        """Write the engine's context of a session to the disk, if it changed and is long enough."""
        load, last = self._load, self.chat.last
        if not self.unsaved or not name or load is None or not load.ready or load.model is None:
            return
        if last is not None and last.usage.total < KEEP_FROM:
            return
        from localmoe.cli.loaded import stoppable

        with stoppable(load.model, self._output), self._line() as line:
            line.show("keeping what was read, for the next time")
            with contextlib.suppress(LocalmoeError, KeyboardInterrupt):
                load.model.engine.keep(name)
                self.unsaved = False

    def resume(self, name: str) -> None:
        """Read the engine's context of a session that was opened."""
        load = self._load
        if load is not None and load.ready and load.model is not None:
            self._resume_context(load.model)

    def _new_load(self, name: str | None, options: Options) -> BackgroundLoad:
        def open_model() -> AbstractContextManager[LoadedModel]:
            self.lines.settle()  # imports would delay the input line
            return self._open_model(name, options)

        return BackgroundLoad(open_model, self._news, self._planned, self._after_load)

    def _line(self) -> LiveLine:
        return LiveLine(self._output.stderr)

    # On the loading thread.

    def _news(self) -> None:
        load = self._load
        error = load.error if load is not None else None
        told = load is self._awaited or isinstance(error, InterruptedLoadError)
        if isinstance(error, LocalmoeError) and not told:
            self.lines.stop(error)
        else:
            self.lines.news()

    def _planned(self, model: LoadedModel) -> None:
        self._notices.post(lambda: self._card(model))

    def _after_load(self, model: LoadedModel) -> None:
        """The model is loaded; no other thread uses it yet."""
        self._resume_context(model)
        if model.loaded is not None and model.loaded.note:
            note = model.loaded.note
            self._notices.post(lambda: self._output.warn(note))
        if self.chat.files and not self.loaded_once and model.loaded is not None:
            context, trained = model.loaded.context, trained_context(model.facts)
            text = attached(self.chat.files, model.engine.count_tokens, context, trained)
            self._notices.post(lambda: self._output.note(text))

    def _resume_context(self, model: LoadedModel) -> None:
        self.unsaved = False
        if self.chat.session.turns and self.chat.name:
            with contextlib.suppress(LocalmoeError):
                model.engine.resume(self.chat.name)

    # Elsewhere.

    def _card(self, model: LoadedModel) -> None:
        from localmoe.app import speeds
        from localmoe.cli.chat.status import card

        context = model.plan.settings.context
        speed = speeds.brief(model.forecast) if model.forecast else ""
        about = card(model.facts, model.plan, context, speed=speed)
        self.chat.about = "\n".join(text.plain for text in about)
        if self._output.quiet:
            return
        with contextlib.suppress(OSError):
            for text in card(model.facts, model.plan, context, self._output.columns, speed):
                self._output.stderr.print(text, soft_wrap=True)
        if self.lines.interactive and not self.loaded_once:
            self._output.note("/help lists the commands, Ctrl-D leaves")
