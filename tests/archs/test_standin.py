"""Stand-ins have the sizes of the models they stand for, run, and route much as trained ones do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from gguf.quants import dequantize

from localmoe.routing.capacity import even_capacities, lru_curves
from scripts.make_standin import MODELS, main, make_standin
from scripts.routing_curve import natural_trace
from scripts.standin_router import LEAN, leaning
from tests.archs import qwen
from tests.archs.blocks import random_rows, row_bytes
from tests.archs.families import Q4_K_M, Family
from tests.archs.plain import plain_greedy
from tests.archs.recipe import Dims, TensorSpec
from tests.archs.vocabulary import vocabulary
from tests.archs.writer import write

TINY = Family(qwen.qwen3moe, Dims(layers=6, experts=16, used=4, vocab=900), Q4_K_M)
TINY_POOL = 40_000  # bytes: less than one expert, so that every tensor goes round many times


@pytest.mark.process
def test_tiny_standin_generates(tmp_path: Path) -> None:
    """Two of six layers and a synthetic vocabulary: loads, finite, depends on the prompt."""
    path = make_standin(TINY, tmp_path / "tiny.gguf", layers=2, pool_bytes=TINY_POOL)
    first = plain_greedy(path, "The first question", 12)
    second = plain_greedy(path, "What is 42?", 12)
    assert first.finite and second.finite
    assert first.tokens != second.tokens


def test_experts_differ_although_the_pool_is_small(tmp_path: Path) -> None:
    """Every routed expert of every layer has bytes of its own."""
    path = make_standin(TINY, tmp_path / "tiny.gguf", layers=2, pool_bytes=TINY_POOL)
    experts = [
        expert.tobytes()
        for tensor in GGUFReader(path).tensors
        if "_exps" in tensor.name
        for expert in np.asarray(tensor.data)
    ]
    assert len(experts) == 2 * 3 * 16
    assert len(set(experts)) == len(experts)


@pytest.mark.parametrize(
    ("model", "published"), [("qwen3-30b-a3b", 18.6e9), ("gpt-oss-20b", 12.1e9)]
)
def test_full_size_is_the_published_size(model: str, published: float) -> None:
    """All layers together have the size of the published file (rounded as the sites show it)."""
    tensors = MODELS[model].recipe().tensors
    total = sum(spec.rows * row_bytes(spec.shape[0], spec.kind) for spec in tensors)
    assert total == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize(
    ("model", "published"),
    [("gpt-oss-120b", 116.8e9), ("glm-4.7-flash", 30e9), ("qwen3-next-80b-a3b", 80e9)],
)
def test_all_layers_have_the_published_parameters(model: str, published: float) -> None:
    """As many weights as the model's card says."""
    total = sum(math.prod(spec.shape) for spec in MODELS[model].recipe().tensors)
    assert total == pytest.approx(published, rel=0.01)


def test_routers_prefer_some_experts(tmp_path: Path) -> None:
    """A quarter of the experts serves most lookups; of a uniform router's, about a quarter."""
    family = replace(TINY, dims=replace(TINY.dims, experts=64))
    rates = {}
    for uniform in (False, True):
        path = make_standin(
            family, tmp_path / f"{uniform}.gguf", layers=3, pool_bytes=TINY_POOL, uniform=uniform
        )
        trace = natural_trace(path, 16, 96, seed=1)
        rates[uniform] = lru_curves(trace).hit_rate(even_capacities(trace, 0.25))
    assert rates[True] < 0.45 and rates[False] > 0.65


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q8_0, Kind.F16])
def test_embeddings_lean(kind: Kind) -> None:
    """Every block's values are shifted by the same amount in all rows, and keep their spread."""
    rng = np.random.default_rng(0)
    spec = TensorSpec("token_embd.weight", (512, 300), kind, deviation=0.5)
    rows = random_rows(rng, 300, 512, kind, 0.5)
    leaning(spec, rng)(rows)
    values = dequantize(rows, kind).reshape(300, 512)
    means = values.mean(axis=0)
    assert np.abs(means) == pytest.approx(LEAN * 0.5, rel=0.9)
    assert np.abs(means).mean() == pytest.approx(LEAN * 0.5, rel=0.15)
    assert (values - means).std() == pytest.approx(0.5, rel=0.4)


def test_same_seed_same_file(tmp_path: Path) -> None:
    """Calibrated by a run of the model, and still the same bytes each time."""
    paths = tmp_path / "one" / "tiny.gguf", tmp_path / "two" / "tiny.gguf"
    for path in paths:
        path.parent.mkdir()
        make_standin(TINY, path, layers=2, pool_bytes=TINY_POOL)
    one, two = paths
    assert one.read_bytes() == two.read_bytes()


def test_program_writes_the_asked_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line gives a file of the named architecture with N layers."""
    path = tmp_path / "olmoe.gguf"
    assert main(["olmoe-1b-7b", "--layers", "1", "--vocab", "600", "-o", str(path)]) == 0
    reader = GGUFReader(path)
    count = reader.get_field("olmoe.block_count")
    assert count is not None and count.contents() == 1
    assert "MB/s" in capsys.readouterr().out


def test_program_says_when_the_disk_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that does not exist is one line on standard error and status 1."""
    assert main(["olmoe-1b-7b", "--layers", "1", "-o", str(tmp_path / "no" / "x.gguf")]) == 1
    assert "make_standin:" in capsys.readouterr().err


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """When the data cannot be written, no file of any name stays behind."""

    def full_disk(spec: TensorSpec) -> np.ndarray:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write(
            TINY.recipe(),
            tmp_path / "x.gguf",
            data=full_disk,
            vocabulary=vocabulary(900),
            file_type=Q4_K_M.file_type,
            name="x",
        )
    assert not list(tmp_path.iterdir())
