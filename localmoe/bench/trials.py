"""Trials of settings: runs of a model with one setting or another, as people run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from localmoe.bench.records import Job
from localmoe.bench.runner import Start, trial
from localmoe.bench.tuning import AS_IT_IS, Changed, Tuning
from localmoe.bench.variants import Sample, Variant, variants
from localmoe.errors import EngineError, UsageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan, Wishes

SECONDS = 180.0  # that a search takes at most, unless asked otherwise
READ_SECONDS, WRITE_SECONDS = 2.0, 1.5  # of one trial, about; less where there is less time
READ, WRITTEN = (128, 1024), (16, 96)  # tokens of one trial, at least and at most

_FIELDS = {
    "threads": ("threads",),
    "batch": ("batch",),
    "kv-type": ("type_k", "type_v"),
    "cache": ("cache",),
    "repack": ("repack",),
}
"""Which part of a plan's request each setting is."""

PlanFor = Callable[[Wishes], Plan]
"""Makes a plan for this machine. Raises LocalmoeError."""


def chosen_settings(wishes: Wishes) -> set[str]:
    """The settings that somebody has chosen already, so that they are not varied. Pure."""
    usual = Wishes()
    return {
        setting
        for setting, fields in _FIELDS.items()
        if any(getattr(wishes, name) != getattr(usual, name) for name in fields)
    }


def changed_wishes(wishes: Wishes, changed: Changed) -> Wishes:
    """A plan's request with other values of some settings. Pure."""
    values: dict[str, Any] = {name: v.value for v in changed for name in _FIELDS[v.setting]}
    return dataclasses.replace(wishes, **values)


class Trials:
    """Runs with one setting or another, each in a fresh engine; the model's files stay cached."""

    def __init__(self, model: Model, wishes: Wishes, plan_for: PlanFor) -> None:
        self._model = model
        self._wishes = wishes
        self._plan_for = plan_for
        self._job = Job(
            model=model.name,
            size=model.size,
            regime="auto",
            memory=None,
            repeat=0,
            prompt_tokens=READ[0],
            steps=WRITTEN[0],
        )

    def calibrate(self, tuning: Tuning) -> None:
        """A first run, which also warms up, tells how long the others can be."""
        context = self._plan(AS_IT_IS).settings.context
        most = (min(READ[1], context // 2), min(WRITTEN[1], context // 4))  # tokens
        self._job = dataclasses.replace(
            self._job, prompt_tokens=min(READ[0], most[0]), steps=min(WRITTEN[0], most[1])
        )
        first = tuning.one()
        part = min(1.0, tuning.seconds / SECONDS)
        read = int(first.prefill_tps * READ_SECONDS * part) // READ[0] * READ[0]
        written = int(first.decode_tps * WRITE_SECONDS * part)
        self._job = dataclasses.replace(
            self._job,
            prompt_tokens=min(max(read, self._job.prompt_tokens), most[0]),
            steps=min(max(written, self._job.steps), most[1]),
        )

    def variants(self, machine: Machine) -> tuple[Variant, ...]:
        """What is worth a try here, less what somebody has chosen."""
        plan = self._plan(AS_IT_IS)
        cores = (machine.cores_physical, machine.cores_logical)
        chosen = chosen_settings(self._wishes)
        return variants(plan.settings, plan.cache.regime, cores, self._job.prompt_tokens, chosen)

    def measure(self, changed: Changed) -> Sample:
        """One run. Raises LocalmoeError."""
        settings = self._plan(changed).settings
        if changed and settings == self._plan(AS_IT_IS).settings:
            raise UsageError("the plan stays the same")
        run = trial(self._job, self._model, Start(settings))
        if not run.prefill_tps or not run.decode_tps:
            raise EngineError("the run was too short to tell a speed")
        return Sample(run.prefill_tps, run.decode_tps)

    def _plan(self, changed: Changed) -> Plan:
        return self._plan_for(changed_wishes(self._wishes, changed))
