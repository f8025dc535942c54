"""The commands and options there are, as argparse knows them, and their help texts.

Every option is accepted by every command, so that ``run`` in a command line can be replaced by
``plan`` or ``fit`` to see what would happen; a command's ``--help`` lists those that matter to it.
"""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from localmoe.cli import places
from localmoe.errors import UsageError

GIB = 1 << 30
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHES = ("auto", "off", "page", "private")
THINK_LEVELS = ("auto", "off", "low", "medium", "high")
OVERFLOWS = ("ask", "drop", "summarise", "stop")  # chat/context.py
MAX_CONTEXT = 10 * 1024 * 1024  # tokens; planning/placement.py asks about no more
MAX_INT = 2**31 - 1  # llama.cpp's int32


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand, as its help shows it."""

    name: str
    usage: str
    summary: str
    examples: tuple[str, ...]
    groups: tuple[str, ...]  # option groups that change what it does

    @property
    def model(self) -> bool:
        """Whether its first word may be a model, so that aliases and settings matter to it."""
        return "MODEL" in self.usage.split()[1]


COMMANDS = {
    c.name: c
    for c in (
        Command(
            "fit",
            "fit [MODEL] [options]",
            "will it run here? before any download; no MODEL: what this machine can run",
            (
                "localmoe fit qwen3-30b-a3b",
                "localmoe fit unsloth/GLM-4.6-GGUF:Q4_K_M --ram 64",
                "localmoe fit big.gguf --ram 16 --ctx 32k --json",
            ),
            ("memory", "output"),
        ),
        Command(
            "pull",
            "pull MODEL [options]",
            "download a model, or go on with a download, and check it",
            ("localmoe pull qwen3-30b-a3b:Q4_K_M", "localmoe pull user/repo:Q8_0 --yes"),
            ("download", "memory", "output"),
        ),
        Command(
            "plan",
            "plan MODEL [options]",
            "the placement, layer by layer, and the same as llama.cpp flags",
            ("localmoe plan big.gguf", "localmoe plan big.gguf --vram 8 --kv-type q8_0"),
            ("memory", "output"),
        ),
        Command(
            "run",
            "run [MODEL] [PROMPT…] [options]",
            "one answer on stdout",
            (
                'localmoe run "What is a mixture of experts?"',
                'localmoe run big.gguf "Summarize this:" < notes.txt',
                "localmoe run -m big.gguf --temp 0 -n 200 -- --help is not an option here",
            ),
            ("memory", "answer", "conversation", "output", "download"),
        ),
        Command(
            "chat",
            "chat [MODEL] [options]",
            "a conversation in the terminal; /help lists its commands",
            (
                "localmoe chat big.gguf",
                "localmoe chat big.gguf --think low --ctx 16k",
                "localmoe chat --continue",
            ),
            ("memory", "answer", "conversation", "download"),
        ),
        Command(
            "list",
            "list [options]",
            "the models found here",
            ("localmoe list --json",),
            ("output",),
        ),
        Command(
            "show",
            "show MODEL [options]",
            "architecture, experts, parameters and sizes of a model",
            ("localmoe show big.gguf", "localmoe show big.gguf --json"),
            ("output",),
        ),
        Command(
            "rm",
            "rm MODEL [options]",
            "delete a model of localmoe's folder or of the Hub cache",
            ("localmoe rm qwen3-30b-a3b:Q4_K_M",),
            ("output",),
        ),
        Command(
            "bench",
            "bench [MODEL] [options]",
            "measure this machine with this model, under a memory limit if you like",
            (
                "localmoe bench big.gguf --memory 0.4x,0.75x",
                "localmoe bench big.gguf --sweep --log big.jsonl --at-most 8",
            ),
            ("bench", "memory", "output", "download"),
        ),
        Command(
            "engine",
            "engine [install BACKEND] [options]",
            "what the engine was built with; build it for cuda, vulkan, rocm, metal, rpc, cpu",
            ("localmoe engine", "localmoe engine install cuda --dry-run"),
            ("engine", "output"),
        ),
        Command(
            "worker",
            "worker [options]",
            "give this machine's memory to a localmoe on another one (its --remote)",
            ("localmoe worker", "localmoe worker --ram 8", "localmoe worker --host 0.0.0.0"),
            ("worker", "output"),
        ),
        Command(
            "config",
            "config [set NAME VALUE | unset NAME | explain [NAME] | alias [NAME MODEL] | path]",
            "settings and aliases that need not be typed: show, set, explain",
            (
                "localmoe config set ctx 16k",
                "localmoe config set temp 0.6 -m qwen3-30b-a3b",
                "localmoe config alias coder someone/Qwen3-Coder-GGUF:Q4_K_M",
            ),
            ("output",),
        ),
        Command(
            "completion",
            "completion bash|zsh|fish",
            "the script that lets a shell complete localmoe's words",
            (
                'eval "$(localmoe completion bash)"',
                "localmoe completion fish > ~/.config/fish/completions/localmoe.fish",
            ),
            (),
        ),
        Command(
            "experts",
            "experts record|show|compare|simulate|report … [options]",
            "routing: record it, see load and specialisation, and what more memory would buy",
            (
                "localmoe experts record MODEL --domains -o model.trace",
                "localmoe experts show model.trace",
                "localmoe experts compare model.trace",
                "localmoe experts simulate model.trace --resident-tps 9.5",
                "localmoe experts report model.trace -o report.html --png pictures",
            ),
            ("experts", "memory", "answer", "output", "download"),
        ),
        Command(
            "doctor",
            "doctor [options]",
            "hardware, engine and caches; each finding with what to type",
            ("localmoe doctor", "localmoe doctor --json > laptop.json"),
            ("output",),
        ),
    )
}

ALL_GROUPS = ("memory", "answer", "conversation", "output", "download")

DESCRIPTION = (
    "Will this Mixture-of-Experts model run here, and laid out how over GPU, RAM and disk? "
    "Then run it.",
    "MODEL is a name from the catalog (qwen3-30b-a3b), a Hub repository or its URL, each with an "
    "optional :QUANT; a local .gguf file (any part of a multi-part set) or the name of a model "
    "found here (`localmoe list`); or `nano`, the small model that comes with localmoe.",
)

EXIT_CODES = (
    "exit codes: 0 done · 1 failure · 2 usage · 3 does not fit · 4 bad model file · "
    "5 download or integrity · "
    "130 interrupted · 143 terminated"
)


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
        description=f"{chosen.summary[0].upper()}{chosen.summary[1:]}." if chosen else _overview(),
        epilog=_examples(chosen) + "\n\n" + textwrap.fill(EXIT_CODES, _screen_width()),
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
        type=_tokens,
        metavar="N",
        help="context in tokens (8k = 8192)",
    )
    add("-t", "--threads", type=_whole(1, 4096), metavar="N", help="processor threads")
    add("--kv-type", **kv, help="KV cache type: " + ", ".join(KV_TYPES))
    add("-ctk", "--cache-type-k", dest="type_k", **kv, help="type of the keys alone")
    add("-ctv", "--cache-type-v", dest="type_v", **kv, help="type of the values alone")
    add("--ram", type=_ram, metavar="GIB", help="plan with this much free RAM")
    add("--vram", type=_gib, metavar="GIB", help="plan with this much free GPU memory")
    add("--machine", metavar="FILE", help="plan for another machine: its `doctor --json`")
    add(
        "-ngl", "--gpu-layers", type=_layers, metavar="N", help="layers on the GPU (all: every one)"
    )
    add(
        "-ncmoe",
        "--n-cpu-moe",
        type=_whole(0, MAX_INT),
        metavar="N",
        help="keep the experts of the first N layers off the GPU",
    )
    add("-b", "--batch", type=_whole(1, MAX_INT), metavar="N", help="tokens per prefill batch")
    add(
        "--cache",
        choices=CACHES,
        metavar="HOW",
        help="experts that do not fit in RAM: " + ", ".join(CACHES),
    )
    add("--cache-ram", type=_ram, metavar="GIB", help="RAM that experts may take at most")
    add(
        "--experts",
        type=_whole(1, 4096),
        metavar="N",
        help="experts per token (fewer than the model's own: faster, and worse answers)",
    )
    add(
        "--prefer-cached",
        type=_number(0, 1),
        metavar="X",
        help="take an expert in memory that the router likes up to X (0 to 1) less: faster, and "
        "other answers",
    )
    add(
        "--experts-on",
        action="append",
        type=places.experts_on,
        metavar="TIER[:LAYERS]",
        help="gpu, ram or disk for the experts of some layers (ram:0-11,15) or of all; repeatable",
    )
    add(
        "-ot",
        "--override",
        "--override-tensor",
        dest="overrides",
        action="extend",
        type=places.override,
        metavar="REGEX=DEVICE",
        help="put tensors by name: -ot 'blk.3.*exps=CPU'; before every other rule; repeatable",
    )
    add(
        "--remote",
        "--rpc",
        dest="remotes",
        action="extend",
        type=places.remote,
        metavar="HOST:PORT",
        help="use the memory of a `localmoe worker` on another machine; repeatable",
    )


def _worker_options(add: Callable[..., object]) -> None:
    add("--host", metavar="ADDRESS", help="where to listen (127.0.0.1: this machine only)")
    add(
        "--port",
        type=_whole(1, 65535),
        metavar="N",
        help=f"and at which port ({places.DEFAULT_PORT})",
    )


def _answer_options(add: Callable[..., object]) -> None:
    add("--system", metavar="TEXT", help="system prompt")
    add("--plain", action="store_true", help="no chat template: the model continues the text")
    add("--trace", metavar="FILE", help="record which experts every token used")
    add(
        "-n",
        "--max-tokens",
        "--tokens",
        dest="max_tokens",
        type=_token_limit,
        metavar="N",
        help="stop after N tokens",
    )
    add(
        "--temp",
        dest="temperature",
        type=_number(0, 100),
        metavar="X",
        help="0: greedy, repeatable",
    )
    add("--top-k", type=_whole(0, MAX_INT), metavar="N", help="sample from the N likeliest; 0: all")
    add("--top-p", type=_number(0, 1), metavar="X", help="sample from the likeliest that sum to X")
    add("--min-p", type=_number(0, 1), metavar="X", help="drop tokens below X times the likeliest")
    add(
        "--repeat-penalty",
        type=_number(0.01, 100),
        metavar="X",
        help="make tokens of the last N less likely; 1: off",
    )
    add(
        "--repeat-last-n",
        type=_whole(0, 1 << 20),
        metavar="N",
        help="how far the penalties look back (64)",
    )
    add("--presence-penalty", type=_number(-2, 2), metavar="X", help="against words used; 0: off")
    add(
        "--frequency-penalty",
        type=_number(-2, 2),
        metavar="X",
        help="against words used often; 0: off",
    )
    add("--seed", type=_seed, metavar="N", help="repeat the same random choices")
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
        type=_limits,
        metavar="LIST",
        help="hard limits: 0.4x of the model's size, or GiB; separated by commas",
    )
    add("--runs", type=_whole(1, 1000), metavar="N", help="runs of each kind (3), alternating")
    add("--regimes", type=_names, metavar="LIST", help="of plain, off, page, private, auto")
    add("--baseline", choices=("mmap",), metavar="mmap", help="plain llama.cpp among them")
    add("--prompt-tokens", type=_whole(1, MAX_INT), metavar="N", help="tokens to read (32)")
    add("--plain-tokens", type=_whole(1, MAX_INT), metavar="N", help="plain writes only N tokens")
    add("--replay", metavar="TRACE", help="impose a recorded routing on every run")
    add("--sweep", action="store_true", help="eight limits between 0.3x and 1.2x")
    add("--log", metavar="FILE", help="remember runs there, and make only what is missing")
    add("--at-most", type=_whole(0, MAX_INT), metavar="N", help="stop after N runs")


def _experts_options(add: Callable[..., object]) -> None:
    add("-o", "--output", metavar="FILE", help="record: the trace; report: the page")
    add("--domains", action="store_true", help="record: the bundled prompts, by domain")
    add("--png", metavar="FOLDER", help="report: the plots as pictures too")
    add(
        "--resident-tps",
        type=_number(0.001, 1e6),
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


def _overview() -> str:
    width = _screen_width()
    longest = max(map(len, COMMANDS))
    indent = " " * (longest + 4)
    about = [textwrap.fill(paragraph, width) for paragraph in DESCRIPTION]
    lines = (
        textwrap.fill(f"  {c.name:<{longest}}  {c.summary}", width, subsequent_indent=indent)
        for c in COMMANDS.values()
    )
    return "\n".join(("\n\n".join(about), "", "commands:", *lines))


def _screen_width() -> int:
    return max(20, min(100, shutil.get_terminal_size().columns - 2))


def _examples(chosen: Command | None) -> str:
    commands: Iterable[Command] = (chosen,) if chosen else COMMANDS.values()
    count = None if chosen else 1
    lines = (f"  {line}" for c in commands for line in c.examples[:count])
    return "\n".join(("examples:", *lines))


def _bad(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f'"{text}" is not {wanted}')


def _whole(low: int, high: int) -> Callable[[str], int]:
    """A parser for whole numbers from ``low`` to ``high``."""
    bounds = f"a whole number, at least {low}" + (f" and at most {high}" if high < MAX_INT else "")

    def parse_whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _bad(text, bounds) from None
        if not low <= value <= high:
            raise _bad(text, bounds)
        return value

    return parse_whole


def _number(low: float, high: float) -> Callable[[str], float]:
    """A parser for finite numbers from ``low`` to ``high``."""

    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for nan too
            raise _bad(text, f"a number from {low:g} to {high:g}")
        return value

    return parse_number


def _tokens(text: str) -> int:
    kilo = text[-1:] in ("k", "K")
    try:
        value = int(text[:-1]) * 1024 if kilo else int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_CONTEXT:
        raise _bad(
            text,
            "a number of tokens such as 8192 or 8k, "
            f"at most {MAX_CONTEXT:,} (leave it out for the default)",
        )
    return value


def _token_limit(text: str) -> int | None:
    """llama.cpp's ``-n -1`` means no limit."""
    return None if text == "-1" else _whole(1, MAX_INT)(text)


def _layers(text: str) -> int | None:
    """llama.cpp's words: ``auto`` leaves it to the planner, ``all`` and -1 mean every layer."""
    if text == "auto":
        return None
    return -1 if text in ("all", "-1") else _whole(0, MAX_INT)(text)


def _seed(text: str) -> int | None:
    """llama.cpp's ``--seed -1`` means a fresh one each time."""
    return None if text == "-1" else _whole(0, 2**32 - 1)(text)


def _gib(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1 << 20:
        raise _bad(text, "a number of GiB such as 16 or 7.5")
    return int(value * GIB)


def _ram(text: str) -> int:
    return _gib(text) or _nothing(text)


def _nothing(text: str) -> NoReturn:
    raise _bad(text, "a number of GiB above 0, such as 16")


def _limits(text: str) -> tuple[float | int, ...]:
    """Shares of the model's size as floats ("0.4x"), bytes as ints ("6.5": GiB)."""
    limits: list[float | int] = []
    for word in text.split(","):
        share = word.strip().removesuffix("x")
        if share == word.strip():
            limits.append(_ram(share))
            continue
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not 0.01 <= value <= 100:
            raise _bad(word, "a share such as 0.4x, or a number of GiB")
        limits.append(value)
    return tuple(limits)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))
