"""What ``serve`` is asked to do: small frozen records that its front door makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from localmoe.app.requests import LoadRequest, SampleRequest

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Door:
    """Where to listen, and who may come in."""

    host: str = LOOPBACK
    port: int | None = None  # 0: any free one; None: 8080, or the next free one
    keys: tuple[str, ...] = ()  # (): off loopback one is made
    origins: tuple[str, ...] = ()  # of web pages that may come; "*": all
    hosts: tuple[str, ...] = ()  # names beside this machine's own by which a client may call it


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What to serve, to whom."""

    load: LoadRequest  # its name: the model that answers to any name; None: models by their names
    sample: SampleRequest = field(default_factory=SampleRequest)  # where a request says nothing
    door: Door = field(default_factory=Door)
    aliases: Mapping[str, str] = field(default_factory=dict)  # name in a request → model
    idle: float | None = None  # seconds without a request after which the model is unloaded
    may_pull: bool = False  # a request may download its model
    drop: bool = False  # a prompt that is too long loses its oldest turns; else it is an error
