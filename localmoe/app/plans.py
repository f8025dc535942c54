"""Plans: the engine says what memory a model takes, the planner decides where it lives."""

from __future__ import annotations

import dataclasses

from localmoe import ledger
from localmoe.app.forecasts import with_forecast
from localmoe.app.listener import Listener
from localmoe.app.machine import with_gpu_build
from localmoe.app.planned_model import Offer, PlannedModel
from localmoe.app.requests import PlanRequest
from localmoe.engine.devices import engine_info
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import DoesNotFitError, EngineCrashError, EngineMemoryError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.placement import make_plan
from localmoe.planning.places import kind_of
from localmoe.planning.plan import Plan
from localmoe.planning.roomy import roomy
from localmoe.routing import profile
from localmoe.text import format_bytes
from localmoe.wording import marked

NO_COPIES = "--repack is left aside: llama.cpp's copies of weights for AMX crash"


def plan_for(
    model: Model,
    machine: Machine,
    request: PlanRequest,
    *,
    hypothetical: bool,
    worker: WorkerProcess | None = None,
) -> Plan:
    """The plan of a model for a machine. Raises ModelFileError, EngineError or EngineCrashError.

    Memory promised to other loaded models is not free, unless nothing will be loaded
    (``hypothetical``) and the request states how much is free. ``worker``: the process to ask;
    None: a new one.
    """
    return plans_for(model, machine, None, request, hypothetical=hypothetical, worker=worker)[0]


def plans_for(
    model: Model,
    machine: Machine,
    other: Machine | None,
    request: PlanRequest,
    *,
    hypothetical: bool,
    worker: WorkerProcess | None = None,
) -> tuple[Plan, Plan | None]:
    """The plans for ``machine`` and for ``other``; the engine is asked once for both.

    ``worker``: the process to ask; None: a new one. Raises what ``plan_for`` raises.
    """
    wishes = request.wishes
    warnings: tuple[str, ...] = ()
    if wishes.repack == "on" and request.machine is None and not engine_info(worker=worker).repacks:
        wishes, warnings = dataclasses.replace(wishes, repack="off"), (NO_COPIES,)
    tried = roomy(model, wishes) if request.roomy else (wishes,)
    stated = request.machine is not None or (hypothetical and wishes.ram is not None)
    promised = 0 if stated else sum(promise.outstanding_ram for promise in ledger.promises())
    used = profile.load(profile.key_of(model)) if model.is_moe else None
    with Oracle(model, worker) as measure:

        def made(machine: Machine) -> Plan:
            for wished in tried:
                plan = make_plan(model, machine, wished, measure, promised, used)
                if plan.verdict.fits:
                    break
            return dataclasses.replace(plan, warnings=(*plan.warnings, *warnings))

        return made(machine), None if other is None else made(other)


class ModelPlanner:
    """Plans any number of models for one machine, with one engine worker to ask."""

    def __init__(
        self,
        machine: Machine,
        request: PlanRequest,
        listener: Listener,
        *,
        hypothetical: bool = True,
        worker: WorkerProcess | None = None,
    ) -> None:
        """``hypothetical``: nothing will be loaded. ``worker``: a running one to take over."""
        self.machine = machine
        self._hypothetical = hypothetical
        self._request = request
        self._listener = listener
        self._with_gpu = with_gpu_build(machine, request.wishes)
        self._worker = worker
        self._warned: set[str] = set()

    def __enter__(self) -> ModelPlanner:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_worker()

    def plan(self, model: Model, offer: Offer | None = None) -> PlannedModel:
        """Plan one model. Raises ModelFileError, EngineError, EngineCrashError."""
        if self._worker is None:
            self._worker = WorkerProcess()
        try:
            plan, better = plans_for(
                model,
                self.machine,
                self._with_gpu,
                self._request,
                hypothetical=self._hypothetical,
                worker=self._worker,
            )
        except EngineCrashError:
            self._end_worker()
            raise
        if self._hypothetical:  # else it is said when the model is loaded
            for warning in (w for w in plan.warnings if w not in self._warned):
                self._warned.add(warning)
                self._listener.warn(warning)
        plan, forecast = with_forecast(model, plan, self.machine, self._request, self._listener)
        return PlannedModel(model, plan, better, offer, forecast)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def settle(error: EngineMemoryError, plan: Plan, other: Plan) -> Plan:
    """The plan to try after ``plan`` failed with ``error``: ``other``, made with what is free now.

    Raises ``error`` if both are the same, DoesNotFitError if ``other`` does not fit.
    """
    if not other.verdict.runs:
        hint = marked(other.advice[0]) if other.advice else None
        reason = marked(other.reason)
        raise DoesNotFitError(f"memory was taken meanwhile: {reason}", hint=hint) from error
    if other.settings == plan.settings:
        raise error
    return other


def moved(before: Plan, after: Plan) -> str:
    """``GPU 7.0 GiB → 3.1 GiB, RAM 9.0 GiB → 12.9 GiB``: tiers that changed, else the context."""
    tiers = (
        (kind_of(before.settings.devices), before.tiers.gpu, after.tiers.gpu),
        ("RAM", before.tiers.ram, after.tiers.ram),
        ("disk", before.tiers.disk, after.tiers.disk),
    )
    changes = [
        f"{name} {format_bytes(old)} → {format_bytes(new)}"
        for name, old, new in tiers
        if old != new
    ]
    return ", ".join(changes) or f"{after.settings.context:,} tokens of context"
