"""``list`` and ``show``: which models are here, and what one of them is."""

from __future__ import annotations

import dataclasses

from localmoe.app import documents
from localmoe.app.calling_form import calling_form
from localmoe.app.find import header_of
from localmoe.app.local_models import local_models
from localmoe.cli import render
from localmoe.cli.arguments import Options, no_words, only_model
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request


def list_command(options: Options, output: Output) -> int:
    """Every model found here."""
    no_words(options)
    found = local_models(output)
    if output.as_json:
        output.json({"models": [documents.list_entry(entry) for entry in found]})
    else:
        output.print(render.list_table(found))
    return 0


def show_command(options: Options, output: Output) -> int:
    """The facts of one model, read from its header, here or on the Hub."""
    name = only_model(options, required=True)
    assert name is not None
    with header_of(name, plan_request(options), output) as (found, paths):
        model = dataclasses.replace(found, paths=paths)
    calling = calling_form(model)
    if output.as_json:
        output.json(documents.show_document(model, calling))
    else:
        output.print(render.show_screen(model, calling))
    return 0
