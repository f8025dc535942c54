"""When memory that was planned is gone at load: one new plan with what is really free. Pure."""

from __future__ import annotations

from localmoe.cli.output import Output
from localmoe.errors import DoesNotFitError, EngineMemoryError
from localmoe.planning.plan import Plan
from localmoe.text import format_bytes


def settle(error: EngineMemoryError, plan: Plan, other: Plan, output: Output) -> Plan:
    """The plan to load after ``plan`` met with ``error``: ``other``, made with what is free now.

    Raises ``error`` where both are the same, and DoesNotFitError where nothing fits any more.
    """
    if not other.verdict.fits:
        hint = other.advice[0] if other.advice else None
        raise DoesNotFitError(f"memory was taken meanwhile: {other.reason}", hint=hint) from error
    if other.settings == plan.settings:
        raise error
    output.note(f"{error.message}; planned anew with what is free now: {moved(plan, other)}")
    return other


def moved(before: Plan, after: Plan) -> str:
    """``GPU 7.0 GiB → 3.1 GiB, RAM 9.0 GiB → 12.9 GiB``: the tiers that have changed."""
    tiers = (
        ("GPU", before.tiers.gpu, after.tiers.gpu),
        ("RAM", before.tiers.ram, after.tiers.ram),
        ("disk", before.tiers.disk, after.tiers.disk),
    )
    changes = [
        f"{name} {format_bytes(old)} → {format_bytes(new)}"
        for name, old, new in tiers
        if old != new
    ]
    return ", ".join(changes) or f"{after.settings.context:,} tokens of context"
