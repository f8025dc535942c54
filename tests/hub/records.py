"""What can go wrong with an answer, and what is remembered of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["api", "resolve", "content"]
Host = Literal["hub", "storage"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer. ``times``: how often; None: for ever."""

    status: int | None = None  # answer this and no content
    headers: Mapping[str, str] = field(default_factory=dict)  # in place of the right ones
    ignore_range: bool = False  # 200 and the whole file
    short_by: int = 0  # a correct 206 of fewer bytes than asked for
    endless: bool = False  # no length, and never an end
    drop_after: int | None = None  # bytes of content, then the connection breaks
    stall_after: int | None = None  # bytes of content, then nothing until ``release``
    flip_at: int | None = None  # offset in the file of a byte that arrives changed
    delay: float = 0  # seconds before the answer
    rate: int | None = None  # bytes per second
    times: int | None = None


@dataclass
class Request:
    """One request, from its arrival on. ``sent``: bytes of body handed to the connection."""

    host: Host
    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    status: int = 0  # 0: not answered yet
    sent: int = 0
    ended: bool = False  # the answer is complete or broken off

    @property
    def range(self) -> str | None:
        return self.headers.get("range")
