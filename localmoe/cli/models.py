"""``list`` and ``show``: which models are here, and what one of them is."""

from __future__ import annotations

import dataclasses

from localmoe.cli import documents, prepare, render
from localmoe.cli.arguments import Options, no_words, only_model
from localmoe.cli.output import Output
from localmoe.errors import LocalmoeError
from localmoe.facts import catalog
from localmoe.facts.model import read_model


def list_command(options: Options, output: Output) -> int:
    """Every model found here; a file that cannot be read is told of, not hidden."""
    no_words(options)
    models = []
    for path in catalog.local_models():
        try:
            models.append(read_model(path))
        except LocalmoeError as error:
            output.warn(f"{path}: {error.message}")
    if output.as_json:
        output.json({"models": [documents.list_entry(model) for model in models]})
    else:
        output.print(render.list_table(models))
    return 0


def show_command(options: Options, output: Output) -> int:
    """The facts of one model, read from its header, here or on the Hub."""
    name = only_model(options, required=True)
    assert name is not None
    with prepare.header_of(name, options, output) as (found, paths):
        model = dataclasses.replace(found, paths=paths)
    if output.as_json:
        output.json(documents.show_document(model))
    else:
        output.print(render.show_screen(model))
    return 0
