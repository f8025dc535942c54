"""A plan with the speed that it should have, and with what its advice would bring."""

from __future__ import annotations

from collections.abc import Callable

from localmoe.cli import forecasting, speeds
from localmoe.cli.arguments import Options
from localmoe.cli.learning import corrections
from localmoe.cli.output import Output
from localmoe.facts import bandwidth
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast, forecast
from localmoe.planning.what_if import with_enough_ram
from localmoe.routing import profile


def expected(
    model: Model, plan: Plan, machine: Machine, options: Options, output: Output
) -> tuple[Plan, Forecast | None]:
    """The plan, its advice told with a speed, and its forecast; None where nothing is known.

    A machine that was not measured yet is measured now, which takes some seconds.
    """

    def of(plan: Plan) -> Forecast | None:
        return forecasting.forecast_for(model, plan, machine, options, output)

    return _with_advice(plan, of)


def known(model: Model, plan: Plan, machine: Machine) -> tuple[Plan, Forecast | None]:
    """The same by what was measured before: nobody is kept waiting."""
    key = forecasting.key_of(machine)
    rates = bandwidth.load(key)
    if rates is None:
        return plan, None
    disk = rates.on_disk(bandwidth.disk_of(model.paths[0]))
    if disk is None and plan.tiers.disk:
        return plan, None
    kept = rates.with_disk(disk) if disk else rates
    used = profile.load(profile.key_of(model)) if model.is_moe else None

    def of(plan: Plan) -> Forecast:
        decode, prefill = corrections(model, plan, key)
        return forecast(model, plan, kept, profile=used, decode=decode, prefill=prefill)

    return _with_advice(plan, of)


def _with_advice(plan: Plan, of: Callable[[Plan], Forecast | None]) -> tuple[Plan, Forecast | None]:
    now = of(plan) if plan.verdict.fits else None
    if now is None or not plan.missing_ram or not plan.advice:
        return plan, now
    then = of(with_enough_ram(plan))
    return (speeds.with_speed(plan, now, then) if then else plan), now
