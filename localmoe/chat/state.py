"""The state of a running chat: session, settings, what waits to be sent, where it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from localmoe.chat import settings as settings_module
from localmoe.chat.attachments import Attachment
from localmoe.chat.context import Meter
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import TurnDone
from localmoe.chat.session import Change, Session, Turn
from localmoe.chat.settings import Settings
from localmoe.chat.store import AUTOMATIC, Log, Store
from localmoe.errors import StorageError, UsageError


def _nobody(text: str) -> None:
    """Does nothing: there is nobody to tell."""


@dataclass(slots=True)
class Chat:
    """The chat that commands change. ``ready`` waits for the model, and raises what loading raises.

    ``store`` is ``None`` where no trace may be left. ``tell`` and ``warn`` show a line.
    """

    ready: Callable[[], Conversation]
    session: Session = field(default_factory=Session)
    settings: Settings = field(default_factory=Settings)
    store: Store | None = None
    log: Log | None = None
    context: int = 0  # tokens; 0 while no model is loaded
    trained: int = 0  # tokens of context that the model was trained for; 0: unknown
    about: str = ""  # the model and where it is
    files: list[Attachment] = field(default_factory=list)  # go with the next message
    last: TurnDone | None = None
    show_reasoning: bool = False
    changed: dict[str, str] = field(default_factory=dict)  # settings that were typed in
    tell: Callable[[str], None] = _nobody
    warn: Callable[[str], None] = _nobody
    lost: Callable[[str], None] = _nobody  # told what of the conversation is not kept, if anything
    columns: Callable[[], int] = lambda: 80  # cells of a line, for what is laid out in columns
    resize: Callable[[int], str] | None = None  # loads the model again with that many tokens
    leaving: Callable[[str], None] = _nobody  # told the name of a session before it is left
    entered: Callable[[str], None] = _nobody  # and after another is opened

    def set(self, name: str, value: str) -> None:
        """Change a setting. Raises ``UsageError``."""
        self.settings = settings_module.change(self.settings, name, value)
        self.changed[name] = value

    def model_settings(self, settings: Settings) -> None:
        """Take the settings of another model, but keep the values that the user has typed."""
        for name, value in self.changed.items():
            settings = settings_module.change(settings, name, value)
        self.settings = settings

    @property
    def meter(self) -> Meter:
        """The context after the last turn."""
        return Meter(self.last.usage.total if self.last else 0, self.context)

    @property
    def name(self) -> str:
        """Name of the session; "" when it is not written to a file."""
        return self.log.name if self.log else ""

    def open_log(self, log: Log) -> None:
        """Continue the session of this log, and write its changes there from now on."""
        if self.log is not None:
            self.leaving(self.log.name)
            self.log.close()
        elif self.session.turns:
            self.leaving("")
        self.log = log
        self._enter(log.session)
        if log.damaged:
            lines = "line" if log.damaged == 1 else "lines"
            self.lost(f"{log.damaged} {lines} of {log.name} could not be read; the rest is here")
        self.entered(log.name)

    def begin(self) -> None:
        """Begin a session: with an automatic name, or without a file where no trace may be left."""
        if self.store is not None:
            self.open_log(self.store.begin())
        else:
            self._enter(Session())

    def start_over(self) -> str:
        """Forget the conversation; the system prompt stays. Returns what was done, for people."""
        if self.log is None or not AUTOMATIC.fullmatch(self.log.name):
            self.session.clear()
            self.last = None
            if self.log is None:
                return "the conversation is forgotten"
            return f"begun anew; what was said stays in the file of {self.log.name}"
        if not self.session.turns:
            return "nothing was said yet"
        old, system, model = self.log.name, self.session.system, self.session.model
        self.begin()
        self.session.system = system
        if model:
            self.session.use(model)
        return f"a new conversation; /load {old} goes back to the old one"

    def save_as(self, name: str) -> str:
        """Go on under another name. Returns what was done, for people.

        A session with an automatic name is renamed, one with a name that somebody gave is copied.
        Raises ``UsageError`` for a name that is taken, ``StorageError``.
        """
        store = self.store or Store()
        if store.exists(name):
            raise UsageError(
                f"there is a conversation {name} already", hint=f"/load {name} opens it"
            )
        old = self.log
        log = store.open(name)
        for change in self.session.changes():
            log.write(change)
        self.log = log
        self.session.journal = self._write
        if old is None:
            return f"this conversation is written to {name} from now on"
        begun = old.begun
        old.close()
        if AUTOMATIC.fullmatch(old.name):
            if begun:
                store.delete(old.name)
            return f"this conversation is now {name}"
        return f"a copy: you are in {name} now, {old.name} stays as it is"

    def _enter(self, session: Session) -> None:
        session.journal = self._write
        self.session = session
        self.last = None

    def _write(self, change: Change) -> None:
        """A session that cannot be written is told of once; the chat goes on."""
        if self.log is None or (not self.log.begun and not isinstance(change, Turn)):
            return
        try:
            if not self.log.begun:
                for earlier in self.session.changes():
                    self.log.write(earlier)
            else:
                self.log.write(change)
        except (StorageError, UsageError) as error:
            self.lost(f"{error.message}; from here on the conversation is not written down")
            self.log.close()
            self.log = None
