"""From a name to a loaded model: found, planned for what is free, promised, loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from localmoe import config, ledger
from localmoe.api.model import LoadedModel
from localmoe.chat.template import Renderer
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import LoadProgress
from localmoe.engine.oracle import Oracle
from localmoe.errors import DoesNotFitError, EngineMemoryError
from localmoe.facts import catalog, hardware
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes
from localmoe.routing import profile


def load(
    name: str | None = None,
    *,
    context: int | None = None,
    wishes: Wishes | None = None,
    remember: bool = True,
    progress: Callable[[float], None] = lambda fraction: None,
) -> LoadedModel:
    """A model on this machine, planned for what is free and loaded; a context manager.

    ``name`` is what the command line takes: a path, a name of the catalog or of a Hub repository
    that has been pulled, an alias; None is the bundled nano. ``context`` is in tokens; ``wishes``
    has the rest of what the planner can be told. ``progress`` is called with 0…1. ``remember``:
    what speeds up the next start may be noted.
    Raises UnknownModelError, ModelFileError, DoesNotFitError, EngineError.
    """
    path = catalog.resolve(config.read().target(name) if name else catalog.BUNDLED)
    wanted = wishes or Wishes()
    if context is not None:
        wanted = dataclasses.replace(wanted, context=context)
    stack = ExitStack()
    try:
        renderer = stack.enter_context(Renderer())
        renderer.start()
        model = read_model(path)
        up = stack.enter_context(
            planned(
                model,
                lambda: hardware.detect(engine_info().gpus),
                wanted,
                renderer,
                make=LoadedModel,
                remember=remember,
            )
        )
        for event in up.bring_in():
            if isinstance(event, LoadProgress):
                progress(event.fraction)
    except BaseException:
        stack.close()
        raise
    up.owned = stack
    return up


Up = TypeVar("Up", bound=LoadedModel)


def plan_for(model: Model, machine: Machine, wishes: Wishes) -> Plan:
    """The plan for running a model here, beside what loaded models will still take.

    Raises ModelFileError, EngineError.
    """
    promised = sum(promise.outstanding_ram for promise in ledger.promises())
    used = profile.load(profile.key_of(model)) if model.is_moe else None
    with Oracle(model) as measure:
        return make_plan(model, machine, wishes, measure, promised, used)


Settle = Callable[[EngineMemoryError, Plan, Plan], Plan]
"""Which plan to load when memory was taken since the first one; see ``settle``."""


def settle(error: EngineMemoryError, plan: Plan, other: Plan) -> Plan:
    """``other``, made with what is free now, after ``plan`` met with ``error``.

    Raises ``error`` where both are the same, and DoesNotFitError where nothing fits any more.
    """
    if not other.verdict.fits:
        hint = other.advice[0] if other.advice else None
        raise DoesNotFitError(f"memory was taken meanwhile: {other.reason}", hint=hint) from error
    if other.settings == plan.settings:
        raise error
    return other


@contextmanager
def planned(
    model: Model,
    find_machine: Callable[[], Machine],
    wishes: Wishes,
    renderer: Renderer,
    *,
    make: Callable[[Model, Machine, Plan, Engine, Renderer], Up],
    record: str = "",
    record_logits: bool = False,
    remember: bool = True,
    settle: Settle = settle,
) -> Iterator[Up]:
    """A model planned for this machine, with its engine, not loaded yet: what ``make`` makes of it.

    ``record``: a path for the trace of what the router chooses, with ``record_logits`` of what it
    said of every expert. Raises DoesNotFitError when the plan says no, ModelFileError, EngineError.
    """

    def settings(plan: Plan) -> EngineSettings:
        return dataclasses.replace(plan.settings, record=record, record_logits=record_logits)

    def replan(error: EngineMemoryError) -> tuple[EngineSettings, int]:
        up.machine = find_machine()
        up.plan = settle(error, up.plan, plan_for(model, up.machine, wishes))
        return settings(up.plan), up.plan.tiers.ram

    with ledger.planning():  # nobody else plans with the same memory before it is promised
        machine = find_machine()
        plan = plan_for(model, machine, wishes)
        if not plan.verdict.fits:
            raise DoesNotFitError(plan.reason, hint=plan.advice[0] if plan.advice else None)
        engine = Engine(model, settings(plan), plan.tiers.ram, remember=remember, replan=replan)
        engine.promise()
    with engine:
        up = make(model, machine, plan, engine, renderer)
        yield up
