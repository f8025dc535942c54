"""What was typed → ``Options``. Pure: reads no file, starts nothing, prints nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localmoe.cli.commands import COMMANDS, HELP, SHORT_NAMES
from localmoe.cli.options import EVERY, FLAGS, OPTIONS
from localmoe.cli.parser import HINT, option_parser
from localmoe.errors import UsageError
from localmoe.text import did_you_mean


@dataclass(frozen=True, slots=True)
class Options:
    """One parsed command line. ``None`` means: not given, the default is decided later."""

    command: str | None = None
    words: tuple[str, ...] = ()  # positional words after the command, before any ``--``
    after_dashes: tuple[str, ...] | None = None  # words after ``--``; None when there was none
    help: bool = False
    version: bool = False
    model: str | None = None
    context: int | None = None  # tokens
    threads: int | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    ram: int | None = None  # bytes
    vram: int | None = None  # bytes
    machine: str | None = None  # path
    gpu_layers: int | None = None  # -1: all
    n_cpu_moe: int | None = None
    batch: int | None = None  # tokens
    cache: str = "auto"
    cache_ram: int | None = None  # bytes
    repack: str = "off"
    experts: int | None = None  # per token
    prefer_cached: float | None = None
    trace: str | None = None  # path: where the routing is recorded
    logits: bool = False  # with what the routers said of every expert
    experts_on: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()  # tier, spans of layers
    overrides: tuple[tuple[str, str], ...] = ()  # tensor-name regex, device
    remotes: tuple[str, ...] = ()  # "host:port"
    host: str | None = None
    port: int | None = None
    api_key: str | None = None
    api_key_file: str | None = None  # path
    alias: tuple[tuple[str, str], ...] = ()  # name in a request, model
    idle: float | None = None  # seconds
    cors: tuple[str, ...] = ()  # origins
    allow_host: tuple[str, ...] = ()
    allow_pull: bool = False
    dry_run: bool = False
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None  # path of a JSON schema
    tools: str | None = None  # path of a JSON list of tools
    tool_choice: str | None = None
    max_tokens: int | None = None
    think: str = "auto"
    system: str | None = None
    plain: bool = False
    files: tuple[str, ...] = ()  # paths of attached text files
    resume: bool = False  # --continue: the last session
    session: str | None = None
    no_history: bool = False
    overflow: str | None = None  # what to do when a turn does not fit; None: asks, or stops
    memory: tuple[float | int, ...] = ()  # of bench: shares of the model's size, or bytes
    runs: int | None = None
    regimes: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    replay: str | None = None  # path
    sweep: bool = False
    measure: bool = False
    log: str | None = None  # path
    vs: str | None = None  # command line of a llama.cpp program
    tune: float | None = None  # seconds
    output: str | None = None  # path
    domains: bool = False
    png: str | None = None  # path of a folder
    json: bool = False
    jsonl: bool = False
    yes: bool = False
    min_tps: float | None = None  # tokens per second
    verbose: bool = False
    quiet: bool = False
    typed: frozenset[str] = frozenset()  # fields that the command line itself gave


@dataclass(frozen=True, slots=True)
class ModelAndPrompt:
    """What ``run`` was asked: ``prompt`` is the typed words in order (``-`` stands for stdin)."""

    model: str | None
    prompt: tuple[str, ...] = ()


def parse(argv: Sequence[str]) -> Options:
    """The command line as ``Options``. Raises ``UsageError`` with a hint for anything wrong."""
    before, after = split_at_dashes(argv)
    given = _given(before)
    command, words = _command_of(given.pop("words", None) or [], given)
    if command is not None and not given.get("help") and not given.get("version"):
        _refuse_what_means_nothing(scope_of(command, words), given, before)
    if given.get("resume") and given.get("session"):
        raise UsageError(
            "--continue and --session are two ways to say which conversation",
            hint="--continue takes the last one, --session NAME the one of that name",
        )
    fields = _fields(given)
    typed = frozenset(fields)
    return Options(command=command, words=tuple(words), after_dashes=after, typed=typed, **fields)


def option_values(argv: Sequence[str]) -> dict[str, Any]:
    """Fields of ``Options`` that these options give, whatever command they would be for.

    Raises ``UsageError``.
    """
    given = _given(argv)
    given.pop("words", None)
    return _fields(given)


def _command_of(words: list[str], given: dict[str, Any]) -> tuple[str | None, list[str]]:
    """The command by its full name, and the words after it; None where no command is typed.

    ``help`` becomes the option ``--help``. Raises ``UsageError`` for a word that is no command.
    """
    if words and words[0] == HELP:
        given["help"] = True
        words = [word for word in words[1:] if word != HELP]
    if not words:
        return None, []
    command = SHORT_NAMES.get(words[0], words[0])
    if command not in COMMANDS:
        raise unknown_command(words[0])
    return command, words[1:]


def scope_of(command: str, words: Sequence[str]) -> str:
    """Who takes the options: the command, or command and action as in "experts record"."""
    scope = f"{command} {words[0]}" if words else command
    return scope if scope in EVERY else command


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """What was typed, by the field that an option names, and ``words``. Raises ``UsageError``."""
    values, extra = option_parser().parse_known_intermixed_args(list(argv))
    given = vars(values)
    if extra:
        command, *words = given.get("words") or [""]
        command = SHORT_NAMES.get(command, command)
        scope = scope_of(command, words) if command in COMMANDS else None
        raise _unknown_option(extra[0], scope)
    return given


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """The same as fields of ``Options``: --kv-type stands for two, and lists cannot change."""
    both = given.pop("kv_type", None)
    if both is not None:
        given = {"type_k": both, "type_v": both} | given
    return {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}


def _refuse_what_means_nothing(scope: str, given: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Raises ``UsageError`` for options that change nothing about a command."""
    refused = [o for o in OPTIONS if o.field in given and scope not in o.commands]
    if not refused:
        return
    typed = {word.partition("=")[0] for word in argv}
    flags: list[str] = []
    hints: list[str] = []
    takers: dict[tuple[str, ...], list[str]] = {}
    for option in refused:
        flag = next((flag for flag in option.flags if flag in typed), f"--{option.name}")
        flags.append(flag)
        takers.setdefault(option.commands, []).append(flag)
        hints += [f"{flag} {option.why}"] if option.why else []
    for commands, alike in takers.items():
        are = "is" if len(alike) == 1 else "are"
        hints.append(f"{_listed(alike)} {are} for {_takers(commands)}")
    raise UsageError(f"{scope} takes no {_listed(flags)}", hint="; ".join(hints))


