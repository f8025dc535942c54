"""``run`` and ``chat`` as a user starts them, on a real engine with a small generated model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chat import templates
from tests.cli.command import COMMAND, Localmoe, assert_clear_error, environment
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process

GREEDY = ("--temp", "0", "-n", "12")


@pytest.fixture
def localmoe(tmp_path: Path) -> Localmoe:
    """The command, in an empty home folder."""
    return Localmoe(tmp_path)


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe", template=templates.CHATML)


def test_the_answer_alone_is_on_stdout(localmoe: Localmoe, model: Path) -> None:
    """Figures are on stderr; the same text is in ``--json``; greedy is repeatable."""
    done = localmoe("run", "-m", model, *GREEDY, "hello there")
    again = localmoe("run", "-m", model, *GREEDY, "hello there")
    document = localmoe.document("run", "-m", model, *GREEDY, "hello there")
    assert (done.returncode, again.stdout) == (0, done.stdout)
    assert done.stdout == document["text"].rstrip("\n") + "\n"
    assert "12 tokens written" in done.stderr
    assert document["finish_reason"] == "length"
    assert document["model"] == model.stem
    assert document["usage"]["completion_tokens"] == 12
    assert document["timings"]["load_s"] > 0
    assert document["cache"]["regime"] in ("resident", "page", "none")
    assert document["plan"]["engine"]["context"] > 0


def test_quiet_and_no_escape_codes(localmoe: Localmoe, model: Path) -> None:
    """``--quiet`` leaves stderr empty; a pipe never gets an escape code."""
    done = localmoe("run", "-m", model, *GREEDY, "--quiet", "hello")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_a_prompt_is_the_same_wherever_it_comes_from(localmoe: Localmoe, model: Path) -> None:
    """Words, stdin, ``-`` and words with stdin are one prompt."""
    told = localmoe("run", "-m", model, *GREEDY, "one two\n\nthree").stdout
    assert localmoe("run", "-m", model, *GREEDY, stdin="one two\n\nthree\n").stdout == told
    assert localmoe("run", "-m", model, *GREEDY, "-", stdin="one two\n\nthree\n").stdout == told
    assert localmoe("run", "-m", model, *GREEDY, "one", "two", stdin="three").stdout == told


def test_events_as_they_happen(localmoe: Localmoe, model: Path) -> None:
    """``--jsonl``: the answers joined are the text of the last document."""
    done = localmoe("run", "-m", model, *GREEDY, "--jsonl", "hello")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    texts = [line["text"] for line in lines if line.get("event") == "answer"]
    assert "".join(texts) == lines[-1]["text"]
    kinds = list(dict.fromkeys(line["event"] for line in lines))
    assert kinds[-4:] == ["loaded", "prefill", "answer", "done"]


def test_no_prompt(localmoe: Localmoe, model: Path) -> None:
    """``/dev/null`` is no prompt and no loop."""
    assert_clear_error(localmoe("run", "-m", model), 2, "no prompt")
    done = localmoe("chat", model)
    assert (done.returncode, done.stdout) == (0, "")


def test_streams_that_end(localmoe: Localmoe, model: Path) -> None:
    """``| head``, ``/dev/full`` and a closed stdin end quietly or with one line."""
    head = localmoe.shell(f"localmoe run -m {model} -n 2000 hello | head -c 1")
    assert len(head.stdout) == 1
    assert "Traceback" not in head.stderr
    full = localmoe.shell(f"localmoe run -m {model} -n 5 hello > /dev/full")
    assert full.returncode == 1
    assert full.stderr.count("error: ") == 1
    assert "Traceback" not in full.stderr
    closed = localmoe.shell(f"localmoe run -m {model} -n 5 hello <&-")
    assert (closed.returncode, bool(closed.stdout)) == (0, True)


@pytest.mark.parametrize("lost", ["2> /dev/full", "2> >(true)"])
def test_notes_that_nobody_can_read(localmoe: Localmoe, model: Path, lost: str) -> None:
    """A stderr that takes nothing is no reason to fail: the answer is whole, the exit code 0."""
    told = localmoe("run", "-m", model, *GREEDY, "hello").stdout
    done = localmoe.shell(f"localmoe run -m {model} {' '.join(GREEDY)} hello {lost}")
    assert (done.returncode, done.stdout) == (0, told)


def test_stdin_that_stays_open_and_silent(localmoe: Localmoe, model: Path) -> None:
    """A prompt is answered although nobody closes stdin; it is said."""
    reader, writer = os.pipe()
    try:
        done = localmoe("run", "-m", model, *GREEDY, "hello", stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0
    assert "stdin is open but says nothing" in done.stderr
    assert done.stdout == localmoe("run", "-m", model, *GREEDY, "hello").stdout


def test_a_prompt_longer_than_the_context(localmoe: Localmoe, model: Path) -> None:
    """Refused with both counts, and what would help."""
    done = localmoe("run", "-m", model, "--ctx", "256", "word " * 2000)
    assert_clear_error(done, 1, "tokens, the context 256", "--ctx")


@pytest.mark.parametrize("source", ["{% for %}", "{{ 9 ** (9 ** 9) }}", "{{ ''.__class__ }}"])
def test_a_template_that_cannot_be_used(
    localmoe: Localmoe, arch_file: Callable[..., Path], source: str
) -> None:
    """An error that offers the way without the template."""
    path = arch_file("qwen3moe", template=source)
    assert_clear_error(localmoe("run", "-m", path, "hello"), 1, "chat template", "--plain")
    plain = localmoe("run", "-m", path, *GREEDY, "--plain", "hello")
    assert (plain.returncode, bool(plain.stdout)) == (0, True)


def test_a_model_without_a_template(localmoe: Localmoe, arch_file: Callable[..., Path]) -> None:
    """It continues the text, and that is said."""
    path = arch_file("qwen3moe", template=None)
    done = localmoe("run", "-m", path, *GREEDY, "hello")
    assert done.returncode == 0
    assert "no chat template" in done.stderr


def test_think_without_control_is_said(localmoe: Localmoe, model: Path) -> None:
    """``--think`` on a model that cannot be told how much to think."""
    done = localmoe("run", "-m", model, *GREEDY, "--think", "high", "hello")
    assert "no control over thinking" in done.stderr


def test_lines_of_a_pipe_are_turns(localmoe: Localmoe, model: Path) -> None:
    """The second turn reuses the first one's tokens."""
    done = localmoe("chat", model, *GREEDY, stdin="one\ntwo\n/stats\n")
    assert done.returncode == 0
    assert "experts in RAM" in done.stderr
    assert "turns    2" in done.stderr
    kept = int(done.stderr.split(" kept from the turn before")[0].rsplit("(", 1)[1])
    assert kept > 10


