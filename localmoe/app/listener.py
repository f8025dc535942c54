"""What a front end lends to the work that is done for it: an ear, and a voice to ask with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a chat's input line need not wait for what it imports
    from localmoe.hub.download import Progress

Show = Callable[["Progress"], None]


class Listener(Hashable, Protocol):
    """How a user is told what happens, and asked. Each front end implements it."""

    def note(self, text: str) -> None:
        """One line of information."""

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""

    def lost(self, text: str) -> None:
        """One line about something of the user's that is not kept: said however quiet it is."""

    def progress(self, what: str) -> AbstractContextManager[Show]:
        """Show how far the download of ``what`` is, until the context ends."""
        ...

    def ask(self, question: str, *, reason: str = "") -> bool | None:
        """The user's yes or no, told the ``reason`` of the question; None: nobody can be asked."""


class Silent:
    """The ``Listener`` of a caller who wants to hear nothing and is not to be asked."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def lost(self, text: str) -> None:
        """Say nothing: who loads a model by a function keeps no conversation."""

    def progress(self, what: str) -> AbstractContextManager[Show]:
        """Show nothing."""
        return contextlib.nullcontext(lambda event: None)

    def ask(self, question: str, *, reason: str = "") -> bool | None:
        """Nobody is there."""
        return None
