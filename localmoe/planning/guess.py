"""A first guess of which memories a model needs, from its file size alone, before any header.

Marked approximate wherever it is shown. The rule of thumb: KV cache and buffers at a modest context
take a tenth of the weights' size, at least 1 GiB and at most 8 GiB.
"""

from __future__ import annotations

from localmoe.facts.hardware import Machine
from localmoe.planning.budget import CHECKPOINT_BYTES, GIB, PROCESS_BYTES, budget_beside
from localmoe.planning.plan import Verdict, Wishes


def guess(size: int, machine: Machine, wishes: Wishes, promised_ram: int = 0) -> Verdict:
    """The verdict that ``size`` bytes of weights suggest.

    Reading experts from the disk is taken to work for models of up to eight times the memory: of
    a large MoE model every token needs a tenth or less (attention, shared experts, embedding).
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
