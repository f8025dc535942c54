"""What ``fit`` shows of models on the Hub and of many models at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from localmoe.app import speeds
from localmoe.app.planned_model import LINE, LINE_SPEED, CatalogGuess, PlannedModel
from localmoe.cli.render import fit_screen, tiers_needed, verdict_text
from localmoe.facts.hardware import Machine
from localmoe.planning.budget import usable_gpus
from localmoe.planning.places import GPU, kind_of
from localmoe.terminal.tables import Rows, pairs
from localmoe.text import clean_line, counted, format_bytes, format_duration, format_size


def detail(found: PlannedModel) -> RenderableType:
    """The answer of ``fit`` for one model, here or not."""
    rows: list[tuple[str, str | Text]] = []
    if found.offer is not None:
        rows.append(("download", _download_text(found)))
    better = found.with_gpu_build
    if better is not None:
        words = verdict_text(better.verdict, better.settings.devices)
        words.append(f" (estimated), {better.max_context:,} tokens at most", "default")
        rows.append(("with a GPU build", words))
    lines: list[RenderableType] = [fit_screen(found.model, found.plan, found.forecast)]
    if rows:
        lines += [Text(), pairs(rows)]
    return Group(*lines)


def quantizations(
    repo: str, found: Sequence[PlannedModel], best: PlannedModel | None, why: str
) -> RenderableType:
    """The answer of ``fit`` for a repository: its models side by side, and which to take."""
    gpu = any(f.plan.tiers.gpu for f in found)
    disk = any(f.plan.tiers.disk for f in found)
    build = any(f.with_gpu_build for f in found)
    apart = kind_of([device for f in found for device in f.plan.settings.devices])
    tiers = [name for name, shown in ((apart, gpu), ("RAM", True), ("disk", disk)) if shown]
    columns = ["quant", "size", f"at {LINE}", "runs from", *_speed_column(found), *tiers, "context"]
    columns += ["with a GPU build"] if build else []
    rows = [_row(f, columns, f is best, apart) for f in found]
    head = Text.assemble((clean_line(repo), "bold"), f" · {counted(len(found), 'model')}")
    numbers, spare = ("size", "tok/s", *tiers, "context"), ("context", *tiers[:-1])
    lines: list[RenderableType] = [head, Text(), Rows(columns, rows, numbers, spare)]
    full = next((f.offer for f in found if f.offer and not f.offer.fits_disk), None)
    if full is not None:
        lines.append(Text(f"{format_size(full.disk_free or 0)} are free on the disk", "dim"))
    if best is None or best.offer is None:
        lines += [Text(), Text(why)]
    else:
        command = clean_line(best.offer.command_name)
        lines += [
            Text(),
            Text.assemble(("recommended ", "dim"), (best.label, "bold"), f": {clean_line(why)}"),
            *([Padding(speeds.summary(best.forecast), (0, 0, 0, 2))] if best.forecast else []),
            Text(f"  localmoe run {command}", style="cyan"),
        ]
    return Group(*lines)


def guesses(found: Sequence[CatalogGuess], machine: Machine) -> RenderableType:
    """The catalog, in ``fit`` without MODEL: best first, by sizes alone."""
    devices = [gpu.device for gpu in usable_gpus(machine) if gpu.device]
    rows = [
        (
            guess.command_name,
            format_size(guess.files.size),
            format_duration(guess.files.size * 8 / LINE_SPEED),
            tiers_needed(guess.verdict, devices),
        )
        for guess in found
    ]
    head = Text("approximate, by size alone; `localmoe fit NAME` is exact", style="dim")
    columns = ("on the Hub", "size", f"at {LINE}", "would run from")
    return Group(head, Rows(columns, rows, right=("size",)))


def local(found: Sequence[PlannedModel]) -> RenderableType:
    """The models of this machine, in ``fit`` without MODEL."""
    columns = ("model", "quant", "size", "runs from", *_speed_column(found), "context")
    rows = [[f.model.name, f.model.quantization, *_row(f, columns[2:], False)] for f in found]
    return Rows(columns, rows, right=("size", "tok/s", "context"), spare=("context",))


def cost(transferred: int, requests: int, seconds: float) -> str:
    """Bytes, requests and seconds of the answer, for a note."""
    return (
        f"from {format_size(transferred)} of headers in {counted(requests, 'request')}, "
        f"{format_duration(seconds)}"
    )


def _speed_column(found: Sequence[PlannedModel]) -> list[str]:
    """The column of speeds; none if no speed is known."""
    return ["tok/s"] if any(f.forecast for f in found) else []


def _row(
    found: PlannedModel, columns: Sequence[str], best: bool, apart: str = GPU
) -> list[str | Text]:
    """A model's values in these columns; ``best``: it is the recommended one; ``apart``: the
    name of the column of memory beside RAM.
    """
    plan, better = found.plan, found.with_gpu_build
    values: dict[str, str | Text] = {
        "quant": Text(found.label, "bold green" if best else ""),
        "size": format_size(found.model.size),
        f"at {LINE}": _download(found),
        "runs from": tiers_needed(plan.verdict, plan.settings.devices),
        "tok/s": speeds.cell(found.forecast),
        apart: _used(found, plan.tiers.gpu),
        "RAM": _used(found, plan.tiers.ram),
        "disk": _used(found, plan.tiers.disk),
        "context": f"{plan.max_context:,}" if plan.max_context else "–",
        "with a GPU build": tiers_needed(better.verdict, better.settings.devices)
        if better
        else "–",
    }
    return [values[name] for name in columns]


def _used(found: PlannedModel, count: int) -> str:
    return format_bytes(count) if found.plan.verdict.fits and count else "–"


def _download(found: PlannedModel) -> str | Text:
    """``1 h 25 min``, ``here`` or ``no room``, for a table."""
    offer = found.offer
    if offer is None or not offer.missing:
        return Text(found.download, "green")
    return (
        format_duration(offer.download_seconds) if offer.fits_disk else Text("no room", "bold red")
    )


def _download_text(found: PlannedModel) -> Text:
    """The download as in ``PlannedModel.download``, coloured."""
    offer = found.offer
    style = "" if offer and offer.missing and offer.fits_disk else "green"
    return Text(found.download, "bold red" if offer and not offer.fits_disk else style)
