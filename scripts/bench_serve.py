"""What HTTP costs: the same greedy answers in this process, and through `localmoe serve`.

    python scripts/bench_serve.py MODEL                        # ours alone
    python scripts/bench_serve.py MODEL --vs LLAMA_SERVER      # and llama-server with the same file
    python scripts/bench_serve.py MODEL --vs LLAMA_SERVER --memory 0.4

By turns, one prompt that nobody has read: tok/s and the time to the first token as a client sees
them; medians, minimum and maximum. The tokens that end an answer are banned. `localmoe run` is a
process of its own, timed from its start, attached to the server. With ``--memory`` each server has
that share of the file's size, in a control group of its own, and is started anew, cold, for each
run: nothing else is measured then. ``--no-reference`` leaves out the answers in this process, which
has the model a second time.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from gguf import GGUFReader

import localmoe
from localmoe.bench.cold_start import forget
from localmoe.bench.limits import Box, memory_box
from localmoe.chat.events import AnswerDelta, TurnDone

PROMPT = "Tell me about mixtures of experts. "
CONTROL = 3  # token_type of GGUF: no text of an answer
THREADS = str(os.cpu_count())
SERVE, RUN, LLAMA = "localmoe serve", "localmoe run, attached", "llama-server"


@dataclass(frozen=True, slots=True)
class Run:
    """One answer, as its reader saw it."""

    first_s: float
    tps: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked each time, of which file."""

    model: str
    tokens: int  # of the answer
    context: int
    bias: Mapping[str, float]
    repack: str = "off"  # by localmoe serve


Ask = Callable[[str], Run]
Open = Callable[[], AbstractContextManager[Ask]]


def timed(pieces: Iterator[int]) -> Run:
    """``pieces``: 0 for each piece of text as it comes; at last the number of tokens."""
    asked = time.perf_counter()
    came = [(time.perf_counter(), tokens) for tokens in pieces]
    *texts, (end, tokens) = came
    first, last = (texts[0][0], texts[-1][0]) if texts else (end, end)
    return Run(first - asked, (tokens - 1) / (last - first) if last > first else math.nan)


@contextlib.contextmanager
def in_process(asked: Asked) -> Iterator[Ask]:
    """Through the Python API: the same worker, and no HTTP."""
    bias = {int(token): value for token, value in asked.bias.items()}
    with localmoe.load(asked.model, context=asked.context) as model:

        def pieces(prompt: str) -> Iterator[int]:
            answer = model.generate(prompt, max_tokens=asked.tokens, temperature=0, logit_bias=bias)
            for event in answer:
                if isinstance(event, AnswerDelta):
                    yield 0
                elif isinstance(event, TurnDone):
                    yield event.usage.completion_tokens

        yield lambda prompt: timed(pieces(prompt))


