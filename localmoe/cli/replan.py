"""What a new plan changed, when memory that was planned is gone at load. Pure."""

from __future__ import annotations

from localmoe.planning.plan import Plan
from localmoe.text import format_bytes


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
