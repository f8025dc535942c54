"""Records → the JSON documents of the command line contract, and a machine back from one.

Sizes are bytes. ``schema_version`` is added by ``Output.json``. Names are stable: add, never
rename.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from localmoe.cli import speeds
from localmoe.cli.fitted import LINE_SPEED, Fitted, Guessed, Skipped, best_first
from localmoe.errors import UsageError
from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import LongArray, Model, Role, Value
from localmoe.planning.llama_args import llama_args
from localmoe.planning.memory import CPU
from localmoe.planning.plan import Plan
from localmoe.planning.speed import Forecast
from localmoe.text import shortened

Json = dict[str, object]

SHOWN_OF_LONG_ARRAY = 8  # elements
MOST = 1 << 60  # bytes of memory, or anything else that a machine has


def machine_summary(machine: Machine) -> Json:
    """What ``fit`` and ``plan`` say of the machine."""
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
    }


def weights(model: Model, plan: Plan) -> tuple[int, int]:
    """Bytes of dense and of expert weights as the engine will hold them.

    The engine's sum may differ from the file's: it skips tensors that it does not use, and keeps
    a tied embedding once per device. The experts' bytes are the file's, the rest is dense.
    """
    experts = min(model.expert_bytes, plan.memory.weights)
    return plan.memory.weights - experts, experts


def fit_document(
    name: str | None,
    machine: Machine,
    found: Sequence[Fitted],
    skipped: Sequence[Skipped],
    best: Fitted | None,
    why: str,
) -> Json:
    """``fit --json``, less ``cost``; without MODEL ``name`` is None.

    ``context`` and ``kv_type`` are null where the files differ. ``skipped``: models nothing can be
    said of.
    """
    contexts = {entry.plan.settings.context for entry in found}
    types = {_kv_type(entry.plan) for entry in found}
    ranks = {id(entry): number for number, entry in enumerate(best_first(found), start=1)}
    return {
        "model": name,
        "machine": machine_summary(machine),
        "context": contexts.pop() if name is not None and len(contexts) == 1 else None,
        "kv_type": types.pop() if name is not None and len(types) == 1 else None,
        "exact": all(entry.plan.memory.exact for entry in found),
        "files": [_fitted(entry) | {"rank": ranks[id(entry)]} for entry in found],
        "skipped": [asdict(entry) for entry in skipped],
        "recommended": best.model.name if best else None,
        "recommended_reason": why if best and why else None,
        "recommended_command": _command(best),
    }


def guessed(guess: Guessed) -> Json:
    """One entry of ``catalog`` in ``fit --json`` without MODEL: a guess by size, best first."""
    return {
        "name": guess.entry.alias,
        "repo": guess.entry.repo,
        "quant": guess.files.quant,
        "parts": len(guess.files.files),
        "size": guess.files.size,
        "fits": guess.verdict.value,
        "approximate": True,
    }


def cost(transferred: int, requests: int, seconds: float) -> Json:
    """What ``fit`` read over the network (bytes of file content), and how long all of it took."""
    return {"transferred": transferred, "requests": requests, "seconds": round(seconds, 3)}


def _fitted(entry: Fitted) -> Json:
    """One entry of ``fit``'s ``files``: ``fit_file``, the download, and the GPU that lies idle."""
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
            "disk_room": offer.room,
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


def _command(best: Fitted | None) -> str | None:
    """The name to type for what is recommended."""
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
        "engine": asdict(plan.settings),
        "llama_cpp_args": ["-m", str(model.paths[0].absolute()), *llama_args(plan.settings)],
    }


def devices(plan: Plan) -> list[Json]:
    """Planned bytes per device, by the engine's names; ``CPU`` is host memory with the disk's part.

    ``budget``: bytes that the plan may use there.
    """
    budgets = dict(plan.gpu_budgets) | {CPU: plan.ram_budget}
    return [
        {**asdict(entry), "total": entry.total, "budget": budgets.get(entry.device)}
        for entry in plan.memory.devices
    ]


def list_entry(model: Model, program: str, problem: str | None) -> Json:
    """One entry of ``list --json``'s ``models``; ``problem``: why the engine cannot read it."""
    return {
        "name": model.name,
        "program": program,
        "readable": problem is None,
        "problem": problem,
        "path": str(model.paths[0]),
        "parts": len(model.paths),
        "size": model.size,
        "architecture": model.architecture,
        "quant": model.quantization,
        "parameters": {"total": model.parameters, "active": model.active_parameters},
    }


