"""How fast ggml computes here: its own kernels timed on made-up weights, in a few seconds.

What bounds decoding on a processor is often not memory but ggml's multiplication of a quantized
matrix with a vector, and that differs from type to type. So each type is timed with the operations
that a Mixture-of-Experts graph consists of: one token through many experts whose weights come from
memory, and many tokens at once. The weights are random bytes that no type reads as a denormal
number or an infinity; speed depends on no more than that. They lie in small pages, like a file's.

Runs in the worker process.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import mmap
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from localmoe.engine.worker import ggml_graph
from localmoe.engine.worker.ggml_graph import NODES, Backend, Graph
from localmoe.facts.bandwidth import DeviceRate, Rates, TypeRate
from localmoe.facts.load import Load

# fmt: off
TYPES = (
    "Q4_K", "Q6_K", "Q8_0", "F16", "F32", "MXFP4", "Q5_K", "Q3_K", "IQ4_XS", "Q4_0", "BF16",
    "IQ4_NL", "Q2_K", "Q5_0", "Q4_1", "Q5_1", "IQ3_S", "IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S",
    "IQ1_M", "IQ1_S", "NVFP4", "TQ1_0", "TQ2_0",
)
# fmt: on
"""The commonest types come first: those that are not reached in time are not measured."""
DEVICE_TYPES = ("Q4_K", "Q6_K", "Q8_0", "F16", "MXFP4")
SECONDS = 6.0  # after so long, in all passes together, no further type is begun
PASSES, RUNS = 2, 3  # the faster pass counts: other programs only slow it down

REGION = 192 << 20  # bytes of weights; several times the processor's caches
DEVICE_REGION, COPIED = 128 << 20, 16 << 20
WINDOW = 24 << 20  # bytes that one token reads in one run
DEVICE_REPEAT = 4  # operations in a row on a device: to start one takes longer than to compute it
WIDTH, ROWS = 2048, 768  # of an expert's matrix, as in Qwen3-30B-A3B
LARGE = 4096  # rows of a matrix that every token uses
TOKENS, BATCH_ROWS, BATCH_EXPERTS, USED = 128, 512, 8, 2  # of a batch
HEADS, HEAD, CACHED, LAYERS = 32, 128, 512, 8  # of attention
QUERIES = 64  # tokens; with as many ggml begins to use its tiled kernel, which prompts run on
STATE, STATE_HEADS, STATE_HEAD, SCANNED = 128, 32, 64, 16  # of a recurrent layer
MEMORY_SECONDS = 0.1  # for which each number of threads reads memory
_PIECE = 2 << 20  # bytes between two looks at the clock


def measure(threads: int) -> Rates:
    """The rates of the processor and its memory with 1 … ``threads`` threads.

    Disk and devices are not measured. Raises MemoryError without 192 MiB of free memory.
    """
    region = _region()
    load = Load()
    ram = tuple((float(n), _memory_speed(region, n)) for n in _counts(threads))
    counts = sorted({1, threads})
    with Backend("CPU", region.nbytes, region.ctypes.data) as cpu:
        _vector(cpu, "Q4_K")  # the first one starts the threads
        best: dict[str, dict[int, float]] = {}
        for _ in range(PASSES):
            begun = time.perf_counter()
            for name, act in _acts(cpu):
                late = time.perf_counter() - begun > SECONDS / PASSES
                if late and name not in _essential():
                    continue
                for count in counts:
                    cpu.use_threads(count)
                    known = best.setdefault(name, {})
                    known[count] = max(known.get(count, 0.0), act())
    curves = {
        name: tuple((float(count), max(found[n] for n in counts if n <= count)) for count in counts)
        for name, found in best.items()
    }
    return Rates(
        measured=True,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        others=load.others(),
        ram=ram,
        types={
            kind: TypeRate(*(curves[f"{kind} {name}"] for name in _KERNELS))
            for kind in TYPES
            if all(f"{kind} {name}" in curves for name in _KERNELS)
        },
        attention=curves["attention"],
        attention_batch=curves["attention_batch"],
        scan=curves["scan"],
        delta=curves["delta"],
        node_s=tuple((float(count), 1 / best["nodes"][count]) for count in counts),
    )


def _essential() -> set[str]:
    """The timings that are made even when time is up: no forecast is possible without them."""
    return {
        "nodes",
        "attention",
        "attention_batch",
        "scan",
        "delta",
        *(f"{TYPES[0]} {n}" for n in _KERNELS),
    }


def _acts(cpu: Backend) -> Iterator[tuple[str, Callable[[], float]]]:
    """(name, timing) of everything that is timed on the processor; a timing returns a rate."""
    yield "nodes", lambda: _nodes(cpu)
    yield "attention", lambda: _attention(cpu, 1, LAYERS)
    yield "attention_batch", lambda: _attention(cpu, QUERIES)
    yield "scan", lambda: _scan(cpu)
    yield "delta", lambda: _delta(cpu)
    for kind in TYPES:
        for name, act in _KERNELS.items():
            yield f"{kind} {name}", functools.partial(act, cpu, kind)


def _counts(threads: int) -> list[int]:
    """1, 2, 4 … and ``threads``."""
    return sorted({min(1 << power, threads) for power in range(threads.bit_length() + 1)})


def _region() -> NDArray[np.uint16]:
    """Pairs of bytes of which no type reads a scale beyond what a float can square.

    The upper byte makes each an ordinary f16, and the upper half of an ordinary f32; the lower one
    is between 64 and 191, for types whose scale is a byte (MXFP4: 2 to the power of it, less 127).
    As f16 they are of two powers of 2, like the scales of a trained matrix: ggml converts them by a
    table of 256 KB, and those of all powers would not stay in the processor's nearest cache.
    """
    memory = mmap.mmap(-1, REGION)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    region = np.frombuffer(memory, np.uint16)
    piece = np.random.default_rng(0).integers(0, 1 << 16, 1 << 22, dtype=np.uint16)
    region[:] = np.resize((piece & 0x8700 | 0x3000) + (piece & 0x7F) + 0x40, region.size)
    return region


def _memory_speed(region: NDArray[np.uint16], threads: int) -> float:
    """Bytes per second that ``threads`` threads read together."""
    parts = np.array_split(region.view(np.int64), threads)
    counts = [0] * threads
    start = time.perf_counter()
    stop = start + MEMORY_SECONDS

    def read(number: int) -> None:
        pieces = itertools.cycle(np.array_split(parts[number], 1 + parts[number].nbytes // _PIECE))
        while time.perf_counter() < stop:
            piece = next(pieces)
            piece.max()  # numpy's fastest reduction; it runs without the interpreter's lock
            counts[number] += piece.nbytes

    workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def _vector(backend: Backend, kind: str, repeat: int = 1) -> float:
    """Bytes of weights per second, one token through many experts.

    Each run reads weights that were not read lately.
    """
    expert = ggml_graph.nbytes(kind, WIDTH, ROWS)
    count = WINDOW // expert

    def once() -> float:
        with Graph(backend) as graph:
            token, ids = graph.input(WIDTH, 1, 1), graph.indices([range(count)])
            for _ in range(repeat):
                experts = graph.weights(kind, WIDTH, ROWS, count)
                graph.add(ggml_graph.mul_mat_id(graph.context, experts, token, ids))
            graph.ready()
            return graph.compute()

    return repeat * count * expert / statistics.median(once() for _ in range(RUNS))


def _row(backend: Backend, kind: str, repeat: int = 1) -> float:
    """Bytes of weights per second, one token through one matrix."""
    size = ggml_graph.nbytes(kind, WIDTH, LARGE)

    def once() -> float:
        with Graph(backend) as graph:
            token = graph.input(WIDTH, 1)
            for _ in range(repeat):
                matrix = graph.weights(kind, WIDTH, LARGE)
                graph.add(ggml_graph.mul_mat(graph.context, matrix, token))
            graph.ready()
            return graph.compute()

    return repeat * size / statistics.median(once() for _ in range(RUNS))


def _dense(backend: Backend, kind: str, repeat: int = 1) -> float:
    """Weights × tokens per second, one matrix for all tokens.

    With fewer rows it would be slower: each matrix has the tokens brought into its kernel's form.
    """
    with Graph(backend) as graph:
        tokens = graph.input(WIDTH, TOKENS)
        for _ in range(repeat):
            matrix = graph.weights(kind, WIDTH, WIDTH)
            graph.add(ggml_graph.mul_mat(graph.context, matrix, tokens))
        return repeat * WIDTH * WIDTH * TOKENS / _fastest(graph)


def _experts(backend: Backend, kind: str, repeat: int = 1) -> float:
    """Weights × tokens per second, when each expert gets some of the tokens."""
    chosen = [[(token + 5 * i) % BATCH_EXPERTS for i in range(USED)] for token in range(TOKENS)]
    with Graph(backend) as graph:
        tokens, ids = graph.input(WIDTH, 1, TOKENS), graph.indices(chosen)
        for _ in range(repeat):
            experts = graph.weights(kind, WIDTH, BATCH_ROWS, BATCH_EXPERTS)
            graph.add(ggml_graph.mul_mat_id(graph.context, experts, tokens, ids))
        return repeat * WIDTH * BATCH_ROWS * TOKENS * USED / _fastest(graph)


_KERNELS = {"vector": _vector, "row": _row, "dense": _dense, "experts": _experts}


def _attention(backend: Backend, queries: int, repeat: int = 1) -> float:
    """Multiplications per second of ``queries`` tokens against a cache in f16.

    As in llama.cpp, the heads of one cached token lie side by side; and no cache is read twice.
    """
    groups = HEADS // 4

    def once() -> float:
        with Graph(backend) as graph:
            query, mask = graph.input(HEAD, queries, HEADS), graph.weights("F16", CACHED, queries)
            for _ in range(repeat):
                key, value = (graph.rows("F16", HEAD, CACHED, groups) for _ in range(2))
                operands = (query, key, value, mask, HEAD**-0.5, 0.0, 0.0)
                graph.add(ggml_graph.attention(graph.context, *operands))
            graph.ready()
            return graph.compute()

    return repeat * 2 * HEAD * HEADS * CACHED * queries / min(once() for _ in range(RUNS))


def _delta(backend: Backend) -> float:
    """Elements of a gated delta net's state that tokens go through, per second."""
    with Graph(backend) as graph:
        query, key, value = (graph.input(STATE, STATE_HEADS, SCANNED, 1) for _ in range(3))
        gate, beta = (graph.input(1, STATE_HEADS, SCANNED, 1) for _ in range(2))
        state = graph.input(STATE, STATE, STATE_HEADS, 1)
        operands = (query, key, value, gate, beta, state)
        graph.add(ggml_graph.delta_net(graph.context, *operands, 1))
        return STATE * STATE * STATE_HEADS * SCANNED / _fastest(graph)


