"""``rm``: delete a model, and say what that frees.

``--json``: ``{"schema_version", "model", "removed": [PATH…], "freed"}``; bytes.
"""

from __future__ import annotations

from rich.text import Text

from localmoe.cli.arguments import Options, only_model
from localmoe.cli.output import Output
from localmoe.errors import UnknownModelError
from localmoe.facts import catalog
from localmoe.hub import names, removal
from localmoe.text import clean_line, format_size


def rm_command(options: Options, output: Output) -> int:
    """Delete every file of one model in localmoe's folder or the Hub cache; no other file."""
    name = only_model(options, required=True)
    assert name is not None
    removed = removal.remove(_plan(name))
    if output.as_json:
        document = {"model": name, "removed": [str(p) for p in removed.paths]}
        output.json(document | {"freed": removed.freed})
        return 0
    for path in removed.paths:
        output.note(f"removed {clean_line(str(path))}")
    if removed.shared:
        output.note("its content stays: another repository in the cache has the same")
    output.print(Text(f"freed {format_size(removed.freed)}"))
    return 0


def _plan(name: str) -> removal.Removal:
    """The files of the model of that name, else what an unfinished download of it left."""
    if catalog.is_path(name):
        return removal.plan(catalog.resolve(name))
    try:
        here = catalog.matching(name)
        if not here:
            raise catalog.unknown(name)
    except catalog.NotHereError:
        reference = names.parse(name)
        left = removal.leftovers(reference.repo) if reference is not None else None
        if left is None or not left.paths:
            raise
        return left
    if len(here) > 1:  # other commands choose one of them; deleting must not guess
        raise UnknownModelError(
            f"{len(here)} models here are called {clean_line(name)}",
            hint=f"choose one: {catalog.choices(here, name)}",
        )
    return removal.plan(here[0].path)
