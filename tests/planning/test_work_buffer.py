"""ggml's work buffer, against its formula worked out by hand."""

from __future__ import annotations

from localmoe.planning.memory import CPU
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Wishes
from localmoe.planning.work_buffer import work_buffer_of
from tests.planning.catalog import adding_engine, published
from tests.planning.invented import machine


def test_the_row_map_of_many_experts() -> None:
    """512 experts, 10 per token, 4,096 tokens: 168 MB, beside the batch made ready for them."""
    buffer = work_buffer_of(published("qwen3-next-80b-a3b"))
    row_map = 512 * 10 * 4096 * 8
    values = 10 * 512 * 4096 * 292 // 256  # the down projection's inputs
    size = buffer.size(4096, experts_on_host=True)
    assert row_map + values <= size <= row_map + values + 100_000
    assert buffer.size(4096, experts_on_host=False) < row_map


def test_a_plan_counts_it() -> None:
    """In the host's buffers, growing with the batch, and less where the experts are on a GPU."""
    model = published("qwen3-30b-a3b")
    measure = adding_engine(model)
    plan = make_plan(model, machine(64), Wishes(context=8192), measure)
    told = measure(plan.settings).on(CPU).compute
    expected = work_buffer_of(model).size(512, experts_on_host=True)
    assert plan.memory.on(CPU).compute == told + expected
    on_gpu = make_plan(model, machine(64, 48), Wishes(context=8192), measure)
    bare = measure(on_gpu.settings).on(CPU).compute
    assert 0 < on_gpu.memory.on(CPU).compute - bare < expected
