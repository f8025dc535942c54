"""The models found on this machine, other programs' too."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from localmoe.app.listener import Listener
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import EngineError, LocalmoeError, ModelFileError
from localmoe.facts import catalog
from localmoe.facts.installed import LOCALMOE
from localmoe.facts.model import Model, read_model
from localmoe.facts.other_programs import OLLAMA
from localmoe.planning.memory import EngineSettings


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model file of this machine. ``model.name`` is what to type for it."""

    model: Model
    program: str  # whose folder it is in: "localmoe", "Hub cache", "Ollama" …
    problem: str | None = None  # why the engine cannot read it


def local_models(listener: Listener) -> list[LocalModel]:
    """Every model found here; the listener is warned of files that cannot be read.

    Files of Ollama are tried with the engine: it cannot read some of their conversions.
    """
    found: list[LocalModel] = []
    worker: WorkerProcess | None = None
    try:
        for here in catalog.installed_models():
            owner = "" if here.program == LOCALMOE else f"{here.program}'s "
            try:
                model = dataclasses.replace(read_model(here.path), name=here.name)
            except LocalmoeError as error:
                listener.warn(f"{owner}{here.name}: {error.message}")
                continue
            problem = None
            if here.program == OLLAMA:
                worker = worker if worker is not None and worker.alive else WorkerProcess()
                try:
                    Oracle(model, worker)(EngineSettings(context=512))
                except (ModelFileError, EngineError) as error:
                    problem = error.message
                    listener.warn(f"{owner}{here.name}: {problem}")
            found.append(LocalModel(model, here.program, problem))
    finally:
        if worker is not None:
            worker.close()
    return found
