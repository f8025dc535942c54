"""A worker as a second device: where the bytes are, which tokens come, and what its death does."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.cli import loaded
from localmoe.cli.arguments import parse
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Finished, Loaded, Request, Sampling, Token
from localmoe.engine.oracle import Oracle
from localmoe.engine.rpc import greet
from localmoe.engine.rpc_serving import Server
from localmoe.errors import EngineCrashError, EngineError, EngineMemoryError
from localmoe.facts.model import read_model
from localmoe.planning.cache import needed_budget
from localmoe.planning.layout import experts_to_host
from localmoe.planning.memory import CPU, EngineSettings
from tests.archs.rpc_server import HOST, free_port, invented_cards, rpc_server
from tests.chat import templates
from tests.engine.cached import planned
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process

GIB = 1 << 30
GREEDY = Sampling(temperature=0.0)
PROMPT = "A mixture of experts has many small networks and a router. " * 2


@pytest.fixture
def server(rpc_lib: Path) -> Iterator[Server]:
    with Server(HOST, free_port(), 1, 2 * GIB) as running:
        yield running


def text_of(engine: Engine, prompt: str, tokens: int) -> str:
    request = Request(prompt, max_tokens=tokens, sampling=GREEDY)
    return "".join(e.text for e in engine.generate(request) if isinstance(e, Token))


@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "gpt-oss"])
def test_same_bytes_as_planned_and_same_tokens_as_alone(
    architecture: str, arch_file: Callable[..., Path], server: Server
) -> None:
    """The engine says that the bytes are where the plan has put them; greedy tokens are equal."""
    path = arch_file(architecture)
    model = read_model(path)
    options = parse(["run", str(path), "--remote", server.endpoint, "--ctx", "512"])
    machine = find_machine(plan_request(options), hypothetical=False)
    assert [gpu.remote for gpu in machine.gpus] == [server.endpoint]
    plan = plan_for(model, machine, plan_request(options), hypothetical=False)
    assert plan.settings.devices == ("RPC0",)
    with Engine(model, plan.settings) as engine:
        loaded = list(engine.load())[-1]
        assert isinstance(loaded, Loaded)
        there = text_of(engine, "The first question is", 12)
    assert loaded.memory.on("RPC0") == plan.memory.on("RPC0")
    assert loaded.memory.on("RPC0").weights >= model.expert_bytes
    alone = dataclasses.replace(plan.settings, devices=(), gpu_layers=0, remotes=())
    with Engine(model, alone) as engine:
        list(engine.load())
        assert text_of(engine, "The first question is", 12) == there


def test_experts_of_some_layers_stay_here(arch_file: Callable[..., Path], server: Server) -> None:
    """--experts-on ram is executed on two devices: the layers' bytes are on neither's account."""
    path = arch_file("qwen3moe")
    model = read_model(path)
    arguments = ["run", str(path), "--remote", server.endpoint, "--ctx", "512"]
    options = parse([*arguments, "--experts-on", "ram:0-1"])
    asked = plan_request(options)
    plan = plan_for(model, find_machine(asked, hypothetical=False), asked, hypothetical=False)
    assert [row.experts for row in plan.layers] == ["ram", "ram", "gpu", "gpu"]
    with Engine(model, plan.settings) as engine:
        loaded = list(engine.load())[-1]
    assert isinstance(loaded, Loaded)
    assert loaded.memory.on("RPC0") == plan.memory.on("RPC0")
    kept = sum(layer.expert_bytes for layer in model.layers[:2])
    whole = engine_weights(model.dense_bytes + model.expert_bytes - kept, path)
    assert loaded.memory.on("RPC0").weights == pytest.approx(whole, rel=0.02)


def engine_weights(count: int, path: Path) -> int:
    """Bytes on the device: all that is left, but the embedding, which is looked up on the host."""
    model = read_model(path)
    embedding = next(t for t in model.tensors if t.name == "token_embd.weight")
    tied = all(t.name != "output.weight" for t in model.tensors)
    return count if tied else count - embedding.nbytes


def test_a_worker_killed_in_the_middle_is_a_clear_error(
    arch_file: Callable[..., Path], server: Server
) -> None:
    """No assertion text of llama.cpp's: it is said which connection was lost; alone it goes on."""
    model = read_model(arch_file("qwen3moe"))
    settings = EngineSettings(
        2048, devices=("RPC0",), gpu_layers=-1, remotes=(server.endpoint,), threads=1
    )
    with Engine(model, settings) as engine:
        list(engine.load())
        with pytest.raises(
            EngineCrashError, match=f"lost the connection to the worker at {server.endpoint}"
        ) as caught:
            for event in engine.generate(Request("Go on.", max_tokens=2000, sampling=GREEDY)):
                if isinstance(event, Token) and event.tokens == 3:
                    os.kill(server.pid, signal.SIGKILL)
        assert caught.value.hint is not None and "localmoe worker" in caught.value.hint
        assert not engine.alive
        with pytest.raises(EngineError, match="no worker answers at"):
            list(engine.load())


