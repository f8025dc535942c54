"""``rm``: delete a model, and say what that frees.

``--json``: ``{"schema_version", "model", "removed": [PATH…], "freed"}``; bytes.
"""

from __future__ import annotations

from rich.text import Text

from localmoe.cli.arguments import Options, only_model
from localmoe.cli.output import Output
from localmoe.errors import UnknownModelError
from localmoe.facts import catalog
from localmoe.facts.local_files import hub_files
from localmoe.hub import names, removal
from localmoe.text import clean_line, format_bytes


def rm_command(options: Options, output: Output) -> int:
    """Delete every file of one model; nothing that is not localmoe's or the Hub cache's."""
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
        output.note("some of it stays for other users of the same file: hf cache prune")
    output.print(Text(f"freed {format_bytes(removed.freed)}"))
    return 0


def _plan(name: str) -> removal.Removal:
    """What ``name`` means here: a model, else what a broken-off download of it has left."""
    try:
        path = catalog.resolve(name)
    except catalog.NotHereError:
        reference = names.parse(name)
        left = removal.leftovers(reference.repo) if reference is not None else None
        if left is None or not left.paths:
            raise
        return left
    if not catalog.is_path(name):
        _only_one(name)
    return removal.plan(path)


def _only_one(name: str) -> None:
    """What to delete is never guessed, as what to run may be."""
    url = catalog.match_url(name)
    base, wanted = (url.repo, url.wanted) if url else catalog.split_name(name)
    entry = catalog.entry_of(base)
    here = hub_files(entry.repo if entry and entry.repo else base)
    if not wanted and len(here) > 1:
        choices = ", ".join(f"{base}:{catalog.quant_of(p) or p.name}" for p in here[: names.SHOWN])
        raise UnknownModelError(
            f"{len(here)} models of {clean_line(base)} are here",
            hint=f"choose one: {clean_line(choices)}",
        )
