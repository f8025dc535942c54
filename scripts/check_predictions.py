"""Tables: what the dry run predicts against what a real load takes, per generated architecture.

    python scripts/check_predictions.py > docs/predictions.md

Contexts of 512, 2,048 and 4,096 tokens, KV in f16 and q8_0, on the host alone and with an RPC
worker on loopback as second device. Columns are the largest difference of those six, in bytes (same
load mode) and per cent (the mapping that runs use). Then the same two devices with the experts of
the host in a cache that holds half of them, and whether its tokens are those of plain llama.cpp.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.engine import protocol
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, Request, Sampling, Token
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.engine.rpc_build import build_rpc_library
from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import needed_budget
from localmoe.planning.cache_plan import plan_cache
from localmoe.planning.layout import experts_to_host
from localmoe.planning.memory import CPU, EngineSettings, MemoryReport
from tests.archs import ARCHITECTURES, generate
from tests.archs.rpc_server import rpc_server

EXPERTS = r"^blk\.(0|1)\.ffn_(gate|up|down|gate_up)_(ch)?exps"
ANSWER = Request(
    "A mixture of experts has many small networks and a router. " * 2,
    max_tokens=24,
    sampling=Sampling(temperature=0.0),
    ignore_end=True,
)
HEAD = """\
# Predicted and real memory

Largest difference over contexts 512, 2,048, 4,096 and KV types f16, q8_0; written by
`scripts/check_predictions.py`. Two devices: all on an RPC worker but the experts of two
layers. With a mapping, llama.cpp counts host weights as the span from the first to the
last tensor there, which on two devices is address space and left out of the last column.

| architecture | one device | … mapped | two devices | … mapped |
|---|---|---|---|---|"""
CACHED = """
## With the expert cache

Everything but the routed experts on the worker, at 2,048 tokens; the experts in a cache on the host
that holds half of them. Bytes on the worker (weights, KV cache, buffers), planned and real; buffers
of the host; the most that the cache held of its budget; 24 greedy tokens beside plain llama.cpp on
the same devices with the same batches.

| architecture | on the worker, planned | real | host buffers, planned | real | cache | tokens |
|---|---|---|---|---|---|---|"""


def settings(**fixed: object) -> list[EngineSettings]:
    """The six combinations of context and KV type."""
    return [
        EngineSettings(context, type_k=kv, type_v=kv, **fixed)  # type: ignore[arg-type]
        for context in (512, 2048, 4096)
        for kv in ("f16", "q8_0")
    ]


def loads(model: Model, runs: Sequence[EngineSettings]) -> Iterator[MemoryReport]:
    """What the engine says after really loading, one after the other."""
    paths = [str(path) for path in model.paths]
    with contextlib.closing(WorkerProcess()) as worker:
        for run in runs:
            *_, last = worker.request("load", paths=paths, settings=dataclasses.asdict(run))
            yield protocol.report_from_json(last["memory"])


def difference(predicted: MemoryReport, real: MemoryReport) -> int:
    """The largest difference of any figure on any device, bytes."""
    worst = 0
    for device in {entry.device for entry in (*predicted.devices, *real.devices)}:
        mine, theirs = predicted.on(device), real.on(device)
        for figure in ("weights", "kv", "compute"):
            worst = max(worst, abs(getattr(mine, figure) - getattr(theirs, figure)))
    return worst


def measure(model: Model, runs: Sequence[EngineSettings]) -> tuple[int, float]:
    """(bytes in the dry run's load mode, per cent of the total with the mapping)."""
    read_in = [dataclasses.replace(run, load_mode="none") for run in runs]
    with Oracle(model) as oracle:
        exact = [oracle(run) for run in read_in]
        used = [oracle(run) for run in runs]
    worst = max(difference(p, r) for p, r in zip(exact, loads(model, read_in), strict=True))
    if runs[0].devices:  # the mapping's span on the host is address space: compare the rest
        host = [without_host_weights(report) for report in used]
        real = [without_host_weights(report) for report in loads(model, runs)]
    else:
        host, real = used, list(loads(model, runs))
    share = max(abs(p.total - r.total) / r.total for p, r in zip(host, real, strict=True))
    return worst, 100 * share


def without_host_weights(report: MemoryReport) -> MemoryReport:
    return dataclasses.replace(
        report,
        devices=tuple(
            dataclasses.replace(entry, weights=0) if entry.device == CPU else entry
            for entry in report.devices
        ),
    )


def cached(model: Model, there: dict[str, object]) -> str:
    """A row of the second table."""
    host = {layer.index: layer.expert_bytes for layer in model.layers if layer.expert_bytes}
    base = EngineSettings(
        2048,
        batch=24,
        ubatch=24,
        threads=1,
        threads_batch=1,
        overrides=experts_to_host(host),
        **there,  # type: ignore[arg-type]
    )
    room = max(sum(host.values()) // 2, needed_budget(model, host, 1))
    mine, _ = plan_cache(model, base, host, room, "private")
    plain = dataclasses.replace(base, batch=mine.batch, ubatch=mine.ubatch)
    with Oracle(model) as oracle:
        predicted = oracle(mine)
    real, text, held = answer(model, mine)
    worker, other = predicted.on("RPC0"), real.on("RPC0")
    buffers, others = predicted.on(CPU), real.on(CPU)
    cells = (
        f"{worker.total:,}",
        f"{other.total:,}",
        f"{buffers.kv + buffers.compute:,}",
        f"{others.kv + others.compute:,}",
        f"{held:,} of {mine.cache_bytes:,}",
        "equal" if text == answer(model, plain)[1] else "differ",
    )
    return " | ".join(cells)


def answer(model: Model, run: EngineSettings) -> tuple[MemoryReport, str, int]:
    """Where the bytes are, what is said, and the bytes in the cache at the end."""
    with Engine(model, run, remember=False) as engine:
        loaded = list(engine.load())[-1]
        *events, done = engine.generate(ANSWER)
    assert isinstance(loaded, Loaded) and isinstance(done, Finished)
    text = "".join(event.text for event in events if isinstance(event, Token))
    return loaded.memory, text, done.cache.resident_bytes if done.cache is not None else 0


def main() -> None:
    build_rpc_library()
    print(HEAD)
    rows = []
    with tempfile.TemporaryDirectory() as folder, rpc_server() as endpoint:
        there: dict[str, object] = {"devices": ("RPC0",), "remotes": (endpoint,), "gpu_layers": -1}
        for architecture in ARCHITECTURES:
            model = read_model(generate(architecture, Path(folder)))
            one, one_mapped = measure(model, settings())
            two, two_mapped = measure(model, settings(overrides=((EXPERTS, CPU),), **there))
            print(
                f"| {architecture} | {one} B | {one_mapped:.3f} % | {two} B | {two_mapped:.3f} % |"
            )
            if model.is_moe:
                rows.append(f"| {architecture} | {cached(model, there)} |")
    print(CACHED)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
