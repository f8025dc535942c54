"""How the rooms below tell a front end what happens, and ask its user."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # imported late: a chat's input line need not wait for what it imports
    from localmoe.hub.download import Progress

Show = Callable[["Progress"], None]


class Listener(Hashable, Protocol):
    """Each front end implements it: notes, warnings, progress and questions for its user."""

    def note(self, text: str) -> None:
        """One line of information."""

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""

    def lost(self, text: str) -> None:
        """One line about something of the user's that will not be kept; not even quiet hides it."""

    def progress(self, what: str) -> AbstractContextManager[Show]:
        """Show how far the download of ``what`` is, until the context ends."""
        ...

    def ask(self, question: str, *, reason: str = "") -> bool | None:
        """The user's yes or no, after the ``reason`` was shown; None: there is nobody to ask."""


class Silent:
    """The ``Listener`` of a program: it shows nothing and answers no question."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def lost(self, text: str) -> None:
        """Say nothing: a program's conversations are not written to the disk."""

    def progress(self, what: str) -> AbstractContextManager[Show]:
        """Show nothing."""
        return contextlib.nullcontext(lambda event: None)

    def ask(self, question: str, *, reason: str = "") -> bool | None:
        """None: there is nobody to ask."""
        return None
