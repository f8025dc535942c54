"""What a plan would be with more memory, worked out without asking the engine again. Pure."""

from __future__ import annotations

import dataclasses

from localmoe.planning.plan import CachePlan, LayerPlacement, Plan, Tiers, Verdict

_WITHOUT_DISK = {
    Verdict.RAM_DISK: Verdict.RAM,
    Verdict.GPU_DISK: Verdict.GPU_RAM,
    Verdict.GPU_RAM_DISK: Verdict.GPU_RAM,
}


def with_enough_ram(plan: Plan) -> Plan:
    """``plan`` on a machine whose RAM also holds the experts that are now read from the disk.

    The batch stays as small as the expert cache has made it; a new plan would use a larger one, so
    a forecast of the result is a little too slow for prompts.
    """
    layers = tuple(map(_in_ram, plan.layers))
    experts = sum(layer.experts_ram for layer in layers)
    return dataclasses.replace(
        plan,
        verdict=_WITHOUT_DISK.get(plan.verdict, plan.verdict),
        settings=dataclasses.replace(plan.settings, cache="off", cache_bytes=0, read_ahead=True),
        tiers=Tiers(plan.tiers.gpu, plan.tiers.ram + plan.tiers.disk, 0),
        layers=layers,
        cache=CachePlan("resident", experts, "all experts fit in memory"),
        ram_budget=plan.ram_budget + plan.missing_ram,
        missing_ram=0,
    )


def _in_ram(layer: LayerPlacement) -> LayerPlacement:
    return dataclasses.replace(
        layer,
        experts="ram" if layer.experts == "disk" else layer.experts,
        experts_ram=layer.experts_ram + layer.experts_disk,
        experts_disk=0,
    )
