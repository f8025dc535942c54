"""One run of a llama.cpp program that the user has, to compare with: ``--vs COMMAND``.

``llama-server`` is asked over HTTP like the runs of ours: the same prompt, the same settings, cold,
under the same memory limit. ``llama-bench`` measures itself, after a warm-up and with tokens of its
own making, so there is no first token and no cold start to compare. Sources of options and answers:
``tools/server/README.md`` and ``tools/llama-bench/llama-bench.cpp`` of llama.cpp.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from localmoe.bench.limits import Box
from localmoe.bench.records import Run, Tick
from localmoe.bench.runner import SEED, Start, Watch, bytes_fetched, prompt_of
from localmoe.errors import EngineError, UsageError
from localmoe.facts.model import Model
from localmoe.planning.llama_args import llama_args
from localmoe.planning.memory import EngineSettings

HOST = "127.0.0.1"
BENCH, SERVER = "llama-bench", "llama-server"
PATIENCE = 3600.0  # seconds for a load or an answer: plain mapping may be very slow
_TAIL = 400  # characters of a program's last words


@dataclass(frozen=True, slots=True)
class Program:
    """A command line that begins one of the two programs."""

    name: str  # BENCH or SERVER: the regime of its runs
    command: tuple[str, ...]

    def measure(self, record: Run, model: Model, start: Start, box: Box) -> Run:
        """One run. Raises EngineError when the program fails."""
        measure = _serve if self.name == SERVER else _bench
        with tempfile.TemporaryFile() as log:
            try:
                return measure(self.command, record, model, start.settings, box, log)
            except (
                OSError,
                subprocess.SubprocessError,
                http.client.HTTPException,
                ValueError,
                KeyError,
            ) as error:
                raise EngineError(f"{self.name}: {_last_words(log) or error}") from error


def program_of(text: str) -> Program:
    """The program of ``--vs COMMAND``, which may have options of its own. Raises UsageError."""
    hint = f"--vs {SERVER}, --vs /opt/llama.cpp/bin/{BENCH}, --vs '{SERVER} -fa on'"
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--vs {text}: {error}", hint=hint) from None
    name = Path(command[0]).stem if command else ""
    if name not in (BENCH, SERVER):
        raise UsageError(f"--vs knows {SERVER} and {BENCH}, not {name or 'nothing'}", hint=hint)
    found = shutil.which(command[0])
    if found is None:
        raise UsageError(f"--vs {command[0]}: there is no such program", hint=hint)
    return Program(name, (found, *command[1:]))


def bench_args(settings: EngineSettings, prompt: int, steps: int) -> list[str]:
    """``llama-bench`` options for the same settings, as far as it knows them."""
    args = ["-p", str(prompt), "-n", str(steps), "-r", "1", "-o", "json"]
    args += ["-b", str(settings.batch), "-ub", str(settings.ubatch)]
    args += ["-ctk", settings.type_k, "-ctv", settings.type_v]
    args += ["-dev", "/".join(settings.devices) or "none", "-lm", settings.load_mode]
    layers = settings.gpu_layers if settings.gpu_layers >= 0 else 999
    args += ["-ngl", str(layers), "--repack", "1" if settings.repack else "0"]
    if settings.overrides:
        args += ["-ot", ";".join(f"{pattern}={device}" for pattern, device in settings.overrides)]
    if settings.threads:
        args += ["-t", str(settings.threads)]
    return args


def _bench(
    command: tuple[str, ...],
    record: Run,
    model: Model,
    settings: EngineSettings,
    box: Box,
    log: IO[bytes],
) -> Run:
    job = record.job
    args = ["-m", str(model.paths[0]), *bench_args(settings, job.prompt_tokens, job.steps)]
    with _running([*command, *args], box, log, subprocess.PIPE) as process, Watch(process.pid) as w:
        answer, _ = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise EngineError(f"{BENCH} ended with {process.returncode}: {_last_words(log)}")
    prefill, decode = speeds_of_bench(json.loads(answer))
    return dataclasses.replace(
        record,
        prefill_tps=prefill,
        decode_tps=decode,
        cold=False,
        anonymous_peak=w.anonymous,
        locked_peak=w.locked,
        regime=BENCH,
    )


def speeds_of_bench(entries: Any) -> tuple[float, float]:
    """Tokens per second of reading and of writing in ``llama-bench -o json``. Raises ValueError."""
    try:
        (prefill,) = (float(e["avg_ts"]) for e in entries if e["n_prompt"] and not e["n_gen"])
        (decode,) = (float(e["avg_ts"]) for e in entries if e["n_gen"] and not e["n_prompt"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"{BENCH} answered something else: {error!r}") from None
    return prefill, decode


def _serve(
    command: tuple[str, ...],
    record: Run,
    model: Model,
    settings: EngineSettings,
    box: Box,
    log: IO[bytes],
) -> Run:
    job, port = record.job, _free_port()
    args = ["-m", str(model.paths[0]), *llama_args(settings)]
    args += ["--host", HOST, "--port", str(port), "--no-warmup"]
    started = time.perf_counter()
    with _running([*command, *args], box, log) as process, Watch(process.pid) as watch:
        _wait(process, port, log)
        loaded = time.perf_counter()
        prompt = prompt_of(job.prompt_tokens, lambda text: _count(port, text))
        ticks, text, timings = _answer(port, prompt, job.steps, process.pid)
        watch.look()
    if not ticks or ticks[-1].tokens <= job.steps:
        raise EngineError(f"{SERVER} wrote {ticks[-1].tokens if ticks else 0} tokens only")
    return dataclasses.replace(
        record,
        load_s=loaded - started,
        first_s=loaded - started + ticks[0].seconds,
        ttft_s=ticks[0].seconds,
        prefill_tps=float(timings["prompt_per_second"]),
        decode_tps=float(timings["predicted_per_second"]),
        ticks=ticks,
        anonymous_peak=watch.anonymous,
        locked_peak=watch.locked,
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        regime=SERVER,
    )


def _answer(
    port: int, prompt: str, steps: int, pid: int
) -> tuple[tuple[Tick, ...], str, Mapping[str, Any]]:
    """When each token came, the text, and what the server says of its speed."""
    body = {
        "prompt": prompt,
        "n_predict": steps + 1,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 1,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "seed": SEED,
    }
    asked = time.perf_counter()
    ticks: list[Tick] = []
    text: list[str] = []
    timings: Mapping[str, Any] = {}
    with _request(port, "/completion", body) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            tokens = int(event["tokens_predicted"])
            if not ticks or ticks[-1].tokens != tokens:
                ticks.append(Tick(tokens, time.perf_counter() - asked, bytes_fetched(pid)))
            text.append(event["content"])
            timings = event.get("timings", timings)
    return tuple(ticks), "".join(text), timings


def _count(port: int, text: str) -> int:
    with _request(port, "/tokenize", {"content": text}) as answer:
        return len(json.load(answer)["tokens"])


def _wait(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    """Until the model is loaded: ``/health`` says 503 before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), _request(port, "/health") as answer:
            if answer.status == http.client.OK:
                return
        if process.poll() is not None:
            raise EngineError(f"{SERVER} ended with {process.returncode}: {_last_words(log)}")
        time.sleep(0.02)
    raise EngineError(f"{SERVER} does not answer")


@contextlib.contextmanager
def _request(port: int, path: str, body: object = None) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    with contextlib.closing(connection):
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if data is None else "POST", path, data, headers)
        yield connection.getresponse()


@contextlib.contextmanager
def _running(
    command: list[str], box: Box, log: IO[bytes], stdout: int | IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The program in its box, ended with the block; Ctrl-C typed here does not reach it."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log if stdout is None else stdout,
        stderr=log,
        start_new_session=True,
    )
    with process:
        try:
            box.admit(process.pid)
            yield process
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def _last_words(log: IO[bytes]) -> str:
    """The end of what a program wrote, in one line."""
    log.seek(0)
    return " ".join(log.read().decode(errors="replace")[-_TAIL:].split())
