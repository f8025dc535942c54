"""Records → what a person sees. Pure: nothing is printed here.

Layouts hold from 40 columns on: tables that are too wide become one short list per row. Strings
from files are cleaned, and are never read as markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from localmoe.app import calling_form, documents, speeds
from localmoe.app.local_models import LocalModel
from localmoe.app.planned_model import verdict_words
from localmoe.app.tiers import tier_names
from localmoe.facts.model import Model, Role
from localmoe.planning.memory import EngineSettings
from localmoe.planning.plan import Plan, Verdict
from localmoe.planning.speed import Forecast
from localmoe.terminal.placement import TIER_STYLE, TierBars
from localmoe.terminal.tables import Rows, cell, indented, pairs
from localmoe.text import clean_line, counted, format_bytes, format_count, format_size, shortened


def verdict_text(verdict: Verdict, devices: Sequence[str]) -> Text:
    """What a verdict means for a plan with these devices, green, yellow or red."""
    slow = verdict.runs and (not verdict.fits or "disk" in verdict.value)
    style = "bold yellow" if slow else "bold green" if verdict.fits else "bold red"
    return Text(verdict_words(verdict, devices), style=style)


def title(model: Model) -> Text:
    """``name · architecture · quantization · size · parts``."""
    parts = len(model.paths)
    facts = [model.architecture, model.quantization, format_size(model.size)]
    facts += [f"{parts} parts"] if parts > 1 else []
    return Text.assemble((clean_line(model.name), "bold"), *(f" · {clean_line(f)}" for f in facts))


def experts_text(model: Model) -> str:
    """``128 experts, 8 per token, +1 shared`` or that there are none."""
    if not model.is_moe:
        return "no experts (a dense model)"
    count, used = documents.expert_counts(model)
    moe_layers = sum(bool(layer.expert_count) for layer in model.layers)
    text = f"{counted(count, 'expert')}, {used} per token"
    if shared := documents.shared_experts(model):
        text += f", +{shared} shared"
    if moe_layers < len(model.layers):
        text += f", in {moe_layers} of {counted(len(model.layers), 'layer')}"
    return text


def fit_screen(model: Model, plan: Plan, forecast: Forecast | None = None) -> RenderableType:
    """The answer of ``fit``: verdict, memory by part and tier, speed, context, what would help."""
    context = f"{plan.max_context:,} tokens" if plan.max_context else "none"
    lines: list[RenderableType] = [
        title(model),
        verdict_text(plan.verdict, plan.settings.devices),
        Text(),
        indented(_memory_parts(model, plan)),
        Text(),
        indented(TierBars(plan)),
        Text(),
        pairs(
            (
                *(speeds.rows(forecast) if forecast else ()),
                *((("batches", speeds.gain_text(plan.gain)),) if plan.gain else ()),
                ("largest context", context),
                ("why", plan.reason),
            )
        ),
    ]
    if plan.advice:
        lines += [Text(), _advice(plan.advice)]
    return Group(*lines)


def _memory_parts(model: Model, plan: Plan) -> Table:
    """Bytes of the weights, the KV cache and the compute buffers, and their sum."""
    memory, settings = plan.memory, plan.settings
    key, value = settings.type_k, settings.type_v
    kv = key if key == value else f"{key} keys, {value} values"
    dense, experts = documents.weights(model, plan)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    for name, count, detail in (
        ("dense weights", dense, ""),
        ("expert weights", experts, experts_text(model)),
        ("KV cache", memory.kv, f"{settings.context:,} tokens, {kv}"),
        ("compute", memory.compute, _batches_text(settings)),
    ):
        grid.add_row(name, format_bytes(count), Text(detail))
    estimated = "" if memory.exact else "estimated"
    grid.add_row(Text("total", "bold"), Text(format_bytes(memory.total), "bold"), estimated)
    return grid


def _batches_text(settings: EngineSettings) -> str:
    """``batches of 2,048 tokens; while a prompt is read, 288 MiB of the experts' memory too``."""
    text = f"batches of {settings.ubatch:,} tokens"
    if settings.cache_lent:
        lent = format_bytes(settings.cache_lent)
        text += f"; while a prompt is read, {lent} of the experts' memory too"
    return text


def show_screen(model: Model, calling: str | None) -> RenderableType:
    """The answer of ``show``."""
    not_loaded = sum(t.nbytes for t in model.tensors if not t.loaded)
    names = {
        Role.DENSE: "dense weights",
        Role.ROUTER: "router",
        Role.SHARED_EXPERT: "shared experts",
        Role.ROUTED_EXPERT: "routed experts",
    }
    active = format_count(model.active_parameters)
    tokenizer = model.metadata.get("tokenizer.ggml.model", "unknown")
    context = f"{model.context_train:,} tokens" if model.context_train else "not stated"
    rows: list[tuple[str, str | Text]] = [
        ("architecture", model.architecture),
        ("quantization", model.quantization),
        ("layers", str(len(model.layers))),
        ("experts", experts_text(model)),
        ("parameters", f"{format_count(model.parameters)}, {active} active per token"),
        ("context", context),
        ("chat template", "yes" if model.chat_template else "no"),
        ("tool calls", calling_form.WORDS[calling]),
        ("tokenizer", shortened(clean_line(str(tokenizer)), 60)),
    ]
    by_role = documents.bytes_by_role(model)
    rows += [(names[role], format_size(count)) for role, count in by_role.items() if count]
    if not_loaded:
        rows.append(("not loaded", f"{format_size(not_loaded)} (multi-token prediction)"))
    rows += [("file" if i == 0 else "", str(path)) for i, path in enumerate(model.paths)]
    return Group(title(model), Text(), pairs(rows))


def list_table(models: Sequence[LocalModel]) -> RenderableType:
    """The answer of ``list``."""
    rows = [
        (
            entry.model.name,
            entry.model.architecture,
            entry.model.quantization,
            format_size(entry.model.size),
            Text("cannot be read", "bold red") if entry.problem else experts_short(entry.model),
            entry.program,
            str(entry.model.paths[0].parent),
        )
        for entry in models
    ]
    columns = ("model", "architecture", "quant", "size", "experts", "of", "folder")
    spare = ("folder", "architecture", "of", "quant")
    return Rows(columns, rows, right=("size",), spare=spare)


def experts_short(model: Model) -> str:
    """``8 of 128``, or ``dense``."""
    count, used = documents.expert_counts(model)
    return f"{used} of {count}" if count else "dense"


def doctor_screen(findings: Sequence[tuple[str, str, str | None]]) -> RenderableType:
    """The answer of ``doctor``: (area, finding, what to type or None)."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for area, text, fix in findings:
        mark = Text("!", "bold yellow") if fix else Text("✓", "green")
        grid.add_row(mark, cell(area), cell(text))
        if fix:
            grid.add_row(Text(), Text("→", justify="right"), Text(clean_line(fix), style="cyan"))
    return grid


def tiers_needed(verdict: Verdict, devices: Sequence[str]) -> Text:
    """``GPU + RAM``, each in its colour, for a plan with these devices."""
    if not verdict.fits:
        return verdict_text(verdict, devices)
    names, tiers = tier_names(devices), verdict.value.split("+")
    return Text(" + ").join(Text(names[tier], style=TIER_STYLE[tier]) for tier in tiers)


def _advice(advice: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    for line in advice:
        grid.add_row(Text("→", "cyan"), Text(clean_line(line), "cyan", overflow="fold"))
    return grid
