"""The options there are, as argparse knows them, and their help texts.

Every option is accepted by every command, so that ``run`` in a command line can be replaced by
``plan`` or ``fit`` to see what would happen; a command's ``--help`` lists those that matter to it.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import NoReturn

from localmoe.cli import placement_options
from localmoe.cli.commands import (
    ALL_GROUPS,
    COMMANDS,
    EXIT_CODES,
    examples,
    overview,
    screen_width,
)
from localmoe.cli.option_types import (
    MAX_INT,
    gib,
    layers,
    limits,
    names,
    number,
    ram,
    seed,
    token_limit,
    tokens,
    whole,
)
from localmoe.errors import UsageError

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHES = ("auto", "off", "page", "private")
THINK_LEVELS = ("auto", "off", "low", "medium", "high")
OVERFLOWS = ("ask", "drop", "summarise", "stop")  # chat/context.py


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        raise UsageError(text, hint="`localmoe COMMAND --help` lists the options")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """All options; with ``command``, only those that matter to it are in the help text."""
    chosen = COMMANDS.get(command) if command else None
    parser = _Parser(
        prog="localmoe",
        usage=f"localmoe {chosen.usage}" if chosen else "localmoe COMMAND [MODEL] [options]",
        description=f"{chosen.summary[0].upper()}{chosen.summary[1:]}." if chosen else overview(),
        epilog=examples(chosen) + "\n\n" + textwrap.fill(EXIT_CODES, screen_width()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)
    shown = chosen.groups if chosen else ALL_GROUPS

    def group(title: str, name: str) -> Callable[..., object]:
        section = parser.add_argument_group(title)

        def add(*flags: str, help: str, **how: object) -> object:
            text = help if name in shown else argparse.SUPPRESS
            return section.add_argument(*flags, help=text, **how)  # type: ignore[arg-type]

        return add

    _memory_options(group("memory and placement", "memory"))
    _worker_options(group("the worker", "worker"))
    _answer_options(group("the answer", "answer"))
    _conversation_options(group("the conversation", "conversation"))
    _bench_options(group("the measurement", "bench"))
    _experts_options(group("the routing", "experts"))
    _output_options(group("output", "output"))
    group("speed", "speed")(
        "--min-tps",
        type=number(0.001, 1e6),
        metavar="X",
        help="what is too slow: fewer than X tok/s to be expected (pull asks below 2)",
    )
    group("building", "engine")(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    group("downloads", "download")(
        "-y",
        "--yes",
        "--force",
        dest="yes",
        action="store_true",
        help="download without a question, even what does not fit here",
    )
    other = parser.add_argument_group("other")
    other.add_argument("-m", "--model", metavar="MODEL", help="the model, when in doubt")
    other.add_argument("-h", "--help", action="store_true", help="this text")
    other.add_argument("--version", action="store_true", help="the version")
    return parser


def _memory_options(add: Callable[..., object]) -> None:
    kv = {"choices": KV_TYPES, "metavar": "TYPE"}
    add(
        "-c",
        "--ctx",
        dest="context",
        type=tokens,
        metavar="N",
        help="context in tokens (8k = 8192)",
    )
    add("-t", "--threads", type=whole(1, 4096), metavar="N", help="processor threads")
    add("--kv-type", **kv, help="KV cache type: " + ", ".join(KV_TYPES))
    add("-ctk", "--cache-type-k", dest="type_k", **kv, help="type of the keys alone")
    add("-ctv", "--cache-type-v", dest="type_v", **kv, help="type of the values alone")
    add("--ram", type=ram, metavar="GIB", help="plan with this much free RAM")
    add("--vram", type=gib, metavar="GIB", help="plan with this much free GPU memory")
    add("--machine", metavar="FILE", help="plan for another machine: its `doctor --json`")
    add("-ngl", "--gpu-layers", type=layers, metavar="N", help="layers on the GPU (all: every one)")
    add(
        "-ncmoe",
        "--n-cpu-moe",
        type=whole(0, MAX_INT),
        metavar="N",
        help="keep the experts of the first N layers off the GPU",
    )
    add("-b", "--batch", type=whole(1, MAX_INT), metavar="N", help="tokens per prefill batch")
    add(
        "--cache",
        choices=CACHES,
        metavar="HOW",
        help="experts that do not fit in RAM: " + ", ".join(CACHES),
    )
    add("--cache-ram", type=ram, metavar="GIB", help="RAM that experts may take at most")
    add(
        "--experts",
        type=whole(1, 4096),
        metavar="N",
        help="experts per token (fewer than the model's own: faster, and worse answers)",
    )
    add(
        "--prefer-cached",
        type=number(0, 1),
        metavar="X",
        help="take an expert in memory that the router likes up to X (0 to 1) less: faster, and "
        "other answers",
    )
    add(
        "--experts-on",
        action="append",
        type=placement_options.experts_on,
        metavar="TIER[:LAYERS]",
        help="gpu, ram or disk for the experts of some layers (ram:0-11,15) or of all; repeatable",
    )
    add(
        "-ot",
        "--override",
        "--override-tensor",
        dest="overrides",
        action="extend",
        type=placement_options.override,
        metavar="REGEX=DEVICE",
        help="put tensors by name: -ot 'blk.3.*exps=CPU'; before every other rule; repeatable",
    )
    add(
        "--remote",
        "--rpc",
        dest="remotes",
        action="extend",
        type=placement_options.remote,
        metavar="HOST:PORT",
        help="use the memory of a `localmoe worker` on another machine; repeatable",
    )


def _worker_options(add: Callable[..., object]) -> None:
    add("--host", metavar="ADDRESS", help="where to listen (127.0.0.1: this machine only)")
    add(
        "--port",
        type=whole(1, 65535),
        metavar="N",
        help=f"and at which port ({placement_options.DEFAULT_PORT})",
    )


def _answer_options(add: Callable[..., object]) -> None:
    add("--system", metavar="TEXT", help="system prompt")
    add("--plain", action="store_true", help="no chat template: the model continues the text")
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="run: say first where the model lives, and how fast it should be",
    )
    add("--trace", metavar="FILE", help="record which experts every token used")
    add("--logits", action="store_true", help="with --trace: the routers' logits too (larger)")
    add(
        "-n",
        "--max-tokens",
        "--tokens",
        dest="max_tokens",
        type=token_limit,
        metavar="N",
        help="stop after N tokens",
    )
    add(
        "--temp",
        dest="temperature",
        type=number(0, 100),
        metavar="X",
        help="0: greedy, repeatable",
    )
    add("--top-k", type=whole(0, MAX_INT), metavar="N", help="sample from the N likeliest; 0: all")
    add("--top-p", type=number(0, 1), metavar="X", help="sample from the likeliest that sum to X")
    add("--min-p", type=number(0, 1), metavar="X", help="drop tokens below X times the likeliest")
    add(
        "--repeat-penalty",
        type=number(0.01, 100),
        metavar="X",
        help="make tokens of the last N less likely; 1: off",
    )
    add(
        "--repeat-last-n",
        type=whole(0, 1 << 20),
        metavar="N",
        help="how far the penalties look back (64)",
    )
    add("--presence-penalty", type=number(-2, 2), metavar="X", help="against words used; 0: off")
    add(
        "--frequency-penalty",
        type=number(-2, 2),
        metavar="X",
        help="against words used often; 0: off",
    )
    add("--seed", type=seed, metavar="N", help="repeat the same random choices")
    add(
        "-r",
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer where TEXT would come (repeatable)",
    )
    add("--schema", metavar="FILE", help="answer in JSON that a JSON schema describes")
    add(
        "--think",
        choices=THINK_LEVELS,
        metavar="LEVEL",
        help="how much the model reasons first: " + ", ".join(THINK_LEVELS),
    )


def _conversation_options(add: Callable[..., object]) -> None:
    add(
        "-f",
        "--file",
        dest="files",
        action="append",
        metavar="FILE",
        help="attach a text file to the first message (repeatable)",
    )
    add("--continue", dest="resume", action="store_true", help="go on with the last conversation")
    add("--session", metavar="NAME", help="go on with this conversation, or begin it")
    add("--no-history", action="store_true", help="leave no trace: no session, no typed lines")
    add(
        "--overflow",
        choices=OVERFLOWS,
        metavar="CHOICE",
        help="when the next turn does not fit the context: " + ", ".join(OVERFLOWS),
    )


def _bench_options(add: Callable[..., object]) -> None:
    add(
        "--memory",
        type=limits,
        metavar="LIST",
        help="hard limits: 0.4x of the model's size, or GiB; separated by commas",
    )
    add("--runs", type=whole(1, 1000), metavar="N", help="runs of each kind (3), alternating")
    add("--regimes", type=names, metavar="LIST", help="of plain, off, page, private, auto")
    add("--baseline", choices=("mmap",), metavar="mmap", help="plain llama.cpp among them")
    add("--prompt-tokens", type=whole(1, MAX_INT), metavar="N", help="tokens to read (32)")
    add("--plain-tokens", type=whole(1, MAX_INT), metavar="N", help="plain writes only N tokens")
    add("--replay", metavar="TRACE", help="impose a recorded routing on every run")
    add(
        "--predicted",
        type=number(0, 1),
        metavar="X",
        help="of an imposed routing, predict the next layer's experts with accuracy X (0: do not)",
    )
    add("--sweep", action="store_true", help="eight limits between 0.3x and 1.2x")
    add("--log", metavar="FILE", help="remember runs there, and make only what is missing")
    add("--at-most", type=whole(0, MAX_INT), metavar="N", help="stop after N runs")
    add(
        "--vs",
        metavar="COMMAND",
        help="the same runs of a llama.cpp program: llama-server, or llama-bench",
    )
    add(
        "--tune",
        type=number(0, 86400),
        metavar="SECONDS",
        help="look for faster settings at the end, for so long at most (180; 0: not at all)",
    )


def _experts_options(add: Callable[..., object]) -> None:
    add("-o", "--output", metavar="FILE", help="record: the trace; report: the page")
    add("--domains", action="store_true", help="record: the bundled prompts, by domain")
    add("--png", metavar="FOLDER", help="report: the plots as pictures too")
    add(
        "--resident-tps",
        type=number(0.001, 1e6),
        metavar="X",
        help="simulate: tok/s with all experts in RAM, as measured by bench",
    )


def _output_options(add: Callable[..., object]) -> None:
    add("--json", action="store_true", help="one JSON document on stdout")
    add("-q", "--quiet", action="store_true", help="no notes, no warnings")
    add(
        "--jsonl",
        action="store_true",
        help="JSON, one document per line; run: events as they happen",
    )
