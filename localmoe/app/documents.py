"""Records → the JSON documents that localmoe writes.

Sizes are bytes. ``schema_version`` is added where they are written. Names are stable: add, never
rename.
"""

from __future__ import annotations

import math
from dataclasses import asdict

from localmoe.app import speeds
from localmoe.app.download import Wanted
from localmoe.app.fit import Fit
from localmoe.app.local_models import LocalModel
from localmoe.app.planned_model import LINE_SPEED, CatalogGuess, PlannedModel
from localmoe.app.recommend import best_first
from localmoe.chat.events import TurnDone
from localmoe.engine.events import Finished, Loaded
from localmoe.facts.hardware import Machine
from localmoe.facts.model import LongArray, Model, Role, Value
from localmoe.hub.download import Pulled
from localmoe.planning.llama_args import llama_args
from localmoe.planning.memory import CPU
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast

Json = dict[str, object]

SHOWN_OF_LONG_ARRAY = 8  # elements


def machine_summary(machine: Machine) -> Json:
    """The ``machine`` of ``fit --json`` and ``plan --json``: bytes of each memory."""
    return {
        "ram_total": machine.ram_total,
        "ram_available": machine.ram_available,
        "gpus": [
            {"name": g.name, "total": g.total, "free": g.free, "in_engine": g.in_engine}
            for g in machine.gpus
        ],
        "disk_free": machine.disk_free,
    }


def fit_file(model: Model, plan: Plan, forecast: Forecast | None) -> Json:
    """One entry of ``fit``'s ``files``."""
    memory = plan.memory
    dense, experts = weights(model, plan)
    return {
        "name": model.name,
        "quant": model.quantization,
        "parts": len(model.paths),
        "size": model.size,
        "cached": True,
        "fits": plan.verdict.value,
        "memory": {
            "weights": {"dense": dense, "experts": experts},
            "kv": memory.kv,
            "compute": memory.compute,
            "total": memory.total,
        },
        "placement": {"gpu": plan.tiers.gpu, "ram": plan.tiers.ram, "disk": plan.tiers.disk},
        "context": plan.settings.context,
        "max_context": plan.max_context,
        **speeds.document(forecast),
        "reason": plan.reason,
        "advice": list(plan.advice),
        "warnings": list(plan.warnings),
    }


def weights(model: Model, plan: Plan) -> tuple[int, int]:
    """Bytes of dense and of expert weights as the engine will hold them.

    The engine's sum may differ from the file's: it skips tensors that it does not use, and keeps
    a tied embedding once per device. The experts' bytes are the file's, the rest is dense.
    """
    experts = min(model.expert_bytes, plan.memory.weights)
    return plan.memory.weights - experts, experts


def fit_document(answer: Fit, seconds: float) -> Json:
    """``fit --json``; without MODEL ``model`` is null, and ``catalog`` has guesses by size.

    ``context`` and ``kv_type`` are null where the files differ. ``skipped``: models that could not
    be planned. ``transferred``: bytes of file content that were read over the network;
    ``seconds``: how long all of it took.
    """
    found, best = answer.found, answer.best
    contexts = {entry.plan.settings.context for entry in found}
    types = {_kv_type(entry.plan) for entry in found}
    alike = answer.name is not None
    ranks = {id(entry): number for number, entry in enumerate(best_first(found), start=1)}
    document: Json = {
        "model": answer.name,
        "machine": machine_summary(answer.machine),
        "context": contexts.pop() if alike and len(contexts) == 1 else None,
        "kv_type": types.pop() if alike and len(types) == 1 else None,
        "exact": all(entry.plan.memory.exact for entry in found),
        "files": [_planned(entry) | {"rank": ranks[id(entry)]} for entry in found],
        "skipped": [asdict(entry) for entry in (*answer.skipped, *answer.unknown)],
        "recommended": best.model.name if best else None,
        "recommended_reason": answer.why if best and answer.why else None,
        "recommended_command": _command(best),
    }
    if answer.name is None:
        document["catalog"] = [guessed(guess) for guess in answer.guesses]
    return document | {
        "transferred": answer.transferred,
        "requests": answer.requests,
        "seconds": round(seconds, 3),
    }


