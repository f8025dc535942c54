"""Table: what a device holds and says, per generated architecture and layout.

    localmoe engine install vulkan          # or a file of that module
    python -m scripts.device_table [ARCHITECTURE ...]     # a section of docs/devices.md

Each row is a load and two answers: 12 greedy tokens after a short prompt, and after one of more
than a hundred, which the device reads also by experts that it does not hold. Beside it llama.cpp
alone, on the same device, with the same batches and all experts in memory.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path

from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.cli.arguments import parse
from localmoe.cli.requests import plan_request
from localmoe.engine import modules
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Loaded, Request, Sampling, Token
from localmoe.engine.package import binding_version
from localmoe.errors import LocalmoeError
from localmoe.facts.gpus import Gpu
from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import needed_budget
from localmoe.planning.memory import EngineSettings
from localmoe.planning.plan import Plan
from localmoe.planning.prefill import stage_bytes
from tests.archs import ARCHITECTURES, generate
from tests.archs.plain import PlainRunError, plain_greedy

GREEDY = Sampling(temperature=0.0)
SHORT = "The first question is"
LONG = "A mixture of experts has many small networks and a router. " * 12
EXPERTS = r"ffn_.*_(ch)?exps"
LAYOUTS: dict[str, tuple[list[str], str | None]] = {
    "all on the device": ([], None),
    "experts of layers 0 and 1 in RAM": (["--experts-on", "ram:0-1"], rf"blk\.[01]\.{EXPERTS}"),
    "experts in RAM": (["--experts-on", "ram"], EXPERTS),
    "experts on the disk": (["--experts-on", "disk", "--cache-ram", "0.5"], EXPERTS),
}
TABLE = """
## {device}

{engine}, {day}.

| architecture | {layouts} |
|---|{rules}|"""


def planned(path: Path, *options: str) -> Plan:
    asked = plan_request(parse(["run", str(path), "--ctx", "512", "-t", "1", *options]))
    machine = find_machine(asked, hypothetical=False)
    return plan_for(read_model(path), machine, asked, hypothetical=False)


def budgets(model: Model, settings: EngineSettings) -> Iterator[EngineSettings]:
    """The settings; where a cache serves, with memory for two layers and for two projections."""
    if settings.cache != "private":
        yield settings
        return
    layers = [layer.index for layer in model.layers if layer.expert_count]
    staged = stage_bytes(model, layers) + needed_budget(model, layers, 1)
    for size in (2 * needed_budget(model, layers, settings.ubatch), staged):
        yield dataclasses.replace(settings, cache_bytes=size)


def cell(path: Path, name: str, device: str, module: Path | None) -> str:
    """What there is to say of one layout of one architecture."""
    options, here = LAYOUTS[name]
    model = read_model(path)
    if options and not model.is_moe:
        return "–"
    plan = planned(path, *options)
    same, held = {SHORT: True, LONG: True}, 0
    for settings in budgets(model, plan.settings):
        with Engine(model, settings, remember=False) as engine:
            *_, loaded = engine.load()
            assert isinstance(loaded, Loaded)
            held = loaded.memory.on(device).total
            for prompt in same:
                request = Request(prompt, max_tokens=12, sampling=GREEDY, ignore_end=True)
                events = list(engine.generate(request))
                text = "".join(event.text for event in events if isinstance(event, Token))
                same[prompt] = same[prompt] and text == plain(
                    path, prompt, settings.batch, here, module
                )
    told = [f"{held:,}", "equal" if all(same.values()) else "differ"]
    if held != (meant := plan.memory.on(device).total):
        told.insert(1, f"planned: {meant:,}")
    return ", ".join(told)


@cache
def plain(path: Path, prompt: str, batch: int, here: str | None, module: Path | None) -> str:
    """llama.cpp's own words."""
    return plain_greedy(
        path,
        prompt,
        12,
        timeout=900.0,
        n_batch=batch,
        n_gpu_layers=99,
        experts_on_cpu=here,
        module=str(module) if module else None,
    ).text


def main() -> None:
    gpus: list[Gpu] = [gpu for gpu in engine_info().gpus if gpu.device]
    if not gpus:
        sys.exit(f"the engine has no device: {engine_info().modules}")
    device, module = str(gpus[0].device), modules.installed().get(gpus[0].backend or "")
    print(
        TABLE.format(
            device=f"{device}: {gpus[0].name}",
            engine=f"llama-cpp-python {binding_version()}",
            day=date.today().isoformat(),
            layouts=" | ".join(LAYOUTS),
            rules="|".join("---" for _ in LAYOUTS),
        )
    )
    wanted = sys.argv[1:] or list(ARCHITECTURES)
    with tempfile.TemporaryDirectory() as folder:
        for architecture in wanted:
            path = generate(architecture, Path(folder))
            cells = []
            for name in LAYOUTS:
                try:
                    cells.append(cell(path, name, device, module))
                except (LocalmoeError, PlainRunError) as error:
                    cells.append(str(error).splitlines()[0])
            print(f"| {architecture} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