def split_at_dashes(argv: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...] | None]:
    """The words before the first ``--`` and those after it (None without one)."""
    if "--" not in argv:
        return argv, None
    at = argv.index("--")
    return argv[:at], tuple(argv[at + 1 :])


def model_and_prompt(options: Options, looks_like_model: Callable[[str], bool]) -> ModelAndPrompt:
    """The rule of ``run``: which word is MODEL, which words are the prompt.

    A first word without spaces that looks like a model is MODEL. ``-m MODEL`` makes every word
    prompt. A single word before ``--`` is MODEL whatever it looks like; words after are prompt.
    """
    words, tail = options.words, options.after_dashes
    if options.model is not None:
        return ModelAndPrompt(options.model, words + (tail or ()))
    certain = tail is not None and len(words) == 1
    if words and (certain or (_is_one_word(words[0]) and looks_like_model(words[0]))):
        return ModelAndPrompt(words[0], words[1:] + (tail or ()))
    return ModelAndPrompt(None, words + (tail or ()))


def only_model(options: Options, *, required: bool = False) -> str | None:
    """MODEL of a command that takes nothing else. Raises ``UsageError`` on any other word."""
    words = options.words + (options.after_dashes or ())
    if options.model is not None:
        words = (options.model, *words)
    if len(words) > 1:
        hint = f"localmoe {options.command} {words[0]}"
        if words[1].lower().endswith(".gguf"):  # REPO FILE, as `hf download` takes them
            hint += f":{words[1]}"
        elif options.command == "chat":
            hint = f"`localmoe run {words[0]} PROMPT…` answers a prompt"
        raise UsageError(
            f"{options.command} takes one MODEL, got {len(words)} words: {' '.join(words)}",
            hint=hint,
        )
    if required and not words:
        raise UsageError(
            f"{options.command} needs a MODEL",
            hint=f"localmoe {options.command} nano (the bundled model); "
            "`localmoe list` shows what is here",
        )
    return words[0] if words else None


def no_words(options: Options) -> None:
    """For commands without MODEL. Raises ``UsageError`` when there is one."""
    words = options.words + (options.after_dashes or ())
    if options.model is not None:
        words = (options.model, *words)
    if words:
        raise UsageError(
            f'{options.command} takes no MODEL, got "{words[0]}"',
            hint=f"localmoe fit {words[0]}, localmoe show {words[0]}",
        )


def unknown_command(word: str) -> UsageError:
    """The error for a first word that is no command, with the nearest ones."""
    near = difflib.get_close_matches(word, (*COMMANDS, HELP), n=2, cutoff=0.45)
    if word.endswith(".gguf") or "/" in word:
        hint = f"localmoe chat {word}, localmoe fit {word}"
    else:
        hint = f"commands: {', '.join(COMMANDS)}; `localmoe --help` explains them"
    return UsageError(f'no command "{word}".{did_you_mean(near)}', hint=hint)


_IN_THE_NAME = dict.fromkeys(
    ("--revision", "--hf-file", "-hff", "--hf-quant", "--quant", "--file"),
    "MODEL says it: USER/REPO@REVISION:QUANT, USER/REPO:FILE.gguf",
)
"""Options of other programs for what is part of a model's name here."""


def _unknown_option(word: str, scope: str | None) -> UsageError:
    name = word.split("=")[0]
    flags = [flag for flag, option in FLAGS.items() if scope is None or option.taken_by(scope)]
    near = difflib.get_close_matches(name, flags, n=2, cutoff=0.6)
    meant = did_you_mean(near)
    hint = f"`localmoe {scope} --help` lists the options" if scope else HINT
    if name in _IN_THE_NAME:
        meant, hint = "", _IN_THE_NAME[name]
    elif not near:
        hint += "; words that start with a dash go after `--`: localmoe run -- -1 + 1"
    return UsageError(f'no option "{name}".{meant}', hint=hint)


def _takers(commands: Sequence[str]) -> str:
    others = [name for name in EVERY if name not in commands]
    if len(others) < len(commands):
        return f"every command but {_listed(others)}"
    return _listed(commands)


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _is_one_word(word: str) -> bool:
    return bool(word) and not any(c.isspace() for c in word)
