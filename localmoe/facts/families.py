"""The catalog's file: families that we know by name, and names that nobody can run here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from localmoe.facts.installed import models_package


@dataclass(frozen=True, slots=True)
class Entry:
    """A family of the catalog. ``repo`` "": no conversion is known to us."""

    alias: str
    family: str
    arch: str
    repo: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A name people know whose weights nobody can run here."""

    names: tuple[str, ...]
    family: str
    reason: str
    nearest: str


@cache
def catalog() -> tuple[tuple[Entry, ...], tuple[Unavailable, ...]]:
    """The families we know by name, and the names that no one can run."""
    data = _file()
    known = tuple(Entry(**entry) for entry in data["model"])
    gone = tuple(
        Unavailable(**{**entry, "names": tuple(entry["names"])}) for entry in data["unavailable"]
    )
    return known, gone


def entry_of(base: str) -> Entry | None:
    """The catalog's entry with that alias or repository."""
    wanted = base.lower()
    return next((e for e in catalog()[0] if wanted and wanted in (e.alias, e.repo.lower())), None)


@cache
def family_names() -> tuple[str, ...]:
    """Words that names of models begin with: ``llama``, ``gemma`` …; more than the catalog has."""
    return tuple(_file()["families"])


@cache
def _file() -> dict[str, Any]:
    import tomllib  # late: a model that is here is found without

    return tomllib.loads((models_package() / "catalog.toml").read_text(encoding="utf-8"))
