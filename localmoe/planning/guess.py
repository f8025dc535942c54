"""A first guess of where a model would live, from its size alone: no header has been read.

Marked approximate wherever it is shown. It rests on one rule of thumb: beside its weights a model
takes a tenth of them, at least 1 and at most 8 GiB, for KV cache and buffers at a modest context.
"""

from __future__ import annotations

from localmoe.facts.hardware import Machine
from localmoe.planning.budget import CHECKPOINT_BYTES, GIB, PROCESS_BYTES, budget_beside
from localmoe.planning.plan import Verdict, Wishes


def guess(size: int, machine: Machine, wishes: Wishes, promised_ram: int = 0) -> Verdict:
    """The verdict that ``size`` bytes of weights suggest.

    That experts can be read from the disk is assumed up to eight times the memory there is: the
    share that every token needs is a tenth of a large model or less.
    """
    own = PROCESS_BYTES + CHECKPOINT_BYTES
    budget = budget_beside(own, machine, wishes, promised_ram)
    need = size + min(max(size // 10, GIB), 8 * GIB)
    ram, vram = budget.ram, budget.vram
    if vram and need <= vram:
        return Verdict.GPU
    if need <= ram + vram:
        return Verdict.GPU_RAM if vram else Verdict.RAM
    if size <= 8 * (ram + vram):
        return Verdict.GPU_RAM_DISK if vram else Verdict.RAM_DISK
    return Verdict.NO
