"""The options there are: how each is typed, what it means, and which commands take it.

A command takes the options that change what it does (docs/decisions/0006): those of placement where
a plan is made, those of the answer where tokens are made. Parser, help, completion and settings are
all made from this table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from localmoe.cli import placement_options
from localmoe.cli.commands import COMMANDS
from localmoe.cli.option_types import (
    MAX_INT,
    alias,
    duration,
    each,
    gib,
    layers,
    limits,
    names,
    number,
    overflow,
    ram,
    seed,
    token_limit,
    tokens,
    whole,
)

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHES = ("auto", "off", "page", "private")
THINK_LEVELS = ("auto", "off", "low", "medium", "high")
OVERFLOWS = ("ask", "drop", "summarise", "stop")  # chat/context.py

FILES, MODELS, SESSIONS = ":files", ":models", ":sessions"  # what Tab proposes

PLANS = ("fit", "pull", "plan", "run", "chat", "serve", "show", "bench", "experts record")
LOADS = ("run", "chat", "serve", "bench", "experts record")
WRITES = ("run", "chat", "experts record")
SAMPLES = (*WRITES, "serve")
TALKS = ("run", "chat")
REPLAYS = ("experts simulate", "experts report")
EVERY = (*COMMANDS, *(f"{c.name} {action}" for c in COMMANDS.values() for action in c.actions))
ANSWERS = tuple(name for name in EVERY if name != "completion")


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``commands`` take it: names, or name and action as in "experts record"."""

    flags: tuple[str, ...]
    value: str  # what its value is called in the help
    help: str
    parse: Callable[[str], Any] = str
    field: str = ""  # of ``Options``
    commands: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    is_switch: bool = False  # has no value: it is typed or not
    repeatable: bool = False  # ``parse`` gives a list, and the lists are joined
    proposes: str = ""  # FILES, MODELS or SESSIONS
    setting: bool = True  # may stand in the configuration file
    why: str = ""  # what it is for, where a refusal should say so

    @property
    def name(self) -> str:
        """The first long form, without dashes: what a setting is called."""
        return next(flag for flag in self.flags if flag.startswith("--")).removeprefix("--")

    def taken_by(self, scope: str) -> bool:
        """Whether a command takes it, or one of its actions where only the command is named."""
        return any(name == scope or name.startswith(f"{scope} ") for name in self.commands)


@dataclass(frozen=True, slots=True)
class Group:
    """Options under one heading of the help."""

    title: str
    commands: tuple[str, ...]  # take its options, where an option says nothing else
    options: tuple[Option, ...]


def _option(typed: str, help: str, parse: Callable[[str], Any] = str, **more: Any) -> Option:
    """``typed``: the flags, and what the value is called: "-c --ctx N"; a switch has no value."""
    words = typed.split()
    flags = tuple(word for word in words if word.startswith("-"))
    value = words[len(flags) :]
    option = Option(flags, "".join(value), help, parse, is_switch=not value, **more)
    return dataclasses.replace(option, field=option.field or option.name.replace("-", "_"))


def _group(
    title: str, commands: tuple[str, ...], *options: Option, settings: bool = False
) -> Group:
    """``commands`` take those options that name none; ``settings``: they can be configured."""
    return Group(
        title,
        commands,
        tuple(
            dataclasses.replace(
                option, commands=option.commands or commands, setting=settings and option.setting
            )
            for option in options
        ),
    )


