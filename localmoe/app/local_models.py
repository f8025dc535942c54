"""The models found on this machine, other programs' too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localmoe.app.listener import Listener
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import EngineError, LocalmoeError, ModelFileError
from localmoe.facts import catalog
from localmoe.facts.model import Model, read_model
from localmoe.facts.other_programs import other_files
from localmoe.planning.memory import EngineSettings


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model, under the name to type, and whose folder it is in."""

    model: Model
    program: str
    problem: str | None = None  # why the engine cannot read it


def local_models(listener: Listener) -> list[LocalModel]:
    """Every model found here; a file that cannot be read is told of, not hidden."""
    found = []
    for path in catalog.local_models():
        try:
            found.append(LocalModel(read_model(path), _owner(path)))
        except LocalmoeError as error:
            listener.warn(f"{path}: {error.message}")
    found += _of_other_programs(listener)
    for entry in found:
        if entry.problem is not None:
            listener.warn(f"{entry.program}'s {entry.model.name}: {entry.problem}")
    return found


def _owner(path: Path) -> str:
    if path.parent == catalog.models_package():
        return "localmoe"
    return "Hub cache" if path.is_relative_to(catalog.hub_cache()) else "localmoe"


def _of_other_programs(listener: Listener) -> Iterator[LocalModel]:
    """Ollama converts some models in ways of its own, so the engine is asked about its files."""
    worker: WorkerProcess | None = None
    try:
        for file in other_files():
            try:
                model = dataclasses.replace(read_model(file.path), name=file.name)
            except LocalmoeError as error:
                listener.warn(f"{file.program}'s {file.name}: {error.message}")
                continue
            problem = None
            if file.program == "Ollama":
                worker = worker if worker is not None and worker.alive else WorkerProcess()
                try:
                    Oracle(model, worker)(EngineSettings(context=512))
                except (ModelFileError, EngineError) as error:
                    problem = error.message
            yield LocalModel(model, file.program, problem)
    finally:
        if worker is not None:
            worker.close()
