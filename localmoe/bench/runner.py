"""One run: a fresh worker in a memory box, from a cold file to the last token."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from localmoe.bench.cold_start import forget
from localmoe.bench.limits import Box, Unlimited, memory_box
from localmoe.bench.records import RESIDENT, Job, Run, Tick
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, Request, Sampling, Token
from localmoe.errors import LocalmoeError
from localmoe.facts.disk import Span, measure_reads
from localmoe.facts.model import Model, Role
from localmoe.planning.memory import EngineSettings
from localmoe.routing.records import Trace
from localmoe.routing.rewrite import write_trace

DISK_SECONDS = 0.7  # of each measurement; one before and one after a run
SEED = 1  # of the answer: the same in every run, so that equal logits give equal texts
_WATCH = 0.1  # seconds between looks at a worker's memory

_PASSAGE = """
A mixture of experts is a neural network whose layers hold many small networks, of which each token
uses only a few. The router looks at the token and decides. So a model can know much and still
answer quickly, as long as the experts that it asks for are near. When they are not, they must be
fetched: from the memory of the machine, or from its disk, which takes a thousand times longer than
the arithmetic. What was used a moment ago will often be used again, and that is why a cache helps.
On a Tuesday in March the ferry left the harbour at seven, with forty passengers, two lorries and a
crate of oranges. The captain, who had made this journey nine hundred times, read the newspaper. To
bake bread you need flour, water, salt, yeast and patience: mix, wait, fold, wait again, and heat
the oven to 240 degrees. The function returns the first index at which the predicate holds, or the
length of the list if there is none; its cost is logarithmic, since the list is sorted.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """How a regime is started: what the engine gets, and what the worker's environment says."""

    settings: EngineSettings
    planned: int = 0  # bytes of RAM that this will take
    cache_bytes: int = 0  # bytes of them for experts
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


Measure = Callable[[Run, Model, Start, Box], Run]
"""Makes one run in its box and notes in the record what it showed. Raises LocalmoeError."""


def run(job: Job, model: Model, start: Start, measure: Measure | None = None) -> Run:
    """Make one run, of our engine or of what ``measure`` starts.

    What goes wrong with it is told in the run, not raised.
    """
    record = Run(job=job, planned=start.planned, cache_bytes=start.cache_bytes)
    if job.regime != RESIDENT:
        record = dataclasses.replace(record, cold=forget(model.paths) == 0)
    before = disk_speed(model, job.repeat)
    with memory_box(job.memory) as box:
        try:
            record = (measure or measure_engine)(record, model, start, box)
        except LocalmoeError as error:
            out = f" (killed for want of memory: {box.kind})" if box.kills() else ""
            record = dataclasses.replace(record, error=error.message + out)
        record = dataclasses.replace(record, limited_by=box.kind, charged_peak=box.peak())
    after = disk_speed(model, -1 - job.repeat)
    return dataclasses.replace(record, disk_before=before, disk_after=after)


def trial(job: Job, model: Model, start: Start) -> Run:
    """A run as people make it: no limit, the files as cached as they are. Raises LocalmoeError."""
    return measure_engine(Run(job=job, cold=False), model, start, Unlimited())


