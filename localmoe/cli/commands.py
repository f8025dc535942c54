"""The commands there are: what each is for, and which words follow its name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand, as its help shows it."""

    name: str
    usage: str  # what is typed after the name
    summary: str
    examples: tuple[str, ...]  # what is typed after ``localmoe``
    takes_model: bool = False  # the first word may be a MODEL: aliases and settings matter
    actions: tuple[str, ...] = ()  # words of which one may follow: ``experts record``


_TABLE = (
    Command(
        "fit",
        "[MODEL] [options]",
        "will it run here? before any download; no MODEL: what this machine can run",
        (
            "fit qwen3-30b-a3b",
            "fit unsloth/GLM-4.6-GGUF:Q4_K_M --ram 64",
            "fit big.gguf --ram 16 --ctx 32k --json",
        ),
        takes_model=True,
    ),
    Command(
        "pull",
        "MODEL [options]",
        "download a model, or go on with a download, and check it",
        ("pull qwen3-30b-a3b:Q4_K_M", "pull user/repo:Q8_0 --yes"),
        takes_model=True,
    ),
    Command(
        "plan",
        "MODEL [options]",
        "the placement, layer by layer, and the same as llama.cpp flags",
        ("plan big.gguf", "plan big.gguf --vram 8 --kv-type q8_0"),
        takes_model=True,
    ),
    Command(
        "run",
        "[MODEL] [PROMPT…] [options]",
        "one answer on stdout",
        (
            'run "What is a mixture of experts?"',
            'run big.gguf "Summarize this:" < notes.txt',
            "run -m big.gguf --temp 0 -n 200 -- --help is not an option here",
        ),
        takes_model=True,
    ),
    Command(
        "chat",
        "[MODEL] [options]",
        "a conversation in the terminal; /help lists its commands",
        ("chat big.gguf", "chat big.gguf --think low --ctx 16k", "chat --continue"),
        takes_model=True,
    ),
    Command(
        "serve",
        "[MODEL] [options]",
        "the model for editors, agents and web pages: OpenAI's and Anthropic's API",
        ("serve big.gguf", "serve --port 0 --idle 10m", "serve big.gguf --host 0.0.0.0"),
        takes_model=True,
    ),
    Command("list", "[options]", "the models found here", ("list --json",)),
    Command(
        "show",
        "MODEL [options]",
        "architecture, experts, parameters and sizes of a model",
        ("show big.gguf", "show big.gguf --json"),
        takes_model=True,
    ),
    Command(
        "rm",
        "MODEL [options]",
        "delete a model of localmoe's folder or of the Hub cache",
        ("rm qwen3-30b-a3b:Q4_K_M",),
        takes_model=True,
    ),
    Command(
        "bench",
        "[MODEL] [options]",
        "measure this machine with this model, under a memory limit if you like",
        ("bench big.gguf --memory 0.4x,0.75x", "bench big.gguf --sweep --log big.jsonl"),
        takes_model=True,
    ),
    Command(
        "engine",
        "[install BACKEND | remove BACKEND] [options]",
        "what the engine was built with; add cuda, vulkan, rpc; build it for rocm, metal, cpu",
        ("engine", "engine install cuda --dry-run", "engine remove cuda"),
        actions=("install", "remove"),
    ),
    Command(
        "worker",
        "[options]",
        "give this machine's memory to a localmoe on another one (its --remote)",
        ("worker", "worker --ram 8", "worker --host 0.0.0.0"),
    ),
    Command(
        "config",
        "[show | set NAME VALUE | unset NAME | explain [NAME] | alias [NAME MODEL] | path]",
        "settings and aliases that need not be typed: show, set, explain",
        (
            "config set ctx 16k",
            "config set temp 0.6 -m qwen3-30b-a3b",
            "config alias coder someone/Qwen3-Coder-GGUF:Q4_K_M",
        ),
        actions=("show", "set", "unset", "explain", "alias", "path"),
    ),
    Command(
        "completion",
        "bash|zsh|fish",
        "the script that lets a shell complete localmoe's words",
        (
            "completion bash >> ~/.bashrc",
            "completion fish > ~/.config/fish/completions/localmoe.fish",
        ),
    ),
    Command(
        "experts",
        "record|show|compare|simulate|report … [options]",
        "routing: record it, see load and specialisation, and what more memory would buy",
        (
            "experts record MODEL --domains -o model.trace",
            "experts show model.trace",
            "experts compare model.trace",
            "experts simulate model.trace --cache-ram 8",
            "experts report model.trace -o report.html --png pictures",
        ),
        actions=("record", "show", "compare", "simulate", "report"),
    ),
    Command(
        "doctor",
        "[options]",
        "hardware, engine and caches; each finding with what to type",
        ("doctor", "doctor --measure", "doctor --json > laptop.json"),
    ),
)

COMMANDS = {command.name: command for command in _TABLE}

HELP = "help"  # ``localmoe help COMMAND`` is ``localmoe COMMAND --help``
SHORT_NAMES = {"ls": "list"}
"""Other names of commands, as people's fingers know them."""
