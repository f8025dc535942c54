"""How a download is shown: bars on a terminal, lines in a pipe, events as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from localmoe.hub.download import PartProgress, Progress
from localmoe.text import clean_line, format_duration, format_line, format_size

LINE_EVERY = 15.0  # seconds between lines in a pipe
EVENT_EVERY = 1.0  # seconds between JSON events
SHOWN_PARTS = 4  # as many as are under way at once
BAR_WIDTH = 30
BAR_FROM_COLUMNS = 60

_STATES = {"waiting": "another process downloads it", "checking": "checking its hash"}


class Display:
    """Shows nothing. Its subclasses show progress, each in its way, until the block ends."""

    def show(self, progress: Progress) -> None:
        """Show the state of the download."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the display away."""


class Bars(Display):
    """Bars that change in place and go away at the end."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def show(self, progress: Progress) -> None:
        columns = self._live.console.width
        self._live.update(screen(self._title, progress, columns), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()


class PlainLines(Display):
    """A line every LINE_EVERY seconds."""

    def __init__(self, title: str, note: Callable[[str], None]) -> None:
        self._note = note
        self._next = time.monotonic() + LINE_EVERY
        note(f"downloading {title}")

    def show(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY
            self._note(summary(progress))


class EventLines(Display):
    """``--jsonl``: at most one event per EVENT_EVERY seconds, and the last one."""

    def __init__(self, write: Callable[[dict[str, object]], None]) -> None:
        self._write = write
        self._next = 0.0

    def show(self, progress: Progress) -> None:
        complete = progress.done == progress.total
        if time.monotonic() >= self._next or complete:
            self._next = time.monotonic() + EVENT_EVERY
            self._write({"event": "progress", **progress_document(progress)})


def progress_document(progress: Progress) -> dict[str, object]:
    """Bytes, bytes per second and seconds; ``seconds_left`` null while nothing arrives."""
    left = progress.seconds_left
    return {
        "done": progress.done,
        "total": progress.total,
        "rate": round(progress.rate),
        "seconds_left": None if left is None else round(left, 1),
        "parts": [
            {"name": part.name, "state": part.state, "done": part.done, "total": part.total}
            for part in progress.parts
        ],
    }


def summary(progress: Progress) -> str:
    """``38 % · 24.1 GB of 63.4 GB · 706 Mbit/s · 7 min 30 s left``."""
    share = int(100 * progress.done / progress.total) if progress.total else 100
    facts = [f"{share} %", f"{format_size(progress.done)} of {format_size(progress.total)}"]
    left = progress.seconds_left
    if progress.done == progress.total:
        facts.append("checking its hash")
    elif left is None:
        facts.append("waiting for data")
    else:
        facts.append(format_line(progress.rate))
        seconds = max(1, round(left))
        facts.append(f"{f'{seconds} s' if seconds < 60 else format_duration(seconds)} left")
    return " · ".join(facts)


def screen(title: str, progress: Progress, columns: int) -> RenderableType:
    """The title, a bar for each part that is under way, and one for the whole download."""
    lines: list[RenderableType] = [Text(clean_line(title), style="bold", overflow="ellipsis")]
    if len(progress.parts) > 1:
        lines += [_part(part, number, progress.parts, columns) for number, part in _busy(progress)]
    lines.append(_bar_line(progress.done, progress.total, summary(progress), columns, "green"))
    return Group(*lines)


def _busy(progress: Progress) -> list[tuple[int, PartProgress]]:
    numbered = enumerate(progress.parts, start=1)
    return [(n, p) for n, p in numbered if p.state not in ("queued", "done")][:SHOWN_PARTS]


def _part(
    part: PartProgress, number: int, parts: Sequence[PartProgress], columns: int
) -> RenderableType:
    text = f"part {number} of {len(parts)} · "
    text += _STATES.get(part.state) or f"{format_size(part.done)} of {format_size(part.total)}"
    return _bar_line(part.done, part.total, text, columns, "cyan")


def _bar_line(done: int, total: int, text: str, columns: int, style: str) -> RenderableType:
    words = Text(text, no_wrap=columns >= BAR_FROM_COLUMNS, overflow="ellipsis")
    if columns < BAR_FROM_COLUMNS:
        return words
    grid = Table.grid(padding=(0, 1))
    width = min(BAR_WIDTH, columns // 4)
    bar = ProgressBar(
        total=max(1, total), completed=done, width=width, complete_style=style, finished_style=style
    )
    grid.add_row(bar, words)
    return grid