def measure_engine(record: Run, model: Model, start: Start, box: Box) -> Run:
    """One run of our engine. Raises LocalmoeError."""
    job = record.job
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        with _environment(start.environment):
            engine = stack.enter_context(Engine(model, start.settings, remember=False))
        box.admit(engine.pid)
        watch = stack.enter_context(Watch(engine.pid))
        *_, loaded = engine.load()
        assert isinstance(loaded, Loaded)
        prompt = prompt_of(job.prompt_tokens, engine.count_tokens)
        request = Request(
            prompt,
            max_tokens=job.steps + 1,
            sampling=Sampling(
                temperature=1, top_k=0, top_p=1, min_p=0, seed=SEED
            ),  # greedy may loop
            add_bos=False,
            ignore_end=True,
        )
        fetched = bytes_fetched(engine.pid)
        asked = time.perf_counter()
        ticks: list[Tick] = []
        text = hashlib.sha256()
        done: Finished | None = None
        for event in engine.generate(request):
            if isinstance(event, Token):
                now = time.perf_counter() - asked
                if not ticks or ticks[-1].tokens != event.tokens:
                    ticks.append(Tick(event.tokens, now, bytes_fetched(engine.pid)))
                text.update(event.text.encode())
            elif isinstance(event, Finished):
                done = event
        assert done is not None
        watch.look()
        cache = done.cache
        return dataclasses.replace(
            record,
            load_s=loaded.load_s,
            first_s=asked - started + done.ttft_s,
            ttft_s=done.ttft_s,
            prefill_tps=done.prefill_tps or 0.0,
            decode_tps=done.decode_tps or 0.0,
            ticks=tuple(ticks),
            anonymous_peak=watch.anonymous,
            locked_peak=watch.locked,
            digest=text.hexdigest()[:16],
            regime=cache.regime if cache else loaded.cache,
            cache_bytes=cache.budget if cache and cache.budget else record.cache_bytes,
            hits=cache.hits if cache else None,
            misses=cache.misses if cache else None,
            bytes_read=cache.bytes_read if cache else None,
            prompt_read=ticks[0].read - fetched if ticks else None,
            stall_s=cache.stall_s if cache else None,
        )


def prompt_of(tokens: int, count: Callable[[str], int]) -> str:
    """Ordinary text of that many tokens, as ``count`` counts them; the nearest it finds."""
    words = _PASSAGE.split()
    words *= 1 + tokens // len(words)
    low, high = 1, len(words)  # some word per token at least, so enough of them
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if count(" ".join(words[:middle])) <= tokens else (low, middle - 1)
        )
    text = " ".join(words[:low])
    for _ in range(64):
        if count(text) >= tokens:
            break
        text += " a"
    return text


def spans_to_time(model: Model) -> list[Span]:
    """What the disk is timed with: each routed expert's part of each tensor; else whole files.

    The parts are what a cache of experts reads at once.
    """
    spans: list[Span] = []
    for tensor in model.tensors:
        if tensor.role is Role.ROUTED_EXPERT and tensor.loaded and len(tensor.shape) == 3:
            count = tensor.shape[-1]
            size = tensor.nbytes // count
            path = model.paths[tensor.part]
            spans += [Span(path, tensor.offset + i * size, size) for i in range(count)]
    return spans or [Span(path, 0, path.stat().st_size) for path in model.paths]


def disk_speed(model: Model, seed: int) -> float:
    """Bytes per second of direct reads of experts, picked at random, as large as they are."""
    spans = spans_to_time(model)
    random.Random(seed).shuffle(spans)
    return measure_reads(spans, seconds=DISK_SECONDS)


@contextlib.contextmanager
def routing_file(routing: Trace | None, name: str) -> Iterator[str]:
    """A routing in a file that the worker reads quickly; "" for none.

    Reading the user's own file, which may be a large CSV, would count as loading. It has the same
    ``name``, since errors are about the user's.
    """
    if routing is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_trace(path, routing)
        yield str(path)


def bytes_fetched(pid: int) -> int:
    """What a process has fetched from the disk: page faults, reads and direct reads; 0 if unknown.

    ``read_bytes`` of /proc/PID/io (proc_pid_io(5)).
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            if name == "read_bytes":
                return int(value)
    return 0


class Watch:
    """Looks at the memory of a process now and then, and keeps the most it saw, in bytes."""

    def __init__(self, pid: int) -> None:
        self.anonymous = self.locked = 0
        self._status = Path(f"/proc/{pid}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """One look, now."""
        with contextlib.suppress(OSError, ValueError):
            lines = self._status.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            self.anonymous = max(self.anonymous, _kib(fields.get("RssAnon", "")))
            self.locked = max(self.locked, _kib(fields.get("VmLck", "")))

    def _watch(self) -> None:
        while not self._stop.wait(_WATCH):
            self.look()


def _kib(field: str) -> int:
    number = field.removesuffix("kB").strip()
    return int(number) * 1024 if number else 0


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Our environment with ``values`` in it, which a worker that starts meanwhile gets."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