def show_document(model: Model) -> Json:
    """``show MODEL --json``."""
    by_role = bytes_by_role(model)
    return {
        "model": model.name,
        "paths": [str(path) for path in model.paths],
        "size": model.size,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "layers": len(model.layers),
        "moe_layers": sum(bool(layer.expert_count) for layer in model.layers),
        "experts": {
            "count": max((layer.expert_count for layer in model.layers), default=0),
            "used": max((layer.expert_used for layer in model.layers), default=0),
            "shared": shared_experts(model),
        },
        "parameters": {"total": model.parameters, "active": model.active_parameters},
        "bytes": {role.value: count for role, count in by_role.items()}
        | {"not_loaded": sum(t.nbytes for t in model.tensors if not t.loaded)},
        "context_train": model.context_train,
        "chat_template": model.chat_template is not None,
        "tokenizer": model.metadata.get("tokenizer.ggml.model"),
        "metadata": {key: _metadata_value(value) for key, value in model.metadata.items()},
    }


def bytes_by_role(model: Model) -> dict[Role, int]:
    """Bytes of the tensors that the engine loads."""
    by_role = dict.fromkeys(Role, 0)
    for tensor in model.tensors:
        if tensor.loaded:
            by_role[tensor.role] += tensor.nbytes
    return by_role


def shared_experts(model: Model) -> int:
    """Shared experts per layer: the header's count, else 1 when there are such tensors at all."""
    count = model.metadata.get(f"{model.architecture}.expert_shared_count")
    if isinstance(count, int) and not isinstance(count, bool) and count > 0:
        return count
    return int(any(tensor.role is Role.SHARED_EXPERT for tensor in model.tensors))


def machine_document(machine: Machine) -> Json:
    """All of a machine, as ``doctor --json`` writes it and ``--machine`` reads it."""
    return asdict(machine)


def machine_from_document(document: object, source: str) -> Machine:
    """A machine from ``doctor --json`` (or the ``machine`` of ``fit --json``).

    What a short document leaves out gets a neutral value. Raises ``UsageError`` naming ``source``.
    """
    body = document.get("machine", document) if isinstance(document, Mapping) else None
    if not isinstance(body, Mapping) or "ram_total" not in body:
        raise UsageError(
            f"{source} describes no machine",
            hint="write one with `localmoe doctor --json > machine.json` on that machine",
        )
    read = _Reader(body, source)
    gpus = body.get("gpus", [])
    if not isinstance(gpus, list) or not all(isinstance(gpu, Mapping) for gpu in gpus):
        raise read.wrong("gpus", "a list of objects")
    total = read.whole("ram_total")
    return Machine(
        os=read.text("os", "unknown"),
        cpu=read.text("cpu", "unknown"),
        cores_physical=read.whole("cores_physical", 1),
        cores_logical=read.whole("cores_logical", 1),
        ram_total=total,
        ram_available=read.free_of("ram_available", total),
        ram_limited_by=None,
        gpus=tuple(_gpu(_Reader(gpu, f"{source}: gpus[{i}]"), i) for i, gpu in enumerate(gpus)),
        disk_free=read.whole("disk_free", 0),
        disk_read_bandwidth=read.number_or_none("disk_read_bandwidth"),
    )


def _gpu(read: _Reader, number: int) -> Gpu:
    """A GPU that an engine can use has a device name there; a short document leaves it out."""
    total = read.whole("total")
    in_engine = read.flag("in_engine", True)
    return Gpu(
        name=read.text("name", "GPU"),
        total=total,
        free=read.free_of("free", total),
        in_engine=in_engine,
        device=read.text("device", f"GPU{number}" if in_engine else "") or None,
        backend=read.text("backend", "") or None,
        unified=read.flag("unified", False),
    )


class _Reader:
    """Typed fields of a JSON object that a person may have edited; a null counts as left out."""

    def __init__(self, body: Mapping[str, object], source: str) -> None:
        self.body = body
        self.source = source

    def wrong(self, key: str, wanted: str) -> UsageError:
        shown = shortened(repr(self.body.get(key)), 40)
        return UsageError(f"{self.source}: {key} is {shown}, not {wanted}")

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise self.wrong(key, f"a whole number from 0 to {MOST}")
        return value

    def free_of(self, key: str, total: int) -> int:
        """What is free of ``total`` bytes; all of it where the document does not say."""
        value = self.whole(key, total)
        if value > total:
            raise self.wrong(key, f"at most the total, {total}")
        return value

    def number_or_none(self, key: str) -> float | None:
        value = self.body.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise self.wrong(key, f"a number from 0 to {MOST}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def _get(self, key: str, default: object) -> object:
        value = self.body.get(key)
        return default if value is None else value


def _kv_type(plan: Plan) -> str:
    """One name when keys and values have the same type, as nearly always."""
    key, value = plan.settings.type_k, plan.settings.type_v
    return key if key == value else f"{key}/{value}"


def _metadata_value(value: Value) -> object:
    """Vocabularies are told by their length; JSON has no infinity, so such numbers become text."""
    if isinstance(value, LongArray):
        first = [_metadata_value(item) for item in value.head[:SHOWN_OF_LONG_ARRAY]]
        return {"array_of": value.element, "count": value.count, "first": first}
    if isinstance(value, tuple):
        return [_metadata_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
