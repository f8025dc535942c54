"""Several machines: addresses, ports that are taken, what else may listen there, what is sent."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmoe.app.experience import place_of
from localmoe.cli.arguments import parse
from localmoe.engine import package, rpc, rpc_build, rpc_serving
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Loaded
from localmoe.engine.rpc import greet
from localmoe.engine.rpc_serving import Server, address_of, require_free
from localmoe.engine.worker.rpc_server import prune
from localmoe.errors import EngineCrashError, EngineError, UsageError
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests.archs.rpc_server import HOST, free_port
from tests.cli.chat import scripted_model
from tests.cli.chat.test_real import Running
from tests.cli.command import Localmoe, assert_clear_error
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.process

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a plain web server."""
    with http.server.ThreadingHTTPServer((HOST, 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_second_worker_on_a_port_is_refused(rpc_lib: Path, tmp_path: Path) -> None:
    """It used to take the first one's greeting for its own, and to wait for ever."""
    port = free_port()
    with Server(HOST, port, 1, GIB):
        done = Localmoe(tmp_path)("worker", "--port", str(port), "--ram", "1")
        assert_clear_error(done, 1, f"something serves at {HOST}:{port} already", "--port")


def test_a_port_of_something_else_is_refused(rpc_lib: Path, tmp_path: Path, web: int) -> None:
    """A web server, or anything else that listens there."""
    done = Localmoe(tmp_path)("worker", "--port", str(web), "--ram", "1")
    assert_clear_error(done, 1, "already", "--port")
    with pytest.raises(EngineError, match="already"):
        require_free("0.0.0.0", web)


def test_a_web_server_is_no_worker(web: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked as a worker it is told for what it is."""
    monkeypatch.setattr(rpc, "PROBE_PATIENCE", PATIENCE)
    with pytest.raises(EngineError, match="a web server listens"):
        greet(f"{HOST}:{web}", patience=0.5)


def test_an_older_worker_is_told_from_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that answers the old greeting only is of another version; a mute one is in use."""

    def answer(listening: socket.socket, old: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listening.accept()
                with peer:
                    asked = peer.recv(9)
                    if old and asked == struct.pack("<BQ", 14, 0):
                        peer.sendall(struct.pack("<Q3B", 3, 2, 0, 0))
                    peer.settimeout(3)
                    with contextlib.suppress(OSError):
                        while peer.recv(64):
                            pass

    for old, words in ((True, "older version"), (False, "serves somebody else")):
        monkeypatch.setattr(rpc, "PROBE_PATIENCE", 3.0 if old else 0.2)  # a mute one lets it pass
        with socket.create_server((HOST, 0)) as listening:
            threading.Thread(target=answer, args=(listening, old), daemon=True).start()
            with pytest.raises(EngineError, match=words):
                greet(f"{HOST}:{listening.getsockname()[1]}", patience=0.5)


def test_an_engine_whose_protocol_is_another(
    rpc_lib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is started here and speaks another one is ended, and not waited for."""
    monkeypatch.setattr(rpc, "_PROTOCOL", rpc._PROTOCOL + 1)
    monkeypatch.setattr(rpc_serving, "START_PATIENCE", 24 * 3600.0)
    with pytest.raises(EngineError, match="not the one that localmoe knows") as caught:
        Server(HOST, free_port(), 1, GIB)
    assert "pip check" in (caught.value.hint or "")


def test_names_and_addresses(rpc_lib: Path, tmp_path: Path) -> None:
    """A name is looked up; what llama.cpp's server cannot use is refused before it starts."""
    assert address_of("localhost") == "127.0.0.1"
    with Server("localhost", free_port(), 1, GIB) as server:
        assert server.endpoint.startswith("127.0.0.1:")
    for host in ("::1", "no.such.name.invalid"):
        done = Localmoe(tmp_path)("worker", "--host", host)
        assert_clear_error(done, 1, "no IPv4 address", "--host")
    with pytest.raises(EngineError, match="cannot serve"):
        require_free("192.0.2.1", free_port())


@pytest.mark.parametrize("text", ["[::1]:50052", "::1", "fe80::1%eth0", "[::1]"])
def test_ipv6_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(UsageError, match="IPv6"):
        parse(["run", "m.gguf", "--remote", text])


def test_a_worker_with_nothing_to_give(rpc_lib: Path, tmp_path: Path) -> None:
    """`--ram 0.001` is less than the process itself takes: said, and not served."""
    done = Localmoe(tmp_path)("worker", "--ram", "0.001", "--port", str(free_port()))
    assert_clear_error(done, 1, "no memory to give", "--ram")


class Wire:
    """A relay that counts the bytes that a client sends to a worker."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.split(":")
        self._there = (host, int(port))
        self._listening = socket.create_server((HOST, 0))
        self.endpoint = f"{HOST}:{self._listening.getsockname()[1]}"
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(self._there)
                for source, target, count in ((near, far, True), (far, near, False)):
                    args = (source, target, count)
                    threading.Thread(target=self._relay, args=args, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.sent += len(data) if count else 0
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()


def test_weights_are_sent_once(
    rpc_lib: Path, large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker keeps what it was sent: the second load of a model sends a fraction of it."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    model, sent = read_model(large_file), []
    for _ in range(2):
        with Server(HOST, free_port(), 1, 3 * GIB) as server:
            wire = Wire(server.endpoint)
            settings = EngineSettings(
                context=256, gpu_layers=-1, devices=("RPC0",), remotes=(wire.endpoint,)
            )
            with contextlib.closing(wire), Engine(model, settings, remember=False) as engine:
                assert isinstance(list(engine.load())[-1], Loaded)
            sent.append(wire.sent)
    first, second = sent
    assert first > 0.8 * model.size
    assert second < 0.2 * first


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    """The tensors used longest ago go first."""
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number))
    prune(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_run_says_nothing_of_other_places() -> None:
    """The processor here, a card, a worker: three places, by device and address."""
    settings = [
        EngineSettings(context=512),
        EngineSettings(context=512, devices=("CUDA0",), gpu_layers=-1),
        EngineSettings(context=512, devices=("RPC0",), gpu_layers=-1, remotes=("a:1",)),
        EngineSettings(context=512, devices=("RPC0",), gpu_layers=-1, remotes=("b:1",)),
    ]
    plans = [dataclasses.replace(scripted_model.plan("ram"), settings=each) for each in settings]
    assert len({place_of(plan) for plan in plans}) == 4


def test_a_compiler_that_is_several_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX="ccache g++", as people have it."""
    monkeypatch.setenv("CXX", "env g++ -O1")
    command = rpc_build.compile_command(Path("/r"), Path("/e"), Path("/o"))
    assert command[:3] == ["env", "g++", "-O1"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; print('ERROR: no such thing', file=sys.stderr); sys.exit(1)",
            "no such thing",
        ),
        ("print('only words'); raise SystemExit(2)", "only words"),
        ("raise SystemExit(3)", "exit status 3"),
    ],
)
def test_a_failure_says_why(code: str, words: str) -> None:
    """What pip or a compiler said last, wherever it said it; never nothing, never a list."""
    with pytest.raises(EngineError, match=words) as caught:
        package.run([sys.executable, "-c", code])
    assert "[" not in caught.value.message


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="is not installed"):
        package.run(["no-such-compiler"])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection of this process."""
    with socket.create_server((HOST, 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
        with near, far:
            yield near, far


def test_connections_get_signs_of_life(pair: tuple[socket.socket, socket.socket]) -> None:
    """The connections that are watched, and no others: a dead machine ends a wait in seconds."""
    near, far = pair
    there = far.getsockname()
    rpc.watch(lambda connection: _peer(connection) == there)
    wait_until(lambda: near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert far.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0  # nobody asked for that one


def test_a_peer_that_says_nothing_is_let_go(pair: tuple[socket.socket, socket.socket]) -> None:
    """It would keep a worker in use for ever; one that has spoken may be silent."""
    near, far = pair
    here = far.getsockname()
    near.sendall(b"hello")
    assert far.recv(5) == b"hello"
    with socket.create_server((HOST, 0)) as listening:
        mute = socket.create_connection(listening.getsockname())
        served, _ = listening.accept()
        ours = {here, served.getsockname()}
        rpc.watch(lambda c: c.getsockname() in ours and bool(c.getpeername()), patience=0.2)
        with mute, served:
            mute.settimeout(PATIENCE)
            assert mute.recv(1) == b""
            near.sendall(b"more")
            assert far.recv(4) == b"more"


def _peer(connection: socket.socket) -> object:
    with contextlib.suppress(OSError):
        return connection.getpeername()
    return None


@pytest.fixture
def hangs_after_the_greeting() -> Iterator[str]:
    """What answers the greeting as a worker does, and then nothing."""
    answer = struct.pack("<Q3B", 28, 7, 0, 0) + bytes(25)

    def serve(listening: socket.socket) -> None:
        peers = []
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listening.accept()
                peers.append(peer)
                peer.recv(64)
                peer.sendall(answer)

    with socket.create_server((HOST, 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"{HOST}:{listening.getsockname()[1]}"


def test_a_worker_that_greets_and_then_hangs(
    rpc_lib: Path, hangs_after_the_greeting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question has a limit, and the error names the worker."""
    monkeypatch.setattr(rpc, "ANSWER_LIMIT", 2.0)
    with pytest.raises(
        EngineCrashError, match=f"no answer from the worker at {hangs_after_the_greeting}"
    ):
        engine_info((hangs_after_the_greeting,))


def test_ctrl_c_leaves_a_machine_that_sleeps(
    rpc_lib: Path, large_file: Path, tmp_path: Path
) -> None:
    """A stopped worker never heeds anything; one Ctrl-C names it and gives the prompt back."""
    with Server(HOST, free_port(), 1, 3 * GIB) as server:
        args = ("--remote", server.endpoint, "-c", "256", "-n", "200", "--plain", "--temp", "0")
        running = Running(tmp_path, "run", str(large_file), "Once upon a time", *args)
        try:
            assert running.read(1)  # it writes
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(0.5)
            running.process.send_signal(signal.SIGINT)
            _, said = running.process.communicate(timeout=PATIENCE)
        finally:
            os.kill(server.pid, signal.SIGCONT)
            running.process.kill()
            running.process.communicate()
    assert running.process.returncode not in (0, None)
    assert f"waiting for the worker at {server.endpoint}" in said.decode()
    assert "Traceback" not in said.decode()