def test_a_worker_that_died_is_started_again(server: Server) -> None:
    """Its clients can come back."""
    before = server.pid
    os.kill(before, signal.SIGKILL)
    while server.next_event() != "ended":
        pass
    assert server.pid != before
    greet(server.endpoint)


def test_what_a_worker_gives_is_what_it_was_told(server: Server) -> None:
    """llama.cpp would report all of the installed RAM as free."""
    (gpu,) = engine_info((server.endpoint,)).gpus
    assert gpu.remote == server.endpoint
    assert 0 < gpu.free <= gpu.total == 2 * GIB


def test_no_worker_there() -> None:
    """Refused at once, with what to type on the other machine."""
    with pytest.raises(EngineError, match=r"no worker answers at 127\.0\.0\.1:1: conn") as caught:
        engine_info(("127.0.0.1:1",))
    assert caught.value.hint == "on that machine: localmoe worker --port 1"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "is no worker"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(20), "another version|is no worker"),
        (struct.pack("<Q4B", 28, 3, 1, 0, 0) + bytes(24), r"another version .*\(3\.1\)"),
    ],
)
def test_what_is_no_worker_of_ours(rpc_lib: Path, answer: bytes, words: str) -> None:
    """Anything else that listens there is told from a worker, without a crash or a wait."""
    with socket.create_server((HOST, 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(64)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(EngineError, match=words):
            greet(f"{HOST}:{listening.getsockname()[1]}")


def test_a_worker_in_use_is_told(rpc_lib: Path) -> None:
    """A worker serves one client; the next one hears of it instead of waiting for ever."""
    with socket.create_server((HOST, 0)) as listening:  # accepts, and answers nobody
        endpoint = f"{HOST}:{listening.getsockname()[1]}"
        with pytest.raises(EngineError, match="serves somebody else"):
            greet(endpoint, patience=0.3)


def test_a_port_in_use_is_refused(rpc_lib: Path) -> None:
    with (
        socket.create_server((HOST, 0)) as listening,
        pytest.raises(EngineError, match="already") as caught,
    ):
        Server(HOST, listening.getsockname()[1], 1, None)
    assert caught.value.hint is not None and "--port" in caught.value.hint


def test_memory_taken_before_the_load_is_planned_around(
    large_file: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has less than when it was asked: one new plan with what is free, and it runs."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    err = io.StringIO()
    output = Output(out=io.StringIO(), err=err)
    arguments = ["run", str(large_file), "--remote", server.endpoint, "--ctx", "256", "--plain"]
    with loaded.open_model(str(large_file), parse(arguments), output) as model:
        before = model.plan
        assert before.tiers.gpu > 330 << 20
        held = (
            int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        )
        limit = held + (330 << 20)
        resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, limit))
        memory = loaded.load(model, output).memory
        assert model.plan.tiers.gpu < before.tiers.gpu
        assert memory.on("RPC0") == model.plan.memory.on("RPC0")
        assert memory.on(CPU).weights > before.memory.on(CPU).weights
    assert "planned anew with what is free now: worker" in err.getvalue()


def test_memory_that_is_gone_without_a_better_plan_is_an_error(
    large_file: Path, server: Server
) -> None:
    """Where the engine is not asked for another plan, the error names the device."""
    settings = EngineSettings(256, devices=("RPC0",), gpu_layers=-1, remotes=(server.endpoint,))
    held = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limit = held + (200 << 20)
    resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, limit))
    with (
        Engine(read_model(large_file), settings) as engine,
        pytest.raises(EngineMemoryError, match="RPC0"),
    ):
        list(engine.load())


