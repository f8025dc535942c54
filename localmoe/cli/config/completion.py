"""``completion``: the scripts that let bash, zsh and fish complete localmoe's words.

A script asks ``localmoe completion candidates -- WORDS…`` for what may stand in place of the last
word, so that all shells propose the same. One candidate per line, with a tab before its
description; the line ``:files`` alone asks the shell for file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from localmoe import config
from localmoe.cli.arguments import Options, scope_of
from localmoe.cli.commands import COMMANDS, HELP, SHORT_NAMES
from localmoe.cli.config.defaults import SETTINGS
from localmoe.cli.option import FILES, MODELS, SESSIONS, Option
from localmoe.cli.options import FLAGS, OPTIONS
from localmoe.cli.output import Output
from localmoe.errors import LocalmoeError, UsageError
from localmoe.facts import catalog
from localmoe.facts.installed import HUB_CACHE, LOCALMOE, Installed
from localmoe.text import clean_line

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class Candidate:
    text: str
    about: str = ""


def completion_command(options: Options, output: Output) -> int:
    """Print a script, or the candidates for a line."""
    words = options.words
    if words == ("candidates",):
        for candidate in candidates(options.after_dashes or ("",)):
            print(f"{candidate.text}\t{candidate.about}" if candidate.about else candidate.text)
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        raise UsageError(
            f"completion is for one of {', '.join(SHELLS)}",
            hint='eval "$(localmoe completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; '
            "fish: localmoe completion fish > ~/.config/fish/completions/localmoe.fish",
        )
    script = files("localmoe.cli.config").joinpath(f"completion.{words[0]}")
    print(script.read_text(encoding="utf-8"), end="")
    return 0


def candidates(words: Sequence[str]) -> list[Candidate]:
    """What the last of ``words`` may become; those before it stand after ``localmoe``."""
    *before, partial = words
    if "--" in before:
        return [Candidate(FILES)]
    flag, equals, value = partial.partition("=")
    if equals and flag in FLAGS:
        return [
            Candidate(c.text if c.text == FILES else f"{flag}={c.text}", c.about)
            for c in _starting(value, _values(FLAGS[flag]))
        ]
    last = FLAGS.get(before[-1]) if before else None
    if last is not None and not last.is_switch:
        return list(_starting(partial, _values(last)))
    command, *typed = _positional(before) or [""]
    helped = command == HELP
    if helped:
        command, *typed = typed or [""]
    command = SHORT_NAMES.get(command, command)
    known = command in COMMANDS
    if partial.startswith("-"):
        return list(_starting(partial, _flags(scope_of(command, typed) if known else None)))
    if not known:
        return list(_starting(partial, _commands(helped)))
    if helped:
        return list(_starting(partial, map(Candidate, COMMANDS[command].actions)))
    return list(_starting(partial, _words(command, typed, partial)))


def _commands(helped: bool) -> Iterator[Candidate]:
    """The commands; ``help`` is one only as long as it is not typed."""
    yield from (Candidate(c.name, c.summary) for c in COMMANDS.values())
    if not helped:
        yield Candidate(HELP, "the help of a command")


def _positional(before: Sequence[str]) -> list[str]:
    """The words that are neither options nor their values."""
    found, skip = [], False
    for word in before:
        if skip:
            skip = False
        elif word.startswith("-") and word != "-":
            skip = word in FLAGS and not FLAGS[word].is_switch
        else:
            found.append(word)
    return found


def _flags(scope: str | None) -> Iterator[Candidate]:
    """The long forms that a command takes; all of them as long as none is typed."""
    for option in OPTIONS:
        if scope is None or option.taken_by(scope):
            for flag in option.flags:
                if flag.startswith("--"):
                    yield Candidate(flag, clean_line(option.help))


def _values(option: Option) -> Iterable[Candidate]:
    """Values of an option."""
    if option.proposes == FILES:
        return [Candidate(FILES)]
    if option.proposes == MODELS:
        return _models("")
    if option.proposes == SESSIONS:
        return _sessions()
    return [Candidate(choice) for choice in option.choices]


def _words(command: str, typed: Sequence[str], partial: str) -> Iterable[Candidate]:
    """Words of a command after the ``typed`` ones."""
    if not typed and COMMANDS[command].actions:
        return [Candidate(action) for action in COMMANDS[command].actions]
    if command == "completion":
        return [Candidate(shell) for shell in SHELLS] if not typed else []
    if command == "config":
        return _config_words(typed)
    if command == "experts":
        return _experts_words(typed, partial)
    if command == "engine":
        return _engine_words(typed)
    if command == "rm":
        return _removable(partial) if not typed else []
    if COMMANDS[command].takes_model and not typed:
        return _models(partial)
    return []


def _experts_words(typed: Sequence[str], partial: str) -> Iterable[Candidate]:
    if typed[0] == "record":
        return _models(partial) if len(typed) == 1 else []
    return [Candidate(FILES)]


def _engine_words(typed: Sequence[str]) -> Iterable[Candidate]:
    from localmoe.engine import modules
    from localmoe.engine.backends import BACKENDS

    names = modules.NAMES if typed[0] == "remove" else (*BACKENDS, FILES)
    return [Candidate(name) for name in names] if len(typed) == 1 else []


def _config_words(typed: Sequence[str]) -> Iterable[Candidate]:
    action, *rest = typed
    if action in ("set", "unset", "explain") and not rest:
        model = [] if action == "explain" else [Candidate("model", "where none is named")]
        return [*(Candidate(name, option.help) for name, option in SETTINGS.items()), *model]
    if (action == "set" and rest == ["model"]) or (action == "alias" and len(rest) == 1):
        return _models("")
    if action == "set" and len(rest) == 1 and rest[0] in SETTINGS:
        option = SETTINGS[rest[0]]
        return [Candidate("true"), Candidate("false")] if option.is_switch else _values(option)
    return []


def _models(partial: str) -> Iterator[Candidate]:
    """Aliases, models on this machine by the names of ``list``, names of the catalog.

    Files where a path is begun; models of a repository by that, where one is.
    """
    if partial.startswith(("/", ".", "~")):
        yield Candidate(FILES)
        return
    names: dict[str, str] = {}
    for source in (
        lambda: {a: clean_line(m) for a, m in config.read().aliases.items()},
        lambda: {_typed(m, partial): f"here ({m.program})" for m in catalog.installed_models()},
        lambda: {catalog.BUNDLED: "the small bundled model"},
        lambda: {entry.alias: entry.family for entry in catalog.catalog()[0]},
    ):
        names = _quietly(source) | names
    yield from (Candidate(clean_line(name), about) for name, about in names.items())
    yield Candidate(FILES)


def _removable(partial: str) -> Iterator[Candidate]:
    """What ``rm`` can delete: the models that localmoe or the Hub's client has put here."""
    if partial.startswith(("/", ".", "~")):
        yield Candidate(FILES)
        return
    names = _quietly(
        lambda: {
            _typed(model, partial): f"here ({model.program})"
            for model in catalog.installed_models()
            if model.program in (LOCALMOE, HUB_CACHE) and model.name != catalog.BUNDLED
        }
    )
    yield from (Candidate(clean_line(name), about) for name, about in names.items())


def _typed(model: Installed, partial: str) -> str:
    by_repository = "/" in partial and model.label
    return f"{model.repo}:{model.label}" if by_repository else model.name


def _sessions() -> Iterator[Candidate]:
    from localmoe.chat.store import Store  # late: other proposals come sooner

    for entry in Store().entries():
        yield Candidate(entry.name, entry.title)


def _quietly(source: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Nothing where a source has an error: Tab is no place to tell it."""
    try:
        return source()
    except (LocalmoeError, OSError):
        return {}


def _starting(partial: str, proposals: Iterable[Candidate]) -> Iterator[Candidate]:
    return (c for c in proposals if c.text == FILES or c.text.startswith(partial))
