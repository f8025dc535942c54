"""``pull``: a model from the Hub onto this machine, once it is clear that it makes sense.

``--json``: ``{"schema_version", "model", "repo", "commit", "path", "files": [{"name", "path",
"size"}], "size", "transferred", "resumed", "reused", "seconds"}``; bytes and seconds. ``--jsonl``
has ``{"event": "progress", "done", "total", "rate", "seconds_left", "parts": [{"name", "state",
"done", "total"}]}`` before it, and the document is ``"event": "pulled"``. Without the Hub, a model
that is here is told of with ``model``, ``path`` and ``transferred`` alone.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass

from rich.text import Text

from localmoe.cli import prepare, speeds
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.fit import screens
from localmoe.cli.fitted import Fitted
from localmoe.cli.fitting import Search, best_of
from localmoe.cli.idle_gpus import tell_of_idle_gpus
from localmoe.cli.output import Output
from localmoe.cli.pull.screen import display
from localmoe.errors import (
    DoesNotFitError,
    LocalmoeError,
    TransferError,
    UsageError,
)
from localmoe.facts import catalog
from localmoe.hub import names
from localmoe.hub.cache import RepoCache
from localmoe.hub.client import Listing
from localmoe.hub.download import Pulled, check_room, download
from localmoe.hub.names import ModelFiles, Reference
from localmoe.text import clean_line, format_bytes, format_duration


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model of one repository."""

    reference: Reference
    listing: Listing
    model: ModelFiles

    @property
    def cache(self) -> RepoCache:
        return RepoCache.of(self.listing.repo)

    @property
    def missing(self) -> int:
        """Bytes still to be downloaded."""
        return self.cache.missing(self.listing.commit, self.model.files)

    @property
    def title(self) -> str:
        """``gpt-oss-120b-mxfp4 · 3 parts · 59.0 GiB``."""
        count = len(self.model.files)
        facts = [clean_line(self.model.name), f"{count} parts" if count > 1 else ""]
        return " · ".join([*filter(None, facts), format_bytes(self.model.size)])


def pull_command(options: Options, output: Output) -> int:
    """Exit code 0 when the model is here; 3 when it would not run here and nobody insists."""
    name = only_model(options, required=True)
    assert name is not None
    if catalog.split_name(name)[0].lower() == catalog.BUNDLED:
        output.note(f"{catalog.BUNDLED} comes with localmoe: nothing to download")
        output.print(Text(str(catalog.resolve(name))))
        return 0
    reference = names.parse(name)
    if reference is None:
        raise UsageError(
            f"{clean_line(name)} is a file, not a name on the Hub",
            hint="localmoe pull USER/REPO:QUANT",
        )
    try:
        search = Search(reference, options, output)
        files, why = best_of(search, options)
    except TransferError as error:
        return _already_here(name, error, output)
    if search.chosen is None:
        output.note(f"{clean_line(name)}: {clean_line(files.label)}, {why}")
    wanted = Wanted(reference, search.listing, files)
    if not _permitted(wanted, search, options, output):
        return DoesNotFitError.exit_code
    pulled = fetch(wanted, output)
    if output.as_json:
        event = {"event": "pulled"} if output.lines else {}
        output.json(event | pulled_document(wanted, pulled))
    else:
        output.note(outcome(pulled))
        output.print(Text(clean_line(str(pulled.paths[0]))))
    return 0


def _permitted(wanted: Wanted, search: Search, options: Options, output: Output) -> bool:
    """Whether to download; asks when the model will not run here, or too slowly.

    False: the person said no. Raises DoesNotFitError when the disk cannot hold it, or when there is
    a doubt and nobody to ask.
    """
    if not wanted.missing:
        return True
    check_room(wanted.cache, wanted.listing.commit, wanted.model.files)
    if options.yes:
        return True
    machine = prepare.find_machine(options, imagined=True)
    tell_of_idle_gpus(machine, output)
    (found,) = search.fit(machine, [wanted.model])
    doubt = doubt_about(found, options.min_tps)
    if not doubt:
        output.note(screens.before_download(found, ""))
        return True
    doubt = f"{clean_line(wanted.model.name)} {doubt}"
    size = format_bytes(wanted.missing)
    if output.as_json or not somebody_there(output):
        hint = f"--yes downloads it anyway ({size}), for another machine"
        raise DoesNotFitError(doubt, hint=hint)
    output.warn(doubt)
    return confirm(f"Download {size} anyway?", output)


