"""``experts simulate``: what more memory would buy on a recorded routing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from localmoe.cli import experts_documents, experts_screens, prepare
from localmoe.cli.arguments import Options
from localmoe.cli.experts import one_trace
from localmoe.cli.output import Output
from localmoe.errors import LocalmoeError
from localmoe.facts import catalog
from localmoe.facts.disk import measure_disk
from localmoe.routing.outlook import Speeds, estimated_speeds, expert_total, outlook
from localmoe.routing.records import Trace
from localmoe.text import format_bytes

GIB = 1 << 30
MORE = 8 * GIB  # the memory that people buy
RESERVED = GIB  # process, KV cache and buffers, roughly
SMALLEST_FILE = 64 << 20  # bytes; a smaller file says nothing about a disk
_BLOCK = 64 << 20


def simulate_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Hit rate, reads and tokens/s against memory."""
    trace = one_trace("simulate", words)
    speeds = machine_speeds(trace, options, output) if expert_total(trace) else None
    rows = outlook(trace, speeds=speeds)
    sentences = [advice] if (advice := _advice(trace, speeds, options)) else []
    if output.as_json:
        output.json(experts_documents.simulate_document(trace, rows, speeds, sentences))
    else:
        output.print(*experts_screens.simulate(trace, rows, speeds, sentences))
    return 0


def machine_speeds(trace: Trace, options: Options, output: Output) -> Speeds | None:
    """This machine's; None where nothing here can be measured."""
    path = _large_file(options)
    if path is None:
        output.note("no large model file here to measure the disk with: no speeds (-m MODEL)")
        return None
    try:
        disk = measure_disk(path)
    except LocalmoeError as error:
        output.warn(error.message)
        return None
    if options.resident_tps:
        return Speeds(disk, options.resident_tps, measured=True)
    return estimated_speeds(trace, ram_bandwidth(options.threads or os.cpu_count() or 1), disk)


def ram_bandwidth(threads: int) -> float:
    """Bytes/s that ``threads`` threads read from memory together; takes about 0.2 s."""
    import numpy as np

    blocks = [np.ones(_BLOCK // 8, np.int64) for _ in range(threads)]
    counts = [0] * threads
    stop = time.perf_counter() + 0.2

    def read(number: int) -> None:
        while time.perf_counter() < stop:
            blocks[number].max()
            counts[number] += _BLOCK

    start = time.perf_counter()
    workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def _large_file(options: Options) -> Path | None:
    """The model of ``-m``, else the largest one here."""
    if options.model is not None:
        return catalog.resolve(options.model)
    sizes = [(path.stat().st_size, path) for path in catalog.local_models()]
    large = [(size, path) for size, path in sizes if size >= SMALLEST_FILE]
    return max(large)[1] if large else None


def _advice(trace: Trace, speeds: Speeds | None, options: Options) -> str:
    """ "with 8 GiB more RAM: 11 tok/s instead of 6", for this machine's memory."""
    total = expert_total(trace)
    if speeds is None or not total:
        return ""
    machine = prepare.find_machine(options, imagined=True)
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
