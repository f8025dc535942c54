"""From a name to a loaded model: found, planned for what is free, promised, loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from localmoe import config, ledger
from localmoe.app import checks, wish_checks
from localmoe.app.default_model import remember
from localmoe.app.find import model_to_load
from localmoe.app.forecasts import known, tuned_here
from localmoe.app.idle_gpus import tell_of_idle_gpus
from localmoe.app.listener import Listener, Silent
from localmoe.app.machine import find_machine, without
from localmoe.app.model import LoadedModel
from localmoe.app.outputs import TRACE, check_output
from localmoe.app.plans import moved, plan_for, settle
from localmoe.app.requests import LoadRequest, PlanRequest
from localmoe.chat.renderer import Renderer
from localmoe.chat.template import ChatTemplate
from localmoe.engine.client import Engine
from localmoe.engine.events import LoadProgress
from localmoe.engine.process import WorkerProcess
from localmoe.errors import DoesNotFitError, EngineMemoryError, UsageError
from localmoe.facts import catalog
from localmoe.facts.model import Model
from localmoe.planning.memory import EngineSettings
from localmoe.planning.plan import Plan, Wishes
from localmoe.text import clean_line, counted
from localmoe.wording import for_program, marked, option


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    context: int | None = None,
    wishes: Wishes | None = None,
    remember: bool = True,
    progress: Callable[[float], None] = lambda fraction: None,
) -> LoadedModel:
    """A loaded model, planned for the memory that is free now; a context manager.

    ``name`` is what the command line takes: a path, a name of the catalog or of a Hub repository
    that has been pulled, an alias; None is the bundled nano. ``context`` is in tokens; ``wishes``
    has everything else that the planner can be told. ``progress`` is called with the fraction
    loaded, 0 to 1. ``remember``: write down what makes the next start faster.
    Raises UsageError, UnknownModelError, ModelFileError, DoesNotFitError, EngineError.
    """
    checks.function("progress", progress)
    wanted = wish_checks.checked(Wishes() if wishes is None else wishes, context)
    name = None if name is None else checks.model_name(name)
    request = LoadRequest(
        config.read().target(name) if name else catalog.BUNDLED,
        PlanRequest(wanted),
        may_download=False,
        remember=remember,
    )
    stack = ExitStack()
    try:
        model = stack.enter_context(planned(request, Silent(), tell=for_program))
        for event in model.bring_in():
            if isinstance(event, LoadProgress):
                progress(event.fraction)
    except BaseException:
        stack.close()
        raise
    model.owned = stack
    return model


@contextmanager
def opened(request: LoadRequest, listener: Listener) -> Iterator[LoadedModel]:
    """As ``planned``, with a forecast, a note about idle GPUs, and the name remembered.

    Raises what ``planned`` raises, and TemplateError for a template that does not compile.
    """
    with planned(request, listener) as model:
        tell_of_idle_gpus(model.machine, listener)
        model.plan, model.forecast = known(model.facts, model.plan, model.machine, request.plan)
        if request.name is not None and request.remember:
            remember(request.name)
        if model.facts.chat_template is not None and request.template:
            # Compiled now, so that a broken template is an error before a long load, not after it.
            template = ChatTemplate(model.facts.chat_template, renderer=model.renderer)
            _ = template.think_control
        yield model


@contextmanager
def planned(
    request: LoadRequest, listener: Listener, *, tell: Callable[[str], str] = str
) -> Iterator[LoadedModel]:
    """A model planned for this machine, with its engine, not loaded yet.

    ``tell`` words the texts of its plan, which name options as they are typed. Raises
    DoesNotFitError when the plan says no, ModelFileError, EngineError, and what
    ``find.model_to_load`` raises.
    """

    def settings(plan: Plan) -> EngineSettings:
        return dataclasses.replace(
            plan.settings, record=request.record, record_logits=request.record_logits
        )

    def replan(error: EngineMemoryError) -> tuple[EngineSettings, int]:
        model.machine = find_machine(request.plan, hypothetical=False)
        before = model.plan
        after = plan_for(facts, model.machine, request.plan, hypothetical=False)
        after = tuned_here(facts, after, model.machine, request.plan)
        model.plan, model.forecast = settle(error, before, after).told(tell), None
        changes = moved(before, model.plan)
        listener.note(f"{error.message}; planned anew with what is free now: {changes}")
        return settings(model.plan), model.plan.promised_ram

    with Renderer() as renderer:
        renderer.start()
        facts = model_to_load(request, listener)
        if request.record:
            _check_recording(facts, request)
        with ledger.planning():  # other processes plan only after this memory is promised
            with closing(WorkerProcess()) as worker:
                machine = find_machine(request.plan, hypothetical=False, worker=worker)
                plan = plan_for(facts, machine, request.plan, hypothetical=False, worker=worker)
            require_fit(facts, plan)
            if not plan.verdict.fits:
                listener.warn(f"this will be too slow to use: {plan.reason}")
            for warning in plan.warnings:
                listener.warn(warning)
            plan = tuned_here(facts, plan, machine, request.plan)
            if request.record:
                _check_recorded_layers(plan, listener)
            engine = Engine(
                facts,
                settings(plan),
                plan.promised_ram,
                remember=request.remember,
                replan=replan,
            )
            engine.promise()
        with engine:
            model = LoadedModel(facts, machine, plan.told(tell), engine, renderer)
            yield model


def _check_recording(model: Model, request: LoadRequest) -> None:
    """Raises UsageError for a model without experts, or a trace that would overwrite a file."""
    if not model.is_moe:
        raise UsageError(
            f"{clean_line(model.name)} has no experts: there is no routing to record",
            hint="localmoe show MODEL says what a model has",
        )
    check_output(Path(request.record), TRACE, [*model.paths, *request.inputs])


def _check_recorded_layers(plan: Plan, listener: Listener) -> None:
    """Routing is recorded in host memory only: warns of layers whose experts are on a device.

    Raises UsageError if all of them are.
    """
    layers = [layer for layer in plan.layers if layer.experts]
    elsewhere = [layer.index for layer in layers if layer.experts == "gpu"]
    if len(elsewhere) == len(layers):
        raise UsageError(
            "all experts are on other devices, where their routing cannot be recorded",
            hint=f"{option('experts-on', 'ram')} keeps them here",
        )
    if elsewhere:
        listener.warn(
            f"the experts of {counted(len(elsewhere), 'layer')} are on other devices: their "
            "routing is not recorded (--experts-on ram keeps them here)"
        )


def require_fit_after(old: Plan, model: Model, request: PlanRequest) -> None:
    """Raises DoesNotFitError if ``model`` would not fit once the model of plan ``old`` is gone."""
    machine = without(find_machine(request, hypothetical=False), old)
    plan = plan_for(model, machine, request, hypothetical=False)
    require_fit(model, plan, f"{clean_line(model.name)}: ")


def require_fit(model: Model, plan: Plan, prefix: str = "") -> None:
    """Raises DoesNotFitError if the plan does not fit; ``prefix`` begins its message."""
    if not plan.verdict.runs:
        hint = marked(plan.advice[0]) if plan.advice else None
        raise DoesNotFitError(f"{prefix}{marked(plan.reason)}", hint=hint)
