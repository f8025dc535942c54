"""``pull``: a model from the Hub onto this machine, once it is clear that it makes sense."""

from __future__ import annotations

import shlex

from rich.text import Text

from localmoe.app import documents
from localmoe.app.download import Wanted, fetch, permitted, require_room
from localmoe.app.repository import Repository, best_of
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.errors import DoesNotFitError, LocalmoeError, TransferError, UsageError
from localmoe.facts import catalog
from localmoe.hub import names
from localmoe.hub.download import Pulled
from localmoe.text import clean_line, format_duration, format_line, format_size


def pull_command(options: Options, output: Output) -> int:
    """Exit code 0 when the model is here; 3 when it would not run here and was not downloaded."""
    name = only_model(options, required=True)
    assert name is not None
    if catalog.split_name(name)[0].lower() == catalog.BUNDLED:
        output.note(f"{catalog.BUNDLED} comes with localmoe: nothing to download")
        output.print(Text(str(catalog.resolve(name))))
        _note_next(catalog.BUNDLED, output)
        return 0
    reference = names.parse(name)
    if reference is None:
        raise UsageError(
            f"{clean_line(name)} is a file, not a name on the Hub",
            hint="localmoe pull USER/REPO:QUANT",
        )
    request = plan_request(options)
    try:
        repository = Repository(reference, request, output)
        files, why = best_of(repository, request)
    except TransferError as error:
        return _already_here(name, error, output)
    if repository.chosen is None:
        output.note(f"{clean_line(name)}: {clean_line(files.label)}, {why}")
    wanted = Wanted(reference, repository.listing, files)
    if wanted.missing:
        require_room(wanted)
        if not options.yes and not permitted(wanted, repository, request, output):
            return DoesNotFitError.exit_code
    pulled = fetch(wanted, output)
    if output.as_json:
        event = {"event": "pulled"} if output.lines else {}
        output.json(event | documents.pulled_document(wanted, pulled))
    else:
        output.note(outcome(pulled))
        output.print(Text(clean_line(str(pulled.paths[0]))))
        _note_next(wanted.name, output)
    return 0


def _note_next(name: str, output: Output) -> None:
    """What to type next with the model of that name."""
    output.note(f"localmoe chat {shlex.quote(clean_line(name))}")


def _already_here(name: str, error: TransferError, output: Output) -> int:
    """The answer without the Hub: the model that is here. Raises ``error`` if none is."""
    try:
        path = catalog.resolve(name)
    except LocalmoeError:
        raise error from None
    output.warn(f"{error.message}; this is what is here, perhaps not the newest")
    if output.as_json:
        output.json({"model": catalog.model_name(path), "path": str(path), "transferred": 0})
    else:
        output.print(Text(clean_line(str(path))))
        _note_next(name, output)
    return 0


def outcome(pulled: Pulled) -> str:
    """One line: bytes, time and rate of the download, or that it was here already."""
    if not pulled.transferred and not pulled.resumed:
        return f"{format_size(pulled.size)}, already here"
    rate = pulled.transferred / max(pulled.seconds, 1e-3)
    facts = [
        f"{format_size(pulled.transferred)} in {format_duration(pulled.seconds)} "
        f"({format_line(rate)})"
    ]
    if pulled.resumed:
        facts.append(f"{format_size(pulled.resumed)} were here already")
    return "; ".join([*facts, "sha256 checked"])