def over_http(address: str, asked: Asked) -> Ask:
    """Through ``/v1/completions``, streamed."""
    body = {
        "max_tokens": asked.tokens,
        "temperature": 0,
        "logit_bias": asked.bias,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    def pieces(prompt: str) -> Iterator[int]:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc)) as connection:
            headers, data = {"content-type": "application/json"}, {**body, "prompt": prompt}
            connection.request("POST", "/v1/completions", json.dumps(data), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(answer.read().decode())
            while line := answer.readline():
                if not line.startswith(b"data: {"):
                    continue
                if b'"completion_tokens":' in line:  # with llama-server, in the last of the choices
                    yield json.loads(line[6:])["usage"]["completion_tokens"]
                elif b'"text":""' not in line:
                    yield 0

    return lambda prompt: timed(pieces(prompt))


@contextlib.contextmanager
def attached(asked: Asked) -> Iterator[Ask]:
    """Through `localmoe run`, which finds the server: from the start of its process on."""
    how = ["--plain", "--temp", "0", "-n", str(asked.tokens), "-q", "--no-history", "--jsonl"]

    def pieces(prompt: str) -> Iterator[int]:
        command = [sys.executable, "-m", "localmoe", "run", asked.model, prompt, *how]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if b'"event": "answer"' in line:
                    yield 0
                elif b'"completion_tokens": ' in line:
                    yield json.loads(line)["usage"]["completion_tokens"]

    yield lambda prompt: timed(pieces(prompt))


@contextlib.contextmanager
def serving(asked: Asked, box: Box) -> Iterator[Ask]:
    """`localmoe serve`."""
    command = [sys.executable, "-m", "localmoe", "serve", asked.model, "--port", "0"]
    command += ["-c", str(asked.context), "--threads", THREADS, "--repack", asked.repack]
    with started(command, box) as (process, log):
        while not (said := log.read_text().partition("listening on ")[2]).endswith("\n"):
            alive(process, log)
        yield over_http(said.split()[0], asked)


@contextlib.contextmanager
def llama_server(program: str, asked: Asked, box: Box, *more: str) -> Iterator[Ask]:
    """llama-server, when it is healthy. ``more``: options of its own."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [program, "-m", asked.model, "--port", str(port), "-c", str(asked.context)]
    command += ["-t", THREADS, "-np", "1", "--no-warmup", *more]
    with started(command, box) as (process, log):
        while not is_healthy(port):
            alive(process, log)
        yield over_http(f"http://127.0.0.1:{port}", asked)


@contextlib.contextmanager
def started(command: Sequence[str], box: Box) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A program in its box, and the file with what it says; it ends with the block."""
    with (
        tempfile.NamedTemporaryFile(prefix="bench-serve-") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        box.admit(process.pid)
        try:
            yield process, Path(log.name)
        finally:
            process.terminate()


def alive(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait a moment. Raises SystemExit with its last words when the program has ended."""
    if process.poll() is not None:
        raise SystemExit(f"{process.args!r} ended: {log.read_text()[-1000:]}")
    time.sleep(0.05)


def is_healthy(port: int) -> bool:
    with (
        contextlib.suppress(OSError),
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection,
    ):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def together(open_: Mapping[str, Open], runs: int, prompt: str) -> dict[str, list[Run]]:
    """All of them open at once, asked by turns; the first turn warms up."""
    done: dict[str, list[Run]] = {name: [] for name in open_}
    with contextlib.ExitStack() as stack:
        asks = {name: stack.enter_context(opened()) for name, opened in open_.items()}
        for turn in range(runs + 1):
            for number, (name, ask) in enumerate(asks.items()):
                run = ask(f"{100 + turn * len(asks) + number}. {prompt}")  # nobody has read it
                if turn:
                    done[name].append(run)
    return done


def one_by_one(
    open_: Mapping[str, Open], runs: int, prompt: str, path: Path
) -> dict[str, list[Run]]:
    """Each started for each run, with nothing of the file in memory; its first answer warms up."""
    done: dict[str, list[Run]] = {name: [] for name in open_}
    for _ in range(runs):
        for name, opened in open_.items():
            forget([path])
            with opened() as ask:
                ask(f"100. {prompt}")
                done[name].append(ask(f"101. {prompt}"))
            print(f"{name}: {done[name][-1]}", file=sys.stderr)
    return done


def table(done: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """The figures as Markdown; ratios to the first row."""
    yield "| | tok/s | of the first | first token, ms |"
    yield "|---|---|---|---|"
    first = statistics.median(run.tps for run in next(iter(done.values())))
    for name, runs in done.items():
        tps, wait = [run.tps for run in runs], [1000 * run.first_s for run in runs]
        yield (
            f"| {name} | {spread(tps)} | {statistics.median(tps) / first:.3f} | {spread(wait)} |"
        )


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def control_tokens(path: Path) -> list[int]:
    """Tokens that are no text, those that end an answer among them."""
    kinds = GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()
    return [number for number, kind in enumerate(kinds) if kind == CONTROL]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a file", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=128, help="roughly")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vs", metavar="LLAMA_SERVER")
    parser.add_argument("--memory", type=float, metavar="SHARE")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--repack", choices=("off", "on"), default="off", help="localmoe serve's")
    given = parser.parse_args()
    context = -(-(2 * given.prompt_tokens + given.tokens + 64) // 256) * 256
    bias = {str(token): -100.0 for token in control_tokens(given.model)}
    asked = Asked(str(given.model), given.tokens, context, bias, given.repack)
    prompt = PROMPT * (given.prompt_tokens // 8)
    limit = given.memory and round(given.memory * given.model.stat().st_size)

    def boxed(open_in: Callable[[Box], AbstractContextManager[Ask]]) -> Open:
        @contextlib.contextmanager
        def opened() -> Iterator[Ask]:
            with memory_box(limit) as box, open_in(box) as ask:
                yield ask

        return opened

    open_: dict[str, Open] = {SERVE: boxed(lambda box: serving(asked, box))}
    if given.vs:
        maps = ["--no-repack"] if limit else []  # weights in another order are no file's pages
        open_[LLAMA] = boxed(lambda box: llama_server(given.vs, asked, box, *maps))
    if limit:
        done = one_by_one(open_, given.runs, prompt, given.model)
    else:
        open_[RUN] = lambda: attached(asked)
        reference: dict[str, Open] = {"in the process": lambda: in_process(asked)}
        done = together(open_ if given.no_reference else reference | open_, given.runs, prompt)
    for name, runs in done.items():
        per_token = 1e6 / statistics.median(run.tps for run in runs)
        print(f"{name}: {per_token:.0f} µs a token", file=sys.stderr)
    print("\n".join(table(done)))


if __name__ == "__main__":
    main()
