"""From a name to a model file on this machine.

A name is a path, what ``localmoe list`` calls a model that is here (``installed``), an alias of
the catalog (``models/catalog.toml``), or a Hub repository in one of the forms of ``model_names``.
Nothing is downloaded here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from localmoe import storage
from localmoe.errors import ModelFileError, UnknownModelError
from localmoe.facts import word_forms
from localmoe.facts.families import Entry, Unavailable, catalog, entry_of
from localmoe.facts.installed import (
    BUNDLED,
    HUB_CACHE,
    LOCALMOE,
    Installed,
    bundled_path,
    cached_models,
    installed_models,
    models_package,
)
from localmoe.facts.local_files import (
    DEFAULT_QUANT,
    hub_cache,
    is_gguf,
    is_whole,
    model_name,
    quant_of,
)
from localmoe.facts.matching import narrowed
from localmoe.facts.model_names import Name, is_written_as_path, read_name
from localmoe.facts.parts import PartName
from localmoe.text import clean_line, did_you_mean

__all__ = [
    "BUNDLED",
    "Entry",
    "NotHereError",
    "Unavailable",
    "catalog",
    "choices",
    "entry_of",
    "hub_cache",
    "installed_models",
    "is_here",
    "is_path",
    "is_whole",
    "looks_like_model",
    "matching",
    "model_name",
    "models_package",
    "quant_of",
    "resolve",
    "split_name",
    "unknown",
]

BUNDLED_QUANT = "Q8_0"
LIST_HINT = "localmoe list shows the models on this machine"
_NAMED = 8  # choices that a message names


class NotHereError(UnknownModelError):
    """A name that is understood, of a model that is not on this machine; the Hub may have it."""


def resolve(name: str) -> Path:
    """The first file of the model that ``name`` means.

    Raises ModelFileError for a path that does not exist, UnknownModelError for a name that means
    nothing or nothing on this machine; each says what to type next.
    """
    if is_path(name):
        path = _existing(name) or storage.user_path(read_name(name).text)
        if not os.path.lexists(path):
            message = f"no file {clean_line(name)}"
            raise ModelFileError(message, hint=f"check the path; {LIST_HINT}")
        return path
    here = matching(name)
    if not here:
        raise unknown(name)
    return _chosen(here, read_name(name)).path


def matching(name: str) -> list[Installed]:
    """The models on this machine that a name may mean, which is not a path.

    Several when it names no quantization, or one that two files have. Raises UnknownModelError
    for a repository that is here, but not in that quantization.
    """
    asked = read_name(name)
    if asked.base.lower() == BUNDLED:
        return [_bundled(asked.wanted)]
    models = installed_models()
    called = [model for model in models if model.name == clean_line(asked.text)]
    called = called or [m for m in models if m.name.lower() == clean_line(asked.text).lower()]
    if called or asked.refused:
        return called
    here = _answering(models, asked)
    if not asked.wanted or not here:
        return here
    found = narrowed(here, asked.wanted, _files_of)
    if not found and not is_gguf(asked.wanted):
        base, wanted = clean_line(asked.base), clean_line(asked.wanted)
        raise NotHereError(
            f"no {wanted} of {base} on this machine",
            hint=f"choose one: {choices(here, asked.text)}",
        )
    return found


def is_here(name: str) -> bool:
    """Whether all parts of the model of that name are on this machine."""
    try:
        return is_whole(resolve(name))
    except (UnknownModelError, ModelFileError):
        return False


def looks_like_model(word: str) -> bool:
    """Whether the first word after ``run`` is meant as a model rather than as a prompt.

    It is when it resolves, has the form of a model's name, or is a near miss of one known here.
    """
    if not word or any(c.isspace() for c in word):
        return False
    asked = read_name(word)
    if asked.base.lower() == BUNDLED:  # known without looking at what else is here
        return True
    if word_forms.has_form_of_model(asked) or (is_path(word) and Path(word).is_file()):
        return True
    if is_written_as_path(asked.text):
        return False
    models = installed_models()
    known = {name.lower() for name in _known(models)}
    known |= {name for item in catalog()[1] for name in item.names}
    if asked.base.lower() in known or word_forms.is_near_miss(asked.base, known):
        return True
    return bool(_answering(models, asked))


def is_path(name: str) -> bool:
    """Whether a name is meant as a path: a file's name, a folder, something that exists."""
    asked = read_name(name)
    if is_written_as_path(asked.text) or _existing(name) is not None:
        return True
    if asked.is_repo or asked.refused or not is_gguf(asked.text):
        return False
    if asked.wanted and entry_of(asked.base):
        return False
    # The name of a file in one of the folders of models, typed in another folder.
    return os.sep in asked.text or not matching(name)


def split_name(name: str) -> tuple[str, str]:
    """The repository or word of a name, and the quantization or file that it asks for ("" if none).

    ``base:QUANT`` → ("base", "QUANT"); what can be no model is all base.
    """
    asked = read_name(name)
    return asked.base, asked.wanted


def nearest(name: str) -> list[str]:
    """Up to three names of the catalog and of this machine like ``name``, best first."""
    return word_forms.nearest(name, _known(installed_models()))


def nearest_repos(repo: str) -> list[str]:
    """Up to three repositories of the catalog with names like ``user/name``, best first."""
    known = [entry.repo for entry in catalog()[0] if entry.repo]
    near = word_forms.nearest(repo, known)
    return [name for name in near if word_forms.is_near_miss(repo, [name.lower()])]


