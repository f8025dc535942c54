"""Screens, from records: complete and readable at every width, safe whatever the strings hold."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from localmoe.app.local_models import LocalModel
from localmoe.app.planned_model import PlannedModel
from localmoe.cli import render
from localmoe.cli.fit import screens
from localmoe.cli.fit.plan_screen import plan_screen
from localmoe.cli.output import Output
from localmoe.facts.model import Layer, Model, Role, Tensor
from localmoe.planning.memory import DeviceMemory, EngineSettings, MemoryReport
from localmoe.planning.plan import CachePlan, LayerPlacement, Plan, Tiers, Verdict

MIB = 1 << 20
GIB = 1 << 30
PLACES = [("gpu", "gpu")] * 8 + [("gpu", "ram")] * 30 + [("gpu", "disk")] * 9 + [("ram", None)]


def tensor(nbytes: int, role: Role) -> Tensor:
    return Tensor("t", (1,), "F32", 0, nbytes, 0, 0, role)


MODEL = Model(
    name="Big-Model-123B-A4B-Instruct-2507-Q4_K_M",
    paths=(Path("/models/big-00001-of-00002.gguf"), Path("/models/big-00002-of-00002.gguf")),
    size=19 * GIB,
    header_bytes=9 * MIB,
    architecture="qwen3moe",
    quantization="Q4_K_M",
    metadata={"tokenizer.ggml.model": "gpt2", "qwen3moe.expert_shared_count": 2},
    tensors=(tensor(2 * GIB, Role.DENSE), tensor(17 * GIB, Role.ROUTED_EXPERT)),
    layers=tuple(Layer(i, 40 * MIB, 360 * MIB if i < 47 else 0, 128, 8) for i in range(48)),
    context_train=262144,
    parameters=123_000_000_000,
    active_parameters=4_200_000_000,
    chat_template="x",
)
PLAN = Plan(
    verdict=Verdict.GPU_RAM_DISK,
    settings=EngineSettings(8192, devices=("CUDA0",), gpu_layers=-1),
    memory=MemoryReport(
        (
            DeviceMemory("CPU", 13 * GIB, 0, 100 * MIB),
            DeviceMemory("CUDA0", 6 * GIB, 800 * MIB, 300 * MIB),
        ),
        exact=True,
    ),
    tiers=Tiers(7 * GIB, 8 * GIB, 4 * GIB),
    layers=tuple(
        LayerPlacement(
            *(i, dense, experts, 40 * MIB, 360 * MIB, 128, 8),
            "CUDA0" if dense == "gpu" else "CPU",
            *(360 * MIB * (experts == tier) for tier in ("gpu", "ram", "disk")),
        )
        for i, (dense, experts) in enumerate(PLACES)
    ),
    max_context=32768,
    cache=CachePlan("page", 4 * GIB, "the page cache keeps the experts used most"),
    ram_budget=8 * GIB,
    ram_reserve=1 * GIB,
    vram_budget=int(7.5 * GIB),
    reason="4.0 GiB of experts do not fit in the 8.0 GiB of RAM: read from disk",
    advice=("close programs that use 3.0 GiB, and nothing needs the disk",),
)
FINDINGS = [
    ("gpu", "GPU idle: some card is not in this engine build", "pip install something-long")
]
SCREENS: dict[str, Callable[[], RenderableType]] = {
    "fit": lambda: render.fit_screen(MODEL, PLAN),
    "plan": lambda: plan_screen(MODEL, PLAN),
    "show": lambda: render.show_screen(MODEL, "template"),
    "list": lambda: render.list_table(
        [LocalModel(MODEL, "Ollama"), LocalModel(MODEL, "Ollama", "why")]
    ),
    "fit all": lambda: screens.local([PlannedModel(MODEL, PLAN)]),
    "doctor": lambda: render.doctor_screen(FINDINGS),
}


def drawn(screen: RenderableType, width: int, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, markup=False, highlight=False, force_terminal=terminal
    )
    console.print(screen, crop=False)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("name", SCREENS)
def test_no_line_is_wider_than_the_screen(name: str, width: int) -> None:
    """Only the line that is there to be copied may be longer."""
    for line in drawn(SCREENS[name](), width).splitlines():
        assert cell_len(line) <= width or line.startswith("llama-server -m ")


@pytest.mark.parametrize("width", [40, 80, 160])
def test_fit_says_everything_at_every_width(width: int) -> None:
    """Verdict, parts, tiers, context, reason and advice."""
    text = " ".join(drawn(SCREENS["fit"](), width).split())
    for fact in (
        "read from disk",
        "dense weights 2.0 GiB",
        "expert weights 17.0 GiB",
        "KV cache 800 MiB",
        "compute 400 MiB",
        "total 20.2 GiB",
        "GPU 7.0 GiB of 7.5 GiB",
        "RAM 8.0 GiB of 8.0 GiB",
        "disk 4.0 GiB",
        "32,768 tokens",
        "→ close programs that use 3.0 GiB",
    ):
        assert fact in text, (fact, text)


@pytest.mark.parametrize("name", SCREENS)
def test_files_are_in_gb_and_memory_in_gib(name: str) -> None:
    """The model's file, 20.4 GB, is never told as 19.0 GiB; what memory holds is never in GB."""
    text = " ".join(drawn(SCREENS[name](), 200).split())
    assert "19.0 GiB" not in text
    if name != "doctor":
        assert "20.4 GB" in text
    if name in ("fit", "plan"):
        assert re.findall(r"[\d.]+ GB(?!/s)", text) == ["20.4 GB"]


