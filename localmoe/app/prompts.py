"""Texts whose routing is recorded: typed, from files, or the set that comes with localmoe."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from localmoe.errors import UsageError
from localmoe.text import clean_line, decoded

MAX_FILE = 8 << 20  # bytes of a text


@dataclass(frozen=True, slots=True)
class Question:
    """One text, and the domain that it stands for."""

    label: str
    text: str


def questions_of(prompt: str, files: Sequence[str], domains: bool) -> list[Question]:
    """The typed prompt, each paragraph of each file (a file is a domain), the bundled set.

    Raises UsageError when that is nothing, or a file is not text.
    """
    questions = [Question("prompt", prompt)] if prompt else []
    for name in files:
        path = Path(name)
        try:
            if path.stat().st_size > MAX_FILE:
                raise UsageError(
                    f"{clean_line(name)} is longer than {MAX_FILE >> 20} MiB",
                    hint="a part of it will do: a few thousand words show the load",
                )
            text, replaced = decoded(path.read_bytes())
            if replaced:  # another text would be recorded than the one in the file
                raise ValueError
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "not text"
            raise UsageError(
                f"cannot read {clean_line(name)}: {why.lower()}",
                hint="-f takes text files in UTF-8",
            ) from error
        paragraphs = [part.strip() for part in text.split("\n\n")]
        questions += [Question(path.stem, part) for part in paragraphs if part]
    if domains:
        questions += bundled()
    if not questions:
        raise UsageError(
            "nothing to record: name a prompt, -f FILE or --domains",
            hint="localmoe experts record MODEL PROMPT",
        )
    return questions


def bundled() -> list[Question]:
    """The small set of prompts by domain that comes with localmoe."""
    text = resources.files("localmoe.routing").joinpath("prompts.toml").read_text("utf-8")
    domains: dict[str, list[str]] = tomllib.loads(text)["domains"]
    return [Question(label, part) for label, parts in domains.items() for part in parts]
