"""Table: llama.cpp's own server, started with the flags that ``plan`` shows, places the same bytes.

    python scripts/check_server_flags.py BUILD_FOLDER > docs/server-flags.md

Each plan is loaded by our engine and by ``llama-server`` with workers on loopback as further
devices. Compared are the sizes of all buffers that the server logs, and eight greedy tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.cli.arguments import parse
from localmoe.cli.requests import plan_request
from localmoe.engine.client import Engine
from localmoe.engine.events import Loaded, Request, Sampling, Token
from localmoe.engine.rpc_build import build_rpc_library
from localmoe.facts.model import Model, read_model
from localmoe.planning.llama_args import buffer_type, llama_args
from localmoe.planning.memory import CPU, EngineSettings, MemoryReport
from localmoe.planning.plan import Plan
from scripts.llama_programs import programs
from tests.archs import generate
from tests.archs.rpc_server import HOST, free_port, invented_cards, rpc_server

MIB = 1 << 20
PROMPT = "The first question is"
TOKENS = 8
ARCHITECTURES = ("qwen3moe", "deepseek2", "gpt-oss", "llama4")
WISHES = {
    "all on the second device": (),
    "experts of layers 0 and 1 here": ("--experts-on", "ram:0-1"),
    "one projection of layers 2 and 3 here": ("-ot", r"blk\.[23]\.ffn_down_exps=CPU"),
    "two layers and the output there": ("-ngl", "3"),
    "all here": ("-ngl", "0"),
    "all there, q8_0 KV": ("--kv-type", "q8_0"),
}
SEVERAL = {  # a worker with two devices, and one with a single one
    "three devices of two workers": (),
    "and single tensors on the second and third": (
        *("-ot", r"blk\.0\.ffn_up_exps=RPC1", "-ot", r"blk\.1\.ffn_down_exps=RPC2"),
        *("-ot", r"blk\.2\.ffn_.*_exps=CPU"),
    ),
}
_BUFFER = re.compile(
    r"^.*?(?:load_tensors|llama_kv_cache\w*|llama_memory_\w+|llama_context|sched_reserve)[^:]*: "
    r" *(\S+) +(model|KV|RS|output|compute) buffer size *= *([\d.]+) MiB",
    re.MULTILINE,
)
_PART = {"model": "weights", "KV": "kv", "RS": "kv", "output": "compute", "compute": "compute"}

Placed = dict[tuple[str, str], float]
"""(device, part) → MiB."""


def ours(model: Model, plan: Plan) -> tuple[Placed, str]:
    """What our engine says after loading the plan, and its greedy answer."""
    with Engine(model, plan.settings) as engine:
        loaded = list(engine.load())[-1]
        assert isinstance(loaded, Loaded)
        request = Request(PROMPT, max_tokens=TOKENS, sampling=Sampling(temperature=0.0))
        text = "".join(e.text for e in engine.generate(request) if isinstance(e, Token))
    return placed(loaded.memory), text


def placed(memory: MemoryReport) -> Placed:
    return {
        (entry.device, part): getattr(entry, part) / MIB
        for entry in memory.devices
        for part in ("weights", "kv", "compute")
        if getattr(entry, part)
    }


def theirs(server: Path, model: Model, plan: Plan) -> tuple[Placed, str]:
    """The same of llama-server."""
    port = free_port()
    args = ["-m", str(model.paths[0]), *llama_args(plan.settings)]
    command = [str(server), *args, "--host", HOST, "--port", str(port), "--no-warmup", "-v"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait(process, port)
            question = {"prompt": PROMPT, "n_predict": TOKENS, "temperature": 0, "seed": 1}
            answer = json.loads(ask(port, "/completion", question))
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return logged(log.read(), plan.settings), answer["content"]


def logged(text: str, settings: EngineSettings) -> Placed:
    """Buffers in llama-server's log, host buffers of every kind together."""
    names = {buffer_type(device, settings): device for device in settings.devices}
    sizes: Placed = {}
    for name, part, size in _BUFFER.findall(text):
        key = (names.get(name, CPU), _PART[part])
        sizes[key] = sizes.get(key, 0.0) + float(size)
    return sizes


def wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            ask(port, "/health")
            return
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with {process.returncode}")
        time.sleep(0.1)
    raise RuntimeError("llama-server does not answer")


def ask(port: int, path: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", data, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def rows(
    server: Path, folder: Path, wishes: Mapping[str, tuple[str, ...]], endpoints: Sequence[str]
) -> Iterator[tuple[str, str, float, bool]]:
    """Architecture, wish, the largest difference of any buffer in MiB, whether tokens agree."""
    remotes = [word for endpoint in endpoints for word in ("--remote", endpoint)]
    for architecture in ARCHITECTURES:
        model = read_model(generate(architecture, folder))
        for name, wish in wishes.items():
            arguments = ["run", "x", *remotes, "--ctx", "1k", "-t", "1", *wish]
            options = parse(arguments)
            request = plan_request(options)
            machine = find_machine(request, hypothetical=False)
            plan = plan_for(model, machine, request, hypothetical=False)
            (mine, said), (other, answered) = ours(model, plan), theirs(server, model, plan)
            keys = mine.keys() | other.keys()
            worst = max(abs(mine.get(key, 0.0) - other.get(key, 0.0)) for key in keys)
            print(architecture, name, mine, other, said, answered, sep="\n  ", file=sys.stderr)
            yield architecture, name, worst, said == answered


def main() -> int:
    server = programs(Path(sys.argv[1]))["llama-server"]
    build_rpc_library()
    print("# llama-server with the flags of `plan`\n")
    print(
        "Written by `scripts/check_server_flags.py`: every buffer that `llama-server` logs against"
    )
    print(
        "ours, with workers on loopback as further devices, at 1,024 tokens. The log has 0.01 MiB."
    )
    print("\n| architecture | plan | largest difference of a buffer | 8 greedy tokens |")
    print("|---|---|---|---|")
    worst = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        rpc_server() as one,
        invented_cards(1 << 30, devices=2) as two,
    ):
        found = itertools.chain(
            rows(server, Path(folder), WISHES, [one]),
            rows(server, Path(folder), SEVERAL, [two, one]),
        )
        for architecture, name, difference, same in found:
            worst = max(worst, difference)
            equal = "equal" if same else "differ"
            print(f"| {architecture} | {name} | {difference:.2f} MiB | {equal} |", flush=True)
    return 0 if worst < 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
