"""What ``plan`` shows: ``fit``'s answer, a picture of the layers, and llama.cpp's flags. Pure."""

from __future__ import annotations

import shlex

from rich.console import Group, RenderableType
from rich.text import Text

from localmoe.cli.render import fit_screen
from localmoe.facts.model import Model
from localmoe.planning.llama_args import llama_args
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast
from localmoe.terminal.placement import LayerMap
from localmoe.terminal.tables import pairs
from localmoe.text import clean


def _repacked(plan: Plan) -> tuple[tuple[str, str], ...]:
    how = "repacked: copied, in the order of the processor's kernels, instead of mapped"
    return (("weights", how),) if plan.settings.repack else ()


def plan_screen(model: Model, plan: Plan, forecast: Forecast | None = None) -> RenderableType:
    """The answer of ``plan``; for a model that does not fit, that of ``fit``."""
    answer = fit_screen(model, plan, forecast)
    if not plan.verdict.runs:
        return answer
    flags = ("-m", str(model.paths[0].absolute()), *llama_args(plan.settings))
    return Group(
        answer,
        Text(),
        LayerMap(plan.layers, plan.settings.devices),
        Text(),
        pairs((("cache", f"{plan.cache.regime}: {plan.cache.why}"), *_repacked(plan))),
        Text(),
        Text("  the same as llama.cpp flags:", style="dim"),
        # One unbroken line: it is there to be copied.
        Text("llama-server " + clean(shlex.join(flags)), no_wrap=True, overflow="ignore"),
    )