def test_the_worker_command(rpc_lib: Path, tmp_path: Path) -> None:
    """``localmoe worker`` serves what it says, and ends with its starter."""
    from tests.cli.chat.test_real import Running

    port = free_port()
    command = Running(tmp_path, "worker", "--port", str(port), "--ram", "1", "--json")
    try:
        text = ""
        while not text.endswith("\n}\n"):
            text += command.read(1).decode()
        document = json.loads(text)
        assert document["endpoint"] == f"127.0.0.1:{port}"
        assert document["warning"] is None
        assert document["devices"][0]["total"] == GIB
        greet(document["endpoint"])
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(timeout=PATIENCE) == 0
    finally:
        command.process.kill()
        command.process.communicate()
    with pytest.raises(EngineError, match="no worker answers"):
        greet(f"127.0.0.1:{port}")


def test_the_chat_outlives_its_worker(
    arch_file: Callable[..., Path], server: Server, tmp_path: Path
) -> None:
    """The error is one line, what was said stays, and the chat takes the next command."""
    from tests.cli.chat.test_real import Running

    path = arch_file("qwen3moe", template=templates.CHATML)
    command = Running(tmp_path, "chat", path, "--remote", server.endpoint, "--ctx", "2k")
    try:
        command.tell("hello")
        command.read(5)
        os.kill(server.pid, signal.SIGKILL)
        command.tell("/stats")
        code, _, err = command.end()
    finally:
        command.process.kill()
    assert code == 1  # of the turn that had no answer
    assert f"lost the connection to the worker at {server.endpoint}" in err
    assert "turns    1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "wish",
    [
        ("--experts-on", "ram"),
        ("--experts-on", "disk", "--cache", "page"),
        ("--experts-on", "disk", "--cache", "private"),
        ("--experts-on", "disk:2-3", "--cache", "private"),
        ("--experts-on", "ram:0", "--experts-on", "disk:2-3", "--cache", "private"),
        ("--experts-on", "disk", "-ot", r"blk\.2\.ffn_up_exps=RPC0", "--cache", "private"),
    ],
)
def test_dense_on_a_device_and_experts_in_ram_and_on_disk(
    wish: tuple[str, ...], arch_file: Callable[..., Path], server: Server
) -> None:
    """The layout of a small GPU, with each way to serve the experts: planned bytes, and the tokens
    of the run without a second device, to the end of the context.
    """
    path = arch_file("qwen3moe")
    model = read_model(path)
    options = parse(["run", "x", "--remote", server.endpoint, "--ctx", "256", "-t", "1", *wish])
    asked = plan_request(options)
    plan = plan_for(model, find_machine(asked, hypothetical=False), asked, hypothetical=False)
    assert {row.dense for row in plan.layers} == {"gpu"}
    regime = wish[-1] if "--cache" in wish else "resident"
    assert plan.cache.regime == regime
    with Engine(model, plan.settings, remember=False) as engine:
        loaded = list(engine.load())[-1]
        assert isinstance(loaded, Loaded)
        assert loaded.memory.on("RPC0") == plan.memory.on("RPC0")
        request = Request("The first question is", max_tokens=None, sampling=GREEDY)
        *events, last = engine.generate(request)
        there = "".join(event.text for event in events if isinstance(event, Token))
        assert isinstance(last, Finished)
        assert last.prompt_tokens + last.completion_tokens == 256
    alone = EngineSettings(
        256, batch=plan.settings.batch, ubatch=plan.settings.ubatch, threads=1, threads_batch=1
    )
    with Engine(model, alone, remember=False) as engine:
        list(engine.load())
        assert text_of(engine, "The first question is", 300) == there


