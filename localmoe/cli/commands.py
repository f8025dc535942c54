"""The commands there are, as the help shows them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass


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
            ("speed", "memory", "output"),
        ),
        Command(
            "pull",
            "pull MODEL [options]",
            "download a model, or go on with a download, and check it",
            ("localmoe pull qwen3-30b-a3b:Q4_K_M", "localmoe pull user/repo:Q8_0 --yes"),
            ("download", "speed", "memory", "output"),
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

ALL_GROUPS = ("memory", "answer", "conversation", "output", "speed", "download")

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


def overview() -> str:
    """What localmoe is, and its commands."""
    width = screen_width()
    longest = max(map(len, COMMANDS))
    indent = " " * (longest + 4)
    about = [textwrap.fill(paragraph, width) for paragraph in DESCRIPTION]
    lines = (
        textwrap.fill(f"  {c.name:<{longest}}  {c.summary}", width, subsequent_indent=indent)
        for c in COMMANDS.values()
    )
    return "\n".join(("\n\n".join(about), "", "commands:", *lines))


def screen_width() -> int:
    """Columns that a help text may fill."""
    return max(20, min(100, shutil.get_terminal_size().columns - 2))


def examples(chosen: Command | None) -> str:
    """Those of one command; the first of each where none is chosen."""
    commands: Iterable[Command] = (chosen,) if chosen else COMMANDS.values()
    count = None if chosen else 1
    lines = (f"  {line}" for c in commands for line in c.examples[:count])
    return "\n".join(("examples:", *lines))
