"""The speed to expect of a plan, and how much faster its advice would make it."""

from __future__ import annotations

from pathlib import Path

from localmoe.app import rates, speeds
from localmoe.app.experience import corrections, was_sent
from localmoe.app.listener import Listener
from localmoe.app.machine_file import read_key, read_rates
from localmoe.app.requests import PlanRequest
from localmoe.facts import bandwidth, hardware
from localmoe.facts.bandwidth import Rates
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast, forecast, tuned
from localmoe.planning.what_if import with_enough_ram
from localmoe.routing import profile


def with_forecast(
    model: Model, plan: Plan, machine: Machine, request: PlanRequest, listener: Listener
) -> tuple[Plan, Forecast | None]:
    """The plan, tuned for the machine that it is for, its advice told with a speed, and its
    forecast.

    The forecast is None for a plan that does not fit, and where nothing is known of the machine: it
    is described by a file that says nothing of speed, or it could not be measured. A machine that
    was not measured yet is measured now, which takes some seconds.
    """
    if not plan.verdict.runs:
        return plan, None
    if request.machine is not None:
        measured, key = _in_file(request.machine, model)
    else:
        measured, key = rates.rates_for(model, plan, machine, listener), rates.key_of(machine)
    if measured is None:
        return plan, None
    return _forecast(model, tuned_by(model, plan, measured, request), measured, key)


def _in_file(path: Path, model: Model) -> tuple[Rates | None, str | None]:
    """The rates of the machine that a file describes. With the key of this machine's rates, if it
    is this one: then the model's own disk and earlier runs count, as without the file.
    """
    measured = read_rates(path)
    key = rates.key_of(hardware.detect())
    if measured is None or read_key(path) != key:
        return measured, None
    disk = measured.on_disk(bandwidth.disk_of(model.paths[0]))
    return (measured.with_disk(disk) if disk else measured), key


def known(
    model: Model, plan: Plan, machine: Machine, request: PlanRequest
) -> tuple[Plan, Forecast | None]:
    """As ``with_forecast``, by what was measured before: nobody is kept waiting."""
    measured = _kept(model, plan, machine)
    if measured is None:
        return plan, None
    tuned = tuned_by(model, plan, measured, request)
    return _forecast(model, tuned, measured, rates.key_of(machine))


def tuned_here(model: Model, plan: Plan, machine: Machine, request: PlanRequest) -> Plan:
    """The plan with the threads that are fastest here, where that was measured before."""
    measured = _kept(model, plan, machine)
    return plan if measured is None else tuned_by(model, plan, measured, request)


def tuned_by(model: Model, plan: Plan, measured: Rates, request: PlanRequest) -> Plan:
    """``planning.speed.tuned`` for a user who may have chosen the threads."""
    used = profile.load(profile.key_of(model)) if model.is_moe else None
    chosen = request.wishes.threads is not None
    return tuned(model, plan, measured, profile=used, keep_threads=chosen)


def _kept(model: Model, plan: Plan, machine: Machine) -> Rates | None:
    """What was measured of this machine, and of the model's disk if the plan reads it."""
    measured = bandwidth.load(rates.key_of(machine)) if plan.verdict.runs else None
    if measured is None:
        return None
    disk = measured.on_disk(bandwidth.disk_of(model.paths[0]))
    if disk is None:
        return None if plan.tiers.disk else measured
    return measured.with_disk(disk)


def _forecast(
    model: Model, plan: Plan, measured: Rates, key: str | None
) -> tuple[Plan, Forecast | None]:
    """The plan with its advice told with a speed, and its forecast. ``key``: of this machine's
    rates, under which earlier runs are kept; None for another machine.
    """
    used = profile.load(profile.key_of(model)) if model.is_moe else None

    def of(plan: Plan) -> Forecast:
        decode, prefill = (None, None) if key is None else corrections(model, plan, key)
        sent = key is not None and was_sent(model, plan, key)
        return forecast(
            model, plan, measured, profile=used, decode=decode, prefill=prefill, sent=sent
        )

    now = of(plan)
    if not plan.missing_ram or not plan.advice:
        return plan, now
    return speeds.with_speed(plan, now, of(with_enough_ram(plan))), now