def guessed(guess: CatalogGuess) -> Json:
    """One entry of ``catalog`` in ``fit --json`` without MODEL: a guess by file size."""
    return {
        "name": guess.entry.alias,
        "repo": guess.entry.repo,
        "quant": guess.files.quant,
        "parts": len(guess.files.files),
        "size": guess.files.size,
        "fits": guess.verdict.value,
        "approximate": True,
    }


def _planned(entry: PlannedModel) -> Json:
    """One entry of ``files``: ``fit_file``, its download, and its plan with an idle GPU in use."""
    document = fit_file(entry.model, entry.plan, entry.forecast)
    offer, better = entry.offer, entry.with_gpu_build
    if offer is not None:
        document |= {
            "quant": offer.files.quant or entry.model.quantization,
            "cached": offer.missing == 0,
            "reason": entry.reason,
        }
    return document | {
        "download": None
        if offer is None
        else {
            "bytes": offer.missing,
            "seconds": round(offer.download_seconds),
            "bits_per_second": LINE_SPEED,
            "disk_free": offer.disk_free,
            "disk_room": offer.fits_disk,
            "repo": offer.listing.repo,
            "commit": offer.listing.commit,
            "paths": [file.path for file in offer.files.files],
        },
        "with_gpu_build": None
        if better is None
        else {
            "fits": better.verdict.value,
            "placement": asdict(better.tiers),
            "context": better.settings.context,
            "max_context": better.max_context,
            "exact": better.memory.exact,
            "reason": better.reason,
        },
    }


def _command(best: PlannedModel | None) -> str | None:
    """What to type after ``localmoe run`` for the recommended model."""
    if best is None:
        return None
    return best.offer.command_name if best.offer else str(best.model.paths[0])


def plan_document(model: Model, machine: Machine, plan: Plan, forecast: Forecast | None) -> Json:
    """``plan MODEL --json``; also the ``plan`` of ``run --json``."""
    return {
        "model": model.name,
        "machine": machine_summary(machine),
        "context": plan.settings.context,
        "kv_type": _kv_type(plan),
        "exact": plan.memory.exact,
        **fit_file(model, plan, forecast),
        "devices": devices(plan),
        "layers": [asdict(layer) for layer in plan.layers],
        "cache": asdict(plan.cache),
        "batches": speeds.gain_text(plan.gain) if plan.gain else None,
        "engine": asdict(plan.settings),
        "llama_cpp_args": ["-m", str(model.paths[0].absolute()), *llama_args(plan.settings)],
    }


def devices(plan: Plan) -> list[Json]:
    """Planned bytes per device, by the engine's names; ``CPU`` is host memory.

    What is read from the disk counts as ``CPU``. ``budget``: bytes that the plan may use there.
    """
    budgets = dict(plan.gpu_budgets) | {CPU: plan.ram_budget}
    return [
        {**asdict(entry), "total": entry.total, "budget": budgets.get(entry.device)}
        for entry in plan.memory.devices
    ]


def list_entry(entry: LocalModel) -> Json:
    """One entry of ``list --json``'s ``models``; ``problem``: why the engine cannot read it."""
    model = entry.model
    return {
        "name": model.name,
        "program": entry.program,
        "readable": entry.problem is None,
        "problem": entry.problem,
        "path": str(model.paths[0]),
        "parts": len(model.paths),
        "size": model.size,
        "architecture": model.architecture,
        "quant": model.quantization,
        "parameters": {"total": model.parameters, "active": model.active_parameters},
    }


def show_document(model: Model, calling: str | None) -> Json:
    """``show MODEL --json``; ``calling``: see ``calling_form``."""
    by_role = bytes_by_role(model)
    count, used = expert_counts(model)
    return {
        "model": model.name,
        "paths": [str(path) for path in model.paths],
        "size": model.size,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "layers": len(model.layers),
        "moe_layers": sum(bool(layer.expert_count) for layer in model.layers),
        "experts": {
            "count": count,
            "used": used,
            "shared": shared_experts(model),
        },
        "parameters": {"total": model.parameters, "active": model.active_parameters},
        "bytes": {role.value: count for role, count in by_role.items()}
        | {"not_loaded": sum(t.nbytes for t in model.tensors if not t.loaded)},
        "context_train": model.context_train,
        "chat_template": model.chat_template is not None,
        "tool_calls": calling,
        "tokenizer": model.metadata.get("tokenizer.ggml.model"),
        "metadata": {key: _metadata_value(value) for key, value in model.metadata.items()},
    }