def doubt_about(found: Fitted, least: float | None) -> str:
    """Why one might not want this model on this machine; "" when nothing speaks against it.

    ``least``: tok/s that somebody asked for.
    """
    if not found.fits:
        return f"does not fit this machine: {found.reason}"
    if not found.reaches(least) or (least is None and found.slow):
        slow = speeds.too_slow(found.forecast, least or speeds.SLOW)
        limit = f" ({speeds.limit_text(found.forecast)})" if found.forecast else ""
        return f"would be slow on this machine: {slow}{limit}"
    return ""


def _already_here(name: str, error: TransferError, output: Output) -> int:
    """Without the Hub, what is on this machine counts. Raises ``error`` when nothing is."""
    try:
        path = catalog.resolve(name)
    except LocalmoeError:
        raise error from None
    output.warn(f"{error.message}; this is what is here, perhaps not the newest")
    if output.as_json:
        output.json({"model": catalog.model_name(path), "path": str(path), "transferred": 0})
    else:
        output.print(Text(clean_line(str(path))))
    return 0


def fetch(wanted: Wanted, output: Output) -> Pulled:
    """Download with a display; what has arrived is kept whatever happens.

    Raises TransferError, StorageError, DoesNotFitError; KeyboardInterrupt and SystemExit pass.
    """
    pulled = None
    events = download(wanted.listing, wanted.model.files)
    try:
        with closing(events), display(wanted.title, output) as shown:
            for event in events:
                if isinstance(event, Pulled):
                    pulled = event
                else:
                    shown.show(event)
    except (KeyboardInterrupt, SystemExit):
        kept = format_bytes(wanted.model.size - wanted.missing)
        output.note(f"stopped: {kept} are kept, and the same command goes on from there")
        raise
    assert pulled is not None
    return pulled


def outcome(pulled: Pulled) -> str:
    """One line: what was done for it."""
    if not pulled.transferred and not pulled.resumed:
        return f"{format_bytes(pulled.size)}, already here"
    rate = pulled.transferred / max(pulled.seconds, 1e-3)
    facts = [
        f"{format_bytes(pulled.transferred)} in {format_duration(pulled.seconds)} "
        f"({format_bytes(rate)}/s)"
    ]
    if pulled.resumed:
        facts.append(f"{format_bytes(pulled.resumed)} were here already")
    return "; ".join([*facts, "sha256 checked"])


def pulled_document(wanted: Wanted, pulled: Pulled) -> dict[str, object]:
    """The JSON of this module's docstring."""
    files = zip(wanted.model.files, pulled.paths, strict=True)
    return {
        "model": wanted.model.name,
        "repo": wanted.listing.repo,
        "commit": wanted.listing.commit,
        "path": str(pulled.paths[0]),
        "files": [{"name": f.path, "path": str(path), "size": f.size} for f, path in files],
        "size": pulled.size,
        "transferred": pulled.transferred,
        "resumed": pulled.resumed,
        "reused": pulled.reused,
        "seconds": round(pulled.seconds, 3),
    }


def confirm(question: str, output: Output) -> bool:
    """A person's word; anything but y or yes is a no."""
    console = output.stderr
    console.print(Text(f"{question} [y/N] "), end="")
    console.file.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        console.print()
    return answer.strip().lower() in ("y", "yes")


def somebody_there(output: Output) -> bool:
    return sys.stdin.isatty() and output.stderr.file.isatty()
