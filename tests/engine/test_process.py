"""The process boundary: forks, workers that do not answer, and what is said of their ends."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import localmoe
from localmoe import ledger
from localmoe.app.model import LoadedModel
from localmoe.engine import connection, protocol
from localmoe.engine.client import Engine
from localmoe.engine.connection import Connection
from localmoe.engine.events import Request, Sampling, Token
from localmoe.engine.process import WorkerProcess, cause_of_death
from localmoe.errors import EngineCrashError, EngineError, LocalmoeError
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process

SETTINGS = EngineSettings(context=512, batch=64, ubatch=64, threads=1, threads_batch=1)
GREEDY = Sampling(temperature=0)


@pytest.fixture
def engine(
    arch_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    with Engine(read_model(arch_file("qwen3moe")), SETTINGS, promised_ram=1 << 20) as loaded:
        list(loaded.load())
        yield loaded


def ask(engine: Engine, prompt: str, tokens: int = 8) -> str:
    request = Request(prompt, max_tokens=tokens, sampling=GREEDY, ignore_end=True)
    return "".join(e.text for e in engine.generate(request) if isinstance(e, Token))


def in_fork(act: Callable[[], object]) -> Any:
    """What ``act`` returns in a forked process, or the class and message of its error."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            try:
                answer: object = act()
            except LocalmoeError as error:
                answer = [type(error).__name__, error.message]
            os.write(write, json.dumps(answer).encode())
        gc.collect()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = json.loads(pipe.read())
    assert os.waitpid(child, 0)[1] == 0
    return answer


USES: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: ask(engine, "The other question, of the child."),
    "load": lambda engine: [str(event) for event in engine.load()],
    "count": lambda engine: engine.count_tokens("words"),
    "keep": lambda engine: engine.keep("talk"),
}


@pytest.mark.parametrize("use", USES)
def test_a_forked_process_is_refused_and_the_parent_answers_rightly(
    use: str, engine: Engine
) -> None:
    """An error there that names the owner; here the same words as without the fork."""
    expected = ask(engine, "The question of the parent.")

    def both() -> object:
        try:
            return USES[use](engine)
        finally:
            engine.cancel()
            engine.close()

    kind, message = in_fork(both)
    assert kind == "EngineError"
    assert f"process {os.getpid()}" in message
    assert engine.alive
    assert ask(engine, "The question of the parent.") == expected
    assert [promise.pid for promise in ledger.promises()] == [engine.pid]


def ask_in_child(model: LoadedModel, answer: multiprocessing.connection.Connection) -> None:
    try:
        answer.send(model.chat("What is a router?").result().answer)
    except LocalmoeError as error:
        answer.send(f"{type(error).__name__}: {error.message}")
    finally:
        model.close()


def test_multiprocessing_after_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of ``multiprocessing`` that uses the parent's model is refused, and ends as usual."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    with localmoe.load(context=512) as model:
        question = "What is a mixture of experts?"
        expected = model.chat(question, temperature=0).result().answer
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=ask_in_child, args=(model, theirs))
        child.start()
        assert model.chat(question, temperature=0).result().answer == expected
        assert ours.recv().startswith(
            f"EngineError: this model was loaded by process {os.getpid()}"
        )
        child.join()
        assert child.exitcode == 0
        assert model.chat(question, temperature=0).result().answer == expected


def test_a_fork_in_the_middle_of_an_answer(engine: Engine) -> None:
    """The child leaves the loop that it was forked in; the parent's answer is whole."""
    expected = ask(engine, "Go on.", 12)
    request = Request("Go on.", max_tokens=12, sampling=GREEDY, ignore_end=True)
    events, child = engine.generate(request), 0
    text = ""
    for event in events:
        if isinstance(event, Token):
            text += event.text
            if event.tokens == 3:
                child = os.fork()
                if child == 0:
                    with contextlib.suppress(BaseException):
                        events.close()
                    os._exit(0)
    os.waitpid(child, 0)
    assert text == expected


