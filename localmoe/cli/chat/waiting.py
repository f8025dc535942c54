"""Waiting for a model that loads in the background, with a live line; Ctrl-C ends the loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from localmoe.app.background_load import BackgroundLoad
from localmoe.errors import InterruptedLoadError
from localmoe.terminal.interrupts import interrupts
from localmoe.terminal.line_sources import Notices
from localmoe.terminal.live_line import LiveLine

if TYPE_CHECKING:  # imported late: the input line need not wait for what it imports
    from localmoe.app.model import LoadedModel


def wait(load: BackgroundLoad, line: LiveLine, notices: Notices) -> LoadedModel:
    """The loaded model. Raises InterruptedLoadError, and what planning and loading raise."""
    if load.interrupted:  # let the interrupted load end, then start anew
        _wait(load, line, notices, lambda: False)
        load.start()
    _wait(load, line, notices, lambda: False)
    return load.result()


def wait_for_plan(load: BackgroundLoad, line: LiveLine, notices: Notices) -> LoadedModel:
    """The planned model. Raises what ``wait`` raises."""
    _wait(load, line, notices, lambda: load.model is not None)
    return load.planned_model()


def _wait(
    load: BackgroundLoad, line: LiveLine, notices: Notices, enough: Callable[[], bool]
) -> None:
    with interrupts(load.cancel, load.cancel) as pressed, line:
        while load.busy and not enough():
            if pressed.count:  # the thread may take longer to end
                raise InterruptedLoadError("loading was interrupted")
            if notices.waiting:
                line.clear()
                notices.show()
            line.show(load.state)
            load.pause(0.05)
    notices.show()