GROUPS = (
    _group(
        "memory and placement",
        PLANS,
        _option("-c --ctx N", "context in tokens (8k = 8192)", tokens, field="context"),
        _option(
            "-t --threads N",
            "processor threads",
            whole(1, 4096),
            commands=(*PLANS, "worker", *REPLAYS),
        ),
        _option("--kv-type TYPE", "KV cache type: " + ", ".join(KV_TYPES), choices=KV_TYPES),
        _option(
            "-ctk --cache-type-k TYPE", "type of the keys alone", field="type_k", choices=KV_TYPES
        ),
        _option(
            "-ctv --cache-type-v TYPE", "type of the values alone", field="type_v", choices=KV_TYPES
        ),
        _option(
            "--ram GIB",
            "plan with this much free RAM; worker: give so much",
            ram,
            commands=(*PLANS, "worker", "experts simulate"),
        ),
        _option("--vram GIB", "plan with this much free GPU memory", gib),
        _option(
            "--machine FILE",
            "plan for another machine: its `doctor --json`",
            commands=("fit", "pull", "plan", "show", *REPLAYS),
            proposes=FILES,
            setting=False,
            why="plans for another machine",
        ),
        _option("-ngl --gpu-layers N", "layers on the GPU (all: every one)", layers),
        _option(
            "-ncmoe --n-cpu-moe N",
            "keep the experts of the first N layers off the GPU",
            whole(0, MAX_INT),
        ),
        _option("-b --batch N", "tokens per prefill batch", whole(1, MAX_INT)),
        _option(
            "--cache HOW", "experts that do not fit in RAM: " + ", ".join(CACHES), choices=CACHES
        ),
        _option(
            "--cache-ram GIB",
            "RAM that experts may take at most",
            ram,
            commands=(*PLANS, "experts simulate"),
        ),
        _option(
            "--experts N",
            "experts per token (fewer than the model's own: faster, and worse answers)",
            whole(1, 4096),
        ),
        _option(
            "--prefer-cached X",
            "take an expert in memory that the router likes up to X (0 to 1) less: faster, and "
            "other answers",
            number(0, 1),
        ),
        _option(
            "--experts-on TIER[:LAYERS]",
            "gpu, ram or disk for the experts of some layers (ram:0-11,15) or of all; repeatable",
            each(placement_options.experts_on),
            repeatable=True,
        ),
        _option(
            "-ot --override --override-tensor REGEX=DEVICE",
            "put tensors by name: -ot 'blk.3.*exps=CPU'; before every other rule; repeatable",
            placement_options.override,
            field="overrides",
            repeatable=True,
        ),
        _option(
            "--remote --rpc HOST:PORT",
            "use the memory of a `localmoe worker` on another machine; repeatable",
            placement_options.remote,
            field="remotes",
            commands=(*PLANS, "doctor"),
            repeatable=True,
        ),
        settings=True,
    ),
    _group(
        "the network",
        ("serve",),
        _option(
            "--host ADDRESS",
            "where to listen (127.0.0.1: this machine only)",
            commands=("worker", "serve"),
        ),
        _option(
            "--port N",
            f"and at which port (worker: {placement_options.DEFAULT_PORT}; serve: 8080, 0: any)",
            whole(0, 65535),
            commands=("worker", "serve"),
        ),
        _option("--api-key KEY", "clients have to know it"),
        _option(
            "--api-key-file FILE", "the same, one key a line (not seen by `ps`)", proposes=FILES
        ),
        _option(
            "--allow-host NAME",
            "a name by which clients call this machine, beside its own; repeatable",
            each(str),
            repeatable=True,
        ),
        _option(
            "--cors ORIGIN",
            "pages of this origin may use the server (https://chat.example); repeatable",
            each(str),
            repeatable=True,
        ),
        _option(
            "--alias NAME=MODEL",
            "requests for NAME are answered by MODEL; repeatable",
            each(alias),
            repeatable=True,
        ),
        _option("--idle TIME", "unload the model after so long without a request", duration),
        _option("--allow-pull", "a request may download the model that it names"),
    ),
    _group(
        "the answer",
        SAMPLES,
        _option("--system TEXT", "system prompt", commands=WRITES),
        _option("--plain", "no chat template: the model continues the text", commands=WRITES),
        _option(
            "-v --verbose",
            "say first where the model lives, and how fast it should be",
            commands=("run",),
        ),
        _option(
            "--trace FILE",
            "record which experts every token used",
            commands=TALKS,
            proposes=FILES,
            setting=False,
        ),
        _option("--logits", "with --trace: the routers' logits too (larger)", commands=TALKS),
        _option("-n --max-tokens --tokens N", "stop after N tokens", token_limit, commands=LOADS),
        _option("--temp X", "0: greedy, repeatable", number(0, 100), field="temperature"),
        _option("--top-k N", "sample from the N likeliest; 0: all", whole(0, MAX_INT)),
        _option("--top-p X", "sample from the likeliest that sum to X", number(0, 1)),
        _option("--min-p X", "drop tokens below X times the likeliest", number(0, 1)),
        _option(
            "--repeat-penalty X", "make tokens of the last N less likely; 1: off", number(0.01, 100)
        ),
        _option("--repeat-last-n N", "how far the penalties look back (64)", whole(0, 1 << 20)),
        _option("--presence-penalty X", "against words used; 0: off", number(-2, 2)),
        _option("--frequency-penalty X", "against words used often; 0: off", number(-2, 2)),
        _option("--seed N", "repeat the same random choices", seed),
        _option(
            "-r --stop TEXT",
            "end the answer where TEXT would come (repeatable)",
            each(str),
            repeatable=True,
        ),
        _option(
            "--schema FILE",
            "answer in JSON that a JSON schema describes",
            commands=TALKS,
            proposes=FILES,
            setting=False,
        ),
        _option(
            "--tools FILE",
            "functions that the model may call, as a JSON list; --json has the calls",
            commands=("run",),
            proposes=FILES,
            setting=False,
        ),
        _option(
            "--tool-choice CHOICE",
            "auto, none, required, or the name of the tool that must be called",
            commands=("run",),
            setting=False,
        ),
        _option(
            "--think LEVEL",
            "how much the model reasons first: " + ", ".join(THINK_LEVELS),
            choices=THINK_LEVELS,
        ),
        settings=True,
    ),
    _group(
        "the conversation",
        TALKS,
        _option(
            "-f --file FILE",
            "attach a text file to the first message (repeatable); experts record: its paragraphs "
            "are the prompts",
            each(str),
            field="files",
            commands=WRITES,
            repeatable=True,
            proposes=FILES,
            setting=False,
        ),
        _option("--continue", "go on with the last conversation", field="resume", setting=False),
        _option(
            "--session NAME",
            "go on with this conversation, or begin it",
            proposes=SESSIONS,
            setting=False,
        ),
        _option("--no-history", "leave no trace: no session, no typed lines", commands=SAMPLES),
        _option(
            "--overflow CHOICE",
            "when the next turn does not fit the context: "
            + ", ".join(OVERFLOWS)
            + " (serve: drop, "
            "error)",
            overflow,
            commands=(*TALKS, "serve"),
            choices=OVERFLOWS,
        ),
        settings=True,
    ),
    _group(
        "the measurement",
        ("bench",),
        _option(
            "--memory LIST",
            "hard limits: 0.4x of the model's size, or GiB; separated by commas",
            limits,
        ),
        _option("--runs N", "runs of each kind (3), alternating", whole(1, 1000)),
        _option(
            "--regimes LIST",
            "of plain, off, page, private, auto; plain is llama.cpp's own mapping",
            names,
        ),
        _option("--prompt-tokens N", "tokens to read (32)", whole(1, MAX_INT)),
        _option("--replay TRACE", "impose a recorded routing on every run", proposes=FILES),
        _option("--sweep", "eight limits between 0.3x and 1.2x"),
        _option("--log FILE", "remember runs there, and make only what is missing", proposes=FILES),
        _option(
            "--vs COMMAND", "the same runs of a llama.cpp program: llama-server, or llama-bench"
        ),
        _option(
            "--tune SECONDS",
            "look for faster settings at the end, for so long at most (180; 0: not at all)",
            number(0, 86400),
        ),
    ),
    _group(
        "this machine",
        ("doctor",),
        _option("--measure", "measure how fast it is once more, which takes some seconds"),
    ),
    _group(
        "the routing",
        ("experts record",),
        _option(
            "-o --output FILE",
            "where the trace or the page is written",
            commands=("experts record", "experts report"),
            proposes=FILES,
        ),
        _option("--domains", "the bundled prompts, by domain"),
        _option(
            "--png FOLDER",
            "the plots as pictures too",
            commands=("experts report",),
            proposes=FILES,
        ),
    ),
    _group(
        "output",
        ANSWERS,
        _option(
            "--json",
            "one JSON document on stdout",
            commands=tuple(name for name in ANSWERS if name != "chat"),
            setting=False,
        ),
        _option("-q --quiet", "no notes, no warnings"),
        _option(
            "--jsonl",
            "JSON, one document per line; run, pull, bench: events as they happen",
            commands=tuple(name for name in ANSWERS if name != "chat"),
            setting=False,
        ),
        settings=True,
    ),
    _group(
        "speed",
        PLANS,
        _option(
            "--min-tps X",
            "what is too slow: fewer than X tok/s to be expected (pull asks below 2)",
            number(0.001, 1e6),
        ),
    ),
    _group(
        "building",
        ("engine install",),
        _option("--dry-run", "say what would be done, and do nothing"),
    ),
    _group(
        "downloads",
        ("pull", *LOADS, "engine install"),
        _option(
            "-y --yes --force",
            "download without a question, even what does not fit here; engine install: build anew",
        ),
    ),
    _group(
        "the model",
        (
            *(command.name for command in COMMANDS.values() if command.takes_model),
            "experts record",
            *REPLAYS,
            "config set",
            "config unset",
        ),
        _option(
            "-m --model -hf --hf-repo MODEL",
            "the model, when in doubt (-hf as llama.cpp has it)",
            proposes=MODELS,
        ),
    ),
    _group("other", EVERY, _option("-h --help", "this text"), _option("--version", "the version")),
)

OPTIONS = tuple(option for group in GROUPS for option in group.options)
FLAGS = {flag: option for option in OPTIONS for flag in option.flags}
