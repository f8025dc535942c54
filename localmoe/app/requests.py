"""What a user wants of a model, as a front end hands it on: small frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localmoe.planning.plan import Wishes


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a model is planned for."""

    wishes: Wishes = field(default_factory=Wishes)
    machine: Path | None = None  # the `doctor --json` of another machine; None: this one
    remotes: tuple[str, ...] = ()  # "host:port" of workers on other machines
    min_tps: float | None = None  # fewer tok/s are too few; None: painfully slow ones are


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Which model is loaded, planned how, and what is noted of it."""

    name: str | None  # None: the configured model, else the one used last, else the bundled one
    plan: PlanRequest = field(default_factory=PlanRequest)
    may_download: bool = True  # after a question, or with ``consent`` without one
    consent: bool = False
    remember: bool = True  # what speeds up the next start, and which model was used
    record: str = ""  # path of a trace of what the router chooses; "": none
    record_logits: bool = False  # and of what it said of every expert
    inputs: tuple[Path, ...] = ()  # files that are read too, so that the trace is none of them
    template: bool = True  # it is asked through its chat template


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """How an answer is made; what is left out comes from the model's file, else plain values."""

    values: Mapping[str, Any] = field(default_factory=dict)  # fields of ``Sampling`` by name
    think: str = "auto"
    plain: bool = False  # no chat template
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None  # GBNF


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Which conversation is gone on with."""

    name: str | None = None  # begun where there is none of that name
    latest: bool = False  # the last one
    written: bool = True  # False: nothing is read from the disk or written there
    system: str | None = None  # system prompt; None: the conversation's own
