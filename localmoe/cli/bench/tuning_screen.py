"""What a search for faster settings came to, as a person sees it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from localmoe.bench.tuning import Tuning
from localmoe.bench.variants import CHANGES_ANSWERS, TURN_READ, TURN_WRITTEN
from localmoe.terminal.tables import Rows
from localmoe.text import clean_line, format_duration


def screen(found: Tuning, commands: Sequence[str]) -> Iterator[RenderableType]:
    """A row per setting, and how to keep them; or that nothing was faster."""
    yield Text("")
    how = f"{found.trials} trials in turn, {format_duration(found.took)}"
    chosen = found.chosen
    if not chosen or found.confirmed is None:
        yield Text(f"no faster setting found ({how}): {nothing(found)}")
        return
    yield Text.assemble(("faster here", "bold"), f" ({how}):")
    rows = [
        (
            str(gain.variants[0]),
            str(gain.variants[0].now),
            f"{gain.before.decode_tps:.1f} → {gain.after.decode_tps:.1f}",
            f"{gain.before.prefill_tps:.0f} → {gain.after.prefill_tps:.0f}",
            f"{gain.factor:.2f} × sooner",
        )
        for gain in chosen
    ]
    if len(rows) > 1:
        all_ = found.confirmed
        rows.append(
            (
                "together",
                "",
                f"{all_.before.decode_tps:.1f} → {all_.after.decode_tps:.1f}",
                f"{all_.before.prefill_tps:.0f} → {all_.after.prefill_tps:.0f}",
                f"{all_.factor:.2f} × sooner",
            )
        )
    yield Rows(("setting", "now", "tok/s", "prefill tok/s", "a turn"), rows)
    yield Text(f"a turn: {TURN_READ} tokens read, {TURN_WRITTEN} written", style="dim")
    for gain in chosen:
        if gain.variants[0].setting in CHANGES_ANSWERS:
            yield Text(f"{gain.variants[0]} changes the answers a little", style="dim")
    yield Text("to keep it:", style="dim")
    for command in commands:
        yield Text(f"  {clean_line(command)}", style="cyan", no_wrap=True, overflow="ignore")


def nothing(found: Tuning) -> str:
    """Why no faster setting was found."""
    if not found.variants:
        return "all of them are chosen already"
    tried = ", ".join(map(str, found.variants))
    if found.complete:
        return f"tried {tried}"
    return f"there was not enough time to tell; --tune SECONDS gives more ({tried})"
