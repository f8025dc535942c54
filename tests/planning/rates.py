"""An invented machine's rates, round enough to check sums by hand."""

from __future__ import annotations

from localmoe.facts.bandwidth import DeviceRate, DiskRate, Rates, TypeRate

VECTOR = 10e9  # bytes/s of any type, with 8 threads
TYPE = TypeRate(
    vector=((1.0, 2e9), (8.0, VECTOR)),
    row=((1.0, 2e9), (8.0, VECTOR)),
    dense=((1.0, 50e9), (8.0, 400e9)),
    experts=((1.0, 30e9), (8.0, 200e9)),
)
GPU_TYPE = TypeRate(((1.0, 400e9),), ((1.0, 400e9),), ((1.0, 20e12),), ((1.0, 10e12),))
RATES = Rates(
    measured=True,
    when="2026-01-01T00:00:00+00:00",
    others=0.0,
    ram=((1.0, 15e9), (8.0, 40e9)),
    types={"Q8_0": TYPE, "Q4_K": TYPE, "F16": TYPE},
    attention=((1.0, 5e9), (8.0, 20e9)),
    attention_batch=((1.0, 10e9), (8.0, 60e9)),
    scan=((1.0, 1e9), (8.0, 4e9)),
    delta=((1.0, 1e9), (8.0, 4e9)),
    node_s=((1.0, 1e-6), (8.0, 2e-6)),
    disk=(DiskRate("1", ((131072.0, 0.5e9), (4194304.0, 2e9)), 1e9),),
    devices=(DeviceRate("GPU0", {"Q8_0": GPU_TYPE, "F16": GPU_TYPE}, 2e-6, 3e-5, 12e9, 12e9),),
)
