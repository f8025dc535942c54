"""What HTTP costs: the same greedy answers in this process, and through `localmoe serve`.

``python scripts/bench_serve.py MODEL [--tokens N] [--runs N] [--vs LLAMA_SERVER]``: alternating
runs of one prompt, tok/s and seconds to the first token as a client sees them; medians, minimum and
maximum. `localmoe run` is a process of its own, timed from its start, attached to the server.
``--vs`` adds llama-server of the same engine, with the same file; ``--no-reference`` leaves out the
answers in this process, which has the model a second time.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import localmoe
from localmoe.chat.events import AnswerDelta

PROMPT = "Tell me about mixtures of experts. "


@dataclass(frozen=True, slots=True)
class Run:
    """One answer, as its reader saw it."""

    first_s: float
    tps: float


Ask = Callable[[str], Run]


def timed(pieces: Iterator[float]) -> Run:
    """``pieces``: when each token came; the first value is when it was asked for."""
    asked, *came = pieces
    return Run(came[0] - asked, (len(came) - 1) / (came[-1] - came[0]))


def in_process(model: localmoe.LoadedModel, tokens: int) -> Ask:
    """Through the Python API: the same worker, and no HTTP."""

    def pieces(prompt: str) -> Iterator[float]:
        yield time.perf_counter()
        for event in model.generate(prompt, temperature=0, max_tokens=tokens):
            if isinstance(event, AnswerDelta):
                yield time.perf_counter()

    return lambda prompt: timed(pieces(prompt))


def over_http(address: str, tokens: int) -> Ask:
    """Through ``/v1/completions``, streamed."""

    def pieces(prompt: str) -> Iterator[float]:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc)) as connection:
            yield time.perf_counter()
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"data: {") and b'"text":""' not in line:
                    yield time.perf_counter()

    return lambda prompt: timed(pieces(prompt))


def attached(model: str, tokens: int) -> Ask:
    """Through `localmoe run`, which finds the server: from the start of its process on."""
    how = ["--plain", "--temp", "0", "-n", str(tokens), "-q", "--no-history"]

    def ask(prompt: str) -> Run:
        command = [sys.executable, "-m", "localmoe", "run", model, prompt, *how]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdout is not None
            came = []
            while process.stdout.read(4096):
                came.append(time.perf_counter())
        return Run(came[0] - began, (tokens - 1) / (came[-1] - came[0]))

    return ask


@contextlib.contextmanager
def serving(model: str, context: int) -> Iterator[str]:
    """The address of `localmoe serve`."""
    command = [sys.executable, "-m", "localmoe", "serve", model, "--port", "0", "-c", str(context)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "listening on http" in line:
                    yield line.split()[-1]
                    return
            raise SystemExit("localmoe serve did not start")
        finally:
            process.terminate()
            process.stderr.read()


@contextlib.contextmanager
def llama_server(program: str, model: str, context: int) -> Iterator[str]:
    """The address of a llama-server, when it is healthy."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = ["--port", str(port), "-c", str(context), "-np", "1", "--no-warmup"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([program, "-m", model, *options], **quiet) as process:  # type: ignore[call-overload]
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    connection = http.client.HTTPConnection("127.0.0.1", port)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def table(runs: dict[str, list[Run]]) -> Iterator[str]:
    """The figures as Markdown; ratios to the first row."""
    yield "| | tok/s | of the first | first token, ms |"
    yield "|---|---|---|---|"
    first = statistics.median(run.tps for run in next(iter(runs.values())))
    for name, done in runs.items():
        tps, wait = [run.tps for run in done], [1000 * run.first_s for run in done]
        yield (
            f"| {name} | {spread(tps)} | {statistics.median(tps) / first:.3f} | {spread(wait)} |"
        )


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a file")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=128, help="roughly")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vs", metavar="LLAMA_SERVER")
    parser.add_argument("--no-reference", action="store_true")
    given = parser.parse_args()
    context = -(-(2 * given.prompt_tokens + given.tokens + 64) // 256) * 256
    prompt = PROMPT * (given.prompt_tokens // 8)
    with contextlib.ExitStack() as stack:
        asks: dict[str, Ask] = {}
        if not given.no_reference:
            model = stack.enter_context(localmoe.load(given.model, context=context))
            asks["in the process"] = in_process(model, given.tokens)
        address = stack.enter_context(serving(given.model, context))
        asks["localmoe serve"] = over_http(address, given.tokens)
        asks["localmoe run, attached"] = attached(given.model, given.tokens)
        if given.vs:
            address = stack.enter_context(llama_server(given.vs, given.model, context))
            asks["llama-server"] = over_http(address, given.tokens)
        runs: dict[str, list[Run]] = {name: [] for name in asks}
        for number in range(given.runs + 1):
            for name, ask in asks.items():
                run = ask(f"{name} {number}. {prompt}")  # a prompt that nobody has read
                if number:  # the first warms up
                    runs[name].append(run)
    for name, done in runs.items():
        per_token = 1e6 / statistics.median(run.tps for run in done)
        print(f"{name}: {per_token:.0f} µs a token", file=sys.stderr)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
