"""Requests that a front end makes: small frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localmoe.chat.tools import ToolUse
from localmoe.planning.plan import Wishes


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """How a model is planned, and for which machine."""

    wishes: Wishes = field(default_factory=Wishes)
    machine: Path | None = None  # the `doctor --json` of another machine; None: this one
    remotes: tuple[str, ...] = ()  # "host:port" of workers on other machines
    roomy: bool = False  # the context should hold an agent's prompts
    min_tps: float | None = None  # a model below this is too slow; None: below ``speeds.SLOW``


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Which model to load, and what to write down about it."""

    name: str | None  # None: the configured model, else the one used last, else the bundled one
    plan: PlanRequest = field(default_factory=PlanRequest)
    may_download: bool = True  # if it is not here, after a question
    consent: bool = False  # download without a question
    remember: bool = True  # write down which model was used, and what makes the next start faster
    record: str = ""  # path of a trace of the experts that the router chooses; "": no trace
    record_logits: bool = False  # the trace also has the router's score of every expert
    inputs: tuple[Path, ...] = ()  # files that are read as well: the trace must not overwrite them
    template: bool = True  # prompts go through its chat template


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """How tokens are chosen; values left out come from the model's file, else from defaults."""

    sampling: Mapping[str, Any] = field(default_factory=dict)  # fields of ``Sampling`` by name
    think: str = "auto"
    plain: bool = False  # no chat template
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None  # GBNF
    top_logprobs: int | None = None  # how many of the likeliest tokens to tell; None: no figures
    tools: ToolUse | None = None


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Which conversation to continue; by default a new one is begun."""

    name: str | None = None  # continue the one of this name, or begin it
    latest: bool = False  # continue the last one
    written: bool = True  # False: conversations are neither read from the disk nor written to it
    system: str | None = None  # system prompt; None: the conversation's own