def test_a_worker_does_not_outlive_its_parent_for_a_fork(tmp_path: Path) -> None:
    """The fork's copies of the pipes are closed: when the parent is killed, the worker ends."""
    script = (
        "import os, time\n"
        "from localmoe.engine.process import WorkerProcess\n"
        "worker = WorkerProcess()\n"
        "worker.ask('info')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(120)\n"
        "    os._exit(0)\n"
        "print(worker.pid, child, flush=True)\n"
        "time.sleep(120)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker, child = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    try:
        assert gone(worker)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def gone(pid: int) -> bool:
    """Whether a process that is not ours ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return True
    return False


def test_events_of_another_request_are_dropped(engine: Engine) -> None:
    """Late ones, and ones of nobody, are no part of an answer."""
    expected = ask(engine, "Words.")
    worker = engine._worker
    for strange in (
        {"event": "text", "text": "late", "tokens": 1, "id": 1},
        {"event": "finished", "id": 10_000},
        {"event": "text", "text": "of nobody", "tokens": 1},
        {"event": "error", "kind": "engine", "message": "of before", "hint": None, "id": 2},
    ):
        worker._deliver(strange)
    assert ask(engine, "Words.") == expected


@contextlib.contextmanager
def stopped(engine: Engine) -> Iterator[None]:
    """A worker that cannot answer, as one that waits for a disk that does not."""
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, signal.SIGCONT)


def test_dropping_an_answer_of_a_worker_that_hangs(engine: Engine) -> None:
    """It is given up, and so is said; ``load`` brings another."""
    events = engine.generate(Request("Go on.", sampling=GREEDY, ignore_end=True))
    next(events)
    with stopped(engine):
        events.close()
        assert not engine.alive
        with pytest.raises(EngineCrashError) as caught:
            engine.count_tokens("words")
    assert "was ended: it did not stop when it was interrupted" in caught.value.message
    assert "memory" not in caught.value.message
    list(engine.load())
    assert engine.count_tokens("words") > 0


class AtWork(Connection):
    """A worker that ends a request ``after`` seconds from its cancel, and computes until then."""

    alive = True

    def __init__(self, after: float, share: float) -> None:
        super().__init__()
        self._after, self._share, self._started = after, share, time.monotonic()

    def _processor_s(self) -> float:
        return self._share * (time.monotonic() - self._started)

    def close(self) -> None:
        pass

    def _put_bytes(self, data: bytes) -> None:
        message = protocol.decode(data)
        answer = {"event": "finished", "id": message["id"]}
        if message["op"] == "cancel":
            threading.Timer(self._after, self._deliver, [answer]).start()
        else:
            self._deliver({"event": "prefill", "id": message["id"]})

    def _end(self, why: str) -> None:
        self._ended = why

    def _obituary(self, *, reading: bool, awaited: str = "") -> EngineError:
        raise AssertionError("it is not gone")


@pytest.mark.parametrize(("share", "ended"), [(1.0, False), (0.0, True)])
def test_a_worker_inside_a_long_operation_is_waited_for(
    share: float, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times as long as a cancelled request may take: one that uses the processor meanwhile
    lives on, one that does not is given up."""
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    worker = AtWork(0.6, share)
    events = worker.request("generate")
    assert next(events)["event"] == "prefill"
    assert isinstance(events, Generator)
    events.close()
    assert bool(worker._ended) is ended


def test_closing_frees_whoever_waits(engine: Engine) -> None:
    """Another thread's request ends with an error that names the reason: not memory."""
    found: list[BaseException] = []

    def wait() -> None:
        try:
            ask(engine, "Go on.", 400)
        except BaseException as error:
            found.append(error)

    with stopped(engine):
        thread = threading.Thread(target=wait)
        thread.start()
        while not engine._worker._running:
            time.sleep(0.01)
        engine.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert isinstance(found[0], EngineCrashError)
    assert found[0].message == "the engine process was ended: the model was closed"
    assert found[0].hint is None


@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGSEGV, 1, None])
def test_hints_hold_for_every_front_end(status: int | None) -> None:
    """No hint speaks of a next message: only a chat has one."""
    error = cause_of_death(status, ["ERROR: something"], reading=False)
    assert "message" not in (error.hint or "")
    assert "localmoe doctor" in (error.hint or "")


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (-signal.SIGABRT, "ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed"),
        (1, "RuntimeError: can't start new thread"),
    ],
)
def test_an_end_for_want_of_memory_is_no_damaged_file(status: int, line: str) -> None:
    """Neither ggml nor Python has another way to say that there is none; their words are told."""
    error = cause_of_death(status, [line], reading=True)
    assert "did not get the memory" in error.message and line in error.message
    assert "ulimit -v" in (error.hint or "")


def preloaded_by(python: str, *, cwd: Path) -> dict[str, object]:
    """What that interpreter's localmoe says of its engine, and what its linker complains of."""
    script = (
        "import dataclasses, json, localmoe\n"
        "from localmoe.engine.process import WorkerProcess\n"
        "worker = WorkerProcess()\n"
        "info = worker.ask('info')\n"
        "worker.close()\n"
        "print(json.dumps({'file': localmoe.__file__, 'said': list(worker._stderr),\n"
        "    **{key: info[key] for key in ('native_helper', 'helper_preloaded')}}))\n"
    )
    done = subprocess.run([python, "-P", "-c", script], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ld.so" not in done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif("sys.platform != 'linux'", reason="preloading is Linux's")
@pytest.mark.parametrize("name", ["with a blank", "a:colon", "b: o t h", "$ORIGIN ${LIB}", "plain"])
def test_an_environment_in_any_folder(name: str, tmp_path: Path) -> None:
    """The helper is preloaded wherever the environment is, and the linker has nothing to say."""
    made = tmp_path / "made"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    environment = made.rename(tmp_path / name)
    (packages,) = environment.glob("lib/python*/site-packages")
    shutil.copytree(Path(localmoe.__file__).parent, packages / "localmoe")
    others = {str(Path(module.__file__).parents[1]) for module in (pytest,) if module.__file__}
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    found = preloaded_by(str(environment / "bin" / "python"), cwd=tmp_path)
    assert str(found["file"]).startswith(str(environment))
    assert found["native_helper"] is True
    assert found["helper_preloaded"] is True
    assert found["said"] == []


def test_doctor_sees_a_helper_that_is_not_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is whose ``mmap`` a worker uses, not whether a file is there."""
    monkeypatch.setenv("LOCALMOE_STOCK_MMAP", "1")
    worker = WorkerProcess()
    info = worker.ask("info")
    worker.close()
    assert (info["native_helper"], info["helper_preloaded"]) == (True, False)


def test_what_a_worker_starts_is_not_told_to_preload(engine: Engine) -> None:
    """The worker's own environment no longer names the descriptor that only it had."""
    assert not [
        link
        for link in Path(f"/proc/{engine.pid}/fd").iterdir()
        if "_native" in link.readlink().name
    ]