def test_several_workers_with_several_devices(
    arch_file: Callable[..., Path], server: Server
) -> None:
    """Each device of each worker gets the bytes of the plan, and the tokens are those of one."""
    path = arch_file("qwen3moe")
    model = read_model(path)
    with invented_cards(GIB, devices=2) as two:
        options = parse(
            [
                *("run", str(path), "--remote", two, "--remote", server.endpoint, "-c", "512"),
                *("-ot", r"blk\.0\.ffn_up_exps=RPC1", "-ot", r"blk\.1\.ffn_down_exps=RPC2"),
            ]
        )
        machine = find_machine(plan_request(options), hypothetical=False)
        assert [(gpu.device, gpu.remote) for gpu in machine.gpus] == [
            ("RPC0", two),
            ("RPC1", two),
            ("RPC2", server.endpoint),
        ]
        plan = plan_for(model, machine, plan_request(options), hypothetical=False)
        with Engine(model, plan.settings) as engine:
            loaded = list(engine.load())[-1]
            assert isinstance(loaded, Loaded)
            there = text_of(engine, "The first question is", 12)
    for device in ("RPC0", "RPC1", "RPC2"):
        assert loaded.memory.on(device) == plan.memory.on(device)
        assert loaded.memory.on(device).weights
    alone = dataclasses.replace(
        plan.settings, devices=(), tensor_split=(), gpu_layers=0, overrides=(), remotes=()
    )
    with Engine(model, alone) as engine:
        list(engine.load())
        assert text_of(engine, "The first question is", 12) == there


@pytest.fixture(scope="module")
def steady_worker(rpc_lib: Path) -> Iterator[str]:
    """A worker that no test ends."""
    with rpc_server(ram=2 * GIB) as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    "architecture",
    ["qwen3moe", "gpt-oss", "deepseek2", "qwen3next", "llama4", "gemma4", "granitehybrid"],
)
def test_the_cache_beside_a_device_changes_no_token(
    architecture: str, arch_file: Callable[..., Path], steady_worker: str
) -> None:
    """Routers on the second device, experts evicted and read again here: what plain llama.cpp says
    on the same devices with the same batches; bytes on the device as planned.
    """
    path = arch_file(architecture)
    model = read_model(path)
    layers = [layer.index for layer in model.layers if layer.expert_count]
    base = EngineSettings(
        256,
        batch=24,
        ubatch=24,
        devices=("RPC0",),
        gpu_layers=-1,
        overrides=experts_to_host(layers),
        remotes=(steady_worker,),
        threads=1,
        threads_batch=1,
    )
    cached = planned(path, base, "private", needed_budget(model, layers, 1))
    plain = dataclasses.replace(base, batch=cached.batch, ubatch=cached.ubatch)
    request = Request(PROMPT, max_tokens=24, sampling=GREEDY, ignore_end=True)
    said = []
    for settings in (cached, plain):
        with Engine(model, settings, remember=False) as engine:
            loaded = list(engine.load())[-1]
            assert isinstance(loaded, Loaded)
            *events, done = engine.generate(request)
            said.append("".join(event.text for event in events if isinstance(event, Token)))
        if settings is cached:
            assert isinstance(done, Finished)
            assert done.cache is not None
            assert done.cache.misses > 0
            assert done.cache.resident_bytes <= cached.cache_bytes
            with Oracle(model) as measure:
                assert measure(cached).on("RPC0") == loaded.memory.on("RPC0")
    assert said[0] == said[1]