def unknown(name: str) -> UnknownModelError:
    """The error to raise for a name that leads to no file here.

    It says whether nobody can run that model, it is misspelt, or it has to be downloaded first.
    """
    asked = read_name(name)
    shown = clean_line(asked.text)
    if asked.refused:
        return UnknownModelError(f"{shown} is {asked.refused}", hint=asked.refused_hint)
    entry = entry_of(asked.base)
    for item in catalog()[1]:
        if asked.base.lower() in item.names:
            return UnknownModelError(
                f"{item.family} {item.reason}", hint=f"the nearest open family: {item.nearest}"
            )
    if entry is not None and not entry.repo:
        return UnknownModelError(
            f"{entry.family} is not on this machine, and no conversion of it is known here",
            hint=f"find a GGUF of it, then: localmoe run PATH ({LIST_HINT})",
        )
    if entry is not None or asked.is_repo:
        repo = clean_line(entry.repo if entry else asked.base)
        also = f" (it is {repo})" if entry and asked.base.lower() != repo.lower() else ""
        return NotHereError(f"{shown} is not on this machine{also}", hint=f"localmoe pull {shown}")
    guess = did_you_mean(nearest(asked.base))
    return UnknownModelError(
        f'no model "{shown}".{guess}', hint=f"{LIST_HINT}; one of the Hub is USER/REPO"
    )


def choices(here: Sequence[Installed], name: str) -> str:
    """A list of names, one for each of ``here``, for a user who typed ``name``, which means all."""
    asked = read_name(name)
    base = f"{asked.base}@{asked.revision}" if asked.revision else asked.base
    by_repo = asked.is_repo or entry_of(asked.base) is not None
    names = sorted(f"{base}:{m.label}" if by_repo and m.label else m.name for m in here)
    return ", ".join(clean_line(name) for name in names[:_NAMED])


def _answering(models: Sequence[Installed], asked: Name) -> list[Installed]:
    """The models that a repository, an alias or a part of a file's name means.

    The Hub cache comes before our folder, and that before other programs.
    """
    entry = entry_of(asked.base)
    repo = entry.repo if entry and entry.repo else asked.base if asked.is_repo else ""
    if repo and (cached := cached_models(repo, asked.revision)):
        return cached
    if asked.revision is not None:
        return []  # only the Hub cache knows revisions
    for programs in ((LOCALMOE,), (HUB_CACHE,)):
        here = [m for m in models if m.program in programs and _answers_to(m.path, asked.base)]
        if here:
            return here
    wanted = asked.base.lower()
    others = [m for m in models if m.program not in (LOCALMOE, HUB_CACHE)]
    here = [
        model
        for model in others
        if wanted in (model.name.lower().partition(":")[0], model_name(model.path).lower())
        or model.repo.lower() == wanted
    ]
    # As Ollama has it, a name without a tag is that with the tag "latest".
    latest = [model for model in here if model.name.lower() == f"{wanted}:latest"]
    return latest if latest and not asked.wanted else here


def _answers_to(path: Path, base: str) -> bool:
    """Whether a file is called ``base``, with or without its quantization and publisher."""
    name, wanted = model_name(path).lower(), base.lower()
    bare = re.sub(rf"[-_.]{re.escape(quant_of(path).lower())}$", "", name)
    return wanted in (name, bare, path.name.lower()) or bare.endswith(f"_{wanted}")


def _files_of(model: Installed) -> list[PurePosixPath]:
    """All parts of a model: paths in its repository, or names where there is none."""
    first = PurePosixPath(model.within or model.path.name)
    part = PartName.parse(first.name)
    if part is None:
        return [first]
    return [first.with_name(part.sibling(number)) for number in range(1, part.count + 1)]


def _chosen(here: Sequence[Installed], asked: Name) -> Installed:
    """The one of ``here`` to take. Raises UnknownModelError when the name does not tell which.

    Without a quantization that is Q4_K_M, if there is exactly one.
    """
    if len(here) == 1:
        return here[0]
    if not asked.wanted:
        usual = [model for model in here if model.quant == DEFAULT_QUANT]
        if len(usual) == 1:
            return usual[0]
    what = f"{clean_line(asked.base)}{':' if asked.wanted else ''}{clean_line(asked.wanted)}"
    raise UnknownModelError(
        f"{len(here)} models here are called {what}",
        hint=f"choose one: {choices(here, asked.text)}",
    )


def _bundled(quant: str) -> Installed:
    if quant and quant.upper() != BUNDLED_QUANT:
        message = f"{BUNDLED} comes as {BUNDLED_QUANT} only, not {clean_line(quant)}"
        raise UnknownModelError(message, hint=f"leave the :{clean_line(quant)} away")
    path = bundled_path()
    if not path.is_file():
        raise UnknownModelError(f"{BUNDLED} is not part of this installation", hint=LIST_HINT)
    return Installed(BUNDLED, path, LOCALMOE, quant=BUNDLED_QUANT)


def _known(models: Sequence[Installed]) -> set[str]:
    """Aliases of the catalog and the names of models here, to compare a mistyped word with."""
    return {BUNDLED, *(entry.alias for entry in catalog()[0]), *(model.name for model in models)}


def _existing(name: str) -> Path | None:
    """The path that a name is, if something is there: as typed, or without blanks around it."""
    for text in (name, read_name(name).text):
        if (os.sep in text or is_gguf(text)) and "\0" not in text and os.path.lexists(text):
            return Path(text)
    return None