def expert_counts(model: Model) -> tuple[int, int]:
    """Routed experts per layer, and how many of them a token uses; 0, 0 for a dense model."""
    count = max((layer.expert_count for layer in model.layers), default=0)
    used = max((layer.expert_used for layer in model.layers), default=0)
    return count, used


def bytes_by_role(model: Model) -> dict[Role, int]:
    """Bytes of the tensors that the engine loads."""
    by_role = dict.fromkeys(Role, 0)
    for tensor in model.tensors:
        if tensor.loaded:
            by_role[tensor.role] += tensor.nbytes
    return by_role


def shared_experts(model: Model) -> int:
    """Shared experts per layer: the header's count, else 1 if it has such tensors, else 0."""
    count = model.metadata.get(f"{model.architecture}.expert_shared_count")
    if isinstance(count, int) and not isinstance(count, bool) and count > 0:
        return count
    return int(any(tensor.role is Role.SHARED_EXPERT for tensor in model.tensors))


def run_document(
    model: str, done: TurnDone, loaded: Loaded, plan: Plan, plan_document: Json
) -> Json:
    """``run --json``: tokens, seconds, tokens per second, bytes.

    The figures of the expert cache are null when all experts are resident.
    """
    cache = done.finished.cache if done.finished is not None else None
    return {
        "text": done.answer,
        "reasoning": done.reasoning,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in done.calls
        ],
        "finish_reason": done.finish_reason,
        "no_answer": done.no_answer.message if done.no_answer else None,
        "model": model,
        "usage": {
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
            "reused_tokens": done.usage.reused_tokens,
        },
        "timings": {
            "load_s": loaded.load_s,
            "ttft_s": done.timings.ttft_s,
            "prefill_tps": done.timings.prefill_tps,
            "decode_tps": done.timings.decode_tps,
        },
        "cache": {
            "regime": _served(plan, loaded, done.finished),
            "hits": cache.hits if cache else None,
            "misses": cache.misses if cache else None,
            "hit_rate": cache.hit_rate if cache else None,
            "bytes_read": cache.bytes_read if cache else None,
        },
        "plan": plan_document,
    }


def _served(plan: Plan, loaded: Loaded, finished: Finished | None) -> str:
    """The regime that served the experts: as planned, or what the engine fell back to."""
    served = loaded.cache
    if served == "private" and finished is not None:  # else it was given up after the first token
        served = finished.cache.regime if finished.cache else "off"
    return plan.cache.regime if served == plan.settings.cache else served


def pulled_document(wanted: Wanted, pulled: Pulled) -> dict[str, object]:
    """``pull --json``: bytes, and seconds; ``resumed`` and ``reused`` bytes were here before."""
    files = zip(wanted.model.files, pulled.paths, strict=True)
    return {
        "model": wanted.model.name,
        "repo": wanted.listing.repo,
        "commit": wanted.listing.commit,
        "path": str(pulled.paths[0]),
        "files": [{"name": f.path, "path": str(path), "size": f.size} for f, path in files],
        "size": pulled.size,
        "transferred": pulled.transferred,
        "resumed": pulled.resumed,
        "reused": pulled.reused,
        "seconds": round(pulled.seconds, 3),
    }


def _kv_type(plan: Plan) -> str:
    """``f16``, or ``q8_0/f16`` where keys and values have different types."""
    key, value = plan.settings.type_k, plan.settings.type_v
    return key if key == value else f"{key}/{value}"


def _metadata_value(value: Value) -> object:
    """A metadata value as JSON: of a long array its length and first elements, infinity as text."""
    if isinstance(value, LongArray):
        first = [_metadata_value(item) for item in value.head[:SHOWN_OF_LONG_ARRAY]]
        return {"array_of": value.element, "count": value.count, "first": first}
    if isinstance(value, tuple):
        return [_metadata_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
