"""A chat over a scripted engine: invented records around real loops and screens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localmoe.app.model import LoadedModel
from localmoe.chat.renderer import Renderer
from localmoe.cli.arguments import Options
from localmoe.cli.chat.loop import ChatLoop
from localmoe.cli.output import Output
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.memory import EngineSettings, MemoryReport
from localmoe.planning.plan import CachePlan, LayerPlacement, Plan, Tiers, Verdict
from localmoe.terminal.line_sources import Lines, Notices
from tests.chat import templates
from tests.chat.scripted import CONTEXT, ScriptedEngine

MODEL = Model(
    name="tiny",
    paths=(Path("tiny.gguf"),),
    size=0,
    header_bytes=0,
    architecture="qwen3moe",
    quantization="Q8_0",
    metadata={"general.sampling.temp": 0.6},
    tensors=(),
    layers=(),
    context_train=CONTEXT,
    parameters=0,
    active_parameters=0,
    chat_template=templates.CHATML,
)
MACHINE = Machine("linux", "cpu", 2, 2, 1 << 34, 1 << 33, None, (), 1 << 40)


def plan(*experts: str | None) -> Plan:
    """A plan whose layers have their experts there."""
    return Plan(
        verdict=Verdict.RAM,
        settings=EngineSettings(context=CONTEXT),
        memory=MemoryReport((), exact=True),
        tiers=Tiers(0, 0, 0),
        layers=tuple(LayerPlacement(i, "ram", e, 1, 1, 8, 2) for i, e in enumerate(experts)),
        max_context=CONTEXT,
        cache=CachePlan("resident", 0, ""),
        ram_budget=0,
        ram_reserve=0,
        vram_budget=0,
        reason="",
        advice=(),
    )


@contextmanager
def scripted_model(engine: ScriptedEngine) -> Iterator[LoadedModel]:
    with Renderer() as renderer:
        yield LoadedModel(MODEL, MACHINE, plan("ram"), engine, renderer)


def run_chat(
    engine: ScriptedEngine,
    lines: Lines,
    output: Output,
    options: Options | None = None,
    **how: Any,
) -> int:
    """The chat over a scripted engine, to its exit code."""
    loop, _ = make_loop(engine, output, options, **how)
    return loop.run("tiny", lines)


def make_loop(
    engine: ScriptedEngine, output: Output, options: Options | None = None, **how: Any
) -> tuple[ChatLoop, Notices]:
    """A loop that brings up the scripted engine, and where its threads leave their notes."""
    notices = Notices()

    @contextmanager
    def open_model(name: str | None, options: Options) -> Iterator[LoadedModel]:
        with scripted_model(engine) as model:
            yield model

    options = options or Options(command="chat")
    return ChatLoop(open_model, options, output, notices, **how), notices
