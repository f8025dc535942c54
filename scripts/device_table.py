"""Table: what a device holds and says, per generated architecture and layout.

    localmoe engine install vulkan          # or a file of that module
    GGML_VK_VISIBLE_DEVICES=0 python -m scripts.device_table > docs/devices.md

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
HEAD = """\
# Devices

Vulkan's device without a GPU is Mesa's software driver, which llama.cpp uses when it is named:
`GGML_VK_VISIBLE_DEVICES=0`, with `GGML_VK_DISABLE_F16=1 GGML_VK_DISABLE_COOPMAT=1` as in its own
tests. What holds together, in November 2026: Debian 12 with Mesa 25.0.7 of its backports (LLVM 15),
Vulkan's loader and glslc 2023.2 of its own, and Vulkan's headers 1.4.309 of Debian 13
(`libvulkan-dev`, unpacked, as `VULKAN_SDK`). Mesa 22.3, Debian 12's own, corrupts its memory in
batches through MUL_MAT_ID.

`localmoe engine install vulkan` with these took 5 minutes of processor time (22 minutes beside
other builds on two cores) and made a module of 28.7 MB. glslc 2023.2 knows no cooperative matrices,
so the kernels for them are not in it: for a GPU that has them build with a newer one (Debian 13's),
which takes longer. Where no device is seen, `localmoe engine` and `doctor` say so in a line.

`localmoe engine install cuda` wants NVIDIA's toolkit whole: nvcc, cuBLAS and a libcuda.so for the
linker; where one is not there it says so before it compiles. One that is made of PyPI's wheels
may have nvcc alone. This makes it whole, in a folder of one's own, for nvcc 13.0 (cuBLAS 13.1 is
that of CUDA 13.0):

```
cp -al /usr/local/cuda-13.0 cuda
pip download --no-deps nvidia-cublas==13.1.0.3                      # 423 MB
unzip -q nvidia_cublas-*.whl 'nvidia/cu13/*'
cp -r nvidia/cu13/include nvidia/cu13/lib cuda/
ln -s libcublas.so.13 cuda/lib/libcublas.so; ln -s libcublasLt.so.13 cuda/lib/libcublasLt.so
mkdir cuda/lib/stubs
g++ -shared -x c++ /dev/null -Wl,-soname,libcuda.so.1 -o cuda/lib/stubs/libcuda.so
CUDA_PATH=$PWD/cuda CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=90-real localmoe engine install cuda
```

CMake takes such a toolkit. The module has not been built to its end yet: of its 144 CUDA files, for
sm_90, the first 24 and ggml's base took 3 min 36 s of processor time, and one of the 75 large ones
(`mmq-instance-q4_k.cu`) 33 s, with an object of 0.76 MB. By these, an estimate: 50 minutes. For
llama.cpp's usual list of seven architectures one small file (`norm.cu`) took 3.2 times as long,
17.3 s instead of 5.4, and 2.1 times the bytes.

With the Vulkan module nano's greedy answer on `Vulkan0` was word for word the processor's: all on
the device, and with its experts on the disk (4 MiB of private memory), where the device multiplied
the prompt's 52 tokens by experts that the cache brought. qwen3moe was placed as planned, with the
tokens of llama.cpp alone, in the four layouts of `tests/soak/test_devices.py`. The first use
compiles shaders: minutes of processor time; Mesa keeps them. `python -m scripts.device_table` makes
this page's table for the device that is there.

Written by `scripts/device_table.py`: bytes on the device (weights, KV cache, buffers) as the engine
reports them after the load, which are those of the plan; and whether 12 greedy tokens are those of
llama.cpp alone on the same device with the same batches, after a short prompt and after a long one,
whose batches the device multiplies by all experts, its own and those that are copied there. On the
disk: in private memory for two layers, then for two projections of one (decision 11).
"""
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
    device, module = str(gpus[0].device), next(iter(modules.installed().values()), None)
    print(HEAD, end="")
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
