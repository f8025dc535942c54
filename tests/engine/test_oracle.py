"""What the dry run predicts is what a real load takes: per architecture, context, KV type, device.

In the load mode of the dry run (tensors read into buffers) the figures agree to the byte. With a
mapping, weights on the host are counted by llama.cpp as the span from the first to the last tensor
that is there; where nothing else lies in between, that is the same up to alignment.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.engine import protocol
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import LocalmoeError, ModelFileError
from localmoe.facts.model import Model, read_model
from localmoe.planning.layout import home_of, layer_homes
from localmoe.planning.memory import CPU, EngineSettings, MemoryReport
from tests.archs import ARCHITECTURES

pytestmark = pytest.mark.process

CONTEXTS = (512, 2048, 4096)
KV_TYPES = ("f16", "q8_0")


def real_load(worker: WorkerProcess, model: Model, settings: EngineSettings) -> MemoryReport:
    """What the engine says after really loading."""
    paths = [str(path) for path in model.paths]
    *_, last = worker.request("load", paths=paths, settings=dataclasses.asdict(settings))
    return protocol.report_from_json(last["memory"])


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess()
    yield process
    process.close()


def matrix(**fixed: object) -> Iterator[EngineSettings]:
    for context in CONTEXTS:
        for kv in KV_TYPES:
            yield EngineSettings(context, type_k=kv, type_v=kv, **fixed)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_device(
    architecture: str, arch_file: Callable[[str], Path], worker: WorkerProcess
) -> None:
    """Equal to the byte without a mapping; within 1 % with the mapping that runs use."""
    model = read_model(arch_file(architecture))
    with Oracle(model) as oracle:
        for settings in matrix():
            predicted = oracle(settings)
            read_in = dataclasses.replace(settings, load_mode="none")
            assert oracle(read_in) == real_load(worker, model, read_in)
            mapped = real_load(worker, model, settings)
            assert (mapped.kv, mapped.compute) == (predicted.kv, predicted.compute)
            assert mapped.weights == pytest.approx(predicted.weights, rel=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_devices(
    architecture: str,
    arch_file: Callable[[str], Path],
    rpc_endpoint: str,
) -> None:
    """The same, all layers on a second device except the experts of two, which stay on the host."""
    model = read_model(arch_file(architecture))
    overrides = ((r"^blk\.(0|1)\.ffn_(gate|up|down|gate_up)_(ch)?exps", CPU),)
    there = {"devices": ("RPC0",), "remotes": (rpc_endpoint,)}
    runs = list(matrix(gpu_layers=-1, overrides=overrides, **there))
    runs += [dataclasses.replace(runs[0], context=1024, gpu_layers=2, overrides=())]
    with Oracle(model) as oracle:  # and then the loads: a server has one client at a time
        predictions = [
            (oracle(settings), oracle(dataclasses.replace(settings, load_mode="none")))
            for settings in runs
        ]
    with contextlib.closing(WorkerProcess()) as worker:
        for settings, (predicted, read_in) in zip(runs, predictions, strict=True):
            assert predicted.on("RPC0").weights > 0
            none = dataclasses.replace(settings, load_mode="none")
            assert read_in == real_load(worker, model, none)
            mapped = real_load(worker, model, settings)
            assert mapped.on("RPC0") == predicted.on("RPC0")
            assert mapped.on(CPU).kv == predicted.on(CPU).kv
            assert mapped.on(CPU).compute == predicted.on(CPU).compute
            # The mapping's span is address space; what is used of it is what was predicted.
            span = host_span(model, settings)
            assert mapped.on(CPU).weights == pytest.approx(span, rel=0.01)
            assert predicted.on(CPU).weights <= mapped.on(CPU).weights * 1.01
            assert host_bytes(model, settings) == pytest.approx(predicted.on(CPU).weights, rel=0.01)


def host_bytes(model: Model, settings: EngineSettings) -> int:
    """Bytes of the tensors that our restatement of llama.cpp's rules puts on the host."""
    homes = layer_homes(model, settings)
    loaded = (tensor for tensor in model.tensors if tensor.loaded)
    return sum(t.nbytes for t in loaded if home_of(t, settings, homes) == CPU)


def host_span(model: Model, settings: EngineSettings) -> int:
    """Bytes from the first to the last tensor on the host, per part."""
    homes = layer_homes(model, settings)
    spans: dict[int, tuple[int, int]] = {}
    for tensor in model.tensors:
        if home_of(tensor, settings, homes) == CPU:
            first, last = spans.get(tensor.part, (tensor.offset, 0))
            end = tensor.offset + tensor.nbytes
            spans[tensor.part] = (min(first, tensor.offset), max(last, end))
    return sum(last - first for first, last in spans.values())


def test_a_header_is_enough(arch_file: Callable[[str], Path], tmp_path: Path) -> None:
    """The header alone, extended to full size by a hole, gives the same answer as the file."""
    model = read_model(arch_file("qwen3moe"))
    skeleton = tmp_path / "skeleton.gguf"
    skeleton.write_bytes(model.paths[0].read_bytes()[: model.header_bytes])
    with skeleton.open("r+b") as file:
        file.truncate(model.size)
    settings = EngineSettings(context=1024)
    remote = dataclasses.replace(model, paths=(skeleton,))
    with Oracle(model) as whole, Oracle(remote) as header:
        assert header(settings) == whole(settings)


def test_bad_files_are_errors_not_crashes(arch_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Whatever the file, the answer is a typed error."""
    from tests.archs import bad_files

    good = read_model(arch_file("qwen3moe"))
    for path in bad_files(tmp_path).values():
        bad = dataclasses.replace(good, paths=(path,))
        with Oracle(bad) as oracle, pytest.raises(LocalmoeError):
            oracle(EngineSettings(context=512))


def test_unknown_architecture_says_so(tmp_path: Path) -> None:
    """llama.cpp's reason is in the message."""
    from tests.archs import bad_files

    model = read_model(bad_files(tmp_path)["unknown_architecture"])
    with Oracle(model) as oracle, pytest.raises(ModelFileError, match="unheard_of"):
        oracle(EngineSettings(context=512))


def test_one_ggml_in_the_process(arch_file: Callable[[str], Path], worker: WorkerProcess) -> None:
    """Only one copy of each ggml library is mapped: two would have two device registries."""
    model = read_model(arch_file("qwen3moe"))
    real_load(worker, model, EngineSettings(context=512))
    maps = Path(f"/proc/{worker.pid}/maps")
    if not maps.exists():
        pytest.skip("no process map on this system")
    libraries = {line.split()[-1] for line in maps.read_text().splitlines() if "libggml" in line}
    stems = [Path(name).name.split(".")[0] for name in libraries]
    assert sorted(stems) == sorted(set(stems)), libraries


def test_the_helpers_absence_is_stated(
    arch_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiled helper the totals still come, marked inexact and within 1 %."""
    model = read_model(arch_file("qwen3moe"))
    settings = EngineSettings(context=4096)
    with Oracle(model) as oracle:
        exact = oracle(settings)
    monkeypatch.setenv("LOCALMOE_NO_NATIVE", "1")
    with Oracle(model) as oracle:
        totals = oracle(settings)
    assert exact.exact
    assert not totals.exact
    assert totals.total == pytest.approx(exact.total, rel=0.01)
