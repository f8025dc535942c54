"""From a name to a model: on this machine, on the Hub, or brought here first."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from localmoe.app.default_model import default_model
from localmoe.app.download import download_to_run
from localmoe.app.listener import Listener
from localmoe.app.repository import Repository, best_of
from localmoe.app.requests import LoadRequest, PlanRequest
from localmoe.errors import UnknownModelError
from localmoe.facts import catalog
from localmoe.facts.model import Model, read_model
from localmoe.hub import names
from localmoe.hub.cache import RepoCache
from localmoe.hub.names import Reference
from localmoe.text import clean_line


def named(name: str | None, listener: Listener) -> str:
    """The name; for None that of the default model, which the listener is told."""
    if name is not None:
        return name
    name, why = default_model()
    listener.note(
        f"no MODEL given: using {clean_line(name)}, {why} (`localmoe list` shows what else is here)"
    )
    return name


def model_here(name: str | None, listener: Listener) -> Model:
    """The model of that name on this machine; None: the default model.

    Raises UnknownModelError (with the nearest names), NotHereError, ModelFileError.
    """
    name = named(name, listener)
    return _read(name, catalog.resolve(name), listener)


def model_to_load(request: LoadRequest, listener: Listener) -> Model:
    """The model to load, downloaded first if the request allows it and it is not here.

    Raises what ``model_here`` and ``download_to_run`` raise.
    """
    name = named(request.name, listener)
    try:
        path = catalog.resolve(name)
        partial = path.is_relative_to(catalog.hub_cache()) and not catalog.is_whole(path)
        if not partial or catalog.is_path(name) or not request.may_download:
            return _read(name, path, listener)
    except catalog.NotHereError:
        if not request.may_download:
            raise
    reference = names.parse(name)
    assert reference is not None  # NotHereError is raised for names of the Hub alone
    request = dataclasses.replace(request, name=name)
    return _read(name, download_to_run(reference, request, listener), listener)


def bring_here(request: LoadRequest, listener: Listener) -> None:
    """Ask for and download the model if it is not here. Raises what ``model_to_load`` does."""
    name = request.name or default_model()[0]
    if not catalog.is_path(name) and not catalog.is_here(name):
        model_to_load(dataclasses.replace(request, name=name), listener)


@contextlib.contextmanager
def header_of(
    name: str, request: PlanRequest, listener: Listener
) -> Iterator[tuple[Model, tuple[Path, ...]]]:
    """The model of that name, here or on the Hub, and the paths of its files.

    It is for planning, not for loading: of a model on the Hub only the header is read, and the
    paths are those after a download. Raises what ``model_here`` raises, and TransferError.
    """
    try:
        model = model_here(name, listener)
    except catalog.NotHereError:
        reference = names.parse(name)
        if reference is None:
            raise
    else:
        yield model, model.paths
        return
    repository = Repository(reference, request, listener)
    files, why = best_of(repository, request)
    if repository.chosen is None:
        listener.note(f"{clean_line(name)}: looking at {clean_line(files.label)} ({why})")
    with repository.skeletons([files]) as found:
        remote = found[files]
        if not isinstance(remote, Model):
            raise remote
        cache, commit = RepoCache.of(repository.listing.repo), repository.listing.commit
        yield remote, tuple(cache.pointer(commit, file) for file in files.files)


def on_the_hub(name: str) -> Reference | None:
    """The repository to ask about ``name``; None where the answer is in a file that is here.

    A name with a quantization is answered from its file if that is here; a name without one asks
    the repository, which has more quantizations.
    """
    try:
        reference = names.parse(name)
    except UnknownModelError:  # no name of the Hub; `catalog.resolve` tells what it is
        return None
    if reference is not None and reference.wanted and catalog.is_here(name):
        return None
    return reference


def _read(name: str, path: Path, listener: Listener) -> Model:
    if name != catalog.BUNDLED and not name.endswith((path.name, catalog.model_name(path))):
        listener.note(f"{name}: using {path.name}")
    model = read_model(path)
    if path.name.startswith("sha256-"):  # Ollama names its files by their hash
        model = dataclasses.replace(model, name=name)
    return model
