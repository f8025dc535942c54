"""The speed to expect of a plan, and how much faster its advice would make it."""

from __future__ import annotations

from collections.abc import Callable

from localmoe.app import rates, speeds
from localmoe.app.experience import corrections
from localmoe.app.listener import Listener
from localmoe.app.machine_file import read_rates
from localmoe.app.requests import PlanRequest
from localmoe.facts import bandwidth
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast, forecast
from localmoe.planning.what_if import with_enough_ram
from localmoe.routing import profile


def forecast_for(
    model: Model, plan: Plan, machine: Machine, request: PlanRequest, listener: Listener
) -> Forecast | None:
    """The speed of this plan, from the measured rates of the machine that it is for.

    None if the plan does not fit, or if the machine has no rates: its file has none, or it could
    not be measured.
    """
    if not plan.verdict.fits:
        return None
    known = profile.load(profile.key_of(model)) if model.is_moe else None
    if request.machine is not None:
        elsewhere = read_rates(request.machine)
        return forecast(model, plan, elsewhere, profile=known) if elsewhere else None
    measured = rates.rates_for(model, plan, machine, listener)
    if measured is None:
        return None
    decode, prefill = corrections(model, plan, rates.key_of(machine))
    return forecast(model, plan, measured, profile=known, decode=decode, prefill=prefill)


def with_forecast(
    model: Model, plan: Plan, machine: Machine, request: PlanRequest, listener: Listener
) -> tuple[Plan, Forecast | None]:
    """The plan, with the speed that its advice would bring, and its forecast as ``forecast_for``.

    A machine that was not measured yet is measured now, which takes some seconds.
    """

    def of(plan: Plan) -> Forecast | None:
        return forecast_for(model, plan, machine, request, listener)

    return _with_advice(plan, of)


def known(model: Model, plan: Plan, machine: Machine) -> tuple[Plan, Forecast | None]:
    """As ``with_forecast``, from rates that were measured before; measures nothing itself."""
    key = rates.key_of(machine)
    measured = bandwidth.load(key)
    if measured is None:
        return plan, None
    disk = measured.on_disk(bandwidth.disk_of(model.paths[0]))
    if disk is None and plan.tiers.disk:
        return plan, None
    kept = measured.with_disk(disk) if disk else measured
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
