"""What more memory would buy on a recorded routing, on this machine or one of a file."""

from __future__ import annotations

from localmoe import storage
from localmoe.app import rates
from localmoe.app.listener import Listener
from localmoe.app.machine import find_machine
from localmoe.app.machine_file import read_rates
from localmoe.app.requests import PlanRequest
from localmoe.errors import LocalmoeError
from localmoe.facts import catalog
from localmoe.facts.bandwidth import value_at
from localmoe.facts.model import Model, read_model
from localmoe.planning.clock import HIDDEN
from localmoe.planning.speed import experts_read_speed, in_memory_speed
from localmoe.routing.outlook import Speeds, estimated_speeds, expert_total, outlook
from localmoe.routing.records import Trace
from localmoe.text import format_bytes

GIB = 1 << 30
MORE = 8 * GIB  # the RAM that people add
RESERVED = GIB  # process, KV cache and buffers, roughly
MATRICES = 3  # of an expert: gate, up, down
ASSUMED_TYPE = "Q4_K"  # of the weights: a trace does not have it


def speeds_for(
    trace: Trace, request: PlanRequest, name: str | None, listener: Listener
) -> Speeds | None:
    """The speeds of the request's machine with the model of a trace; None: unknown.

    ``name``: a model on the disk to read from; None: the disk of ``models_dir``.
    """
    if request.machine is not None:
        known = read_rates(request.machine)
    else:
        place = catalog.resolve(name) if name else storage.models_dir()
        machine = find_machine(request, hypothetical=True)
        known = rates.rates_at(machine, place, listener)
    if known is None or not known.disk:
        listener.note("the speed of this machine or of its disk is not known: no speeds")
        return None
    threads = request.wishes.threads or int(known.ram[-1][0])
    model = _model_of(trace, name)
    if model is not None:  # by the formula of ``fit``
        tps, disk = in_memory_speed(model, known, threads)
        return Speeds(disk, HIDDEN["private"], tps, measured=False)
    listener.note("the trace's model is not here (-m names it): its speed is an upper bound")
    sizes = [layer.expert_bytes for layer in trace.header.layers]
    disk = experts_read_speed(known, sum(sizes) / len(sizes) / MATRICES)
    memory = value_at(known.types[ASSUMED_TYPE].vector, threads)
    return estimated_speeds(trace, memory, disk, HIDDEN["private"])


def _model_of(trace: Trace, name: str | None) -> Model | None:
    """The model that was recorded: ``name``, or what the trace calls it, if that is here."""
    name = name or trace.header.model
    try:
        model = read_model(catalog.resolve(name))
    except LocalmoeError:
        return None
    layers = [(e.index, e.expert_count) for e in model.layers if e.expert_count and e.loaded]
    return model if layers == [(e.index, e.experts) for e in trace.header.layers] else None


def advice(trace: Trace, speeds: Speeds | None, request: PlanRequest) -> str:
    """``with 8.0 GiB more RAM: 11.0 tok/s instead of 6.1 …``; "" where speeds or sizes are unknown.

    The RAM is that of the request's machine.
    """
    total = expert_total(trace)
    if speeds is None or not total:
        return ""
    machine = find_machine(request, hypothetical=True)
    free = machine.ram_available - trace.header.dense_bytes - RESERVED
    memory = max(request.wishes.cache_ram or free, 0)  # bytes for experts
    if memory >= total:
        return f"all experts fit in this machine's memory: {speeds.resident_tps:.1f} tok/s"
    more = min(MORE, total - memory)
    rows = outlook(trace, (memory / total, (memory + more) / total), speeds)
    if len(rows) < 2 or rows[0].tps is None or rows[1].tps is None:
        held = format_bytes(memory)
        return f"less than one token's experts fit in this machine's memory ({held})"
    now, then = rows
    return (
        f"with {format_bytes(more)} more RAM: {then.tps:.1f} tok/s instead of {now.tps:.1f} "
        f"({format_bytes(memory)} for experts now)"
    )
