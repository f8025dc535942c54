"""``experts simulate``: what more memory would buy on a recorded routing."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe import storage
from localmoe.app import rates
from localmoe.app import trace_documents as documents
from localmoe.app.machine import find_machine
from localmoe.cli.arguments import Options
from localmoe.cli.experts import screens
from localmoe.cli.experts.command import one_trace
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.facts import catalog
from localmoe.facts.bandwidth import value_at
from localmoe.routing.outlook import Speeds, estimated_speeds, expert_total, outlook
from localmoe.routing.records import Trace
from localmoe.text import format_bytes

GIB = 1 << 30
MORE = 8 * GIB  # the memory that people buy
RESERVED = GIB  # process, KV cache and buffers, roughly
MATRICES = 3  # of an expert: gate, up, down
USUAL = "Q4_K"  # a trace does not say of which type the weights are


def simulate_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Hit rate, reads and tokens/s against memory."""
    trace = one_trace("simulate", words)
    speeds = machine_speeds(trace, options, output) if expert_total(trace) else None
    simulated(trace, speeds, options, output)
    return 0


def simulated(trace: Trace, speeds: Speeds | None, options: Options, output: Output) -> None:
    """Show what caches of several sizes would do, and with ``speeds`` how fast that is."""
    rows = outlook(trace, speeds=speeds)
    sentences = [advice] if (advice := _advice(trace, speeds, options)) else []
    if output.as_json:
        output.json(documents.simulate_document(trace, rows, speeds, sentences))
    else:
        output.print(*screens.simulate(trace, rows, speeds, sentences))


def machine_speeds(trace: Trace, options: Options, output: Output) -> Speeds | None:
    """This machine's, or that of ``--machine``; None where they are not known."""
    request = plan_request(options)
    if request.machine is not None:
        known = rates.rates_of_file(request.machine)
    else:
        place = catalog.resolve(options.model) if options.model else storage.models_dir()
        machine = find_machine(request, hypothetical=True)
        known = rates.rates_at(machine, place, output)
    if known is None or not known.disk:
        output.note("the speed of this machine or of its disk is not known: no speeds")
        return None
    disk = value_at(known.disk[0].reads, _read_size(trace))
    threads = options.threads or known.ram[-1][0]
    return estimated_speeds(trace, value_at(known.types[USUAL].vector, threads), disk)


def _read_size(trace: Trace) -> float:
    """Bytes of a read: one of an expert's matrices."""
    sizes = [layer.expert_bytes for layer in trace.header.layers]
    return sum(sizes) / len(sizes) / MATRICES


def _advice(trace: Trace, speeds: Speeds | None, options: Options) -> str:
    """ "with 8 GiB more RAM: 11 tok/s instead of 6", for this machine's memory."""
    total = expert_total(trace)
    if speeds is None or not total:
        return ""
    machine = find_machine(plan_request(options), hypothetical=True)
    room = options.cache_ram or machine.ram_available - trace.header.dense_bytes - RESERVED
    room = max(room, 0)
    if room >= total:
        return f"all experts fit in this machine's memory: {speeds.resident_tps:.1f} tok/s"
    more = min(MORE, total - room)
    rows = outlook(trace, (room / total, (room + more) / total), speeds)
    if len(rows) < 2 or rows[0].tps is None or rows[1].tps is None:
        return f"less than one token's experts fit in this machine's memory ({format_bytes(room)})"
    now, then = rows
    return (
        f"with {format_bytes(more)} more RAM: {then.tps:.1f} tok/s instead of {now.tps:.1f} "
        f"({format_bytes(room)} for experts now)"
    )
