"""What a setting is called by whoever reads of it: ``--ctx 8192`` or ``context=8192``.

An error is worded once, where it happens, and read by people at a command line and by people who
wrote a program. Its texts mark the settings they name, with ``option``; each front end writes the
marked ones in its own language. Pure.
"""

from __future__ import annotations

import re

# Keyword arguments of the Python API by option; ``{}`` is the value as it is typed.
ARGUMENTS = {
    "ctx": "context={}",
    "max-tokens": "max_tokens={}",
    "think": 'think="{}"',
}
# Fields of ``localmoe.Wishes`` likewise.
WISHES = {
    "batch": "batch={}",
    "cache": 'cache="{}"',
    "cache-ram": "cache_ram={} * 2**30",
    "experts": "experts={}",
    "experts-on": 'experts_on=(ExpertsOn("{}"),)',
    "gpu-layers": "gpu_layers={}",
    "kv-type": 'type_k="{0}", type_v="{0}"',
    "n-cpu-moe": "n_cpu_moe={}",
    "override": "overrides={}",
    "repack": 'repack="{}"',
    "ram": "ram={} * 2**30",
    "threads": "threads={}",
    "vram": "vram={} * 2**30",
}
# What has no argument but a call of its own.
CALLS = {"plain": "model.generate"}

_MARKED = re.compile("⟦--([a-z-]+)(?: ([^⟧]*))?⟧")
_RUN = re.compile(f"{_MARKED.pattern}(?: {_MARKED.pattern})*")
_VALUE = r"all|gpu|ram|disk|off|page|private|[\w.]*\d[\w.]*"
_TYPED = re.compile(
    rf"(?<!\S)--({'|'.join(sorted((*ARGUMENTS, *WISHES, *CALLS), key=len, reverse=True))})"
    rf"(?![\w-])(?: ({_VALUE})(?!\w))?"
)


def option(name: str, value: object = "") -> str:
    """Name a setting in the text of an error: the option without dashes, and a value if it has one.

    Raises KeyError for a setting that the Python API does not have.
    """
    if name not in ARGUMENTS and name not in WISHES:
        _ = CALLS[name]
    return f"⟦--{name} {value}⟧" if value != "" else f"⟦--{name}⟧"


def marked(text: str) -> str:
    """A text of the planner's, which names options as they are typed, with each of them marked."""
    return _TYPED.sub(lambda found: option(found[1], found[2] or ""), text)


def for_program(text: str) -> str:
    """A text of the planner's in the words of the Python API."""
    return in_python(marked(text))


def typed(text: str) -> str:
    """The text for a command line: ``--ctx 8192``."""
    return re.sub("⟦(--[a-z-]+[^⟧]*)⟧", r"\1", text)


def in_python(text: str) -> str:
    """The text for a program: ``context=8192``, ``wishes=Wishes(gpu_layers=10, n_cpu_moe=3)``."""
    return _RUN.sub(_written, text)


def _written(run: re.Match[str]) -> str:
    arguments: list[str] = []
    wishes: list[str] = []
    for found in _MARKED.finditer(run[0]):
        name, value = found[1], found[2] or ""
        if name in CALLS:
            arguments.append(CALLS[name])
        elif name in ARGUMENTS:
            arguments.append(_with(ARGUMENTS[name], value))
        else:
            wishes.append(_with(WISHES[name], {"all": "-1"}.get(value, value)))
    if not arguments and not any("=" in wish for wish in wishes):
        return " ".join(f"Wishes.{wish}" for wish in wishes)
    if wishes:
        arguments.append(f"wishes=Wishes({', '.join(wishes)})")
    return ", ".join(arguments)


def _with(argument: str, value: str) -> str:
    """The argument with its value, or its bare name."""
    return argument.format(value) if value else argument.partition("=")[0]
