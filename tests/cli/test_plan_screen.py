"""The picture of a placement: every layer has its place on the screen, in every terminal."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from localmoe.cli.fit.command import note_hardware
from localmoe.cli.output import Output
from localmoe.cli.render import fit_screen
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes
from localmoe.terminal.placement import LayerMap
from tests.planning.invented import engine, machine, moe_model


def plan(layers: int, ram: float, *vram: float) -> Plan:
    model = moe_model(layers=layers, parts=3)
    return make_plan(model, machine(ram, *vram), Wishes(context=8192), engine(model))


def drawn(result: Plan, width: int, height: int, *, terminal: bool = True) -> list[str]:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, height=height, force_terminal=terminal, color_system=None
    )
    console.print(LayerMap(result.layers, result.settings.devices))
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in stream.getvalue().splitlines()]


THREE_TIERS = plan(48, 6, 6)


def test_one_row_per_layer() -> None:
    """A row names a layer's bytes on every tier; a split layer names both."""
    lines = drawn(THREE_TIERS, 80, 60)[1:]
    assert [int(line.split()[0]) for line in lines] == list(range(48))
    for line, row in zip(lines, THREE_TIERS.layers, strict=True):
        for name, count in (
            ("GPU", row.experts_gpu),
            ("RAM", row.experts_ram),
            ("disk", row.experts_disk),
        ):
            assert (name in line.split("·")[0].split("MiB", 1)[1]) == bool(count), line
        assert line.endswith("8 of 128")
    assert any(re.search(r"RAM \d+ MiB \+ disk", line) for line in lines)


@pytest.mark.parametrize(("ram", "said"), [(0.1, True), (6, True), (64, False)])
def test_swap_is_no_memory_to_plan_with(ram: float, said: bool) -> None:
    """Where RAM is short, and only there, a line says that swap does not count."""
    out = io.StringIO()
    with_swap = dataclasses.replace(machine(ram), swap_total=8 << 30)
    note_hardware(with_swap, plan(48, ram), Output(err=out))
    assert ("8.0 GiB of swap do not count" in out.getvalue()) == said


@pytest.mark.parametrize("layers", [24, 48, 94])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (160, 50), (60, 24)])
def test_the_map_fits_the_terminal(layers: int, width: int, height: int) -> None:
    """No line is too wide, no map too high, and every layer is in it once."""
    lines = drawn(plan(layers, 8, 8), width, height)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) <= height
    shown = [int(n) for n in re.findall(r"(?<![\d.])(\d+) +(?=[█▓░]|GPU|RAM)", "\n".join(lines))]
    assert sorted(shown) == list(range(layers))


def test_narrow_screens_get_the_bars() -> None:
    """At 40 columns nothing is cut off."""
    for line in drawn(THREE_TIERS, 40, 200):
        assert cell_len(line) <= 40


def test_tiers_are_told_apart_without_colours() -> None:
    """Each tier has a glyph of its own, and the legend names those that are used."""
    lines = drawn(THREE_TIERS, 80, 24)
    assert {"█ GPU", "▓ RAM", "░ disk"} <= set(re.findall(r"[█▓░] \w+", lines[0]))
    last = next(line for line in lines if " 47 " in line)
    assert last.endswith("47 █ ████████"), "the last layers' experts are on the GPU"
    assert not any(glyph in "".join(drawn(THREE_TIERS, 200, 24, terminal=False)) for glyph in "█▓░")


def test_several_devices_are_called_by_their_names() -> None:
    """GPU says enough of one device, and nothing of two."""
    text = "\n".join(drawn(plan(24, 32, 4, 4), 100, 60))
    assert "GPU0 16.0 MiB" in text and "GPU1 16.0 MiB" in text


def test_a_tier_with_a_little_is_seen() -> None:
    """A bar shows every tier that has bytes, however few."""
    row = dataclasses.replace(
        THREE_TIERS.layers[0], experts="disk", experts_gpu=1, experts_ram=998, experts_disk=1
    )
    (_, line) = drawn(dataclasses.replace(THREE_TIERS, layers=(row,)), 100, 50)
    assert "█▓▓▓▓▓▓░" in line


def test_each_of_several_devices_has_a_row() -> None:
    """Bytes and budget per device; a worker's device is never just "GPU"."""
    stream = io.StringIO()
    console = Console(file=stream, width=100, color_system=None)
    console.print(fit_screen(moe_model(layers=24, parts=3), plan(24, 32, 6, 4)))
    text = stream.getvalue()
    assert re.search(r"GPU0 +5\.\d GiB +of 5\.8 GiB to use", text)
    assert re.search(r"GPU1 +3\.\d GiB +of 3\.8 GiB to use", text)