def test_list_is_a_table_at_80_columns() -> None:
    """Of a long name and folder: every row is one line or a folded name, under one heading."""
    long = replace(MODEL, name="someone/Qwen3-Coder-30B-A3B-Instruct-1M-GGUF:UD-Q4_K_XL")
    short = replace(MODEL, name="tiny-Q8_0")
    for models in ([short], [long], [short, long, MODEL]):
        entries = [LocalModel(model, "Hub cache") for model in models]
        lines = drawn(render.list_table(entries), 80).splitlines()
        assert lines[0].split()[:1] == ["model"] and {"size", "experts"} <= set(lines[0].split())
        assert all(len(line) <= 80 for line in lines)
        assert len([line for line in lines if "20.4 GB" in line]) == len(models)
        assert "architecture qwen3moe" not in "".join(lines)
        if models == [short]:
            assert "Hub cache" in lines[1]


def test_wide_tables_become_lists_on_narrow_screens() -> None:
    """Every value of a row is still there, each with its column's name."""
    wide, narrow = drawn(SCREENS["list"](), 160), drawn(SCREENS["list"](), 40)
    assert wide.splitlines()[0].split() == [
        "model", "architecture", "quant", "size", "experts", "of", "folder",
    ]  # fmt: skip
    rows = [
        f"{MODEL.name} architecture qwen3moe · quant Q4_K_M · size 20.4 GB · "
        f"experts {experts} · of Ollama · folder /models"
        for experts in ("8 of 128", "cannot be read")
    ]
    assert narrow.split() == " ".join(rows).split()


def test_bars_are_for_terminals_only() -> None:
    assert "█" in drawn(SCREENS["fit"](), 100, terminal=True)
    assert "█" not in drawn(SCREENS["fit"](), 100)
    assert "█" not in drawn(SCREENS["fit"](), 40, terminal=True)


@pytest.mark.parametrize("name", SCREENS)
def test_strings_from_files_are_harmless(name: str) -> None:
    """Escape codes, bidi controls and markup in a file's strings reach no screen as such."""
    evil = "x[/bold]\x1b]0;title\x07\x9b31m\u202e[red]"
    model = replace(
        MODEL,
        name=evil,
        architecture=evil,
        quantization=evil,
        paths=(Path(f"/tmp/{evil}.gguf"),),
        metadata={"tokenizer.ggml.model": evil},
    )
    plan = replace(PLAN, reason=evil, advice=(evil,), cache=replace(PLAN.cache, why=evil))
    shown: dict[str, Callable[[], RenderableType]] = {
        "fit": lambda: render.fit_screen(model, plan),
        "plan": lambda: plan_screen(model, plan),
        "show": lambda: render.show_screen(model, "generic"),
        "list": lambda: render.list_table([LocalModel(model, "Ollama", model.name)]),
        "fit all": lambda: screens.local([PlannedModel(model, plan)]),
        "doctor": lambda: render.doctor_screen([(evil, evil, evil)]),
    }
    text = drawn(shown[name](), 200)
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    assert "x[/bold]" in text and "[red]" in text


def test_pipes_get_whole_lines_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe one fact stays on one line, without trailing blanks or escape codes."""
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    Output(out=stream).print(*(screen() for screen in SCREENS.values()))
    text = stream.getvalue()
    assert PLAN.reason in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("columns", "width"), [("0", 1000), ("abc", 1000), ("-5", 1000), ("", 1000), ("60", 60)]
)
def test_columns_that_cannot_be_are_none(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLUMNS=0, as some programs leave it, once made every table empty."""
    monkeypatch.setenv("COLUMNS", columns)
    out = io.StringIO()
    output = Output(out=out)
    assert output.stdout.width == width
    output.print(SCREENS["list"]())
    assert "20.4 GB" in out.getvalue()
