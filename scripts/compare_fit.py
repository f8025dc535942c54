"""Our placement beside llama.cpp's own ``--fit`` on the same invented machines, by bytes and speed.

    python scripts/compare_fit.py BUILD_FOLDER

Writes the table of docs/fit-comparison.md anew; the text above it stays. BUILD_FOLDER is where
llama.cpp's programs are, or are built.

The GPUs are RPC servers that report the memory of an invented card; models are headers of published
ones over a hole. ``llama-fit-params`` and we are asked for 8,192 tokens and given the same margins;
what either chose is then measured by the engine, in one way for both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.engine.devices import engine_info
from localmoe.engine.oracle import Oracle
from localmoe.engine.package import engine_libraries
from localmoe.engine.rpc_build import build_rpc_library
from localmoe.facts import hardware
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model, Role, read_model
from localmoe.planning.budget import vram_margin
from localmoe.planning.layout import expert_bytes_on_host, home_of, layer_homes
from localmoe.planning.memory import CPU, EngineSettings
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Wishes
from scripts.llama_programs import programs
from scripts.make_standin import main as make_standin
from tests.archs.rpc_server import invented_cards

MIB, GIB = 1 << 20, 1 << 30
CONTEXT = 8192
PAGE = Path(__file__).resolve().parents[1] / "docs/fit-comparison.md"
COLUMNS = (
    "| model | cards, GiB | on the GPUs | experts there | dense in RAM | RAM read per token "
    "| tok/s | over target |",
    "|---|---|---|---|---|---|---|---|",
)
GPU_SPEED, RAM_SPEED = 300e9, 40e9  # bytes/s of the predicted machine
MODELS = ("qwen3-30b-a3b", "gpt-oss-120b", "mixtral-8x7b", "glm-4.7-flash")
RAM = 64  # GiB
CARDS: tuple[tuple[float, ...], ...] = (
    *((2,), (4,), (6,), (8,), (12,), (16,), (24,)),
    *((8, 8), (12, 4), (4, 12), (24, 8), (6, 6, 6)),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What one of the two chose, measured. Bytes."""

    on_gpus: int  # all that is on the GPUs
    experts: int  # of which routed experts
    host_dense: int  # weights of the host that every token reads
    per_token: int  # bytes of host memory that one token reads
    gpu_read: int  # bytes of GPU memory that one token reads
    over: int  # bytes by which a GPU's target is exceeded

    @property
    def speed(self) -> float:
        """tok/s as memory delivers the weights, the devices one after the other."""
        return 1 / (self.gpu_read / GPU_SPEED + self.per_token / RAM_SPEED)


AS_THE_SERVER = """
#include <dlfcn.h>
#include "llama.h"
struct common_params;
llama_context_params common_context_params_to_llama(const common_params & params) {
    using function = llama_context_params (*)(const common_params &);
    static auto real = (function) dlsym(RTLD_NEXT, SYMBOL);
    llama_context_params context = real(params);
    context.n_outputs_max = context.n_outputs_max_per_seq = 1;
    return context;
}
"""
"""llama-fit-params reserves logits for a whole batch; llama-server with ``--fit`` does not."""
SYMBOL = "_Z30common_context_params_to_llamaRK13common_params"


def shim(folder: Path) -> Path:
    """A library to preload, which makes llama-fit-params ask for what llama-server asks for."""
    source, library = folder / "as_the_server.cpp", folder / "as_the_server.so"
    source.write_text(AS_THE_SERVER)
    headers = engine_libraries().parents[1] / "include"
    command = ["g++", "-shared", "-fPIC", f"-I{headers}", f'-DSYMBOL="{SYMBOL}"', str(source)]
    subprocess.run([*command, "-o", str(library), "-ldl"], check=True)
    return library