class Running:
    """A command that is still running, with its streams."""

    def __init__(self, home: Path, *args: str | Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home,
            env=environment(home),
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def read(self, size: int) -> bytes:
        assert self.process.stdout
        return self.process.stdout.read(size)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """``running("chat", model)`` → the command, killed at the end if it still lives."""
    started: list[Running] = []

    def start(*args: str | Path) -> Running:
        started.append(Running(tmp_path, *args))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()
        command.process.communicate()


def test_ctrl_c_in_an_answer_of_run(running: Callable[..., Running], model: Path) -> None:
    """The partial answer stays on stdout; exit 130; no process is left behind."""
    command = running("run", "-m", model, "hello")
    assert command.process.stdin
    command.process.stdin.close()
    command.process.stdin = None
    command.read(5)
    children = command.children()
    command.process.send_signal(signal.SIGINT)
    code, out, err = command.end()
    assert code == 130
    assert out.endswith("\n")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]


def test_ctrl_c_in_an_answer_of_chat(running: Callable[..., Running], model: Path) -> None:
    """The chat goes on with the next line."""
    command = running("chat", model)
    command.tell("hello")
    command.read(5)
    command.process.send_signal(signal.SIGINT)
    command.tell("/set max_tokens 3")
    command.tell("again")
    code, _, err = command.end()
    assert code == 0
    assert "interrupted; what is there is kept" in err
    assert "· 3 tokens ·" in err


def test_sigterm_leaves_nothing_behind(running: Callable[..., Running], model: Path) -> None:
    """Exit 143; the engine and the renderer end too."""
    command = running("chat", model)
    command.tell("hello")
    command.read(5)
    children = command.children()
    assert len(children) >= 2
    command.process.send_signal(signal.SIGTERM)
    code, _, err = command.end()
    assert code == 143
    assert "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]


def test_a_killed_engine_does_not_end_the_chat(
    running: Callable[..., Running], model: Path
) -> None:
    """The cause is told, the session is intact, the next turn starts the engine again."""
    command = running("chat", model)
    command.tell("hello")
    command.read(5)
    engines = [c for c in command.children() if "localmoe.engine.worker" in c.cmdline()]
    assert len(engines) == 1
    engines[0].kill()
    command.tell("/set max_tokens 3")
    command.tell("again")
    command.tell("/stats")
    code, out, err = command.end()
    assert code == 1  # of the turn that had no answer
    assert "error: the engine process died: killed" in err
    assert "starting the engine again" in err
    assert "· 3 tokens ·" in err
    assert "turns    2" in err
    assert out.count("\n") >= 2


def test_killed_while_waiting_leaves_nothing_behind(
    running: Callable[..., Running], model: Path
) -> None:
    """Even ``kill -9`` of the chat ends the engine and the renderer."""
    command = running("chat", model, "-n", "3")
    command.tell("hello")
    command.read(1)
    time.sleep(0.2)
    children = command.children()
    command.process.kill()
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]
