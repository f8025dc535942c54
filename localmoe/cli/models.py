"""``list`` and ``show``: which models are here, and what one of them is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from localmoe.app import documents
from localmoe.app.find import header_of
from localmoe.cli import render
from localmoe.cli.arguments import Options, no_words, only_model
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import EngineError, LocalmoeError, ModelFileError
from localmoe.facts import catalog
from localmoe.facts.model import Model, read_model
from localmoe.facts.other_programs import other_files
from localmoe.planning.memory import EngineSettings


def list_command(options: Options, output: Output) -> int:
    """Every model found here; a file that cannot be read is told of, not hidden."""
    no_words(options)
    found: list[tuple[Model, str, str | None]] = []
    for path in catalog.local_models():
        try:
            found.append((read_model(path), _owner(path), None))
        except LocalmoeError as error:
            output.warn(f"{path}: {error.message}")
    found += _of_other_programs(output)
    for model, program, problem in found:
        if problem is not None:
            output.warn(f"{program}'s {model.name}: {problem}")
    if output.as_json:
        output.json({"models": [documents.list_entry(*entry) for entry in found]})
    else:
        output.print(render.list_table(found))
    return 0


def _owner(path: Path) -> str:
    if path.parent == catalog.models_package():
        return "localmoe"
    return "Hub cache" if path.is_relative_to(catalog.hub_cache()) else "localmoe"


def _of_other_programs(output: Output) -> Iterator[tuple[Model, str, str | None]]:
    """Models of other programs under the names to type.

    Ollama converts some models in ways of its own, so the engine is asked about Ollama's files.
    """
    worker: WorkerProcess | None = None
    try:
        for file in other_files():
            try:
                model = dataclasses.replace(read_model(file.path), name=file.name)
            except LocalmoeError as error:
                output.warn(f"{file.program}'s {file.name}: {error.message}")
                continue
            problem = None
            if file.program == "Ollama":
                worker = worker if worker is not None and worker.alive else WorkerProcess()
                try:
                    Oracle(model, worker)(EngineSettings(context=512))
                except (ModelFileError, EngineError) as error:
                    problem = error.message
            yield model, file.program, problem
    finally:
        if worker is not None:
            worker.close()


def show_command(options: Options, output: Output) -> int:
    """The facts of one model, read from its header, here or on the Hub."""
    name = only_model(options, required=True)
    assert name is not None
    with header_of(name, plan_request(options), output) as (found, paths):
        model = dataclasses.replace(found, paths=paths)
    if output.as_json:
        output.json(documents.show_document(model))
    else:
        output.print(render.show_screen(model))
    return 0
