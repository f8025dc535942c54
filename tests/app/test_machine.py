"""Memory and machines that are not this one, as the planner gets them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localmoe.app.machine import apply_limits
from localmoe.errors import UsageError
from localmoe.facts.hardware import Gpu
from localmoe.planning.plan import Wishes
from tests.planning.invented import GIB, machine

IDLE = Gpu("some card", 8 * GIB, 8 * GIB, False, None, "cuda")


def test_ram_is_taken_at_its_word() -> None:
    """More than there is raises the total, too; less leaves it."""
    small = machine(16)
    more = apply_limits(small, Wishes(ram=64 * GIB), hypothetical=True)
    assert (more.ram_total, more.ram_available) == (64 * GIB, 64 * GIB)
    less = apply_limits(small, Wishes(ram=4 * GIB), hypothetical=True)
    assert (less.ram_total, less.ram_available) == (16 * GIB, 4 * GIB)


def test_vram_without_a_gpu_supposes_one() -> None:
    """An idle GPU lends its name; its device is none of this engine's."""
    (supposed,) = apply_limits(machine(16), Wishes(vram=8 * GIB), hypothetical=True).gpus
    assert (supposed.total, supposed.free, supposed.in_engine) == (8 * GIB, 8 * GIB, False)
    with_idle = replace(machine(16), gpus=(IDLE,))
    (supposed,) = apply_limits(with_idle, Wishes(vram=6 * GIB), hypothetical=True).gpus
    assert (supposed.name, supposed.free, supposed.backend) == ("some card", 6 * GIB, "cuda")
    assert supposed.device is not None


def test_vram_with_a_gpu_leaves_the_machine_to_the_planner() -> None:
    with_gpu = machine(16, 8)
    assert apply_limits(with_gpu, Wishes(vram=4 * GIB), hypothetical=True) == with_gpu
    assert apply_limits(with_gpu, Wishes(vram=4 * GIB), hypothetical=False) == with_gpu


def test_a_run_supposes_nothing() -> None:
    """What is loaded needs a real device; no GPU memory at all is a wish that can be met."""
    with pytest.raises(UsageError, match="no GPU") as caught:
        apply_limits(machine(16), Wishes(vram=8 * GIB), hypothetical=False)
    assert caught.value.hint
    assert apply_limits(machine(16), Wishes(vram=0), hypothetical=False) == machine(16)


def test_a_gpu_that_is_only_asked_about_is_called_by_its_size() -> None:
    """There is no card to name."""
    (asked_about,) = apply_limits(machine(16), Wishes(vram=8 * GIB), hypothetical=True).gpus
    assert asked_about.name == "GPU with 8.0 GiB"
