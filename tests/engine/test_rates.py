"""The engine times its own kernels: figures that fit together, of the processor and of a device."""

from __future__ import annotations

import os

import pytest

from localmoe.engine.timing import device_rate, processor_rates
from localmoe.facts.bandwidth import Curve, Rates, value_at
from localmoe.facts.ggml_types import TENSOR_TYPES

pytestmark = pytest.mark.process

WEIGHTS_PER_BYTE = {kind.name: kind.block_size / kind.block_bytes for kind in TENSOR_TYPES.values()}


@pytest.fixture(scope="module")
def rates() -> Rates:
    return processor_rates(min(2, os.cpu_count() or 1))


def test_types_are_timed_and_the_figures_fit_together(rates: Rates) -> None:
    """Weights cannot be multiplied faster than memory delivers them, by much; many tokens at once
    are multiplied faster than one after the other; an operation takes a microsecond or so.

    The bounds are wide: other programs run beside the tests.
    """
    threads = rates.ram[-1][0]
    memory = value_at(rates.ram, threads)
    assert 1e9 < memory < 1e13
    assert "Q4_K" in rates.types  # on a busy machine the time may be over before all are
    for kind, rate in rates.types.items():
        read = value_at(rate.vector, threads)
        assert 1e8 < read < 4 * memory, kind
        for batch in (rate.dense, rate.experts):
            assert value_at(batch, threads) > 0.2 * read * WEIGHTS_PER_BYTE[kind], kind
    assert 1e-8 < value_at(rates.node_s, threads) < 1e-3
    figures: tuple[Curve, ...] = (rates.attention, rates.attention_batch, rates.scan, rates.delta)
    assert all(1e7 < value_at(curve, threads) < 1e14 for curve in figures)
    assert rates.measured and rates.when


def test_a_remote_device_is_timed_like_a_gpu(rpc_endpoint: str) -> None:
    """The second device of the tests has figures of every kind, and copies cost time."""
    device = device_rate("RPC0", [rpc_endpoint])
    assert device is not None
    assert device.device == "RPC0"
    assert 1e6 < device.to_device < 1e12 and 1e6 < device.from_device < 1e12
    assert 1e-6 < device.sync_s < 1 and 1e-9 < device.node_s < 1e-1
    assert all(value_at(rate.vector, 1) > 1e7 for rate in device.types.values())