def their_settings(
    program: Path,
    model: Model,
    endpoints: Sequence[str],
    sizes: Sequence[float],
    margins: Sequence[int],
) -> EngineSettings:
    """What llama-fit-params prints, as settings of ours. Raises CalledProcessError if it fails."""
    command = [
        *(str(program), "-m", str(model.paths[0]), "-c", str(CONTEXT), "-np", "1"),
        *("--rpc", ",".join(endpoints), "-lm", "mmap", "--no-repack"),
        *("-fitt", ",".join(str(margin // MIB) for margin in margins)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "LD_PRELOAD": str(shim(Path(folder)))}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("-c "))
    flags = dict(re.findall(r'-(c|ngl|ts|ot) ("[^"]*"|\S+)', line))
    overrides = []
    for part in flags.get("ot", "").strip('"').split(","):
        if part:
            pattern, _, buffer = part.rpartition("=")
            device = CPU
            if found := re.fullmatch(r"RPC\d+\[(.*)\]", buffer):
                device = f"RPC{list(endpoints).index(found[1])}"
            overrides.append((pattern, device))
    return EngineSettings(
        CONTEXT,
        devices=tuple(f"RPC{i}" for i in range(len(endpoints))),
        # Without a split llama.cpp deals by what is free.
        tensor_split=tuple(float(part) for part in flags["ts"].split(","))
        if "ts" in flags
        else tuple(sizes),
        gpu_layers=int(flags["ngl"]),
        overrides=tuple(overrides),
        remotes=tuple(endpoints),
    )


def measured(
    model: Model, settings: EngineSettings, oracle: Oracle, targets: dict[str, int]
) -> Choice:
    """What a choice costs, by the engine's word and by the header."""
    memory = oracle(settings)
    homes = layer_homes(model, settings)
    host = expert_bytes_on_host(model, settings)
    dense = {True: 0, False: 0}  # in RAM or not
    for tensor in model.tensors:
        looked_up = tensor.name.startswith("token_embd")  # a token reads one row
        if tensor.loaded and tensor.role is not Role.ROUTED_EXPERT and not looked_up:
            dense[home_of(tensor, settings, homes) == CPU] += tensor.nbytes

    def per_token(experts: dict[int, int]) -> int:
        return sum(
            experts.get(layer.index, 0) * layer.expert_used // max(1, layer.expert_count)
            for layer in model.layers
        )

    on_gpus = {layer.index: layer.expert_bytes - host.get(layer.index, 0) for layer in model.layers}
    cards = [entry for entry in memory.devices if entry.device != CPU]
    return Choice(
        on_gpus=sum(entry.total for entry in cards),
        experts=model.expert_bytes - sum(host.values()),
        host_dense=dense[True],
        per_token=dense[True] + per_token(host),
        gpu_read=dense[False] + per_token(on_gpus),
        over=max((max(0, e.total - targets[e.device]) for e in cards), default=0),
    )


def compare(program: Path, model: Model, sizes: Sequence[float]) -> tuple[Choice | None, Choice]:
    """(theirs, ours); theirs is None where it gives up."""
    with contextlib.ExitStack() as stack:
        cards = [stack.enter_context(invented_cards(int(size * GIB))) for size in sizes]
        info = engine_info(cards)
        margins = [vram_margin(gpu) for gpu in info.gpus]
        targets = {
            gpu.device or "": gpu.free - margin
            for gpu, margin in zip(info.gpus, margins, strict=True)
        }
        try:
            theirs = their_settings(program, model, cards, sizes, margins)
        except subprocess.CalledProcessError:
            theirs = None
        with Oracle(model) as oracle:
            plan = make_plan(model, machine(info.gpus), Wishes(context=CONTEXT), oracle)
            mine = dataclasses.replace(plan.settings, threads=0, threads_batch=0)
            second = measured(model, mine, oracle, targets)
            if theirs is None:
                return None, second
            return measured(model, theirs, oracle, targets), second


def machine(gpus: tuple[hardware.Gpu, ...]) -> Machine:
    here = hardware.detect()
    ram = RAM * GIB
    return dataclasses.replace(here, ram_total=ram, ram_available=ram, gpus=gpus)


def main() -> int:
    program = programs(Path(sys.argv[1]))["llama-fit-params"]
    build_rpc_library()
    above, _, _ = PAGE.read_text().partition("| model |")
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            path = Path(folder) / f"{name}.gguf"
            with contextlib.redirect_stdout(sys.stderr):
                make_standin([name, "--header-only", "-o", str(path)])
            model = read_model(path)
            for sizes in CARDS:
                theirs, ours = compare(program, model, sizes)
                lines.append(row(name, sizes, theirs, ours))
                print(lines[-1], flush=True)
    PAGE.write_text(above + "\n".join([*COLUMNS, *lines, "", *summary(lines), ""]))
    return 0


def summary(lines: Sequence[str]) -> Iterator[str]:
    """How often either is better, of the table's rows as they are printed."""
    columns = {
        4: ("experts on the GPUs", 1),
        6: ("RAM read per token", -1),
        7: ("predicted speed", 1),
    }
    for column, (name, better) in columns.items():
        ours = theirs = 0
        for line in lines:
            cell = line.split("|")[column].strip()
            if "→" in cell and "gives up" not in cell:
                first, second = (float(part) for part in cell.split("→"))
                ours += (second - first) * better > 0
                theirs += (second - first) * better < 0
        same = len(lines) - ours - theirs
        yield f"- {name}: ours better on {ours}, theirs on {theirs}, equal on {same} machines"


def row(name: str, sizes: Sequence[float], theirs: Choice | None, ours: Choice) -> str:
    """One machine: theirs → ours, in GiB and tok/s."""

    def pair(shown: Callable[[Choice], str]) -> str:
        mine = shown(ours)
        other = "gives up" if theirs is None else shown(theirs)
        return other if other == mine else f"{other} → {mine}"

    cells = (
        pair(lambda choice: gib(choice.on_gpus)),
        pair(lambda choice: gib(choice.experts)),
        pair(lambda choice: gib(choice.host_dense)),
        pair(lambda choice: gib(choice.per_token)),
        pair(lambda choice: f"{choice.speed:.1f}"),
        pair(lambda choice: gib(choice.over)),
    )
    return f"| {name} | {' + '.join(f'{size:g}' for size in sizes)} | {' | '.join(cells)} |"


def gib(count: int) -> str:
    return f"{count / GIB:.2f}"


if __name__ == "__main__":
    sys.exit(main())