def _scan(backend: Backend) -> float:
    """Elements of a Mamba-2 layer's state that tokens go through, per second."""
    with Graph(backend) as graph:
        operands = (
            graph.input(STATE, STATE_HEAD, STATE_HEADS, 1),
            graph.input(STATE_HEAD, STATE_HEADS, SCANNED, 1),
            graph.input(STATE_HEADS, SCANNED, 1),
            graph.input(1, STATE_HEADS),
            graph.input(STATE, 1, SCANNED, 1),
            graph.input(STATE, 1, SCANNED, 1),
            graph.indices([[0]]),
        )
        graph.add(ggml_graph.scan(graph.context, *operands, 1))
        return STATE * STATE_HEAD * STATE_HEADS * SCANNED / _fastest(graph)


def _nodes(backend: Backend) -> float:
    """Operations per second that compute next to nothing."""
    with Graph(backend) as graph:
        row, other = graph.input(WIDTH), graph.input(WIDTH)
        for _ in range(NODES):
            row = ggml_graph.add(graph.context, row, other)
        graph.add(row)
        return NODES / _fastest(graph)


def _fastest(graph: Graph) -> float:
    """Seconds of one computation, after one that does not count."""
    graph.ready()
    graph.compute()
    return min(graph.compute() for _ in range(RUNS))


def measure_device(name: str) -> DeviceRate | None:
    """The rates of a GPU or a remote device; None when it has too little free memory."""
    data = _region()
    size = min(DEVICE_REGION, data.nbytes)
    try:
        with Backend(name, size) as device, Graph(device) as graph:
            whole, small = graph.weights("I8", COPIED), graph.weights("I8", WIDTH)
            source = data.ctypes.data
            ggml_graph.copy_seconds(whole, source, COPIED)
            there, back = ggml_graph.copy_seconds(whole, source, COPIED)
            trips = [sum(ggml_graph.copy_seconds(small, source, WIDTH)) for _ in range(9)]
            types: dict[str, TypeRate] = {}
            begun = time.perf_counter()
            for kind in DEVICE_TYPES:
                if types and time.perf_counter() - begun > SECONDS:
                    break
                types[kind] = TypeRate(
                    *(((1.0, act(device, kind, DEVICE_REPEAT)),) for act in _KERNELS.values())
                )
            return DeviceRate(
                device=name,
                types=types,
                node_s=1 / _nodes(device),
                sync_s=statistics.median(trips),
                to_device=COPIED / there,
                from_device=COPIED / back,
            )
    except MemoryError:
        return None
